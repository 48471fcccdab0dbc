package manifest

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations of a pod. AnnotationInject is also a label, of pods and of namespaces.
const (
	prefix           = "sallyport.io/"
	AnnotationInject = prefix + "inject"
	AnnotationStatus = prefix + "status"
	annotationBundle = prefix + "trust-bundle"

	enabled, disabled = "enabled", "disabled"
)

// known are the annotations that authors write.
var known = []string{"inject", "service", "port", "inbound-mode", "include-inbound-ports", "exclude-inbound-ports", "include-outbound-ports",
	"exclude-outbound-ports", "include-outbound-cidrs", "exclude-outbound-cidrs", "upstreams", "cpu-request", "cpu-limit", "memory-request", "memory-limit", "log-level"}

// wishes are what the annotations say, with their defaults.
type wishes struct {
	service string
	port    int32 // 0: the pod only calls, as far as is known
	// undeclared: no port is known, and nobody said that there is none.
	undeclared bool
	mode       string
	redirect   []string // flags of "sallyport redirect apply"
	upstreams  []string
	resources  corev1.ResourceRequirements
	logLevel   string
}

func readAnnotations(meta *metav1.ObjectMeta, spec *corev1.PodSpec) (*wishes, error) {
	get := func(name string) string { return meta.Annotations[prefix+name] }
	fail := func(name, format string, args ...any) error {
		return fmt.Errorf("annotation %s%s %q: "+format, append([]any{prefix, name, get(name)}, args...)...)
	}
	for key := range meta.Annotations {
		if name, ours := strings.CutPrefix(key, prefix); ours && !slices.Contains(known, name) && key != annotationBundle {
			return nil, fmt.Errorf("annotation %s is not known; there are %s", key, strings.Join(known, ", "))
		}
	}
	w := &wishes{service: spec.ServiceAccountName, mode: "redirect", logLevel: get("log-level")}
	if w.service == "" {
		w.service = spec.DeprecatedServiceAccount
	}
	if w.service == "default" {
		w.service = ""
	}
	if s := get("service"); s != "" && s != w.service {
		return nil, fail("service", "a pod's service is its service account, by which it proves who it is; that is %q: set serviceAccountName", w.service)
	}
	switch m := get("inbound-mode"); m {
	case "":
	case "redirect", "tproxy", "off":
		w.mode = m
	default:
		return nil, fail("inbound-mode", "must be redirect, tproxy or off")
	}
	if err := w.readPort(get("port"), spec); err != nil {
		return nil, fail("port", "%w", err)
	}
	w.undeclared = w.port == 0 && get("port") == "" && w.mode != "off"
	for _, name := range []string{"include-inbound-ports", "exclude-inbound-ports", "include-outbound-ports", "exclude-outbound-ports"} {
		if get(name) == "" {
			continue
		}
		for _, p := range listOf(get(name)) {
			if err := checkPorts(p); err != nil {
				return nil, fail(name, "%w", err)
			}
		}
		w.redirect = append(w.redirect, "--"+name, strings.Join(listOf(get(name)), ","))
	}
	for _, name := range []string{"include-outbound-cidrs", "exclude-outbound-cidrs"} {
		if get(name) == "" {
			continue
		}
		for _, c := range listOf(get(name)) {
			if _, err := netip.ParsePrefix(c); err != nil {
				return nil, fail(name, "%q is not a network such as 10.0.0.0/8", c)
			}
		}
		w.redirect = append(w.redirect, "--"+name, strings.Join(listOf(get(name)), ","))
	}
	w.upstreams = listOf(get("upstreams"))
	for _, u := range w.upstreams {
		name, port, ok := strings.Cut(u, ":")
		if n, err := strconv.ParseUint(port, 10, 16); !ok || name == "" || err != nil || n == 0 {
			return nil, fail("upstreams", "%q: want SERVICE:PORT, as in payments:9001", u)
		}
	}
	if l := w.logLevel; l != "" && !slices.Contains([]string{"trace", "debug", "info", "warning", "error", "critical", "off"}, l) {
		return nil, fail("log-level", "must be trace, debug, info, warning, error, critical or off")
	}
	return w, w.readResources(get, fail)
}

// readPort takes the port of the application: as the annotation says, or the first that a container has.
func (w *wishes) readPort(s string, spec *corev1.PodSpec) error {
	if s != "" {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return fmt.Errorf("must be 0 (it only calls) to 65535")
		}
		w.port = int32(n)
		return nil
	}
	for i := range spec.Containers {
		for _, p := range spec.Containers[i].Ports {
			if p.Protocol == "" || p.Protocol == corev1.ProtocolTCP {
				w.port = p.ContainerPort
				return nil
			}
		}
	}
	return nil
}

// checkPorts takes a port or a range.
func checkPorts(s string) error {
	from, to, ranged := strings.Cut(s, "-")
	a, err := strconv.ParseUint(from, 10, 16)
	b := a
	if err == nil && ranged {
		b, err = strconv.ParseUint(to, 10, 16)
	}
	if err != nil || a == 0 || b < a {
		return fmt.Errorf("%q is not a port, nor a range such as 8000-8100", s)
	}
	return nil
}

// quantityText is narrower than what ParseQuantity takes: "1e2147483647" would keep that busy for hours.
var quantityText = regexp.MustCompile(`^[0-9.]{1,18}(m|k|[KMGTPE]i?)?$`)

func quantity(text string) (resource.Quantity, error) {
	if !quantityText.MatchString(text) {
		return resource.Quantity{}, resource.ErrFormatWrong
	}
	return resource.ParseQuantity(text)
}

func (w *wishes) readResources(get func(string) string, fail func(string, string, ...any) error) error {
	w.resources = corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}
	for _, r := range []struct {
		name, usual string
		list        corev1.ResourceList
		resource    corev1.ResourceName
	}{
		{"cpu-request", "10m", w.resources.Requests, corev1.ResourceCPU}, {"cpu-limit", "", w.resources.Limits, corev1.ResourceCPU},
		{"memory-request", "32Mi", w.resources.Requests, corev1.ResourceMemory}, {"memory-limit", "256Mi", w.resources.Limits, corev1.ResourceMemory},
	} {
		text := r.usual
		if s := get(r.name); s != "" {
			text = s
		}
		if text == "" {
			continue // CPU is not limited: a throttled sidecar throttles its application
		}
		q, err := quantity(text)
		if err != nil || q.Sign() <= 0 {
			return fail(r.name, "want a quantity such as 100m or 64Mi")
		}
		r.list[r.resource] = q
	}
	for _, r := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limit, limited := w.resources.Limits[r]
		if request := w.resources.Requests[r]; limited && request.Cmp(limit) > 0 {
			return fail(string(r)+"-request", "the request %s is above the limit %s", request.String(), limit.String())
		}
	}
	return nil
}
