package ads_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/active"
	"sallyport/sidecar/ads"
	"sallyport/sidecar/config"
	"sallyport/sidecar/listener"
	"sallyport/sidecar/upstream"
)

const node = "test"

// control is a control plane: go-control-plane's server on a port that stays the same.
type control struct {
	t     *testing.T
	addr  string
	cache cache.SnapshotCache
	grpc  *grpc.Server
	// nacks and requests are what the proxy said.
	nacks    chan string
	requests chan string
}

func newControl(t *testing.T) *control {
	c := &control{t: t, addr: "127.0.0.1:0", nacks: make(chan string, 100), requests: make(chan string, 1000)}
	c.cache = cache.NewSnapshotCache(true, cache.IDHash{}, nil)
	c.start()
	t.Cleanup(func() { c.grpc.Stop() })
	return c
}

func (c *control) start() {
	c.t.Helper()
	l, err := net.Listen("tcp", c.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	c.addr = l.Addr().String()
	nack := func(detail interface{ GetMessage() string }) {
		if m := detail.GetMessage(); m != "" {
			c.nacks <- m
		}
	}
	s := serverv3.NewServer(context.Background(), c.cache, serverv3.CallbackFuncs{
		StreamRequestFunc: func(_ int64, r *discoveryv3.DiscoveryRequest) error {
			nack(r.GetErrorDetail())
			if r.GetResponseNonce() == "" {
				c.requests <- short(r.GetTypeUrl())
			}
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, r *discoveryv3.DeltaDiscoveryRequest) error {
			nack(r.GetErrorDetail())
			if r.GetResponseNonce() == "" {
				c.requests <- short(r.GetTypeUrl())
			}
			return nil
		},
	})
	c.grpc = grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(c.grpc, s)
	go c.grpc.Serve(l)
}

func short(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }

func (c *control) set(version string, all map[resource.Type][]types.Resource) {
	c.t.Helper()
	s, err := cache.NewSnapshot(version, all)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.cache.SetSnapshot(context.Background(), node, s); err != nil {
		c.t.Fatal(err)
	}
}

// engine records what is published, in order.
type engine struct {
	mu     sync.Mutex
	events []string
	grew   chan struct{}
	bind   error
}

func newEngine() *engine { return &engine{grew: make(chan struct{}, 1)} }

func (e *engine) note(format string, a ...any) {
	e.mu.Lock()
	e.events = append(e.events, fmt.Sprintf(format, a...))
	e.mu.Unlock()
	select {
	case e.grew <- struct{}{}:
	default:
	}
}

func (e *engine) ApplyListeners(set []*listener.Config, remove []string) []error {
	errs := make([]error, len(set))
	for i, c := range set {
		e.note("add listener %s", c.Name)
		errs[i] = e.bind
	}
	for _, name := range remove {
		e.note("remove listener %s", name)
	}
	return errs
}
func (e *engine) SetCluster(c *upstream.Config) { e.note("set cluster %s", c.Name) }
func (e *engine) RemoveCluster(name string)     { e.note("remove cluster %s", name) }
func (e *engine) SetEndpoints(c string, l []upstream.Endpoint, _ uint32) {
	e.note("set endpoints %s %d", c, len(l))
}

func (e *engine) list() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.events)
}

// until waits for an event and returns all up to it.
func (e *engine) until(t *testing.T, event string) []string {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		all := e.list()
		if slices.Contains(all, event) {
			return all
		}
		select {
		case <-e.grew:
		case <-deadline:
			t.Fatalf("%q did not come; %q", event, all)
		}
	}
}

func receive[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
	}
	return v
}

func ads2() *corev3.ConfigSource {
	return &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
}

func edsCluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads2()}}
}

func load(name string, n int) *endpointv3.ClusterLoadAssignment {
	m := &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{}}}
	for i := range n {
		m.Endpoints[0].LbEndpoints = append(m.Endpoints[0].LbEndpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: address(uint32(8000 + i))}}})
	}
	return m
}

func address(port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "127.0.0.1",
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}
}

func pack(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func rdsListener(t *testing.T, name, routes string) *listenerv3.Listener {
	hcm := &hcmv3.HttpConnectionManager{StatPrefix: name, RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: routes, ConfigSource: ads2()}},
		HttpFilters: []*hcmv3.HttpFilter{{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &routerv3.Router{})}}}}
	return &listenerv3.Listener{Name: name, Address: address(9000), FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "http",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, hcm)}}}}}}
}

func routes(name, cluster string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*routev3.Route{{
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}}}}}}}}
}

func snapshot(t *testing.T) map[resource.Type][]types.Resource {
	return map[resource.Type][]types.Resource{
		resource.ClusterType:  {edsCluster("orders")},
		resource.EndpointType: {load("orders", 2)},
		resource.ListenerType: {rdsListener(t, "in", "r")},
		resource.RouteType:    {routes("r", "orders")},
	}
}

// proxy runs a State and a client against c.
func proxy(t *testing.T, c *control, delta bool, e *engine) (*active.State, *ads.Client) {
	t.Helper()
	kind := "GRPC"
	if delta {
		kind = "DELTA_GRPC"
	}
	host, port, _ := net.SplitHostPort(c.addr)
	b, err := config.LoadYAML(fmt.Sprintf(`
node: {id: %s, cluster: c}
dynamic_resources:
  ads_config: {api_type: %s, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}
  cds_config: {ads: {}, resource_api_version: V3}
  lds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: xds
    load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {connection_keepalive: {interval: 30s, timeout: 5s}}}
`, node, kind, host, port))
	if err != nil {
		t.Fatal(err)
	}
	s := active.New(active.Options{Publisher: e})
	t.Cleanup(s.Close)
	if err := s.Start(b); err != nil {
		t.Fatal(err)
	}
	if w := s.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %v", w)
	}
	client, cc, err := s.Connect("1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { client.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done; cc.Close() })
	return s, client
}

// each runs a test for both forms of the protocol.
func each(t *testing.T, f func(t *testing.T, delta bool)) {
	t.Run("state of the world", func(t *testing.T) { t.Parallel(); f(t, false) })
	t.Run("delta", func(t *testing.T) { t.Parallel(); f(t, true) })
}

func TestEverythingWarmsBeforeItServes(t *testing.T) {
	each(t, func(t *testing.T, delta bool) {
		c, e := newControl(t), newEngine()
		c.set("1", snapshot(t))
		s, _ := proxy(t, c, delta, e)
		got := e.until(t, "add listener in")
		want := []string{"set cluster xds", "set cluster orders", "set endpoints orders 2", "add listener in"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		receive(t, s.Ready())
		if d := s.Dump().String(); !strings.Contains(d, "ClustersConfigDump") {
			t.Error(d)
		}
		var asked []string
		for len(asked) < 4 {
			asked = append(asked, receive(t, c.requests))
		}
		if !slices.Equal(asked[:2], []string{"Cluster", "Listener"}) {
			t.Errorf("asked for %q", asked)
		}
	})
}

func TestABadResourceKeepsTheLastGoodOne(t *testing.T) {
	each(t, func(t *testing.T, delta bool) {
		c, e := newControl(t), newEngine()
		c.set("1", snapshot(t))
		s, client := proxy(t, c, delta, e)
		e.until(t, "add listener in")
		bad := snapshot(t)
		spoiled := edsCluster("orders")
		spoiled.LbSubsetConfig = &clusterv3.Cluster_LbSubsetConfig{}
		bad[resource.ClusterType] = []types.Resource{spoiled, edsCluster("payments")}
		bad[resource.EndpointType] = []types.Resource{load("orders", 2), load("payments", 1)}
		c.set("2", bad)
		nack := receive(t, c.nacks)
		if want := `envoy.config.cluster.v3.Cluster; cluster "orders": lb_subset_config: not implemented`; !strings.HasPrefix(nack, want) {
			t.Errorf("got %s", nack)
		}
		// What was good beside it is used.
		got := e.until(t, "set endpoints payments 1")
		if slices.Contains(got, "remove cluster orders") {
			t.Errorf("%q", got)
		}
		if client.Status().Rejected == 0 || !strings.Contains(s.Dump().String(), "lb_subset_config") {
			t.Error("the refusal is not shown")
		}
		c.set("3", snapshot(t))
		got = e.until(t, "remove cluster payments")
		if n := count(got, "set cluster orders"); n != 1 {
			t.Errorf("orders was set %d times: %q", n, got)
		}
	})
}

func count(all []string, s string) (n int) {
	for _, x := range all {
		if x == s {
			n++
		}
	}
	return n
}

func TestChangesAndRemovals(t *testing.T) {
	each(t, func(t *testing.T, delta bool) {
		c, e := newControl(t), newEngine()
		c.set("1", snapshot(t))
		proxy(t, c, delta, e)
		e.until(t, "add listener in")
		next := snapshot(t)
		next[resource.EndpointType] = []types.Resource{load("orders", 3)}
		c.set("2", next)
		e.until(t, "set endpoints orders 3")
		next[resource.ListenerType] = []types.Resource{rdsListener(t, "out", "r")}
		c.set("3", next)
		got := e.until(t, "add listener out")
		if i := slices.Index(got, "remove listener in"); i < 0 {
			e.until(t, "remove listener in")
		}
		c.set("4", map[resource.Type][]types.Resource{})
		e.until(t, "remove listener out")
		e.until(t, "remove cluster orders")
	})
}

func TestAfterALossEveryTypeIsAskedForAgain(t *testing.T) {
	each(t, func(t *testing.T, delta bool) {
		c, e := newControl(t), newEngine()
		c.set("1", snapshot(t))
		_, client := proxy(t, c, delta, e)
		e.until(t, "add listener in")
		before := e.list()
		c.grpc.Stop()
		for len(c.requests) > 0 {
			<-c.requests
		}
		// Meanwhile the world goes on: a cluster is gone when it comes back.
		next := snapshot(t)
		next[resource.EndpointType] = []types.Resource{load("orders", 5)}
		c.cache = cache.NewSnapshotCache(true, cache.IDHash{}, nil)
		c.set("2", next)
		c.start()
		e.until(t, "set endpoints orders 5")
		asked := map[string]bool{}
		for len(asked) < 4 {
			asked[receive(t, c.requests)] = true
		}
		for _, typ := range []string{"Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration"} {
			if !asked[typ] {
				t.Errorf("%s was not asked for again: %v", typ, asked)
			}
		}
		got := e.list()[len(before):]
		for _, x := range got {
			if strings.HasPrefix(x, "remove") || strings.HasPrefix(x, "add") || strings.HasPrefix(x, "set cluster") {
				t.Errorf("the loss changed something: %q", got)
			}
		}
		if !client.Status().Connected {
			t.Error("not connected")
		}
	})
}

func TestASocketThatCannotBeHadIsRefused(t *testing.T) {
	each(t, func(t *testing.T, delta bool) {
		c, e := newControl(t), newEngine()
		e.bind = fmt.Errorf("127.0.0.1:9000: address already in use")
		all := snapshot(t)
		c.set("1", all)
		s, _ := proxy(t, c, delta, e)
		e.until(t, "add listener in")
		receive(t, s.Ready())
		if !strings.Contains(s.Dump().String(), "address already in use") {
			t.Error("not shown")
		}
	})
}
