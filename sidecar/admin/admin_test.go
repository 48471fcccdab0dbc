package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/sidecar/metric"
	"sallyport/sidecar/upstream"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// fixture is an admin page over things of a test.
type fixture struct {
	*Server
	t      *testing.T
	state  string
	lacks  string
	called []string
	level  string
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, state: "LIVE"}
	m := metric.NewRegistry(0)
	clusters := upstream.NewRegistry(nil, m, quiet)
	b := upstream.Breakers{Connections: 1, Pending: 2, Requests: 3, Retries: 4}
	clusters.Set(&upstream.Config{Name: "orders", StatName: "orders", Hash: 1, Breakers: [2]upstream.Breakers{b, b}, Endpoints: []upstream.Endpoint{
		{Address: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 2, Zone: "z1"},
		{Address: netip.MustParseAddrPort("[fd00::1]:81"), Health: upstream.Draining, Priority: 1},
		{Path: "/run/app.sock", Hostname: "app"},
	}})
	t.Cleanup(clusters.Close)
	m.Single("http.ingress.rbac.allowed").Inc()
	one, err := anypb.New(wrapperspb.String("resource"))
	if err != nil {
		t.Fatal(err)
	}
	call := func(name string) func() { return func() { f.called = append(f.called, name) } }
	f.Server = &Server{log: quiet, src: Source{
		Metrics: m, Clusters: clusters.Clusters, State: func() string { return f.state }, Unready: func() string { return f.lacks },
		ConfigDump: func() *adminv3.ConfigDump { return &adminv3.ConfigDump{Configs: []*anypb.Any{one}} },
		Warnings:   func() []string { return []string{"listener l: field f is not implemented"} },
		Listeners: func() map[string][]string {
			return map[string][]string{"b": {"127.0.0.1:2"}, "a": {"127.0.0.1:1", "[::1]:1"}}
		},
		Certificates: func() any { return []map[string]string{{"spiffe_id": "spiffe://x/y"}} },
		Drain:        call("drain"), Quit: call("quit"),
		SetLevel: func(l string) error {
			if l != "debug" {
				return errors.New("no such level <" + l + ">")
			}
			f.level = l
			return nil
		},
		Version: "1.2", Node: `<script>alert("node")</script>`, Started: time.Now().Add(-90 * time.Second),
	}}
	f.pages = f.list()
	return f
}

// do asks the page; headers are "Name: value".
func (f *fixture) do(method, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	r.Host = "127.0.0.1:9901"
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			r.Host = value
		} else {
			r.Header.Set(name, value)
		}
	}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w
}

func TestPages(t *testing.T) {
	f := newFixture(t)
	for path, want := range map[string]string{
		"/ready":                    "LIVE\n",
		"/certs":                    `"spiffe_id": "spiffe://x/y"`,
		"/clusters":                 "orders::10.0.0.1:80::health_flags::healthy\n",
		"/clusters?x=1":             "orders::[fd00::1]:81::health_flags::/eds_status_draining\n",
		"/config_dump":              `"value"`,
		"/listeners":                "a::127.0.0.1:1\na::[::1]:1\nb::127.0.0.1:2\n",
		"/listeners?format=json":    `"b": [`,
		"/memory":                   `"goroutines"`,
		"/server_info":              `"uptime_current_epoch": "90s"`,
		"/stats":                    "http.ingress.rbac.allowed: 1\n",
		"/stats?format=prometheus":  "envoy_http_rbac_allowed{",
		"/stats/prometheus":         "envoy_http_rbac_allowed{",
		"/warnings":                 "listener l: field f is not implemented\n",
		"/debug/pprof/":             "goroutine",
		"/debug/pprof/heap?debug=1": "heap profile",
		"/debug/pprof/symbol":       "num_symbols",
		"/":                         "<h1>sallyport</h1>",
		"/help":                     "<h1>sallyport</h1>",
	} {
		w := f.do("GET", path)
		if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %.300q, want %q", path, w.Code, w.Body, want)
		}
		if h := w.Header(); h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Content-Type") == "" || strings.Contains(h.Get("Content-Type"), "html") && !slices.Contains([]string{"/", "/help", "/debug/pprof/"}, path) {
			t.Errorf("%s: headers %v", path, h)
		}
	}
	for _, p := range f.pages {
		if strings.HasPrefix(p.path, profiles) {
			continue // a profile takes its time
		}
		if w := f.do("GET", p.path); p.post != (w.Code == 405) || !p.post && w.Code != 200 {
			t.Errorf("%s: %d", p.path, w.Code)
		}
	}
}

func TestProfilesAreReached(t *testing.T) {
	w := newFixture(t).do("GET", "/debug/pprof/trace?seconds=0.01")
	if w.Code != 200 || !bytes.HasPrefix(w.Body.Bytes(), []byte("go 1.")) {
		t.Errorf("%d %.40q", w.Code, w.Body)
	}
}

func TestTheCommandLineIsNotShown(t *testing.T) {
	// --token of the command line is a secret.
	if w := newFixture(t).do("GET", "/debug/pprof/cmdline"); w.Code != 404 {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestUnknownPages(t *testing.T) {
	f := newFixture(t)
	for _, path := range []string{"/nope", "/stats/", "/ready/x", "//ready", "/debug", "/debug/pprof/nope", "/../ready"} {
		if w := f.do("GET", path); w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func TestNotReady(t *testing.T) {
	for _, c := range []struct {
		name, state, lacks, want string
		code                     int
	}{
		{"before it is ready for the first time", "INITIALIZING", "waiting for the first configuration", "INITIALIZING\nwaiting for the first configuration\n", 503},
		{"ready", "LIVE", "", "LIVE\n", 200},
		{"no longer ready, though it serves what it can", "LIVE", "identity has expired", "NOT READY\nidentity has expired\n", 503},
		{"about to end", "DRAINING", "draining", "DRAINING\ndraining\n", 503},
	} {
		f := newFixture(t)
		f.state, f.lacks = c.state, c.lacks
		if w := f.do("GET", "/ready"); w.Code != c.code || w.Body.String() != c.want {
			t.Errorf("%s: %d %q", c.name, w.Code, w.Body)
		}
	}
}

func TestWhatChangesNeedsPOST(t *testing.T) {
	for _, path := range []string{"/quitquitquit", "/drain_listeners", "/logging?level=debug"} {
		for _, method := range []string{"GET", "HEAD", "PUT", "OPTIONS"} {
			f := newFixture(t)
			if w := f.do(method, path); w.Code != 405 || w.Header().Get("Allow") != "POST" || len(f.called) > 0 || f.level != "" {
				t.Errorf("%s %s: %d, called %v", method, path, w.Code, f.called)
			}
		}
		for _, h := range []string{"Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Sec-Fetch-Site: whatever"} {
			f := newFixture(t)
			if w := f.do("POST", path, h); w.Code != 403 || len(f.called) > 0 || f.level != "" {
				t.Errorf("POST %s with %s: %d, called %v", path, h, w.Code, f.called)
			}
		}
		f := newFixture(t)
		if w := f.do("POST", path, "Sec-Fetch-Site: none"); w.Code != 200 || w.Body.String() != "OK\n" || len(f.called) == 0 && f.level == "" {
			t.Errorf("POST %s: %d %q, called %v", path, w.Code, w.Body, f.called)
		}
	}
}

func TestReadingNeedsGET(t *testing.T) {
	f := newFixture(t)
	for _, path := range []string{"/", "/stats", "/config_dump", "/ready"} {
		for _, method := range []string{"POST", "DELETE", "OPTIONS"} {
			if w := f.do(method, path); w.Code != 405 || w.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d", method, path, w.Code)
			}
		}
		if w := f.do("HEAD", path); w.Code != 200 {
			t.Errorf("HEAD %s: %d", path, w.Code)
		}
	}
}

// TestOtherSitesNamesAreRefused: a site may have its name resolve to
// 127.0.0.1, and its pages then read what answers there (DNS rebinding).
func TestOtherSitesNamesAreRefused(t *testing.T) {
	f := newFixture(t)
	f.loopback = true
	for host, want := range map[string]int{"127.0.0.1:9901": 200, "localhost:9901": 200, "LOCALHOST": 200, "[::1]:9901": 200, "::1": 200, "": 200,
		"evil.example:9901": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example": 421} {
		if w := f.do("GET", "/config_dump", "Host: "+host); w.Code != want {
			t.Errorf("host %q: %d, want %d", host, w.Code, want)
		}
	}
	f.loopback = false // scraped by name, on purpose
	if w := f.do("GET", "/stats/prometheus", "Host: sidecar.mesh:9901"); w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
}

func TestNothingOfTheConfigurationIsMarkup(t *testing.T) {
	f := newFixture(t)
	f.state = "<b>state</b>"
	body := f.do("GET", "/").Body.String()
	if strings.Contains(body, "<script>") || strings.Contains(body, "<b>") || !strings.Contains(body, "&lt;script&gt;alert(&#34;node&#34;)") {
		t.Errorf("%.300s", body)
	}
	if body := f.do("GET", "/server_info").Body.String(); strings.Contains(body, "<script>") {
		t.Errorf("%s", body)
	}
	w := f.do("POST", "/logging?level=%3Cscript%3E")
	if w.Code != 400 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

func TestStatsFilter(t *testing.T) {
	f := newFixture(t)
	body := f.do("GET", `/stats?filter=^cluster\.orders\.membership`).Body.String()
	if body != "cluster.orders.membership_change: 1\ncluster.orders.membership_healthy: 2\ncluster.orders.membership_total: 3\n" {
		t.Error(body)
	}
	if body := f.do("GET", "/stats?usedonly&filter=upstream_rq").Body.String(); body != "" {
		t.Error(body)
	}
	if w := f.do("GET", "/stats?filter=("); w.Code != 400 {
		t.Errorf("%d", w.Code)
	}
}

func TestClustersAsEnvoysJSON(t *testing.T) {
	var m adminv3.Clusters
	w := newFixture(t).do("GET", "/clusters?format=json")
	if err := protojson.Unmarshal(w.Body.Bytes(), &m); err != nil || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%v: %s", err, w.Body)
	}
	c := m.GetClusterStatuses()[0]
	if c.GetName() != "orders" || len(c.GetHostStatuses()) != 3 || c.GetCircuitBreakers().GetThresholds()[1].GetMaxRetries().GetValue() != 4 {
		t.Fatalf("%v", c)
	}
	h := c.GetHostStatuses()
	if a := h[0].GetAddress().GetSocketAddress(); a.GetAddress() != "10.0.0.1" || a.GetPortValue() != 80 || h[0].GetWeight() != 2 || h[0].GetLocality().GetZone() != "z1" || h[0].GetHealthStatus().GetEdsHealthStatus().String() != "HEALTHY" {
		t.Errorf("%v", h[0])
	}
	if a := h[1].GetAddress().GetSocketAddress(); a.GetAddress() != "fd00::1" || h[1].GetHealthStatus().GetEdsHealthStatus().String() != "DRAINING" || h[1].GetPriority() != 1 {
		t.Errorf("%v", h[1])
	}
	if h[2].GetAddress().GetPipe().GetPath() != "/run/app.sock" || h[2].GetHostname() != "app" {
		t.Errorf("%v", h[2])
	}
}

func TestPrometheusIsParsed(t *testing.T) {
	p := expfmt.NewTextParser(model.UTF8Validation)
	m, err := p.TextToMetricFamilies(newFixture(t).do("GET", "/stats/prometheus").Body)
	if err != nil || m["envoy_cluster_membership_total"] == nil {
		t.Errorf("%v, %d families", err, len(m))
	}
}

func TestJSONPagesAreJSON(t *testing.T) {
	f := newFixture(t)
	for _, path := range []string{"/certs", "/config_dump", "/memory", "/server_info", "/listeners?format=json", "/clusters?format=json"} {
		if w := f.do("GET", path); !json.Valid(w.Body.Bytes()) || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: %v %s", path, w.Header(), w.Body)
		}
	}
}

func (f *fixture) listen(address string, log *slog.Logger) *Server {
	f.t.Helper()
	s, err := Listen(address, f.src, log)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { s.Close() })
	return s
}

func TestListenOnTCP(t *testing.T) {
	f := newFixture(t)
	var told bytes.Buffer
	s := f.listen("127.0.0.1:0", slog.New(slog.NewTextHandler(&told, nil)))
	resp, err := http.Get("http://" + s.Addr().String() + "/ready")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || told.Len() != 0 || !s.loopback {
		t.Errorf("%d, told %q", resp.StatusCode, told.String())
	}
	if _, err := Listen(s.Addr().String(), f.src, quiet); err == nil || !strings.Contains(err.Error(), s.Addr().String()) {
		t.Errorf("a port in use: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("the page is open after Close")
	}
}

func TestListenOnAUnixSocket(t *testing.T) {
	f := newFixture(t)
	path := filepath.Join(t.TempDir(), "admin.sock")
	// What a process that was killed left behind.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	s := f.listen("unix:"+path, quiet)
	if i, err := os.Stat(path); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", i.Mode(), err)
	}
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	defer c.CloseIdleConnections()
	resp, err := c.Get("http://any.name/ready")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	if _, err := Listen("unix:"+path, f.src, quiet); err == nil {
		t.Error("the socket of a page that answers was taken away")
	}
	if s.Addr().String() != path {
		t.Error(s.Addr())
	}
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:"+plain, f.src, quiet); err == nil {
		t.Error("listens where a file is")
	}
	if b, err := os.ReadFile(plain); err != nil || string(b) != "keep" {
		t.Error("a file was taken away for a socket")
	}
}

func TestAPanicInAPageIsItsOwn(t *testing.T) {
	f := newFixture(t)
	f.src.Warnings = func() []string { panic("a mistake of ours") }
	if w := f.do("GET", "/warnings"); w.Code != 500 || strings.Contains(w.Body.String(), ".go:") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := f.do("GET", "/ready"); w.Code != 200 {
		t.Errorf("%d after it", w.Code)
	}
}
