package listener

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/ring/ringtest"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/upstream"
)

// engine is a data plane of one worker with one listener, for tests.
type engine struct {
	t        testing.TB
	worker   *loop.Worker
	byHand   bool // the test steps the worker
	clusters *upstream.Registry
	server   *Server
	metrics  *metric.Registry
	manager  *stream.Manager
	cluster  *upstream.Config
	chain    *Chain
	cfg      *Config
	tls      ServerTLS // of the listener; nil: plaintext

	bufferLimit int  // per_connection_buffer_limit_bytes
	inspect     bool // with both inspectors
}

// newEngine starts a worker that is stopped with the test.
func newEngine(t testing.TB) *engine {
	t.Helper()
	w, err := loop.New(0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { w.Run(); close(done) }()
	t.Cleanup(func() { w.Stop(); <-done })
	ringtest.Use(t, w, conn.Batch)
	return newEngineOn(t, w)
}

// newEngineOn is newEngine for a worker that the caller runs, or steps by hand.
func newEngineOn(t testing.TB, w *loop.Worker) *engine {
	t.Helper()
	m := metric.NewRegistry(1)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	clusters := upstream.NewRegistry([]*loop.Worker{w}, m, log)
	e := &engine{t: t, bufferLimit: 1 << 20, worker: w, clusters: clusters, metrics: m, server: NewServer([]*loop.Worker{w}, clusters, m, log)}
	breakers := upstream.Breakers{Connections: 1024, Pending: 1024, Requests: 1024, Retries: 3}
	e.cluster = &upstream.Config{Name: "backend", StatName: "backend", Hash: 1, ConnectTimeout: time.Second, BufferLimit: 1 << 20, IdleTimeout: time.Hour,
		PanicThreshold: 50, Breakers: [2]upstream.Breakers{breakers, breakers}}
	e.manager = &stream.Manager{StatPrefix: "test", Codec: codec.Auto, Stats: m.Set("http", "test", stream.Stats), StreamIdle: 5 * time.Minute, ConnectionIdle: time.Hour,
		ServerName: "sallyport", GenerateRequestID: true, Drain: time.Second, DelayedClose: time.Second}
	return e
}

// to gives the cluster its endpoints.
func (e *engine) to(addrs ...string) *engine {
	for _, a := range addrs {
		e.cluster.Endpoints = append(e.cluster.Endpoints, upstream.Endpoint{Address: netip.MustParseAddrPort(a), Weight: 1})
	}
	return e
}

// serve publishes the configuration and returns the listener's address.
func (e *engine) serve() string {
	e.t.Helper()
	e.clusters.Set(e.cluster)
	if e.manager.Routes == nil {
		e.manager.Routes = route.NewHandle("r", e.table(&route.Forward{Timeout: 15 * time.Second, IdleTimeout: -1, NotFoundStatus: 503}))
	}
	e.chain = &Chain{Name: "c", Key: "c", HTTP: e.manager, TLS: e.tls}
	e.cfg = &Config{Name: "l", StatPrefix: "l", Hash: 1, Bind: true, BufferLimit: e.bufferLimit, Inspect: e.inspect, HTTPInspect: e.inspect, Addresses: []conn.Address{conn.TCP(netip.MustParseAddrPort("127.0.0.1:0"))},
		Chains: []*Chain{e.chain}}
	e.apply(e.cfg)
	return e.server.AddrOf("l").String()
}

// apply puts a listener in force, which takes a turn of each worker.
func (e *engine) apply(cfg *Config) {
	e.t.Helper()
	applied := make(chan error, 1)
	go func() { applied <- e.server.Apply(cfg) }()
	for e.byHand && len(applied) == 0 {
		e.worker.Step(time.Millisecond)
	}
	if err := <-applied; err != nil {
		e.t.Fatal(err)
	}
}

// table sends everything to the cluster.
func (e *engine) table(f *route.Forward) *route.Table {
	e.t.Helper()
	f.Clusters = []route.WeightedCluster{{Cluster: route.ClusterRef{Name: "backend", Ref: e.clusters.Ref("backend")}, Weight: 1}}
	f.TotalWeight = 1
	r := &route.Route{Name: "all", VirtualHost: "v", Forward: f, TraceSampling: -1}
	t, err := route.NewTable([]*route.VirtualHost{{Name: "v", Domains: []string{"*"}, Entries: []route.Entry{{Matcher: route.NewPath(route.PathPrefix, "/", false), Route: r}}}}, route.TableOptions{})
	if err != nil {
		e.t.Fatal(err)
	}
	return t
}

func backend(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func get(t testing.TB, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestARequestGoesThrough(t *testing.T) {
	addr := newEngine(t).to(backend(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, r.Header.Get("X-Forwarded-Proto"))
	})).serve()
	for range 3 {
		if code, body := get(t, "http://"+addr+"/x"); code != 200 || body != "GET "+addr+" http" {
			t.Fatalf("%d %q", code, body)
		}
	}
}

func TestABodyGoesThroughBothWays(t *testing.T) {
	addr := newEngine(t).to(backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	})).serve()
	big := strings.Repeat("0123456789abcdef", 1<<18) // 4 MiB, above every mark
	resp, err := http.Post("http://"+addr, "text/plain", strings.NewReader(big))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != big {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
}

func TestNoHostIs503AndNoRouteIs404(t *testing.T) {
	e := newEngine(t)
	addr := e.serve()
	if code, body := get(t, "http://"+addr); code != 503 || body != "no healthy upstream" {
		t.Errorf("%d %q", code, body)
	}
	none, err := route.NewTable(nil, route.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e.manager.Routes.Publish(none)
	if code, _ := get(t, "http://"+addr); code != 404 {
		t.Errorf("%d", code)
	}
}

func TestARefusedConnectionIs503(t *testing.T) {
	addr := newEngine(t).to("127.0.0.1:1").serve() // no port that anybody is given
	if code, body := get(t, "http://"+addr); code != 503 || !strings.Contains(body, "connection failure") {
		t.Errorf("%d %q", code, body)
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	addr := newEngine(t).to(backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })).serve()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n")
	r := bufio.NewReader(c)
	for _, want := range []string{"/1", "/2", "/3"} {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		if string(b) != want {
			t.Fatalf("got %q, want %q", b, want)
		}
	}
}

func TestARouteTimeoutIs504(t *testing.T) {
	release := make(chan struct{})
	e := newEngine(t).to(backend(t, func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(func() { close(release) })
	e.manager.Routes = route.NewHandle("r", e.table(&route.Forward{Timeout: 20 * time.Millisecond, IdleTimeout: -1}))
	if code, body := get(t, "http://"+e.serve()); code != 504 || body != "upstream request timeout" {
		t.Errorf("%d %q", code, body)
	}
}

func TestA503IsRetried(t *testing.T) {
	n := 0
	e := newEngine(t).to(backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if n++; n < 3 {
			w.WriteHeader(503)
			return
		}
		_, _ = w.Write(b)
	}))
	e.manager.Routes = route.NewHandle("r", e.table(&route.Forward{IdleTimeout: -1, Retry: &route.Retry{On: route.On5xx, Retries: 3, BackoffBase: time.Millisecond, BackoffMax: time.Millisecond}}))
	resp, err := http.Post("http://"+e.serve(), "text/plain", strings.NewReader("kept for the retry"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != "kept for the retry" || n != 3 {
		t.Errorf("%d %q after %d attempts", resp.StatusCode, b, n)
	}
}

func TestAWebSocketUpgradeBecomesATunnel(t *testing.T) {
	e := newEngine(t).to(backend(t, func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		line, _ := rw.ReadString('\n')
		fmt.Fprint(c, "echo "+line)
	}))
	e.manager.Upgrades = []route.Upgrade{{Protocol: "websocket", Enabled: true}}
	c, err := net.Dial("tcp", e.serve())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	fmt.Fprint(c, "hello\n")
	if line, err := r.ReadString('\n'); line != "echo hello\n" {
		t.Fatal(line, err)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Fatalf("after the server closed: %v", err)
	}
}

func TestAChangedRouteIsInForceOnAnOpenConnection(t *testing.T) {
	e := newEngine(t).to(backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "backend") }))
	addr := e.serve()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	ask := func() (int, string) {
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if code, body := ask(); code != 200 || body != "backend" {
		t.Fatal(code, body)
	}
	denied := &route.Route{Name: "no", TraceSampling: -1, Direct: &route.Direct{Status: 403, Body: []byte("denied")}}
	table, err := route.NewTable([]*route.VirtualHost{{Name: "v", Domains: []string{"*"}, Entries: []route.Entry{{Matcher: route.NewPath(route.PathPrefix, "/", false), Route: denied}}}}, route.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e.manager.Routes.Publish(table)
	if code, body := ask(); code != 403 || body != "denied" {
		t.Fatal(code, body)
	}
}

func TestAMalformedRequestIsRefusedAndTheConnectionCloses(t *testing.T) {
	addr := newEngine(t).serve()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 400 ") {
		t.Fatalf("%q %v", b, err)
	}
}

func TestTCPIsProxiedWithItsHalfCloses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c) // until the client's half-close comes through
		_, _ = c.Write(append([]byte("got "), b...))
	}()
	e := newEngine(t).to(l.Addr().String())
	e.clusters.Set(e.cluster)
	cfg := &Config{Name: "t", StatPrefix: "t", Hash: 1, Bind: true, Addresses: []conn.Address{conn.TCP(netip.MustParseAddrPort("127.0.0.1:0"))},
		Chains: []*Chain{{Name: "c", Key: "c", TCP: &TCPProxy{StatPrefix: "t", Stats: e.metrics.Set("tcp", "t", TCPStats), Idle: time.Hour, TotalWeight: 1,
			Clusters: []route.WeightedCluster{{Cluster: route.ClusterRef{Name: "backend", Ref: e.clusters.Ref("backend")}, Weight: 1}}}}}}
	if err := e.server.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", e.server.AddrOf("t").String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "hello")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); string(b) != "got hello" {
		t.Fatalf("%q %v", b, err)
	}
}
