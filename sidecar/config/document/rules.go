package document

import (
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Broken is a rule of a proto (protoc-gen-validate) that a message breaks.
type Broken struct {
	Path string // "clusters[0].name"
	Text string
}

// violation is what protoc-gen-validate's errors have in common.
type violation interface {
	Field() string
	Reason() string
	Cause() error
}

// Rules checks m against the rules that its proto carries, without looking into Any fields.
func Rules(m proto.Message) []Broken {
	v, ok := m.(interface{ ValidateAll() error })
	if !ok {
		return nil
	}
	err := v.ValidateAll()
	if err == nil {
		return nil
	}
	var out []Broken
	collect(err, m.ProtoReflect().Descriptor(), nil, &out)
	return out
}

// rules reports what m, which stands at prefix, breaks.
func (w *walk) rules(m proto.Message, prefix []segment) {
	for _, b := range Rules(m) {
		if len(w.errs) >= maxErrors {
			return
		}
		path := join(append(slices.Clone(prefix), split(b.Path)...))
		w.errs = append(w.errs, w.doc.Error(path, b.Text))
	}
}

// collect flattens the tree of errors into paths of proto names.
func collect(err error, md protoreflect.MessageDescriptor, path []segment, out *[]Broken) {
	if all, ok := err.(interface{ AllErrors() []error }); ok {
		for _, e := range all.AllErrors() {
			collect(e, md, path, out)
		}
		return
	}
	v, ok := err.(violation)
	if !ok {
		*out = append(*out, Broken{join(path), oneLine(err.Error())})
		return
	}
	name, index, _ := strings.Cut(v.Field(), "[")
	index = strings.TrimSuffix(index, "]")
	fd, segments := named(md, name)
	path = append(slices.Clone(path), segments...)
	if index != "" && fd != nil {
		if fd.IsMap() {
			path = append(path, segment{name: index, key: true})
		} else if n, err := strconv.Atoi(index); err == nil {
			path = append(path, segment{index: n})
		}
	}
	if cause := v.Cause(); cause != nil && fd != nil {
		inner := fd.Message()
		if fd.IsMap() {
			inner = fd.MapValue().Message()
		}
		if inner != nil {
			collect(cause, inner, path, out)
			return
		}
	}
	text := oneLine(v.Reason())
	if text == "value is required" {
		text = "is required"
	}
	*out = append(*out, Broken{join(path), text})
}

// named finds the field, or the oneof, that has that name in Go.
func named(md protoreflect.MessageDescriptor, goName string) (protoreflect.FieldDescriptor, []segment) {
	same := func(n protoreflect.Name) bool {
		return strings.EqualFold(strings.ReplaceAll(string(n), "_", ""), strings.ReplaceAll(goName, "_", ""))
	}
	for i := range md.Fields().Len() {
		if fd := md.Fields().Get(i); same(fd.Name()) {
			return fd, []segment{{name: string(fd.Name())}}
		}
	}
	for i := range md.Oneofs().Len() {
		if od := md.Oneofs().Get(i); same(od.Name()) {
			return nil, []segment{{name: string(od.Name())}}
		}
	}
	return nil, []segment{{name: snake(goName)}}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
