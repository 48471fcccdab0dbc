package catalog

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
)

func namesOf(list []api.ConfigEntry) (out []string) {
	for _, e := range list {
		out = append(out, e.GetName())
	}
	return out
}

// serviceDefaults takes the protocols that services declare.
func (c *Consul) serviceDefaults(list []api.ConfigEntry) {
	c.loaded[queryServiceDefaults] = true
	c.protocol = map[string]Protocol{}
	for _, e := range list {
		if s, ok := e.(*api.ServiceConfigEntry); ok {
			if p := protocolOf(s.Protocol); p != "" {
				c.protocol[s.Name] = p
			}
		}
	}
}

// proxyDefaults takes the protocol of all services that declare none.
func (c *Consul) proxyDefaults(list []api.ConfigEntry) {
	c.loaded[queryProxyDefaults] = true
	c.fallback = ""
	for _, e := range list {
		if p, ok := e.(*api.ProxyConfigEntry); ok {
			if name, ok := p.Config["protocol"].(string); ok {
				c.fallback = protocolOf(name)
			}
		}
	}
}

func protocolOf(s string) Protocol {
	if p := strings.ToLower(s); slices.Contains(Protocols, p) {
		return Protocol(p)
	}
	return ""
}

// followAgent reads what applies without an intention from the agent's configuration, until Run's context ends. It
// cannot be had by a blocking query, and changes only when agents are restarted.
func (c *Consul) followAgent() {
	const name = "agent"
	failures := 0
	for c.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(c.ctx, askTime)
		var self agentSelf
		_, err := c.client.Raw().Query("/v1/agent/self", &self, (&api.QueryOptions{}).WithContext(ctx))
		if c.named.Load() {
			_ = c.identify(ctx) // the agent may have lost the token that it had for us; the queries say so
		}
		cancel()
		if c.ctx.Err() != nil {
			return
		}
		switch action := self.action(); {
		case err != nil && isDown(err):
			failures++
			c.failed(name, needAgent, err, failures)
		case err != nil || action == "":
			// It answers, and does not tell: that is no reason to hold up the rest.
			if err == nil {
				err = errors.New("its configuration has no default for intentions that is known")
			}
			failures++
			c.failed(name, needAgent, err, failures)
			c.agent("")
		default:
			failures = 0
			c.recovered(name)
			c.agent(action)
		}
		if failures > 0 {
			pause(c.ctx, backoff(c.opt.Retry, failures))
		} else {
			pause(c.ctx, agentInterval)
		}
	}
}

// agent takes in what applies without an intention, "" where that cannot be read. What was known once stays; what never was
// is taken for the stricter, as a mesh document can say otherwise: calls that nothing allows are denied.
func (c *Consul) agent(action Action) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case action != "":
		c.byDefault = action
	case c.byDefault == "":
		c.byDefault = Deny
		c.complain("consul's default for intentions cannot be read: calls that nothing allows are denied, until the ACL token has the rule, "+
			"or defaultAuthorization of a Mesh document says otherwise", "rule", needAgent)
	}
	c.loaded[queryAgent] = true
	c.changed()
}

// agentSelf is what is needed of /v1/agent/self.
type agentSelf struct {
	DebugConfig struct {
		DefaultIntentionPolicy string
		ACLResolverSettings    struct{ ACLDefaultPolicy string }
	}
}

// action is Consul's rule: default_intention_policy, else the default policy of ACLs. Empty where neither is known.
func (s *agentSelf) action() Action {
	policy := s.DebugConfig.DefaultIntentionPolicy
	if policy == "" {
		policy = s.DebugConfig.ACLResolverSettings.ACLDefaultPolicy
	}
	switch policy {
	case "allow":
		return Allow
	case "deny":
		return Deny
	}
	return ""
}
