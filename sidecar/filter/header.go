package filter

//lint:file-ignore SA1019 deprecated fields still come from control planes

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/route"
)

var additionFields = fields.Of(&corev3.HeaderValueOption{}, "header", "append", "append_action", "keep_empty_value")

// Addition compiles a HeaderValueOption that stands at path. A value with %COMMANDS% needs format.
func Addition(r *fields.Report, path string, o *corev3.HeaderValueOption, format func(string) (route.Formatter, error)) route.HeaderMutation {
	fields.Check(r, path, o, additionFields)
	m := header(r, path, o.GetHeader(), format)
	m.KeepEmpty = o.GetKeepEmptyValue()
	switch o.GetAppendAction() {
	case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		m.Action = route.Append
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		m.Action = route.AddIfAbsent
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		m.Action = route.Overwrite
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		m.Action = route.OverwriteIfExists
	}
	if a := o.GetAppend(); a != nil {
		if o.GetAppendAction() != corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD {
			r.Errorf(path, "both append and append_action are set; append is deprecated, remove it")
		}
		if !a.GetValue() {
			m.Action = route.Overwrite
		}
	}
	return m
}

// header compiles the name and value of a header that is added. A value
// without %COMMANDS% becomes a constant, %% in it a percent sign.
func header(r *fields.Report, path string, h *corev3.HeaderValue, format func(string) (route.Formatter, error)) route.HeaderMutation {
	m := route.HeaderMutation{Name: strings.ToLower(h.GetKey()), Value: h.GetValue()}
	p := path + ".header.value"
	if len(h.GetRawValue()) > 0 {
		p = path + ".header.raw_value"
		if m.Value != "" {
			r.Errorf(path+".header", "both value and raw_value are set")
		}
		m.Value = string(h.GetRawValue())
	}
	if strings.ContainsAny(m.Name, "\r\n\x00 :") || m.Name == "" {
		// A name that begins with ":" is left to the caller to refuse in better words.
		if !strings.HasPrefix(m.Name, ":") {
			r.Errorf(path+".header.key", "%q is not a header's name", h.GetKey())
		}
	}
	if strings.ContainsAny(m.Value, "\r\n\x00") {
		r.Errorf(p, "holds a line break or NUL")
	}
	if !strings.Contains(m.Value, "%") {
		return m
	}
	if plain := strings.ReplaceAll(m.Value, "%%", ""); !strings.Contains(plain, "%") {
		m.Value = strings.ReplaceAll(m.Value, "%%", "%")
		return m
	}
	if format == nil {
		r.Errorf(p, "holds a percent sign, and substitution is not available here; write %%%% for a percent sign")
		return m
	}
	f, err := format(m.Value)
	if err != nil {
		r.Fail(p, err)
		return m
	}
	m.Format, m.Value = f, ""
	return m
}
