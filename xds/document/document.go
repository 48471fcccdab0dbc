// Package document reads YAML documents strictly into Go structs (by their json tags) and says of every mistake in which
// file, at which line and in which field it stands, and what would have been right. It owns nothing; packages catalog and
// policy call it, on ordinary goroutines.
package document

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"
	"go.yaml.in/yaml/v3"
)

// Limits on what is read: documents are written by people, but may have been generated wrongly.
const (
	// MaxBytes is the size of a file.
	MaxBytes = 8 << 20
	// maxDepth is how deep values nest, aliases included.
	maxDepth = 64
	// maxNodes is how many values are visited: aliases can blow a small file up.
	maxNodes = 1_000_000
	// maxProblems is how many mistakes of one document are reported at once.
	maxProblems = 20
)

// Problem is one mistake, on one line.
type Problem struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Field  string `json:"field,omitempty"` // from the document's root: "spec.rules[0].backendRefs[1].name"
	Text   string `json:"text"`
}

// Error is "file:line:column: field: what is wrong".
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Field != "" {
		b.WriteString(p.Field)
		b.WriteString(": ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// Problems are mistakes, a line each.
type Problems []*Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, x := range p {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// Err is p as an error, nil where there is none.
func (p Problems) Err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

// Document is one parsed document of a file. Immutable; not for concurrent decoding.
type Document struct {
	File string
	root *yaml.Node // a mapping
}

// ReadFile reads a file of at most MaxBytes.
func ReadFile(path string) ([]byte, *Problem) {
	// A pipe or a terminal would never end.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, &Problem{File: path, Text: "is not a file"}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, &Problem{File: path, Text: "cannot be opened: " + reason(err)}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, &Problem{File: path, Text: "cannot be read: " + reason(err)}
	}
	if len(data) > MaxBytes {
		return nil, &Problem{File: path, Text: fmt.Sprintf("is larger than %d MiB", MaxBytes>>20)}
	}
	return data, nil
}

// reason is an error without the path that os puts into it.
func reason(err error) string {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err.Error()
	}
	return err.Error()
}

// Parse splits text into its documents; empty ones are left out. A mistake in YAML itself spoils the whole file.
func Parse(file string, data []byte) (docs []*Document, problem *Problem) {
	if len(data) > MaxBytes {
		return nil, &Problem{File: file, Text: fmt.Sprintf("is larger than %d MiB", MaxBytes>>20)}
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var n yaml.Node
		err := d.Decode(&n)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, syntax(file, err)
		}
		if len(n.Content) == 0 {
			continue
		}
		root := n.Content[0]
		if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
			continue
		}
		if root.Kind != yaml.MappingNode {
			return nil, &Problem{File: file, Line: root.Line, Column: root.Column, Text: "a document is a mapping (key: value), this is " + kindOf(root)}
		}
		docs = append(docs, &Document{File: file, root: root})
	}
}

// syntax takes the line out of an error of yaml: "yaml: line 3: did not find …".
func syntax(file string, err error) *Problem {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	p := &Problem{File: file}
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, what, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				p.Line, p.Column, text = n, 1, what
			}
		}
	}
	p.Text = "is not YAML: " + text
	return p
}

// Problemf is a problem of the field at path, or of the innermost part of the path that the document has.
func (d *Document) Problemf(field, format string, args ...any) *Problem {
	n := d.root
	for _, step := range steps(field) {
		next := child(n, step)
		if next == nil {
			break
		}
		n = next
	}
	return &Problem{File: d.File, Line: n.Line, Column: n.Column, Field: field, Text: fmt.Sprintf(format, args...)}
}

// String is the scalar at path, "" where there is none.
func (d *Document) String(path string) string {
	n := d.root
	for _, step := range steps(path) {
		if n = child(n, step); n == nil {
			return ""
		}
	}
	if n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}

// Text is the document as YAML: the same values, not the same lines.
func (d *Document) Text() ([]byte, error) { return yaml.Marshal(d.root) }

// Line is where the document begins.
func (d *Document) Line() int { return d.root.Line }

// steps cuts "a.b[2].c" into a, b, 2, c. Keys with dots in them are not found, which costs only the exact position.
func steps(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' })
}

func child(n *yaml.Node, step string) *yaml.Node {
	n = resolve(n)
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i]
		}
	}
	return nil
}

func resolve(n *yaml.Node) *yaml.Node {
	for range maxDepth {
		if n.Kind != yaml.AliasNode {
			break
		}
		n = n.Alias
	}
	return n
}

// At is the path of a field in path.
func At(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

// Index is the path of an element of the list field in path.
func Index(path, field string, i int) string { return fmt.Sprintf("%s[%d]", At(path, field), i) }

// Nearest is the candidate that a person who wrote name most likely meant, or "".
func Nearest(name string, candidates []string) string {
	if len(name) > 200 {
		return ""
	}
	best, at := "", max(len(name)/3, 2)+1
	for _, c := range candidates {
		if d := len(c) - len(name); d >= at || -d >= at {
			continue
		}
		if d := levenshtein.ComputeDistance(name, c); d < at {
			best, at = c, d
		}
	}
	return best
}

// DidYouMean is `; did you mean "X"?` where a candidate looks like name; otherwise it lists what there is.
func DidYouMean(name string, candidates []string) string {
	if n := Nearest(name, candidates); n != "" {
		return fmt.Sprintf("; did you mean %q?", n)
	}
	switch {
	case len(candidates) == 0:
		return ""
	case len(candidates) > 12:
		return fmt.Sprintf("; known: %s, … (%d)", strings.Join(candidates[:12], ", "), len(candidates))
	}
	return "; known: " + strings.Join(candidates, ", ")
}
