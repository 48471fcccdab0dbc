package manifest

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"
)

// TestPrinted: what the encoder of package yaml would lose, break or change, in a document that is injected.
func TestPrinted(t *testing.T) {
	for name, c := range map[string]struct {
		in   string // beside the pod
		want string
	}{
		"line feeds at the end of a folded text":   {"x: >+\n  a\n  b\n\n\ny: 1\n", "x: |+\n  a b\n\n\ny: 1\n"},
		"line feeds at the end of a text":          {"x: |+\n  a\n\n\ny: 1\n", "x: |+\n  a\n\n\ny: 1\n"},
		"nulls in braces":                          {"x: {a: , b}\n", "x: {a: null, b: null}\n"},
		"a merge":                                  {"x: &x {a: 1}\ny: {<<: *x, b: 2}\n", "y: {<<: *x, b: 2}\n"},
		"a comment behind an anchor, then braces":  {"x: &x # c\n  a: {b: 1}\n", "x: &x\n  a: {b: 1} # c\n"},
		"a comment behind an anchor, then aliases": {"z: &z 1\nx: &x # c\n  a: *z\ny: &y\n  a: 1\n", "x: &x\n  a: *z # c\ny: &y\n"},
		"comments behind an anchor and its first":  {"x: &x # c\n  a: 1 # d\n  b: 2\n", "x: &x\n  # c\n  a: 1 # d\n  b: 2\n"},
		"a comment behind a merge that is gone":    {"z: &z {a: 1}\nx:\n  a: 2\n  <<: *z # c\n", "<<: *z # c\n"},
		"a key that is an alias":                   {"x: &x a\ny: {*x : 1}\n", "y: {a: 1}\n"},
		"dates":                                    {"x: 2020-01-01\ny: {z: 2020-01-01}\n", "x: 2020-01-01\ny: {z: 2020-01-01}\n"},
		"numbers":                                  {"x: [0x10, 1e3, 1_000, 0o14]\n", "x: [0x10, 1e3, 1_000, 0o14]\n"},
		"strings that look like something else":    {"x: ['1', \"no\", !!str 2, 'a: b']\n", "x: ['1', \"no\", !!str 2, 'a: b']\n"},
	} {
		t.Run(name, func(t *testing.T) {
			in := aPod("a") + c.in
			out, _, err := File("f.yaml", []byte(in), options())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(out, []byte("\n"+c.want)) && !bytes.Contains(out, []byte("  "+c.want)) {
				t.Errorf("%q is not in\n%s", c.want, out)
			}
			if back, err := FileBack("f.yaml", out); err != nil || string(back) != in {
				t.Errorf("taken out again: %v\n%s", err, back)
			}
			back, err := FileBack("f.yaml", withoutComments(out))
			if err != nil || !reflect.DeepEqual(meaning(plain(objectsOf(t, back))), meaning(plain(objectsOf(t, []byte(in))))) {
				t.Errorf("taken out again without its comments: %v\n%s", err, back)
			}
		})
	}
}

// TestCheck: what would say something else is refused.
func TestCheck(t *testing.T) {
	d := &document{file: "f.yaml", line: 7}
	for text, object := range map[string]any{
		"a: 1\n":         map[string]any{"a": 2},
		"a: 1\n---\n":    map[string]any{"a": 1},
		"a: [\n":         map[string]any{"a": nil},
		"# a: 1\n":       map[string]any{"a": 1},
		"a: 1\n...\n# b": map[string]any{"a": 1},
	} {
		if err := d.check(text, object); err == nil || !strings.Contains(err.Error(), "f.yaml:7: this document cannot be printed") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := d.check("---\na: {b: .nan, 1: [c]}\n", map[string]any{"a": map[any]any{"b": math.NaN(), 1: []any{"c"}}}); err != nil {
		t.Error(err)
	}
}

// TestDatesInProbes: to Kubernetes they are strings, also where they move.
func TestDatesInProbes(t *testing.T) {
	in := strings.Replace(aPod("a"), "    ports:", "    livenessProbe: {httpGet: {port: 80, httpHeaders: [{name: since, value: 2020-01-01}]}}\n    ports:", 1)
	out, _, err := File("f.yaml", []byte(in), options())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(out, []byte("T00:00")) || !bytes.Contains(out, []byte(`"value":"2020-01-01"`)) {
		t.Errorf("%s", out)
	}
}
