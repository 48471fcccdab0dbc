package manifest

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"go.yaml.in/yaml/v3"
	kjson "sigs.k8s.io/json"
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

// document is a part of a file between "---" lines.
type document struct {
	file string
	text string // with the lines that begin and end it
	line int    // of its first line, from 1
	root *yaml.Node
	json bool
}

// pod is one, or the template of one, in a document.
type pod struct {
	place string
	line  int        // of the document
	node  *yaml.Node // of the object that has metadata and spec
	meta  metav1.ObjectMeta
	spec  corev1.PodSpec
}

func (p *pod) note(text string) Note { return Note{Place: p.place, Text: text} }

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

const originalComment = "# sallyport: for uninject: "

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

// print writes a changed document; one that is as it was before it was injected gets its very text back.
func (f *file) print(d *document, root *yaml.Node) (string, error) {
	original := ""
	if !f.keep {
		original = takeOriginal(root, d.text)
		if original != "" && sameObject(original, root) {
			return original, nil
		}
	}
	var b bytes.Buffer
	if d.json {
		writeJSON(&b, root, "")
		return b.String() + "\n", nil
	}
	spellNulls(root, false)
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if compact(root) {
		e.CompactSeqIndent()
	}
	if err := e.Encode(root); err != nil {
		return "", fmt.Errorf("%s:%d: %w", f.name, d.line, err)
	}
	_ = e.Close() // of a buffer
	text := b.String()
	if first, _, _ := strings.Cut(d.text, "\n"); strings.HasPrefix(first, "---") {
		text = strings.TrimRight(first, "\r") + "\n" + text
	}
	if f.keep {
		kept, err := pack(d.text)
		if err != nil {
			return "", err
		}
		text += originalComment + kept + "\n"
	}
	return text, nil
}

// spellNulls writes out the nulls of "{a, b: }", of which the encoder would make empty strings.
func spellNulls(n *yaml.Node, flow bool) {
	flow = flow || n.Style&yaml.FlowStyle != 0
	if flow && n.Kind == yaml.ScalarNode && n.Value == "" && n.ShortTag() == "!!null" {
		n.Value = "null"
	}
	for _, child := range n.Content {
		spellNulls(child, flow)
	}
}

// sameObject says whether the original means what the tree means now.
func sameObject(original string, root *yaml.Node) bool {
	var was, is any
	return yaml.Unmarshal([]byte(original), &was) == nil && root.Decode(&is) == nil && reflect.DeepEqual(meaning(was), meaning(is))
}

// meaning is a value without empty objects and lists, which come and go with what is put into them.
func meaning(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if e = meaning(e); e != nil {
				out[k] = e
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		var out []any
		for _, e := range v {
			out = append(out, meaning(e))
		}
		if len(out) == 0 {
			return nil
		}
		return out
	default:
		return v
	}
}

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

// takeOriginal finds the original in the last comment and removes that from the tree.
func takeOriginal(root *yaml.Node, text string) string {
	packed := ""
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, originalComment); ok {
			packed = strings.TrimSpace(rest)
		}
	}
	if packed == "" {
		return ""
	}
	forget(root)
	original, err := unpack(packed)
	if err != nil {
		return "" // edited: the object itself says enough
	}
	return original
}

// forget removes the comment that holds the original from a tree.
func forget(n *yaml.Node) {
	for _, c := range []*string{&n.HeadComment, &n.LineComment, &n.FootComment} {
		if !strings.Contains(*c, originalComment) {
			continue
		}
		var kept []string
		for line := range strings.Lines(*c) {
			if !strings.HasPrefix(line, originalComment) {
				kept = append(kept, line)
			}
		}
		*c = strings.TrimRight(strings.Join(kept, ""), "\n")
	}
	for _, child := range n.Content {
		forget(child)
	}
}

func pack(text string) (string, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(z, text); err != nil {
		return "", err
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(b.Bytes()), nil
}

func unpack(packed string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(packed)
	if err != nil {
		return "", err
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(z, maxSize+1))
	if err == nil && len(text) > maxSize {
		err = errors.New("too large")
	}
	return string(text), err
}

// compact says whether the lists of a document stand as far left as the keys that hold them, as kubectl writes them.
func compact(n *yaml.Node) bool {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if v := n.Content[i+1]; v.Kind == yaml.SequenceNode && v.Style&yaml.FlowStyle == 0 && len(v.Content) > 0 && v.Line > 0 {
				return v.Column == n.Content[i].Column
			}
		}
	}
	for _, child := range n.Content {
		if child.Kind == yaml.MappingNode || child.Kind == yaml.DocumentNode || child.Kind == yaml.SequenceNode {
			if found := firstList(child); found != nil {
				return compact(child)
			}
		}
	}
	return false
}

// firstList is a block list somewhere below.
func firstList(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.SequenceNode && n.Style&yaml.FlowStyle == 0 && len(n.Content) > 0 && n.Line > 0 {
		return n
	}
	for _, child := range n.Content {
		if l := firstList(child); l != nil {
			return l
		}
	}
	return nil
}

// templates is where the kinds that run pods have the template.
var templates = map[string][]string{
	"Pod": {}, "Deployment": {"spec", "template"}, "StatefulSet": {"spec", "template"}, "DaemonSet": {"spec", "template"},
	"ReplicaSet": {"spec", "template"}, "ReplicationController": {"spec", "template"}, "Job": {"spec", "template"},
	"CronJob": {"spec", "jobTemplate", "spec", "template"},
}

// groups are their API groups; an object of another group may have the same kind.
var groups = map[string]string{"Pod": "v1", "ReplicationController": "v1", "Deployment": "apps/", "StatefulSet": "apps/", "DaemonSet": "apps/",
	"ReplicaSet": "apps/", "Job": "batch/", "CronJob": "batch/"}

// objects changes the pod of an object, or those of a List.
func (f *file) objects(d *document, n *yaml.Node) (changed bool, count int, err error) {
	at := fmt.Sprintf("%s:%d", f.name, d.line+n.Line-1)
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.MappingNode {
		return false, 0, fmt.Errorf("%s: not a Kubernetes object: want a mapping with apiVersion and kind", at)
	}
	kind, version := valueOf(n, "kind"), valueOf(n, "apiVersion")
	if kind == "" || version == "" {
		return false, 0, fmt.Errorf("%s: not a Kubernetes object: it has no apiVersion and kind", at)
	}
	if kind == "List" && version == "v1" {
		return f.list(d, n, at)
	}
	place := at + ": " + kind
	if m := find(n, "metadata"); m != nil && valueOf(m, "name") != "" {
		place += "/" + valueOf(m, "name")
	}
	path, ok := templates[kind]
	if group := groups[kind]; !ok || version != group && (group == "v1" || !strings.HasPrefix(version, group)) {
		return false, 1, nil // nothing that runs pods
	}
	p := &pod{place: place, line: d.line, node: n}
	for _, key := range path {
		next := find(p.node, key)
		for next != nil && next.Kind == yaml.AliasNode {
			next = next.Alias
		}
		if next == nil || next.Kind != yaml.MappingNode {
			return false, 1, fmt.Errorf("%s: it has no %s", place, strings.Join(path, "."))
		}
		p.node = next
	}
	changed, err = f.pod(p)
	return changed, 1, err
}

func (f *file) list(d *document, n *yaml.Node, at string) (changed bool, count int, err error) {
	items := find(n, "items")
	if items == nil || items.Kind != yaml.SequenceNode {
		return false, 0, fmt.Errorf("%s: List has no items", at)
	}
	if len(items.Content) > maxItems {
		return false, 0, fmt.Errorf("%s: List has %d items, at most %d are taken", at, len(items.Content), maxItems)
	}
	var errs []error
	for _, item := range items.Content {
		c, k, err := f.objects(d, item)
		changed, count, errs = changed || c, count+k, append(errs, err)
	}
	return changed, count + 1, errors.Join(errs...)
}

// pod changes one in the tree.
func (f *file) pod(p *pod) (bool, error) {
	var t corev1.PodTemplateSpec
	var tree any
	if err := p.node.Decode(&tree); err != nil {
		return false, fmt.Errorf("%s: %w", p.place, inLine(err, p.line))
	}
	text, err := json.Marshal(tree)
	if err == nil {
		// As the API server reads it: names count by letter case.
		err = kjson.UnmarshalCaseSensitivePreserveInts(text, &t)
	}
	if err != nil {
		return false, fmt.Errorf("%s: not a pod: %w", p.place, err)
	}
	if len(t.Spec.Containers) == 0 {
		return false, fmt.Errorf("%s: not a pod: it has no containers", p.place)
	}
	before, err := generic(&t)
	if err != nil {
		return false, fmt.Errorf("%s: %w", p.place, err)
	}
	p.meta, p.spec = *t.ObjectMeta.DeepCopy(), *t.Spec.DeepCopy()
	changed, err := f.change(p)
	if err != nil {
		return false, fmt.Errorf("%s: %w", p.place, err)
	}
	if !changed {
		return false, nil
	}
	after, err := generic(&corev1.PodTemplateSpec{ObjectMeta: p.meta, Spec: p.spec})
	if err != nil {
		return false, fmt.Errorf("%s: %w", p.place, err)
	}
	merge(p.node, before, after)
	return true, nil
}

// generic is an object as JSON has it.
func generic(v any) (any, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var out any
	return out, d.Decode(&out)
}

func valueOf(n *yaml.Node, key string) string {
	v := find(n, key)
	if v == nil || v.Kind != yaml.ScalarNode {
		return ""
	}
	return v.Value
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
