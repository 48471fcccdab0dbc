package sidecar

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"sallyport/sidecar/secret"
)

// Mesh says which part of a mesh a proxy plays; it becomes the node metadata
// by which the control plane knows what to send.
type Mesh struct {
	Kind      string // "sidecar", "edge" or "l4"
	Service   string // of a sidecar
	Gateway   string // of an edge or L4 tier
	Namespace string // default "default"
	Port      int    // of the application
	// Listen is the address of the mTLS listener (sidecar), or of the gateway's
	// listeners (edge, L4 tier: HOST or HOST:PORT); "": as the control plane says.
	Listen    string
	Listeners map[string]string // edge, L4 tier: HOST:PORT by name of the gateway's listener
	Upstreams []Upstream
	// Transparent is nil where the application itself knows its sidecar.
	Transparent *Transparent
	Instance    string // distinguishes instances of one service; default host name and process id

	ControlPlane string // HOST:PORT
	// ControlPlaneID is the SPIFFE ID that the control plane must show.
	ControlPlaneID string
	Admin          string // address of the admin page, "" for none
}

// Transparent are the ports to which the application's traffic is redirected (sallyport redirect).
type Transparent struct {
	Outbound int
	Inbound  int
	DNS      int  // 0: none
	TProxy   bool // inbound connections come by TPROXY; listening for them needs CAP_NET_ADMIN
}

// Check says what is wrong with the ports.
func (t *Transparent) Check() error {
	for name, p := range map[string]int{"--outbound-port": t.Outbound, "--inbound-port": t.Inbound} {
		if p < 1 || p > 65535 {
			return fmt.Errorf("%s %d: is not a port", name, p)
		}
	}
	if t.DNS < 0 || t.DNS > 65535 {
		return fmt.Errorf("--dns-port %d: is not a port; 0 is for none", t.DNS)
	}
	if t.Outbound == t.Inbound || t.DNS == t.Outbound || t.DNS == t.Inbound {
		return fmt.Errorf("--outbound-port %d, --inbound-port %d and --dns-port %d must differ", t.Outbound, t.Inbound, t.DNS)
	}
	return nil
}

// hasIPv6 says whether the host has the loopback address of IPv6: a listener
// that names what is not there would be none at all.
func hasIPv6() bool {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// Upstream is a service that the application reaches on a local port.
type Upstream struct {
	Service string
	Port    int
}

// ParseUpstream reads SERVICE:PORT.
func ParseUpstream(s string) (Upstream, error) {
	name, port, ok := strings.Cut(s, ":")
	n, err := strconv.Atoi(port)
	if !ok || name == "" || err != nil || n < 1 || n > 65535 {
		return Upstream{}, fmt.Errorf("upstream %q: want SERVICE:PORT, as in payments:9001", s)
	}
	return Upstream{name, n}, nil
}

// Bootstrap makes the Envoy bootstrap of a proxy in the mesh: it knows how to
// reach the control plane and nothing else.
func (m *Mesh) Bootstrap() (*bootstrapv3.Bootstrap, error) {
	host, port, err := splitHostPort(m.ControlPlane)
	if err != nil {
		return nil, fmt.Errorf("control plane: %w", err)
	}
	metadata, err := m.metadata()
	if err != nil {
		return nil, err
	}
	name := m.Service
	if m.Kind != "sidecar" {
		name = m.Gateway
	}
	instance := m.Instance
	if instance == "" {
		h, _ := os.Hostname()
		instance = fmt.Sprintf("%s-%d", h, os.Getpid())
	}
	b := &bootstrapv3.Bootstrap{
		Node: &corev3.Node{Id: name + "~" + instance, Cluster: name, Metadata: metadata},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			AdsConfig: &corev3.ApiConfigSource{ApiType: corev3.ApiConfigSource_DELTA_GRPC, TransportApiVersion: corev3.ApiVersion_V3,
				GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "control_plane"}}}}},
			LdsConfig: overADS(),
			CdsConfig: overADS(),
		},
	}
	cluster, err := m.controlPlane(host, port)
	if err != nil {
		return nil, err
	}
	b.StaticResources = &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{cluster}}
	if m.Admin != "" {
		h, p, err := splitHostPort(m.Admin)
		if err != nil {
			return nil, fmt.Errorf("admin: %w", err)
		}
		b.Admin = &bootstrapv3.Admin{Address: socketAddress(h, p)}
	}
	return b, nil
}

func (m *Mesh) metadata() (*structpb.Struct, error) {
	namespace := m.Namespace
	if namespace == "" {
		namespace = "default"
	}
	v := map[string]any{"kind": m.Kind, "namespace": namespace}
	if m.Service != "" {
		v["service"] = m.Service
	}
	if m.Gateway != "" {
		v["gateway"] = m.Gateway
	}
	if m.Port != 0 {
		v["port"] = m.Port
	}
	if m.Listen != "" {
		v["listen"] = m.Listen
	}
	if len(m.Listeners) > 0 {
		l := map[string]any{}
		for name, address := range m.Listeners {
			l[name] = address
		}
		v["listeners"] = l
	}
	if t := m.Transparent; t != nil {
		f := map[string]any{"outbound": t.Outbound, "inbound": t.Inbound, "ipv6": hasIPv6()}
		if t.DNS != 0 {
			f["dns"] = t.DNS
		}
		if t.TProxy {
			f["tproxy"] = true
		}
		v["transparent"] = f
	}
	var ups []any
	for _, u := range m.Upstreams {
		ups = append(ups, map[string]any{"service": u.Service, "port": u.Port})
	}
	if ups != nil {
		v["upstreams"] = ups
	}
	return structpb.NewStruct(v)
}

func overADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
}

// controlPlane is the static cluster of the control plane: HTTP/2 under mutual
// TLS with the proxy's own SVID, and nobody but the control plane's SPIFFE ID at the other end.
func (m *Mesh) controlPlane(host string, port uint32) (*clusterv3.Cluster, error) {
	own := &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{
		ApiConfigSource: &corev3.ApiConfigSource{ApiType: corev3.ApiConfigSource_GRPC, TransportApiVersion: corev3.ApiVersion_V3,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: secret.IdentityCluster}}}}}}}
	common := &tlsv3.CommonTlsContext{
		AlpnProtocols:                  []string{"h2"},
		TlsParams:                      &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: secret.IdentityCertificate, SdsConfig: own}},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
				SanType: tlsv3.SubjectAltNameMatcher_URI,
				Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: m.ControlPlaneID}}}}},
			ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: secret.IdentityRoots, SdsConfig: own}}},
	}
	tls, err := anypb.New(&tlsv3.UpstreamTlsContext{CommonTlsContext: common})
	if err != nil {
		return nil, err
	}
	options, err := anypb.New(&httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}}}})
	if err != nil {
		return nil, err
	}
	kind := clusterv3.Cluster_STRICT_DNS
	if _, err := netip.ParseAddr(host); err == nil {
		kind = clusterv3.Cluster_STATIC
	}
	return &clusterv3.Cluster{
		Name:                 "control_plane",
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: kind},
		DnsLookupFamily:      clusterv3.Cluster_ALL, // it may listen at one family alone
		ConnectTimeout:       durationpb.New(5 * time.Second),
		TransportSocket:      &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: tls}},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: "control_plane", Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(host, port)}}}}}}},
	}, nil
}

func socketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}
}

func splitHostPort(s string) (host string, port uint32, err error) {
	h, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, fmt.Errorf("%q: want HOST:PORT", s)
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || h == "" {
		return "", 0, fmt.Errorf("%q: want HOST:PORT", s)
	}
	return h, uint32(n), nil
}
