package serve

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"sallyport/xds/build"
	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// plane is a server with a client that says in a header who it is: what TLS does in earnest.
type plane struct {
	*Server
	t    *testing.T
	conn *grpc.ClientConn
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	s := New(Options{TrustDomain: td, Linger: 10 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Identity: func(ctx context.Context) (spiffeid.ID, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			return spiffeid.FromString(strings.Join(md.Get("id"), ""))
		}})
	ctx, cancel := context.WithCancel(t.Context())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	s.Register(ctx, g)
	ended := make(chan struct{})
	go func() { defer close(ended); s.Run(ctx) }()
	go func() { _ = g.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); conn.Close(); g.Stop(); <-ended })
	return &plane{s, t, conn}
}

func snapshot(healthy bool, intentions ...catalog.Intention) *catalog.Snapshot {
	service := func(name string, port uint32, healthy bool) *catalog.Service {
		return &catalog.Service{Name: catalog.Name{Namespace: "default", Name: name}, Protocol: catalog.HTTP, Instances: []catalog.Instance{{
			ID: name, Endpoint: catalog.Endpoint{Address: "127.0.0.1", Port: port}, Sidecar: catalog.Endpoint{Address: "127.0.0.1", Port: port + 1000},
			Healthy: healthy, Weight: 1}}}
	}
	s := &catalog.Snapshot{Services: map[catalog.Name]*catalog.Service{}, Intentions: intentions}
	for _, v := range []*catalog.Service{service("orders", 8080, true), service("payments", 8081, healthy)} {
		s.Services[v.Name] = v
	}
	return s
}

func (p *plane) load() { p.SetCatalog(snapshot(true)); p.SetPolicy(policy.Empty()) }

func node(service string) *corev3.Node {
	m, err := structpb.NewStruct(map[string]any{"kind": "sidecar", "service": service, "port": 8080,
		"upstreams": []any{map[string]any{"service": "payments", "port": 9001}}})
	if err != nil {
		panic(err)
	}
	return &corev3.Node{Id: "same-for-all", Metadata: m}
}

func (p *plane) context(service string) context.Context {
	ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
	p.t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "id", "spiffe://example.org/ns/default/svc/"+service)
}

// world is a client of the state-of-the-world protocol.
type world struct {
	t      *testing.T
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	node   *corev3.Node
}

func (p *plane) sotw(service string) *world {
	p.t.Helper()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn).StreamAggregatedResources(p.context(service))
	if err != nil {
		p.t.Fatal(err)
	}
	return &world{p.t, s, node(service)}
}

func (c *world) ask(typeURL string, answer *discoveryv3.DiscoveryResponse, refuse string, names ...string) {
	c.t.Helper()
	r := &discoveryv3.DiscoveryRequest{Node: c.node, TypeUrl: typeURL, ResourceNames: names, ResponseNonce: answer.GetNonce(), VersionInfo: answer.GetVersionInfo()}
	if refuse != "" {
		r.ErrorDetail, r.VersionInfo = &rpcstatus.Status{Message: refuse}, ""
	}
	c.node = nil // only the first request has one
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *world) receive(typeURL string) *discoveryv3.DiscoveryResponse {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	if r.GetTypeUrl() != typeURL {
		c.t.Fatalf("got %s, want %s", r.GetTypeUrl(), typeURL)
	}
	return r
}

func healthOf(t *testing.T, value []byte) corev3.HealthStatus {
	t.Helper()
	var a endpointv3.ClusterLoadAssignment
	if err := proto.Unmarshal(value, &a); err != nil {
		t.Fatal(err)
	}
	return a.GetEndpoints()[0].GetLbEndpoints()[0].GetHealthStatus()
}

func TestStateOfTheWorld(t *testing.T) {
	p := newPlane(t)
	c := p.sotw("orders")
	c.ask(build.ClusterType, nil, "")
	// Nothing is served before everything was read.
	if p.Loaded() {
		t.Fatal("loaded, but nothing was")
	}
	p.SetPolicy(policy.Empty())
	p.SetCatalog(snapshot(true))
	clusters := c.receive(build.ClusterType)
	if n := len(clusters.GetResources()); n != 2 { // local_app, payments
		t.Fatalf("%d clusters", n)
	}
	c.ask(build.ClusterType, clusters, "")
	c.ask(build.EndpointType, nil, "", "default/payments")
	endpoints := c.receive(build.EndpointType)
	if h := healthOf(t, endpoints.GetResources()[0].GetValue()); h != corev3.HealthStatus_HEALTHY {
		t.Fatal(h)
	}
	c.ask(build.EndpointType, endpoints, "", "default/payments")

	begin := time.Now()
	p.SetCatalog(snapshot(false))
	endpoints = c.receive(build.EndpointType) // and nothing of the other types, which did not change
	if took := time.Since(begin); took > time.Second {
		t.Errorf("a change of health took %s", took)
	}
	if h := healthOf(t, endpoints.GetResources()[0].GetValue()); h != corev3.HealthStatus_UNHEALTHY {
		t.Fatal(h)
	}
}

func TestRefusedConfigurationIsRememberedAndNotRepeated(t *testing.T) {
	p := newPlane(t)
	p.load()
	c := p.sotw("orders")
	c.ask(build.ListenerType, nil, "")
	first := c.receive(build.ListenerType)
	c.ask(build.ListenerType, first, "inbound: cannot bind")
	c.ask(build.ClusterType, nil, "")
	c.receive(build.ClusterType) // not the listeners again
	var got TypeStatus
	for _, s := range p.Proxies() {
		got = s.Types["LDS"]
	}
	if got.Nack == nil || got.Nack.Error != "inbound: cannot bind" || got.Nack.Version != first.GetVersionInfo() || got.Acked != "" || got.Nack.Count != 1 {
		t.Fatalf("%+v %+v", got, got.Nack)
	}
	// The next version is sent, and clears it when it is taken.
	p.SetCatalog(snapshot(true, catalog.Intention{Source: catalog.Name{Namespace: "*", Name: "*"}, Destination: catalog.Name{Namespace: "default", Name: "orders"}, Action: catalog.Deny}))
	second := c.receive(build.ListenerType)
	c.ask(build.ListenerType, second, "")
	c.ask(build.SecretType, nil, "")
	c.receive(build.SecretType)
	for _, s := range p.Proxies() {
		if got := s.Types["LDS"]; got.Nack != nil || got.Acked != second.GetVersionInfo() {
			t.Fatalf("%+v", got)
		}
	}
}

func TestDelta(t *testing.T) {
	p := newPlane(t)
	p.load()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn).DeltaAggregatedResources(p.context("orders"))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(r *discoveryv3.DeltaDiscoveryRequest) {
		t.Helper()
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	receive := func() *discoveryv3.DeltaDiscoveryResponse {
		t.Helper()
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	ask(&discoveryv3.DeltaDiscoveryRequest{Node: node("orders"), TypeUrl: build.ClusterType})
	clusters := receive()
	if len(clusters.GetResources()) != 2 {
		t.Fatal(clusters)
	}
	ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: build.ClusterType, ResponseNonce: clusters.GetNonce()})
	ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: build.EndpointType, ResourceNamesSubscribe: []string{"default/payments", "default/nothing"}})
	endpoints := receive()
	if len(endpoints.GetResources()) != 1 || len(endpoints.GetRemovedResources()) != 1 || endpoints.GetRemovedResources()[0] != "default/nothing" {
		t.Fatal(endpoints)
	}
	ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: build.EndpointType, ResponseNonce: endpoints.GetNonce()})
	p.SetCatalog(snapshot(false))
	r := receive()
	if r.GetTypeUrl() != build.EndpointType || len(r.GetResources()) != 1 || len(r.GetRemovedResources()) != 0 {
		t.Fatal(r)
	}

	// A client that comes back with what it has is told nothing that it knows.
	again, err := discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn).DeltaAggregatedResources(p.context("orders"))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{"default/retired": "1"}
	for _, c := range clusters.GetResources() {
		have[c.GetName()] = c.GetVersion()
	}
	if err := again.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node("orders"), TypeUrl: build.ClusterType, InitialResourceVersions: have}); err != nil {
		t.Fatal(err)
	}
	if r, err = again.Recv(); err != nil || len(r.GetResources()) != 0 || len(r.GetRemovedResources()) != 1 || r.GetRemovedResources()[0] != "default/retired" {
		t.Fatal(r, err)
	}
}

func TestAProxyGetsOnlyWhatItsIdentityMayHave(t *testing.T) {
	p := newPlane(t)
	p.load()
	c := p.sotw("payments")
	c.node = node("orders")
	c.ask(build.ClusterType, nil, "")
	_, err := c.stream.Recv()
	if status.Code(err) != codes.PermissionDenied {
		t.Fatal(err)
	}
	want := "spiffe://example.org/ns/default/svc/payments may not have the configuration of the sidecar of default/orders, which is for spiffe://example.org/ns/default/svc/orders"
	if got := status.Convert(err).Message(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// The identity of a service that is called like a gateway gives nothing of the gateway, whose certificates have keys.
	for kind, who := range map[string]string{"edge": "edge", "l4": "L4 tier"} {
		m, err := structpb.NewStruct(map[string]any{"kind": kind, "gateway": "public"})
		if err != nil {
			t.Fatal(err)
		}
		c = p.sotw("public")
		c.node = &corev3.Node{Id: "public~1", Metadata: m}
		c.ask(build.SecretType, nil, "", "gateway/default/shop")
		_, err = c.stream.Recv()
		want := "spiffe://example.org/ns/default/svc/public may not have the configuration of the " + who + " of gateway default/public, which is for " +
			"spiffe://example.org/ns/default/gw/public; a gateway's identity is no longer that of a service: create a token with " +
			"sallyport token create --gateway public --namespace default, and join with it (and with an empty --identity-dir)"
		if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	c = p.sotw("orders")
	c.node = &corev3.Node{Id: "x"}
	c.ask(build.ClusterType, nil, "")
	if _, err = c.stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	// Two proxies that call themselves the same get each its own.
	one, two := p.sotw("orders"), p.sotw("payments")
	one.ask(build.RouteType, nil, "", "inbound")
	two.ask(build.ListenerType, nil, "")
	one.receive(build.RouteType)
	two.receive(build.ListenerType)
}

func TestARemovedClusterOutlivesTheRoutesToIt(t *testing.T) {
	a := set{build.ClusterType: newTypeSet(map[string]resource{"old": {version: "1"}, "kept": {version: "1"}})}
	b := set{build.ClusterType: newTypeSet(map[string]resource{"kept": {version: "2"}, "new": {version: "1"}})}
	m := b.withRemoved(a)
	if r := m.of(build.ClusterType).resources; len(r) != 3 || r["kept"].version != "2" {
		t.Fatal(r)
	}
	if n := b.withRemoved(b); !sameSet(n, b) {
		t.Fatal("nothing was removed, and yet it is another set")
	}
	f := newFeed(time.Hour)
	defer f.close()
	f.publish(a, 1)
	f.publish(b, 2)
	if _, ok := f.set.of(build.ClusterType).resources["old"]; !ok {
		t.Fatal("removed at once")
	}
	f.publish(a, 1) // an older build that was late
	f.settle()
	if _, ok := f.set.of(build.ClusterType).resources["old"]; ok {
		t.Fatal("never removed")
	}
}
