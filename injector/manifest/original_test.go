package manifest

import (
	"bytes"
	"os"
	"reflect"
	"strings"
	"testing"
)

const edited = `# The shop.
apiVersion: apps/v1
kind: Deployment
metadata: {name: orders}
spec:
  replicas: 2 # enough
  template:
    metadata: {labels: {app: orders}}
    spec:
      serviceAccountName: orders
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - topologyKey: zone
            namespaceSelector: {}
      containers:
      - name: app
        image: orders
        env: []
`

// TestTakenOutAfterAnEdit: what was changed in between stays changed, however little it is.
func TestTakenOutAfterAnEdit(t *testing.T) {
	for name, c := range map[string]struct{ from, to string }{
		"a value":                        {"replicas: 2", "replicas: 5"},
		"an empty object removed":        {"            namespaceSelector: {}\n", ""},
		"an empty object added":          {"      affinity:", "      nodeSelector: {}\n      affinity:"},
		"an empty list removed":          {"        env: []\n", ""},
		"null for an empty list":         {"env: []", "env: null"},
		"a comment":                      {"# enough", "# not enough"},
		"a comment removed":              {" # enough", ""},
		"a comment added":                {"      - name: app\n", "      # The shop itself.\n      - name: app\n"},
		"a comment at the head":          {"# The shop.", "# The shop, and\n# the warehouse."},
		"quotes":                         {"image: orders", "image: 'orders'"},
		"the comment of the line ---":    {"--- # one", "--- # two"},
		"the lines --- and ... removed":  {"--- # one\n", ""},
		"nothing but another line above": {"# The shop.", "---\n# The shop."},
	} {
		t.Run(name, func(t *testing.T) {
			in := "--- # one\n" + edited
			out, _, err := File("d.yaml", []byte(in), options())
			if err != nil {
				t.Fatal(err)
			}
			if strings.Count(string(out), c.from) != 1 {
				t.Fatalf("%q stands %d times in\n%s", c.from, strings.Count(string(out), c.from), out)
			}
			back, err := FileBack("d.yaml", bytes.Replace(out, []byte(c.from), []byte(c.to), 1))
			if want := strings.Replace(in, c.from, c.to, 1); err != nil || string(back) != want {
				t.Errorf("%v\n%s\nwant\n%s", err, back, want)
			}
		})
	}
}

// TestTakenOutElsewhere: what others than its author do to a file on its way.
func TestTakenOutElsewhere(t *testing.T) {
	in, err := os.ReadFile("testdata/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := File("d.yaml", in, options())
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(out), originalComment)
	for name, c := range map[string]struct {
		text   string
		byByte bool
	}{
		"as it was":                        {string(out), true},
		"a checkout with CR LF":            {strings.ReplaceAll(string(out), "\n", "\r\n"), true},
		"the last line feed cut off":       {strings.TrimSuffix(string(out), "\n"), true},
		"a line --- before and after":      {"---\n" + string(out) + "---\n", true},
		"a line ... after":                 {string(out) + "...\n", true},
		"the comment removed":              {string(out[:at]), false},
		"the comment cut off":              {string(out[:at+100]), false},
		"the comment damaged":              {string(out[:at+100]) + "A" + string(out[at+101:]), false},
		"the comment moved":                {string(out[at:]) + string(out[:at]), true},
		"a comment after it":               {string(out) + "# the end\n", false},
		"the comment of another object":    {string(out[:at]) + originalComment + strings.Repeat("0", 16) + " " + mustPack(t, aPod("x")) + "\n", false},
		"that comment twice":               {string(out) + string(out[at:]), false},
		"a comment that is not compressed": {string(out[:at]) + originalComment + digest(string(out[:at])) + " AAAA\n", false},
		"a comment with no object":         {string(out[:at]) + originalComment + digest(string(out[:at])) + " " + mustPack(t, "# x\n") + "\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			back, err := FileBack("d.yaml", []byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if c.byByte != bytes.Contains(back, in) {
				t.Errorf("byte for byte: %v, want %v\n%s", !c.byByte, c.byByte, back)
			}
			if bytes.Contains(back, []byte("uninject")) || !bytes.Contains(back, []byte("# pinned")) || !reflect.DeepEqual(objectsOf(t, back), objectsOf(t, in)) {
				t.Errorf("taken out:\n%s", back)
			}
		})
	}
}

func mustPack(t *testing.T, text string) string {
	t.Helper()
	packed, err := pack(text)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// TestInjectedInTwoSteps: a List that was injected gets another pod and is injected again. Taken out, both sidecars are gone.
func TestInjectedInTwoSteps(t *testing.T) {
	list := "apiVersion: v1\nkind: List\nitems:\n"
	item := func(name string) string {
		return "- " + strings.ReplaceAll(strings.TrimSuffix(aPod(name), "\n"), "\n", "\n  ") + "\n"
	}
	out, _, err := File("l.yaml", []byte(list+item("a")), options())
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(string) string{
		"with its comment": func(s string) string { return strings.Replace(s, "items:\n", "items:\n"+item("b"), 1) },
		"without it":       func(s string) string { return s[:strings.Index(s, originalComment)] + item("b") },
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := File("l.yaml", []byte(edit(string(out))), options())
			if err != nil || strings.Count(string(out), AnnotationStatus) != 2 || strings.Count(string(out), originalComment) != 1 {
				t.Fatalf("%v\n%s", err, out)
			}
			back, err := FileBack("l.yaml", out)
			if err != nil || bytes.Contains(back, []byte("sallyport")) || strings.Count(string(back), "kind: Pod") != 2 {
				t.Errorf("%v\n%s", err, back)
			}
		})
	}
}
