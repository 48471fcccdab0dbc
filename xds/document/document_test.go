package document

import (
	"testing"
)

type inner struct {
	Name  string `json:"name"`
	Count int32  `json:"count"`
}

type sample struct {
	inner  `json:",inline"`
	List   []inner           `json:"list"`
	Map    map[string]string `json:"map"`
	On     *bool             `json:"on"`
	Ratio  float64           `json:"ratio"`
	Secret []byte            `json:"secret"`
	Any    any               `json:"any"`
}

func decode(t *testing.T, text string) (sample, Problems) {
	t.Helper()
	docs, p := Parse("f", []byte(text))
	if p != nil {
		t.Fatal(p)
	}
	var s sample
	p2 := docs[0].Decode(&s)
	return s, p2
}

func TestDecode(t *testing.T) {
	docs, p := Parse("f", []byte("---\n---\nname: a\ncount: 0x10\nlist: [&x {name: b}, *x]\nmap: {k: v}\non: true\nratio: 1\nsecret: aGk=\nany: [1]\n"))
	if p != nil || len(docs) != 1 {
		t.Fatal(docs, p)
	}
	var s sample
	if p := docs[0].Decode(&s); p.Err() != nil {
		t.Fatal(p)
	}
	if s.Name != "a" || s.Count != 16 || len(s.List) != 2 || s.List[1].Name != "b" || s.Map["k"] != "v" || !*s.On || s.Ratio != 1 || string(s.Secret) != "hi" || s.Any == nil {
		t.Fatalf("%+v", s)
	}
	if got := docs[0].String("list[0].name"); got != "b" {
		t.Error(got)
	}
	if p := docs[0].Problemf("list[1].nothing.there", "x"); p.Line != 5 {
		t.Error(p)
	}
}

func TestProblems(t *testing.T) {
	for text, want := range map[string]string{
		"nam: a":                  `f:1:1: nam: unknown field; did you mean "name"?`,
		"zzzzzzzzzz: a":           "f:1:1: zzzzzzzzzz: unknown field; known: any, count, list, map, name, on, ratio, secret",
		"name: a\nname: b":        "f:2:1: name: occurs twice",
		"map: {a: x, a: y}":       "f:1:13: map.a: occurs twice",
		"count: 3000000000":       "f:1:8: count: 3000000000 is out of range",
		"count: 1.5":              "f:1:8: count: must be a whole number, this is a number",
		"on: maybe":               "f:1:5: on: must be true or false, this is a string",
		"name: [a]":               "f:1:7: name: must be a string, this is a list",
		"ratio: .nan":             "f:1:8: ratio: must be a number, this is a number",
		"secret: '?'":             "f:1:9: secret: is not base64",
		"<<: {name: a}":           "f:1:1: merge keys (<<) are not implemented; write the fields out",
		"list: [{name: a, x: 1}]": "f:1:18: list[0].x: unknown field; known: count, name",
	} {
		_, p := decode(t, text)
		if len(p) == 0 || p[0].Error() != want {
			t.Errorf("%s\ngot  %v\nwant %s", text, p, want)
		}
	}
}

// A small text must not become a large value, and mistakes must not become a book.
func TestLimits(t *testing.T) {
	text := "x:\n- &a00 [1]\n"
	for i := range 40 {
		text += "- &a" + itoa(i+1) + " [*a" + itoa(i) + ", *a" + itoa(i) + "]\n"
	}
	docs, p := Parse("f", []byte(text))
	if p != nil {
		t.Fatal(p)
	}
	var s struct {
		X deep `json:"x"`
	}
	if p := docs[0].Decode(&s); len(p) == 0 || len(p) > maxProblems+1 {
		t.Fatal(len(p))
	}
	if _, p := ReadFile("/dev/zero"); p == nil || p.Text != "is not a file" {
		t.Fatal(p)
	}
}

// deep is a list of lists of lists.
type deep []deep

func itoa(i int) string { return string(rune('0'+i/10)) + string(rune('0'+i%10)) }
