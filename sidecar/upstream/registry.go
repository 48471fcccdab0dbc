package upstream

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/panics"
)

// Registry holds all clusters of a process. Configuration comes from one
// goroutine (package sidecar); look-ups are safe for concurrent use.
type Registry struct {
	workers []*loop.Worker
	metrics *metric.Registry
	log     *slog.Logger
	panics  *panics.Notes // of goroutines
	// What is asked off the workers: names, and connections for checks and calls.
	lookup   func(ctx context.Context, network, name string) ([]netip.Addr, error)
	routable func(netip.Addr) bool
	connect  func(ctx context.Context, network, address string) (net.Conn, error)
	lookups  chan struct{} // has one for each that is under way

	mu   sync.Mutex // of changes; who looks a cluster up does not wait for one
	refs sync.Map   // *Ref by name
}

// Ref is a cluster by name, interned: a route holds a Ref, and finds the
// cluster's current state with one load, also when the cluster comes, goes or
// changes while the route stays.
type Ref struct {
	Name    string
	cluster atomic.Pointer[Cluster]
}

// Cluster is the cluster as it is now, nil where there is none of that name.
func (r *Ref) Cluster() *Cluster { return r.cluster.Load() }

// NewRegistry returns an empty registry. Workers are indexed by their ID.
func NewRegistry(workers []*loop.Worker, metrics *metric.Registry, log *slog.Logger) *Registry {
	return &Registry{workers: workers, metrics: metrics, log: log, panics: panics.New(log),
		// Strict, so that a failure among several questions is not taken for "no such name".
		lookup: (&net.Resolver{PreferGo: true, StrictErrors: true}).LookupNetIP, routable: conn.Routable,
		connect: new(net.Dialer).DialContext, lookups: make(chan struct{}, maxLookups)}
}

// Ref returns the reference for a name; the cluster need not exist.
func (r *Registry) Ref(name string) *Ref {
	if ref, ok := r.refs.Load(name); ok {
		return ref.(*Ref)
	}
	ref, _ := r.refs.LoadOrStore(name, &Ref{Name: name})
	return ref.(*Ref)
}

// Lookup returns the cluster of that name, nil where there is none. For
// routes that take the name from a header, on a worker; others hold a Ref. It
// neither locks nor allocates.
func (r *Registry) Lookup(name string) *Cluster {
	if ref, ok := r.refs.Load(name); ok {
		return ref.(*Ref).Cluster()
	}
	return nil
}

// Set adds a cluster, or updates one. Where only the endpoints differ, hosts
// and their connections stay; otherwise new connections are made under the new
// configuration and the old ones finish what they carry. Endpoints of an EDS
// cluster that is updated stay in force until SetEndpoints.
func (r *Registry) Set(cfg *Config) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ref := r.Ref(cfg.Name)
	old := ref.Cluster()
	if old != nil && old.Config.Hash == cfg.Hash {
		if cfg.Discovery == Static || cfg.byName() {
			old.update(cfg.Endpoints, cfg.DropPercent)
		}
		return
	}
	c := newCluster(cfg, r)
	switch {
	case cfg.byName():
		if old != nil && old.Config.byName() {
			// Until the names are looked up again, what they meant last is better than nothing.
			c.resolved = old.resolvedNow()
		}
		fallthrough
	case cfg.Discovery == Static:
		c.update(cfg.Endpoints, cfg.DropPercent)
	case cfg.Discovery == EDS && old != nil && old.Config.Discovery == EDS && old.Config.EDSName == cfg.EDSName:
		c.update(old.endpointsNow())
	}
	ref.cluster.Store(c)
	c.start()
	if old != nil {
		old.close()
		if old.Config.StatName != cfg.StatName {
			r.metrics.Drop("cluster", old.Config.StatName)
		}
	}
}

// SetEndpoints is EDS's word on a cluster's endpoints.
func (r *Registry) SetEndpoints(cluster string, endpoints []Endpoint, drop uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.Lookup(cluster); c != nil {
		c.update(endpoints, drop)
	}
}

// Remove takes a cluster away; requests under way finish.
func (r *Registry) Remove(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Lookup(name) == nil {
		return
	}
	c := r.Ref(name).cluster.Swap(nil)
	c.close()
	r.metrics.Drop("cluster", c.Config.StatName)
}

// Clusters returns all clusters, sorted by name.
func (r *Registry) Clusters() []*Cluster {
	var all []*Cluster
	r.refs.Range(func(_, ref any) bool {
		if c := ref.(*Ref).Cluster(); c != nil {
			all = append(all, c)
		}
		return true
	})
	sort.Slice(all, func(i, j int) bool { return all[i].Config.Name < all[j].Config.Name })
	return all
}

// Close ends health checks, DNS and all pools.
func (r *Registry) Close() {
	for _, c := range r.Clusters() {
		c.close()
	}
}

// Status lists the hosts of a cluster for /clusters.
func (c *Cluster) Status() []HostStatus {
	set := c.hosts.Load()
	out := make([]HostStatus, 0, len(set.entries))
	for i := range set.entries {
		e := &set.entries[i]
		s := e.host.status(e)
		s.Ejections, s.EjectedUntil = e.host.outlier.seen()
		out = append(out, s)
	}
	return out
}

// endpointKey tells hosts apart: two endpoints with one key are one host.
type endpointKey struct {
	addr     netip.AddrPort
	path     string
	hostname string
}

func (c *Config) keyOf(e *Endpoint) endpointKey {
	k := endpointKey{e.Address, e.Path, e.Hostname}
	if c.Discovery == LogicalDNS {
		k.addr = netip.AddrPortFrom(netip.Addr{}, e.Address.Port()) // one host, wherever it is
	}
	return k
}

// update makes hosts of endpoints, keeping those that were there.
func (c *Cluster) update(endpoints []Endpoint, drop uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endpoints, c.drop = endpoints, drop
	if c.Config.byName() {
		// Names that are known already serve at once, the others when the
		// DNS goroutine has looked.
		c.setHosts(c.expand(endpoints))
		if c.cancel != nil { // else the goroutine is not started, and looks when it is
			select {
			case c.told <- struct{}{}:
			default:
			}
		}
		return
	}
	c.setHosts(endpoints)
}

func (c *Cluster) endpointsNow() ([]Endpoint, uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.endpoints, c.drop
}

// setHosts is called with c.mu held.
func (c *Cluster) setHosts(endpoints []Endpoint) {
	if c.closed {
		return
	}
	known := make(map[endpointKey]*Host, len(c.entries))
	for _, e := range c.entries {
		known[e.key] = e.host
	}
	kept := false
	for i := range endpoints {
		kept = kept || known[c.Config.keyOf(&endpoints[i])] != nil
	}
	entries := make([]entry, 0, len(endpoints))
	members, dirty := false, c.hosts.Load().drop != c.drop
	seen := make(map[endpointKey]bool, len(endpoints))
	for i := range endpoints {
		ep := &endpoints[i]
		key := c.Config.keyOf(ep)
		if seen[key] {
			continue
		}
		seen[key] = true
		h := known[key]
		if h == nil {
			h = c.newHost(ep)
			c.distrust(h, kept)
			members = true
		}
		dirty = h.move(ep) || dirty
		delete(known, key)
		dirty = h.set(flagDiscovery, ep.Health == Unhealthy) || dirty
		dirty = h.set(flagDraining, ep.Health == Draining) || dirty
		dirty = h.set(flagDegraded, ep.Health == Degraded) || dirty
		entries = append(entries, entry{host: h, key: key, weight: max(ep.Weight, 1), priority: ep.Priority, region: ep.Region, zone: ep.Zone})
	}
	gone := make([]*Host, 0, len(known))
	for _, h := range known {
		h.endEjection()
		h.set(flagGone, true)
		gone = append(gone, h)
		members = true
	}
	st := c.Stats.Shared()
	st.Inc(StatUpdates)
	if members {
		st.Inc(StatMembershipChange)
	}
	if !members && !dirty && slices.Equal(c.entries, entries) {
		return // a look-up of DNS that said the same: no ring is built anew for it
	}
	c.entries = entries
	c.publish()
	if len(gone) > 0 {
		c.drainHosts(gone, false)
	}
	if c.checker != nil {
		c.checker.hosts(slices.Clone(entries))
	}
}

// distrust sets what a new host must prove to active checks. As in Envoy a
// host takes requests when its first check went well; but where no other host
// is there to take them meanwhile, it is given the benefit of the doubt.
func (c *Cluster) distrust(h *Host, others bool) {
	if len(c.Config.HealthChecks) == 0 {
		return
	}
	h.set(flagActive, others)
	h.set(flagPending, c.Config.IgnoreNewHosts)
}

// publish builds the host set that workers use. Called with c.mu held.
func (c *Cluster) publish() {
	set := newHostSet(c.Config, c.entries)
	set.drop = c.drop
	old := c.hosts.Swap(set)
	st := c.Stats.Shared()
	st.Add(StatMembershipTotal, int64(len(set.entries)-len(old.entries)))
	st.Add(StatMembershipHealthy, int64(set.healthy-old.healthy))
}

// refresh rebuilds the host set after a host's health changed.
func (c *Cluster) refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.publish()
	}
}

// drainHosts lets the pools of hosts that were removed, or do not serve well,
// finish what they carry, on each worker; with tcp also connections of the TCP
// proxy end, which have no such point.
func (c *Cluster) drainHosts(hosts []*Host, tcp bool) {
	for _, w := range c.registry.workers {
		w.Post(func() {
			for _, h := range hosts {
				h.drain(w.ID())
				if tcp {
					h.closeRaw(w.ID())
				}
			}
		})
	}
}
