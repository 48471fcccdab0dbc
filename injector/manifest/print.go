package manifest

import (
	"bytes"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// print writes a changed document; one that is as it was before it was injected gets its very text back.
func (f *file) print(d *document, root *yaml.Node) (string, error) {
	original := ""
	if !f.keep {
		original = takeOriginal(root, d.text)
		if original != "" && sameObject(original, root) {
			return original, nil
		}
	}
	var b bytes.Buffer
	if d.json {
		writeJSON(&b, root, "")
		return b.String() + "\n", nil
	}
	spellNulls(root, false)
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if compact(root) {
		e.CompactSeqIndent()
	}
	if err := e.Encode(root); err != nil {
		return "", fmt.Errorf("%s:%d: %w", f.name, d.line, err)
	}
	_ = e.Close() // of a buffer
	text := b.String()
	if first, _, _ := strings.Cut(d.text, "\n"); strings.HasPrefix(first, "---") {
		text = strings.TrimRight(first, "\r") + "\n" + text
	}
	if f.keep {
		kept, err := pack(d.text)
		if err != nil {
			return "", err
		}
		text += originalComment + kept + "\n"
	}
	return text, nil
}

// spellNulls writes out the nulls of "{a, b: }", of which the encoder would make empty strings.
func spellNulls(n *yaml.Node, flow bool) {
	flow = flow || n.Style&yaml.FlowStyle != 0
	if flow && n.Kind == yaml.ScalarNode && n.Value == "" && n.ShortTag() == "!!null" {
		n.Value = "null"
	}
	for _, child := range n.Content {
		spellNulls(child, flow)
	}
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
