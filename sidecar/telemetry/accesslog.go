package telemetry

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"os"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"

	"sallyport/sidecar/stream"
)

var hostname = func() string { h, _ := os.Hostname(); return h }()

func tlsVersion(v uint16) string {
	switch v {
	case tls.VersionTLS10:
		return "TLSv1"
	case tls.VersionTLS11:
		return "TLSv1.1"
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	}
	return ""
}

// appender is Format or JSONFormat.
type appender interface {
	Append(dst []byte, s *stream.Stream) []byte
}

// fileLog is a compiled access log: it formats on the worker and hands the
// bytes to the file's writer.
type fileLog struct {
	format appender
	file   *logFile
	wanted []func(*stream.Stream) bool
}

// Log implements stream.AccessLog.
func (l *fileLog) Log(s *stream.Stream) {
	for _, f := range l.wanted {
		if !f(s) {
			return
		}
	}
	l.file.write(l.format, s)
}

// Compile makes an access log of its configuration; what is not implemented is refused by name.
func (l *Logs) Compile(cfg *accesslogv3.AccessLog) (stream.AccessLog, error) {
	out := &fileLog{}
	if cfg.GetFilter() != nil {
		f, err := compileFilter(cfg.GetFilter())
		if err != nil {
			return nil, err
		}
		out.wanted = append(out.wanted, f)
	}
	any := cfg.GetTypedConfig()
	var path string
	var format *corev3.SubstitutionFormatString
	switch any.GetTypeUrl() {
	case "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog":
		var c filelogv3.FileAccessLog
		if err := any.UnmarshalTo(&c); err != nil {
			return nil, fmt.Errorf("access log: %w", err)
		}
		path = c.GetPath()
		switch f := c.GetAccessLogFormat().(type) {
		case *filelogv3.FileAccessLog_LogFormat:
			format = f.LogFormat
		// The forms below are deprecated, and still what many files have.
		case *filelogv3.FileAccessLog_Format:
			//lint:ignore SA1019 deprecated, and still what many files have
			format = inline(f.Format)
		case *filelogv3.FileAccessLog_JsonFormat:
			//lint:ignore SA1019 deprecated, and still what many files have
			format = &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: f.JsonFormat}}
		case *filelogv3.FileAccessLog_TypedJsonFormat:
			//lint:ignore SA1019 deprecated, and still what many files have
			format = &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: f.TypedJsonFormat}}
		}
	case "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog":
		var c streamlogv3.StdoutAccessLog
		if err := any.UnmarshalTo(&c); err != nil {
			return nil, fmt.Errorf("access log: %w", err)
		}
		path, format = "/dev/stdout", c.GetLogFormat()
	case "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog":
		var c streamlogv3.StderrAccessLog
		if err := any.UnmarshalTo(&c); err != nil {
			return nil, fmt.Errorf("access log: %w", err)
		}
		path, format = "/dev/stderr", c.GetLogFormat()
	default:
		return nil, fmt.Errorf("access log %q: extension %q is not implemented; file, stdout and stderr are", cfg.GetName(), any.GetTypeUrl())
	}
	a, err := compileFormat(format)
	if err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	out.format = a
	if out.file, err = l.open(path); err != nil {
		return nil, err
	}
	return out, nil
}

func inline(s string) *corev3.SubstitutionFormatString {
	return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}}}
}

func compileFormat(f *corev3.SubstitutionFormatString) (appender, error) {
	if len(f.GetFormatters()) > 0 {
		return nil, fmt.Errorf("formatters: extension %q is not implemented", f.GetFormatters()[0].GetTypedConfig().GetTypeUrl())
	}
	text := func(s string) (appender, error) {
		c, err := Compile(s)
		if err != nil {
			return nil, err
		}
		if f.GetOmitEmptyValues() {
			c.missing = ""
		}
		return c, nil
	}
	switch v := f.GetFormat().(type) {
	case nil:
		return text(DefaultFormat)
	case *corev3.SubstitutionFormatString_JsonFormat:
		return compileJSON(v.JsonFormat, f.GetOmitEmptyValues())
	case *corev3.SubstitutionFormatString_TextFormat:
		//lint:ignore SA1019 deprecated, and still what many files have
		return text(v.TextFormat)
	case *corev3.SubstitutionFormatString_TextFormatSource:
		s, ok := v.TextFormatSource.GetSpecifier().(*corev3.DataSource_InlineString)
		if !ok {
			return nil, fmt.Errorf("text_format_source: only inline_string is implemented")
		}
		return text(s.InlineString)
	}
	return nil, fmt.Errorf("format %T is not implemented", f.GetFormat())
}

// compileFilter makes a predicate of an access log filter.
func compileFilter(f *accesslogv3.AccessLogFilter) (func(*stream.Stream) bool, error) {
	switch v := f.GetFilterSpecifier().(type) {
	case *accesslogv3.AccessLogFilter_StatusCodeFilter:
		return compare(v.StatusCodeFilter.GetComparison(), func(s *stream.Stream) uint64 { return uint64(s.Status) }), nil
	case *accesslogv3.AccessLogFilter_DurationFilter:
		return compare(v.DurationFilter.GetComparison(), func(s *stream.Stream) uint64 { return uint64(s.Duration.Milliseconds()) }), nil
	case *accesslogv3.AccessLogFilter_RuntimeFilter:
		p := v.RuntimeFilter.GetPercentSampled()
		of := map[string]uint32{"HUNDRED": 100, "TEN_THOUSAND": 10000, "MILLION": 1000000}[p.GetDenominator().String()]
		return func(*stream.Stream) bool { return rand.Uint32N(max(of, 1)) < p.GetNumerator() }, nil
	case *accesslogv3.AccessLogFilter_ResponseFlagFilter:
		flags := v.ResponseFlagFilter.GetFlags()
		return func(s *stream.Stream) bool {
			if len(flags) == 0 {
				return s.Flags != 0
			}
			for _, f := range flags {
				if s.Flags.Has(f) {
					return true
				}
			}
			return false
		}, nil
	case *accesslogv3.AccessLogFilter_AndFilter:
		return combine(v.AndFilter.GetFilters(), true)
	case *accesslogv3.AccessLogFilter_OrFilter:
		return combine(v.OrFilter.GetFilters(), false)
	}
	return nil, fmt.Errorf("access log filter %T is not implemented", f.GetFilterSpecifier())
}

func compare(c *accesslogv3.ComparisonFilter, value func(*stream.Stream) uint64) func(*stream.Stream) bool {
	limit := uint64(c.GetValue().GetDefaultValue())
	op := c.GetOp()
	return func(s *stream.Stream) bool {
		switch n := cmp.Compare(value(s), limit); op {
		case accesslogv3.ComparisonFilter_GE:
			return n >= 0
		case accesslogv3.ComparisonFilter_LE:
			return n <= 0
		case accesslogv3.ComparisonFilter_NE:
			return n != 0
		default:
			return n == 0
		}
	}
}

func combine(filters []*accesslogv3.AccessLogFilter, all bool) (func(*stream.Stream) bool, error) {
	var list []func(*stream.Stream) bool
	for _, f := range filters {
		c, err := compileFilter(f)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return func(s *stream.Stream) bool {
		for _, f := range list {
			if f(s) != all {
				return !all
			}
		}
		return all
	}, nil
}
