package manifest

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func options() Options {
	return Options{Image: "registry.example/sallyport:0.1.0", ControlPlane: "sallyport-control-plane.sallyport-system.svc:15010", TrustDomain: "sallyport.local",
		TrustBundle: "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"}
}

// TestGolden injects every manifest of testdata and compares all of it: the file, and what is said. Then it takes
// the sidecars out again, which must give the very file, and injects twice, which must change nothing.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(inputs) < 30 {
		t.Fatalf("%d manifests", len(inputs))
	}
	for _, path := range inputs {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		t.Run(name, func(t *testing.T) {
			in, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			out, notes, err := File(name+".yaml", in, options())
			if err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			for _, n := range notes {
				fmt.Fprintf(&said, "# %s: %s\n", n.Place, n.Text)
			}
			got := said.String() + string(out)
			golden := strings.TrimSuffix(path, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant (-update rewrites it):\n%s", got, want)
			}
			twice, _, err := File(name+".yaml", out, options())
			if err != nil || !bytes.Equal(twice, out) {
				t.Errorf("injected twice: %v\n%s", err, twice)
			}
			back, err := FileBack(name+".yaml", out)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(back, in) {
				t.Errorf("taken out again:\n%s", back)
			}
			// As kubectl would give it back: no comments.
			bare := withoutComments(out)
			if back, err = FileBack(name+".yaml", bare); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(meaning(objectsOf(t, back)), meaning(objectsOf(t, in))) {
				t.Errorf("taken out again, without the comments:\n%s", back)
			}
		})
	}
	goldens, _ := filepath.Glob("testdata/*.golden")
	if len(goldens) != len(inputs) {
		t.Errorf("%d golden files for %d manifests", len(goldens), len(inputs))
	}
}

func withoutComments(text []byte) []byte {
	var out []string
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return []byte(strings.Join(out, ""))
}

// objectsOf are those of a file, as package yaml has them.
func objectsOf(t *testing.T, text []byte) (out []any) {
	t.Helper()
	docs, err := split("f.yaml", string(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs {
		var v any
		if err := yaml.Unmarshal([]byte(d.text), &v); err != nil {
			t.Fatal(err)
		}
		if v != nil {
			out = append(out, v)
		}
	}
	return out
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

// sameMeaning compares two documents but for empty objects and lists, which come and go with what is put into them.
func sameMeaning(a, b *document) bool {
	var was, is any
	return a.root.Decode(&was) == nil && b.root.Decode(&is) == nil && reflect.DeepEqual(meaning(plain(was)), meaning(plain(is)))
}

func TestErrors(t *testing.T) {
	pod := func(annotation string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    " + annotation + "\nspec:\n  serviceAccountName: p\n  containers:\n  - name: app\n    image: p\n    ports: [{containerPort: 80}]\n"
	}
	for in, want := range map[string]string{
		"":                        "there is no Kubernetes object",
		"# nothing\n":             "there is no Kubernetes object",
		"hello":                   "f.yaml:1: not a Kubernetes object",
		"- a\n- b\n":              "f.yaml:1: not a Kubernetes object",
		"a: b\n":                  "f.yaml:1: not a Kubernetes object: it has no apiVersion and kind",
		"---\na: b\n---\nkind: [": "not YAML",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {}\n":                                                   "f.yaml:1: Pod/p: not a pod: it has no containers",
		"apiVersion: v1\nkind: ConfigMap\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {}\n": "f.yaml:4: Deployment/d: it has no spec.template",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: 3}\n":                                      "f.yaml:1: Pod/p: not a pod",
		"apiVersion: v1\nkind: List\n":                                                                 "List has no items",
		"apiVersion: v1\nkind: List\nitems: [3]\n":                                                     "f.yaml:3: not a Kubernetes object",
		pod("sallyport.io/inject: maybe"):                                                              `annotation sallyport.io/inject "maybe": must be enabled or disabled`,
		pod("sallyport.io/prot: '80'"):                                                                 "annotation sallyport.io/prot is not known",
		pod("sallyport.io/port: http"):                                                                 `annotation sallyport.io/port "http": must be 0 (it only calls) to 65535`,
		pod("sallyport.io/service: other"):                                                             "set serviceAccountName",
		pod("sallyport.io/inbound-mode: ebpf"):                                                         "must be redirect, tproxy or off",
		pod("sallyport.io/exclude-outbound-ports: 80,x"):                                               `"x" is not a port`,
		pod("sallyport.io/exclude-outbound-ports: 90-80"):                                              `"90-80" is not a port`,
		pod("sallyport.io/exclude-outbound-cidrs: 10.0.0.0/40"):                                        `"10.0.0.0/40" is not a network`,
		pod("sallyport.io/upstreams: payments"):                                                        "want SERVICE:PORT",
		pod("sallyport.io/memory-limit: lots"):                                                         "want a quantity",
		pod("sallyport.io/memory-limit: 1e2147483647"):                                                 "want a quantity",
		pod("sallyport.io/memory-request: 1Gi"):                                                        "above the limit",
		pod("sallyport.io/log-level: loud"):                                                            "must be trace, debug",
		strings.Replace(pod("a: b"), "ports:", "livenessProbe: {httpGet: {port: web}}\n    ports:", 1): `port "web" is not the name of one of the container's ports`,
		strings.Replace(pod("a: b"), "ports:", "securityContext: {runAsUser: 1337}\n    ports:", 1):    "the sidecar's own user",
		"services:\n  a:\n    image: a\n    labels: {sallyport.io/inject: enabled}\n":                  "f.yaml:2: service a: label sallyport.io/token-file is required",
		"services:\n  a:\n    image: a\n    labels: {sallyport.io/inject: enabled, sallyport.io/token-file: t, sallyport.io/port: x}\n": "must be 0 (it only calls) to 65535",
		strings.Replace(pod("a: b"), "name: app\n    image", "image", 1):                                                                "container 1 (\"p\") has no name",
		strings.Replace(pod("a: b"), "  - name: app", "  - name: app\n  - name: app", 1):                                                "two containers are called app",
		pod("sallyport.io/status: x"):                 "it speaks of a sidecar that is not in the pod",
		pod("sallyport.io/status: '{\"version\":1}'"): "it speaks of a sidecar that is not in the pod",
		strings.Replace(pod("a: b"), "containers:", "initContainers: [{name: i, image: i, securityContext: {runAsUser: 1337}}]\n  containers:", 1): "container i: securityContext.runAsUser 1337",
		strings.Replace(pod("sallyport.io/inbound-mode: tproxy"), "containers:", "securityContext: {runAsGroup: 1337}\n  containers:", 1):          "the sidecar's own group",
		strings.Replace(pod("a: b"), "ports:", "livenessProbe: {httpGet: {port: 80, path: "+strings.Repeat("<", maxProbes)+"}}\n    ports:", 1):    "at most 102400 can be handed to the sidecar",
		"services: [a]\n":                        "services: not a mapping",
		"# two\n---\na: 1\na: 2\n" + pod("a: b"): `f.yaml:3: Pod/p: line 4: mapping key "a" already defined at line 3`,
		strings.Replace(pod("a: b"), "  containers:", "  serviceAccountName: q\n  containers:", 1): `f.yaml:1: Pod/p: line 9: mapping key "serviceAccountName" already defined at line 8`,
		"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n" +
			"e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\napiVersion: v1\nkind: Pod\nspec: {containers: [{args: *f}], x: [*f,*f,*f,*f,*f,*f,*f,*f]}\n": "f.yaml",
	} {
		out, _, err := File("f.yaml", []byte(in), options())
		if err == nil || !strings.Contains(err.Error(), want) || out != nil {
			t.Errorf("%.300s:\n%v, want %q", in, err, want)
		}
	}
	if _, _, err := File("f.yaml", make([]byte, maxSize+1), options()); err == nil {
		t.Error("a file without end is taken")
	}
	if err := (&Options{}).Check(); err == nil {
		t.Error("options without an image are taken")
	}
}

// FuzzFile: whatever is taken comes out as YAML, a second time changes nothing, aliases come to what they stand for, and
// taking out gives back the very file; of JSON, what it meant.
func FuzzFile(f *testing.F) {
	inputs, _ := filepath.Glob("testdata/*.yaml")
	for _, path := range inputs {
		in, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(in)
	}
	for _, in := range anchored {
		f.Add([]byte(in))
	}
	for _, in := range []string{
		jsonPod, "---\n" + jsonPod + "\n---\n" + jsonPod, jsonPod + " # why", "--- {<<: *x}\n", aPod("a") + "...\n" + aPod("b"),
		"{apiVersion: v1, kind: Pod, metadata: &m {name: a}, spec: {serviceAccountName: a, containers: [{name: a, x: *m}]}}\n... # c\n--- !!map # d\n" + aPod("b"),
		"\ufeff--- # c\r\n" + strings.ReplaceAll(aPod("a"), "\n", "\r\n") + "x: |+\r\n  y\r\n\r\n",
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<16 {
			return
		}
		out, _, err := File("f.yaml", in, options())
		if err != nil {
			return
		}
		twice, _, err := File("f.yaml", out, options())
		if err != nil {
			t.Fatalf("what was injected is not taken: %v\n%s", err, out)
		}
		if !bytes.Equal(twice, out) {
			t.Fatalf("a second time changes something:\n%s\nafter:\n%s", out, twice)
		}
		back, err := FileBack("f.yaml", out)
		if err != nil {
			t.Fatalf("not taken out: %v\n%s", err, out)
		}
		// A Compose file's labels count as they are written, and package yaml writes 0x50 as 80.
		if bytes.Contains(in, []byte("&")) && !bytes.Contains(in, []byte("services")) {
			checkAnchors(t, in, out)
		}
		if bytes.Contains(in, []byte("sallyport")) || bytes.Equal(back, in) {
			return
		}
		// JSON has no comment to keep the original in; what it means comes back.
		was, err := split("f.yaml", string(in))
		if err != nil {
			t.Fatal(err)
		}
		is, err := split("f.yaml", string(back))
		if err != nil || len(is) != len(was) {
			t.Fatalf("taken out, this is not what it was: %v\n%q\nwas:\n%q", err, back, in)
		}
		for i := range was {
			if was[i].text == is[i].text {
				continue
			}
			if was[i].parse() != nil || was[i].json == nil || is[i].parse() != nil || is[i].json == nil || !sameMeaning(was[i], is[i]) {
				t.Fatalf("taken out, this is not what it was:\n%q\nwas:\n%q", is[i].text, was[i].text)
			}
		}
	})
}
