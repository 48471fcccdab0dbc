package webhook

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

// apply is what the API server does with a patch; it uses the same library.
func apply(t testing.TB, doc []byte, ops []operation) any {
	t.Helper()
	text, err := json.Marshal(ops)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	out, err := patch.Apply(doc)
	if err != nil {
		t.Fatalf("%s does not apply to %s: %v", text, doc, err)
	}
	return parse(t, string(out))
}

// parse keeps numbers as they are written: an int64 does not fit a float64.
func parse(t testing.TB, text string) any {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// generic is what JSON makes of a value.
func generic(t testing.TB, v any) any {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(text))
}

func patch(t testing.TB, raw []byte, before, after any) []operation {
	t.Helper()
	ops, err := patchFor(raw, before, after)
	if err != nil {
		t.Fatal(err)
	}
	return ops
}

func TestPatchesAreSmall(t *testing.T) {
	for name, tc := range map[string]struct{ before, after, want string }{
		"nothing changed": {`{"a":1}`, `{"a":1}`, `null`},
		"a member is added, one replaced, one removed": {`{"a":1,"b":2,"c":3}`, `{"a":1,"b":4,"d":5}`,
			`[{"op":"remove","path":"/c"},{"op":"replace","path":"/b","value":4},{"op":"add","path":"/d","value":5}]`},
		"an element in front moves the others": {`{"l":[{"name":"x","v":1},{"name":"y"}]}`, `{"l":[{"name":"n"},{"name":"x","v":2},{"name":"y"}]}`,
			`[{"op":"add","path":"/l/0","value":{"name":"n"}},{"op":"replace","path":"/l/1/v","value":2}]`},
		"a list that was not there": {`{}`, `{"l":["a"]}`, `[{"op":"add","path":"/l","value":["a"]}]`},
		"keys with slash and tilde": {`{"m":{"a/b":1}}`, `{"m":{"a/b":2,"c~d":3}}`,
			`[{"op":"replace","path":"/m/a~1b","value":2},{"op":"add","path":"/m/c~0d","value":3}]`},
		"null is a value":             {`{"a":1}`, `{"a":null}`, `[{"op":"replace","path":"/a","value":null}]`},
		"a number beyond a float64":   {`{"a":9007199254740993}`, `{"a":9007199254740992}`, `[{"op":"replace","path":"/a","value":9007199254740992}]`},
		"an element that went away":   {`{"l":["a","b","c"]}`, `{"l":["a","c"]}`, `[{"op":"remove","path":"/l/1"}]`},
		"another shape":               {`{"l":["a"]}`, `{"l":{"a":1}}`, `[{"op":"replace","path":"/l","value":{"a":1}}]`},
		"elements without a name":     {`{"l":[[1],[2]]}`, `{"l":[[1],[3]]}`, `[{"op":"replace","path":"/l/1","value":[3]}]`},
		"an element between same two": {`{"l":["a","a"]}`, `{"l":["a","b","a"]}`, `[{"op":"add","path":"/l/1","value":"b"}]`},
	} {
		t.Run(name, func(t *testing.T) {
			ops := patch(t, []byte(tc.before), parse(t, tc.before), parse(t, tc.after))
			got, _ := json.Marshal(ops)
			if string(got) != tc.want {
				t.Errorf("got %s\nwant %s", got, tc.want)
			}
			if len(ops) > 0 {
				if got := apply(t, []byte(tc.before), ops); !reflect.DeepEqual(got, parse(t, tc.after)) {
					t.Error(cmp.Diff(parse(t, tc.after), got))
				}
			}
		})
	}
}

// TestFieldsUnknownHereStay is about API servers younger than our types.
func TestFieldsUnknownHereStay(t *testing.T) {
	raw := `{"spec":{"containers":[{"name":"a","new":true}],"future":{"x":1}}}`
	before := parse(t, `{"metadata":{"creationTimestamp":null},"spec":{"containers":[{"name":"a","resources":{}}]},"status":{}}`)
	after := parse(t, `{"metadata":{"creationTimestamp":null,"labels":{"l":"v"}},"spec":{"containers":[{"name":"s"},{"name":"a","resources":{}}]},"status":{}}`)
	ops := patch(t, []byte(raw), before, after)
	want := parse(t, `{"metadata":{"creationTimestamp":null,"labels":{"l":"v"}},"spec":{"containers":[{"name":"s"},{"name":"a","new":true}],"future":{"x":1}}}`)
	if got := apply(t, []byte(raw), ops); !reflect.DeepEqual(got, want) {
		t.Error(cmp.Diff(want, got))
	}
}

// TestPatchLeadsThere compares, for many pairs of documents, what a patch makes with what it should.
func TestPatchLeadsThere(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		before, after := object(r, 3), object(r, 3)
		raw, err := json.Marshal(before)
		if err != nil {
			t.Fatal(err)
		}
		checkPatch(t, raw, before, after)
	}
}

func checkPatch(t testing.TB, raw []byte, before, after any) {
	t.Helper()
	ops := patch(t, raw, before, after)
	if got, want := apply(t, raw, ops), generic(t, after); !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: %v", raw, cmp.Diff(want, got))
	}
}

func object(r *rand.Rand, depth int) map[string]any {
	m := map[string]any{}
	for range r.IntN(5) {
		m[string("abc/~"[r.IntN(5)])] = random(r, depth-1)
	}
	return m
}

func random(r *rand.Rand, depth int) any {
	switch n := r.IntN(8); {
	case depth > 0 && n < 3:
		return object(r, depth)
	case depth > 0 && n < 6:
		list := make([]any, r.IntN(6))
		for i := range list {
			if list[i] = random(r, depth-1); r.IntN(2) == 0 {
				list[i] = map[string]any{"name": fmt.Sprint(r.IntN(6)), "v": r.IntN(2)}
			}
		}
		return list
	case n == 6:
		return strings.Repeat("x", r.IntN(3))
	default:
		return r.IntN(4)
	}
}

func TestHugeListsAreReplacedWhole(t *testing.T) {
	list := func(prefix string) map[string]any {
		l := make([]any, 2000)
		for i := range l {
			l[i] = prefix + fmt.Sprint(i)
		}
		return map[string]any{"l": l}
	}
	a, b := list("a"), list("b")
	raw, _ := json.Marshal(a)
	ops := patch(t, raw, a, b)
	if len(ops) != 1 || ops[0].Op != "replace" || ops[0].Path != "/l" {
		t.Errorf("%d operations", len(ops))
	}
}
