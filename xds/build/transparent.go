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
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	originalsrcv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

// Transparent is what a sidecar says that takes its application's traffic by redirection (package injector/redirect).
type Transparent struct {
	Outbound uint32 // port of the virtual outbound listener
	Inbound  uint32 // port of the virtual inbound listener
	DNS      uint32 // port of the resolver; 0: none
	TProxy   bool   // inbound connections come by TPROXY, with their destination as it was
	IPv6     bool   // the host has it
}

const (
	passthroughCluster = "passthrough"
	blackholeCluster   = "blackhole"
	hostsRoutes        = "outbound/hosts"
	// sniffTime is how long the first bytes of a connection to an unknown address are waited for. A protocol in which the
	// server speaks first passes after it; where the port or the address is that of a service with a declared protocol
	// nothing is waited for.
	sniffTime = 300 * time.Millisecond
)

// transparent makes the listeners of a transparent sidecar: one socket for all that the application sends, behind it a
// listener without a socket for each address that means a service, and one socket for all that it receives.
func (b *builder) transparent(own *catalog.Service) {
	// What is not of the mesh keeps its own names and addresses.
	names := slices.DeleteFunc(b.Catalog.Names(), func(n catalog.Name) bool { return !ofTheMesh(b.Catalog.Services[n]) })
	addresses := virtualAddresses(names)
	domains := b.domains(names)
	b.passthrough()
	ports := map[uint32][]*catalog.Service{}
	for _, n := range names {
		service := b.Catalog.Services[n]
		b.virtualService(service, addresses[n])
		for _, p := range appPorts(service) {
			ports[p] = append(ports[p], service)
		}
	}
	for _, p := range sortedPorts(ports) {
		b.outboundPort(p, ports[p])
	}
	b.hosts(names, domains)
	b.virtualOutbound()
	if b.proxy.Port != 0 { // a job, say, has nothing that listens
		b.virtualInbound(own)
	}
	if b.proxy.Transparent.DNS != 0 {
		b.dns(names, domains, addresses)
	}
}

// ofTheMesh says that a service has an instance with a sidecar, or none at all: of a database, or of what has not come into
// the mesh yet, only the plaintext port is known, and no address of ours leads to it.
func ofTheMesh(s *catalog.Service) bool {
	return len(s.Instances) == 0 || slices.ContainsFunc(s.Instances, func(i catalog.Instance) bool { return i.InMesh() })
}

func sortedPorts(m map[uint32][]*catalog.Service) []uint32 {
	out := make([]uint32, 0, len(m))
	for p := range m {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// appPorts are the ports on which the instances' applications listen, in order.
func appPorts(s *catalog.Service) (out []uint32) {
	for i := range s.Instances {
		if v := &s.Instances[i]; v.InMesh() && v.Port != 0 {
			out = append(out, v.Port)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// blocked says that what is not of the mesh may not be reached.
func (b *builder) blocked() bool { return b.Policy.Mesh.OutboundTraffic == "block" }

// passthrough adds the clusters of what is not of the mesh: to where it was going, and to nowhere.
func (b *builder) passthrough() {
	b.out.Clusters = append(b.out.Clusters, &clusterv3.Cluster{
		Name: passthroughCluster, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED, ConnectTimeout: durationpb.New(10 * time.Second),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: number(unlimited), MaxPendingRequests: number(unlimited), MaxRequests: number(unlimited), MaxRetries: number(unlimited)}}},
		// Whatever the application speaks is spoken on.
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptions: b.pack(&httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
				UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{AllowConnect: true}}}})},
	}, &clusterv3.Cluster{
		Name: blackholeCluster, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, ConnectTimeout: durationpb.New(time.Second),
	})
}

// unknown is where a connection goes that means nothing of the mesh.
func (b *builder) unknown(stat string) []*listenerv3.Filter {
	cluster := passthroughCluster
	if b.blocked() {
		cluster = blackholeCluster
	}
	return b.tcp(stat, cluster)
}

func (b *builder) tcp(stat, cluster string) []*listenerv3.Filter {
	return []*listenerv3.Filter{b.filter(tcpFilter, &tcpv3.TcpProxy{StatPrefix: stat, ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: cluster}, AccessLog: b.accessLog})}
}

// toService are the filters of a connection that means a service.
func (b *builder) toService(service *catalog.Service) []*listenerv3.Filter {
	name := "outbound/" + service.Name.String()
	key := policy.Key{Namespace: service.Namespace, Name: service.Name.Name}
	stat := statOf("outbound", service.Name.String())
	if !service.Protocol.IsHTTP() {
		return b.bytesTo(stat, key)
	}
	routes := b.Policy.RoutesOf(key)
	m := b.transparentManager(stat, name, filterSet{jwt: b.jwtOf(scope{service: &key}, routes)})
	if !b.clusters["routes "+name] {
		b.clusters["routes "+name] = true
		b.outboundRoutes(name, service.Name, key, routes)
	}
	return []*listenerv3.Filter{b.filter(managerFilter, m)}
}

// socketless is a listener that gets its connections from the virtual outbound listener.
func socketless(name, host string, port uint32) *listenerv3.Listener {
	return &listenerv3.Listener{Name: name, Address: address(host, port), BindToPort: wrapperspb.Bool(false), TrafficDirection: corev3.TrafficDirection_OUTBOUND}
}

// virtualService makes the listeners of a service's virtual address: at the ports of its instances, and at 80 for HTTP.
func (b *builder) virtualService(service *catalog.Service, at virtual) {
	ports := appPorts(service)
	if service.Protocol.IsHTTP() && !slices.Contains(ports, 80) {
		ports = append(ports, 80)
	}
	for _, p := range ports {
		l := socketless("outbound/"+service.Name.String()+"/"+portText(p), at.v4.String(), p)
		if b.proxy.Transparent.IPv6 {
			l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: address(at.v6.String(), p)}}
		}
		l.FilterChains = []*listenerv3.FilterChain{{Filters: b.toService(service)}}
		b.out.Listeners = append(b.out.Listeners, l)
	}
}

// outboundPort makes the listener of a port on which instances of services listen: a connection to the address of one of
// them means the service. What goes to other addresses at that port is looked into only if all services there speak HTTP:
// a server that speaks first would otherwise have to wait.
func (b *builder) outboundPort(port uint32, services []*catalog.Service) {
	l := socketless("outbound/port/"+portText(port), "0.0.0.0", port)
	if b.proxy.Transparent.IPv6 {
		l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: address("::", port)}}
	}
	sniff := true
	taken := map[netip.Addr]bool{} // by a service that comes before: two on one address cannot be told apart
	for _, s := range services {
		sniff = sniff && s.Protocol.IsHTTP()
		match := &listenerv3.FilterChainMatch{}
		for i := range s.Instances {
			v := &s.Instances[i]
			a, err := netip.ParseAddr(v.Address)
			if err != nil || v.Port != port || !v.InMesh() || taken[a] || a.IsLoopback() {
				continue
			}
			taken[a] = true
			match.PrefixRanges = append(match.PrefixRanges, &corev3.CidrRange{AddressPrefix: a.String(), PrefixLen: number(uint32(a.BitLen()))})
		}
		if len(match.PrefixRanges) > 0 {
			l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{Name: s.Name.String(), FilterChainMatch: match, Filters: b.toService(s)})
		}
	}
	if len(l.FilterChains) == 0 {
		return
	}
	b.virtualNowhere(l)
	if sniff {
		b.sniff(l)
	}
	l.DefaultFilterChain = &listenerv3.FilterChain{Name: "unknown", Filters: b.unknown("outbound_unknown")}
	b.out.Listeners = append(b.out.Listeners, l)
}

// virtualNowhere closes what is for a virtual address at which nothing listens, of a service that has just gone, say: it would
// leave in plaintext, to whoever answers for such an address in this network.
func (b *builder) virtualNowhere(l *listenerv3.Listener) {
	match := &listenerv3.FilterChainMatch{}
	for _, p := range []netip.Prefix{virtualPrefix4, virtualPrefix6} {
		match.PrefixRanges = append(match.PrefixRanges, &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: number(uint32(p.Bits()))})
	}
	l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{Name: "nobody", FilterChainMatch: match, Filters: b.tcp("outbound_nobody", blackholeCluster)})
}

// sniff has the first bytes looked at, and HTTP led by its host.
func (b *builder) sniff(l *listenerv3.Listener) {
	l.ListenerFilters = append(l.ListenerFilters, b.tlsInspector(), &listenerv3.ListenerFilter{Name: "envoy.filters.listener.http_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.pack(&httpinspectorv3.HttpInspector{})}})
	l.ListenerFiltersTimeout = durationpb.New(sniffTime)
	l.ContinueOnListenerFiltersTimeout = true
	m := b.transparentManager("outbound_hosts", hostsRoutes, filterSet{jwt: b.jwtOfAll()})
	// Docker's and Kubernetes' attach and exec.
	m.UpgradeConfigs = append(m.UpgradeConfigs, &hcmv3.HttpConnectionManager_UpgradeConfig{UpgradeType: "tcp"}, &hcmv3.HttpConnectionManager_UpgradeConfig{UpgradeType: "spdy/3.1"})
	l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{Name: "hosts",
		FilterChainMatch: &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.0", "http/1.1", "h2c"}},
		Filters:          []*listenerv3.Filter{b.filter(managerFilter, m)}})
}

// transparentManager is a manager between programs that know nothing of it: a request may wait as long as the two like, for
// an answer to a long poll, say.
func (b *builder) transparentManager(stat, routes string, f filterSet) *hcmv3.HttpConnectionManager {
	m := b.manager(stat, routes, f)
	m.ServerHeaderTransformation = hcmv3.HttpConnectionManager_PASS_THROUGH
	m.StreamIdleTimeout = durationpb.New(0)
	applicationHead.bound(m)
	return m
}

// jwtOfAll are the tokens that routes of any HTTP service ask for.
func (b *builder) jwtOfAll() []*policy.Object[policy.JWT] {
	var all []*policy.HTTPRoute
	for _, n := range b.Catalog.Names() {
		if b.Catalog.Services[n].Protocol.IsHTTP() {
			all = append(all, b.Policy.RoutesOf(policy.Key{Namespace: n.Namespace, Name: n.Name})...)
		}
	}
	return b.jwtOf(scope{}, all)
}

// domains are the names of services, as a client of this proxy's namespace may write them, in lower case (RFC 4343 §2). Names
// may have dots in them, so that two services can claim one; then it is of the one whose name in full that is, or of the
// first. Each service has its name in full first.
func (b *builder) domains(names []catalog.Name) map[catalog.Name][]string {
	out, taken := map[catalog.Name][]string{}, map[string]bool{}
	// Who is written as it is looked up comes before who is not.
	names = slices.Clone(names)
	isLower := func(n catalog.Name) int {
		if strings.ToLower(n.Name) == n.Name {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(names, func(x, y catalog.Name) int { return cmp.Compare(isLower(x), isLower(y)) })
	claim := func(n catalog.Name, list ...string) {
		for _, d := range list {
			if d = strings.ToLower(d); !taken[d] {
				taken[d] = true
				out[n] = append(out[n], d)
			}
		}
	}
	for _, n := range names {
		claim(n, n.Name+"."+n.Namespace+".mesh")
	}
	for _, n := range names {
		claim(n, n.Name+"."+n.Namespace, n.Name+"."+n.Namespace+".svc.cluster.local", n.Name+"."+n.Namespace+".svc")
		if n.Namespace == b.proxy.Namespace {
			claim(n, n.Name, n.Name+".mesh")
		}
		if n.Namespace == b.proxy.Namespace || n.Namespace == catalog.DefaultNamespace && b.Catalog.Services[catalog.Name{Namespace: b.proxy.Namespace, Name: n.Name}] == nil {
			claim(n, n.Name+".service.consul", n.Name+".virtual.consul")
		}
	}
	return out
}

// hosts are the routes of HTTP to addresses that mean no service: its host may.
func (b *builder) hosts(names []catalog.Name, domains map[catalog.Name][]string) {
	rc := &routev3.RouteConfiguration{Name: hostsRoutes, IgnorePortInHostMatching: true}
	for _, n := range names {
		service := b.Catalog.Services[n]
		if !service.Protocol.IsHTTP() || len(domains[n]) == 0 {
			continue
		}
		key := policy.Key{Namespace: n.Namespace, Name: n.Name}
		rc.VirtualHosts = append(rc.VirtualHosts, b.virtualHost(n.String(), domains[n], b.serviceEntries(n, key, b.Policy.RoutesOf(key))))
	}
	all := &routev3.Route{Name: "unknown", Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}}
	if b.blocked() {
		all.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 502}}
	} else {
		all.Action = &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: passthroughCluster}, Timeout: durationpb.New(0)}}
	}
	rc.VirtualHosts = append(rc.VirtualHosts, &routev3.VirtualHost{Name: "unknown", Domains: []string{"*"}, Routes: []*routev3.Route{all}})
	b.out.Routes = append(b.out.Routes, rc)
}

// virtualOutbound makes the listener that redirection leads to. Whom no listener without a socket is for stays with it.
func (b *builder) virtualOutbound() {
	t := b.proxy.Transparent
	l := &listenerv3.Listener{Name: "outbound", Address: address("127.0.0.1", t.Outbound), UseOriginalDst: wrapperspb.Bool(true), TrafficDirection: corev3.TrafficDirection_OUTBOUND}
	if t.IPv6 {
		l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: address("::1", t.Outbound)}}
	}
	// Envoy would add this filter by itself, but behind those that look into the connection: one whose server speaks first
	// would be given up before it was known where it goes.
	l.ListenerFilters = b.originalDst()
	// Who connects to this port itself would be led to it again, for ever.
	l.FilterChains = []*listenerv3.FilterChain{{Name: "trap", FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: number(t.Outbound)}, Filters: b.tcp("outbound_trap", blackholeCluster)}}
	b.virtualNowhere(l)
	b.sniff(l)
	l.DefaultFilterChain = &listenerv3.FilterChain{Name: "unknown", Filters: b.unknown("outbound_unknown")}
	b.out.Listeners = append(b.out.Listeners, l)
}

func (b *builder) originalDst() []*listenerv3.ListenerFilter {
	return []*listenerv3.ListenerFilter{{Name: "envoy.filters.listener.original_dst",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.pack(&originaldstv3.OriginalDst{})}}}
}

// virtualInbound makes the listener of all that comes in. Peers of the mesh connect to its own port, or to the one in the
// catalog, under mutual TLS. What comes to a port of the application is plaintext, or the client's own TLS: it is let in
// only where policy says so, and as nobody: what is denied to all is denied to it. Authorization is the service's, of its
// port; another port that policy opens is open.
func (b *builder) virtualInbound(own *catalog.Service) {
	t := b.proxy.Transparent
	l := &listenerv3.Listener{Name: "inbound", Address: address("0.0.0.0", t.Inbound), TrafficDirection: corev3.TrafficDirection_INBOUND, Transparent: wrapperspb.Bool(t.TProxy)}
	if t.IPv6 {
		l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: address("::", t.Inbound)}}
	}
	l.ListenerFilters = b.originalDst()
	if t.TProxy { // the application sees its clients' addresses, as it would without a sidecar
		l.ListenerFilters = append(l.ListenerFilters, &listenerv3.ListenerFilter{Name: "envoy.filters.listener.original_src",
			ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.pack(&originalsrcv3.OriginalSrc{})}})
	}
	cluster := b.local(own.Protocol)
	filters := b.inboundFilters(own, cluster)
	mesh := []uint32{t.Inbound}
	for i := range own.Instances {
		if v := &own.Instances[i]; v.InMesh() && v.Port == b.proxy.Port {
			mesh = append(mesh, v.Sidecar.Port)
		}
	}
	slices.Sort(mesh)
	for _, p := range slices.Compact(mesh) {
		l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{Name: "mesh/" + portText(p), FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: number(p)},
			TransportSocket: b.inboundTLS(b.alpn(own)...), TransportSocketConnectTimeout: durationpb.New(handshakeTimeout), Filters: filters})
	}
	target := policy.ServiceTarget(own.Namespace, own.Name.Name)
	mode := b.Policy.MutualTLS.Find(target)
	if mode.Permits(b.proxy.Port) {
		l.ListenerFilters = append(l.ListenerFilters, b.tlsInspector())
		l.ListenerFiltersTimeout = durationpb.New(sniffTime)
		l.ContinueOnListenerFiltersTimeout = true
		l.FilterChains = append(l.FilterChains,
			&listenerv3.FilterChain{Name: "plaintext", FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: number(b.proxy.Port)}, Filters: filters})
		// In TLS of the application's own no token can be seen, and no requests be counted: where one is due, it is refused.
		if b.Policy.JWT[target] == nil && b.Policy.RateLimit.Find(target) == nil {
			l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{Name: "tls", FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: number(b.proxy.Port), TransportProtocol: "tls"}, Filters: b.inboundBytes(own, "inbound_tls", cluster)})
		}
	}
	for _, p := range mode.PermittedPorts() {
		if p != b.proxy.Port && !slices.Contains(mesh, p) {
			l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{Name: "plaintext/" + portText(p),
				FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: number(p)}, Filters: b.tcp("inbound_passthrough", passthroughCluster)})
		}
	}
	slices.SortStableFunc(l.FilterChains, func(x, y *listenerv3.FilterChain) int { return cmp.Compare(x.Name, y.Name) })
	b.out.Listeners = append(b.out.Listeners, l)
}
