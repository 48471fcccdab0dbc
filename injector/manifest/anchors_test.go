package manifest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// The shapes in which authors of manifests share things, and some that only the grammar knows.
var anchored = map[string]string{
	"an anchored pod that is merged elsewhere, and that one which opted out has": `
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: a}
  spec:
    template: &template
      metadata: {labels: {app: a}}
      spec: &spec
        serviceAccountName: a
        containers:
        - name: app
          image: a
          ports: [{containerPort: 80}]
          livenessProbe: {httpGet: {path: /live, port: 80}}
        volumes: [{name: data, emptyDir: {}}]
- apiVersion: batch/v1
  kind: Job
  metadata: {name: b}
  spec:
    template:
      spec:
        <<: *spec
        restartPolicy: Never # once
- apiVersion: v1
  kind: Pod
  metadata: {name: c, annotations: {sallyport.io/inject: disabled}}
  spec: *spec
`,
	"an anchored template that another shares": `
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: a}
  spec:
    template: &template
      spec: {serviceAccountName: a, containers: [{name: app, image: a}]}
- apiVersion: apps/v1
  kind: DaemonSet
  metadata: {name: b}
  spec:
    template: *template # the same
`,
	"an item that is an alias": `
apiVersion: v1
kind: List
items:
- &pod
  apiVersion: v1
  kind: Pod
  metadata: {name: a}
  spec: {serviceAccountName: a, containers: [{name: app}]}
- *pod
`,
	"annotations that a volume claim has too": `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: a}
spec:
  template:
    metadata:
      annotations: &notes
        team: a
    spec: {serviceAccountName: a, containers: [{name: app, image: a}]}
  volumeClaimTemplates:
  - metadata:
      name: data
      annotations: *notes
`,
	"annotations that stand before the pod": `
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, annotations: &notes {team: a}}
spec:
  template:
    metadata: {annotations: *notes}
    spec: {serviceAccountName: a, containers: [{name: app, image: a}]}
`,
	"a kind that is merged": `
x-base: &base
  apiVersion: v1
  kind: Pod
  metadata: {name: a}
  spec: {serviceAccountName: a, containers: [{name: app, image: a}]}
<<: *base
`,
	"a list of merges, the first of which wins": `
apiVersion: v1
kind: Pod
x: &x {serviceAccountName: x, hostname: x}
y: &y
  serviceAccountName: y
  containers: [{name: app, image: y}]
  volumes: &volumes [{name: data, emptyDir: {}}]
metadata: {name: a}
spec:
  subdomain: a
  <<: [*x, *y, {hostname: z, nodeName: z}]
other: *volumes
`,
	"merges in merges": `
apiVersion: v1
kind: Pod
x: &x {image: x, resources: {limits: {cpu: 1}}, livenessProbe: {grpc: {port: 80}}}
y: &y
  <<: *x
  image: y
  ports: [{containerPort: 80}]
metadata: {name: a}
spec:
  serviceAccountName: a
  containers:
  - <<: *y
    name: one
  - name: two
    <<: *y
    livenessProbe: {httpGet: {port: 81}}
`,
	"a probe that two have": `
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  serviceAccountName: a
  containers:
  - name: one
    ports: [{containerPort: 80}]
    livenessProbe: &probe {httpGet: &get {port: &port 80, path: /}}
    readinessProbe: *probe
  - name: two
    ports: [{containerPort: *port}]
    startupProbe: {httpGet: *get, periodSeconds: 3}
    lifecycle: {preStop: {httpGet: *get}}
other: [*probe, *get, *port]
`,
	"a probe that goes away where it is anchored": `
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  serviceAccountName: a
  containers:
  - name: one
    ports: [{containerPort: 80}]
    livenessProbe:
      grpc: &call {port: 80}
      periodSeconds: &period 7
other: {grpc: *call, every: *period}
`,
	"an anchor that is set anew": `
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: a, labels: &l {app: a}}
  spec: &s {serviceAccountName: a, containers: [{name: app, image: a}], nodeSelector: *l}
- apiVersion: v1
  kind: Pod
  metadata: {name: b, labels: &l {app: b}}
  spec: &t {<<: *s, nodeSelector: *l, containers: &s [{name: app, image: b}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: c, labels: *l}
  spec: {<<: *t, containers: *s}
`,
	"keys and scalars": `
apiVersion: &v v1
kind: &kind Pod
metadata: {name: &name a, labels: {*name : *v, app: *name, kind: *kind}}
spec:
  serviceAccountName: *name
  containers: [{name: *name, image: *name}]
`,
	"a merge that is empty, and one that brings nothing": `
apiVersion: v1
kind: Pod
none: &none {}
same: &same {serviceAccountName: b}
metadata: {<<: *none, name: a}
spec: {<<: *same, serviceAccountName: a, containers: [{<<: *none, name: app}]}
`,
	"anchors that nothing shares, and merges without any": `
apiVersion: v1
kind: Pod
metadata: &metadata {name: a}
spec: {serviceAccountName: a, <<: {containers: [{name: app}], <<: {hostname: a}}}
`,
	"annotations that are empty, and then are not": `
apiVersion: apps/v1
kind: Deployment
metadata: {name: a}
spec:
  template:
    metadata: {annotations: &notes {}}
    spec: {serviceAccountName: a, containers: [{name: app, image: a}]}
labels:
  <<: *notes # none
more:
  # two
  <<: *notes # three
  a: b
`,
	"a Compose file": `
x-mesh: &mesh
  labels: {sallyport.io/inject: enabled, sallyport.io/token-file: /token, sallyport.io/port: "80"}
services: &services
  a: &a
    <<: *mesh
    image: a
  b:
    <<: [*mesh, {image: b}]
  c:
    image: c
    depends_on: [a]
x-old: *services
x-a: *a
`,
}

// expanded is a file with its aliases and merges written out by package yaml. false: that does not read again what it writes.
func expanded(text string) (out []byte, ok bool) {
	docs, err := split("f.yaml", text)
	if err != nil {
		return nil, false
	}
	for _, d := range docs {
		var v, again any
		if yaml.Unmarshal([]byte(d.text), &v) != nil {
			return nil, false
		}
		b, err := yaml.Marshal(v)
		if err != nil || yaml.Unmarshal(b, &again) != nil || !reflect.DeepEqual(plain(v), plain(again)) {
			return nil, false
		}
		if v != nil {
			out = Join(out, b)
		}
	}
	return out, true
}

// checkAnchors: what came of a file means the same as what comes of it when it is expanded before. false: that cannot be done.
func checkAnchors(t *testing.T, in, out []byte) bool {
	t.Helper()
	plainly, ok := expanded(string(in))
	if !ok {
		return false
	}
	want, _, err := File("f.yaml", plainly, options())
	if err != nil {
		t.Fatalf("written out, it is not taken: %v\n%s", err, plainly)
	}
	if got, want := objectsOf(t, out), objectsOf(t, want); !reflect.DeepEqual(plain(got), plain(want)) {
		t.Fatalf("this means something else:\n%s\nthan:\n%s", out, want)
	}
	return true
}

// TestAnchors: what is shared comes out as if it were written out everywhere, and uninject gives the very file back.
func TestAnchors(t *testing.T) {
	for name, in := range anchored {
		t.Run(name, func(t *testing.T) {
			out, _, err := File("f.yaml", []byte(in), options())
			if err != nil {
				t.Fatal(err)
			}
			if !checkAnchors(t, []byte(in), out) {
				t.Error("package yaml cannot expand it")
			}
			if !strings.Contains(string(out), InitContainer) && !strings.Contains(string(out), composeInit) {
				t.Errorf("nothing is injected:\n%s", out)
			}
			if twice, _, err := File("f.yaml", out, options()); err != nil || !bytes.Equal(twice, out) {
				t.Errorf("injected twice: %v\n%s", err, twice)
			}
			if back, err := FileBack("f.yaml", out); err != nil || string(back) != in {
				t.Errorf("taken out again: %v\n%s", err, back)
			}
			bare := withoutComments(out)
			back, err := FileBack("f.yaml", bare)
			if err != nil || !reflect.DeepEqual(meaning(plain(objectsOf(t, back))), meaning(plain(objectsOf(t, []byte(in))))) {
				t.Errorf("taken out again without its comments: %v\n%s", err, back)
			}
		})
	}
}

// TestAnchorsStay: where what is shared has not changed, or is the same again, it stays shared, with its comments.
func TestAnchorsStay(t *testing.T) {
	for name, want := range map[string][]string{
		"an anchored template that another shares":           {"template: &template\n", "template: *template # the same\n"},
		"an item that is an alias":                           {"- &pod\n", "- *pod\n"},
		"annotations that stand before the pod":              {"annotations: &notes {team: a}"},
		"a list of merges, the first of which wins":          {"  <<: [*x, *y, {hostname: z, nodeName: z}]\n", "other: *volumes"},
		"merges in merges":                                   {"  <<: *x\n", "  - <<: *y\n    livenessProbe: {httpGet: {path: /app-health/one/livez, port: 15021}}\n    name: one\n"},
		"keys and scalars":                                   {"serviceAccountName: *name", "[{name: *name, image: *name}]"},
		"a merge that is empty, and one that brings nothing": {"<<: *none", "<<: *same"},
		"a Compose file":                                     {"services: &services\n", "  a: &a\n    <<: *mesh\n", "<<: [*mesh, {image: b}]"},
		"an anchored pod that is merged elsewhere, and that one which opted out has": {"# once"},
	} {
		out, _, err := File("f.yaml", []byte(anchored[name]), options())
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range want {
			if !bytes.Contains(out, []byte(part)) {
				t.Errorf("%s: %q is not in\n%s", name, part, out)
			}
		}
	}
}

// TestCommentsOfAliases: where an alias is written out, its comments stay.
func TestCommentsOfAliases(t *testing.T) {
	in := `apiVersion: v1
kind: Pod
x: &app
  # The image.
  image: a # latest
  ports: [{containerPort: 80}]
y: &probe
  httpGet: {port: 80}
z: &port {port: 80} # eighty
metadata: {name: a}
spec:
  serviceAccountName: a
  containers:
  # one
  - # two
    <<: *app # three
    # four
    name: app
    # five
    livenessProbe: *probe # six
    readinessProbe: # seven
      httpGet: *port # eight
`
	out, _, err := File("f.yaml", []byte(in), options())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"The image.", "latest", "eighty", "one", "two", "three", "four", "five", "six", "seven", "eight"} {
		if !bytes.Contains(out, []byte("# "+c+"\n")) {
			t.Errorf("without %q:\n%s", c, out)
		}
	}
}

func TestAnchorsThatAreRefused(t *testing.T) {
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {serviceAccountName: a, containers: [{name: app}]}\n"
	laughs := "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 10; i++ {
		laughs += fmt.Sprintf("l%d: &l%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*l%d, ", i-1), 10), ", "))
	}
	merges := "m0: &m0 {a: 1, b: 2, c: 3}\n"
	for i := 1; i < 40; i++ {
		merges += fmt.Sprintf("m%d: &m%d {<<: *m%d, x%d: {<<: *m%d}}\n", i, i, i-1, i, i-1)
	}
	for in, want := range map[string]string{
		"---\n" + laughs + pod:                   "f.yaml:6: the document's aliases stand for more than 100000 values",
		merges + pod:                             "the document's aliases stand for more than 100000 values",
		"# c\n---\n" + pod + "x: &x [*x]\n":      `f.yaml:7: anchor "x" contains itself`,
		pod + "x: &x {<<: *x}\n":                 `f.yaml:5: anchor "x" contains itself`,
		pod + "x:\n  <<: 3\n":                    "f.yaml:6: << must have a mapping, or a list of mappings",
		pod + "x: &x [{a: 1}]\ny: {<<: *x}\n":    "f.yaml:6: << must have a mapping",
		pod + "x:\n  <<: {a: 1}\n  <<: {b: 1}\n": `f.yaml:7: mapping key "<<" already defined at line 6`,
		pod + "x: {<<: {1: a}, '1': b}\n":        "already defined",
		pod + "x: &x 1\ny: *z\n":                 "unknown anchor 'z' referenced",
	} {
		out, _, err := File("f.yaml", []byte(in), options())
		if err == nil || !strings.Contains(err.Error(), want) || out != nil {
			t.Errorf("%.300s:\n%v, want %q", in, err, want)
		}
	}
}

// FuzzWriteOut: without its aliases and merge keys a document means what it meant, and with them again, too.
func FuzzWriteOut(f *testing.F) {
	inputs, _ := filepath.Glob("testdata/*.yaml")
	for _, path := range inputs {
		in, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(in)
	}
	f.Add([]byte("a: &a {x: 1, y: &y [1]}\nb: &b {x: 2, z: *y}\nc: {<<: [*a, *b], y: 3}\nd: {<<: *a, <<: *b}\n*y : 1\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var n yaml.Node
		var was, is any
		if len(in) > 1<<16 || yaml.Unmarshal(in, &n) != nil || n.Kind == 0 || n.Decode(&was) != nil {
			return
		}
		a, err := writeOut(&n)
		if err != nil {
			return
		}
		if err := n.Decode(&is); err != nil || !reflect.DeepEqual(plain(was), plain(is)) {
			t.Errorf("%v\n%v\nwas\n%v", err, is, was)
		}
		a.fold(&n)
		is = nil
		if err := n.Decode(&is); err != nil || !reflect.DeepEqual(plain(was), plain(is)) {
			t.Errorf("folded: %v\n%v\nwas\n%v", err, is, was)
		}
	})
}
