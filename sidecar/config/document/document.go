// Package document reads YAML or JSON into protobuf messages, strictly, and
// says of every mistake where it stands in the file, at which field, and what
// would have been right. It decodes the YAML tree into messages directly (the
// proto3 JSON mapping, without text in between), so that positions are exact
// and a large file is walked once. It owns nothing; package config calls it.
package document

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
)

// Limits on what is read: a configuration is written by an operator, but may
// have been generated wrongly or fetched from elsewhere.
const (
	// MaxBytes is the size of a file.
	MaxBytes = 64 << 20
	// maxDepth is how deep messages nest, aliases included.
	maxDepth = 100
	// maxExpanded is how many more nodes than the file has bytes are visited:
	// aliases can blow a small file up.
	maxExpanded = 500_000
	// maxErrors is how many mistakes are reported at once.
	maxErrors = 20
)

// Document is a parsed file. Not safe for concurrent use.
type Document struct {
	name string
	root *yaml.Node // nil where the document is empty
	most int        // how many nodes are visited
}

// Error is one mistake, on one line: "file:line:column: field: what is wrong".
type Error struct {
	File         string
	Line, Column int
	Path         string // the field's, from the root: "static_resources.clusters[2].name"
	Text         string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	b.WriteString(": ")
	if e.Path != "" {
		b.WriteString(e.Path)
		b.WriteString(": ")
	}
	b.WriteString(e.Text)
	return b.String()
}

// Errors are the mistakes of one document, in the order of the file, a line each.
type Errors []*Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, x := range e {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes errors.As find each.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i, x := range e {
		all[i] = x
	}
	return all
}

// Load parses the file.
func Load(path string) (*Document, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Error{File: path, Text: "cannot be opened: " + reason(err)}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, &Error{File: path, Text: "cannot be read: " + reason(err)}
	}
	return Parse(path, data)
}

// reason is an error without the path that os puts into it.
func reason(err error) string {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err.Error()
	}
	return err.Error()
}

// Parse parses text; name stands for it in errors.
func Parse(name string, data []byte) (*Document, error) {
	if len(data) > MaxBytes {
		return nil, &Error{File: name, Text: fmt.Sprintf("is larger than %d MiB", MaxBytes>>20)}
	}
	var n yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&n); err != nil {
		if errors.Is(err, io.EOF) {
			return &Document{name: name}, nil
		}
		return nil, syntax(name, err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, syntax(name, err)
		}
		return nil, &Error{File: name, Text: `holds more than one YAML document; remove what follows "---"`}
	}
	root := n.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		root = nil
	}
	return &Document{name: name, root: root, most: len(data) + maxExpanded}, nil
}

// syntax takes the line out of an error of yaml: "yaml: line 3: did not find …".
func syntax(name string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	e := &Error{File: name}
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, what, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				e.Line, e.Column, text = n, 1, what
			}
		}
	}
	e.Text = "not YAML: " + strings.ReplaceAll(text, "\n", " ")
	return e
}

// Empty says that nothing is in the document.
func (d *Document) Empty() bool { return d.root == nil }

// Decode fills m, which should be empty. Messages in its Any fields must be of
// types that this binary knows, and are checked against the rules that
// Envoy's protos carry; those of m itself are Check's, for m may still be
// merged with another. The error is an *Error or Errors.
func (d *Document) Decode(m proto.Message) error {
	if d.root == nil {
		return nil
	}
	w := &walk{doc: d}
	w.message(d.root, m.ProtoReflect())
	return w.err()
}

// Check holds m, which was decoded from d, against the rules of its proto.
func (d *Document) Check(m proto.Message) error {
	w := &walk{doc: d}
	w.rules(m, nil)
	return w.err()
}

// Find returns the path of the first field below path that has that name and value.
func (d *Document) Find(path, name, value string) (string, bool) {
	if d.root == nil {
		return "", false
	}
	at, n := split(path), d.root
	for _, s := range at {
		if n, _ = child(n, s); n == nil {
			return "", false
		}
	}
	budget := d.most
	found, ok := find(n, at, name, value, &budget)
	return join(found), ok
}

func find(n *yaml.Node, at []segment, name, value string, budget *int) ([]segment, bool) {
	*budget--
	if n = deref(n); n == nil || *budget < 0 || len(at) > maxDepth {
		return nil, false
	}
	at = at[:len(at):len(at)]
	switch n.Kind {
	case yaml.SequenceNode:
		for i, c := range n.Content {
			if p, ok := find(c, append(at, segment{index: i}), name, value, budget); ok {
				return p, true
			}
		}
	case yaml.MappingNode:
		pairs, _ := fields(n)
		for i := 0; i+1 < len(pairs); i += 2 {
			key := pairs[i].Value
			next := append(at, segment{name: key})
			if v := deref(pairs[i+1]); key == name && v != nil && v.Kind == yaml.ScalarNode && v.Value == value {
				return next, true
			}
			if p, ok := find(pairs[i+1], next, name, value, budget); ok {
				return p, true
			}
		}
	}
	return nil, false
}

// At is the position of the field with that path, or of the nearest enclosing one.
func (d *Document) At(path string) (line, column int) {
	if d == nil || d.root == nil {
		return 0, 0
	}
	n := d.root
	line, column = n.Line, n.Column
	for _, s := range split(path) {
		next, key := child(n, s)
		if next == nil {
			break
		}
		n = next
		// A mapping is where its key is: its own position is that of its first field.
		if key != nil && n.Kind != yaml.ScalarNode {
			line, column = key.Line, key.Column
		} else {
			line, column = n.Line, n.Column
		}
	}
	return line, column
}

// Error makes an error of this file at the field with that path.
func (d *Document) Error(path, text string) *Error {
	e := &Error{File: d.name, Path: path, Text: text}
	e.Line, e.Column = d.At(path)
	return e
}

// segment is a step of a path: the name of a field or the key of a map, or an index.
type segment struct {
	name  string
	index int // where name is ""
	key   bool
}

// split takes a rendered path apart: `a.b[3]["key"]`.
func split(path string) (out []segment) {
	for path != "" {
		switch path[0] {
		case '.':
			path = path[1:]
		case '[':
			if len(path) > 1 && path[1] == '"' {
				q, err := strconv.QuotedPrefix(path[1:])
				if err != nil || !strings.HasPrefix(path[1+len(q):], "]") {
					return out
				}
				name, _ := strconv.Unquote(q)
				out = append(out, segment{name: name, key: true})
				path = path[2+len(q):]
				continue
			}
			end := strings.IndexByte(path, ']')
			if end < 0 {
				return out
			}
			n, err := strconv.Atoi(path[1:end])
			if err != nil {
				return out
			}
			out = append(out, segment{index: n})
			path = path[end+1:]
		default:
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			out = append(out, segment{name: path[:end]})
			path = path[end:]
		}
	}
	return out
}

func join(path []segment) string {
	var b strings.Builder
	for i, s := range path {
		switch {
		case s.key:
			b.WriteString("[" + strconv.Quote(s.name) + "]")
		case s.name == "":
			b.WriteString("[" + strconv.Itoa(s.index) + "]")
		default:
			if i > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s.name)
		}
	}
	return b.String()
}

// child follows a segment; key is the node of the name it was found under.
func child(n *yaml.Node, s segment) (value, key *yaml.Node) {
	n = deref(n)
	switch {
	case n == nil:
	case s.name == "" && !s.key:
		if n.Kind == yaml.SequenceNode && s.index < len(n.Content) {
			return n.Content[s.index], nil
		}
	case n.Kind == yaml.MappingNode:
		pairs, _ := fields(n)
		for i := 0; i+1 < len(pairs); i += 2 {
			if k := pairs[i].Value; k == s.name || !s.key && k == camel(s.name) {
				return pairs[i+1], pairs[i]
			}
		}
	}
	return nil, nil
}

// camel is the JSON name of a field.
func camel(snake string) string {
	var b strings.Builder
	up := false
	for i := range len(snake) {
		c := snake[i]
		if c == '_' {
			up = true
			continue
		}
		if up && c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		up = false
		b.WriteByte(c)
	}
	return b.String()
}

// deref follows aliases; nil where they go round in a circle.
func deref(n *yaml.Node) *yaml.Node {
	for range maxDepth {
		if n == nil || n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

// fields are the keys and values of a mapping with merge keys (<<) resolved:
// what the mapping says itself goes before what it merges.
func fields(n *yaml.Node) (pairs []*yaml.Node, ok bool) {
	merged := false
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Tag == "!!merge" {
			merged = true
			break
		}
	}
	if !merged {
		return n.Content, true
	}
	seen := map[string]bool{}
	return mergeInto(nil, n, seen, 0)
}

func mergeInto(pairs []*yaml.Node, n *yaml.Node, seen map[string]bool, depth int) ([]*yaml.Node, bool) {
	n = deref(n)
	if n == nil || n.Kind != yaml.MappingNode || depth > 10 {
		return pairs, false
	}
	own := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k := n.Content[i]; k.Tag != "!!merge" && !seen[k.Value] {
			// A key that stands twice in one mapping is kept twice: the decoder reports it.
			own[k.Value] = true
			pairs = append(pairs, k, n.Content[i+1])
		}
	}
	for k := range own {
		seen[k] = true
	}
	ok := true
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Tag != "!!merge" {
			continue
		}
		from := []*yaml.Node{n.Content[i+1]}
		if v := deref(n.Content[i+1]); v != nil && v.Kind == yaml.SequenceNode {
			from = v.Content
		}
		for _, f := range from {
			var fine bool
			pairs, fine = mergeInto(pairs, f, seen, depth+1)
			ok = ok && fine
		}
	}
	return pairs, ok
}
