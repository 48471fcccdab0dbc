package probe

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func port(t *testing.T, a net.Addr) int32 {
	t.Helper()
	return int32(a.(*net.TCPAddr).Port)
}

func start(t *testing.T, o Options) string {
	t.Helper()
	o.Address, o.Log = "127.0.0.1:0", slog.New(slog.DiscardHandler)
	s, err := Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return "http://" + s.Addr().String()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func TestReady(t *testing.T) {
	lacks := "waiting for listeners"
	url := start(t, Options{Unready: func() string { return lacks }})
	if status, body := get(t, url+"/healthz/ready"); status != 503 || !strings.Contains(body, "waiting for listeners") {
		t.Errorf("%d %q", status, body)
	}
	lacks = ""
	if status, _ := get(t, url+"/healthz/ready"); status != 200 {
		t.Errorf("%d", status)
	}
	if status, _ := get(t, url+"/healthz/live"); status != 200 {
		t.Errorf("%d", status)
	}
	if status, _ := get(t, url+"/stats"); status != 404 {
		t.Errorf("the health port shows more than health: %d", status)
	}
}

// TestProbes makes each kind against an application that is well, that is not, and that is not there.
func TestProbes(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			fmt.Fprintf(w, "%s %s %s", r.Host, r.Header.Get("X-Probe"), r.UserAgent())
		case "/moved":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/round":
			http.Redirect(w, r, "/round", http.StatusFound)
		case "/elsewhere":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case "/large":
			_, _ = w.Write(make([]byte, 1<<20))
		case "/unmodified":
			w.WriteHeader(http.StatusNotModified)
		default:
			http.Error(w, "broken", http.StatusInternalServerError)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g, h := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(g, h)
	h.SetServingStatus("orders", grpc_health_v1.HealthCheckResponse_SERVING)
	h.SetServingStatus("ill", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	go func() { _ = g.Serve(l) }()
	defer g.Stop()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := port(t, gone.Addr())
	gone.Close()

	web, tls, rpc := port(t, plain.Listener.Addr()), port(t, secure.Listener.Addr()), port(t, l.Addr())
	cases := []struct {
		name   string
		probe  Probe
		status int
		body   string
	}{
		{"http", Probe{HTTP: &HTTPGet{Path: "/ok", Port: web, Headers: []Header{{"Host", "orders.example"}, {"X-Probe", "yes"}}}}, 200, "orders.example yes Go-http-client/1.1"},
		{"http without a slash", Probe{HTTP: &HTTPGet{Path: "ok", Port: web}}, 200, ""},
		{"https", Probe{HTTP: &HTTPGet{Path: "/ok", Port: tls, Scheme: "HTTPS"}}, 200, ""},
		{"http fails", Probe{HTTP: &HTTPGet{Path: "/", Port: web}}, 500, "broken"},
		{"http redirected", Probe{HTTP: &HTTPGet{Path: "/moved", Port: web}}, 200, ""},
		{"http redirected for ever", Probe{HTTP: &HTTPGet{Path: "/round", Port: web}}, 503, "redirects"},
		{"http redirected to another host", Probe{HTTP: &HTTPGet{Path: "/elsewhere", Port: web}}, 200, ""},
		{"http not modified", Probe{HTTP: &HTTPGet{Path: "/unmodified", Port: web}}, 200, ""},
		{"http gone", Probe{HTTP: &HTTPGet{Path: "/ok", Port: nobody}}, 503, "refused"},
		{"http to a host", Probe{HTTP: &HTTPGet{Path: "/ok", Port: web, Host: "localhost"}}, 200, ""},
		{"tcp", Probe{TCP: &TCPSocket{Port: web}}, 200, ""},
		{"tcp gone", Probe{TCP: &TCPSocket{Port: nobody}}, 503, "refused"},
		{"grpc", Probe{GRPC: &GRPC{Port: rpc, Service: "orders"}}, 200, ""},
		{"grpc not serving", Probe{GRPC: &GRPC{Port: rpc, Service: "ill"}}, 503, "NOT_SERVING"},
		{"grpc unknown", Probe{GRPC: &GRPC{Port: rpc, Service: "nobody"}}, 503, "NotFound"},
		{"grpc gone", Probe{GRPC: &GRPC{Port: nobody}}, 503, ""},
	}
	probes := map[string]Probe{"/app-health/app/large": {HTTP: &HTTPGet{Path: "/large", Port: web}}}
	for i, c := range cases {
		if err := c.probe.check(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		probes[fmt.Sprintf("/app-health/app/%d", i)] = c.probe
	}
	url := start(t, Options{Probes: probes})
	for i, c := range cases {
		status, body := get(t, fmt.Sprintf("%s/app-health/app/%d", url, i))
		if status != c.status || !strings.Contains(body, c.body) {
			t.Errorf("%s: %d %q, want %d with %q", c.name, status, body, c.status, c.body)
		}
	}
	if status, body := get(t, url+"/app-health/app/large"); status != 200 || len(body) != maxAnswer {
		t.Errorf("of a large answer: %d, %d bytes, want %d", status, len(body), maxAnswer)
	}
	if status, _ := get(t, url+"/app-health/app/none"); status != 404 {
		t.Errorf("a probe that is not known: %d", status)
	}
	r, err := http.Post(url+"/app-health/app/0", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != 405 {
		t.Errorf("POST: %d", r.StatusCode)
	}
}

func TestParse(t *testing.T) {
	got, err := Parse(`{"/app-health/app/livez": {"httpGet": {"path": "/", "port": 8080, "scheme": "HTTPS", "httpHeaders": [{"name": "a", "value": "b"}]}, "timeoutSeconds": 3},
		"/app-health/app/readyz": {"tcpSocket": {"port": 8080}}, "/app-health/db/startupz": {"grpc": {"port": 9, "service": "s"}}}`)
	if err != nil || len(got) != 3 || got["/app-health/app/livez"].Timeout != 3 || got["/app-health/db/startupz"].GRPC.Service != "s" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := Parse(""); got != nil || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	for text, want := range map[string]string{
		`{`: "unexpected EOF",
		`{"/app-health/a/b": {"tcpSocket": {"port": 1}}} {}`:                    "follows",
		`{"/other": {"tcpSocket": {"port": 1}}}`:                                "must begin with /app-health/",
		`{"/app-health/a/b": {}}`:                                               "exactly one",
		`{"/app-health/a/b": {"exec": {}}}`:                                     "unknown field",
		`{"/app-health/a/b": {"tcpSocket": {"port": 1}, "grpc": {"port": 1}}}`:  "exactly one",
		`{"/app-health/a/b": {"tcpSocket": {"port": 70000}}}`:                   "from 1 to 65535",
		`{"/app-health/a/b": {"tcpSocket": {"port": "http"}}}`:                  "cannot unmarshal",
		`{"/app-health/a/b": {"tcpSocket": {"port": 1}, "timeoutSeconds": -1}}`: "must not be negative",
		`{"/app-health/a/b": {"httpGet": {"port": 1, "scheme": "FTP"}}}`:        "must be HTTP or HTTPS",
		`{"/app-health/a/b": {"httpGet": {"port": 1, "path": "/%zz"}}}`:         "httpGet.path",
		strings.Repeat(" ", maxText+1):                                          "at most",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), Environment) {
			t.Errorf("%.80s: %v, want %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"/app-health/app/livez": {"httpGet": {"path": "/", "port": 8080}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		probes, err := Parse(text)
		if err != nil {
			return
		}
		for path, p := range probes {
			if !strings.HasPrefix(path, Prefix) || p.check() != nil || p.timeout() <= 0 {
				t.Errorf("%q is taken: %+v", path, p)
			}
		}
	})
}

func TestAPanicInAProbeIsItsOwn(t *testing.T) {
	url := start(t, Options{Unready: func() string { panic("a mistake of ours") }})
	for range 2 {
		if status, body := get(t, url+"/healthz/ready"); status != 500 || strings.Contains(body, ".go:") {
			t.Errorf("%d %s", status, body)
		}
	}
}
