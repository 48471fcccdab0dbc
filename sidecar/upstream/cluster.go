package upstream

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"

	"sallyport/sidecar/metric"
)

// Cluster is a set of hosts that serve the same thing. Safe for concurrent
// use: workers read hosts and the breakers' counts; the rest is under mu.
type Cluster struct {
	Config   *Config
	Stats    *metric.Set
	registry *Registry

	hosts    atomic.Pointer[hostSet]
	breakers [2]breaker
	// turn is each worker's position in round robin; only that worker touches its own.
	turn []turn

	mu        sync.Mutex
	endpoints []Endpoint // as last told
	drop      uint32
	entries   []entry
	resolved  map[string][]netip.Addr // what names meant when last asked
	checker   *checker
	cancel    context.CancelFunc
	closed    bool
	ejected   int // hosts ejected now

	told      chan struct{} // wakes the DNS goroutine: other names
	answered  chan struct{} // and that some were resolved
	originals []originals   // by worker, of an OriginalDst cluster
}

// turn is padded to a cache line, so that workers do not share one.
type turn struct {
	n uint32
	_ [60]byte
}

// breaker counts what is under way in the whole process.
type breaker struct {
	connections, pending, requests, retries atomic.Int64
}

func newCluster(cfg *Config, r *Registry) *Cluster {
	c := &Cluster{Config: cfg, registry: r, turn: make([]turn, len(r.workers)), Stats: r.metrics.Set("cluster", cfg.StatName, Stats),
		told: make(chan struct{}, 1), answered: make(chan struct{}, 1), originals: make([]originals, len(r.workers))}
	for i := range c.turn {
		// Workers start at different hosts, or a burst of new
		// connections would meet the first host everywhere.
		c.turn[i].n = rand.Uint32()
	}
	c.hosts.Store(&hostSet{})
	return c
}

func (c *Cluster) newHost(ep *Endpoint) *Host {
	h := &Host{cluster: c, hostname: ep.Hostname, check: ep.HealthAddress,
		pools: make([]*Pool, int(SameAsDownstream)*len(c.registry.workers)), raw: make([]map[*RawClient]struct{}, len(c.registry.workers)),
		sourced: make([]map[poolKey]*Pool, len(c.registry.workers))}
	h.move(ep)
	return h
}

// start begins what the cluster does by itself: DNS and health checks.
func (c *Cluster) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	if len(c.Config.HealthChecks) > 0 {
		c.checker = newChecker(ctx, c)
		c.checker.hosts(append([]entry(nil), c.entries...))
	}
	if c.Config.byName() {
		go c.resolve(ctx)
	}
}

// close ends the cluster's goroutines and lets its pools drain.
func (c *Cluster) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	hosts := make([]*Host, 0, len(c.entries))
	for _, e := range c.entries {
		e.host.endEjection()
		e.host.set(flagGone, true) // what is still on its way there keeps no connection
		hosts = append(hosts, e.host)
	}
	set := c.hosts.Load()
	st := c.Stats.Shared()
	st.Add(StatMembershipTotal, -int64(len(set.entries)))
	st.Add(StatMembershipHealthy, -int64(set.healthy))
	if c.cancel != nil {
		c.cancel()
	}
	c.drainHosts(hosts, false)
	c.dropOriginals()
}

// Pick says how a host is to be chosen.
type Pick struct {
	Worker  int
	Hash    uint64 // with HasHash: of the hash policies
	HasHash bool
	// Avoid are hosts tried before; they are passed over up to Attempts times.
	Avoid    []*Host
	Attempts int
	// Original is where the client meant to go, for OriginalDst clusters.
	Original netip.AddrPort
}

// Host chooses a host, nil where none is to be had. It runs on a worker,
// neither locks nor allocates.
func (c *Cluster) Host(p *Pick) *Host {
	if c.Config.Discovery == OriginalDst {
		return c.original(p)
	}
	set := c.hosts.Load()
	for try := 0; ; try++ {
		h := set.pick(c, p)
		if h == nil {
			c.Stats.At(p.Worker).Inc(StatCxNoneHealthy)
			return nil
		}
		if try >= p.Attempts || !contains(p.Avoid, h) {
			return h
		}
		// The same hash would give the same host again.
		p.HasHash = false
	}
}

func contains(hosts []*Host, h *Host) bool {
	for _, o := range hosts {
		if o == h {
			return true
		}
	}
	return false
}

// DropOverload says whether a request is to be dropped as the load
// assignment's policy asks.
func (c *Cluster) DropOverload() bool {
	d := c.hosts.Load().drop
	return d > 0 && rand.Uint32N(10000) < d
}

// Retry asks the circuit breaker for one more retry; the caller owes a RetryDone if it says yes.
func (c *Cluster) Retry(priority int) bool {
	b, cfg := &c.breakers[priority], &c.Config.Breakers[priority]
	limit := int64(cfg.Retries)
	if cfg.BudgetPercent > 0 {
		limit = max((b.requests.Load()+b.pending.Load())*int64(cfg.BudgetPercent)/10000, int64(cfg.BudgetMin))
	}
	if b.retries.Add(1) > limit {
		b.retries.Add(-1)
		return false
	}
	return true
}

// RetryDone gives a retry back.
func (c *Cluster) RetryDone(priority int) { c.breakers[priority].retries.Add(-1) }

// BreakerState is what /clusters shows.
func (c *Cluster) BreakerState(priority int) (connections, pending, requests, retries int64) {
	b := &c.breakers[priority]
	return b.connections.Load(), b.pending.Load(), b.requests.Load(), b.retries.Load()
}
