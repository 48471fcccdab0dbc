package manifest

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// composeNetworkKeys are the keys of a service that belong to its network namespace. Docker refuses most of them in a
// container that joins another's (moby, runconfig/hostconfig.go), or gives it those of the other.
var composeNetworkKeys = []string{"network_mode", "networks", "ports", "expose", "hostname", "domainname", "dns", "dns_search", "dns_opt",
	"extra_hosts", "mac_address", "links", "external_links", "sysctls"}

// takeNetwork takes the network out of a service and has it join the holder's. It returns the keys and values for the
// holder.
func takeNetwork(s *composeService) ([]*yaml.Node, error) {
	networks, err := aliased(find(s.view, "networks"), find(s.view, "network_mode"), s.aliases())
	if err != nil {
		return nil, err
	}
	var moved []*yaml.Node
	var kept []*yaml.Node
	for i := 0; i+1 < len(s.node.Content); i += 2 {
		k, v := s.node.Content[i], clone(s.node.Content[i+1])
		switch {
		case !slices.Contains(composeNetworkKeys, k.Value):
			kept = append(kept, k, s.node.Content[i+1])
		case absent(v) || k.Value == "networks":
		case k.Value == "sysctls":
			net, rest := splitSysctls(v)
			if len(net.Content) > 0 {
				moved = append(moved, scalar(k.Value), net)
			}
			if len(rest.Content) > 0 {
				kept = append(kept, k, rest)
			}
		default:
			moved = append(moved, k, v)
		}
	}
	s.node.Content = kept
	if networks != nil {
		moved = append(moved, scalar("networks"), networks)
	}
	depends, err := dependsOn(find(s.view, "depends_on"), map[string]string{
		s.name + composeInit: "service_completed_successfully", s.name + composeProxy: "service_healthy"})
	if err != nil {
		return nil, err
	}
	put(s.node, "network_mode", scalar("service:"+s.name+composeNet))
	put(s.node, "depends_on", depends)
	return moved, nil
}

// aliases are the names under which others find the application: those of its service and of its container.
func (s *composeService) aliases() []string {
	names := []string{s.name}
	if c := valueOf(s.view, "container_name"); c != "" && c != s.name {
		names = append(names, c)
	}
	return names
}

// aliased are the networks of a service as a mapping, with more names on each. A service that names none is on the
// default one; one with a network_mode is on none, and has no names.
func aliased(networks, mode *yaml.Node, names []string) (*yaml.Node, error) {
	if !absent(mode) {
		if !absent(networks) && len(networks.Content) > 0 {
			return nil, fmt.Errorf("networks: they and network_mode exclude each other")
		}
		return nil, nil
	}
	out := nodeOf(map[string]any{})
	switch {
	case absent(networks) || networks.Kind != yaml.ScalarNode && len(networks.Content) == 0:
		out.Content = []*yaml.Node{scalar("default"), nodeOf(map[string]any{})}
	case networks.Kind == yaml.SequenceNode:
		for _, n := range networks.Content {
			if find(out, n.Value) == nil {
				out.Content = append(out.Content, clone(n), nodeOf(map[string]any{}))
			}
		}
	case networks.Kind == yaml.MappingNode:
		out = clone(networks)
	default:
		return nil, fmt.Errorf("networks: want a list or a mapping")
	}
	for i := 0; i+1 < len(out.Content); i += 2 {
		if absent(out.Content[i+1]) {
			out.Content[i+1] = nodeOf(map[string]any{})
		}
		network := out.Content[i+1]
		if network.Kind != yaml.MappingNode {
			return nil, fmt.Errorf("networks: %s: want a mapping", out.Content[i].Value)
		}
		list := find(network, "aliases")
		if absent(list) {
			list = nodeOf([]any{})
			put(network, "aliases", list)
		}
		for _, name := range names {
			if !slices.ContainsFunc(list.Content, func(n *yaml.Node) bool { return n.Value == name }) {
				list.Content = append(list.Content, scalar(name))
			}
		}
	}
	return out, nil
}

// unaliased is the reverse: nil for the default network alone, a list where there is nothing but names.
func unaliased(networks *yaml.Node, names []string) *yaml.Node {
	list := nodeOf([]any{})
	bare := true
	for i := 0; i+1 < len(networks.Content); i += 2 {
		k, network := networks.Content[i], networks.Content[i+1]
		if a := find(network, "aliases"); a != nil {
			a.Content = slices.DeleteFunc(a.Content, func(n *yaml.Node) bool { return slices.Contains(names, n.Value) })
			if len(a.Content) == 0 {
				drop(network, "aliases")
			}
		}
		bare = bare && len(network.Content) == 0
		list.Content = append(list.Content, k)
	}
	switch {
	case !bare:
		return networks
	case len(list.Content) == 1 && list.Content[0].Value == "default":
		return nil
	}
	return list
}

// splitSysctls parts those of the network namespace from the others.
func splitSysctls(v *yaml.Node) (net, rest *yaml.Node) {
	step := 1
	if v.Kind == yaml.MappingNode {
		step = 2
	}
	a, b := *v, *v
	a.Content, b.Content = nil, nil
	for i := 0; i+step <= len(v.Content); i += step {
		into := &b
		if strings.HasPrefix(v.Content[i].Value, "net.") {
			into = &a
		}
		into.Content = append(into.Content, v.Content[i:i+step]...)
	}
	return &a, &b
}

// dependsOn are the dependencies of a service in their long form, with more of them. "restart: true": whoever restarts
// or replaces one of these by Compose restarts the service with it, after it.
func dependsOn(was *yaml.Node, more map[string]string) (*yaml.Node, error) {
	out := nodeOf(map[string]any{})
	switch {
	case absent(was):
	case was.Kind == yaml.SequenceNode:
		for _, n := range was.Content {
			out.Content = append(out.Content, clone(n), nodeOf(map[string]any{"condition": "service_started"}))
		}
	case was.Kind == yaml.MappingNode:
		out = clone(was)
	default:
		return nil, fmt.Errorf("depends_on: want a list or a mapping")
	}
	added := nodeOf(conditions(more))
	for i := 0; i < len(added.Content); i += 2 {
		put(out, added.Content[i].Value, added.Content[i+1])
	}
	return out, nil
}

func conditions(of map[string]string) map[string]any {
	out := map[string]any{}
	for name, condition := range of {
		out[name] = map[string]any{"condition": condition, "restart": true}
	}
	return out
}

// returnNetwork gives a service back what the holder took. What somebody has written into both of them meanwhile is put
// together where it can be.
func returnNetwork(s *composeService, holder *yaml.Node) error {
	if valueOf(s.node, "network_mode") == "service:"+s.name+composeNet {
		drop(s.node, "network_mode")
	}
	if d := drop(s.node, "depends_on"); d != nil {
		if d = independent(clone(d), s.name); d != nil {
			put(s.node, "depends_on", d)
		}
	}
	for i := 0; i+1 < len(holder.Content); i += 2 {
		key, value := holder.Content[i], holder.Content[i+1]
		if !slices.Contains(composeNetworkKeys, key.Value) {
			continue
		}
		if key.Value == "networks" {
			if value = unaliased(value, s.aliases()); value == nil {
				continue
			}
		}
		if own := drop(s.node, key.Value); !absent(own) {
			own = clone(own)
			if own.Kind != value.Kind || own.Kind == yaml.ScalarNode {
				return fmt.Errorf("%s is in %s%s, too: keep one of the two", key.Value, s.name, composeNet)
			}
			value.Content = append(own.Content, value.Content...)
		}
		s.node.Content = append(s.node.Content, key, value)
	}
	return nil
}

// independent are dependencies without ours: nil if there are no others, a list where a list says it all.
func independent(d *yaml.Node, name string) *yaml.Node {
	list := nodeOf([]any{})
	plainly := d.Kind == yaml.MappingNode
	for _, suffix := range composeServices {
		if d.Kind == yaml.MappingNode {
			drop(d, name+suffix)
		}
	}
	for i := 0; plainly && i+1 < len(d.Content); i += 2 {
		v := d.Content[i+1]
		plainly = len(v.Content) == 2 && valueOf(v, "condition") == "service_started"
		list.Content = append(list.Content, d.Content[i])
	}
	switch {
	case len(d.Content) == 0:
		return nil
	case plainly:
		return list
	}
	return d
}
