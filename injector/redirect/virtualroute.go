package redirect

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The control plane gives services virtual addresses of these ranges (package xds/build). Nobody has them, and the rules
// redirect what is sent to them; but the kernel looks for a route before it asks the rules, and a host without a default
// route would say that the network is unreachable.
var virtualRanges = map[int]*net.IPNet{
	unix.AF_INET:  {IP: net.IPv4(240, 0, 0, 0).To4(), Mask: net.CIDRMask(5, 32)},
	unix.AF_INET6: {IP: net.ParseIP("fd53:616c:6c79::"), Mask: net.CIDRMask(48, 128)},
}

// addVirtualRoutes routes the virtual addresses to the loopback interface where no route leads to them.
func addVirtualRoutes() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return virtualError("find the interface lo", err)
	}
	for _, family := range routable() {
		if _, err := netlink.RouteGet(virtualRanges[family].IP); err == nil {
			continue
		} else if !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EHOSTUNREACH) {
			continue // a route that refuses was made on purpose
		}
		r := virtualRoute(family, lo.Attrs().Index)
		if family == unix.AF_INET && onlyLoopback() {
			// The kernel takes an address of the scope of the host for no other host by itself.
			r.Src = net.IPv4(127, 0, 0, 1)
		}
		if err := netlink.RouteReplace(r); err != nil {
			return virtualError(fmt.Sprintf("add a route to %s", virtualRanges[family]), err)
		}
	}
	return nil
}

// onlyLoopback says that this host has no IPv4 address but those of the loopback network.
func onlyLoopback() bool {
	addrs, err := netlink.AddrList(nil, unix.AF_INET)
	return err == nil && !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return !a.IP.IsLoopback() })
}

// removeVirtualRoutes removes what addVirtualRoutes has added, and nothing else.
func removeVirtualRoutes() error {
	for _, family := range families() {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err != nil {
			return virtualError("list the routes", err)
		}
		for i := range routes {
			if dst := routes[i].Dst; dst == nil || dst.String() != virtualRanges[family].String() {
				continue
			}
			if err := netlink.RouteDel(virtualRoute(family, routes[i].LinkIndex)); err != nil && !errors.Is(err, syscall.ESRCH) {
				return virtualError(fmt.Sprintf("remove the route to %s", virtualRanges[family]), err)
			}
		}
	}
	return nil
}

func virtualRoute(family, lo int) *netlink.Route {
	return &netlink.Route{Family: family, LinkIndex: lo, Dst: virtualRanges[family], Table: unix.RT_TABLE_MAIN,
		Scope: unix.RT_SCOPE_LINK, Protocol: routeProtocol}
}

func virtualError(what string, err error) error {
	if errors.Is(err, syscall.EPERM) {
		return errNoAdmin
	}
	return fmt.Errorf("routing of virtual addresses: cannot %s: %w; a default route does as well", what, err)
}
