package document

import (
	"encoding"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Decode fills the struct that into points to. Fields are found by their json tags; what the struct does not have, has
// twice, or is of another type is a problem. Whatever is returned, into holds what could be read.
func (d *Document) Decode(into any) Problems {
	c := &decoder{doc: d, file: d.File}
	c.value(d.root, reflect.ValueOf(into).Elem(), "", 0)
	return c.problems
}

type decoder struct {
	doc      *Document
	file     string
	nodes    int
	full     bool // no more problems are taken
	problems Problems
}

func (c *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	if c.full {
		return
	}
	if c.full = len(c.problems) == maxProblems; c.full {
		format, args = "there are more mistakes; these come first", nil
	}
	c.problems = append(c.problems, &Problem{File: c.file, Line: n.Line, Column: n.Column, Field: path, Text: fmt.Sprintf(format, args...)})
}

var (
	jsonType = reflect.TypeFor[json.Unmarshaler]()
	textType = reflect.TypeFor[encoding.TextUnmarshaler]()
	byteType = reflect.TypeFor[[]byte]()
)

func (c *decoder) value(n *yaml.Node, v reflect.Value, path string, depth int) {
	if c.full {
		return
	}
	if c.nodes++; depth > maxDepth || c.nodes > maxNodes {
		c.fail(n, path, "nests too deep or is too much")
		c.full = true
		return
	}
	n = resolve(n)
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		c.value(n, v.Elem(), path, depth+1)
		return
	}
	switch at := v.Addr(); {
	case at.Type().Implements(textType):
		if s, ok := c.text(n, path); ok {
			if err := at.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
				c.fail(n, path, "%v", err)
			}
		}
		return
	case at.Type().Implements(jsonType):
		c.json(n, at.Interface().(json.Unmarshaler), path)
		return
	case v.Type() == byteType:
		if s, ok := c.text(n, path); ok {
			b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
			if err != nil {
				c.fail(n, path, "is not base64")
			}
			v.SetBytes(b)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		c.structure(n, v, path, depth)
	case reflect.Map:
		c.mapping(n, v, path, depth)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			c.fail(n, path, "must be a list, this is %s", kindOf(n))
			return
		}
		list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, e := range n.Content {
			c.value(e, list.Index(i), fmt.Sprintf("%s[%d]", path, i), depth+1)
		}
		v.Set(list)
	case reflect.String:
		if s, ok := c.text(n, path); ok {
			v.SetString(s)
		}
	case reflect.Bool:
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
			c.fail(n, path, "must be true or false, this is %s", kindOf(n))
			return
		}
		v.SetBool(n.Value == "true" || n.Value == "True" || n.Value == "TRUE")
	case reflect.Float64:
		f, err := strconv.ParseFloat(n.Value, 64)
		if n.Kind != yaml.ScalarNode || err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			c.fail(n, path, "must be a number, this is %s", kindOf(n))
			return
		}
		v.SetFloat(f)
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint16, reflect.Uint64:
		c.integer(n, v, path)
	case reflect.Interface:
		var x any
		if err := n.Decode(&x); err != nil {
			c.fail(n, path, "cannot be read")
			return
		}
		v.Set(reflect.ValueOf(x))
	default:
		c.fail(n, path, "cannot be read into %s", v.Type())
	}
}

func (c *decoder) integer(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" {
		c.fail(n, path, "must be a whole number, this is %s", kindOf(n))
		return
	}
	i, err := strconv.ParseInt(n.Value, 0, 64)
	unsigned := v.CanUint()
	switch {
	case err != nil, unsigned && (i < 0 || v.OverflowUint(uint64(i))), !unsigned && v.OverflowInt(i):
		c.fail(n, path, "%s is out of range", n.Value)
	case unsigned:
		v.SetUint(uint64(i))
	default:
		v.SetInt(i)
	}
}

// text is a scalar that is a string. Numbers and booleans are not taken for one: 1.10 would become 1.1.
func (c *decoder) text(n *yaml.Node, path string) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		c.fail(n, path, "must be a string, this is %s", kindOf(n))
		return "", false
	}
	switch n.ShortTag() {
	case "!!int", "!!float", "!!bool":
		c.fail(n, path, "must be a string, this is %s; put it in quotes: %q", kindOf(n), n.Value)
		return "", false
	}
	return n.Value, true
}

func (c *decoder) json(n *yaml.Node, v json.Unmarshaler, path string) {
	var x any
	if err := n.Decode(&x); err != nil {
		c.fail(n, path, "cannot be read")
		return
	}
	b, err := json.Marshal(x)
	if err == nil {
		err = v.UnmarshalJSON(b)
	}
	if err != nil {
		c.fail(n, path, "%v", err)
	}
}

func (c *decoder) mapping(n *yaml.Node, v reflect.Value, path string, depth int) {
	if !c.isMapping(n, path) {
		return
	}
	m := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := reflect.New(v.Type().Key()).Elem()
		key.SetString(n.Content[i].Value)
		if m.MapIndex(key).IsValid() {
			c.fail(n.Content[i], At(path, n.Content[i].Value), "occurs twice")
		}
		elem := reflect.New(v.Type().Elem()).Elem()
		c.value(n.Content[i+1], elem, At(path, n.Content[i].Value), depth+1)
		m.SetMapIndex(key, elem)
	}
	v.Set(m)
}

func (c *decoder) isMapping(n *yaml.Node, path string) bool {
	if n.Kind != yaml.MappingNode {
		c.fail(n, path, "must be a mapping (key: value), this is %s", kindOf(n))
		return false
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k := n.Content[i]; k.Kind != yaml.ScalarNode {
			c.fail(k, path, "a key must be a string, this is %s", kindOf(k))
			return false
		} else if k.ShortTag() == "!!merge" {
			c.fail(k, path, "merge keys (<<) are not implemented; write the fields out")
			return false
		}
	}
	return true
}

func (c *decoder) structure(n *yaml.Node, v reflect.Value, path string, depth int) {
	if !c.isMapping(n, path) {
		return
	}
	known := map[string][]int{}
	fieldsOf(v.Type(), nil, known)
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		index, ok := known[key.Value]
		if !ok {
			c.fail(key, At(path, key.Value), "unknown field%s", DidYouMean(key.Value, names(known)))
			continue
		}
		if seen[key.Value] {
			c.fail(key, At(path, key.Value), "occurs twice")
			continue
		}
		seen[key.Value] = true
		c.value(n.Content[i+1], v.FieldByIndex(index), At(path, key.Value), depth+1)
	}
}

// fieldsOf collects the json names of a struct's fields; embedded structs without a name are part of it.
func fieldsOf(t reflect.Type, prefix []int, out map[string][]int) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		index := append(slices.Clone(prefix), i)
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case f.Anonymous && (name == "" || strings.Contains(options, "inline")) && f.Type.Kind() == reflect.Struct:
			fieldsOf(f.Type, index, out)
		case name != "":
			out[name] = index
		}
	}
}

func names(known map[string][]int) []string {
	out := make([]string, 0, len(known))
	for n := range known {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// kindOf says what a value is, for people.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "a boolean"
	case "!!null":
		return "null"
	case "!!str":
		return "a string"
	}
	return "a " + strings.TrimPrefix(n.ShortTag(), "!!")
}
