package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
)

// call is one attempt of a request, for tests. Its fields belong to the worker
// until done is closed.
type call struct {
	w      Waiter
	pool   *Pool
	path   string
	method string

	sender message.Sender
	client *Client
	reused bool
	status int
	body   string
	reason message.Reason // why it failed
	text   string
	ready  chan struct{}
	head   chan struct{}
	done   chan struct{}
	ended  bool
	onFail func()
}

func newCall(p *Pool, path string) *call {
	k := &call{pool: p, path: path, method: "GET", ready: make(chan struct{}), head: make(chan struct{}), done: make(chan struct{})}
	k.w.Requester = k
	return k
}

// start asks the pool; it runs on the worker.
func (k *call) start() *call {
	if r := k.pool.Acquire(&k.w); r != 0 {
		k.finish(r, "refused")
	}
	return k
}

func (k *call) finish(r message.Reason, text string) {
	if k.ended {
		panic("a call ended twice")
	}
	k.ended = true
	k.reason, k.text = r, text
	k.w.Finish()
	k.w.Finish() // must not count twice
	if k.onFail != nil && r != 0 {
		k.onFail()
	}
	close(k.done)
}

func (k *call) Ready(s message.Sender, c *Client) {
	k.sender, k.client, k.reused = s, c, c.Reused()
	var h message.Head
	h.AddString(":method", k.method)
	h.AddString(":scheme", "http")
	h.AddString(":authority", "test")
	h.AddString(":path", k.path)
	close(k.ready)
	s.Head(&h, true)
}
func (k *call) Failed(r message.Reason, text string) { k.finish(r, text) }
func (k *call) Head(h *message.Head, end bool) {
	k.status = h.StatusCode()
	close(k.head)
	if end {
		k.finish(0, "")
	}
}
func (k *call) Data(p []byte, end bool) {
	k.body += string(p)
	if end {
		k.finish(0, "")
	}
}
func (k *call) Trailers(*message.Head) { k.finish(0, "") }
func (k *call) Reset(r message.Reason) { k.finish(r, "reset") }
func (k *call) Drained()               {}

// rig is a cluster with one host and workers.
type rig struct {
	t       testing.TB
	r       *Registry
	workers []*loop.Worker
	cluster *Cluster
	host    *Host
}

func newRig(t testing.TB, cfg *Config, workers int) *rig {
	t.Helper()
	g := &rig{t: t, workers: newWorkers(t, workers)}
	g.r = registryWith(t, g.workers)
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 5 * time.Second
	}
	g.r.Set(cfg)
	g.cluster = g.r.Lookup(cfg.Name)
	g.host = g.cluster.entries[0].host
	return g
}

func (g *rig) on(f func(p *Pool)) {
	on(g.workers[0], func() { f(g.host.Pool(g.workers[0], HTTP1)) })
}

// begin starts calls in one turn of the worker.
func (g *rig) begin(paths ...string) (calls []*call) {
	g.on(func(p *Pool) {
		for _, path := range paths {
			calls = append(calls, newCall(p, path).start())
		}
	})
	return calls
}

func (g *rig) get(path string) *call {
	k := g.begin(path)[0]
	<-k.done
	return k
}

// settled waits, without sleeping, until f holds on the worker.
func (g *rig) settled(what string, f func(p *Pool) bool) {
	g.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		ok := false
		g.on(func(p *Pool) { ok = f(p) })
		if ok {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("did not come about: %s", what)
		}
	}
}

// balanced checks that everything was given back.
func (g *rig) balanced() {
	g.t.Helper()
	for p := range 2 {
		if _, pending, rq, retries := g.cluster.BreakerState(p); pending != 0 || rq != 0 || retries != 0 {
			g.t.Errorf("priority %d: pending %d, requests %d, retries %d", p, pending, rq, retries)
		}
	}
	if n := g.host.active.Load(); n != 0 {
		g.t.Errorf("the host has %d requests under way", n)
	}
	for _, stat := range []int{StatRqActive, StatRqPendingActive} {
		if n := g.cluster.Stats.Value(stat); n != 0 {
			g.t.Errorf("%s is %d", Stats.Descs[stat].Name, n)
		}
	}
	// A connection may be closing just now: the counts meet when it is gone.
	deadline := time.Now().Add(10 * time.Second)
	for {
		n, m := g.cluster.Stats.Value(StatCxActive), int64(g.connections())
		low, _, _, _ := g.cluster.BreakerState(0)
		high, _, _, _ := g.cluster.BreakerState(1)
		if n == m && low+high == m {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("upstream_cx_active is %d, the breakers count %d, of %d connections", n, low+high, m)
		}
	}
}

func (g *rig) connections() (n int) {
	for _, w := range g.workers {
		on(w, func() {
			for _, p := range g.host.pools[2*w.ID() : 2*w.ID()+2] {
				if p != nil {
					n += len(p.all)
				}
			}
			n += len(g.host.raw[w.ID()])
		})
	}
	return n
}

// gone removes the cluster and waits for its connections to end.
func (g *rig) gone() {
	g.t.Helper()
	g.r.Remove(g.cluster.Config.Name)
	g.settled("all connections closed", func(p *Pool) bool { return len(p.all) == 0 && len(p.idle) == 0 && len(p.shared) == 0 })
	g.balanced()
}

func serverAt(t testing.TB, h http.HandlerFunc) (*httptest.Server, Endpoint) {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s, at(s.Listener.Addr().String())
}

func echoPath(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }

// gate is a handler that answers when it is told to.
type gate struct {
	arrived chan string
	open    chan struct{}
}

func newGate() *gate { return &gate{make(chan string, 100), make(chan struct{})} }

func (g *gate) handle(w http.ResponseWriter, r *http.Request) {
	g.arrived <- r.URL.Path
	select {
	case <-g.open:
	case <-r.Context().Done():
	}
	fmt.Fprint(w, r.URL.Path)
}

func TestConnectionsAreReused(t *testing.T) {
	_, ep := serverAt(t, echoPath)
	g := newRig(t, config("c", ep), 1)
	for i := range 10 {
		k := g.get(fmt.Sprintf("/%d", i))
		if k.status != 200 || k.body != k.path || k.reused != (i > 0) {
			t.Fatalf("call %d: status %d, body %q, %v, reused %v", i, k.status, k.body, k.reason, k.reused)
		}
	}
	if n := g.cluster.Stats.Value(StatCxTotal); n != 1 {
		t.Errorf("%d connections for ten calls, one after another", n)
	}
	g.balanced()
	g.gone()
}

func TestConcurrentCallsEachHaveAConnection(t *testing.T) {
	gt := newGate()
	_, ep := serverAt(t, gt.handle)
	g := newRig(t, config("c", ep), 1)
	calls := g.begin("/a", "/b", "/c")
	for range calls {
		<-gt.arrived
	}
	if cx, _, rq, _ := g.cluster.BreakerState(0); cx != 3 || rq != 3 || g.host.active.Load() != 3 {
		t.Errorf("%d connections, %d requests, %d active", cx, rq, g.host.active.Load())
	}
	close(gt.open)
	for _, k := range calls {
		if <-k.done; k.body != k.path {
			t.Errorf("%s: %q", k.path, k.body)
		}
	}
	// The last one used is the first to be used again.
	if k := g.get("/d"); !k.reused || g.cluster.Stats.Value(StatCxTotal) != 3 {
		t.Error("another connection was made, though three are idle")
	}
	g.gone()
}

func TestMaxRequestsOverflows(t *testing.T) {
	gt := newGate()
	_, ep := serverAt(t, gt.handle)
	cfg := config("c", ep)
	cfg.Breakers[0].Requests = 2
	g := newRig(t, cfg, 1)
	calls := g.begin("/a", "/b", "/c")
	<-calls[2].done
	if calls[2].reason != message.Overflow {
		t.Errorf("the third call ended with %v", calls[2].reason)
	}
	// The other priority has a breaker of its own.
	var high *call
	g.on(func(p *Pool) {
		high = newCall(p, "/high")
		high.w.Priority = 1
		high.start()
	})
	for range 3 {
		<-gt.arrived
	}
	close(gt.open)
	<-calls[0].done
	<-calls[1].done
	if <-high.done; high.status != 200 {
		t.Errorf("the call of high priority ended with %d, %v", high.status, high.reason)
	}
	if n := g.cluster.Stats.Value(StatRqPendingOverflow); n != 1 {
		t.Errorf("upstream_rq_pending_overflow is %d", n)
	}
	g.balanced()
	g.gone()
}

func TestMaxPendingOverflows(t *testing.T) {
	_, ep := serverAt(t, echoPath)
	cfg := config("c", ep)
	cfg.Breakers[0].Pending = 1
	g := newRig(t, cfg, 1)
	calls := g.begin("/a", "/b")
	<-calls[0].done
	<-calls[1].done
	if calls[0].status != 200 || calls[1].reason != message.Overflow {
		t.Errorf("%d %v, %d %v", calls[0].status, calls[0].reason, calls[1].status, calls[1].reason)
	}
	g.balanced()
	g.gone()
}

func TestMaxConnectionsMakesCallsWait(t *testing.T) {
	gt := newGate()
	_, ep := serverAt(t, gt.handle)
	cfg := config("c", ep)
	cfg.Breakers[0].Connections = 1
	g := newRig(t, cfg, 2)
	calls := g.begin("/a", "/b", "/c")
	<-gt.arrived
	if cx, pending, _, _ := g.cluster.BreakerState(0); cx != 1 || pending != 2 {
		t.Errorf("%d connections, %d pending", cx, pending)
	}
	if n := g.cluster.Stats.Value(StatCxOverflow); n != 2 {
		t.Errorf("upstream_cx_overflow is %d for two calls that had to wait", n)
	}
	// Another worker has none to wait for, and dials in spite of the breaker.
	var other *call
	on(g.workers[1], func() { other = newCall(g.host.Pool(g.workers[1], HTTP1), "/other").start() })
	<-gt.arrived
	close(gt.open)
	for _, k := range append(calls, other) {
		if <-k.done; k.body != k.path {
			t.Errorf("%s: %q %v", k.path, k.body, k.reason)
		}
	}
	g.gone()
}

// TestThePlaceOfAConnectionThatEnds sees to it that who waits for a place on a
// connection is served when that connection ends instead.
func TestThePlaceOfAConnectionThatEnds(t *testing.T) {
	gt := newGate()
	_, ep := serverAt(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		gt.handle(w, r)
	})
	cfg := config("c", ep)
	cfg.Breakers[0].Connections = 2
	g := newRig(t, cfg, 1)
	calls := g.begin("/a", "/b", "/c", "/d", "/e")
	close(gt.open)
	for _, k := range calls {
		if <-k.done; k.body != k.path {
			t.Errorf("%s: %q %v", k.path, k.body, k.reason)
		}
	}
	g.gone()
}

// refused returns the address of a port where nobody listens.
func refused(t testing.TB) Endpoint {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return at(l.Addr().String())
}

func TestConnectFailureFailsAllWhoWait(t *testing.T) {
	cfg := config("c", refused(t))
	cfg.Outlier = &Outlier{Consecutive5xx: 3, Enforcing5xx: 100, BaseEjection: time.Hour, MaxEjectionPercent: 100}
	g := newRig(t, cfg, 1)
	for _, k := range g.begin("/a", "/b", "/c") {
		<-k.done
		if k.reason != message.ConnectFailure || !strings.Contains(k.text, "connection refused") || k.sender != nil {
			t.Errorf("%v %q", k.reason, k.text)
		}
	}
	g.settled("all dials over", func(p *Pool) bool { return p.dialing == 0 && len(p.all) == 0 })
	g.balanced()
	if n := g.cluster.Stats.Value(StatCxConnectFail); n != 3 {
		t.Errorf("upstream_cx_connect_fail is %d", n)
	}
	g.settled("the host is ejected", func(*Pool) bool { return g.host.flags.Load()&flagEjected != 0 })
	g.gone()
}

// TestFailureIsReentrant: who is told of a failure asks the same pool again,
// and ends the wait of others who were not told yet.
func TestFailureIsReentrant(t *testing.T) {
	g := newRig(t, config("c", refused(t)), 1)
	var again *call
	var calls []*call
	g.on(func(p *Pool) {
		for _, path := range []string{"/a", "/b", "/c", "/d"} {
			calls = append(calls, newCall(p, path).start())
		}
		again = newCall(p, "/again")
		calls[0].onFail = func() {
			again.start()
			// Its stream ends for another reason.
			calls[1].finish(message.LocalReset, "gave up")
			calls[3].finish(message.LocalReset, "gave up")
		}
	})
	for i, k := range append(calls, again) {
		<-k.done
		want := message.ConnectFailure
		if i == 1 || i == 3 {
			want = message.LocalReset
		}
		if k.reason != want {
			t.Errorf("call %d ended with %v", i, k.reason)
		}
	}
	g.settled("all dials over", func(p *Pool) bool { return p.dialing == 0 && p.waiting.n == 0 })
	g.balanced()
	g.gone()
}

func TestConnectTimeout(t *testing.T) {
	cfg := config("c", at("127.0.0.1:1"))
	cfg.ConnectTimeout = 50 * time.Millisecond
	g := newRig(t, cfg, 1)
	// A listener whose backlog is full drops further SYNs.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	shrink(t, raw)
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 100*time.Millisecond)
		if err != nil {
			break
		}
		held = append(held, c)
	}
	next := *cfg
	next.Endpoints = []Endpoint{at(l.Addr().String())}
	g.r.Set(&next)
	g.host = g.cluster.entries[0].host
	if k := g.get("/"); k.reason != message.ConnectTimeout || g.cluster.Stats.Value(StatCxConnectTimeout) != 1 {
		t.Errorf("%v %q", k.reason, k.text)
	}
	g.gone()
}

func TestIdleConnectionsEnd(t *testing.T) {
	_, ep := serverAt(t, echoPath)
	cfg := config("c", ep)
	cfg.IdleTimeout = 20 * time.Millisecond
	g := newRig(t, cfg, 1)
	g.get("/")
	g.settled("the idle connection ended", func(p *Pool) bool { return len(p.all) == 0 })
	if n := g.cluster.Stats.Value(StatCxIdleTimeout); n != 1 {
		t.Errorf("upstream_cx_idle_timeout is %d", n)
	}
	g.balanced()
	if k := g.get("/"); k.status != 200 || k.reused {
		t.Errorf("after that: %d, reused %v", k.status, k.reused)
	}
	g.gone()
}

func TestAnIdleTimeoutDoesNotEndARequest(t *testing.T) {
	gt := newGate()
	_, ep := serverAt(t, gt.handle)
	cfg := config("c", ep)
	cfg.IdleTimeout = 10 * time.Millisecond
	g := newRig(t, cfg, 1)
	k := g.begin("/slow")[0]
	<-gt.arrived
	time.AfterFunc(50*time.Millisecond, func() { close(gt.open) })
	if <-k.done; k.status != 200 {
		t.Errorf("%d %v", k.status, k.reason)
	}
	g.gone()
}

func TestMaxRequestsPerConnection(t *testing.T) {
	_, ep := serverAt(t, echoPath)
	cfg := config("c", ep)
	cfg.MaxRequests = 2
	g := newRig(t, cfg, 1)
	var reused []bool
	for range 5 {
		k := g.get("/")
		reused = append(reused, k.reused)
	}
	if !slices.Equal(reused, []bool{false, true, false, true, false}) {
		t.Errorf("reused: %v", reused)
	}
	if n := g.cluster.Stats.Value(StatCxMaxRequests); n != 2 {
		t.Errorf("upstream_cx_max_requests is %d", n)
	}
	g.gone()
}

func TestThePeersEndOfAKeptConnection(t *testing.T) {
	s, ep := serverAt(t, echoPath)
	g := newRig(t, config("c", ep), 1)
	g.get("/")
	s.CloseClientConnections()
	g.settled("the connection is forgotten", func(p *Pool) bool { return len(p.all) == 0 })
	if k := g.get("/"); k.status != 200 || k.reused {
		t.Errorf("%d %v, reused %v", k.status, k.reason, k.reused)
	}
	g.gone()
}

func TestAnAnswerToNothingEndsTheConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	more := make(chan struct{})
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 4096)
		_, _ = c.Read(b)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
		<-more
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
		_, _ = io.Copy(io.Discard, c)
	}()
	g := newRig(t, config("c", at(l.Addr().String())), 1)
	g.get("/")
	close(more)
	g.settled("the connection is forgotten", func(p *Pool) bool { return len(p.all) == 0 })
	if n := g.cluster.Stats.Value(StatCxProtocolError); n != 1 {
		t.Errorf("upstream_cx_protocol_error is %d", n)
	}
	g.gone()
}

func TestAbandonedCallsGiveBackWhatTheyTook(t *testing.T) {
	gt := newGate()
	_, ep := serverAt(t, gt.handle)
	cfg := config("c", ep)
	cfg.Breakers[0].Connections = 1
	g := newRig(t, cfg, 1)
	calls := g.begin("/a", "/b", "/c")
	<-gt.arrived
	g.on(func(p *Pool) {
		calls[1].finish(message.LocalReset, "while waiting")
		calls[0].sender.Reset(message.LocalReset)
		calls[0].finish(message.LocalReset, "while on its way")
	})
	if n := g.cluster.Stats.Value(StatRqCancelled); n != 1 {
		t.Errorf("upstream_rq_cancelled is %d", n)
	}
	// A reset of HTTP/1 ends the connection; who waits gets a new one.
	<-gt.arrived
	close(gt.open)
	if <-calls[2].done; calls[2].body != "/c" {
		t.Errorf("%d %q %v", calls[2].status, calls[2].body, calls[2].reason)
	}
	g.balanced()
	g.gone()
}

// bad is a call whose head cannot be sent: the codec resets it while the pool
// still hands it over.
type bad struct{ *call }

func (k bad) Ready(s message.Sender, c *Client) {
	k.sender, k.client = s, c
	var h message.Head
	h.AddString(":method", "GE\r\nT")
	s.Head(&h, true)
}

func TestACallThatEndsAtOnceLeavesTheConnectionIdleOnce(t *testing.T) {
	_, ep := serverAt(t, echoPath)
	g := newRig(t, config("c", ep), 1)
	var k *call
	g.on(func(p *Pool) {
		k = newCall(p, "/")
		k.w.Requester = bad{k}
		k.start()
	})
	if <-k.done; k.reason != message.LocalReset {
		t.Fatalf("the malformed call ended with %v", k.reason)
	}
	g.on(func(p *Pool) {
		if len(p.idle) > 1 || len(p.idle) == 1 && len(p.all) != 1 {
			t.Errorf("one connection is idle %d times", len(p.idle))
		}
	})
	for _, k := range g.begin("/a", "/b") {
		if <-k.done; k.body != k.path {
			t.Errorf("%s: %q %v", k.path, k.body, k.reason)
		}
	}
	g.gone()
}

func TestRemovalLetsCallsFinish(t *testing.T) {
	gt := newGate()
	_, ep := serverAt(t, gt.handle)
	g := newRig(t, config("c", ep), 1)
	calls := g.begin("/under-way")
	<-gt.arrived
	g.r.Remove("c")
	// A stream that chose the host before the removal still gets through.
	calls = append(calls, g.begin("/late")...)
	<-gt.arrived
	close(gt.open)
	for _, k := range calls {
		if <-k.done; k.body != k.path {
			t.Errorf("%s: %q %v", k.path, k.body, k.reason)
		}
	}
	g.gone()
}

// TestRemovalWhileDialing: a connection that is being dialed when its host is
// removed serves those who wait for it, and ends.
func TestRemovalWhileDialing(t *testing.T) {
	_, ep := serverAt(t, echoPath)
	cfg := config("c", ep)
	g := newRig(t, cfg, 1)
	var calls []*call
	g.on(func(p *Pool) {
		for _, path := range []string{"/a", "/b"} {
			calls = append(calls, newCall(p, path).start())
		}
		// In the same turn, so that no connection can be up yet.
		g.host.set(flagGone, true)
		g.host.drain(0)
	})
	for _, k := range calls {
		if <-k.done; k.body != k.path {
			t.Errorf("%s: %q %v", k.path, k.body, k.reason)
		}
	}
	g.settled("no connection is kept", func(p *Pool) bool { return len(p.all) == 0 })
	g.gone()
}

func TestAFailedHealthCheckDrains(t *testing.T) {
	_, ep := serverAt(t, echoPath)
	g := newRig(t, config("c", ep), 1)
	g.get("/")
	k := &checker{cluster: g.cluster}
	k.turn(g.host, true, errors.New("test"))
	g.settled("the kept connection ended", func(p *Pool) bool { return len(p.all) == 0 })
	k.turn(g.host, false, nil)
	if k := g.get("/"); k.status != 200 {
		t.Errorf("%d %v", k.status, k.reason)
	}
	g.gone()
}

func TestFreshIsNotAKeptConnection(t *testing.T) {
	_, ep := serverAt(t, echoPath)
	g := newRig(t, config("c", ep), 1)
	g.get("/")
	var k *call
	g.on(func(p *Pool) {
		k = newCall(p, "/")
		k.w.Fresh = true
		k.start()
	})
	if <-k.done; k.status != 200 || k.reused {
		t.Errorf("%d %v, reused %v", k.status, k.reason, k.reused)
	}
	g.gone()
}

// h2Config is a cluster of HTTP/2 over plaintext.
func h2Server(t testing.TB, h http.HandlerFunc, streams int) Endpoint {
	s := httptest.NewUnstartedServer(h)
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	s.Config.Protocols = &p
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: streams}
	s.Start()
	t.Cleanup(s.Close)
	return at(s.Listener.Addr().String())
}

func TestHTTP2CallsShareAConnection(t *testing.T) {
	gt := newGate()
	cfg := config("c", h2Server(t, gt.handle, 100))
	cfg.Protocol = HTTP2
	cfg.HTTP2.MaxConcurrentStreams = 100
	g := newRig(t, cfg, 1)
	var paths []string
	for i := range 50 {
		paths = append(paths, fmt.Sprintf("/%d", i))
	}
	calls := g.begin(paths...)
	for range calls {
		<-gt.arrived
	}
	if n := g.cluster.Stats.Value(StatCxTotal); n != 1 {
		t.Errorf("%d connections for 50 calls at once", n)
	}
	close(gt.open)
	for _, k := range calls {
		if <-k.done; k.body != k.path || !k.client.HTTP2() {
			t.Errorf("%s: %q %v", k.path, k.body, k.reason)
		}
	}
	g.balanced()
	g.gone()
}

func TestMoreHTTP2CallsThanAConnectionTakes(t *testing.T) {
	gt := newGate()
	cfg := config("c", h2Server(t, gt.handle, 250))
	cfg.Protocol = HTTP2
	cfg.HTTP2.MaxConcurrentStreams = 10
	g := newRig(t, cfg, 1)
	paths := make([]string, 95)
	for i := range paths {
		paths[i] = fmt.Sprintf("/%d", i)
	}
	calls := g.begin(paths...)
	for range calls {
		<-gt.arrived // all are on their way at once: ten connections
	}
	close(gt.open)
	for _, k := range calls {
		if <-k.done; k.body != k.path {
			t.Errorf("%s: %q %v", k.path, k.body, k.reason)
		}
	}
	if n := g.cluster.Stats.Value(StatCxTotal); n != 10 {
		t.Errorf("%d connections", n)
	}
	g.balanced()
	g.gone()
}

func TestTLSFailures(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(echoPath))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = quietLog
	s.StartTLS()
	defer s.Close()
	ep := at(s.Listener.Addr().String())
	roots := s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for _, x := range []struct {
		name   string
		cfg    *tls.Config
		proto  Protocol
		h2     bool
		reason message.Reason
		text   string
	}{
		{"verified", &tls.Config{RootCAs: roots, ServerName: "example.com"}, HTTP1, false, 0, ""},
		{"negotiated", &tls.Config{RootCAs: roots, ServerName: "example.com", NextProtos: []string{"h2"}}, ALPN, true, 0, ""},
		{"unknown authority", &tls.Config{ServerName: "example.com"}, HTTP1, false, message.TLSFailure, "unknown authority"},
		{"no secret", nil, HTTP1, false, message.TLSFailure, "no SVID yet"},
	} {
		t.Run(x.name, func(t *testing.T) {
			cfg := config("c", ep)
			cfg.TLS, cfg.Protocol = clientTLS{x.cfg}, x.proto
			cfg.HTTP2.MaxConcurrentStreams = 100
			g := newRig(t, cfg, 1)
			k := g.get("/x")
			if k.reason != x.reason || !strings.Contains(k.text, x.text) || x.reason == 0 && (k.body != "/x" || k.client.HTTP2() != x.h2) {
				t.Errorf("%d %q, %v %q", k.status, k.body, k.reason, k.text)
			}
			g.gone()
		})
	}
}

// tcpEnd is a handler of the TCP proxy for tests.
type tcpEnd struct {
	up     chan struct{}
	closed chan error
}

func (e *tcpEnd) Connected()        { close(e.up) }
func (e *tcpEnd) Data(p []byte) int { return len(p) }
func (e *tcpEnd) EOF()              {}
func (e *tcpEnd) Drained()          {}
func (e *tcpEnd) Closed(err error)  { e.closed <- err }

func (g *rig) dial() (*RawClient, *tcpEnd) {
	e := &tcpEnd{make(chan struct{}), make(chan error, 1)}
	var r *RawClient
	on(g.workers[0], func() { r = g.host.DialTCP(g.workers[0], e) })
	return r, e
}

func TestTCPConnectionsAreCounted(t *testing.T) {
	s, ep := serverAt(t, echoPath)
	cfg := config("c", ep)
	cfg.Breakers[0].Connections = 1
	cfg.CloseOnHealthFailure = true
	g := newRig(t, cfg, 1)
	r, e := g.dial()
	<-e.up
	if over, _ := g.dial(); over != nil || g.cluster.Stats.Value(StatCxOverflow) != 1 {
		t.Error("max_connections is not kept")
	}
	on(g.workers[0], func() { r.Conn.Close() })
	<-e.closed
	g.balanced()

	_, e = g.dial()
	<-e.up
	k := &checker{cluster: g.cluster}
	k.turn(g.host, true, errors.New("test")) // close_connections_on_host_health_failure
	<-e.closed
	g.balanced()

	s.Close()
	r, e = g.dial()
	<-e.closed
	if r.Reason != message.ConnectFailure || r.Text == "" {
		t.Errorf("%v %q", r.Reason, r.Text)
	}
	g.balanced()
}

// TestEverythingIsGivenBack puts all paths under load at once, from two
// workers, while the cluster changes under them.
func TestEverythingIsGivenBack(t *testing.T) {
	var n atomic.Int64
	handler := func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 7 {
		case 0:
			panic(http.ErrAbortHandler)
		case 1:
			w.Header().Set("Connection", "close")
		case 2:
			w.WriteHeader(503)
		}
		fmt.Fprint(w, r.URL.Path)
	}
	for _, proto := range []Protocol{HTTP1, HTTP2} {
		var ep Endpoint
		if proto == HTTP1 {
			_, ep = serverAt(t, handler)
		} else {
			ep = h2Server(t, handler, 10)
		}
		cfg := config("c", ep, refused(t))
		cfg.Protocol, cfg.MaxRequests, cfg.IdleTimeout = proto, 5, time.Millisecond
		cfg.HTTP2.MaxConcurrentStreams = 10
		cfg.Breakers[0] = Breakers{Connections: 4, Pending: 20, Requests: 30, Retries: 1}
		workers := newWorkers(t, 2)
		r := registryWith(t, workers)
		r.Set(cfg)
		ref := r.Ref("c")
		seen := sync.Map{}
		var calls sync.WaitGroup
		for i := range 60 {
			for _, w := range workers {
				calls.Add(10)
				w.Post(func() {
					c := ref.Cluster()
					seen.Store(c, true)
					for j := range 10 {
						k := newCall(c.Host(&Pick{Worker: w.ID()}).Pool(w, HTTP1), fmt.Sprintf("/%d", j))
						k.start()
						if j%5 == 4 && !k.ended {
							if k.sender != nil {
								k.sender.Reset(message.LocalReset)
							}
							if !k.ended {
								k.finish(message.LocalReset, "gave up")
							}
						}
						go func() { <-k.done; calls.Done() }()
					}
				})
			}
			if i%10 == 9 {
				next := *cfg
				next.Hash = uint64(i)
				r.Set(&next)
			}
		}
		calls.Wait()
		r.Remove("c")
		seen.Range(func(key, _ any) bool {
			c := key.(*Cluster)
			deadline := time.Now().Add(10 * time.Second)
			for {
				for _, w := range workers {
					on(w, func() {})
				}
				cx, pending, rq, retries := c.BreakerState(0)
				if cx == 0 && pending == 0 && rq == 0 && retries == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("protocol %d: connections %d, pending %d, requests %d, retries %d are never given back", proto, cx, pending, rq, retries)
				}
			}
			for _, e := range c.entries {
				if n := e.host.active.Load(); n != 0 {
					t.Errorf("host %s has %d requests under way", e.host, n)
				}
			}
			return true
		})
	}
}

var _ conn.Handler = (*tcpEnd)(nil)
