package upstream

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"time"
)

// resolve keeps the hosts of a DNS cluster up to date until ctx ends. A name
// that cannot be resolved keeps its last addresses: an outage of DNS is no
// reason to lose hosts that work.
func (c *Cluster) resolve(ctx context.Context) {
	last := map[string][]netip.Addr{}
	refresh := c.Config.DNSRefresh
	for {
		endpoints, _ := c.endpointsNow()
		var out []Endpoint
		for _, ep := range endpoints {
			if ep.Hostname == "" || ep.Address.IsValid() || ep.Path != "" {
				out = append(out, ep)
				continue
			}
			lookup, cancel := context.WithTimeout(ctx, 5*time.Second)
			addrs, err := net.DefaultResolver.LookupNetIP(lookup, cmp.Or(c.Config.DNSFamily, "ip"), ep.Hostname)
			cancel()
			if err != nil {
				if ctx.Err() != nil {
					return
				}
				c.registry.log.Warn("name of an endpoint could not be resolved; its last addresses stay",
					"cluster", c.Config.Name, "name", ep.Hostname, "error", err)
				addrs = last[ep.Hostname]
			} else {
				for i := range addrs {
					addrs[i] = addrs[i].Unmap()
				}
				slices.SortFunc(addrs, netip.Addr.Compare)
				addrs = slices.Compact(addrs)
				last[ep.Hostname] = addrs
			}
			if c.Config.Discovery == LogicalDNS && len(addrs) > 1 {
				addrs = addrs[:1]
			}
			for _, a := range addrs {
				resolved := ep
				resolved.Address = netip.AddrPortFrom(a, ep.Port)
				out = append(out, resolved)
			}
		}
		c.mu.Lock()
		c.setHosts(out)
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(refresh):
		}
	}
}
