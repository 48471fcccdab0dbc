package harness

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"testing"

	"github.com/hashicorp/consul/api"
)

// ConsulBuilder says how to start Consul.
type ConsulBuilder struct {
	t     testing.TB
	args  []string
	host  *Host
	token string
}

// consulManagement is the token of an agent with ACLs that may do everything.
const consulManagement = "11111111-1111-4111-8111-111111111111"

// ConsulAgent is a running agent in development mode: one server, in memory, with mesh support on.
type ConsulAgent struct {
	*Process
	// Client is for everything that has no method here.
	Client *api.Client

	t       testing.TB
	command Command
	host    *Host // nil: the machine itself
	http    string
	grpc    string
}

// NewConsul builds a real Consul.
func NewConsul(t testing.TB) *ConsulBuilder {
	t.Helper()
	Need(t, Consul)
	return &ConsulBuilder{t: t}
}

// Args appends to the command line, -hcl texts for example.
func (b *ConsulBuilder) Args(args ...string) *ConsulBuilder {
	b.args = append(b.args, args...)
	return b
}

// ACL has the agent deny what no token allows. Client has the token that allows everything.
func (b *ConsulBuilder) ACL() *ConsulBuilder {
	b.token = consulManagement
	return b.Args("-hcl", `acl { enabled = true default_policy = "deny" policy_ttl = "1s" token_ttl = "1s" tokens { initial_management = "`+consulManagement+`" } }`)
}

// On has the agent run on a host of a test network, open to the others.
func (b *ConsulBuilder) On(h *Host) *ConsulBuilder {
	b.host = h
	return b
}

// Run starts the agent and waits until it has a leader and knows itself.
func (b *ConsulBuilder) Run() *ConsulAgent {
	b.t.Helper()
	port := func() string { return strconv.Itoa(FreePort(b.t)) }
	c := &ConsulAgent{t: b.t, host: b.host, http: FreeAddr(b.t), grpc: FreeAddr(b.t)}
	bind, config := "127.0.0.1", &api.Config{}
	if b.host != nil {
		bind = b.host.IPv4.String()
		c.http, c.grpc = net.JoinHostPort(bind, "8500"), net.JoinHostPort(bind, "8502")
		config.HttpClient = b.host.HTTPClient()
	}
	_, httpPort, _ := net.SplitHostPort(c.http)
	_, grpcPort, _ := net.SplitHostPort(c.grpc)
	args := append([]string{"agent", "-dev", "-node", "test", "-bind", bind, "-client", bind, "-log-level", "warn",
		"-http-port", httpPort, "-grpc-port", grpcPort, "-grpc-tls-port", "-1", "-dns-port", "-1", "-server-port", port(),
		"-serf-lan-port", port(), "-serf-wan-port", port(), "-hcl", `disable_update_check = true`}, b.args...)
	c.command = Command{Name: "consul", Path: Consul.Path(), Args: args}
	var err error
	config.Address, config.Token = c.http, b.token
	if c.Client, err = api.NewClient(config); err != nil {
		b.t.Fatal(err)
	}
	c.start()
	return c
}

func (c *ConsulAgent) start() {
	c.t.Helper()
	if c.host != nil {
		c.Process = c.host.Start(c.command)
	} else {
		c.Process = c.command.Start(c.t)
	}
	c.WaitFor("leader", func() error {
		leader, err := c.Client.Status().Leader()
		if err == nil && leader == "" {
			err = errors.New("no leader yet")
		}
		if err != nil {
			return err
		}
		nodes, _, err := c.Client.Catalog().Nodes(nil)
		if err == nil && len(nodes) == 0 {
			err = errors.New("the catalog is still empty")
		}
		if err == nil {
			// A new leader refuses to write intentions for a moment; to delete none is what shows it without a trace.
			_, err = c.Client.Connect().IntentionDeleteExact("none", "none", nil)
		}
		return err
	})
}

// URL is the HTTP API.
func (c *ConsulAgent) URL() string { return "http://" + c.http }

// Grant is an ACL token, and the policy that says what it may do.
type Grant struct {
	Secret string

	agent  *ConsulAgent
	policy *api.ACLPolicy
}

// Grant makes a token with rules.
func (c *ConsulAgent) Grant(name, rules string) *Grant {
	c.t.Helper()
	p, _, err := c.Client.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
	c.must(err)
	t, _, err := c.Client.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{ID: p.ID}}}, nil)
	c.must(err)
	return &Grant{Secret: t.SecretID, agent: c, policy: p}
}

// Rules changes what the token may do.
func (g *Grant) Rules(rules string) {
	g.agent.t.Helper()
	g.policy.Rules = rules
	p, _, err := g.agent.Client.ACL().PolicyUpdate(g.policy, nil)
	g.agent.must(err)
	g.policy = p
}

// Instance is a service instance to register. Its health is a check that the test sets by Pass and Fail.
type Instance struct {
	ID, Service string // ID is Service where empty
	Addr        string // host:port
	Tags        []string
	Meta        map[string]string
	Kind        api.ServiceKind
	Proxy       *api.AgentServiceConnectProxyConfig
	Connect     *api.AgentServiceConnect
}

// Register registers the instance, passing.
func (c *ConsulAgent) Register(i Instance) {
	c.t.Helper()
	if i.ID == "" {
		i.ID = i.Service
	}
	host, portText, err := net.SplitHostPort(i.Addr)
	if err != nil {
		c.t.Fatal(err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		c.t.Fatal(err)
	}
	c.must(c.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: i.ID, Name: i.Service, Kind: i.Kind, Address: host, Port: port, Tags: i.Tags, Meta: i.Meta, Proxy: i.Proxy, Connect: i.Connect,
		Check: &api.AgentServiceCheck{CheckID: checkOf(i.ID), TTL: "1h", Status: api.HealthPassing},
	}))
}

func checkOf(id string) string { return "ttl:" + id }

// Deregister takes the instance out of the catalog.
func (c *ConsulAgent) Deregister(id string) {
	c.t.Helper()
	c.must(c.Client.Agent().ServiceDeregister(id))
}

// Pass makes the instance healthy.
func (c *ConsulAgent) Pass(id string) { c.health(id, api.HealthPassing) }

// Fail makes the instance critical.
func (c *ConsulAgent) Fail(id string) { c.health(id, api.HealthCritical) }

func (c *ConsulAgent) health(id, status string) {
	c.t.Helper()
	c.must(c.Client.Agent().UpdateTTL(checkOf(id), "set by the test", status))
}

// Intend allows or denies the source to call the destination; "*" is everyone.
func (c *ConsulAgent) Intend(source, destination string, allow bool) {
	c.t.Helper()
	action := api.IntentionActionDeny
	if allow {
		action = api.IntentionActionAllow
	}
	_, err := c.Client.Connect().IntentionUpsert(&api.Intention{SourceName: source, DestinationName: destination, Action: action}, nil)
	c.must(err)
}

// Unintend removes an intention.
func (c *ConsulAgent) Unintend(source, destination string) {
	c.t.Helper()
	_, err := c.Client.Connect().IntentionDeleteExact(source, destination, nil)
	c.must(err)
}

// Entry writes a config entry.
func (c *ConsulAgent) Entry(entry api.ConfigEntry) {
	c.t.Helper()
	ok, _, err := c.Client.ConfigEntries().Set(entry, nil)
	if err == nil && !ok {
		err = errors.New("not written")
	}
	c.must(err)
}

func (c *ConsulAgent) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(fmt.Errorf("consul: %w", err))
	}
}
