package upstream

import (
	"bytes"
	"cmp"
	"net/netip"
	"time"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
)

// Source is the client in whose name a host is connected to (envoy.filters.listener.original_src). It needs CAP_NET_ADMIN,
// and routes that bring the host's answers back here; package injector/redirect makes them for TPROXY. Immutable.
type Source struct {
	Addr netip.AddrPort // port 0: any
	Mark uint32         // SO_MARK of the connection; 0: none
}

// poolKey is what connections of a pool have in common that not every request of the cluster can use: those in a client's
// name, or to a server that was asked for by name.
type poolKey struct {
	Source
	sni   string
	proto Protocol
}

const (
	// maxIdlePools is how many such pools without a connection are kept before all of those are let go.
	maxIdlePools = 64
	// poolIdle is how long a connection of such a pool waits for its next request, at most: few others can use it.
	poolIdle = 30 * time.Second
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

// PoolFor is Pool for a request to authority. A cluster with auto_sni has TLS connections for each name that is asked
// for, as Envoy: the server may choose its certificate, and what it serves, by it.
func (h *Host) PoolFor(w *loop.Worker, downstream message.Version, from *Source, authority []byte) *Pool {
	cfg := h.cluster.Config
	if !cfg.AutoSNI || cfg.TLS == nil {
		return h.Pool(w, downstream, from)
	}
	if !from.fits(h) {
		from = nil
	}
	return h.poolFrom(w, h.protocol(downstream), from, serverName(authority))
}

// serverName is what a server name (RFC 6066 §3) can be of an authority: its host without port and final dot, no address.
func serverName(authority []byte) []byte {
	if i := bytes.LastIndexByte(authority, ':'); i >= 0 && !bytes.HasSuffix(authority, []byte{']'}) {
		authority = authority[:i]
	}
	name := bytes.TrimSuffix(authority, []byte{'.'})
	if len(name) == 0 || len(name) > maxServerName || name[0] == '[' {
		return nil
	}
	// The last label of a name has a letter (RFC 3696 §2).
	last := name[bytes.LastIndexByte(name, '.')+1:]
	if len(bytes.Trim(last, "0123456789")) == 0 {
		return nil
	}
	return name
}

// maxServerName is how long a DNS name may be (RFC 1035 §2.3.4).
const maxServerName = 253

// poolFrom returns the pool of connections in a client's name, or for a server's name.
func (h *Host) poolFrom(w *loop.Worker, proto Protocol, from *Source, sni []byte) *Pool {
	pools := h.sourced[w.ID()]
	var source Source
	if from != nil {
		source = *from
	}
	if p := pools[poolKey{source, string(sni), proto}]; p != nil {
		return p
	}
	key := poolKey{source, string(sni), proto}
	if pools == nil {
		pools = map[poolKey]*Pool{}
		h.sourced[w.ID()] = pools
	}
	if len(pools) >= maxIdlePools {
		for k, p := range pools {
			if len(p.all) == 0 && p.waiting.n == 0 {
				delete(pools, k)
			}
		}
	}
	p := &Pool{cluster: h.cluster, host: h, worker: w, stats: h.cluster.Stats.At(w.ID()), proto: proto, source: from, sni: key.sni, narrow: true}
	pools[key] = p
	return p
}

// full says that a pool of which there may be any number cannot have its first connection: the circuit breaker is for all
// of them together, and no other request will ever free a place in this one.
func (p *Pool) full(priority int) bool {
	return p.narrow && len(p.all) == 0 && p.cluster.breakers[priority].connections.Load() >= int64(p.cluster.Config.Breakers[priority].Connections)
}

// serverName is what TLS of the pool's connections asks for, where the name is not configured.
func (p *Pool) serverName() string { return cmp.Or(p.sni, p.host.hostname) }

// idleTimeout is the cluster's; 0 is none.
func (p *Pool) idleTimeout() time.Duration {
	d := p.cluster.Config.IdleTimeout
	if p.narrow && (d <= 0 || d > poolIdle) {
		d = poolIdle
	}
	return d
}
