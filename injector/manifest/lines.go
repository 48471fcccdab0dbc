package manifest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// mistake is one in a document. Its line counts from the document's first.
type mistake struct {
	line int
	text string
}

func (m *mistake) Error() string { return fmt.Sprintf("line %d: %s", m.line, m.text) }

// fault is an error for the author of the file.
func (d *document) fault(err error) error {
	var m *mistake
	if errors.As(err, &m) {
		return fmt.Errorf("%s:%d: %s", d.file, d.line+m.line-1, m.text)
	}
	return fmt.Errorf("%s: %w", d.file, inLine(err, d.line))
}

// inLine corrects the lines of an error of package yaml, which count from the document's beginning.
func inLine(err error, from int) error {
	var mistakes *yaml.TypeError
	if !errors.As(err, &mistakes) {
		return fmt.Errorf("not YAML: %s", lineFrom(strings.TrimPrefix(err.Error(), "yaml: "), from))
	}
	var lines []string
	for _, text := range mistakes.Errors {
		// "mapping key … already defined at line N": of the same document.
		if text, at, ok := cutLast(text, " at line "); ok {
			if n, err := strconv.Atoi(at); err == nil {
				lines = append(lines, fmt.Sprintf("%s at line %d", lineFrom(text, from), from+n-1))
				continue
			}
		}
		lines = append(lines, lineFrom(text, from))
	}
	return errors.New(strings.Join(lines, "; "))
}

func lineFrom(text string, from int) string {
	var line int
	if _, err := fmt.Sscanf(text, "line %d:", &line); err != nil {
		return fmt.Sprintf("from line %d: %s", from, text)
	}
	_, rest, _ := strings.Cut(text, ": ")
	return fmt.Sprintf("line %d: %s", from+line-1, rest)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
