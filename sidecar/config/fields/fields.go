// Package fields keeps a promise of the configuration compiler: nothing is
// ignored in silence. A compile function says which fields of a message it
// implements; a field that is set and not among them becomes a warning, or an
// error where ignoring it would weaken security. Everything that turns Envoy's
// protos into runtime tables uses it, off the workers.
package fields

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxErrors bounds the errors of one resource that are told; a broken
// generator would otherwise fill a NACK with thousands.
const maxErrors = 16

// Warning is a field that is set and has no effect.
type Warning struct {
	Resource string // `route configuration "r"`
	Path     string // of the field, "virtual_hosts[0].hedge_policy"
	Text     string
}

// String is the warning as logs and --mode validate print it.
func (w Warning) String() string { return join(w.Resource, w.Path, w.Text) }

// Error is one thing that is wrong with a resource.
type Error struct {
	Resource string
	Path     string
	Text     string
}

// Error names the resource and the field, and says what is wrong.
func (e *Error) Error() string { return join(e.Resource, e.Path, e.Text) }

func join(resource, path, text string) string {
	var b strings.Builder
	for _, s := range []string{resource, path} {
		if s != "" {
			b.WriteString(s)
			b.WriteString(": ")
		}
	}
	b.WriteString(text)
	return b.String()
}

// Report collects what is to be said about one resource. Not safe for
// concurrent use.
type Report struct {
	Resource string // kind and name: `listener "http"`
	Warnings []Warning
	errs     []error
	more     int
}

// NewReport returns an empty report on a resource of that kind and name.
func NewReport(kind, name string) *Report {
	return &Report{Resource: kind + " " + strconv.Quote(name)}
}

// Errorf notes an error; the resource will be refused.
func (r *Report) Errorf(path, format string, args ...any) {
	r.add(&Error{r.Resource, path, fmt.Sprintf(format, args...)})
}

// Fail notes err, which a function that knows nothing of paths returned.
func (r *Report) Fail(path string, err error) {
	var e *Error
	if errors.As(err, &e) && e.Resource == r.Resource {
		r.add(e)
		return
	}
	r.add(&Error{r.Resource, path, err.Error()})
}

func (r *Report) add(e *Error) {
	if len(r.errs) == maxErrors {
		r.more++
		return
	}
	r.errs = append(r.errs, e)
}

// Warnf notes a warning.
func (r *Report) Warnf(path, format string, args ...any) {
	r.Warnings = append(r.Warnings, Warning{r.Resource, path, fmt.Sprintf(format, args...)})
}

// Failed says whether there is an error.
func (r *Report) Failed() bool { return len(r.errs) > 0 }

// Count is the number of errors, so that a caller can tell whether what it called added one.
func (r *Report) Count() int { return len(r.errs) + r.more }

// Err is all errors as one, or nil.
func (r *Report) Err() error {
	errs := r.errs
	if r.more > 0 {
		errs = append(errs[:len(errs):len(errs)], fmt.Errorf("%s: and %d more errors", r.Resource, r.more))
	}
	return errors.Join(errs...)
}

// Take adds what another report found, its paths placed below path: a filter
// that was compiled by itself, for example.
func (r *Report) Take(path string, o *Report) {
	for _, w := range o.Warnings {
		r.Warnings = append(r.Warnings, Warning{r.Resource, At(path, w.Path), w.Text})
	}
	for _, err := range o.errs {
		var e *Error
		if errors.As(err, &e) {
			r.add(&Error{r.Resource, At(path, e.Path), e.Text})
		} else {
			r.Fail(path, err)
		}
	}
	r.more += o.more
}

// At is the path of a field below path, either of which may be "".
func At(path, field string) string {
	switch {
	case path == "":
		return field
	case field == "" || field[0] == '[':
		return path + field
	}
	return path + "." + field
}

// Index is the path of an element of a repeated field.
func Index(path, field string, i int) string {
	return At(path, field) + "[" + strconv.Itoa(i) + "]"
}

// Key is the path of an entry of a map.
func Key(path, field, key string) string {
	return At(path, field) + "[" + strconv.Quote(key) + "]"
}

// Set says how the fields of one message are treated. Immutable once built;
// made for package-level variables, so that a name that is not a field of the
// message panics when the program (and each of its tests) starts.
type Set struct {
	message protoreflect.FullName
	fields  map[protoreflect.Name]treatment
	strict  bool
}

type treatment uint8

const (
	implemented treatment = iota + 1
	// harmless fields have no effect here, and nobody need be told.
	harmless
	refused
	warned
)

// Of returns the set of the fields of m that are implemented.
func Of(m proto.Message, names ...string) *Set {
	s := &Set{message: m.ProtoReflect().Descriptor().FullName(), fields: map[protoreflect.Name]treatment{}}
	return s.put(m, implemented, names)
}

// Harmless adds fields whose absence changes nothing that can be observed:
// names for statistics that do not exist, runtime keys, metadata for other proxies.
func (s *Set) Harmless(m proto.Message, names ...string) *Set { return s.put(m, harmless, names) }

// Refuse adds fields without which the rest must not be used: those that
// limit, deny or protect. All other fields only cause a warning.
func (s *Set) Refuse(m proto.Message, names ...string) *Set { return s.put(m, refused, names) }

// Warn adds fields that only cause a warning, for sets that are strict.
func (s *Set) Warn(m proto.Message, names ...string) *Set { return s.put(m, warned, names) }

// Strict refuses every field that is not named, also those that this
// program's protos do not know: for messages that are all about security.
func (s *Set) Strict() *Set {
	s.strict = true
	return s
}

func (s *Set) put(m proto.Message, t treatment, names []string) *Set {
	d := m.ProtoReflect().Descriptor()
	for _, n := range names {
		if d.Fields().ByName(protoreflect.Name(n)) == nil {
			panic(fmt.Sprintf("fields: %s has no field %q", d.FullName(), n))
		}
		s.fields[protoreflect.Name(n)] = t
	}
	return s
}

// Check reports each field of m, which stands at path, that is set and that s
// does not name. It looks at m only, not at the messages in it: their compile
// functions do that. A nil m is not set and has nothing to report.
//
// Extensions (Any, TypedExtensionConfig) that are not implemented are always
// refused, as design demands: what they would do is not known.
func Check(r *Report, path string, m proto.Message, s *Set) {
	pm := m.ProtoReflect()
	if !pm.IsValid() {
		return
	}
	if pm.Descriptor().FullName() != s.message {
		panic(fmt.Sprintf("fields: %s checked as %s", pm.Descriptor().FullName(), s.message))
	}
	pm.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		p := At(path, string(f.Name()))
		switch t := s.fields[f.Name()]; {
		case t == implemented || t == harmless:
		case t == refused || t != warned && (s.strict || isExtension(f)):
			r.Errorf(p, "not implemented, and refused because the rest must not be used without it; remove the field")
		default:
			r.Warnf(p, "not implemented; the field has no effect")
		}
		return true
	})
	if u := pm.GetUnknown(); len(u) > 0 {
		numbers := unknownNumbers(u)
		if s.strict {
			r.Errorf(path, "%s has fields that are not known (number %s); refused because the rest must not be used without them", s.message, numbers)
		} else {
			r.Warnf(path, "%s has fields that are not known (number %s); they have no effect", s.message, numbers)
		}
	}
}

// isExtension says whether a field holds a message of a type that only its value names.
func isExtension(f protoreflect.FieldDescriptor) bool {
	if f.IsMap() {
		f = f.MapValue()
	}
	if f.Message() == nil {
		return false
	}
	switch f.Message().FullName() {
	case "google.protobuf.Any", "envoy.config.core.v3.TypedExtensionConfig", "xds.core.v3.TypedExtensionConfig":
		return true
	}
	return false
}

func unknownNumbers(u protoreflect.RawFields) string {
	var list []string
	seen := map[protowire.Number]bool{}
	for len(u) > 0 {
		num, _, n := protowire.ConsumeField(u)
		if n < 0 {
			break
		}
		u = u[n:]
		if !seen[num] && len(list) < 8 {
			seen[num] = true
			list = append(list, strconv.Itoa(int(num)))
		}
	}
	return strings.Join(list, ", ")
}
