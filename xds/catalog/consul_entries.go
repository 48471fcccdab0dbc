package catalog

import (
	"cmp"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
)

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

// intentions translates Consul's. Those of peers and of sampling concern no service of this catalog.
func (c *Consul) intentions(list []*api.Intention) (out []Intention) {
	for _, in := range list {
		if in.SourcePeer != "" || in.SourceType != "" && in.SourceType != api.IntentionSourceConsul {
			continue
		}
		o := Intention{Source: nameOf(in.SourceNS, in.SourceName), Destination: nameOf(in.DestinationNS, in.DestinationName),
			Action: actionOf(in.Action), Precedence: in.Precedence}
		for _, p := range in.Permissions {
			if p != nil {
				o.Permissions = append(o.Permissions, permissionOf(p))
			}
		}
		out = append(out, o)
	}
	return out
}

// nameOf is a name in an intention; a wildcard is meant for every namespace, as there is one only outside Consul Enterprise.
func nameOf(namespace, name string) Name {
	if name == Wildcard && (namespace == "" || namespace == DefaultNamespace) {
		return Name{Wildcard, Wildcard}
	}
	return Name{cmp.Or(namespace, DefaultNamespace), name}
}

// actionOf takes what is not an allowance for a denial.
func actionOf(a api.IntentionAction) Action {
	if a == api.IntentionActionAllow {
		return Allow
	}
	return Deny
}

func permissionOf(p *api.IntentionPermission) Permission {
	o := Permission{Action: actionOf(p.Action)}
	h := p.HTTP
	if h == nil {
		return o
	}
	switch {
	case h.PathExact != "":
		o.Path = Match{Exact, h.PathExact}
	case h.PathPrefix != "":
		o.Path = Match{Prefix, h.PathPrefix}
	case h.PathRegex != "":
		o.Path = Match{Regex, h.PathRegex}
	}
	o.Methods = slices.Clone(h.Methods)
	for _, m := range h.Header {
		x := HeaderMatch{Name: strings.ToLower(m.Name), Invert: m.Invert, IgnoreCase: m.IgnoreCase}
		switch {
		case m.Present:
			x.Match = Match{Kind: Present}
		case m.Exact != "":
			x.Match = Match{Exact, m.Exact}
		case m.Prefix != "":
			x.Match = Match{Prefix, m.Prefix}
		case m.Suffix != "":
			x.Match = Match{Suffix, m.Suffix}
		case m.Contains != "":
			x.Match = Match{Contains, m.Contains}
		case m.Regex != "":
			x.Match = Match{Regex, m.Regex}
		}
		o.Headers = append(o.Headers, x)
	}
	return o
}
