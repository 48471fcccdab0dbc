package manifest

import (
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits of a file.
const (
	maxSize      = 16 << 20
	maxDocuments = 10_000
	maxItems     = 10_000 // of a List
)

// Note is about an object of a file: that and why it was left alone, or a warning.
type Note struct {
	Place  string // FILE:LINE: KIND/NAME
	Text   string
	Warned bool // its author had asked for the sidecar
	// Injected: it was not left alone; this is a warning about what was put in.
	Injected bool
}

// File injects every pod of a file of manifests, or of a Docker Compose file. name is for messages.
func File(name string, in []byte, o Options) (out []byte, notes []Note, err error) {
	f := &file{name: name, change: func(p *pod) (bool, error) {
		r, err := Inject(&p.meta, &p.spec, o)
		if err == nil && !r.Injected {
			f := p.note(r.Reason)
			f.Warned = r.Asked
			notes = append(notes, f)
		}
		for _, w := range r.Warnings {
			notes = append(notes, Note{Place: p.place, Text: w, Warned: true, Injected: true})
		}
		return r.Injected, err
	}, compose: func(d *document) (bool, []Note, error) { return composeInject(d, o) }, keep: true}
	out, err = f.rewrite(in)
	return out, append(f.notes, notes...), err
}

// FileBack takes out of a file what File has put in.
func FileBack(name string, in []byte) (out []byte, err error) {
	f := &file{name: name, change: func(p *pod) (bool, error) { return Uninject(&p.meta, &p.spec) },
		compose: func(d *document) (bool, []Note, error) { ok, err := composeUninject(d); return ok, nil, err }}
	return f.rewrite(in)
}

// file is one on its way through.
type file struct {
	name    string
	change  func(*pod) (changed bool, err error)
	compose func(*document) (changed bool, notes []Note, err error)
	keep    bool // whether a changed document keeps its original in a comment
	notes   []Note
}

// rewrite makes a file anew. Nothing comes out where there is an error.
func (f *file) rewrite(in []byte) ([]byte, error) {
	if len(in) > maxSize {
		return nil, fmt.Errorf("%s: %d bytes; at most %d are taken", f.name, len(in), maxSize)
	}
	docs, err := split(f.name, string(in))
	if err != nil {
		return nil, err
	}
	var out strings.Builder
	var errs []error
	objects := 0
	for _, d := range docs {
		text, n, err := f.document(d)
		objects += n
		errs = append(errs, err)
		out.WriteString(text)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if objects == 0 {
		return nil, fmt.Errorf("%s: there is no Kubernetes object in it, nor a Docker Compose file", f.name)
	}
	return []byte(out.String()), nil
}

// document makes one anew, and says how many objects it had.
func (f *file) document(d *document) (string, int, error) {
	var root yaml.Node
	if err := yaml.Unmarshal([]byte(d.text), &root); err != nil {
		return "", 0, fmt.Errorf("%s: %w", f.name, inLine(err, d.line))
	}
	if len(root.Content) == 0 || root.Content[0].Kind == yaml.ScalarNode && root.Content[0].Tag == "!!null" {
		return d.text, 0, nil // comments, or nothing
	}
	d.root = root.Content[0]
	d.json = d.root.Style&yaml.FlowStyle != 0
	if d.root.Kind != yaml.MappingNode {
		return "", 0, fmt.Errorf("%s:%d: not a Kubernetes object: want a mapping with apiVersion and kind", f.name, d.line+d.root.Line-1)
	}
	var changed bool
	var objects int
	var err error
	if find(d.root, "services") != nil && find(d.root, "kind") == nil {
		var notes []Note
		objects = 1
		changed, notes, err = f.compose(d)
		f.notes = append(f.notes, notes...)
	} else {
		changed, objects, err = f.objects(d, d.root)
	}
	if err != nil || !changed {
		return d.text, objects, err
	}
	// A tree takes a key twice, an object does not: which of the two was meant, nobody knows.
	var whole any
	if err := d.root.Decode(&whole); err != nil {
		return "", objects, fmt.Errorf("%s: %w", f.name, inLine(err, d.line))
	}
	text, err := f.print(d, &root)
	return text, objects, err
}
