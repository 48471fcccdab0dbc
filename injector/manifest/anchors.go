package manifest

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
)

// maxCopies bounds what the aliases of a document come to when they are written out: a few lines can come to billions.
const maxCopies = 100_000

// aliases are those of a document. While it is changed they are written out: each place has its own copy of what it shares
// with others, and "<<" its keys where they belong, so that a pod can be changed as if it had no anchors. Afterwards fold
// makes aliases again of the copies that are still what they are copies of.
type aliases struct {
	of     map[*yaml.Node]*yaml.Node // a copy: the alias that stood there
	merges map[*yaml.Node]*mergeKey  // a mapping: its "<<"
	read   map[*yaml.Node]bool       // anchored, and read to its end
	copies int
}

// mergeKey is the "<<" of a mapping (yaml.org/type/merge.html).
type mergeKey struct {
	key, value *yaml.Node // as they were; of what value has there are copies in the mapping
	at         int        // where it stood in the mapping's content
	pairs      []mergedPair
}

// mergedPair is one that "<<" brings. Where the mapping has the key itself, inlined is nil.
type mergedPair struct{ key, value, inlined *yaml.Node }

// writeOut puts copies into the place of all aliases of a tree.
func writeOut(tree *yaml.Node) (*aliases, error) {
	a := &aliases{of: map[*yaml.Node]*yaml.Node{}, merges: map[*yaml.Node]*mergeKey{}, read: map[*yaml.Node]bool{}}
	return a, a.expand(tree)
}

// expand goes through a tree in the order of its text, so that what an alias stands for is written out when it is met.
func (a *aliases) expand(n *yaml.Node) error {
	for i, child := range n.Content {
		if child.Kind != yaml.AliasNode {
			if err := a.expand(child); err != nil {
				return err
			}
			continue
		}
		copied, err := a.copyFor(child)
		if err != nil {
			return err
		}
		n.Content[i] = copied
	}
	if n.Kind == yaml.MappingNode {
		if err := a.inline(n); err != nil {
			return err
		}
	}
	if n.Anchor != "" {
		a.read[n] = true
	}
	return nil
}

// copyFor is what stands in the place of an alias, with the alias's own comments.
func (a *aliases) copyFor(alias *yaml.Node) (*yaml.Node, error) {
	if !a.read[alias.Alias] {
		return nil, &mistake{alias.Line, fmt.Sprintf("anchor %q contains itself", alias.Value)}
	}
	c, err := a.clone(alias.Alias, alias.Line)
	if err != nil {
		return nil, err
	}
	c.HeadComment, c.LineComment, c.FootComment = alias.HeadComment, alias.LineComment, alias.FootComment
	c.Line, c.Column = alias.Line, alias.Column
	a.of[c] = alias
	return c, nil
}

// clone copies a tree that is written out. Copies within it stay known as such. line is for the message.
func (a *aliases) clone(n *yaml.Node, line int) (*yaml.Node, error) {
	if a.copies++; a.copies > maxCopies {
		return nil, &mistake{line, fmt.Sprintf("the document's aliases stand for more than %d values; that many are not written out", maxCopies)}
	}
	c := *n
	c.Anchor = ""
	c.Content = make([]*yaml.Node, len(n.Content))
	for i, child := range n.Content {
		var err error
		if c.Content[i], err = a.clone(child, line); err != nil {
			return nil, err
		}
	}
	if alias := a.of[n]; alias != nil {
		a.of[&c] = alias
	}
	if m := a.merges[n]; m != nil {
		copied, err := a.clone(m.value, line)
		if err != nil {
			return nil, err
		}
		a.merges[&c] = m.moved(n, &c, copied)
	}
	return &c, nil
}

// moved is the "<<" of a copy of a mapping.
func (m *mergeKey) moved(from, to, value *yaml.Node) *mergeKey {
	copyOf := make(map[*yaml.Node]*yaml.Node, len(from.Content))
	for i, child := range from.Content {
		copyOf[child] = to.Content[i]
	}
	c := &mergeKey{key: m.key, value: value, at: m.at, pairs: slices.Clone(m.pairs)}
	for i, p := range c.pairs {
		c.pairs[i].inlined = copyOf[p.inlined]
	}
	return c
}

// inline puts the keys that "<<" brings into a mapping that is otherwise written out.
func (a *aliases) inline(n *yaml.Node) error {
	at, err := mergeKeyOf(n)
	if at < 0 || err != nil {
		return err
	}
	m := &mergeKey{key: n.Content[at], value: n.Content[at+1], at: at}
	sources, err := a.sources(m)
	if err != nil {
		return err
	}
	has := map[any]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		has[identity(n.Content[i])] = i != at
	}
	var inlined []*yaml.Node
	for _, source := range sources {
		for i := 0; i+1 < len(source.Content); i += 2 {
			p := mergedPair{key: source.Content[i], value: source.Content[i+1]}
			if id := identity(p.key); !has[id] {
				has[id] = true
				var value *yaml.Node
				if p.inlined, value, err = a.clonePair(p, m.key.Line); err != nil {
					return err
				}
				inlined = append(inlined, p.inlined, value)
			}
			m.pairs = append(m.pairs, p)
		}
	}
	n.Content = slices.Replace(n.Content, at, at+2, inlined...)
	a.merges[n] = m
	return nil
}

func (a *aliases) clonePair(p mergedPair, line int) (key, value *yaml.Node, err error) {
	if key, err = a.clone(p.key, line); err != nil {
		return nil, nil, err
	}
	value, err = a.clone(p.value, line)
	return key, value, err
}

// mergeKeyOf is where a mapping has "<<"; -1: it has none.
func mergeKeyOf(n *yaml.Node) (int, error) {
	at := -1
	for i := 0; i < len(n.Content); i += 2 {
		switch key := n.Content[i]; {
		case !isMergeKey(key):
		case at < 0:
			at = i
		default:
			return 0, &mistake{key.Line, fmt.Sprintf("mapping key \"<<\" already defined at line %d", n.Content[at].Line)}
		}
	}
	return at, nil
}

// sources are the mappings that "<<" has, the first of which wins.
func (a *aliases) sources(m *mergeKey) ([]*yaml.Node, error) {
	sources := []*yaml.Node{m.value}
	if m.value.Kind == yaml.SequenceNode && a.of[m.value] == nil {
		sources = m.value.Content
	}
	for _, s := range sources {
		if s.Kind != yaml.MappingNode {
			return nil, &mistake{m.key.Line, "<< must have a mapping, or a list of mappings"}
		}
	}
	return sources, nil
}

func isMergeKey(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Value == "<<" && n.ShortTag() == "!!merge"
}

// identity is equal for keys that are the same: those are compared by what they say, not by how they are written.
func identity(key *yaml.Node) any {
	var v any
	if key.Kind != yaml.ScalarNode || key.Decode(&v) != nil {
		return key // is refused where the document is decoded
	}
	return v
}

// equal says whether two trees that are written out say the same.
func equal(a, b *yaml.Node) bool {
	return a.Kind == b.Kind && a.Value == b.Value && a.ShortTag() == b.ShortTag() && slices.EqualFunc(a.Content, b.Content, equal)
}
