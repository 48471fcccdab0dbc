package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// jsonText is how the author of a document in JSON has laid it out.
type jsonText struct {
	before, after string // white space around the object
	lines         bool   // each member on a line of its own
	indent        string // of a line, for each level
	space         string // after a colon, and after a comma within a line
}

// jsonOf reads how a text is laid out; nil: it is not JSON.
func jsonOf(text string) *jsonText {
	if !json.Valid([]byte(text)) {
		return nil
	}
	object := strings.TrimSpace(text)
	at := strings.Index(text, object)
	j := &jsonText{before: text[:at], after: text[at+len(object):]}
	inside := strings.TrimLeft(object[1:], " \t\r\n")
	j.indent = object[1 : len(object)-len(inside)]
	if i := strings.LastIndex(j.indent, "\n"); i >= 0 {
		j.lines, j.indent = true, j.indent[i+1:]
	}
	var key json.RawMessage
	if d := json.NewDecoder(strings.NewReader(inside)); d.Decode(&key) == nil {
		colon := strings.TrimLeft(inside[d.InputOffset():], " \t\r\n")
		if strings.HasPrefix(colon, ": ") {
			j.space = " "
		}
	}
	return j
}

// jsonReader makes a tree of JSON. Package yaml reads most of it, but neither keys longer than a line of its own nor
// characters written as two halves of a surrogate pair.
type jsonReader struct {
	d      *json.Decoder
	text   string
	offset int // up to which lines are counted
	line   int
}

// readJSON reads a text that is JSON; line is the number of its first line.
func readJSON(text string, line int) (*yaml.Node, error) {
	r := &jsonReader{d: json.NewDecoder(strings.NewReader(text)), text: text, line: line}
	r.d.UseNumber()
	root, err := r.value()
	if err != nil {
		return nil, err
	}
	return &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{root}}, nil
}

func (r *jsonReader) value() (*yaml.Node, error) {
	from := r.d.InputOffset()
	t, err := r.d.Token()
	if err != nil {
		return nil, err
	}
	r.line += strings.Count(r.text[r.offset:r.d.InputOffset()], "\n")
	r.offset = int(r.d.InputOffset())
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: r.line, Column: 1}
	switch t := t.(type) {
	case json.Delim:
		return n, r.members(n, t)
	case string:
		n.Tag, n.Value, n.Style = "!!str", t, yaml.DoubleQuotedStyle
		if half := strings.Count(t, "\ufffd") > replacements(r.text[from:r.offset]); half {
			return nil, &mistake{r.line, "half of a surrogate pair in a string: there is no such character"}
		}
	case json.Number:
		n.Tag, n.Value = numberTag(string(t)), string(t)
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
	default:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, nil
}

// members reads those of an object or list, up to its end.
func (r *jsonReader) members(n *yaml.Node, begin json.Delim) error {
	n.Kind, n.Tag = yaml.MappingNode, "!!map"
	if begin == '[' {
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
	}
	for r.d.More() {
		member, err := r.value() // of an object: its keys too
		if err != nil {
			return err
		}
		n.Content = append(n.Content, member)
	}
	_, err := r.d.Token()
	return err
}

// replacements counts the replacement characters that a string has in its source.
func replacements(source string) int {
	return strings.Count(source, "\ufffd") + strings.Count(strings.ToLower(source), `\ufffd`)
}

// numberTag is what package yaml takes a number of JSON for; it is not asked, as it might take one for a string.
func numberTag(s string) string {
	if _, err := strconv.ParseInt(s, 10, 64); err == nil {
		return "!!int"
	}
	if _, err := strconv.ParseUint(s, 10, 64); err == nil {
		return "!!int"
	}
	return "!!float"
}

// print writes a tree, with its keys in their order and its numbers as they are spelled.
func (j *jsonText) print(root *yaml.Node) (string, error) {
	var b bytes.Buffer
	b.WriteString(j.before)
	if err := j.write(&b, root.Content[0], "\n"); err != nil {
		return "", err
	}
	b.WriteString(j.after)
	return b.String(), nil
}

// write writes a value; line begins a line of those that it is in.
func (j *jsonText) write(b *bytes.Buffer, n *yaml.Node, line string) error {
	switch n.Kind {
	case yaml.MappingNode:
		return j.writeMembers(b, n, line, "{}")
	case yaml.SequenceNode:
		return j.writeMembers(b, n, line, "[]")
	}
	if n.ShortTag() == "!!str" {
		return writeString(b, n.Value)
	}
	if !json.Valid([]byte(n.Value)) {
		return fmt.Errorf("%q is no value of JSON", n.Value)
	}
	b.WriteString(n.Value)
	return nil
}

func (j *jsonText) writeMembers(b *bytes.Buffer, n *yaml.Node, line, brackets string) error {
	inner, last, comma := line+j.indent, line, ","
	if !j.lines {
		inner, last, comma = "", "", ","+j.space
	}
	step := 1
	if n.Kind == yaml.MappingNode {
		step = 2
	}
	b.WriteByte(brackets[0])
	for i := 0; i+step <= len(n.Content); i += step {
		if i > 0 {
			b.WriteString(comma)
		}
		b.WriteString(inner)
		if step == 2 {
			if err := writeString(b, n.Content[i].Value); err != nil {
				return err
			}
			b.WriteString(":" + j.space)
		}
		if err := j.write(b, n.Content[i+step-1], inner); err != nil {
			return err
		}
	}
	if len(n.Content) > 0 {
		b.WriteString(last)
	}
	b.WriteByte(brackets[1])
	return nil
}

func writeString(b *bytes.Buffer, s string) error {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false) // this is no page of HTML
	if err := e.Encode(s); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // the line feed
	return nil
}
