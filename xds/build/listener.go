package build

import (
	"net/netip"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rbacnetv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

const (
	managerFilter    = "envoy.filters.network.http_connection_manager"
	tcpFilter        = "envoy.filters.network.tcp_proxy"
	handshakeTimeout = 10 * time.Second
	headersTimeout   = 10 * time.Second
	publicStreams    = 100 // HTTP/2 streams per connection from the public
	publicWindow     = 64 << 10
	publicConWindow  = 1 << 20
	publicIdle       = 5 * time.Minute
	meshStreams      = 1 << 10
)

// headLimits bound a message's head: the number of its fields, and its size in KiB.
type headLimits struct{ fields, size uint32 }

// Each hop adds fields to what it was sent: x-forwarded-for, x-request-id, the trace context, what policies say (package
// policy bounds that). So each hop takes more than the one before it lets in. Otherwise a client could send what the edge passes on and a sidecar refuses, on
// a connection that carries the requests of many clients. Of a response likewise: an application's fewer than a sidecar's.
var (
	publicHead      = headLimits{100, 60} // Envoy's defaults
	applicationHead = headLimits{150, 80}
	meshHead        = headLimits{250, 96}
)

// bound sets the limits of requests.
func (h headLimits) bound(m *hcmv3.HttpConnectionManager) {
	if m.CommonHttpProtocolOptions == nil {
		m.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{}
	}
	m.CommonHttpProtocolOptions.MaxHeadersCount = number(h.fields)
	m.MaxRequestHeadersKb = number(h.size)
}

// fromPeers has a connection manager take requests of others than the own application. Some applications read "_" in the
// name of a field as "-" (RFC 3875 §4.1.18): x_forwarded_client_cert would pass for the field that only the proxy may write.
func fromPeers(m *hcmv3.HttpConnectionManager) {
	if m.CommonHttpProtocolOptions == nil {
		m.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{}
	}
	m.CommonHttpProtocolOptions.HeadersWithUnderscoresAction = corev3.HttpProtocolOptions_DROP_HEADER
	m.RequestHeadersTimeout = durationpb.New(headersTimeout)
}

func (b *builder) filter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.pack(m)}}
}

// manager is a connection manager with routes of that name.
func (b *builder) manager(stat, routes string, f filterSet) *hcmv3.HttpConnectionManager {
	f.stat = stat
	return &hcmv3.HttpConnectionManager{
		StatPrefix: stat,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource: ads(), RouteConfigName: routes}},
		HttpFilters:    b.filters(f),
		Tracing:        b.tracing(),
		AccessLog:      b.accessLog,
		NormalizePath:  wrapperspb.Bool(true),
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		// A WebSocket crosses the hop between two sidecars as an extended CONNECT (RFC 8441).
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{AllowConnect: true},
	}
}

// sidecar makes the listeners of a sidecar: one for the mesh, and one per service that the application calls.
func (b *builder) sidecar() {
	own := b.Catalog.Service(catalog.Name{Namespace: b.proxy.Namespace, Name: b.proxy.Service})
	if b.proxy.Transparent != nil {
		b.transparent(own)
	} else {
		b.inbound(own)
	}
	for _, u := range b.proxy.Upstreams {
		b.outbound(u)
	}
}

// inboundAddress is where the sidecar listens: where it says, or where the catalog says that it does.
func (b *builder) inboundAddress(own *catalog.Service) *corev3.Address {
	if a, err := netip.ParseAddrPort(b.proxy.Listen); err == nil {
		return address(a.Addr().String(), uint32(a.Port()))
	}
	port := uint32(DefaultSidecarPort)
	for i := range own.Instances {
		if v := &own.Instances[i]; v.InMesh() && v.Port == b.proxy.Port {
			port = v.Sidecar.Port
			break
		}
	}
	return address("0.0.0.0", port)
}

func (b *builder) inbound(own *catalog.Service) {
	l := &listenerv3.Listener{Name: "inbound", Address: b.inboundAddress(own), TrafficDirection: corev3.TrafficDirection_INBOUND}
	l.FilterChains = []*listenerv3.FilterChain{{TransportSocket: b.inboundTLS(b.alpn(own)...), TransportSocketConnectTimeout: durationpb.New(handshakeTimeout),
		Filters: b.inboundFilters(own, b.local(own.Protocol))}}
	b.out.Listeners = append(b.out.Listeners, l)
}

// alpn is what the sidecars of a service offer to their peers.
func (b *builder) alpn(own *catalog.Service) []string {
	if !own.Protocol.IsHTTP() {
		return nil
	}
	return []string{"h2", "http/1.1"}
}

// inboundFilters lead to the application what may reach it.
func (b *builder) inboundFilters(own *catalog.Service, cluster string) []*listenerv3.Filter {
	const name = "inbound"
	if !own.Protocol.IsHTTP() {
		return b.inboundBytes(own, name, cluster)
	}
	auth := b.authorization(own.Name, true)
	jwt := b.Policy.JWT[policy.ServiceTarget(own.Namespace, own.Name.Name)]
	f := filterSet{authorization: &auth}
	if jwt != nil {
		f.jwt = []*policy.Object[policy.JWT]{jwt}
	}
	m := b.manager(name, name, f)
	// Who called is told to the application, and nobody but this sidecar can say it.
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
	m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true}
	m.ServerHeaderTransformation = hcmv3.HttpConnectionManager_PASS_THROUGH
	m.Http2ProtocolOptions.MaxConcurrentStreams = number(meshStreams)
	fromPeers(m)
	meshHead.bound(m)
	if b.proxy.Transparent != nil {
		m.StreamIdleTimeout = durationpb.New(0) // as on the caller's side: see transparentManager
	}
	if auth.requests {
		// Paths decide who may do what: only such that cannot be read in two ways.
		m.MergeSlashes = true
		m.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_REJECT_REQUEST
	}
	b.inboundRoutes(own, cluster, jwt)
	return []*listenerv3.Filter{b.filter(managerFilter, m)}
}

// inboundBytes lead connections to the application, of peers that may connect.
func (b *builder) inboundBytes(own *catalog.Service, stat, cluster string) []*listenerv3.Filter {
	auth := b.authorization(own.Name, false)
	if !own.Protocol.IsHTTP() {
		b.closeUnenforceable(own, auth.deny)
	}
	return append([]*listenerv3.Filter{
		b.filter("envoy.filters.network.rbac.deny", &rbacnetv3.RBAC{Rules: auth.deny, StatPrefix: stat + "_deny."}),
		b.filter("envoy.filters.network.rbac.allow", &rbacnetv3.RBAC{Rules: auth.allow, StatPrefix: stat + "_allow."}),
	}, b.tcp(stat, cluster)...)
}

// closeUnenforceable refuses everybody where a policy is attached that keeps some out, and that cannot be enforced on a
// stream of bytes: the status says which (package serve). It may have come when the catalog said another protocol.
func (b *builder) closeUnenforceable(own *catalog.Service, deny *rbacv3.RBAC) {
	for _, c := range b.Policy.ConflictsOf(policy.Key{Namespace: own.Namespace, Name: own.Name.Name}) {
		if c.Closes {
			deny.Policies["unenforceable"] = &rbacv3.Policy{Permissions: []*rbacv3.Permission{anyPermission()}, Principals: []*rbacv3.Principal{anyPrincipal()}}
		}
	}
}

// outbound makes a listener for the application, on which it reaches a service.
func (b *builder) outbound(u Upstream) {
	service := b.Catalog.Service(u.Service)
	key := policy.Key{Namespace: service.Namespace, Name: service.Name.Name}
	name := "outbound/" + service.Name.String()
	l := &listenerv3.Listener{Name: name, Address: address("127.0.0.1", u.Port), TrafficDirection: corev3.TrafficDirection_OUTBOUND}
	if b.clusters["listener "+name] {
		l.Name = name + "/" + portText(u.Port) // the same service on two ports
	}
	b.clusters["listener "+name] = true
	stat := statOf("outbound", service.Name.String())
	if !service.Protocol.IsHTTP() {
		l.FilterChains = []*listenerv3.FilterChain{{Filters: b.bytesTo(stat, key)}}
		b.out.Listeners = append(b.out.Listeners, l)
		return
	}
	routes := b.Policy.RoutesOf(key)
	m := b.manager(stat, name, filterSet{jwt: b.jwtOf(scope{service: &key}, routes)})
	m.ServerHeaderTransformation = hcmv3.HttpConnectionManager_PASS_THROUGH
	applicationHead.bound(m)
	l.FilterChains = []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{b.filter(managerFilter, m)}}}
	b.out.Listeners = append(b.out.Listeners, l)
	if b.clusters["routes "+name] {
		return
	}
	b.clusters["routes "+name] = true
	b.outboundRoutes(name, service.Name, key, routes)
}

// bytesTo leads connections to a service that speaks tcp.
func (b *builder) bytesTo(stat string, service policy.Key) []*listenerv3.Filter {
	return []*listenerv3.Filter{b.filter(tcpFilter, &tcpv3.TcpProxy{StatPrefix: stat,
		ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: b.mesh(policy.Backend{Service: service})}, AccessLog: b.accessLog,
		MaxConnectAttempts: number(3), HashPolicy: b.hashOfBytes(service)})}
}

// hashOfBytes is what connections to a service are spread by: of what a LoadBalancerPolicy may name, the client's address.
func (b *builder) hashOfBytes(service policy.Key) []*typev3.HashPolicy {
	if l := b.Policy.LoadBalancer.Find(policy.ServiceTarget(service.Namespace, service.Name)); l != nil && l.HashSourceIP {
		return []*typev3.HashPolicy{{PolicySpecifier: &typev3.HashPolicy_SourceIp_{SourceIp: &typev3.HashPolicy_SourceIp{}}}}
	}
	return nil
}

func public(m *hcmv3.HttpConnectionManager) {
	m.UseRemoteAddress = wrapperspb.Bool(true)
	// No client is internal, whatever its address: older Envoys take private addresses for such, and believe their x-envoy-*.
	m.InternalAddressConfig = &hcmv3.HttpConnectionManager_InternalAddressConfig{}
	// The redirect names a path alone: with two slashes at its beginning that would be another host (RFC 3986 §4.2).
	m.MergeSlashes = true
	m.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT
	m.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(publicIdle)}
	fromPeers(m)
	publicHead.bound(m)
	m.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{AllowConnect: true, MaxConcurrentStreams: number(publicStreams),
		InitialStreamWindowSize: number(publicWindow), InitialConnectionWindowSize: number(publicConWindow)}
}

func (b *builder) tlsInspector() *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: "envoy.filters.listener.tls_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.pack(&tlsinspectorv3.TlsInspector{})}}
}
