package redirect

import (
	"net"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

const resolvConf = "/etc/resolv.conf"

// LookAround settles what a configuration leaves to the host: DNSAuto. Apply calls it; who only prints rules does so itself.
func (c *Config) LookAround() {
	if c.DNSTo != DNSAuto {
		return
	}
	c.DNSTo = DNSAll
	// The resolver of the host is not in an application's cgroup.
	if c.Cgroup == "" && c.DNSPort != 0 && onlyLocal(resolvConf) {
		c.DNSTo = DNSLocal
	}
}

// onlyLocal says that a file like /etc/resolv.conf names resolvers, and none but those of this host.
func onlyLocal(file string) bool {
	conf, err := dns.ClientConfigFromFile(file)
	if err != nil || len(conf.Servers) == 0 {
		return false
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(conf.Servers, func(s string) bool {
		a, err := netip.ParseAddr(s)
		return err != nil || !a.IsLoopback() && !slices.ContainsFunc(own, func(n net.Addr) bool {
			p, err := netip.ParsePrefix(n.String())
			return err == nil && p.Addr() == a.WithZone("")
		})
	})
}
