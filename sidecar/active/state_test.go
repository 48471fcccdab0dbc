package active

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"sallyport/sidecar/ads"
	"sallyport/sidecar/config"
	"sallyport/sidecar/config/document"
	"sallyport/sidecar/listener"
	"sallyport/sidecar/upstream"
)

// engine records what is published, in order.
type engine struct {
	mu     sync.Mutex // timers publish, too
	events []string
	bind   error
	tables []*listener.Config

	listeners []string // that are there
}

func (e *engine) note(format string, a ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, fmt.Sprintf(format, a...))
}

func (e *engine) ApplyListeners(set []*listener.Config, remove []string) []error {
	errs := make([]error, len(set))
	for i, c := range set {
		if slices.Contains(e.listeners, c.Name) {
			e.note("update listener %s", c.Name)
			errs[i] = e.bind
			continue
		}
		e.note("add listener %s", c.Name)
		if errs[i] = e.bind; e.bind == nil {
			e.tables = append(e.tables, c)
			e.listeners = append(e.listeners, c.Name)
		}
	}
	for _, name := range remove {
		e.note("remove listener %s", name)
		e.listeners = slices.DeleteFunc(e.listeners, func(n string) bool { return n == name })
	}
	return errs
}
func (e *engine) SetCluster(c *upstream.Config) { e.note("set cluster %s", c.Name) }
func (e *engine) RemoveCluster(name string)     { e.note("remove cluster %s", name) }
func (e *engine) SetEndpoints(c string, l []upstream.Endpoint, _ uint32) {
	e.note("set endpoints %s %d", c, len(l))
}

// take returns the events since the last call.
func (e *engine) take() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := strings.Join(e.events, ", ")
	e.events = nil
	return s
}

type asked map[string][]string

func start(t *testing.T, o Options, text string) (*State, *engine, asked) {
	t.Helper()
	e, a := &engine{}, asked{}
	o.Publisher = e
	o.Subscribe = func(typeURL string, names []string) { a[short(typeURL)] = names }
	s := New(o)
	t.Cleanup(s.Close)
	b, err := config.LoadYAML(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(b); err != nil {
		t.Fatal(err)
	}
	return s, e, a
}

func short(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }

// response makes a state of the world of YAML resources.
func response(t *testing.T, typeURL string, full bool, texts ...string) ads.Response {
	t.Helper()
	r := ads.Response{Type: typeURL, Version: "1", Full: full}
	for _, text := range texts {
		m := map[string]proto.Message{ads.ClusterType: &clusterv3.Cluster{}, ads.EndpointType: &endpointv3.ClusterLoadAssignment{},
			ads.ListenerType: &listenerv3.Listener{}, ads.RouteType: &routev3.RouteConfiguration{}, ads.SecretType: &tlsv3.Secret{}}[typeURL]
		d, err := document.Parse("test", []byte(text))
		if err == nil {
			err = d.Decode(m)
		}
		if err != nil {
			t.Fatal(err)
		}
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		r.Resources = append(r.Resources, ads.Resource{Version: "1", Body: a})
	}
	return r
}

const (
	bootstrap = `
node: {id: n}
dynamic_resources:
  ads_config: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}
  cds_config: {ads: {}, resource_api_version: V3}
  lds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - {name: xds, load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}}
`
	eds     = `{name: orders, type: EDS, eds_cluster_config: {eds_config: {ads: {}, resource_api_version: V3}}}`
	loadOne = `{cluster_name: orders, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}}]}]}`
	rds     = `
name: in
address: {socket_address: {address: 127.0.0.1, port_value: 9000}}
filter_chains:
- filters:
  - name: http
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: in
      rds: {route_config_name: r, config_source: {ads: {}, resource_api_version: V3}}
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
`
	table = `{name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: orders}}]}]}`
)

func accept(t *testing.T, s *State, r ads.Response) {
	t.Helper()
	for _, x := range s.Apply(r) {
		t.Errorf("refused %q: %v", x.Name, x.Err)
	}
}

func TestListenersWaitForRoutesAndClusters(t *testing.T) {
	s, e, a := start(t, Options{}, bootstrap)
	e.take()
	// In the worst order: the listener is warm long before its cluster.
	accept(t, s, response(t, ads.ListenerType, true, rds))
	if !slices.Equal(a["RouteConfiguration"], []string{"r"}) {
		t.Errorf("asked for %v", a)
	}
	accept(t, s, response(t, ads.RouteType, true, table))
	accept(t, s, response(t, ads.ClusterType, true, eds))
	if got := e.take(); got != "" {
		t.Errorf("too early: %s", got)
	}
	select {
	case <-s.Ready():
		t.Error("ready too early")
	default:
	}
	accept(t, s, response(t, ads.EndpointType, true, loadOne))
	if got := e.take(); got != "set cluster orders, set endpoints orders 1, add listener in" {
		t.Error(got)
	}
	<-s.Ready()
	if e.tables[0].Chains[0].HTTP.Routes.Table() == nil {
		t.Error("the routes are not where the listener looks for them")
	}
	// The same again is no change; a changed cluster waits for nothing, its endpoints are known.
	accept(t, s, response(t, ads.ClusterType, true, eds))
	accept(t, s, response(t, ads.ListenerType, true, rds))
	if got := e.take(); got != "" {
		t.Errorf("the same configuration changed something: %s", got)
	}
	accept(t, s, response(t, ads.ClusterType, true, strings.Replace(eds, "type: EDS", "type: EDS, lb_policy: RANDOM", 1)))
	if got := e.take(); got != "set cluster orders, set endpoints orders 1" {
		t.Error(got)
	}
	accept(t, s, response(t, ads.ClusterType, true))
	if got := e.take(); got != "remove cluster orders" || len(a["ClusterLoadAssignment"]) != 0 {
		t.Error(got, a)
	}
}

func TestNothingWaitsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e, _ := start(t, Options{}, bootstrap)
		e.take()
		accept(t, s, response(t, ads.ClusterType, true, eds))
		accept(t, s, response(t, ads.ListenerType, true, rds))
		time.Sleep(14 * time.Second)
		synctest.Wait()
		if got := e.take(); got != "" {
			t.Errorf("too early: %s", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := e.take(); got != "set cluster orders, set endpoints orders 0, add listener in" {
			t.Error(got)
		}
		<-s.Ready()
		s.Close()
	})
}

func TestAControlPlaneThatDoesNotAnswerDoesNotStopWhatIsStatic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		static := bootstrap + "  listeners:\n  - {name: s, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: [{name: t, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: xds}}]}]}\n"
		s, e, _ := start(t, Options{}, static)
		if got := e.take(); got != "set cluster xds" {
			t.Error(got)
		}
		time.Sleep(16 * time.Second)
		synctest.Wait()
		if got := e.take(); got != "add listener s" {
			t.Error(got)
		}
		<-s.Ready()
		s.Close()
	})
}

func TestAClusterWaitsForItsSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e, a := start(t, Options{}, bootstrap)
		e.take()
		accept(t, s, response(t, ads.ClusterType, true, `
name: tls
transport_socket:
  name: tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    common_tls_context: {validation_context_sds_secret_config: {name: roots, sds_config: {ads: {}, resource_api_version: V3}}}
`))
		if got := e.take(); got != "" || !slices.Equal(a["Secret"], []string{"roots"}) {
			t.Fatal(got, a)
		}
		bad := s.Apply(response(t, ads.SecretType, true, `{name: roots, validation_context: {trusted_ca: {inline_string: nonsense}}}`))
		if len(bad) != 1 || bad[0].Err.Error() != `secret "roots": validation_context.trusted_ca: holds no certificate in PEM` {
			t.Errorf("%v", bad)
		}
		pins := `{name: roots, validation_context: {verify_certificate_hash: ["` + strings.Repeat("ab", 32) + `"]}}`
		accept(t, s, response(t, ads.SecretType, true, pins))
		synctest.Wait()
		if got := e.take(); got != "set cluster tls" {
			t.Error(got)
		}
		s.Close()
	})
}

func TestBadResourcesAreNamedAndTheRestIsUsed(t *testing.T) {
	s, e, _ := start(t, Options{}, bootstrap)
	e.take()
	static := func(name string) string { return "{name: " + name + "}" }
	refused := s.Apply(response(t, ads.ClusterType, true, static("a"), static("b"), static("b"), `{name: c, lb_subset_config: {}}`, static("xds")))
	if got := e.take(); got != "set cluster a" {
		t.Error(got)
	}
	var texts []string
	for _, r := range refused {
		texts = append(texts, r.Err.Error())
	}
	want := []string{`"b" is the name of 2 resources; a name may occur once`,
		`cluster "c": lb_subset_config: not implemented, and refused because the rest must not be used without it; remove the field`}
	if !slices.Equal(texts, want) {
		t.Errorf("got %q", texts)
	}
	if f := s.Failures(); len(f) != 2 || f[0].Name != "b" || f[1].Name != "c" {
		t.Errorf("%v", f)
	}
	r := ads.Response{Type: ads.ClusterType, Resources: []ads.Resource{{Name: "x", Body: &anypb.Any{TypeUrl: ads.ListenerType}},
		{Name: "y", Body: &anypb.Any{TypeUrl: ads.ClusterType, Value: []byte{0xff}}}, {Name: "z", Body: &anypb.Any{TypeUrl: ads.ClusterType}}}}
	refused = s.Apply(r)
	if len(refused) != 3 {
		t.Fatal(refused)
	}
	if got := fmt.Sprint(refused[0].Err, "; ", refused[1].Err); got != "resources[0]: is of type "+ads.ListenerType+"; resources[1]: cannot be read as envoy.config.cluster.v3.Cluster" {
		t.Error(got)
	}
	if refused := s.Apply(ads.Response{Type: "type.googleapis.com/x.Y"}); len(refused) != 1 {
		t.Error("an unknown type was taken")
	}
	// a is still there: nothing above was a state of the world.
	accept(t, s, response(t, ads.ClusterType, true))
	if got := e.take(); got != "remove cluster a" {
		t.Error(got)
	}
}

func TestASocketThatCannotBeHadChangesNothing(t *testing.T) {
	s, e, _ := start(t, Options{}, bootstrap)
	accept(t, s, response(t, ads.ClusterType, true))
	e.take()
	plain := func(port string) string {
		return `{name: l, address: {socket_address: {address: 127.0.0.1, port_value: ` + port + `}}, filter_chains: [{filters: [{name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: xds}}]}]}`
	}
	e.bind = errors.New("127.0.0.1:1: address already in use")
	refused := s.Apply(response(t, ads.ListenerType, true, plain("1")))
	if len(refused) != 1 || refused[0].Err.Error() != `listener "l": 127.0.0.1:1: address already in use` {
		t.Fatal(refused)
	}
	if err := s.Unopened("l"); err != e.bind {
		t.Errorf("it has no socket because of %v", err)
	}
	e.bind = nil
	accept(t, s, response(t, ads.ListenerType, true, plain("1")))
	e.bind = errors.New("no")
	if refused := s.Apply(response(t, ads.ListenerType, true, plain("2"))); len(refused) != 1 {
		t.Error(refused)
	}
	if err := s.Unopened("l"); err != nil {
		t.Errorf("the version before serves, and yet: %v", err)
	}
	e.bind = nil
	e.take()
	accept(t, s, response(t, ads.ListenerType, true, plain("1")))
	if got := e.take(); got != "" {
		t.Errorf("the one that was refused left something behind: %s", got)
	}
}

func TestWhatExpiresGoes(t *testing.T) {
	s, e, _ := start(t, Options{}, bootstrap)
	accept(t, s, response(t, ads.ClusterType, true, eds))
	accept(t, s, response(t, ads.EndpointType, true, loadOne))
	e.take()
	s.Expire(ads.EndpointType, "orders")
	s.Expire(ads.ClusterType, "orders")
	s.Expire(ads.ClusterType, "xds") // static: stays
	if got := e.take(); got != "set endpoints orders 0, remove cluster orders" {
		t.Error(got)
	}
}

func TestTheLastGoodConfigurationSurvivesARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	c, err := NewCache(dir, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	secret := `
name: secret
transport_socket:
  name: tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    common_tls_context: {tls_certificates: [{certificate_chain: {inline_string: x}, private_key: {inline_string: KEY}}]}
`
	s, _, _ := start(t, Options{Cache: c}, bootstrap)
	accept(t, s, response(t, ads.ClusterType, true, eds))
	accept(t, s, response(t, ads.EndpointType, true, loadOne))
	accept(t, s, response(t, ads.ListenerType, true, rds))
	accept(t, s, response(t, ads.RouteType, true, table))
	// A resource with a key must not come to the disk, wherever it is.
	hidden := response(t, ads.ClusterType, true, secret).Resources[0]
	s.mu.Lock()
	s.clusters["secret"] = &cluster{resource: resource{body: hidden.Body, version: "1"}}
	s.mu.Unlock()
	c.Flush()
	s.Close()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 4 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil || strings.Contains(string(b), "KEY") {
			t.Errorf("%s: a key is on disk, or %v", f.Name(), err)
		}
		if i, _ := f.Info(); i.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f.Name(), i.Mode())
		}
	}
	synctest.Test(t, func(t *testing.T) {
		c, err := NewCache(dir, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		s, e, _ := start(t, Options{Cache: c}, bootstrap)
		e.take()
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if got := e.take(); got != "set cluster orders, set endpoints orders 1, add listener in" {
			t.Error(got)
		}
		<-s.Ready()
		if v := s.Versions(ads.ClusterType); len(v) != 1 || v["orders"] != "1" {
			t.Errorf("a delta stream would start from %v", v)
		}
		// When the control plane comes back, its word counts.
		accept(t, s, response(t, ads.ClusterType, true))
		if got := e.take(); got != "remove cluster orders" {
			t.Error(got)
		}
		s.Close()
	})
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := NewCache(dir, 0, nil); err == nil {
		t.Error("a folder that anybody writes to was taken")
	}
}

func TestNodeTellsWhoWeAre(t *testing.T) {
	b, err := config.LoadYAML(`node: {id: a, cluster: b, locality: {zone: z}, metadata: {k: v}}`)
	if err != nil {
		t.Fatal(err)
	}
	n := Node(b, "1.2")
	if n.GetId() != "a" || n.GetUserAgentName() != "sallyport" || n.GetUserAgentVersion() != "1.2" || n.GetMetadata().GetFields()["k"].GetStringValue() != "v" {
		t.Errorf("%v", n)
	}
	if b.GetNode().GetUserAgentName() != "" {
		t.Error("the bootstrap was changed")
	}
}

func TestWhatIsKeptOfRefusedResourcesHasABound(t *testing.T) {
	s, _, _ := start(t, Options{}, bootstrap)
	huge := strings.Repeat("x", 1<<20)
	for i := range 2 * maxFailures {
		s.Apply(ads.Response{Type: ads.ClusterType, Resources: []ads.Resource{{Name: fmt.Sprint(i), Version: "1", Body: &anypb.Any{TypeUrl: huge[:100_000], Value: []byte(huge[:100_000])}}}})
	}
	all := s.Failures()
	if len(all) != maxFailures {
		t.Errorf("%d are kept", len(all))
	}
	size := 0
	for _, f := range all {
		size += len(f.Name) + len(f.Version) + len(f.Error)
	}
	for _, f := range s.failures[ads.ClusterType] {
		size += len(f.body.GetValue())
	}
	if limit := maxFailures * (maxFailureText + maxFailureBody); size > limit {
		t.Errorf("%d bytes are kept, at most %d may be", size, limit)
	}
}
