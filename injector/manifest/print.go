package manifest

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// print writes a changed document.
func (f *file) print(d *document) (string, error) {
	// A tree takes a key twice, an object does not: which of the two was meant, nobody knows.
	var object any
	if err := d.root.Decode(&object); err != nil {
		return "", d.fault(err)
	}
	d.aliases.fold(d.tree)
	original := d.body
	if forget(d.tree) { // it was injected before, then edited
		original, _ = cutOriginal(d.body)
	}
	body, err := d.encode()
	if err != nil {
		return "", err
	}
	if f.keep && d.json == nil {
		if body, err = withOriginal(body, original); err != nil {
			return "", err
		}
	}
	text := d.framed(body)
	return text, d.check(text, object)
}

// framed puts what a document has become between the lines that part it from others.
func (d *document) framed(body string) string {
	open := d.open
	switch {
	case isMarker(body, "---"): // an original that began on the line of its marker
		open = ""
	case isMarker(d.body, "---"): // and what has become of it
		open = "---\n"
	}
	return string(joined([]byte(open+body), d.end))
}

// encode writes the tree.
func (d *document) encode() (string, error) {
	if d.json != nil {
		return d.json.print(d.tree)
	}
	var b bytes.Buffer
	spell(d.tree, false)
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if d.compact {
		e.CompactSeqIndent()
	}
	if err := e.Encode(d.tree); err != nil {
		return "", fmt.Errorf("%s:%d: %w", d.file, d.line, err)
	}
	_ = e.Close() // of a buffer
	return b.String(), nil
}

// check reads again what was printed. Package yaml has its faults, and so have we: what does not say what it should is
// not printed.
func (d *document) check(text string, object any) error {
	refused := fmt.Errorf("%s:%d: this document cannot be printed so that it still says the same; written in plain block style it can", d.file, d.line)
	docs, err := split(d.file, text)
	if err != nil || len(docs) != 1 {
		return refused
	}
	tree, err := docs[0].read()
	var again any
	if err != nil || tree == nil || tree.Decode(&again) != nil || !reflect.DeepEqual(plain(again), plain(object)) {
		return refused
	}
	return nil
}

// plain is a value that can be compared. Keys become strings: within a merge ("<<") package yaml makes the one or the
// other of a number that is a key.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = plain(e)
		}
		return out
	case map[any]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[fmt.Sprint(k)] = plain(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = plain(e)
		}
		return out
	case float64:
		if math.IsNaN(v) {
			return "not a number" // which is not equal to itself
		}
	}
	return v
}

// spell corrects what the encoder would write otherwise than it was read: the nulls of "{a, b: }", which would become
// empty strings, merges, which would be tagged, and comments.
func spell(n *yaml.Node, flow bool) {
	flow = flow || n.Style&yaml.FlowStyle != 0
	if flow && n.Kind == yaml.ScalarNode && n.Value == "" && n.ShortTag() == "!!null" {
		n.Value = "null"
	}
	if n.Tag == "!!merge" && n.Style&yaml.TaggedStyle == 0 {
		n.Tag = ""
	}
	if n.Style&yaml.FoldedStyle != 0 && strings.HasSuffix(n.Value, "\n\n") {
		n.Style = n.Style&^yaml.FoldedStyle | yaml.LiteralStyle // ">+" would get one more
	}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 1 {
			placeComment(n.Content[i-1], child)
		}
		spell(child, flow)
	}
}

// placeComment moves a key's comment to where the encoder can write it. Before braces and aliases it would drop it, before a
// value with a comment put it off, and before an anchor or a tag break the line ("a: # comment" and "&x" under it).
func placeComment(key, value *yaml.Node) {
	block := value.Kind != yaml.AliasNode && value.Style&yaml.FlowStyle == 0 && len(value.Content) > 0
	switch {
	case key.LineComment == "" || block && value.Anchor == "" && value.Style&yaml.TaggedStyle == 0:
		return
	case !block && value.LineComment == "":
		value.LineComment = key.LineComment
	default:
		key.HeadComment = comments(key.HeadComment, key.LineComment)
	}
	key.LineComment = ""
}

// compact says whether the lists of a document stand as far left as the keys that hold them, as kubectl writes them.
func compact(n *yaml.Node) bool {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if v := n.Content[i+1]; v.Kind == yaml.SequenceNode && v.Style&yaml.FlowStyle == 0 && len(v.Content) > 0 && v.Line > 0 {
				return v.Column == n.Content[i].Column
			}
		}
	}
	for _, child := range n.Content {
		if child.Kind == yaml.MappingNode || child.Kind == yaml.DocumentNode || child.Kind == yaml.SequenceNode {
			if found := firstList(child); found != nil {
				return compact(child)
			}
		}
	}
	return false
}

// firstList is a block list somewhere below.
func firstList(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.SequenceNode && n.Style&yaml.FlowStyle == 0 && len(n.Content) > 0 && n.Line > 0 {
		return n
	}
	for _, child := range n.Content {
		if l := firstList(child); l != nil {
			return l
		}
	}
	return nil
}
