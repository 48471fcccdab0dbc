package document

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// scalar decodes one value of a field that is not a message.
func (w *walk) scalar(n *yaml.Node, fd protoreflect.FieldDescriptor) (protoreflect.Value, bool) {
	none := protoreflect.Value{}
	if n.Kind != yaml.ScalarNode {
		w.fail(n, "%s; needs %s", saw(n), needs(fd))
		return none, false
	}
	switch fd.Kind() {
	case protoreflect.StringKind:
		if !isText(n) {
			w.fail(n, "%s; needs a string: put it in quotes", saw(n))
			return none, false
		}
		if !utf8.ValidString(n.Value) {
			w.fail(n, "is not UTF-8")
			return none, false
		}
		return protoreflect.ValueOfString(n.Value), true
	case protoreflect.BytesKind:
		// Also where YAML would take the letters for a number.
		if b, ok := fromBase64(n.Value); ok {
			return protoreflect.ValueOfBytes(b), true
		}
	case protoreflect.BoolKind:
		if b, ok := fromBool(n); ok {
			return protoreflect.ValueOfBool(b), true
		}
	case protoreflect.EnumKind:
		return w.enum(n, fd.Enum())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		if v, ok := fromInt(n, 32); ok {
			return protoreflect.ValueOfInt32(int32(v)), true
		}
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		if v, ok := fromInt(n, 64); ok {
			return protoreflect.ValueOfInt64(v), true
		}
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		if v, ok := fromUint(n, 32); ok {
			return protoreflect.ValueOfUint32(uint32(v)), true
		}
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		if v, ok := fromUint(n, 64); ok {
			return protoreflect.ValueOfUint64(v), true
		}
	case protoreflect.FloatKind:
		if v, ok := fromFloat(n); ok && (math.IsInf(v, 0) || math.IsNaN(v) || math.Abs(v) <= math.MaxFloat32) {
			return protoreflect.ValueOfFloat32(float32(v)), true
		}
	case protoreflect.DoubleKind:
		if v, ok := fromFloat(n); ok {
			return protoreflect.ValueOfFloat64(v), true
		}
	}
	w.fail(n, "%s; needs %s", saw(n), needs(fd))
	return none, false
}

// needs says what a field takes.
func needs(fd protoreflect.FieldDescriptor) string {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return "a string"
	case protoreflect.BytesKind:
		return "a string in base64"
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.EnumKind:
		return "one of " + enumNames(fd.Enum())
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return "a whole number from 0 to 4294967295"
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return "a whole number, not negative"
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return "a number"
	}
	return "a whole number"
}

// isText says that YAML has n for a string, or for a date, which nobody means here.
func isText(n *yaml.Node) bool {
	switch n.Tag {
	case "!!int", "!!float", "!!bool", "!!null":
		return false
	}
	return true
}

func fromBool(n *yaml.Node) (v, ok bool) {
	if n.Tag != "!!bool" && n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
		return false, false
	}
	switch strings.ToLower(n.Value) {
	case "true", "yes", "on": // YAML 1.1's words: Envoy's parser takes them too
		return true, true
	case "false", "no", "off":
		return false, true
	}
	return false, false
}

// integer is the text of a whole number without YAML's decorations. Quoted
// decimal numbers are numbers (the JSON mapping writes 64-bit ones so).
func integer(n *yaml.Node) (text string, base int, ok bool) {
	switch n.Tag {
	case "!!int":
		return strings.ReplaceAll(n.Value, "_", ""), 0, true
	case "!!float":
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			return "", 0, false
		}
		return strconv.FormatFloat(f, 'f', 0, 64), 10, true
	case "!!str":
		return n.Value, 10, n.Value != "" && !strings.HasPrefix(n.Value, "+")
	}
	return "", 0, false
}

func fromInt(n *yaml.Node, bits int) (int64, bool) {
	text, base, ok := integer(n)
	v, err := strconv.ParseInt(text, base, bits)
	return v, ok && err == nil
}

func fromUint(n *yaml.Node, bits int) (uint64, bool) {
	text, base, ok := integer(n)
	text = strings.TrimPrefix(text, "+")
	if text == "-0" {
		text = "0"
	}
	v, err := strconv.ParseUint(text, base, bits)
	return v, ok && err == nil
}

func fromFloat(n *yaml.Node) (float64, bool) {
	switch n.Value {
	case "NaN", ".nan", ".NaN":
		return math.NaN(), true
	case "Infinity", ".inf", "+.inf":
		return math.Inf(1), true
	case "-Infinity", "-.inf":
		return math.Inf(-1), true
	}
	if n.Tag == "!!int" {
		if v, ok := fromInt(n, 64); ok {
			return float64(v), true
		}
		v, ok := fromUint(n, 64)
		return float64(v), ok
	}
	if n.Tag != "!!float" && n.Tag != "!!str" || strings.ContainsAny(n.Value, "xXpPiInN_") {
		return 0, false
	}
	v, err := strconv.ParseFloat(n.Value, 64)
	return v, err == nil
}

// fromBase64 takes both alphabets, with or without padding, as the JSON mapping says.
func fromBase64(s string) ([]byte, bool) {
	s = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(s), "=")
	if strings.ContainsAny(s, "\r\n") {
		s = strings.NewReplacer("\r", "", "\n", "").Replace(s)
	}
	b, err := base64.RawStdEncoding.DecodeString(s)
	return b, err == nil
}

func (w *walk) enum(n *yaml.Node, ed protoreflect.EnumDescriptor) (protoreflect.Value, bool) {
	if n.Tag == "!!int" {
		if v, ok := fromInt(n, 32); ok {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(v)), true
		}
	} else if ev := ed.Values().ByName(protoreflect.Name(n.Value)); ev != nil && isText(n) {
		return protoreflect.ValueOfEnum(ev.Number()), true
	}
	names := make([]string, ed.Values().Len())
	for i := range names {
		names[i] = string(ed.Values().Get(i).Name())
	}
	w.fail(n, "%s is not one of %s%s", quote(n.Value), enumNames(ed), didYouMean(strings.ToUpper(n.Value), names))
	return protoreflect.Value{}, false
}

func enumNames(ed protoreflect.EnumDescriptor) string {
	var b strings.Builder
	for i := range ed.Values().Len() {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(ed.Values().Get(i).Name()))
	}
	return b.String()
}

// wellKnown is how a message is read that the JSON mapping writes otherwise
// than as its fields, nil for all others.
func wellKnown(name protoreflect.FullName) func(*walk, *yaml.Node, protoreflect.Message) {
	short, ok := strings.CutPrefix(string(name), "google.protobuf.")
	if !ok {
		return nil
	}
	switch short {
	case "Any":
		return (*walk).any
	case "Duration":
		return (*walk).duration
	case "Struct":
		return (*walk).structure
	case "Value":
		return (*walk).value
	case "ListValue":
		return (*walk).values
	case "Timestamp":
		return viaJSON(`a time like "2026-01-02T15:04:05Z"`)
	case "FieldMask":
		return viaJSON("a list of fields, separated by commas")
	case "BoolValue", "StringValue", "BytesValue", "Int32Value", "Int64Value", "UInt32Value", "UInt64Value", "FloatValue", "DoubleValue":
		return (*walk).wrapper
	}
	return nil
}

func (w *walk) wrapper(n *yaml.Node, m protoreflect.Message) {
	fd := m.Descriptor().Fields().ByNumber(1)
	if v, ok := w.scalar(n, fd); ok {
		m.Set(fd, v)
	}
}

// maxDuration is google.protobuf.Duration's range; time.Duration's is smaller, and enough.
const maxDuration = 315_576_000_000

func (w *walk) duration(n *yaml.Node, m protoreflect.Message) {
	d := m.Interface().(*durationpb.Duration)
	if n.Kind == yaml.ScalarNode && isText(n) {
		if seconds, nanos, ok := parseDuration(n.Value); ok {
			d.Seconds, d.Nanos = seconds, nanos
			return
		}
		if g, err := time.ParseDuration(n.Value); err == nil {
			w.fail(n, `%s is not a duration in Envoy's files, which have seconds alone: write "%ss"`, quote(n.Value),
				strconv.FormatFloat(g.Seconds(), 'f', -1, 64))
			return
		}
		w.fail(n, `%s is not a duration; write seconds followed by "s", like "1.5s"`, quote(n.Value))
		return
	}
	if n.Kind == yaml.ScalarNode && (n.Tag == "!!int" || n.Tag == "!!float") {
		w.fail(n, `%s; needs a duration with its unit: write "%ss"`, saw(n), quoteless(n.Value))
		return
	}
	w.fail(n, `%s; needs a duration like "1.5s"`, saw(n))
}

// parseDuration reads "-1.5s", the JSON form of google.protobuf.Duration.
func parseDuration(s string) (seconds int64, nanos int32, ok bool) {
	s, unit := strings.CutSuffix(s, "s")
	s, negative := strings.CutPrefix(s, "-")
	whole, fraction, dot := strings.Cut(s, ".")
	if !unit || dot && (fraction == "" || len(fraction) > 9) || !digits(whole) || !digits(fraction) || whole == "" {
		return 0, 0, false
	}
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || seconds > maxDuration {
		return 0, 0, false
	}
	for i := range 9 {
		nanos *= 10
		if i < len(fraction) {
			nanos += int32(fraction[i] - '0')
		}
	}
	if negative {
		return -seconds, -nanos, true
	}
	return seconds, nanos, true
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

func (w *walk) structure(n *yaml.Node, m protoreflect.Message) {
	s := m.Interface().(*structpb.Struct)
	if n.Kind != yaml.MappingNode {
		w.fail(n, "%s; needs a mapping of names to values", saw(n))
		return
	}
	pairs, _ := fields(n)
	s.Fields = make(map[string]*structpb.Value, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		key := pairs[i]
		w.push(segment{name: key.Value, key: true})
		if s.Fields[key.Value] != nil {
			w.fail(key, "given twice")
		} else {
			v := &structpb.Value{}
			w.message(pairs[i+1], v.ProtoReflect())
			s.Fields[key.Value] = v
		}
		w.pop()
	}
}

func (w *walk) values(n *yaml.Node, m protoreflect.Message) {
	l := m.Interface().(*structpb.ListValue)
	if n.Kind != yaml.SequenceNode {
		w.fail(n, "%s; needs a list", saw(n))
		return
	}
	for i, c := range n.Content {
		w.push(segment{index: i})
		v := &structpb.Value{}
		w.message(c, v.ProtoReflect())
		l.Values = append(l.Values, v)
		w.pop()
	}
}

func (w *walk) value(n *yaml.Node, m protoreflect.Message) {
	v := m.Interface().(*structpb.Value)
	switch n.Kind {
	case yaml.MappingNode:
		s := &structpb.Struct{}
		w.structure(n, s.ProtoReflect())
		v.Kind = &structpb.Value_StructValue{StructValue: s}
		return
	case yaml.SequenceNode:
		l := &structpb.ListValue{}
		w.values(n, l.ProtoReflect())
		v.Kind = &structpb.Value_ListValue{ListValue: l}
		return
	}
	switch n.Tag {
	case "!!null":
		v.Kind = &structpb.Value_NullValue{}
	case "!!bool":
		b, _ := fromBool(n)
		v.Kind = &structpb.Value_BoolValue{BoolValue: b}
	case "!!int", "!!float":
		f, ok := fromFloat(n)
		if !ok || math.IsInf(f, 0) || math.IsNaN(f) {
			w.fail(n, "%s; needs a finite number", saw(n))
			return
		}
		v.Kind = &structpb.Value_NumberValue{NumberValue: f}
	default:
		if !utf8.ValidString(n.Value) {
			w.fail(n, "is not UTF-8")
			return
		}
		v.Kind = &structpb.Value_StringValue{StringValue: n.Value}
	}
}

func jsonString(s string) string {
	b, _ := json.Marshal(s) // a string always has a JSON form
	return string(b)
}
