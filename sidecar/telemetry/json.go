package telemetry

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"

	"sallyport/sidecar/stream"
)

// JSONFormat is a compiled json_format: an object whose strings are format
// strings. A value that is one operator alone keeps its type: numbers are
// bare, and what is not there is null. Immutable.
type JSONFormat struct {
	nodes []node
}

// node is a piece of JSON text as it is, or a formatted string.
type node struct {
	text   string
	format *Format
}

// CompileJSON reads a json_format. Keys are written in sorted order.
func CompileJSON(st *structpb.Struct) (*JSONFormat, error) {
	j := &JSONFormat{}
	if err := j.add(structpb.NewStructValue(st)); err != nil {
		return nil, err
	}
	j.text("\n")
	return j, nil
}

func (j *JSONFormat) text(s string) {
	if n := len(j.nodes); n > 0 && j.nodes[n-1].format == nil {
		j.nodes[n-1].text += s
		return
	}
	j.nodes = append(j.nodes, node{text: s})
}

func (j *JSONFormat) add(v *structpb.Value) error {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StructValue:
		fields := k.StructValue.GetFields()
		keys := make([]string, 0, len(fields))
		for key := range fields {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		j.text("{")
		for i, key := range keys {
			if i > 0 {
				j.text(",")
			}
			j.text(string(appendJSONString(nil, []byte(key))) + ":")
			if err := j.add(fields[key]); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
		}
		j.text("}")
	case *structpb.Value_ListValue:
		j.text("[")
		for i, e := range k.ListValue.GetValues() {
			if i > 0 {
				j.text(",")
			}
			if err := j.add(e); err != nil {
				return err
			}
		}
		j.text("]")
	case *structpb.Value_StringValue:
		f, err := Compile(k.StringValue)
		if err != nil {
			return err
		}
		if len(f.parts) == 0 || len(f.parts) == 1 && f.parts[0].f == nil {
			j.text(string(appendJSONString(nil, []byte(strings.ReplaceAll(k.StringValue, "%%", "%")))))
			return nil
		}
		j.nodes = append(j.nodes, node{format: f})
	case *structpb.Value_NumberValue:
		j.text(strconv.FormatFloat(k.NumberValue, 'g', -1, 64))
	case *structpb.Value_BoolValue:
		j.text(strconv.FormatBool(k.BoolValue))
	default:
		j.text("null")
	}
	return nil
}

// Append writes the object for s, with a line feed.
func (j *JSONFormat) Append(dst []byte, s *stream.Stream) []byte {
	var small [512]byte
	for i := range j.nodes {
		n := &j.nodes[i]
		if n.format == nil {
			dst = append(dst, n.text...)
			continue
		}
		if len(n.format.parts) == 1 {
			p := &n.format.parts[0]
			v, ok := p.f(small[:0], s)
			switch {
			case !ok:
				dst = append(dst, "null"...)
			case p.number && isInteger(v):
				dst = append(dst, v...)
			default:
				if p.max > 0 && len(v) > p.max {
					v = v[:p.max]
				}
				dst = appendJSONString(dst, v)
			}
			continue
		}
		dst = appendJSONString(dst, n.format.Append(small[:0], s))
	}
	return dst
}

// isInteger guards bare numbers: the value of a gRPC status comes from a peer.
func isInteger(v []byte) bool {
	if len(v) == 0 || len(v) > 20 {
		return false
	}
	for i, c := range v {
		if (c < '0' || c > '9') && !(i == 0 && c == '-' && len(v) > 1) {
			return false
		}
	}
	return v[0] != '0' || len(v) == 1
}

// appendJSONString writes a JSON string (RFC 8259 §7); bytes that are not
// UTF-8 become the replacement character, so that a line is always valid JSON.
func appendJSONString(dst, s []byte) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
			i++
		case c < 0x20 || c == 0x7f:
			dst = append(dst, `\u00`...)
			dst = append(dst, "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
			i++
		case c < utf8.RuneSelf:
			dst = append(dst, c)
			i++
		default:
			r, n := utf8.DecodeRune(s[i:])
			dst = utf8.AppendRune(dst, r) // RuneError for what is not UTF-8
			i += n
		}
	}
	return append(dst, '"')
}
