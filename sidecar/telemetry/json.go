package telemetry

import (
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"

	"sallyport/sidecar/stream"
)

// JSONFormat is a compiled json_format: an object whose strings are format
// strings. A value that is one operator alone keeps its type: numbers are
// bare, and what is not there is null. Immutable.
type JSONFormat struct {
	nodes []node
	omit  bool // omit_empty_values: leave members out whose value is not there
}

// node is a piece of JSON: a bracket, or a value with what stands before it.
type node struct {
	bracket string
	key     string // `"name":` of a member, "" in a list
	text    string // a constant value
	format  *Format
}

// compileJSON reads a json_format. Keys are written in sorted order.
func compileJSON(st *structpb.Struct, omit bool) (*JSONFormat, error) {
	j := &JSONFormat{omit: omit}
	if err := j.add("", structpb.NewStructValue(st)); err != nil {
		return nil, fmt.Errorf("json_format: %w", err)
	}
	return j, nil
}

func (j *JSONFormat) add(key string, v *structpb.Value) error {
	constant := func(s string) { j.nodes = append(j.nodes, node{key: key, text: s}) }
	switch k := v.GetKind().(type) {
	case *structpb.Value_StructValue:
		j.nodes = append(j.nodes, node{key: key, bracket: "{"})
		fields := k.StructValue.GetFields()
		for _, name := range sortedKeys(fields) {
			if err := j.add(string(appendJSONString(nil, []byte(name)))+":", fields[name]); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		j.nodes = append(j.nodes, node{bracket: "}"})
	case *structpb.Value_ListValue:
		j.nodes = append(j.nodes, node{key: key, bracket: "["})
		for i, e := range k.ListValue.GetValues() {
			if err := j.add("", e); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
		j.nodes = append(j.nodes, node{bracket: "]"})
	case *structpb.Value_StringValue:
		f, err := Compile(k.StringValue)
		switch {
		case err != nil:
			return err
		case len(f.parts) == 0:
			constant(`""`)
		case len(f.parts) == 1 && f.parts[0].f == nil:
			constant(string(appendJSONString(nil, []byte(f.parts[0].text))))
		default:
			if j.omit {
				f.missing = ""
			}
			j.nodes = append(j.nodes, node{key: key, format: f})
		}
	case *structpb.Value_NumberValue:
		if math.IsNaN(k.NumberValue) || math.IsInf(k.NumberValue, 0) {
			return fmt.Errorf("%v is not a number of JSON", k.NumberValue)
		}
		constant(strconv.FormatFloat(k.NumberValue, 'g', -1, 64))
	case *structpb.Value_BoolValue:
		constant(strconv.FormatBool(k.BoolValue))
	default:
		constant("null")
	}
	return nil
}

// Append writes the object for s, with a line feed. Values are formatted in
// place, at the end of dst, and made JSON there.
func (j *JSONFormat) Append(dst []byte, s *stream.Stream) []byte {
	line := len(dst)
	for i := range j.nodes {
		n := &j.nodes[i]
		if n.bracket == "}" || n.bracket == "]" {
			dst = append(dst, n.bracket...)
			continue
		}
		before := len(dst)
		if before > line && dst[before-1] != '{' && dst[before-1] != '[' {
			dst = append(dst, ',')
		}
		dst = append(dst, n.key...)
		if n.format == nil {
			dst = append(append(dst, n.bracket...), n.text...)
			continue
		}
		at := len(dst)
		if len(n.format.parts) > 1 {
			dst = quote(n.format.Append(dst, s), at)
			continue
		}
		p := &n.format.parts[0]
		var ok bool
		dst, ok = p.f(dst, s)
		switch {
		case !ok && j.omit && n.key != "":
			dst = dst[:before]
		case !ok:
			dst = append(dst[:at], "null"...)
		case p.number && isInteger(dst[at:]):
		default:
			if p.max > 0 && len(dst)-at > p.max {
				dst = dst[:at+p.max]
			}
			dst = quote(dst, at)
		}
	}
	return append(dst, '\n')
}

// quote makes what stands in dst from at on a JSON string.
func quote(dst []byte, at int) []byte {
	end := len(dst)
	dst = appendJSONString(dst, dst[at:end])
	return append(dst[:at], dst[end:]...) // moves towards the front
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
	if v[0] == '-' {
		v = v[1:]
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
