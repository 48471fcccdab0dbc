package manifest

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const jsonPod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"serviceAccountName":"a","containers":[{"name":"a"}]}}`

// laidOut is JSON as its usual printers write it.
func laidOut(t *testing.T, text, indent string) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, []byte(text), "", indent); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestJSON: what is injected is laid out as its author did, and comes back so.
func TestJSON(t *testing.T) {
	python := strings.NewReplacer(`":`, `": `, `,"`, `, "`).Replace(jsonPod)
	wide := strings.TrimSuffix(jsonPod, "}") + `,"x":{"big":123456789012345678901234567890,"float":1e3,"zero":1.0,"less":"<&>","smile":"😀","\u003c":null,` +
		`"empty":{},"none":[],"deep":[[1,[true]],{}],"long":"` + strings.Repeat("y", 3000) + `"}}`
	for name, c := range map[string]struct {
		in  string
		has []string // in what comes out
	}{
		"compact":                    {jsonPod + "\n", []string{`"initContainers":[{"name":"sallyport-init","image"`}},
		"compact, no line feed":      {jsonPod, nil},
		"compact with spaces":        {python + "\n", []string{`"initContainers": [{"name": "sallyport-init", "image"`}},
		"two spaces":                 {laidOut(t, jsonPod, "  ") + "\n", []string{"\n    \"initContainers\": [\n      {\n        \"name\": \"sallyport-init\""}},
		"four spaces":                {laidOut(t, jsonPod, "    ") + "\n", []string{"\n        \"initContainers\": [\n"}},
		"tabs":                       {laidOut(t, jsonPod, "\t") + "\n", []string{"\n\t\t\"initContainers\": [\n"}},
		"two documents":              {"---\n" + jsonPod + "\n---\n" + laidOut(t, jsonPod, "  ") + "\n", []string{"}\n---\n{\n"}},
		"two documents, no dashes":   {jsonPod + "\n---\n" + jsonPod + "\n", []string{"}\n---\n{"}},
		"a comment at the dashes":    {"--- # first\n" + jsonPod + "\n...\n--- # second\n" + jsonPod + "\n", []string{"--- # first\n{", "\n...\n--- # second\n{"}},
		"white space around":         {"\n  " + jsonPod + "\n\n---\n" + jsonPod, nil},
		"after YAML":                 {aPod("a") + "---\n" + jsonPod + "\n", nil},
		"numbers and strings":        {strings.ReplaceAll(wide, `\u003c`, "<"), []string{`"big":123456789012345678901234567890,"float":1e3,"zero":1.0,"less":"<&>","smile":"😀"`}},
		"a key that YAML would take": {strings.TrimSuffix(jsonPod, "}") + `,"<<":{"a":1},"when":"2020-01-01","` + strings.Repeat("k", 2000) + `":1}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := File("f.json", []byte(c.in), options())
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range c.has {
				if !bytes.Contains(out, []byte(want)) {
					t.Errorf("%q is not in\n%s", want, out)
				}
			}
			if pods, others := injected(t, out); pods != strings.Count(c.in, `containers"`)+strings.Count(c.in, "containers:") || others != 0 {
				t.Errorf("%d pods with a sidecar and %d without:\n%s", pods, others, out)
			}
			if back, err := FileBack("f.json", out); err != nil || string(back) != c.in {
				t.Errorf("taken out again: %v\n%s\nwant\n%s", err, back, c.in)
			}
		})
	}
}

// TestJSONInAnotherLayout: what no printer writes is laid out anew, and means the same.
func TestJSONInAnotherLayout(t *testing.T) {
	for _, in := range []string{
		"--- " + jsonPod + "\n",
		strings.ReplaceAll(jsonPod, ",", " ,\n"),
		strings.ReplaceAll(jsonPod, `"a"`, `"\u0061"`),
		strings.Replace(jsonPod, `"metadata"`, `"\ud83d\ude00":"\ud83d\ude00 \ufffd","metadata"`, 1),
		strings.ReplaceAll(laidOut(t, jsonPod, " "), "\n", "\r\n"),
	} {
		out, _, err := File("f.json", []byte(in), options())
		if err != nil {
			t.Errorf("%v\n%s", err, in)
			continue
		}
		back, err := FileBack("f.json", out)
		if err != nil || jsonOf(strings.TrimPrefix(string(back), "---\n")) == nil {
			t.Fatalf("%v\n%s", err, back)
		}
		var was, is any
		if err := json.Unmarshal([]byte(strings.TrimPrefix(in, "--- ")), &was); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(string(back), "---\n")), &is); err != nil || !reflect.DeepEqual(was, is) {
			t.Errorf("taken out again: %v\n%s\nwant\n%s", err, back, in)
		}
	}
}

func TestJSONThatIsRefused(t *testing.T) {
	for in, want := range map[string]string{
		"\n" + strings.Replace(jsonPod, `"metadata"`, `"x":"\uD83D ","metadata"`, 1): "f.json:2: half of a surrogate pair",
		strings.Replace(jsonPod, `"metadata"`, "\"x\":1,\n\"x\":2,\"metadata\"", 1):  `line 2: mapping key "x" already defined at line 1`,
		strings.Replace(jsonPod, `"metadata"`, "\n\"x\":1E400,\"metadata\"", 1):      "1E400",
		"[" + jsonPod + "]":            "f.json:1: not a Kubernetes object",
		jsonPod + "\n" + jsonPod:       "put a line --- before it",
		"---\n" + jsonPod + "\n---\n3": "f.json:4: not a Kubernetes object",
	} {
		out, _, err := File("f.json", []byte(in), options())
		if err == nil || !strings.Contains(err.Error(), want) || out != nil {
			t.Errorf("%s:\n%v, want %q", in, err, want)
		}
	}
}

// TestFlowStyle: YAML in braces that is no JSON is written as YAML, with its comments and its dates.
func TestFlowStyle(t *testing.T) {
	spec := "spec: {serviceAccountName: a, containers: [{name: a}]}"
	for name, in := range map[string]string{
		"no quotes":             "{apiVersion: v1, kind: Pod, metadata: {name: a}, " + spec + "}\n",
		"a comment at the end":  jsonPod + " # why\n",
		"comments within":       "# head\n{\n  apiVersion: v1, kind: Pod, # a pod\n  # the date\n  metadata: {name: a, x: 2020-01-01},\n  " + spec + "\n}\n# foot\n",
		"single quotes":         strings.ReplaceAll(jsonPod, `"`, `'`) + "\n",
		"a comma too many":      strings.TrimSuffix(jsonPod, "}") + ",}\n",
		"at the dashes":         "--- {apiVersion: v1, kind: Pod, metadata: {name: a}, " + spec + "}\n---\n" + aPod("b"),
		"two documents":         "---\n{apiVersion: v1, kind: Pod, metadata: {name: a}, " + spec + "}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: b}, " + spec + "}\n",
		"nulls":                 "{apiVersion: v1, kind: Pod, metadata: {name: a, x: }, y, " + spec + "}\n",
		"a date outside of it":  "{apiVersion: v1, kind: Pod, when: 2020-01-01, metadata: {name: a}, " + spec + "}\n",
		"a date in what it has": "{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: {when: 2020-01-01}}, " + spec + "}\n",
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := File("f.yaml", []byte(in), options())
			if err != nil {
				t.Fatal(err)
			}
			if pods, others := injected(t, out); pods != strings.Count(in, "kind") || others != 0 {
				t.Errorf("%d pods with a sidecar and %d without:\n%s", pods, others, out)
			}
			for _, part := range []string{"# why", "# head", "# a pod", "# the date", "# foot", "2020-01-01"} {
				if strings.Contains(in, part) && !strings.Contains(string(out), part) {
					t.Errorf("without %q:\n%s", part, out)
				}
			}
			if strings.Contains(string(out), "T00:00:00") {
				t.Errorf("a time of day in\n%s", out)
			}
			if back, err := FileBack("f.yaml", out); err != nil || string(back) != in {
				t.Errorf("taken out again: %v\n%s\nwant\n%s", err, back, in)
			}
		})
	}
}
