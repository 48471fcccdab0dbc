package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Limits on a catalog file: a person or a script writes it, and may do so wrongly.
const (
	maxFileBytes = 8 << 20
	maxNesting   = 64 // the format itself nests eight deep
	maxProblems  = 20
)

// The document as it is written; documented in docs and checked in check.go.
type (
	document struct {
		Services         []serviceDocument   `yaml:"services"`
		Intentions       []intentionDocument `yaml:"intentions"`
		DefaultIntention string              `yaml:"defaultIntention"`
	}
	serviceDocument struct {
		Name      string             `yaml:"name"`
		Namespace string             `yaml:"namespace"`
		Protocol  string             `yaml:"protocol"`
		Instances []instanceDocument `yaml:"instances"`
	}
	instanceDocument struct {
		ID      string            `yaml:"id"`
		Address string            `yaml:"address"`
		Proxy   string            `yaml:"proxy"`
		Version string            `yaml:"version"`
		Weight  *int64            `yaml:"weight"`
		Health  string            `yaml:"health"`
		Meta    map[string]string `yaml:"meta"`
		Zone    string            `yaml:"zone"`
	}
	intentionDocument struct {
		Source      string               `yaml:"source"`
		Destination string               `yaml:"destination"`
		Action      string               `yaml:"action"`
		Permissions []permissionDocument `yaml:"permissions"`
	}
	permissionDocument struct {
		Action     string           `yaml:"action"`
		PathExact  string           `yaml:"pathExact"`
		PathPrefix string           `yaml:"pathPrefix"`
		PathRegex  string           `yaml:"pathRegex"`
		Methods    []string         `yaml:"methods"`
		Headers    []headerDocument `yaml:"headers"`
	}
	headerDocument struct {
		Name    string `yaml:"name"`
		Exact   string `yaml:"exact"`
		Prefix  string `yaml:"prefix"`
		Suffix  string `yaml:"suffix"`
		Regex   string `yaml:"regex"`
		Present bool   `yaml:"present"`
		Invert  bool   `yaml:"invert"`
	}
)

// position of a value in the file.
type position struct{ line, column int }

// reading is one pass over a file: it collects problems with where they are.
type reading struct {
	file     string
	at       map[string]position // by path: "services[0].name"
	problems []Problem
}

// parse reads a catalog file. The Catalog is nil where there are problems.
func parse(file string, data []byte) (c *Catalog, problems []Problem) {
	r := &reading{file: file, at: map[string]position{}}
	// goccy/go-yaml is known to panic on rare malformed input; a bad file must never end the control plane.
	defer func() {
		if x := recover(); x != nil {
			c, problems = nil, []Problem{{File: file, Text: fmt.Sprintf("is not YAML that can be read: %v", x)}}
		}
	}()
	doc := r.decode(data)
	if len(r.problems) > 0 {
		return nil, r.problems
	}
	c = r.check(doc)
	if len(r.problems) > 0 {
		return nil, r.problems
	}
	return c, nil
}

// fail notes a problem of the field at path; where the document does not have it, at its nearest parent.
func (r *reading) fail(path, format string, args ...any) {
	if len(r.problems) > maxProblems {
		return
	}
	if len(r.problems) == maxProblems {
		r.problems = append(r.problems, Problem{File: r.file, Text: "there are more problems; these come first"})
		return
	}
	p := r.position(path)
	r.problems = append(r.problems, Problem{File: r.file, Line: p.line, Column: p.column, Field: path, Text: fmt.Sprintf(format, args...)})
}

func (r *reading) position(path string) position {
	for path != "" {
		if p, ok := r.at[path]; ok {
			return p
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return position{}
}

// failAt notes a problem at a token of the file.
func (r *reading) failAt(t *token.Token, path, format string, args ...any) {
	p := Problem{File: r.file, Field: path, Text: fmt.Sprintf(format, args...)}
	if t != nil && t.Position != nil {
		p.Line, p.Column = t.Position.Line, t.Position.Column
	}
	r.problems = append(r.problems, p)
}

// decode reads YAML strictly. It stops at the first mistake: what follows one of syntax or structure cannot be trusted.
func (r *reading) decode(data []byte) *document {
	doc := &document{}
	if len(data) > maxFileBytes {
		r.fail("", "is larger than %d MiB", maxFileBytes>>20)
		return doc
	}
	if line := tooDeep(data); line > 0 {
		r.problems = append(r.problems, Problem{File: r.file, Line: line, Text: fmt.Sprintf("nests deeper than %d", maxNesting)})
		return doc
	}
	tree, err := parser.ParseBytes(data, 0)
	if err != nil {
		r.decodeError(err)
		return doc
	}
	var body ast.Node
	for _, d := range tree.Docs {
		if d.Body == nil || d.Body.Type() == ast.NullType || d.Body.Type() == ast.CommentType {
			continue
		}
		if body != nil {
			r.failAt(d.Body.GetToken(), "", "a catalog file holds one document, this is a second; move its services into the first")
			return doc
		}
		body = d.Body
	}
	if body == nil {
		// An empty file is far more often a file that is being written, or a mount that is not there yet, than a mesh
		// without services; that is said by "services: []".
		r.fail("", "is empty; write \"services: []\" where there are none")
		return doc
	}
	w := &walker{r: r}
	ast.Walk(w, body)
	if len(r.problems) > 0 {
		return doc
	}
	if err := yaml.NodeToValue(body, doc, yaml.Strict()); err != nil {
		r.decodeError(err)
	}
	return doc
}

// walker notes where each value stands, and refuses anchors: they could blow a small file up, and hide what a line means.
type walker struct{ r *reading }

func (w *walker) Visit(n ast.Node) ast.Visitor {
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		if len(w.r.problems) == 0 {
			w.r.failAt(n.GetToken(), fieldPath(n), "anchors, aliases and merge keys are not read here; write the value out")
		}
		return nil
	}
	path := fieldPath(n)
	t := n.GetToken()
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 {
		t = m.Values[0].Key.GetToken()
		if m.IsFlowStyle {
			t = m.GetToken()
		}
	}
	if v, ok := n.(*ast.MappingValueNode); ok { // its token is the colon; the key is what an author looks for
		t = v.Key.GetToken()
	}
	if t != nil && t.Position != nil && path != "" {
		if _, had := w.r.at[path]; !had {
			w.r.at[path] = position{t.Position.Line, t.Position.Column}
		}
	}
	return w
}

func fieldPath(n ast.Node) string {
	return strings.TrimPrefix(strings.TrimPrefix(n.GetPath(), "$"), ".")
}

// decodeError words an error of the decoder as a Problem at its place.
func (r *reading) decodeError(err error) {
	var unknown *yaml.UnknownFieldError
	var twice *yaml.DuplicateKeyError
	var kind *yaml.TypeError
	var node *yaml.UnexpectedNodeTypeError
	var over *yaml.OverflowError
	var syntax *yaml.SyntaxError
	switch {
	case errors.As(err, &unknown):
		path := r.pathAt(unknown.Token)
		r.failAt(unknown.Token, path, "is not a known field%s", suggest(unknown.Token.Value, fieldsAt(path)))
	case errors.As(err, &twice):
		r.failAt(twice.Token, r.pathAt(twice.Token), "stands here a second time; a field may be given once")
	case errors.As(err, &kind):
		r.failAt(kind.Token, r.pathAt(kind.Token), "must be %s", kindName(kind.DstType))
	case errors.As(err, &node):
		r.failAt(node.Token, r.pathAt(node.Token), "must be %s, this is %s", nodeName(node.Expected), nodeName(node.Actual))
	case errors.As(err, &over):
		r.failAt(over.Token, r.pathAt(over.Token), "%s is out of range", over.SrcNum)
	case errors.As(err, &syntax):
		r.failAt(syntax.Token, "", "is not YAML: %s", syntax.Message)
	default:
		r.fail("", "is not YAML: %s", strings.SplitN(err.Error(), "\n", 2)[0])
	}
}

// pathAt is the longest path that starts at the token.
func (r *reading) pathAt(t *token.Token) string {
	best := ""
	if t == nil || t.Position == nil {
		return best
	}
	for path, p := range r.at {
		if p.line == t.Position.Line && p.column == t.Position.Column && (len(path) > len(best) || len(path) == len(best) && path < best) {
			best = path
		}
	}
	return best
}

var indexes = regexp.MustCompile(`\[\d+\]`)

// fieldsAt lists the fields that may stand beside the field at path.
func fieldsAt(path string) []string {
	t := reflect.TypeFor[document]()
	parts := strings.Split(indexes.ReplaceAllString(path, ""), ".")
	for _, part := range parts[:len(parts)-1] {
		found := false
		for i := range t.NumField() {
			if f := t.Field(i); f.Tag.Get("yaml") == part && f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct {
				t, found = f.Type.Elem(), true
				break
			}
		}
		if !found {
			return nil
		}
	}
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("yaml")
	}
	return names
}

// suggest is the nearest of the known words, or all of them where none is near.
func suggest(word string, known []string) string {
	best, distance := "", len(word)/2+1
	for _, k := range known {
		if d := levenshtein.ComputeDistance(strings.ToLower(word), strings.ToLower(k)); d < distance {
			best, distance = k, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("; did you mean %q?", best)
	case len(known) > 0:
		return "; known are " + strings.Join(known, ", ")
	}
	return ""
}

func kindName(t reflect.Type) string {
	if t == nil {
		return "of another type"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Int64:
		return "a whole number"
	case reflect.Pointer:
		return kindName(t.Elem())
	}
	return "a mapping (key: value)"
}

func nodeName(t ast.NodeType) string {
	switch t {
	case ast.MappingType, ast.MappingValueType:
		return "a mapping (key: value)"
	case ast.SequenceType:
		return "a list"
	case ast.NullType:
		return "nothing"
	}
	return "a " + strings.ToLower(t.String())
}

// tooDeep is the line where the text may nest deeper than maxNesting, 0 where it does not. The parser recurses, and a
// stack that overflows cannot be recovered from. It counts more than there is (brackets in texts), never less.
func tooDeep(data []byte) int {
	open := 0
	for number, line := range bytes.Split(data, []byte("\n")) {
		compact, text := 0, bytes.TrimLeft(line, " \t")
		if len(text) > 0 && text[0] == '#' {
			continue
		}
		for i, b := range text {
			switch b {
			case '[', '{':
				open++
			case ']', '}':
				open = max(open-1, 0)
			case '-', '?', ':': // "- - - a", "? ? a", "a: b: c" open one level each where followed by a space
				if i+1 == len(text) || text[i+1] == ' ' || text[i+1] == '\t' {
					compact++
				}
			}
		}
		indent := 0
		for indent < len(line) && (line[indent] == ' ' || line[indent] == '\t') {
			indent++
		}
		// A flow list of one-line mappings has many colons but closes them; only an open prefix nests.
		if open > maxNesting || indent > 8*maxNesting || compact > 16*maxNesting {
			return number + 1
		}
	}
	return 0
}
