package manifest

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// clone is a copy of a tree in which aliases are written out, as they are while a document is changed.
func clone(n *yaml.Node) *yaml.Node {
	c := *n
	c.Anchor, c.Content = "", make([]*yaml.Node, len(n.Content))
	for i, child := range n.Content {
		c.Content[i] = clone(child)
	}
	return &c
}

// foreignTag is a tag of the document's own that stands in a node, or "".
func foreignTag(n *yaml.Node) string {
	if strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!") {
		return n.Tag
	}
	for _, child := range n.Content {
		if tag := foreignTag(child); tag != "" {
			return tag
		}
	}
	return ""
}

// keyOf is a key itself.
func keyOf(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i]
		}
	}
	return nil
}

// drop removes a key, and returns its value.
func drop(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			value := n.Content[i+1]
			n.Content = slices.Delete(n.Content, i, i+2)
			return value
		}
	}
	return nil
}

// put sets a key, where it stands or at the end.
func put(n *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = value
			return
		}
	}
	if len(n.Content) == 0 {
		n.Style &^= yaml.FlowStyle // "{}" that is no longer empty
	}
	n.Content = append(n.Content, scalar(key), value)
}

// absent says whether a value says as much as no value at all.
func absent(n *yaml.Node) bool {
	return n == nil || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}
