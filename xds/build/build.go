// Package build is a pure function: catalog, policies and a proxy go in, the Envoy v3 resources of that proxy come out. The
// same input gives the same bytes, whoever asks, so that several control planes agree on versions. It owns nothing, does no
// input or output, and emits only what package sidecar and a stock Envoy both implement. Package serve calls it, on
// ordinary goroutines, several at once.
package build

import (
	"errors"
	"fmt"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/certs"
	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

// Input is all that a configuration depends on, besides the proxy.
type Input struct {
	Catalog *catalog.Snapshot
	Policy  *policy.Set
	// TrustDomain is used where the Mesh document names none.
	TrustDomain spiffeid.TrustDomain
	// DefaultDeny is used where the Mesh document does not say; so is a default of the catalog's that denies.
	DefaultDeny bool
}

// Domain is the trust domain in force.
func (in *Input) Domain() (spiffeid.TrustDomain, error) {
	if in.Policy.Mesh.TrustDomain == "" {
		return in.TrustDomain, nil
	}
	td, err := spiffeid.TrustDomainFromString(in.Policy.Mesh.TrustDomain)
	if err == nil && !in.TrustDomain.IsZero() && td != in.TrustDomain {
		err = fmt.Errorf("the Mesh document names the trust domain %s, the control plane's is %s; they must be the same", td.Name(), in.TrustDomain.Name())
	}
	return td, err
}

// Resources are the resources of one proxy, each kind sorted by name.
type Resources struct {
	Listeners []*listenerv3.Listener
	Routes    []*routev3.RouteConfiguration
	Clusters  []*clusterv3.Cluster
	Endpoints []*endpointv3.ClusterLoadAssignment
	Secrets   []*tlsv3.Secret
}

// ErrNoGateway says that an edge or L4 tier is of a Gateway that no document describes. It may come later.
var ErrNoGateway = errors.New("there is no such Gateway")

// Build makes the resources of a proxy.
func Build(in Input, p Proxy) (*Resources, error) {
	td, err := in.Domain()
	if err != nil {
		return nil, err
	}
	b := &builder{Input: in, proxy: p, td: td, out: &Resources{}, clusters: map[string]bool{}}
	b.defaultDeny = in.DefaultDeny || in.Catalog.DefaultIntention == catalog.Deny
	if d := in.Policy.Mesh.DefaultAuthorization; d != "" {
		b.defaultDeny = d == "deny"
	}
	b.telemetry()
	switch p.Kind {
	case Sidecar:
		b.sidecar()
	case Edge:
		b.edge()
	case L4:
		b.l4()
	default:
		return nil, fmt.Errorf("a proxy of kind %q is not known", p.Kind)
	}
	if b.err != nil {
		return nil, fmt.Errorf("%s: %w", p, b.err)
	}
	b.out.sort()
	return b.out, nil
}

// Conflicts are the parts of policies that do not mean what they say, with what the catalog says that services speak.
func Conflicts(c *catalog.Snapshot, p *policy.Set) []policy.Conflict {
	return p.Conflicts(func(k policy.Key) bool {
		return !c.Service(catalog.Name{Namespace: k.Namespace, Name: k.Name}).Protocol.IsHTTP()
	})
}

// builder makes the resources of one proxy.
type builder struct {
	Input
	proxy       Proxy
	td          spiffeid.TrustDomain
	defaultDeny bool
	out         *Resources
	clusters    map[string]bool // made already
	accessLog   []*accesslogv3.AccessLog
	err         error
}

func (b *builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// spiffe is the SPIFFE ID of a service. Names were checked when they were read; one that is not fit is of nobody.
func (b *builder) spiffe(n catalog.Name) string {
	id, err := certs.ServiceID(b.td, n.Namespace, n.Name)
	if err != nil {
		b.fail(err)
		return ""
	}
	return id.String()
}

// pack puts a message into an Any, deterministically.
func (b *builder) pack(m proto.Message) *anypb.Any {
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		b.fail(err)
	}
	return a
}

func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
}

func address(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}
}

func seconds(d policy.Duration) *durationpb.Duration { return durationpb.New(time.Duration(d)) }

func number(v uint32) *wrapperspb.UInt32Value { return wrapperspb.UInt32(v) }

func numberOf(v *uint32) *wrapperspb.UInt32Value {
	if v == nil {
		return nil
	}
	return wrapperspb.UInt32(*v)
}

func durationOf(d *policy.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return seconds(*d)
}
