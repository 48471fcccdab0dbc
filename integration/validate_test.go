package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/integration/harness"
)

func small(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("testdata/small.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestValidBootstrap(t *testing.T) {
	one := harness.NewBackend(t, "one").HTTP1()
	if ok, said := harness.NewSidecar(t).Bootstrap(small(t)).Backend("one", one).Validate(); !ok {
		t.Errorf("refused: %s", said)
	}
	p := harness.NewSidecar(t).Bootstrap(small(t)).Backend("one", one).Run()
	if m := harness.Get(t, p.Addr("http"), "/"); m.Status() != 200 || string(m.Body) != "one" {
		t.Errorf("%s", m.String())
	}
	if code := p.Stop(20 * time.Second); code != 0 {
		t.Errorf("SIGTERM: exit %d", code)
	}
}

// spoiled is a bootstrap with one mistake. "HERE" marks the line that the error must name.
type spoiled struct {
	name     string
	old, new string   // of small.yaml
	says     []string // besides the file and the line
	envoy    bool     // Envoy refuses it too
}

const mark = " # HERE"

var mistakes = []spoiled{
	{"a key with a typo names the nearest", "        address: 127.0.0.1", "        adress: 127.0.0.1" + mark, []string{"adress", "address", "static_resources.listeners[0].address.socket_address"}, true},
	{"a key at the top with a typo", "static_resources:", "static_resource:" + mark, []string{"static_resource", "static_resources"}, true},
	{"a key inside a typed config", "          stat_prefix: http", "          stat_prefx: http" + mark, []string{"stat_prefx", "stat_prefix"}, true},
	{"an enum value with a typo", "    type: STATIC", "    type: STATTIC" + mark, []string{"STATTIC", "STATIC", "clusters[0].type"}, true},
	{"text where a number belongs", "        port_value: ${listen.http}", "        port_value: eighty" + mark, []string{"eighty", "port_value"}, true},
	{"a port over 65535", "        port_value: ${listen.http}", "        port_value: 70000" + mark, []string{"port_value", "65535"}, true},
	{"a duration without a unit", "    connect_timeout: 1s", "    connect_timeout: 5" + mark, []string{"connect_timeout", "5s"}, true},
	{"a type that does not exist", `              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router`,
		`              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Routr` + mark, []string{"envoy.extensions.filters.http.router.v3.", "Router"}, true},
	{"a filter that is not implemented", "          http_filters:\n", "          http_filters:\n          - name: source\n            typed_config:" + mark2 + "\n              \"@type\": type.googleapis.com/envoy.extensions.filters.http.original_src.v3.OriginalSrc" + mark + "\n",
		[]string{"envoy.extensions.filters.http.original_src.v3.OriginalSrc"}, false},
	{"a cluster that does not exist", "                route: {cluster: one}", "                route: {cluster: onne}" + mark, []string{"onne", "one"}, true},
	{"two clusters of one name", "  clusters:\n", "  clusters:\n  - {name: one, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: one}}\n", []string{`one`}, true},
	{"a filter after the router", "          route_config:\n", "          - name: late\n            typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}\n          route_config:\n",
		[]string{"router"}, true},
	{"a list where a mapping belongs", "    load_assignment:\n", "    common_lb_config: [1]" + mark + "\n    load_assignment:\n", []string{"common_lb_config"}, true},
	{"a mapping that is not closed", `domains: ["*"]`, `domains: ["*"`, nil, true},
	{"a regular expression that is none", "              - match: {prefix: /}", `              - match: {safe_regex: {regex: "a("}}` + mark, []string{"a(", "regex"}, true},
	{"a certificate that is not there", "    - filters:\n", "    - transport_socket:\n        name: envoy.transport_sockets.tls\n        typed_config:\n" +
		"          \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n" +
		"          common_tls_context: {tls_certificates: [{certificate_chain: {filename: /nowhere/cert.pem}, private_key: {filename: /nowhere/key.pem}}]}" + mark3 + "\n      filters:\n",
		[]string{"/nowhere/cert.pem", "no such file"}, true},
}

// Comments that only make a text of the table unique.
const mark2, mark3 = " # the type stands below", " # not there"

func TestBadInput(t *testing.T) {
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			text := small(t)
			if strings.Count(text, m.old) != 1 {
				t.Fatalf("%q occurs %d times in small.yaml", m.old, strings.Count(text, m.old))
			}
			text = strings.Replace(text, m.old, m.new, 1)
			if m.envoy && harness.Envoy.Path() != "" {
				if ok, _ := harness.NewEnvoy(t).Bootstrap(text).At("one", "127.0.0.1:1").Validate(); ok {
					t.Error("Envoy accepts it; is it a mistake at all?")
				}
			}
			ok, said := harness.NewSidecar(t).Bootstrap(text).At("one", "127.0.0.1:1").Validate()
			if ok {
				t.Fatalf("accepted: %s", said)
			}
			where := "bootstrap.yaml"
			if line := lineOf(text, mark); line > 0 {
				where = fmt.Sprintf("bootstrap.yaml:%d:", line)
			}
			// What one mistake causes elsewhere may have lines of its own, which say where as well.
			lines := strings.Split(strings.TrimSpace(said), "\n")
			oneLine(t, lines[0], append([]string{where}, m.says...)...)
			if len(lines) > 3 {
				t.Errorf("%d lines for one mistake:\n%s", len(lines), said)
			}
			for _, line := range lines[1:] {
				oneLine(t, line, "bootstrap.yaml:")
			}
		})
	}
}

func lineOf(text, mark string) int {
	before, _, found := strings.Cut(text, mark)
	if !found {
		return 0
	}
	return strings.Count(before, "\n") + 1
}

// oneLine checks that what a program said is one line that has every part, and none of Go's own noise.
func oneLine(t *testing.T, said string, parts ...string) {
	t.Helper()
	said = strings.TrimSpace(said)
	if said == "" || strings.Contains(said, "\n") {
		t.Errorf("an error should be one line:\n%s", said)
	}
	for _, p := range parts {
		if !strings.Contains(said, p) {
			t.Errorf("the error does not name %q:\n%s", p, said)
		}
	}
	noNoise(t, said)
}

func noNoise(t *testing.T, said string) {
	t.Helper()
	for _, noise := range []string{"panic", "goroutine ", ".go:", "0xc0"} {
		if strings.Contains(said, noise) {
			t.Errorf("the error shows %q:\n%s", noise, said)
		}
	}
}

func TestBadCommandLine(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret.yaml")
	if err := os.WriteFile(secret, []byte(small(t)), 0); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ args, says []string }{
		"a file that is not there":      {[]string{"sidecar", "-c", filepath.Join(dir, "none.yaml")}, []string{"none.yaml", "no such file"}},
		"a folder for a file":           {[]string{"sidecar", "-c", dir}, []string{dir, "directory"}},
		"neither a file nor a service":  {[]string{"sidecar"}, []string{"-c"}},
		"a flag that does not exist":    {[]string{"sidecar", "--no-such-flag"}, []string{"--no-such-flag"}},
		"a command that does not exist": {[]string{"sidcar"}, []string{"sidcar"}},
		"a mode that does not exist":    {[]string{"sidecar", "-c", "/dev/null", "--mode", "dance"}, []string{"dance", "validate"}},
		"a concurrency that is none":    {[]string{"sidecar", "-c", "/dev/null", "--concurrency", "many"}, []string{"many", "concurrency"}},
		"a catalog that is not there":   {[]string{"control-plane", "--catalog", filepath.Join(dir, "none.yaml"), "--policies", dir, "--listen", "127.0.0.1:0", "--state", dir}, []string{"none.yaml"}},
	} {
		t.Run(name, func(t *testing.T) {
			out := harness.Run(t, c.args...)
			said := out.Stderr
			if out.Code == 0 {
				t.Errorf("exit 0: %s%s", out.Stdout, said)
			}
			if !slices.ContainsFunc(strings.Split(said, "\n"), func(line string) bool {
				return !slices.ContainsFunc(c.says, func(part string) bool { return !strings.Contains(line, part) })
			}) {
				t.Errorf("no line names %q:\n%s", c.says, said)
			}
			noNoise(t, said)
		})
	}
	t.Run("a file without permission", func(t *testing.T) {
		if os.Geteuid() == 0 {
			harness.NotRun(t, "root may read every file")
		}
		out := harness.Run(t, "sidecar", "-c", secret, "--mode", "validate")
		if out.Code == 0 {
			t.Error("exit 0")
		}
		oneLine(t, out.Stderr, secret, "permission denied")
	})
}

// TestPortInUse: whoever starts a proxy on a taken port learns which, and the proxy does not run on half its listeners.
func TestPortInUse(t *testing.T) {
	taken := harness.NewBackend(t, "taken").HTTP1()
	for name, spoil := range map[string]string{"of a listener": "${listen.http}", "of the admin page": "${admin}"} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(small(t), spoil, fmt.Sprint(taken.Port()), 1)
			p := harness.NewSidecar(t).Bootstrap(text).At("one", "127.0.0.1:1").Start()
			if code := p.WaitExit(10 * time.Second); code <= 0 {
				t.Errorf("exit %d", code)
			}
			said := p.Log()
			if !strings.Contains(said, taken.Addr()) || !strings.Contains(said, "in use") {
				t.Errorf("the error does not name %s as in use:\n%s", taken.Addr(), said)
			}
			noNoise(t, said)
		})
	}
}

// TestFileRemovedAfterStart: a sidecar that was started keeps serving whatever becomes of its file.
func TestFileRemovedAfterStart(t *testing.T) {
	one := harness.NewBackend(t, "one").HTTP1()
	b := harness.NewSidecar(t).Bootstrap(small(t)).Backend("one", one)
	p := b.Run()
	if err := os.Remove(b.File()); err != nil {
		t.Fatal(err)
	}
	if m := harness.Get(t, p.Addr("http"), "/"); m.Status() != 200 {
		t.Errorf("%s", m.String())
	}
}
