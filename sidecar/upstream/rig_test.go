package upstream

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

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
	on(g.workers[0], func() { f(g.host.Pool(g.workers[0], message.HTTP11, nil)) })
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
			for _, p := range g.host.poolsOf(w.ID()) {
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
