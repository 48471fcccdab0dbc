package manifest

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Compose reads a file with its aliases and merge keys resolved, and so must whoever decides by what stands in it. All of
// this works on documents that have been decoded: no anchor of theirs contains itself.

// plain is a copy of a node as Compose reads it: an alias is what it stands for, and a merge key is the keys that it
// brings.
func plain(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		c := plain(n.Alias)
		c.HeadComment, c.LineComment, c.FootComment = n.HeadComment, n.LineComment, n.FootComment
		return c
	}
	c := *n
	c.Anchor, c.Content = "", nil
	children := n.Content
	if n.Kind == yaml.MappingNode {
		children = merged(n)
	}
	for _, child := range children {
		c.Content = append(c.Content, plain(child))
	}
	return &c
}

// merged are the keys and values of a mapping, those of its merge keys among them. Its own win, then those of the first
// mapping that has them (https://yaml.org/type/merge.html).
func merged(n *yaml.Node) []*yaml.Node {
	taken := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k := target(n.Content[i]); !isMerge(k) {
			taken[k.Value] = true
		}
	}
	var out []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		if !isMerge(n.Content[i]) {
			out = append(out, n.Content[i], n.Content[i+1])
			continue
		}
		for _, source := range sources(n.Content[i+1]) {
			inherited := merged(source)
			for j := 0; j+1 < len(inherited); j += 2 {
				if k := target(inherited[j]); !taken[k.Value] {
					taken[k.Value] = true
					out = append(out, inherited[j], inherited[j+1])
				}
			}
		}
	}
	return out
}

// sources are the mappings that a merge key brings: one, or a list.
func sources(value *yaml.Node) []*yaml.Node {
	value = target(value)
	if value.Kind != yaml.SequenceNode {
		return []*yaml.Node{value}
	}
	var out []*yaml.Node
	for _, n := range value.Content {
		out = append(out, target(n))
	}
	return out
}

func target(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isMerge(key *yaml.Node) bool { return key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge" }

// plainMerges keeps the encoder from writing merge keys as "!!merge <<".
func plainMerges(n *yaml.Node) {
	if isMerge(n) {
		n.Tag = ""
	}
	for _, child := range n.Content {
		plainMerges(child)
	}
}

// writtenOut says whether the keys of a mapping are all its own.
func writtenOut(n *yaml.Node) bool {
	own := n.Kind != yaml.AliasNode
	for i := 0; own && i+1 < len(n.Content); i += 2 {
		own = n.Content[i].Kind == yaml.ScalarNode && !isMerge(n.Content[i])
	}
	return own
}

// writeOut makes them so: they can be changed then without changing another mapping's.
func writeOut(n *yaml.Node) {
	if !writtenOut(n) {
		*n = *plain(n)
	}
}

// detach gives whatever refers to one of these nodes a copy of its own: they are about to change, it is not.
func detach(n *yaml.Node, from map[*yaml.Node]bool) {
	refers := func(n *yaml.Node) bool { return n.Kind == yaml.AliasNode && from[n.Alias] }
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if v := n.Content[i+1]; isMerge(n.Content[i]) && (refers(v) || v.Kind == yaml.SequenceNode && slices.ContainsFunc(v.Content, refers)) {
				// The keys that it brings are cloned: they belong to two mappings from now on.
				kept := n.Content
				n.Content = nil
				for _, child := range merged(&yaml.Node{Kind: yaml.MappingNode, Content: kept}) {
					if !slices.Contains(kept, child) {
						child = plain(child)
					}
					n.Content = append(n.Content, child)
				}
				break
			}
		}
	}
	for _, child := range n.Content {
		if refers(child) {
			*child = *plain(child)
			continue
		}
		detach(child, from)
	}
}

// subtree adds a node and all that stands in it, but not what its aliases stand for.
func subtree(n *yaml.Node, into map[*yaml.Node]bool) {
	into[n] = true
	for _, child := range n.Content {
		subtree(child, into)
	}
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
