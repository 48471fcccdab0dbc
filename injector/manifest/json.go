package manifest

import (
	"bytes"
	"encoding/json"

	"go.yaml.in/yaml/v3"
)

// writeJSON writes a tree that came from JSON, with its keys in their order.
func writeJSON(b *bytes.Buffer, n *yaml.Node, indent string) {
	switch n.Kind {
	case yaml.DocumentNode:
		writeJSON(b, n.Content[0], indent)
	case yaml.MappingNode, yaml.SequenceNode:
		brackets, step := "{}", 2
		if n.Kind == yaml.SequenceNode {
			brackets, step = "[]", 1
		}
		b.WriteByte(brackets[0])
		for i := 0; i < len(n.Content); i += step {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString("\n" + indent + "  ")
			if step == 2 {
				key, _ := json.Marshal(n.Content[i].Value) // a string cannot fail
				b.Write(key)
				b.WriteString(": ")
			}
			writeJSON(b, n.Content[i+step-1], indent+"  ")
		}
		if len(n.Content) > 0 {
			b.WriteString("\n" + indent)
		}
		b.WriteByte(brackets[1])
	default:
		var v any = n.Value
		if n.ShortTag() != "!!str" {
			if err := n.Decode(&v); err != nil {
				v = n.Value
			}
		}
		text, err := json.Marshal(v)
		if err != nil { // a number that JSON does not have
			text, _ = json.Marshal(n.Value)
		}
		b.Write(text)
	}
}
