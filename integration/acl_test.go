package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"sallyport/integration/harness"
)

const (
	readServices = "service_prefix \"\" {\n  policy = \"read\"\n}\n"
	readNodes    = "node_prefix \"\" {\n  policy = \"read\"\n}\n"
	readAgents   = "agent_prefix \"\" {\n  policy = \"read\"\n}\n"
	readAll      = readServices + readNodes + readAgents
)

// guarded is a mesh that a Consul with ACLs describes: web and stranger call orders, which denies the stranger. Without an
// intention calls are allowed, so that a denial that is lost opens.
type guarded struct {
	t               *testing.T
	consul          *harness.ConsulAgent
	control         *harness.ControlPlane
	app             *harness.Backend
	mesh            string // where the sidecar of orders listens
	web, stranger   *harness.Proxy
	allowed, denied int
	touched         int
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{t: t, app: harness.NewBackend(t, "orders").HTTP1(), allowed: 200, denied: 403}
	g.consul = harness.NewConsul(t).ACL().Args("-hcl", `default_intention_policy = "allow"`).Run()
	g.consul.Intend("stranger", "orders", false)
	g.control = harness.NewControlPlane(t).Status().Consul(g.consul)
	return g
}

// join starts the sidecars, once the control plane runs.
func (g *guarded) join() {
	g.t.Helper()
	b := harness.NewSidecar(g.t).Service("orders", g.app.Port())
	g.mesh = b.Address("mesh")
	g.consul.Register(harness.Instance{Service: "orders", Addr: g.app.Addr()})
	g.consul.Register(harness.Instance{Service: "orders-sidecar-proxy", Addr: g.mesh, Kind: api.ServiceKindConnectProxy,
		Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "orders", DestinationServiceID: "orders"}})
	b.ControlPlane(g.control.Addr(), g.control.Token("--service", "orders")).Run()
	caller := func(name string) *harness.Proxy {
		return harness.NewSidecar(g.t).Service(name, 1).ControlPlane(g.control.Addr(), g.control.Token("--service", name)).Upstream("orders").Run()
	}
	g.web, g.stranger = caller("web"), caller("stranger")
	harness.Eventually(g.t, 15*time.Second, "web may and the stranger may not", g.check)
}

// check says whether web and the stranger are answered as they shall be.
func (g *guarded) check() error {
	for _, c := range []struct {
		who  *harness.Proxy
		want int
	}{{g.web, g.allowed}, {g.stranger, g.denied}} {
		reply, err := harness.TryGet(c.who.Addr("orders"), "/", "host: orders")
		if err != nil {
			return err
		}
		if reply.Status() != c.want {
			return fmt.Errorf("%s was answered %d, want %d", c.who.Name, reply.Status(), c.want)
		}
	}
	return nil
}

// says waits until the status has all of the texts. Meanwhile it changes what blocking queries wait for: otherwise they come
// back after a minute.
func (g *guarded) says(texts ...string) {
	g.t.Helper()
	harness.Eventually(g.t, 90*time.Second, "the status", func() error {
		g.touch()
		said := g.control.Says()
		for _, text := range texts {
			if !strings.Contains(said, text) {
				return fmt.Errorf("%q is not in %q", text, said)
			}
		}
		return nil
	})
}

func TestWhatConsulsACLsHideIsNotLost(t *testing.T) {
	harness.Need(t, harness.Consul)
	g := newGuarded(t)
	grant := g.consul.Grant("control-plane", strings.Replace(readAll, `"read"`, "\"read\"\n  intentions = \"deny\"", 1))
	g.control.Env("CONSUL_HTTP_TOKEN=" + grant.Secret).Run()
	g.says("service-intentions: the ACL token may not read all of it", `intentions = "read"`)
	grant.Rules(readAll)
	g.says("up to date")
	g.join()
	for rules, want := range map[string][]string{
		readNodes + readAgents:    {`service_prefix "" { policy = "read" }`},
		readServices + readAgents: {`node_prefix "" { policy = "read" }`},
	} {
		grant.Rules(rules)
		g.says(want...)
		for range 20 {
			if err := g.check(); err != nil {
				t.Errorf("with %q: %v", rules, err)
			}
		}
		grant.Rules(readAll)
		g.says("up to date")
	}
	if err := g.check(); err != nil {
		t.Error(err)
	}
}

func (g *guarded) touch() {
	g.t.Helper()
	g.touched++
	g.consul.Register(harness.Instance{Service: "touched", Addr: g.app.Addr(), Tags: []string{fmt.Sprint(g.touched)}})
	g.consul.Intend("nobody", "nothing", g.touched%2 == 0)
}

func TestConsulWithACLsIsNotBelievedWithoutAToken(t *testing.T) {
	harness.Need(t, harness.Consul)
	g := newGuarded(t)
	g.control.Env("CONSUL_HTTP_TOKEN=").Run()
	g.says("ACLs deny by default and there is no ACL token", "set CONSUL_HTTP_TOKEN")
	// The agent has one for those who bring none.
	grant := g.consul.Grant("agent", readAll)
	if _, err := g.consul.Client.Agent().UpdateDefaultACLToken(grant.Secret, nil); err != nil {
		t.Fatal(err)
	}
	g.says("up to date")
	g.join()
	if _, err := g.consul.Client.Agent().UpdateDefaultACLToken("", nil); err != nil {
		t.Fatal(err)
	}
	g.says("ACLs deny by default and there is no ACL token")
	for range 20 {
		if err := g.check(); err != nil {
			t.Error(err)
		}
	}
}
