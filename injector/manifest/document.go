package manifest

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// document is one of a file. text is open+body+end; what is changed is body, so that the lines that part documents stay
// what they are in the file, whatever becomes of what stands between them.
type document struct {
	file string
	line int // of its first line in the file, from 1
	text string

	open string // its "---" line, with its comment; "" where there is none, or it has content as in "--- !!map"
	body string
	end  string // its "..." line

	tree    *yaml.Node // of the document, with its aliases written out
	root    *yaml.Node // of the object in it; nil: there is none, only comments
	aliases *aliases
	json    *jsonText // nil: YAML
	compact bool      // lists stand as far left as the keys that hold them
}

// byteOrderMark may stand at the beginning of a file, and nowhere else.
const byteOrderMark = "\ufeff"

// split cuts a file into its documents. A line of three dashes at its very beginning begins one, a line of three dots ends
// one, wherever it stands (YAML 1.2 §9.1.2), also within a block of text.
func split(name, text string) ([]*document, error) {
	var docs []*document
	start, from, line := 0, 1, 0 // where the document begins that is being read
	cut := func(end, next int) {
		d := &document{file: name, text: text[start:end], line: from}
		d.open, d.body, d.end = frame(d.text)
		docs = append(docs, d)
		start, from = end, next
	}
	at := 0
	for s := range strings.Lines(text) {
		line++
		if !utf8.ValidString(s) {
			return nil, fmt.Errorf("%s:%d: not UTF-8: write the file in that encoding", name, line)
		}
		if isMarker(s, "---") && at > start {
			cut(at, line)
		}
		at += len(s)
		if isMarker(s, "...") && isBare(s) {
			cut(at, line+1)
		}
		if len(docs) >= maxDocuments {
			return nil, fmt.Errorf("%s: more than %d documents", name, maxDocuments)
		}
	}
	if at > start || len(docs) == 0 {
		cut(at, 0)
	}
	return docs, nil
}

// frame parts a document from the lines that begin and end it.
func frame(text string) (open, body, end string) {
	body = text
	first, _, _ := strings.Cut(text, "\n")
	if first = text[:min(len(first)+1, len(text))]; isMarker(first, "---") && isBare(first) {
		open, body = first, text[len(first):]
	}
	last := body[strings.LastIndex(strings.TrimSuffix(body, "\n"), "\n")+1:]
	if isMarker(last, "...") && isBare(last) {
		body, end = body[:len(body)-len(last)], last
	}
	return open, body, end
}

// isMarker says whether text begins with a line that parts documents.
func isMarker(text, marker string) bool {
	rest, ok := strings.CutPrefix(text, marker)
	return ok && (rest == "" || strings.ContainsRune(" \t\r\n", rune(rest[0])))
}

// isBare says whether the line of a marker has nothing else but a comment. What package yaml takes for the end of a line
// within one leaves that open: such a line is not taken apart.
func isBare(line string) bool {
	rest := strings.TrimRight(line[3:], "\r\n")
	if strings.ContainsAny(rest, "\r\u0085\u2028\u2029") {
		return false
	}
	rest = strings.TrimLeft(rest, " \t")
	return rest == "" || rest[0] == '#'
}

// joined adds a document to others. A text that was without a last line feed gets one: the next one begins on its own line.
func joined(all []byte, text string) []byte {
	if len(all) > 0 && all[len(all)-1] != '\n' && text != "" {
		all = append(all, '\n')
	}
	return append(all, text...)
}

// Join makes one file of several, with a line "---" between two of them.
func Join(files ...[]byte) []byte {
	var all []byte
	for i, file := range files {
		text := string(file)
		if i > 0 {
			text = strings.TrimPrefix(text, byteOrderMark)
			if !isMarker(text, "---") {
				text = "---\n" + text
			}
		}
		all = joined(all, text)
	}
	return all
}

// parse reads the document's tree. The lines of the tree count from the document's first.
func (d *document) parse() error {
	if err := d.refuseDirectives(); err != nil {
		return err
	}
	tree, err := d.read()
	if err != nil {
		return d.fault(err)
	}
	if tree == nil || tree.Content[0].Kind == yaml.ScalarNode && tree.Content[0].Tag == "!!null" {
		return nil
	}
	d.tree, d.root, d.compact = tree, tree.Content[0], compact(tree)
	if d.aliases, err = writeOut(tree); err != nil {
		return d.fault(err)
	}
	return nil
}

// read reads JSON where it is that, all else as YAML; nil: there are only comments.
func (d *document) read() (*yaml.Node, error) {
	content := d.body
	if isMarker(content, "---") {
		content = content[len("---"):]
	}
	above := strings.Count(d.open, "\n")
	if d.json = jsonOf(content); d.json != nil {
		return readJSON(content, 1+above)
	}
	r := yaml.NewDecoder(strings.NewReader(strings.Repeat("\n", above) + d.body))
	var tree yaml.Node
	if err := r.Decode(&tree); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return &tree, refuseSecond(r)
}

// refuseSecond refuses a second document that split has not parted from the first: only the first would come out.
func refuseSecond(r *yaml.Decoder) error {
	const what = "another document follows in this one: put a line --- before it"
	var second yaml.Node
	switch err := r.Decode(&second); {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		return &mistake{second.Line, what}
	default:
		return fmt.Errorf("%w (if %s)", err, what)
	}
}

// refuseDirectives refuses %YAML and %TAG (YAML 1.2 §6.8): they hold for the very document that they stand before, and so
// would have to be printed, and packed, with it. Manifests have no use for them.
func (d *document) refuseDirectives() error {
	if d.open != "" {
		return nil
	}
	n := d.line
	for line := range strings.Lines(d.body) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "%") {
			return fmt.Errorf("%s:%d: the directive %q is not taken: remove the line", d.file, n, line)
		}
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return nil
		}
		n++
	}
	return nil
}
