package upstream

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"
)

const (
	lookupTimeout = 5 * time.Second
	minRefresh    = 100 * time.Millisecond
	// maxAddresses bounds what one name may stand for.
	maxAddresses = 1024
)

// resolve keeps the hosts of a DNS cluster up to date until ctx ends. A name
// that cannot be resolved keeps its last addresses: an outage of DNS is no
// reason to lose hosts that work.
func (c *Cluster) resolve(ctx context.Context) {
	refresh := max(c.Config.DNSRefresh, minRefresh)
	for {
		endpoints, _ := c.endpointsNow()
		found := map[string][]netip.Addr{}
		for i := range endpoints {
			ep := &endpoints[i]
			if !ep.named() || found[ep.Hostname] != nil {
				continue
			}
			addrs, err := c.lookupName(ctx, ep.Hostname)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				c.registry.log.Warn("name of an endpoint could not be resolved; its last addresses stay",
					"cluster", c.Config.Name, "name", ep.Hostname, "error", err)
				continue
			}
			found[ep.Hostname] = addrs
		}
		c.found(found)
		select {
		case <-ctx.Done():
			return
		case <-c.told:
		case <-time.After(refresh):
		}
	}
}

func (c *Cluster) lookupName(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := c.registry.lookup(ctx, cmp.Or(c.Config.DNSFamily, "ip"), name)
	if err != nil {
		return nil, err
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	return addrs[:min(len(addrs), maxAddresses)], nil
}

// found puts new addresses of names in force, and forgets names that are no longer asked for.
func (c *Cluster) found(addrs map[string][]netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := map[string][]netip.Addr{}
	for i := range c.endpoints { // which may have changed since
		name := c.endpoints[i].Hostname
		if a, ok := addrs[name]; ok {
			next[name] = a
		} else if a, ok := c.resolved[name]; ok {
			next[name] = a
		}
	}
	c.resolved = next
	c.setHosts(c.expand(c.endpoints))
}

func (c *Cluster) resolvedNow() map[string][]netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.resolved)
}

// named says that the endpoint is a name to be looked up.
func (ep *Endpoint) named() bool {
	return ep.Hostname != "" && !ep.Address.IsValid() && ep.Path == ""
}

// expand replaces names by their addresses, as far as they are known. Called with c.mu held.
func (c *Cluster) expand(endpoints []Endpoint) []Endpoint {
	var out []Endpoint
	for _, ep := range endpoints {
		if !ep.named() {
			out = append(out, ep)
			continue
		}
		addrs := c.resolved[ep.Hostname]
		if c.Config.Discovery == LogicalDNS && len(addrs) > 1 {
			addrs = addrs[:1]
		}
		for _, a := range addrs {
			one := ep
			one.Address = netip.AddrPortFrom(a, ep.Port)
			out = append(out, one)
		}
	}
	return out
}
