package redirect

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// PortRange is the ports From to To, both of them included.
type PortRange struct{ From, To uint16 }

// Port is the range of one port.
func Port(p uint16) PortRange { return PortRange{p, p} }

func (r PortRange) String() string {
	if r.From == r.To {
		return strconv.Itoa(int(r.From))
	}
	return fmt.Sprintf("%d-%d", r.From, r.To)
}

// ParsePorts reads a list such as "80,443,8000-8100".
func ParsePorts(list string) (out []PortRange, err error) {
	for item := range items(list) {
		from, to, isRange := strings.Cut(item, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 16)
		b, errB := strconv.ParseUint(to, 10, 16)
		if errA != nil || errB != nil || a == 0 || a > b {
			return nil, fmt.Errorf("%q is not a port: give 1 to 65535, or a range such as 8000-8100", item)
		}
		out = append(out, PortRange{uint16(a), uint16(b)})
	}
	return out, nil
}

// ParseCIDRs reads a list of networks and single addresses such as "10.0.0.0/8,192.0.2.1,fd00::/8".
func ParseCIDRs(list string) (out []netip.Prefix, err error) {
	for item := range items(list) {
		p, err := netip.ParsePrefix(item)
		if err != nil {
			a, errAddr := netip.ParseAddr(item)
			if errAddr != nil || a.Zone() != "" {
				return nil, fmt.Errorf("%q is not a network: give one such as 10.0.0.0/8, fd00::/8 or 192.0.2.1", item)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is an IPv4 network written as IPv6: give it as IPv4", item)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func items(list string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for item := range strings.SplitSeq(list, ",") {
			if item = strings.TrimSpace(item); item != "" && !yield(item) {
				return
			}
		}
	}
}

// joinPorts puts ranges in order and joins those that overlap or touch: a set of the kernel takes no overlaps.
func joinPorts(in []PortRange) (out []PortRange) {
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b PortRange) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	for _, r := range in {
		if last := len(out) - 1; last >= 0 && int(r.From) <= int(out[last].To)+1 {
			out[last].To = max(out[last].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out
}

// joinPrefixes puts networks in order, IPv4 first, without those that lie in another.
func joinPrefixes(in []netip.Prefix) (out []netip.Prefix) {
	in = slices.Clone(in)
	for i := range in {
		in[i] = in[i].Masked()
	}
	slices.SortFunc(in, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range in {
		if last := len(out) - 1; last >= 0 && out[last].Bits() <= p.Bits() && out[last].Contains(p.Addr()) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// family returns the networks of IPv4, or those of IPv6.
func ofFamily(in []netip.Prefix, v6 bool) (out []netip.Prefix) {
	for _, p := range in {
		if p.Addr().Is6() == v6 {
			out = append(out, p)
		}
	}
	return out
}

func hasPort(in []PortRange, port uint16) bool {
	return slices.ContainsFunc(in, func(r PortRange) bool { return r.From <= port && port <= r.To })
}

func inOrder[T cmp.Ordered](in []T) []T {
	out := slices.Clone(in)
	slices.Sort(out)
	return slices.Compact(out)
}
