package document

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
)

// walk is one decoding.
type walk struct {
	doc   *Document
	path  []segment
	errs  Errors
	nodes int
}

func (w *walk) err() error {
	switch len(w.errs) {
	case 0:
		return nil
	case 1:
		return w.errs[0]
	}
	return w.errs
}

// fail notes a mistake at n; n may be nil.
func (w *walk) fail(n *yaml.Node, format string, a ...any) {
	if len(w.errs) >= maxErrors {
		return
	}
	e := &Error{File: w.doc.name, Path: join(w.path), Text: fmt.Sprintf(format, a...)}
	if n != nil {
		e.Line, e.Column = n.Line, n.Column
	}
	w.errs = append(w.errs, e)
}

func (w *walk) push(s segment) { w.path = append(w.path, s) }
func (w *walk) pop()           { w.path = w.path[:len(w.path)-1] }

// enter counts a node and follows aliases; nil where a limit is met, which is reported.
func (w *walk) enter(n *yaml.Node) *yaml.Node {
	w.nodes++
	if w.nodes > w.doc.most {
		if w.nodes == w.doc.most+1 {
			w.errs = nil // whatever went wrong on the way came of this
			w.fail(n, "aliases make more than %d values of it", w.doc.most)
		}
		return nil
	}
	at := n
	if n = deref(n); n == nil {
		w.fail(at, "the alias refers to itself")
		return nil
	}
	if len(w.path) > maxDepth {
		w.fail(at, "nested deeper than %d levels", maxDepth)
		return nil
	}
	return n
}

// message decodes n, a mapping, into m.
func (w *walk) message(n *yaml.Node, m protoreflect.Message) {
	if n = w.enter(n); n == nil {
		return
	}
	if special := wellKnown(m.Descriptor().FullName()); special != nil {
		special(w, n, m)
		return
	}
	if n.Kind != yaml.MappingNode {
		w.fail(n, "%s; needs fields of %s", saw(n), m.Descriptor().FullName())
		return
	}
	w.fields(n, m, false)
}

// fields decodes the fields of a mapping; "@type" is passed over in an Any.
func (w *walk) fields(n *yaml.Node, m protoreflect.Message, inAny bool) {
	pairs, ok := fields(n)
	if !ok {
		w.fail(n, "the merge key << needs a mapping, or a list of mappings")
	}
	known := m.Descriptor().Fields()
	for i := 0; i+1 < len(pairs); i += 2 {
		key, value := pairs[i], pairs[i+1]
		if inAny && key.Value == "@type" {
			continue
		}
		fd := known.ByName(protoreflect.Name(key.Value))
		if fd == nil {
			fd = known.ByJSONName(key.Value)
		}
		if fd == nil {
			w.push(segment{name: key.Value})
			w.fail(key, "no such field in %s%s", m.Descriptor().FullName(), nearestField(key.Value, known))
			w.pop()
			continue
		}
		w.push(segment{name: string(fd.Name())})
		w.field(key, value, m, fd)
		w.pop()
	}
}

func (w *walk) field(key, n *yaml.Node, m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	v := deref(n)
	if v != nil && v.Kind == yaml.ScalarNode && v.Tag == "!!null" && !takesNull(fd) {
		return // as the JSON mapping has it: null is "not set"
	}
	if m.Has(fd) {
		w.fail(key, "given twice")
		return
	}
	if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
		if other := m.WhichOneof(o); other != nil {
			w.fail(key, "cannot be together with %s: only one of them may be set", other.Name())
			return
		}
	}
	switch {
	case fd.IsMap():
		w.mapping(n, m.Mutable(fd).Map(), fd)
	case fd.IsList():
		w.list(n, m.Mutable(fd).List(), fd)
	case fd.Message() != nil:
		w.message(n, m.Mutable(fd).Message())
	default:
		if n = w.enter(n); n != nil {
			if x, ok := w.scalar(n, fd); ok {
				m.Set(fd, x)
			}
		}
	}
}

func takesNull(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Value" && !fd.IsList() && !fd.IsMap()
}

func (w *walk) list(n *yaml.Node, l protoreflect.List, fd protoreflect.FieldDescriptor) {
	if n = w.enter(n); n == nil {
		return
	}
	if n.Kind != yaml.SequenceNode {
		w.fail(n, "%s; needs a list", saw(n))
		return
	}
	for i, c := range n.Content {
		w.push(segment{index: i})
		if fd.Message() != nil {
			w.message(c, l.AppendMutable().Message())
		} else if c = w.enter(c); c != nil {
			if v, ok := w.scalar(c, fd); ok {
				l.Append(v)
			}
		}
		w.pop()
	}
}

func (w *walk) mapping(n *yaml.Node, m protoreflect.Map, fd protoreflect.FieldDescriptor) {
	if n = w.enter(n); n == nil {
		return
	}
	if n.Kind != yaml.MappingNode {
		w.fail(n, "%s; needs a mapping of keys to values", saw(n))
		return
	}
	pairs, ok := fields(n)
	if !ok {
		w.fail(n, "the merge key << needs a mapping, or a list of mappings")
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		key, value := deref(pairs[i]), pairs[i+1]
		if key == nil {
			continue
		}
		w.push(segment{name: key.Value, key: true})
		w.entry(key, value, m, fd)
		w.pop()
	}
}

func (w *walk) entry(key, value *yaml.Node, m protoreflect.Map, fd protoreflect.FieldDescriptor) {
	// Keys of maps are always strings in JSON, whatever their type.
	text := *key
	text.Tag, text.Style = "!!str", yaml.DoubleQuotedStyle
	if key.Kind != yaml.ScalarNode {
		w.fail(key, "a key must be a single value")
		return
	}
	var k protoreflect.MapKey
	if fd.MapKey().Kind() == protoreflect.BoolKind {
		k = protoreflect.ValueOfBool(key.Value == "true").MapKey()
	} else if v, ok := w.scalar(&text, fd.MapKey()); ok {
		k = v.MapKey()
	} else {
		return
	}
	if m.Has(k) {
		w.fail(key, "given twice")
		return
	}
	if fd.MapValue().Message() != nil {
		v := m.NewValue()
		w.message(value, v.Message())
		m.Set(k, v)
		return
	}
	if value = w.enter(value); value != nil {
		if v, ok := w.scalar(value, fd.MapValue()); ok {
			m.Set(k, v)
		}
	}
}

// any decodes a google.protobuf.Any: a mapping with "@type".
func (w *walk) any(n *yaml.Node, m protoreflect.Message) {
	if n.Kind != yaml.MappingNode {
		w.fail(n, `%s; needs a mapping with "@type"`, saw(n))
		return
	}
	typ, _ := child(n, segment{name: "@type", key: true})
	if typ = deref(typ); typ == nil || typ.Kind != yaml.ScalarNode || typ.Value == "" {
		if len(n.Content) == 0 {
			return
		}
		w.fail(n, `needs "@type", like type.googleapis.com/envoy.extensions…`)
		return
	}
	mt, err := protoregistry.GlobalTypes.FindMessageByURL(typ.Value)
	if err != nil || !strings.Contains(typ.Value, "/") {
		w.fail(typ, `unknown "@type" %s%s`, quote(typ.Value), nearestType(typ.Value))
		return
	}
	inner := mt.New()
	before := len(w.errs)
	if special := wellKnown(mt.Descriptor().FullName()); special != nil {
		if value, _ := child(n, segment{name: "value", key: true}); value != nil {
			w.message(value, inner)
		}
	} else {
		w.fields(n, inner, true)
	}
	msg := inner.Interface()
	if len(w.errs) == before {
		w.rules(msg, w.path)
	}
	packed, err := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(msg)
	if err != nil {
		w.fail(n, "cannot be encoded: %v", err)
		return
	}
	a := m.Interface().(*anypb.Any)
	a.TypeUrl, a.Value = typ.Value, packed
}

// saw says what is there instead of what is needed.
func saw(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "is a mapping"
	case yaml.SequenceNode:
		return "is a list"
	}
	switch n.Tag {
	case "!!int", "!!float":
		return "is the number " + quoteless(n.Value)
	case "!!bool":
		return "is the boolean " + n.Value
	case "!!null":
		return "is empty"
	}
	return quote(n.Value) + " is a string"
}

func quoteless(s string) string {
	if q := quote(s); len(q) > 2 {
		return q[1 : len(q)-1]
	}
	return s
}

// quote shortens and escapes a value so that the error stays on one line.
func quote(s string) string {
	const most = 200
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strconv.Quote(s)
}

// viaJSON leaves the rarer well-known types to protojson.
func viaJSON(example string) func(*walk, *yaml.Node, protoreflect.Message) {
	return func(w *walk, n *yaml.Node, m protoreflect.Message) {
		if n.Kind != yaml.ScalarNode {
			w.fail(n, "%s; needs %s", saw(n), example)
			return
		}
		if err := protojson.Unmarshal([]byte(jsonString(n.Value)), m.Interface()); err != nil {
			w.fail(n, "%s is not %s", quote(n.Value), example)
		}
	}
}
