package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/message"
)

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
	on(g.workers[1], func() { other = newCall(g.host.Pool(g.workers[1], message.HTTP11, nil), "/other").start() })
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

// refused is where nobody listens: a port that no process is given by chance.
var refused = at("127.0.0.1:1")

func TestConnectFailureFailsAllWhoWait(t *testing.T) {
	cfg := config("c", refused)
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
	g := newRig(t, config("c", refused), 1)
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

// TestTheConnectTimeoutCoversTLS: a host that accepts and says nothing, as Envoy's connect_timeout is for both.
func TestTheConnectTimeoutCoversTLS(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := config("c", at(l.Addr().String()))
	cfg.ConnectTimeout = 50 * time.Millisecond
	cfg.TLS = clientTLS{&tls.Config{ServerName: "example.com"}}
	g := newRig(t, cfg, 1)
	if k := g.get("/"); k.reason != message.ConnectTimeout {
		t.Errorf("a request: %v %q", k.reason, k.text)
	}
	r, e := g.dial()
	<-e.closed
	if r.Reason != message.ConnectTimeout {
		t.Errorf("a TCP connection: %v %q", r.Reason, r.Text)
	}
	for stat, want := range map[int]int64{StatCxConnectTimeout: 2, StatCxConnectFail: 2, StatTLSFail: 0} {
		if got := g.cluster.Stats.Value(stat); got != want {
			t.Errorf("%s is %d, want %d", Stats.Descs[stat].Name, got, want)
		}
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
