package upstream

import (
	"net/netip"
	"time"

	"sallyport/sidecar/loop"
)

// originals are one worker's hosts of an OriginalDst cluster: one for each
// address that clients meant to reach. Owned by the worker.
type originals struct {
	hosts  map[netip.AddrPort]*originalHost
	timer  loop.Timer
	closed bool
}

type originalHost struct {
	host *Host
	used bool // since the last sweep
}

const (
	// maxOriginals bounds the addresses that clients can make a worker remember.
	maxOriginals = 16 << 10
	// sweepOriginals is how long an address without requests is remembered
	// at least; Envoy's cleanup_interval is as long.
	sweepOriginals = 5 * time.Second
)

// original returns the host at the address that the client meant to reach,
// nil where that is not known or too many are remembered. It runs on a worker.
func (c *Cluster) original(p *Pick) *Host {
	o := &c.originals[p.Worker]
	at := p.Original
	if port := c.Config.OriginalPort; port != 0 && at.IsValid() {
		at = netip.AddrPortFrom(at.Addr(), port)
	}
	if e := o.hosts[at]; e != nil {
		e.used = true
		return e.host
	}
	if !at.IsValid() || len(o.hosts) >= maxOriginals {
		c.Stats.At(p.Worker).Inc(StatCxNoneHealthy)
		return nil
	}
	h := c.newHost(&Endpoint{Address: at})
	if o.closed {
		h.set(flagGone, true) // a retry of a request that began before the cluster went
		return h
	}
	if o.hosts == nil {
		o.hosts = map[netip.AddrPort]*originalHost{}
		o.timer.Init(func() { c.sweep(p.Worker) })
	}
	o.hosts[at] = &originalHost{h, true}
	if !o.timer.Scheduled() {
		c.registry.workers[p.Worker].Schedule(&o.timer, sweepOriginals)
	}
	return h
}

// sweep forgets the hosts that nobody asked for since the last time.
func (c *Cluster) sweep(worker int) {
	o := &c.originals[worker]
	for a, e := range o.hosts {
		if e.used || e.host.active.Load() > 0 {
			e.used = false
			continue
		}
		e.host.set(flagGone, true)
		e.host.drain(worker)
		delete(o.hosts, a)
	}
	if len(o.hosts) > 0 {
		c.registry.workers[worker].Schedule(&o.timer, sweepOriginals)
	}
}

// dropOriginals lets the hosts of a cluster that is closed go.
func (c *Cluster) dropOriginals() {
	if c.Config.Discovery != OriginalDst {
		return
	}
	for _, w := range c.registry.workers {
		w.Post(func() {
			o := &c.originals[w.ID()]
			o.closed = true
			o.timer.Stop()
			for _, e := range o.hosts {
				e.host.set(flagGone, true)
				e.host.drain(w.ID())
			}
			o.hosts = nil
		})
	}
}
