package manifest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
)

// composeKnown are the labels that authors write, without their prefix.
var composeKnown = []string{"inject", "token-file", "service", "port", "address", "inbound-mode", "include-inbound-ports", "exclude-inbound-ports",
	"include-outbound-ports", "exclude-outbound-ports", "include-outbound-cidrs", "exclude-outbound-cidrs", "upstreams", "cpu-limit", "memory-request",
	"memory-limit", "log-level"}

// composePodsOnly are annotations of pods that have no meaning here, and why.
var composePodsOnly = map[string]string{"cpu-request": "docker reserves no CPU for a container: set cpu-limit, or nothing"}

// composeLeastMemory is below what docker refuses.
const composeLeastMemory = 6 << 20

// composeLabel is one, and where it stands in its document.
type composeLabel struct {
	value string
	line  int
}

// composeLabels are those of a service: a mapping, or a list of KEY=VALUE.
func composeLabels(view *yaml.Node) map[string]composeLabel {
	out := map[string]composeLabel{}
	l := find(view, "labels")
	if l == nil {
		return out
	}
	switch l.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(l.Content); i += 2 {
			k, v := l.Content[i], l.Content[i+1]
			text := v.Value // "" of a list or a mapping, which Compose refuses
			if absent(v) {
				text = ""
			}
			out[k.Value] = composeLabel{text, k.Line}
		}
	case yaml.SequenceNode:
		for _, e := range l.Content {
			k, v, _ := strings.Cut(e.Value, "=")
			out[k] = composeLabel{v, e.Line}
		}
	}
	return out
}

// composeWishes are what the labels say, with their defaults.
type composeWishes struct {
	service   string
	port      uint16 // 0: the service only calls
	mode      string
	redirect  []string // flags of "sallyport redirect apply"
	upstreams []string
	tokenFile string
	address   netip.Addr
	logLevel  string
	limits    map[string]any // keys of a Compose service
}

// readLabels takes the labels of a service. Errors begin with the line of the label.
func (f *composeFile) readLabels(s *composeService, o Options) (*composeWishes, error) {
	get := func(name string) string { return s.labels[prefix+name].value }
	fail := func(name, format string, args ...any) error {
		l := s.labels[prefix+name]
		if strings.Contains(l.value, "$") {
			format += " (variables are not read: resolve them first, by docker compose config)"
		}
		return fmt.Errorf("%s: label %s%s %q: "+format, append([]any{f.place(s, l.line), prefix, name, l.value}, args...)...)
	}
	if err := f.checkNames(s); err != nil {
		return nil, err
	}
	w := &composeWishes{service: s.name, mode: "redirect", logLevel: o.LogLevel}
	if v := get("service"); v != "" {
		w.service = v
	}
	if err := spiffeid.ValidatePathSegment(w.service); err != nil {
		return nil, fail("service", "%w", err)
	}
	switch m := get("inbound-mode"); m {
	case "":
	case "redirect", "off":
		w.mode = m
	default:
		return nil, fail("inbound-mode", "must be redirect or off")
	}
	if err := w.readComposePort(s, get("port")); err != nil {
		if get("port") == "" {
			return nil, fmt.Errorf("%s: %w", f.place(s, s.line), err)
		}
		return nil, fail("port", "%w", err)
	}
	for _, name := range []string{"include-inbound-ports", "exclude-inbound-ports", "include-outbound-ports", "exclude-outbound-ports",
		"include-outbound-cidrs", "exclude-outbound-cidrs"} {
		list := listOf(get(name))
		for _, v := range list {
			if err := checkComposeRange(name, v); err != nil {
				return nil, fail(name, "%w", err)
			}
		}
		if len(list) > 0 {
			w.redirect = append(w.redirect, "--"+name, strings.Join(list, ","))
		}
	}
	w.upstreams = listOf(get("upstreams"))
	for _, u := range w.upstreams {
		name, port, ok := strings.Cut(u, ":")
		if n, err := strconv.ParseUint(port, 10, 16); !ok || name == "" || err != nil || n == 0 {
			return nil, fail("upstreams", "%q: want SERVICE:PORT, as in payments:9001", u)
		}
	}
	if l := get("log-level"); l != "" {
		if !slices.Contains([]string{"trace", "debug", "info", "warning", "error", "critical", "off"}, l) {
			return nil, fail("log-level", "must be trace, debug, info, warning, error, critical or off")
		}
		w.logLevel = l
	}
	if a := get("address"); a != "" {
		var err error
		switch w.address, err = netip.ParseAddr(a); {
		case err != nil:
			return nil, fail("address", "want the IP address under which the service is registered")
		case w.port == 0:
			return nil, fail("address", "a service that only calls is not registered: name its port, or take the address out")
		case o.Consul == "":
			return nil, fail("address", "is where Consul says that the service is, and inject was given no --consul")
		}
	}
	if w.tokenFile = get("token-file"); w.tokenFile == "" {
		return nil, fmt.Errorf("%s: label %stoken-file is required: the file on this host that holds the service's join token (sallyport token create)", f.place(s, s.line), prefix)
	}
	return w, w.readLimits(get, fail)
}

// checkNames refuses labels that would have no effect.
func (f *composeFile) checkNames(s *composeService) error {
	for _, key := range slices.Sorted(maps.Keys(s.labels)) {
		name, ours := strings.CutPrefix(key, prefix)
		if !ours || slices.Contains(composeKnown, name) {
			continue
		}
		if why := composePodsOnly[name]; why != "" {
			return fmt.Errorf("%s: label %s is for pods only: %s", f.place(s, s.labels[key].line), key, why)
		}
		return fmt.Errorf("%s: label %s is not known; there are %s", f.place(s, s.labels[key].line), key, strings.Join(composeKnown, ", "))
	}
	return nil
}

func checkComposeRange(label, v string) error {
	if !strings.HasSuffix(label, "-cidrs") {
		return checkPorts(v)
	}
	if _, err := netip.ParsePrefix(v); err != nil {
		return fmt.Errorf("%q is not a network such as 10.0.0.0/8", v)
	}
	return nil
}

// readComposePort takes the port of the application: as the label says, or the first that it opens.
func (w *composeWishes) readComposePort(s *composeService, label string) (err error) {
	if label == "" {
		w.port, err = firstPort(s.view)
		return err
	}
	n, err := strconv.ParseUint(label, 10, 16)
	if err != nil {
		return fmt.Errorf("must be 0 (it only calls) to 65535")
	}
	w.port = uint16(n)
	return nil
}

// firstPort is the first TCP port of a service's container among ports and expose, 0 if there is none.
func firstPort(view *yaml.Node) (uint16, error) {
	for _, key := range []string{"ports", "expose"} {
		list := find(view, key)
		if list == nil {
			continue
		}
		for _, e := range list.Content {
			port, protocol, _ := strings.Cut(e.Value, "/") // [[HOST:]PUBLISHED:]TARGET[/PROTOCOL]
			port = port[strings.LastIndexByte(port, ':')+1:]
			if e.Kind == yaml.MappingNode {
				port, protocol = valueOf(e, "target"), valueOf(e, "protocol")
			}
			if protocol != "" && protocol != "tcp" {
				continue
			}
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil || n == 0 {
				return 0, fmt.Errorf("label %sport is required: %s begins with %q, which is not the number of one port", prefix, key, port)
			}
			return uint16(n), nil
		}
	}
	return 0, nil
}

// readLimits makes of the resources what plain "docker compose up" hands to docker.
func (w *composeWishes) readLimits(get func(string) string, fail func(string, string, ...any) error) error {
	w.limits = map[string]any{}
	quantities := map[string]resource.Quantity{}
	for _, r := range []struct {
		label, key string
		in         func(resource.Quantity) any
	}{
		{"cpu-limit", "cpus", func(q resource.Quantity) any { return float64(q.MilliValue()) / 1000 }},
		{"memory-request", "mem_reservation", func(q resource.Quantity) any { return composeBytes(q.Value()) }},
		{"memory-limit", "mem_limit", func(q resource.Quantity) any { return composeBytes(q.Value()) }},
	} {
		text := get(r.label)
		if text == "" {
			continue
		}
		q, err := quantity(text)
		if err != nil || q.Sign() <= 0 {
			return fail(r.label, "want a quantity such as 100m or 64Mi")
		}
		if r.label != "cpu-limit" && q.Value() < composeLeastMemory {
			return fail(r.label, "is %d bytes, and docker's least is 6Mi; megabytes are written as in 64Mi", q.Value())
		}
		quantities[r.label] = q
		w.limits[r.key] = r.in(q)
	}
	limit, limited := quantities["memory-limit"]
	if request, ok := quantities["memory-request"]; ok && limited && request.Cmp(limit) > 0 {
		return fail("memory-request", "the request %s is above the limit %s", request.String(), limit.String())
	}
	return nil
}

// composeBytes writes a size as Compose does: its m is a Mi.
func composeBytes(n int64) string {
	if n%(1<<20) == 0 {
		return strconv.FormatInt(n>>20, 10) + "m"
	}
	return strconv.FormatInt(n, 10) + "b"
}
