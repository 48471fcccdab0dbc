package integration

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"                     // named in saying
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3" // and this one
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"sallyport/integration/harness"
)

// listeners is a control plane that gives listeners alone.
type listeners struct {
	t      *testing.T
	cache  cachev3.SnapshotCache
	addr   string
	pushes int

	mu       sync.Mutex
	versions map[string]string // by nonce
	answers  map[string]string // by version: the error of a NACK, "" for an ACK
}

func newListeners(t *testing.T) *listeners {
	c := &listeners{t: t, cache: cachev3.NewSnapshotCache(true, cachev3.IDHash{}, nil), answers: map[string]string{}, versions: map[string]string{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.addr = l.Addr().String()
	c.push() // nothing yet
	s := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, serverv3.NewServer(t.Context(), c.cache, serverv3.CallbackFuncs{
		StreamRequestFunc: func(_ int64, r *discoveryv3.DiscoveryRequest) error {
			if r.GetTypeUrl() == resourcev3.ListenerType && r.GetResponseNonce() != "" {
				c.mu.Lock()
				defer c.mu.Unlock()
				version := c.versions[r.GetResponseNonce()] // a NACK says the version before
				c.answers[version] = r.GetErrorDetail().GetMessage()
			}
			return nil
		},
		StreamResponseFunc: func(_ context.Context, _ int64, _ *discoveryv3.DiscoveryRequest, r *discoveryv3.DiscoveryResponse) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.versions[r.GetNonce()] = r.GetVersionInfo()
		},
	}))
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return c
}

// push gives the proxy these listeners, and returns what it answered: the error of a NACK, or "".
func (c *listeners) push(list ...string) string {
	c.t.Helper()
	var all []types.Resource
	for _, text := range list {
		l := &listenerv3.Listener{}
		if err := protojson.Unmarshal([]byte(text), l); err != nil {
			c.t.Fatal(err)
		}
		all = append(all, l)
	}
	c.mu.Lock()
	c.pushes++
	version := fmt.Sprint(c.pushes)
	c.mu.Unlock()
	snapshot, err := cachev3.NewSnapshot(version, map[string][]types.Resource{resourcev3.ListenerType: all, resourcev3.ClusterType: nil})
	if err == nil {
		err = c.cache.SetSnapshot(context.Background(), "node", snapshot)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	if version == "1" {
		return ""
	}
	answer := ""
	harness.Eventually(c.t, 10*time.Second, "an answer to version "+version, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		text, ok := c.answers[version]
		if answer = text; !ok {
			return fmt.Errorf("answers: %v", c.answers)
		}
		return nil
	})
	return answer
}

// saying is a listener that answers with its name.
func saying(name string, port string) string {
	return `{"name": "` + name + `", "address": {"socket_address": {"address": "127.0.0.1", "port_value": ` + port + `}}, "filter_chains": [{"filters": [{"name": "http", "typed_config": {
		"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "` + name + `",
		"route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "` + name + `"}}}]}]},
		"http_filters": [{"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`
}

const overLDS = `
node: {id: node, cluster: c}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: ${admin}}}}
dynamic_resources:
  ads_config: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: control}}]}
  lds_config: {ads: {}, resource_api_version: V3}
  cds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: control
    type: STATIC
    load_assignment: {cluster_name: control, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: ${control}}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
`

// TestListenersChangePlacesUnderLoad: a listener that is renamed on its address loses no connection, and two of one
// address are refused, as with Envoy.
func TestListenersChangePlacesUnderLoad(t *testing.T) {
	control := newListeners(t)
	_, port, _ := net.SplitHostPort(control.addr)
	listen := harness.FreeAddr(t)
	_, at, _ := net.SplitHostPort(listen)
	harness.NewSidecar(t).Bootstrap(overLDS).Value("control", port).Run()
	if nack := control.push(saying("l0", at)); nack != "" {
		t.Fatal(nack)
	}
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
			// Each on a connection of its own.
			if m, err := harness.TryGet(listen, "/", "connection: close"); err != nil || m.Status() != 200 {
				failed <- fmt.Errorf("request %d: %v, %v", n, m, err)
				return
			}
		}
	}()
	for i := 1; i <= 20; i++ {
		name := fmt.Sprintf("l%d", i)
		if nack := control.push(saying(name, at)); nack != "" {
			t.Fatalf("%s is refused: %s", name, nack)
		}
		if m := harness.Get(t, listen, "/"); string(m.Body) != name {
			t.Fatalf("%q answers, want %s", m.Body, name)
		}
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Error(err)
	}
	t.Run("two of one address are refused", func(t *testing.T) {
		nack := control.push(saying("l20", at), saying("other", at))
		if !strings.Contains(nack, "l20") || !strings.Contains(nack, "other") || !strings.Contains(nack, "duplicate address") {
			t.Errorf("the answer is %q, want both names", nack)
		}
		if m := harness.Get(t, listen, "/"); string(m.Body) != "l20" {
			t.Errorf("%q answers, want l20", m.Body)
		}
	})
	t.Run("removed, and another one added", func(t *testing.T) {
		for i := range 10 {
			if nack := control.push(); nack != "" {
				t.Fatal(nack)
			}
			name := fmt.Sprintf("again%d", i)
			if nack := control.push(saying(name, at)); nack != "" {
				t.Fatalf("%s is refused: %s", name, nack)
			}
			if m := harness.Get(t, listen, "/"); string(m.Body) != name {
				t.Errorf("%q answers, want %s", m.Body, name)
			}
		}
	})
}
