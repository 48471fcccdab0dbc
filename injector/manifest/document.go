package manifest

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// document is a part of a file between "---" lines.
type document struct {
	file string
	text string // with the lines that begin and end it
	line int    // of its first line, from 1
	root *yaml.Node
	json bool
}

// split cuts a file at its document markers, which stay with the document that they begin. A line of three dashes at its
// very beginning is a marker wherever it stands (YAML 1.2 §9.1.2).
func split(name, text string) ([]*document, error) {
	var docs []*document
	d := &document{file: name, line: 1}
	line := 0
	for s := range strings.Lines(text) {
		line++
		if marker := strings.TrimRight(s, "\r\n"); (marker == "---" || strings.HasPrefix(marker, "--- ") || strings.HasPrefix(marker, "---\t")) && d.text != "" {
			docs = append(docs, d)
			d = &document{file: name, line: line}
		}
		d.text += s
		if len(docs) >= maxDocuments {
			return nil, fmt.Errorf("%s: more than %d documents", name, maxDocuments)
		}
	}
	return append(docs, d), nil
}
