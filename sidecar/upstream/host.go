package upstream

import (
	"net/netip"
	"sync/atomic"
	"time"

	"sallyport/sidecar/conn"
)

// Reasons for which a host takes no requests; a host is healthy when none is set.
const (
	flagDiscovery uint32 = 1 << iota // the control plane says unhealthy
	flagActive                       // active health checks fail
	flagEjected                      // outlier detection
	flagDraining                     // the control plane says draining
	flagDegraded                     // the control plane says degraded
	flagPending                      // not yet checked for the first time
	flagGone                         // removed from the cluster
)

// Host is one endpoint of a cluster. It keeps its identity, and its
// connections, across updates that name the same address. Safe for concurrent
// use except pools, of which each belongs to its worker.
type Host struct {
	cluster  *Cluster
	where    atomic.Pointer[place]
	hostname string
	check    netip.AddrPort

	flags  atomic.Uint32
	active atomic.Int64 // requests under way

	// pools by worker and protocol (see Pool), and connections of the TCP
	// proxy by worker; each belongs to its worker.
	pools []*Pool
	raw   []map[*RawClient]struct{}
	// sourced are the pools of connections from clients' own addresses, or to a server of a name, by worker.
	sourced []map[poolKey]*Pool

	outlier          outlierState
	requests, errors atomic.Uint64
	connects         atomic.Uint64
	connectFails     atomic.Uint64
}

// place is where a host is. Immutable.
type place struct {
	conn.Address
	text string // for logs
}

// move has new connections go to where the endpoint is, and says whether that is another place than before. It happens
// to the host of a LOGICAL_DNS cluster alone, whose connections to the old place stay, as in Envoy.
func (h *Host) move(ep *Endpoint) bool {
	next := &place{conn.Address{IP: ep.Address}, ep.Address.String()}
	if ep.Path != "" {
		next = &place{conn.Address{Path: ep.Path}, ep.Path}
	}
	if old := h.where.Load(); old != nil && old.Address == next.Address {
		return false
	}
	h.where.Store(next)
	return true
}

// Address is the host's address; zero for a Unix socket.
func (h *Host) Address() netip.AddrPort { return h.where.Load().IP }

// String is the address as text, e.g. "127.0.0.1:8080" or a socket's path.
func (h *Host) String() string { return h.where.Load().text }

// Hostname is the name the endpoint was given, or "".
func (h *Host) Hostname() string { return h.hostname }

// Cluster is the cluster that the host belongs to.
func (h *Host) Cluster() *Cluster { return h.cluster }

// Healthy says whether the host takes requests outside of panic.
func (h *Host) Healthy() bool {
	return h.flags.Load()&^flagDegraded == 0
}

// gone says that the host was removed, or its cluster replaced: connections to
// it end when they have nothing to do.
func (h *Host) gone() bool { return h.flags.Load()&flagGone != 0 }

// set changes a flag and says whether it was different before.
func (h *Host) set(flag uint32, on bool) bool {
	for {
		old := h.flags.Load()
		next := old &^ flag
		if on {
			next = old | flag
		}
		if old == next {
			return false
		}
		if h.flags.CompareAndSwap(old, next) {
			return true
		}
	}
}

// HostStatus is what /clusters shows of a host.
type HostStatus struct {
	Address, Hostname string
	Flags             []string // why it takes no requests: "failed_active_hc", …; empty: healthy
	Active            int64
	Requests, Errors  uint64
	Connects, Fails   uint64
	Weight, Priority  uint32
	Region, Zone      string
	Ejections         uint32
	EjectedUntil      time.Time
}

// flagTexts are Envoy's health flags.
var flagTexts = [...]struct {
	flag uint32
	text string
}{
	{flagDiscovery, "failed_eds_health"},
	{flagActive, "failed_active_hc"},
	{flagEjected, "failed_outlier_check"},
	{flagDraining, "eds_status_draining"},
	{flagDegraded, "degraded_eds_health"},
	{flagPending, "pending_active_hc"},
	{flagGone, "pending_dynamic_removal"},
}

func (h *Host) status(e *entry) HostStatus {
	s := HostStatus{Address: h.String(), Hostname: h.hostname, Active: h.active.Load(), Requests: h.requests.Load(), Errors: h.errors.Load(),
		Connects: h.connects.Load(), Fails: h.connectFails.Load(), Weight: e.weight, Priority: e.priority, Region: e.region, Zone: e.zone}
	f := h.flags.Load()
	for _, t := range flagTexts {
		if f&t.flag != 0 {
			s.Flags = append(s.Flags, t.text)
		}
	}
	return s
}
