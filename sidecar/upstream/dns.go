package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"
)

// DNSFamily is Envoy's DnsLookupFamily: which addresses a name stands for.
type DNSFamily uint8

const (
	DNSAuto        DNSFamily = iota // IPv6; IPv4 where there are none, or none that a route leads to
	DNSv4Only                       // IPv4
	DNSv6Only                       // IPv6
	DNSv4Preferred                  // IPv4; IPv6 where there are none
	DNSAll                          // both
)

const (
	lookupTimeout = 5 * time.Second
	minRefresh    = 100 * time.Millisecond
	// maxAddresses bounds what one name may stand for.
	maxAddresses = 1024
	// maxLookups bounds the look-ups that are under way, of all clusters.
	maxLookups = 64
)

// resolve keeps the hosts of a DNS cluster up to date until ctx ends. Each name is looked up by itself, so that one that
// takes long, or fails, keeps no other from being known.
func (c *Cluster) resolve(ctx context.Context) {
	defer c.registry.panics.Recover("DNS of a cluster")
	running := map[string]context.CancelFunc{}
	c.watchNames(ctx, running)
	for {
		select {
		case <-ctx.Done():
			return // the names' contexts are children of this one
		case <-c.told:
			c.watchNames(ctx, running)
		case <-c.answered:
			// Answers that came meanwhile are published together.
			c.mu.Lock()
			c.setHosts(c.expand(c.endpoints))
			c.mu.Unlock()
		}
	}
}

// watchNames starts to look up the names that are new, and ends it for those that no endpoint has any more.
func (c *Cluster) watchNames(ctx context.Context, running map[string]context.CancelFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wanted := map[string]bool{}
	for i := range c.endpoints {
		if ep := &c.endpoints[i]; ep.named() {
			wanted[ep.Hostname] = true
		}
	}
	for name, cancel := range running {
		if !wanted[name] {
			cancel()
			delete(running, name)
		}
	}
	for name := range c.resolved {
		if !wanted[name] {
			delete(c.resolved, name)
		}
	}
	for name := range wanted {
		if running[name] == nil {
			one, cancel := context.WithCancel(ctx)
			running[name] = cancel
			go c.watchName(one, name)
		}
	}
}

// watchName looks a name up again and again until ctx ends. What it meant last stays while that fails: an outage of DNS
// is no reason to lose hosts that work. An answer that there are none is an answer; but, as in Envoy, a LOGICAL_DNS
// cluster does not lose its only host by one.
func (c *Cluster) watchName(ctx context.Context, name string) {
	st, log := c.Stats.Shared(), c.registry.log.With("cluster", c.Config.Name, "name", name)
	failures := 0
	for {
		st.Inc(StatUpdateAttempt)
		addrs, err := c.lookupName(ctx, name)
		if ctx.Err() != nil {
			return
		}
		if err == nil && len(addrs) == 0 && c.Config.Discovery == LogicalDNS {
			err = errNoAddress
		}
		wait := c.Config.DNSRefresh
		if err != nil {
			st.Inc(StatUpdateFailure)
			if failures++; failures == 1 {
				log.Warn("name of an endpoint cannot be resolved; its last addresses stay", "error", err)
			}
			wait = c.Config.failureRefresh(failures)
		} else {
			if failures > 0 {
				log.Info("name of an endpoint is resolved again", "addresses", len(addrs))
			}
			failures = 0
			c.found(name, addrs)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(wait, minRefresh)):
		}
	}
}

var (
	errNoAddress = errors.New("the name has no address")
	errPanic     = errors.New("panic, which the log has with its stack")
)

// failureRefresh is how long to wait after so many failures in a row: dns_failure_refresh_rate, with jitter, or
// dns_refresh_rate where it is not set.
func (c *Config) failureRefresh(failures int) time.Duration {
	if c.DNSFailure == 0 {
		return c.DNSRefresh
	}
	most := c.DNSFailure
	for ; failures > 1 && most < c.DNSFailureMax; failures-- {
		most *= 2
	}
	return rand.N(max(min(most, c.DNSFailureMax), 1)) + 1
}

// found notes what a name means now.
func (c *Cluster) found(name string, addrs []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.resolved == nil {
		c.resolved = map[string][]netip.Addr{}
	}
	if old, known := c.resolved[name]; known && slices.Equal(old, addrs) {
		return
	}
	c.resolved[name] = addrs
	select {
	case c.answered <- struct{}{}:
	default:
	}
}

// lookupName returns the addresses of the cluster's family, none where that is the answer. Those of a STRICT_DNS cluster
// are in order, as servers turn their answers round and all of them are used; those of a LOGICAL_DNS cluster are as they
// came, for the first one is used.
func (c *Cluster) lookupName(ctx context.Context, name string) (addrs []netip.Addr, err error) {
	err = errPanic
	defer c.registry.panics.Recover("DNS look-up")
	return c.lookupNow(ctx, name)
}

func (c *Cluster) lookupNow(ctx context.Context, name string) ([]netip.Addr, error) {
	select {
	case c.registry.lookups <- struct{}{}:
		defer func() { <-c.registry.lookups }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := c.lookupFamily(ctx, name)
	if err != nil {
		return nil, err
	}
	unique := addrs[:0]
	for _, a := range addrs {
		if a = a.Unmap(); !slices.Contains(unique, a) && len(unique) < maxAddresses {
			unique = append(unique, a)
		}
	}
	if c.Config.Discovery == StrictDNS {
		slices.SortFunc(unique, netip.Addr.Compare)
	}
	return unique, nil
}

func (c *Cluster) lookupFamily(ctx context.Context, name string) ([]netip.Addr, error) {
	switch c.Config.DNSFamily {
	case DNSv4Only:
		return c.ask(ctx, "ip4", name)
	case DNSv6Only:
		return c.ask(ctx, "ip6", name)
	}
	order := []string{"ip4", "ip6"}
	if c.Config.DNSFamily == DNSAuto {
		order = []string{"ip6", "ip4"}
	}
	var all []netip.Addr
	var failed error
	for _, network := range order {
		addrs, err := c.ask(ctx, network, name)
		if c.Config.DNSFamily == DNSAuto && network == "ip6" {
			// Envoy takes them all the same, and cannot connect.
			addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !c.registry.routable(a) })
		}
		failed = errors.Join(failed, err)
		if all = append(all, addrs...); len(all) > 0 && c.Config.DNSFamily != DNSAll {
			break
		}
	}
	if len(all) > 0 {
		return all, nil // what one family has is no worse for the other's failure
	}
	return nil, failed
}

// ask is one question. That the name does not exist, or has no such addresses, is an answer and no error.
func (c *Cluster) ask(ctx context.Context, network, name string) ([]netip.Addr, error) {
	addrs, err := c.registry.lookup(ctx, network, name)
	if noneExists(err) {
		return nil, nil
	}
	return addrs, err
}

// noneExists tells an answer from a failure: NXDOMAIN and an empty answer, or a line of /etc/hosts with addresses of the
// other family alone.
func noneExists(err error) bool {
	var dns *net.DNSError
	var addr *net.AddrError
	return errors.As(err, &dns) && dns.IsNotFound && !dns.IsTemporary && !dns.IsTimeout || errors.As(err, &addr)
}

func (c *Cluster) resolvedNow() map[string][]netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := make(map[string][]netip.Addr, len(c.resolved))
	for name, addrs := range c.resolved {
		known[name] = addrs
	}
	return known
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
