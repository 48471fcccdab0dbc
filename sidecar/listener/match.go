package listener

import (
	"net/netip"
	"slices"
	"strings"
)

// match chooses the filter chain of a connection. Envoy compares criteria in a
// fixed order, and at each step keeps only the chains that match it most
// specifically: destination port, destination address, server name, transport
// protocol, application protocols, direct source, source type, source
// address, source port.
func (c *Config) match(k *connection) *Chain {
	dst := k.destination()
	src := k.Remote.Addr().Unmap()
	left := make([]*Chain, 0, 8)
	left = append(left, c.Chains...)
	keep := func(specific func(*Match) int) {
		best := -1
		out := left[:0]
		for _, ch := range left {
			// -1: does not match; 0: says nothing; more: the more specific the higher.
			switch s := specific(&ch.Match); {
			case s < 0:
			case s > best:
				best = s
				out = append(left[:0], ch)
			case s == best:
				out = append(out, ch)
			}
		}
		left = out
	}
	keep(func(m *Match) int {
		switch m.DestinationPort {
		case 0:
			return 0
		case dst.Port():
			return 1
		}
		return -1
	})
	keep(func(m *Match) int { return longest(m.DestinationPrefix, dst.Addr().Unmap()) })
	keep(func(m *Match) int { return serverName(m.ServerNames, k.SNI) })
	keep(func(m *Match) int {
		switch m.TransportProtocol {
		case "":
			return 0
		case k.transport:
			return 1
		}
		return -1
	})
	keep(func(m *Match) int {
		if len(m.ApplicationProtocols) == 0 {
			return 0
		}
		for i, p := range k.alpn {
			if slices.Contains(m.ApplicationProtocols, p) {
				return len(k.alpn) - i // the client's order of preference
			}
		}
		return -1
	})
	keep(func(m *Match) int { return longest(m.DirectSource, k.Direct.Addr().Unmap()) })
	keep(func(m *Match) int {
		local := src.IsLoopback() || src == dst.Addr().Unmap()
		switch {
		case m.SourceType == 0:
			return 0
		case (m.SourceType == 1) == local:
			return 1
		}
		return -1
	})
	keep(func(m *Match) int { return longest(m.SourcePrefix, src) })
	keep(func(m *Match) int {
		if len(m.SourcePorts) == 0 {
			return 0
		}
		if slices.Contains(m.SourcePorts, k.Remote.Port()) {
			return 1
		}
		return -1
	})
	if len(left) > 0 {
		return left[0]
	}
	return c.Default
}

// longest is the length of the longest prefix that holds a, plus one.
func longest(prefixes []netip.Prefix, a netip.Addr) int {
	if len(prefixes) == 0 {
		return 0
	}
	best := -1
	for _, p := range prefixes {
		if p.Contains(a) {
			best = max(best, p.Bits()+1)
		}
	}
	return best
}

// serverName is 0 where nothing is asked, else more for an exact name than for
// a wildcard, and for a longer one of those.
func serverName(names []string, sni string) int {
	if len(names) == 0 {
		return 0
	}
	sni = strings.ToLower(sni)
	best := -1
	for _, n := range names {
		switch {
		case n == sni && n != "":
			return 1 << 20
		case strings.HasPrefix(n, "*.") && strings.HasSuffix(sni, n[1:]) && len(sni) > len(n)-1:
			best = max(best, len(n))
		}
	}
	return best
}

// same finds the chain that an open connection of the old one goes on under.
func (c *Config) same(old *Chain) *Chain {
	if old == nil {
		return nil
	}
	for _, ch := range c.Chains {
		if ch.Key == old.Key && ch.Secure == old.Secure {
			return ch
		}
	}
	if d := c.Default; d != nil && d.Key == old.Key && d.Secure == old.Secure {
		return d
	}
	return nil
}
