package build

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

// bindAddress is where a listener of a Gateway listens on this proxy.
func (b *builder) bindAddress(g *policy.Gateway, l *gatewayv1.Listener) (host string, port uint32) {
	host, port = "0.0.0.0", uint32(l.Port)
	if len(g.Spec.Addresses) > 0 {
		host = g.Spec.Addresses[0].Value
	}
	if a, err := netip.ParseAddr(b.proxy.Listen); err == nil {
		host = a.String()
	} else if a, err := netip.ParseAddrPort(b.proxy.Listen); err == nil {
		host = a.Addr().String()
		if len(ports(g)) == 1 && a.Port() != 0 {
			port = uint32(a.Port())
		}
	}
	if a, err := netip.ParseAddrPort(b.proxy.Listeners[string(l.Name)]); err == nil {
		host, port = a.Addr().String(), uint32(a.Port())
	}
	return host, port
}

// ports are the listeners of a gateway, by port, in order.
func ports(g *policy.Gateway) (out [][]*gatewayv1.Listener) {
	at := map[gatewayv1.PortNumber]int{}
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		if _, ok := at[l.Port]; !ok {
			at[l.Port] = len(out)
			out = append(out, nil)
		}
		out[at[l.Port]] = append(out[at[l.Port]], l)
	}
	return out
}

func (b *builder) gateway() (policy.Key, *policy.Gateway) {
	key := policy.Key{Namespace: b.proxy.Namespace, Name: b.proxy.Gateway}
	g := b.Policy.Gateways[key]
	if g == nil {
		b.fail(ErrNoGateway)
	}
	return key, g
}

// edge makes the listeners of a Gateway: one per port. HTTP listeners of a port are told apart by the requests' hosts, HTTPS
// ones by the server name of the handshake, each with routes of its own: a request for one cannot come in by another.
func (b *builder) edge() {
	key, g := b.gateway()
	if g == nil {
		return
	}
	for _, group := range ports(g) {
		first := group[0]
		host, port := b.bindAddress(g, first)
		name := "edge/" + key.String() + "/" + portText(uint32(first.Port))
		l := &listenerv3.Listener{Name: name, Address: address(host, port), TrafficDirection: corev3.TrafficDirection_INBOUND,
			PerConnectionBufferLimitBytes: number(32 << 10)}
		if first.Protocol == gatewayv1.HTTPProtocolType {
			l.FilterChains = []*listenerv3.FilterChain{b.public(key, name, group)}
		} else {
			l.ListenerFilters = []*listenerv3.ListenerFilter{b.tlsInspector()}
			for _, one := range group {
				chain := b.public(key, name+"/"+string(one.Name), []*gatewayv1.Listener{one})
				chain.Name = string(one.Name)
				if one.Hostname != nil && *one.Hostname != "" {
					chain.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: []string{strings.ToLower(string(*one.Hostname))}}
				}
				chain.TransportSocket = b.publicTLS(b.secrets(g, one))
				chain.TransportSocketConnectTimeout = durationpb.New(handshakeTimeout)
				l.FilterChains = append(l.FilterChains, chain)
			}
		}
		b.out.Listeners = append(b.out.Listeners, l)
	}
}

// secrets adds the certificates of a listener to what the edge is given.
func (b *builder) secrets(g *policy.Gateway, l *gatewayv1.Listener) (out []policy.Key) {
	for _, r := range l.TLS.CertificateRefs {
		k := policy.Key{Namespace: g.Namespace, Name: string(r.Name)}
		b.secret(k)
		out = append(out, k)
	}
	return out
}

// public is the filter chain of some listeners of a gateway, with the routes that are attached to them.
func (b *builder) public(key policy.Key, name string, listeners []*gatewayv1.Listener) *listenerv3.FilterChain {
	s := scope{gateway: &key}
	// Routes by hostname; hostnames with the same routes share a virtual host.
	hosts := map[string][]*policy.HTTPRoute{}
	var all []*policy.HTTPRoute
	for _, l := range listeners {
		for _, on := range b.Policy.RoutesOn(key, string(l.Name)) {
			all = append(all, on.Route)
			for _, h := range on.Hostnames {
				if !slices.Contains(hosts[h], on.Route) {
					hosts[h] = append(hosts[h], on.Route)
				}
			}
		}
	}
	groups := map[string][]string{} // hostnames by their routes
	for h, routes := range hosts {
		k := ""
		for _, r := range routes {
			k += r.Namespace + "/" + r.Name + " "
		}
		groups[k] = append(groups[k], h)
	}
	rc := &routev3.RouteConfiguration{Name: name, IgnorePortInHostMatching: true}
	for _, domains := range groups {
		slices.Sort(domains)
		var entries []entry
		for _, r := range hosts[domains[0]] {
			entries = append(entries, b.entries(r, s)...)
		}
		rc.VirtualHosts = append(rc.VirtualHosts, b.virtualHost(domains[0], domains, entries))
	}
	slices.SortFunc(rc.VirtualHosts, func(x, y *routev3.VirtualHost) int { return cmp.Compare(x.Name, y.Name) })
	b.out.Routes = append(b.out.Routes, rc)
	m := b.manager(statOf(name), name, filterSet{jwt: b.jwtOf(s, all), limit: b.Policy.RateLimit.Find(s.target())})
	public(m)
	return &listenerv3.FilterChain{Filters: []*listenerv3.Filter{b.filter(managerFilter, m)}}
}

// How an L4 tier finds out that an edge is gone, where no policy says otherwise.
const (
	tierInterval = time.Second
	tierTimeout  = 500 * time.Millisecond
	tierAttempts = 3
)

// l4 makes a tier that spreads TCP connections over the edges of a Gateway. It does not look into them: TLS ends at the edge.
// The edges are the instances of a service in the catalog, by default the one named like the Gateway. An instance's port is
// that of the first listener; meta "port.LISTENER" is that of another, where it is not the Gateway's own.
func (b *builder) l4() {
	key, g := b.gateway()
	if g == nil {
		return
	}
	service := b.Catalog.Service(catalog.Name{Namespace: key.Namespace, Name: cmp.Or(b.proxy.Service, key.Name)})
	for i, group := range ports(g) {
		l := group[0]
		name := "l4/" + key.String() + "/" + portText(uint32(l.Port))
		host, port := b.bindAddress(g, l)
		c := &clusterv3.Cluster{
			Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()}, ConnectTimeout: durationpb.New(time.Second),
		}
		b.policies(c, policy.ServiceTarget(service.Namespace, service.Name.Name), false)
		if c.HealthChecks == nil {
			c.HealthChecks = []*corev3.HealthCheck{{
				Timeout: durationpb.New(tierTimeout), Interval: durationpb.New(tierInterval), NoTrafficInterval: durationpb.New(tierInterval),
				HealthyThreshold: number(1), UnhealthyThreshold: number(1),
				HealthChecker: &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{}}}}
		}
		b.out.Clusters = append(b.out.Clusters, c)
		b.endpoints(name, service, func(v *catalog.Instance) (catalog.Endpoint, bool) {
			e := catalog.Endpoint{Address: v.Address, Port: uint32(l.Port)}
			if i == 0 {
				e.Port = v.Port
			}
			if _, p := splitHostPort("x:" + v.Meta["port."+string(l.Name)]); p != 0 {
				e.Port = p
			}
			_, err := netip.ParseAddr(e.Address)
			return e, err == nil
		})
		b.out.Listeners = append(b.out.Listeners, &listenerv3.Listener{
			Name: name, Address: address(host, port), TrafficDirection: corev3.TrafficDirection_INBOUND,
			FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{b.filter(tcpFilter, &tcpv3.TcpProxy{
				StatPrefix: statOf(name), ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: name}, AccessLog: b.accessLog,
				MaxConnectAttempts: wrapperspb.UInt32(tierAttempts), HashPolicy: b.hashOfBytes(policy.Key{Namespace: service.Namespace, Name: service.Name.Name})})}}},
		})
	}
}
