package integration

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"sallyport/integration/harness"
)

// market is a mesh that a real Consul describes: two instances of orders, and
// a shop that calls them.
type market struct {
	t       *testing.T
	consul  *harness.ConsulAgent
	control *harness.ControlPlane
	apps    []*harness.Backend
	orders  []*harness.Proxy
	caller  *harness.Proxy
}

func newMarket(t *testing.T) *market {
	t.Helper()
	m := &market{t: t, consul: harness.NewConsul(t).Run()}
	m.consul.Intend("shop", "orders", true)
	m.control = harness.NewControlPlane(t).Args("--status-listen", "-").Consul(m.consul).Run()
	for i := range 2 {
		app := harness.NewBackend(t, fmt.Sprintf("orders-%d", i)).HTTP1()
		m.apps = append(m.apps, app)
		m.orders = append(m.orders, harness.NewSidecar(t).Service("orders", app.Port()).ControlPlane(m.control.Addr(), m.control.Token("--service", "orders")).Run())
		m.register(i)
	}
	m.caller = harness.NewSidecar(t).Service("shop", 1).ControlPlane(m.control.Addr(), m.control.Token("--service", "shop")).Upstream("orders").Run()
	return m
}

func (m *market) register(i int) {
	m.t.Helper()
	id := fmt.Sprintf("orders-%d", i)
	m.consul.Register(harness.Instance{ID: id, Service: "orders", Addr: m.apps[i].Addr()})
	m.consul.Register(harness.Instance{ID: id + "-sidecar-proxy", Service: "orders-sidecar-proxy", Addr: m.orders[i].Addr("mesh"), Kind: api.ServiceKindConnectProxy,
		Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "orders", DestinationServiceID: id}})
}

func (m *market) deregister(i int) {
	m.t.Helper()
	id := fmt.Sprintf("orders-%d", i)
	m.consul.Deregister(id + "-sidecar-proxy")
	m.consul.Deregister(id)
}

// endpoints are the addresses of orders that the caller's sidecar balances over.
func (m *market) endpoints() []string {
	m.t.Helper()
	var out []string
	for _, p := range m.orders {
		if addr := p.Addr("mesh"); hasHost(m.caller.Admin("/clusters"), addr) {
			out = append(out, addr)
		}
	}
	slices.Sort(out)
	return out
}

func hasHost(clusters, addr string) bool {
	return strings.Contains(clusters, "default/orders::"+addr+"::health_flags::healthy\n")
}

func (m *market) wait(limit time.Duration, what string, n int) {
	m.t.Helper()
	harness.Eventually(m.t, limit, what, func() error {
		if got := m.endpoints(); len(got) != n {
			return fmt.Errorf("endpoints %v, want %d", got, n)
		}
		return nil
	})
}

func (m *market) status() int {
	m.t.Helper()
	host, _, err := net.SplitHostPort(m.caller.Addr("orders"))
	if err != nil {
		m.t.Fatal(err)
	}
	reply := harness.Get(m.t, m.caller.Addr("orders"), "/", "host: "+host)
	return reply.Status()
}

func TestConsulSaysWhoServes(t *testing.T) {
	m := newMarket(t)
	m.wait(10*time.Second, "both instances discovered", 2)
	if got := m.status(); got != 200 {
		t.Fatalf("registered, and answered %d", got)
	}
	m.consul.Fail("orders-0")
	m.wait(time.Second, "the critical one is out", 1)
	m.apps[0].Take()
	for range 20 {
		if got := m.status(); got != 200 {
			t.Errorf("one instance left, and answered %d", got)
		}
	}
	if n := len(m.apps[0].Take()); n != 0 {
		t.Errorf("the critical instance got %d requests", n)
	}
	m.consul.Pass("orders-0")
	m.wait(time.Second, "it is back", 2)
	m.consul.Intend("shop", "orders", false)
	m.eventually(403)
	m.consul.Intend("shop", "orders", true)
	m.eventually(200)
}

func (m *market) eventually(want int) {
	m.t.Helper()
	harness.Eventually(m.t, time.Second, fmt.Sprintf("the intention gives %d", want), func() error {
		if got := m.status(); got != want {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}

func TestNobodyNoticesRollingDeregistrations(t *testing.T) {
	m := newMarket(t)
	m.wait(10*time.Second, "both instances discovered", 2)
	load := harness.NewLoad(t, harness.HTTPCall(t, "http://"+m.caller.Addr("orders")+"/", false)).Rate(1000).Life(90 * time.Second).Start()
	load.After(500)
	for i := range 20 {
		m.deregister(i % 2)
		m.wait(5*time.Second, "one left", 1)
		load.After(100)
		m.register(i % 2)
		m.wait(5*time.Second, "both there", 2)
		load.After(100)
	}
	load.MustNotFail()
}
