package upstream

import (
	"net/netip"
	"time"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
)

// Source is the client in whose name a host is connected to (envoy.filters.listener.original_src). It needs CAP_NET_ADMIN,
// and routes that bring the host's answers back here; package injector/redirect makes them for TPROXY. Immutable.
type Source struct {
	Addr netip.AddrPort // port 0: any
	Mark uint32         // SO_MARK of the connection; 0: none
}

// sourceKey is what connections of one pool have in common.
type sourceKey struct {
	Source
	proto Protocol
}

const (
	// maxIdleSources is how many pools without a connection are kept before all of those are let go.
	maxIdleSources = 64
	// sourceIdle is how long a connection in a client's name waits for its next request, at most: nobody else can use it.
	sourceIdle = 30 * time.Second
)

// fits says whether connections to the host can come from there: a Unix socket has no addresses, and those of the other
// family cannot be borrowed. They come from this host then.
func (s *Source) fits(h *Host) bool {
	return s != nil && h.Address().IsValid() && s.Addr.Addr().Is4() == h.Address().Addr().Is4()
}

// options are the cluster's, with the source where it fits.
func (s *Source) options(h *Host) conn.DialOptions {
	o := h.cluster.dialOptions()
	if s.fits(h) {
		o.Source, o.SourcePort, o.Mark, o.Transparent = s.Addr.Addr(), s.Addr.Port(), s.Mark, true
	}
	return o
}

// poolFrom returns the pool of connections in a client's name.
func (h *Host) poolFrom(w *loop.Worker, proto Protocol, from *Source) *Pool {
	pools := h.sourced[w.ID()]
	key := sourceKey{*from, proto}
	if p := pools[key]; p != nil {
		return p
	}
	if pools == nil {
		pools = map[sourceKey]*Pool{}
		h.sourced[w.ID()] = pools
	}
	if len(pools) >= maxIdleSources {
		for k, p := range pools {
			if len(p.all) == 0 && p.waiting.n == 0 {
				delete(pools, k)
			}
		}
	}
	p := &Pool{cluster: h.cluster, host: h, worker: w, stats: h.cluster.Stats.At(w.ID()), proto: proto, source: from}
	pools[key] = p
	return p
}

// idleTimeout is the cluster's; 0 is none.
func (p *Pool) idleTimeout() time.Duration {
	d := p.cluster.Config.IdleTimeout
	if p.source != nil && (d <= 0 || d > sourceIdle) {
		d = sourceIdle
	}
	return d
}
