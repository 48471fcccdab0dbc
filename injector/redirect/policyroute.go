package redirect

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol is on our rule and routes, and tells them from those of others (rtnetlink(7); numbers above 4 are free).
const routeProtocol = 133

// families are those that the kernel has, and may have kept something of ours for.
func families() []int {
	if _, err := os.Stat("/proc/thread-self/net/if_inet6"); err != nil {
		return []int{unix.AF_INET}
	}
	return []int{unix.AF_INET, unix.AF_INET6}
}

// routable are those in which a route may lead to the loopback interface: it is refused (EACCES) where IPv6 is disabled
// there, and then nobody needs it.
func routable() []int {
	if off, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6"); err == nil && strings.TrimSpace(string(off)) != "0" {
		return []int{unix.AF_INET}
	}
	return families()
}

// ipv6On says whether any interface may have an IPv6 address, now or once it is there.
func ipv6On() bool {
	files, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/disable_ipv6")
	return slices.ContainsFunc(files, func(file string) bool {
		off, err := os.ReadFile(file)
		// That of "all" is no interface's: it has been copied to them when it was set.
		return err == nil && filepath.Base(filepath.Dir(file)) != "all" && strings.TrimSpace(string(off)) == "0"
	})
}

// addPolicyRoute routes packets with routeMark to this host. What is there of ours already stays.
func addPolicyRoute() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return routeError("find the interface lo", err)
	}
	for _, family := range routable() {
		if err := checkRouteTable(family); err != nil {
			return err
		}
		if err := netlink.RouteReplace(policyRoute(family, lo.Attrs().Index)); err != nil {
			return routeError(fmt.Sprintf("add a route to table %d", routeTable), err)
		}
		if err := netlink.RuleAdd(policyRule(family)); err != nil && !errors.Is(err, syscall.EEXIST) {
			return routeError(fmt.Sprintf("add rule %d", rulePriority), err)
		}
	}
	return nil
}

// checkRouteTable refuses to share the table.
func checkRouteTable(family int) error {
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: routeTable}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return routeError(fmt.Sprintf("list routing table %d", routeTable), err)
	}
	for i := range routes {
		if routes[i].Protocol != routeProtocol {
			return fmt.Errorf("routing table %d is used by somebody else (ip route show table %d): "+
				"free it, or take --inbound-mode redirect", routeTable, routeTable)
		}
	}
	rules, err := netlink.RuleList(family)
	if err != nil {
		return routeError("list the routing rules", err)
	}
	for i := range rules {
		if r := &rules[i]; r.Mark == routeMark && r.Table != routeTable {
			return fmt.Errorf("mark %#x is routed to table %d by somebody else (ip rule): "+
				"free it, or take --inbound-mode redirect", routeMark, r.Table)
		}
	}
	return nil
}

// removePolicyRoute removes what addPolicyRoute may have added, and nothing else.
func removePolicyRoute() error {
	for _, family := range families() {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return routeError("list the routing rules", err)
		}
		for i := range rules {
			if r := &rules[i]; r.Protocol == routeProtocol && r.Table == routeTable && r.Mark == routeMark {
				if err := netlink.RuleDel(policyRule(family)); err != nil && !errors.Is(err, syscall.ENOENT) {
					return routeError(fmt.Sprintf("remove rule %d", rulePriority), err)
				}
			}
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: routeTable}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return routeError(fmt.Sprintf("list routing table %d", routeTable), err)
		}
		for i := range routes {
			if routes[i].Protocol != routeProtocol {
				continue
			}
			if err := netlink.RouteDel(policyRoute(family, routes[i].LinkIndex)); err != nil && !errors.Is(err, syscall.ESRCH) {
				return routeError(fmt.Sprintf("remove the route of table %d", routeTable), err)
			}
		}
	}
	return nil
}

func policyRule(family int) *netlink.Rule {
	mask := ^uint32(0)
	r := netlink.NewRule()
	r.Family, r.Priority, r.Mark, r.Mask, r.Table, r.Protocol = family, rulePriority, routeMark, &mask, routeTable, routeProtocol
	return r
}

// policyRoute is "local default dev lo": everything is an address of this host.
func policyRoute(family, lo int) *netlink.Route {
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if family == unix.AF_INET6 {
		all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &netlink.Route{Family: family, LinkIndex: lo, Dst: all, Table: routeTable, Type: unix.RTN_LOCAL,
		Scope: unix.RT_SCOPE_HOST, Protocol: routeProtocol}
}

func routeError(what string, err error) error {
	if errors.Is(err, syscall.EPERM) { // EACCES is another matter, and os.ErrPermission is both
		return errNoAdmin
	}
	return fmt.Errorf("policy routing for TPROXY: cannot %s: %w; --inbound-mode redirect does without", what, err)
}
