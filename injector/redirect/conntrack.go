package redirect

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetDNS removes what connection tracking remembers of this host's questions over UDP. NAT is decided once per flow,
// and a resolver that keeps asking from one socket keeps its flow alive: it would stay outside of new rules, or be led by
// old ones to a port on which nobody listens any more. What other hosts ask through this one, containers too, met no rule
// of ours.
//
// It is a help, no duty: without it the flow expires when it has been silent for two minutes. So its failure (a kernel
// without ctnetlink) is none of Apply's.
func forgetDNS() {
	for _, family := range families() {
		addrs, err := netlink.AddrList(nil, family)
		if err != nil {
			continue
		}
		local := ownQuestions{}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				local[ip.Unmap()] = true
			}
		}
		_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(family), local)
	}
}

// ownQuestions are flows to port 53 over UDP from one of some addresses.
type ownQuestions map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (local ownQuestions) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	from, ok := netip.AddrFromSlice(f.Forward.SrcIP)
	return ok && f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.DstPort == 53 && (local[from.Unmap()] || from.Unmap().IsLoopback())
}
