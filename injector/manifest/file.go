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
	text, marked := strings.CutPrefix(string(in), byteOrderMark)
	docs, err := split(f.name, text)
	if err != nil {
		return nil, err
	}
	var out []byte
	var errs []error
	objects := 0
	for _, d := range docs {
		text, n, err := f.document(d)
		objects += n
		errs = append(errs, err)
		out = joined(out, text)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if objects == 0 {
		return nil, fmt.Errorf("%s: there is no Kubernetes object in it, nor a Docker Compose file", f.name)
	}
	if marked {
		out = append([]byte(byteOrderMark), out...)
	}
	return out, nil
}

// document makes one anew, and says how many objects it had.
func (f *file) document(d *document) (text string, objects int, err error) {
	if err := d.parse(); err != nil {
		return "", 0, err
	}
	if d.root == nil {
		return d.text, 0, nil
	}
	changed, objects, err := f.apply(d)
	if err != nil || !changed {
		return d.text, objects, err
	}
	if !f.keep {
		if original, ok := f.original(d); ok {
			return d.framed(original), objects, nil
		}
	}
	text, err = f.print(d)
	return text, objects, err
}

// apply makes the change to the tree of a document.
func (f *file) apply(d *document) (changed bool, objects int, err error) {
	if d.root.Kind != yaml.MappingNode {
		return false, 0, fmt.Errorf("%s:%d: not a Kubernetes object: want a mapping with apiVersion and kind", f.name, d.line+d.root.Line-1)
	}
	if find(d.root, "services") == nil || find(d.root, "kind") != nil {
		return f.objects(d, d.root)
	}
	changed, notes, err := f.compose(d)
	f.notes = append(f.notes, notes...)
	return changed, 1, err
}
