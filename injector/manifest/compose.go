package manifest

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Compose service gets two others beside it, which share its network: NAME-sallyport-init, which sets up the
// redirection and ends, and NAME-sallyport, the sidecar. What is done is asked for by labels with the names of the
// annotations of pods: sallyport.io/inject, /service, /port, /token-file, and so on.
const (
	composeProxy = "-sallyport"
	composeInit  = "-sallyport-init"
	composeMark  = prefix + "part-of" // label of what was added: the service that it belongs to
)

// composeInject adds the sidecars of all services that ask for one.
func composeInject(d *document, o Options) (changed bool, notes []Note, err error) {
	services, err := composeServices(d)
	if err != nil {
		return false, nil, err
	}
	var errs []error
	var added []*yaml.Node
	for i := 0; i+1 < len(services.Content); i += 2 {
		name, n := services.Content[i].Value, services.Content[i+1]
		place := fmt.Sprintf("%s:%d: service %s", d.file, d.line+services.Content[i].Line-1, name)
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if n.Kind != yaml.MappingNode {
			errs = append(errs, fmt.Errorf("%s: not a mapping", place))
			continue
		}
		labels := composeLabels(n)
		reason := ""
		switch mode := valueOf(n, "network_mode"); {
		case labels[composeMark] != "":
			continue // ours
		case labels[AnnotationInject] != enabled:
			reason = "not injected: it has no label " + AnnotationInject + ": " + enabled
		case find(services, name+composeProxy) != nil:
			reason = "injected already"
		case mode != "":
			reason = fmt.Sprintf("not injected: it has network_mode %q, and so no network of its own", mode)
		}
		if reason != "" {
			notes = append(notes, Note{Place: place, Text: reason, Warned: labels[AnnotationInject] == enabled && !strings.HasPrefix(reason, "injected")})
			continue
		}
		parts, err := composeParts(name, labels, o)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", place, err))
			continue
		}
		added = append(added, parts...)
	}
	if err := errors.Join(errs...); err != nil {
		return false, nil, err
	}
	if len(added) == 0 {
		return false, notes, nil
	}
	services.Content = append(services.Content, added...)
	return true, notes, nil
}

// composeUninject removes what was added.
func composeUninject(d *document) (bool, error) {
	services, err := composeServices(d)
	if err != nil {
		return false, err
	}
	before := len(services.Content)
	for i := 0; i+1 < len(services.Content); {
		if composeLabels(services.Content[i+1])[composeMark] != "" {
			services.Content = slices.Delete(services.Content, i, i+2)
			continue
		}
		i += 2
	}
	return len(services.Content) != before, nil
}

func composeServices(d *document) (*yaml.Node, error) {
	n := find(d.root, "services")
	if n == nil || n.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d: services: not a mapping", d.file, d.line)
	}
	return n, nil
}

// composeLabels are a mapping, or a list of KEY=VALUE.
func composeLabels(n *yaml.Node) map[string]string {
	out := map[string]string{}
	l := find(n, "labels")
	if l == nil {
		return out
	}
	switch l.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(l.Content); i += 2 {
			out[l.Content[i].Value] = l.Content[i+1].Value
		}
	case yaml.SequenceNode:
		for _, e := range l.Content {
			k, v, _ := strings.Cut(e.Value, "=")
			out[k] = v
		}
	}
	return out
}

func composeParts(name string, labels map[string]string, o Options) ([]*yaml.Node, error) {
	get := func(key, usual string) string {
		if v := labels[prefix+key]; v != "" {
			return v
		}
		return usual
	}
	port, err := strconv.ParseUint(get("port", "0"), 10, 16)
	if err != nil {
		return nil, fmt.Errorf("label %sport %q: must be 0 (it only calls) to 65535", prefix, labels[prefix+"port"])
	}
	mode := get("inbound-mode", "redirect")
	if mode != "redirect" && mode != "off" {
		return nil, fmt.Errorf("label %sinbound-mode %q: must be redirect or off", prefix, mode)
	}
	if port == 0 {
		mode = "off"
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if key, ours := strings.CutPrefix(k, prefix); ours && key != "token-file" && key != "address" && !slices.Contains(known, key) {
			return nil, fmt.Errorf("label %s is not known; there are %s, token-file, address", k, strings.Join(known, ", "))
		}
	}
	token := get("token-file", "")
	if token == "" {
		return nil, fmt.Errorf("label %stoken-file is required: the file on this host that holds the service's join token (sallyport token create)", prefix)
	}
	rules := []any{"redirect", "apply", "--sidecar-uid", strconv.Itoa(sidecarID), "--inbound-mode", mode}
	for _, key := range []string{"include-inbound-ports", "exclude-inbound-ports", "include-outbound-ports", "exclude-outbound-ports"} {
		if v := get(key, ""); v != "" {
			for _, p := range listOf(v) {
				if err := checkPorts(p); err != nil {
					return nil, fmt.Errorf("label %s%s: %w", prefix, key, err)
				}
			}
			rules = append(rules, "--"+key, v)
		}
	}
	args := []any{"sidecar", "--service", get("service", name), "--port", strconv.FormatUint(port, 10), "--control-plane", o.ControlPlane, "--trust-domain", o.TrustDomain,
		"--transparent", "--token-file", "/run/sallyport/token", "--identity-dir", "/run/sallyport/identity", "--admin", "127.0.0.1:15000", "--health-address", ":" + strconv.Itoa(healthPort)}
	if address := get("address", ""); address != "" {
		a, err := netip.ParseAddr(address)
		if err != nil {
			return nil, fmt.Errorf("label %saddress %q: want the IP address under which the service is registered", prefix, address)
		}
		if o.Consul != "" && port != 0 {
			args = append(args, "--consul", o.Consul, "--listen", netip.AddrPortFrom(a, meshPort).String())
		}
	}
	for _, u := range listOf(get("upstreams", "")) {
		args = append(args, "--upstream", u)
	}
	if level := get("log-level", o.LogLevel); level != "" {
		args = append(args, "--log-level", level)
	}
	mark := map[string]any{composeMark: name}
	of := "service:" + name
	initial := map[string]any{"image": o.Image, "command": rules, "network_mode": of, "user": "0:0", "read_only": true, "cap_drop": []any{"ALL"}, "cap_add": []any{"NET_ADMIN"},
		"security_opt": []any{"no-new-privileges:true"}, "restart": "no", "labels": mark}
	id := strconv.Itoa(sidecarID)
	proxy := map[string]any{"image": o.Image, "command": args, "network_mode": of, "user": id + ":" + id, "read_only": true, "cap_drop": []any{"ALL"},
		"security_opt": []any{"no-new-privileges:true"}, "restart": "unless-stopped", "labels": mark, "stop_grace_period": "30s",
		"tmpfs": []any{"/run/sallyport/identity:uid=" + id + ",gid=" + id + ",mode=0700"}, "volumes": []any{token + ":/run/sallyport/token:ro"},
		"depends_on": map[string]any{name + composeInit: map[string]any{"condition": "service_completed_successfully"}}}
	return []*yaml.Node{scalar(name + composeInit), nodeOf(initial), scalar(name + composeProxy), nodeOf(proxy)}, nil
}
