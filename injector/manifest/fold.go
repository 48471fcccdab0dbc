package manifest

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// folder makes aliases of a tree that was written out and then changed.
type folder struct {
	*aliases
	names map[string]*yaml.Node              // what an alias of that name stands for, at this place of the text
	same  map[*yaml.Node]bool                // copies that are what is anchored
	says  map[*yaml.Node]map[*yaml.Node]bool // a mapping that can have its "<<" again: the keys for which that stands
}

// fold brings back the aliases, and merges ("<<"), that still say what stands in their place.
func (a *aliases) fold(tree *yaml.Node) {
	f := &folder{aliases: a, names: map[string]*yaml.Node{}, same: map[*yaml.Node]bool{}, says: map[*yaml.Node]map[*yaml.Node]bool{}}
	// All is compared before anything is folded.
	for c, alias := range a.of {
		f.same[c] = equal(c, alias.Alias)
	}
	for n, m := range a.merges {
		f.says[n] = f.saidBy(n, m)
	}
	f.fold(tree)
}

// saidBy is for which keys of a mapping its "<<" can stand again; nil: it cannot. What it brings must be what is anchored
// now, and none of its keys may have been removed. Keys whose value has changed stay, and win over it.
func (f *folder) saidBy(n *yaml.Node, m *mergeKey) map[*yaml.Node]bool {
	sources, err := f.sources(m)
	if err != nil || slices.ContainsFunc(sources, func(s *yaml.Node) bool { return f.of[s] != nil && !f.same[s] }) {
		return nil
	}
	now := map[any]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		now[identity(n.Content[i])] = i
	}
	keys, inlined := map[*yaml.Node]bool{}, 0
	for _, p := range m.pairs {
		i, ok := now[identity(p.key)]
		if !ok {
			return nil
		}
		if p.inlined == nil {
			continue
		}
		inlined++
		if n.Content[i] == p.inlined && equal(n.Content[i+1], p.value) {
			keys[p.inlined] = true
		}
	}
	if inlined > 0 && len(keys) == 0 {
		return nil // it would say nothing
	}
	return keys
}

// fold goes through a tree in the order of its text, in which an anchor may be set anew.
func (f *folder) fold(n *yaml.Node) {
	if n.Anchor != "" {
		f.names[n.Anchor] = n
	}
	if m := f.merges[n]; m != nil {
		f.restore(n, m, f.says[n])
	}
	for i, child := range n.Content {
		alias := f.of[child]
		isKey := n.Kind == yaml.MappingNode && i%2 == 0 // "*a:" is the alias "a:" to readers of YAML 1.2
		if alias != nil && f.same[child] && !isKey && f.names[alias.Value] == alias.Alias {
			n.Content[i] = alias
			continue
		}
		if alias != nil {
			keepComment(n, i)
		}
		f.fold(child)
	}
}

// restore puts "<<" back where it stood, for keys; where it cannot stand, its comments go to what came by it.
func (f *folder) restore(n *yaml.Node, m *mergeKey, keys map[*yaml.Node]bool) {
	var content []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		if !keys[n.Content[i]] {
			content = append(content, n.Content[i], n.Content[i+1])
		}
	}
	if keys != nil {
		n.Content = slices.Insert(content, min(m.at, len(content)), m.key, m.value)
		return
	}
	above := comments(m.key.HeadComment, m.key.LineComment, m.value.HeadComment, m.value.LineComment)
	below := comments(m.key.FootComment, m.value.FootComment)
	if len(n.Content) == 0 { // nothing came by it
		n.LineComment = comments(n.LineComment, above, below)
		return
	}
	first, last := m.inlinedIn(n)
	first.HeadComment, last.FootComment = comments(above, first.HeadComment), comments(last.FootComment, below)
}

// inlinedIn are the first and the last key of a mapping that came by "<<"; if none has, those of the mapping.
func (m *mergeKey) inlinedIn(n *yaml.Node) (first, last *yaml.Node) {
	came := map[*yaml.Node]bool{}
	for _, p := range m.pairs {
		came[p.inlined] = true
	}
	for i := 0; i < len(n.Content); i += 2 {
		if key := n.Content[i]; came[key] && first == nil {
			first, last = key, key
		} else if came[key] {
			last = key
		}
	}
	if first == nil {
		return n.Content[0], n.Content[len(n.Content)-2]
	}
	return first, last
}

// keepComment moves the comment at the end of an alias's line. A copy that goes over several lines has no such place.
func keepComment(parent *yaml.Node, i int) {
	n := parent.Content[i]
	if n.LineComment == "" || n.Kind == yaml.ScalarNode || n.Style&yaml.FlowStyle != 0 || len(n.Content) == 0 {
		return
	}
	holder := n
	if parent.Kind == yaml.MappingNode && i%2 == 1 {
		holder = parent.Content[i-1]
	}
	if holder != n && holder.LineComment == "" {
		holder.LineComment = n.LineComment
	} else {
		holder.HeadComment = comments(holder.HeadComment, n.LineComment)
	}
	n.LineComment = ""
}

// comments is one of several, some of which may be empty.
func comments(all ...string) string {
	return strings.Join(slices.DeleteFunc(all, func(c string) bool { return c == "" }), "\n")
}
