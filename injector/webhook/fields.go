package webhook

import (
	"cmp"
	"encoding/json"
	"reflect"
	"strings"
)

// The two sides of a patch are looked at where they stand, the typed pods in their structs and the document in its text,
// and only as deep as they differ: written out as maps and slices of any, or as text in between, each would take many
// times the memory of the review.

// document is JSON that is read as far as it is looked at; it shares the memory of the text that it is part of, which
// stays as it is.
type document []byte

// UnmarshalJSON keeps data, which encoding/json would have copied.
func (d *document) UnmarshalJSON(data []byte) error { *d = data; return nil }

func (d document) members() (m map[string]document, ok bool) {
	return m, len(d) > 0 && d[0] == '{' && json.Unmarshal(d, &m) == nil
}

func (d document) elements() (l []document, ok bool) {
	return l, len(d) > 0 && d[0] == '[' && json.Unmarshal(d, &l) == nil
}

// plain follows pointers and interfaces to the value that JSON writes. The zero Value is null.
func plain(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	return v
}

func same(a, b reflect.Value) bool {
	if !a.IsValid() || !b.IsValid() {
		return a.IsValid() == b.IsValid()
	}
	if a.CanAddr() && b.CanAddr() { // a container is a kilobyte that need not be copied
		a, b = a.Addr(), b.Addr()
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// members are what JSON writes into an object for v, by name; false where it writes no object, or the type's own words.
func members(v reflect.Value) (map[string]reflect.Value, bool) {
	m := map[string]reflect.Value{}
	switch {
	case !v.IsValid() || ownWords(v.Type()):
		return nil, false
	case v.Kind() == reflect.Struct:
		addFields(m, v)
	case v.Kind() == reflect.Map && !v.IsNil() && v.Type().Key().Kind() == reflect.String:
		for it := v.MapRange(); it.Next(); {
			m[it.Key().String()] = plain(it.Value())
		}
	default:
		return nil, false
	}
	return m, true
}

func elements(v reflect.Value) ([]reflect.Value, bool) {
	if v.Kind() != reflect.Slice || v.IsNil() || v.Type().Elem().Kind() == reflect.Uint8 || ownWords(v.Type()) {
		return nil, false
	}
	list := make([]reflect.Value, v.Len())
	for i := range list {
		list[i] = plain(v.Index(i))
	}
	return list, true
}

// addFields follows the tags as encoding/json does.
func addFields(m map[string]reflect.Value, v reflect.Value) {
	for i := range v.NumField() {
		field, value := v.Type().Field(i), v.Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case !field.IsExported() || name == "-":
		case field.Anonymous && name == "": // inline
			addFields(m, value)
		case strings.Contains(options, "omitempty") && empty(value), strings.Contains(options, "omitzero") && zero(value):
		default:
			m[cmp.Or(name, field.Name)] = plain(value)
		}
	}
}

// ownWords is whether a type writes its JSON itself, as quantities and times do.
func ownWords(t reflect.Type) bool {
	marshaler := reflect.TypeFor[json.Marshaler]()
	return t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler)
}

func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Struct:
		return false
	case reflect.Map, reflect.Slice:
		return v.Len() == 0
	default:
		return v.IsZero()
	}
}

func zero(v reflect.Value) bool {
	p := reflect.New(v.Type()) // IsZero may be a method of the pointer
	p.Elem().Set(v)
	if z, ok := p.Interface().(interface{ IsZero() bool }); ok {
		return z.IsZero()
	}
	return v.IsZero()
}

// nameOf is the member "name" of an object, "" for none.
func nameOf(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Struct:
		if name := v.FieldByName("Name"); name.Kind() == reflect.String {
			return name.String()
		}
	case reflect.Map:
		m, _ := v.Interface().(map[string]any)
		name, _ := m["name"].(string)
		return name
	}
	return ""
}

// size is how long the strings of v are, and no more than that; it stops looking where they are longer than limit.
func size(v reflect.Value, limit int) int {
	n := 0
	switch v = plain(v); v.Kind() {
	case reflect.String:
		return v.Len()
	case reflect.Slice:
		for i := 0; i < v.Len() && n <= limit; i++ {
			n += size(v.Index(i), limit-n)
		}
	case reflect.Map:
		for it := v.MapRange(); n <= limit && it.Next(); {
			n += size(it.Key(), limit-n) + size(it.Value(), limit-n)
		}
	case reflect.Struct:
		for i := 0; i < v.NumField() && !ownWords(v.Type()); i++ {
			n += size(v.Field(i), limit-n)
		}
	}
	return n
}
