package demo

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"

	"github.com/hashicorp/consul/api"
)

// consulAgent is a real Consul in development mode: one server, in memory.
type consulAgent struct {
	*process
	client *api.Client
	addr   string
}

// findConsul is where Consul is: path, else $CONSUL (which the caller has put
// into path), else what the PATH has.
func findConsul(path string) (string, error) {
	if path == "" {
		path = "consul"
	}
	found, err := exec.LookPath(path)
	if err != nil {
		return "", fmt.Errorf("consul: %w; install it, or name it: CONSUL=/path/to/consul (in this repository: make tools)", err)
	}
	return found, nil
}

// startConsul starts an agent and waits until it leads itself.
func startConsul(ctx context.Context, dir, path string, ports *portGiver) (*consulAgent, error) {
	port := func() string { return strconv.Itoa(ports.next()) }
	http := ports.next()
	args := []string{path, "agent", "-dev", "-node", "demo", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-log-level", "warn",
		"-http-port", strconv.Itoa(http), "-grpc-port", "-1", "-grpc-tls-port", "-1", "-dns-port", "-1", "-server-port", port(),
		"-serf-lan-port", port(), "-serf-wan-port", port(), "-hcl", "disable_update_check = true"}
	if ports.err != nil {
		return nil, ports.err
	}
	c := &consulAgent{addr: local(http)}
	var err error
	if c.client, err = api.NewClient(&api.Config{Address: c.addr}); err != nil {
		return nil, fmt.Errorf("consul: %w", err)
	}
	ports.release(args...)
	if c.process, err = start(dir, "consul", args...); err != nil {
		return nil, err
	}
	return c, waitFor(ctx, c.process, "a leader of Consul", func() error {
		leader, err := c.client.Status().Leader()
		if err == nil && leader == "" {
			err = errors.New("there is none yet")
		}
		if err != nil {
			return err
		}
		nodes, _, err := c.client.Catalog().Nodes(nil)
		if err == nil && len(nodes) == 0 {
			err = errors.New("its catalog is empty")
		}
		if err == nil {
			// A new leader refuses to write intentions for a moment; to delete none is what shows it without a trace.
			_, err = c.client.Connect().IntentionDeleteExact("none", "none", nil)
		}
		return err
	})
}

// register enters what the catalog file would say, in Consul's own terms: each
// instance with a check on its application, beside it a connect-proxy with a
// check on the sidecar's port, and the intentions. Checks begin as critical: an
// instance gets requests when it was seen to listen, and not before.
func (c *consulAgent) register(catalog fileCatalog) error {
	agent := c.client.Agent()
	for _, s := range catalog.Services {
		for _, in := range s.Instances {
			r := &api.AgentServiceRegistration{ID: in.ID, Name: s.Name, Address: in.Address, Port: in.Port, Meta: in.Meta,
				Check: &api.AgentServiceCheck{HTTP: "http://" + local(in.Port) + "/healthz", Interval: "500ms", Timeout: "400ms"}}
			if in.Sidecar == nil { // an edge: it speaks HTTPS to the public, and nothing on /healthz
				r.Check.HTTP, r.Check.TCP = "", local(in.Port)
			}
			if err := agent.ServiceRegister(r); err != nil {
				return fmt.Errorf("consul: register %s: %w", in.ID, err)
			}
			if in.Sidecar == nil {
				continue
			}
			err := agent.ServiceRegister(&api.AgentServiceRegistration{Kind: api.ServiceKindConnectProxy, ID: in.ID + "-sidecar", Name: s.Name + "-sidecar",
				Address: in.Address, Port: in.Sidecar.Port, Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: s.Name,
					DestinationServiceID: in.ID, LocalServiceAddress: in.Address, LocalServicePort: in.Port},
				Check: &api.AgentServiceCheck{TCP: local(in.Sidecar.Port), Interval: "500ms", Timeout: "400ms"}})
			if err != nil {
				return fmt.Errorf("consul: register the sidecar of %s: %w", in.ID, err)
			}
		}
		if s.Protocol != "tcp" {
			e := &api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: s.Name, Protocol: "http"}
			if _, _, err := c.client.ConfigEntries().Set(e, nil); err != nil {
				return fmt.Errorf("consul: service-defaults of %s: %w", s.Name, err)
			}
		}
	}
	for _, i := range catalog.Intentions {
		in := &api.Intention{SourceName: i.Source, DestinationName: i.Destination, Action: api.IntentionAction(i.Action)}
		if _, err := c.client.Connect().IntentionUpsert(in, nil); err != nil {
			return fmt.Errorf("consul: intention %s to %s: %w", i.Source, i.Destination, err)
		}
	}
	return nil
}
