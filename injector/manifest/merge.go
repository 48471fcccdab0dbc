package manifest

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// merge makes the change from one object to another in a tree that stands for the first, and shares nothing with another
// (its aliases are written out). Both objects are as JSON has them (maps, slices, strings, numbers). What the two have in
// common stays as it is in the tree, with its comments, its order, and whatever the tree has beyond the object.
func merge(n *yaml.Node, from, to any) {
	if reflect.DeepEqual(from, to) {
		return
	}
	if a, ok := from.(map[string]any); ok {
		if b, ok := to.(map[string]any); ok && n.Kind == yaml.MappingNode {
			mergeMaps(n, a, b)
			return
		}
	}
	if a, ok := from.([]any); ok {
		if b, ok := to.([]any); ok && n.Kind == yaml.SequenceNode {
			mergeLists(n, a, b)
			return
		}
	}
	replace(n, to)
}

// replace keeps the comments that stand around a value.
func replace(n *yaml.Node, to any) {
	next := nodeOf(to)
	next.HeadComment, next.LineComment, next.FootComment = n.HeadComment, n.LineComment, n.FootComment
	*n = *next
}

func mergeMaps(n *yaml.Node, from, to map[string]any) {
	for i := 0; i+1 < len(n.Content); {
		key := n.Content[i].Value
		next, stays := to[key]
		_, was := from[key]
		switch {
		case stays && was:
			merge(n.Content[i+1], from[key], next)
		case stays: // in the tree beyond the object, and now in the object
			replace(n.Content[i+1], next)
		case was:
			n.Content = slices.Delete(n.Content, i, i+2)
			continue
		}
		i += 2
	}
	var added []string
	for key := range to {
		if find(n, key) == nil && !reflect.DeepEqual(from[key], to[key]) {
			added = append(added, key)
		}
	}
	slices.Sort(added)
	for _, key := range added {
		n.Content = append(n.Content, scalar(key), nodeOf(to[key]))
	}
	if len(added) > 0 && len(from) == 0 {
		n.Style &^= yaml.FlowStyle // "{}" that is no longer empty
	}
}

// mergeLists takes elements with the same name for the same.
func mergeLists(n *yaml.Node, from, to []any) {
	if len(n.Content) != len(from) {
		replace(n, to)
		return
	}
	used := make([]bool, len(from))
	same := func(v any) int {
		for i := range from {
			if !used[i] && nameOf(v) != "" && nameOf(from[i]) == nameOf(v) || !used[i] && reflect.DeepEqual(from[i], v) {
				return i
			}
		}
		return -1
	}
	content := make([]*yaml.Node, 0, len(to))
	for _, v := range to {
		i := same(v)
		if i < 0 {
			content = append(content, nodeOf(v))
			continue
		}
		used[i] = true
		merge(n.Content[i], from[i], v)
		content = append(content, n.Content[i])
	}
	if len(n.Content) == 0 {
		n.Style &^= yaml.FlowStyle
	}
	n.Content = content
}

func nameOf(v any) string {
	m, _ := v.(map[string]any)
	name, _ := m["name"].(string)
	return name
}

// first are the keys that people expect at the head of an object.
var first = []string{"name", "image", "imagePullPolicy", "restartPolicy", "command", "args"}

// nodeOf makes a tree of an object.
func nodeOf(v any) *yaml.Node {
	switch v := v.(type) {
	case map[string]any:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		var keys []string
		for _, k := range first {
			if _, ok := v[k]; ok {
				keys = append(keys, k)
			}
		}
		lead := len(keys)
		for k, e := range v {
			if e != nil && !slices.Contains(first, k) { // null says what absence says
				keys = append(keys, k)
			}
		}
		slices.Sort(keys[lead:])
		for _, k := range keys {
			n.Content = append(n.Content, scalar(k), nodeOf(v[k]))
		}
		return n
	case []any:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, e := range v {
			n.Content = append(n.Content, nodeOf(e))
		}
		return n
	case json.Number:
		tag := "!!int"
		if !isInteger(string(v)) {
			tag = "!!float"
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: string(v)}
	case string:
		return scalar(v)
	default:
		n := &yaml.Node{}
		_ = n.Encode(v) // booleans and null cannot fail
		return n
	}
}

func isInteger(s string) bool {
	for i, r := range s {
		if (r < '0' || r > '9') && (r != '-' || i > 0) {
			return false
		}
	}
	return true
}

// scalar is a string, quoted where it would be read as something else, also by a reader of YAML 1.1, to whom "no" is a
// boolean and "1:30" a number.
func scalar(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	if slices.Contains([]string{"y", "n", "yes", "no", "on", "off", "true", "false", "null", "~", ""}, strings.ToLower(s)) ||
		strings.Trim(s, "0123456789:._+-") == "" {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// find is the value of a key.
func find(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}
