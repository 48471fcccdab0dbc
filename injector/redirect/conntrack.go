package redirect

import (
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetDNS removes what connection tracking remembers of questions over UDP. NAT is decided once per flow, and a
// resolver that keeps asking from one socket keeps its flow alive: it would stay outside of new rules, or be led by old
// ones to a port on which nobody listens any more.
//
// It is a help, no duty: without it the flow expires when it has been silent for two minutes. So its failure (a kernel
// without ctnetlink) is none of Apply's.
func forgetDNS() {
	for _, family := range families() {
		for _, proto := range []uint8{unix.IPPROTO_UDP} {
			f := &netlink.ConntrackFilter{}
			if f.AddProtocol(proto) == nil && f.AddPort(netlink.ConntrackOrigDstPort, 53) == nil {
				_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(family), f)
			}
		}
	}
}
