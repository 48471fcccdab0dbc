package catalog

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const wholeFile = `
services:
- name: orders
  protocol: grpc
  instances:
  - {address: 127.0.0.1, port: 80, sidecar: {port: 21000}, weight: 3, health: critical, tags: [a], meta: {version: v1}, locality: {region: r, zone: z}}
  - {id: two, address: "::1", port: 81}
- name: payments
  namespace: money
intentions:
- {source: orders, destination: money/payments, action: allow}
- source: "*"
  destination: orders
  permissions:
  - {action: allow, pathPrefix: /a, methods: [GET], headers: [{name: X-A, exact: b, ignoreCase: true}]}
defaultIntention: deny
`

func TestParseFile(t *testing.T) {
	s, problems := ParseFile("c.yaml", []byte(wholeFile))
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	v := s.Service(Name{"default", "orders"})
	if v.Protocol != GRPC || len(v.Instances) != 2 || s.DefaultIntention != Deny || len(s.Names()) != 2 {
		t.Fatalf("%+v", s)
	}
	i := v.Instances[0]
	if i.ID != "127.0.0.1:80" || i.Healthy || i.Weight != 3 || i.Sidecar != (Endpoint{"127.0.0.1", 21000}) || i.Zone != "z" || i.Meta["version"] != "v1" {
		t.Errorf("%+v", i)
	}
	if i = v.Instances[1]; i.InMesh() || !i.Healthy || i.Weight != 1 {
		t.Errorf("%+v", i)
	}
	if in := s.Intentions[0]; in.Precedence != 9 || in.Destination != (Name{"money", "payments"}) {
		t.Errorf("%+v", in)
	}
	if p := s.Intentions[1].Permissions[0]; p.Path != (Match{Prefix, "/a"}) || p.Headers[0].Name != "x-a" {
		t.Errorf("%+v", p)
	}
	if s, problems := ParseFile("c.yaml", []byte("services: []")); problems != nil || len(s.Services) != 0 || s.DefaultIntention != "" {
		t.Errorf("an empty list: %v, %+v", problems, s)
	}
}

var wrongFiles = []struct{ text, want string }{
	{"", `c.yaml: is empty; write "services: []" for a catalog without services`},
	{"# only words\n---\n", `c.yaml: is empty; write "services: []" for a catalog without services`},
	{"services:\n", `c.yaml:1:10: services: is required; write "services: []" for a catalog without services`},
	{"defaultIntention: deny\n", `c.yaml:1:1: services: is required; write "services: []" for a catalog without services`},
	{"services: []\ndefaultIntention: alow\n", `c.yaml:2:19: defaultIntention: "alow" is not known; did you mean "allow"?`},
	{"services: 5\n", `c.yaml:1:11: services: must be a list, this is a number`},
	{"services: []\n---\nservices: []\n", `c.yaml:3:1: a catalog is one document; remove what follows "---"`},
	{"services: [{name: a b}]", `c.yaml:1:19: services[0].name: "a b" is not a name: letters, digits, dots, dashes and underscores are allowed`},
	{"services: [{name: a}, {name: a}]", `c.yaml:1:30: services[1].name: "default/a" occurs twice; list all instances under one service`},
	{"services: [{name: a, protocol: htp}]", `c.yaml:1:32: services[0].protocol: "htp" is not known; did you mean "http"?`},
	{"services: [{name: a, instances: [{address: a.b, port: 0}]}]", "c.yaml:1:44: services[0].instances[0].address: \"a.b\" is not an IP address\n" +
		"c.yaml:1:55: services[0].instances[0].port: 0 is not a port"},
	{"services: [{name: a, instances: [{address: 127.0.0.1, port: 1, weight: 0}]}]", `c.yaml:1:72: services[0].instances[0].weight: 0 is not between 1 and 65535`},
	{"services: [{name: a, instances: [{address: 127.0.0.1, port: 1}, {address: 127.0.0.1, port: 1}]}]",
		`c.yaml:1:65: services[0].instances[1]: has the same id "127.0.0.1:1" as services[0].instances[0]; give each instance an id of its own`},
	{"services: [{name: a, protocol: tcp}]\nintentions: [{source: '*', destination: a, permissions: [{action: allow}]}]",
		`c.yaml:2:57: intentions[0].permissions: default/a speaks tcp, whose requests cannot be told apart; set action instead`},
	{"services: []\nintentions: [{source: a, destination: b}]", `c.yaml:2:14: intentions[0].action: "" is not known; known: allow, deny`},
	{"services: []\nintentions: [{source: a, destination: b, permissions: []}]", `c.yaml:2:55: intentions[0].permissions: is empty; set action instead`},
	{"services: []\nintentions: [{source: a, destination: b, action: allow, permissions: [{action: deny}]}]",
		`c.yaml:2:70: intentions[0].permissions: cannot be together with action: each permission has its own`},
	{"services: []\nintentions: [{source: a, destination: b, permissions: [{action: deny, path: a, pathRegex: '('}]}]",
		"c.yaml:2:77: intentions[0].permissions[0].path: \"a\" must begin with /\n" +
			"c.yaml:2:91: intentions[0].permissions[0].pathRegex: \"(\" is not a regular expression: error parsing regexp: missing closing ): `(`\n" +
			"c.yaml:2:56: intentions[0].permissions[0]: only one of path, pathPrefix and pathRegex may be set"},
	{"services: []\nintentions: [{source: a, destination: b, permissions: [{action: deny, headers: [{name: x}]}]}]",
		`c.yaml:2:81: intentions[0].permissions[0].headers[0]: needs exactly one of exact, prefix, suffix, contains, regex, present`},
	{"services: [{nam: a}]", `c.yaml:1:13: services[0].nam: unknown field; did you mean "name"?`},
	{strings.Repeat("[", 100_000), `c.yaml: is not YAML: exceeded max depth of 10000`},
	{"services: &a [*a]", `c.yaml:1:11: services[0]: must be a mapping (key: value), this is a list`},
}

func TestWrongFilesAreRefusedByFileLineAndField(t *testing.T) {
	for _, x := range wrongFiles {
		s, problems := ParseFile("c.yaml", []byte(x.text))
		if got := problems.Error(); got != x.want || s != nil {
			t.Errorf("%q\ngot  %s\nwant %s", x.text, got, x.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(wholeFile))
	f.Add([]byte("services: &a [*a]"))
	f.Add([]byte(strings.Repeat("[", 200)))
	for _, x := range wrongFiles {
		if len(x.text) < 1000 {
			f.Add([]byte(x.text))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, problems := ParseFile("c.yaml", data)
		if (s == nil) == (len(problems) == 0) {
			t.Fatalf("neither refused nor read, or both: %v, %v", s, problems)
		}
		for _, p := range problems {
			if text := p.Error(); !strings.HasPrefix(text, "c.yaml:") {
				t.Errorf("a problem without its file: %q", text)
			}
		}
		if s == nil {
			return
		}
		for n, v := range s.Services {
			if n != v.Name || n.Name == "" || n.Namespace == "" {
				t.Errorf("%q is named %q", n, v.Name)
			}
			for _, i := range v.Instances {
				if !addr(i.Address).IsValid() || i.Port < 1 || i.Port > 65535 || i.Weight < 1 {
					t.Errorf("an instance that cannot be: %+v", i)
				}
			}
		}
		for _, in := range s.Intentions {
			if (in.Action == "") == (len(in.Permissions) == 0) || in.Precedence < 1 {
				t.Errorf("an intention that decides nothing: %+v", in)
			}
		}
	})
}

// record is a log that can be waited for.
type record struct {
	mu    sync.Mutex
	lines bytes.Buffer
	more  chan struct{}
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines.Write(b)
	select {
	case r.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (r *record) await(t *testing.T, text string) string {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		r.mu.Lock()
		all := r.lines.String()
		r.mu.Unlock()
		if strings.Contains(all, text) {
			return all
		}
		select {
		case <-r.more:
		case <-deadline:
			t.Fatalf("the log lacks %q:\n%s", text, all)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const goodFile = "services:\n- name: orders\n  instances: [{address: 127.0.0.1, port: 80}]\n"

func TestAFileIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	log := &record{more: make(chan struct{}, 1)}
	f := NewFile(path, 10*time.Millisecond, slog.New(slog.NewTextHandler(log, nil)))
	ch := follow(t, f)

	log.await(t, "cannot be opened") // there is none yet: it is waited for
	write(t, path, "services:\n- {name: a b}\n- {name: c, protocol: htp}\n")
	log.await(t, "a b")
	if all := log.await(t, "htp"); strings.Count(all, "is not a name") != 1 || strings.Count(all, "did you mean") != 1 {
		t.Errorf("not one line for each problem:\n%s", all)
	}
	if len(ch) != 0 || f.Status().Loaded || f.Status().Connected {
		t.Errorf("a wrong file was published: %+v", f.Status())
	}

	write(t, path, goodFile)
	if s := receive(t, ch); !has("orders")(s) {
		t.Fatalf("%v", s.Names())
	}
	log.await(t, "right again")
	if s := f.Status(); !s.Connected || !s.Loaded || s.Error != "" || s.LastError == "" {
		t.Errorf("%+v", s)
	}

	write(t, path, "") // cut off: an editor, or a writer's first step
	log.await(t, "is empty")

	// Replaced as a whole, by something else.
	write(t, path+".new", strings.ReplaceAll(goodFile, "orders", "orderz"))
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if s := receive(t, ch); !has("orderz")(s) {
		t.Fatalf("%v", s.Names())
	}

	// Written in place with the same size and time.
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, goodFile)
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if s := receive(t, ch); !has("orders")(s) {
		t.Fatalf("%v", s.Names())
	}

	// Another text that means the same is not published.
	write(t, path, "# a word\n"+goodFile)
	write(t, path+".new", strings.ReplaceAll(goodFile, "orders", "last"))
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if s := receive(t, ch); !has("last")(s) {
		t.Fatalf("%v", s.Names())
	}
}
