package manifest

import (
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// What the sidecar's package probe reads. The two do not import each other; integration tests hold them together.
const (
	probesVariable = "SALLYPORT_APP_PROBES"
	probesPath     = "/app-health/"
)

// escapeEnv keeps Kubernetes from expanding $(NAME) in a value, and from making one dollar of two.
func escapeEnv(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// handler is a place in a container where the kubelet is told to ask the application something.
type handler struct {
	path    string
	probe   *corev1.Probe            // nil for a hook
	of      *corev1.ProbeHandler     // of a probe
	hook    *corev1.LifecycleHandler // of a hook
	timeout int32
}

// handlers are those of a container; what they point to is copied first, so that it can be changed.
func handlers(c *corev1.Container) []handler {
	var out []handler
	for _, p := range []struct {
		name string
		at   **corev1.Probe
	}{{"livez", &c.LivenessProbe}, {"readyz", &c.ReadinessProbe}, {"startupz", &c.StartupProbe}} {
		if *p.at != nil {
			*p.at = (*p.at).DeepCopy()
			out = append(out, handler{path: probesPath + c.Name + "/" + p.name, probe: *p.at, of: &(*p.at).ProbeHandler, timeout: (*p.at).TimeoutSeconds})
		}
	}
	if c.Lifecycle != nil {
		c.Lifecycle = c.Lifecycle.DeepCopy()
		for name, h := range map[string]*corev1.LifecycleHandler{"poststart": c.Lifecycle.PostStart, "prestop": c.Lifecycle.PreStop} {
			if h != nil {
				out = append(out, handler{path: probesPath + c.Name + "/" + name, hook: h})
			}
		}
	}
	return out
}

// asked is what the sidecar has to know of a handler.
type asked struct {
	HTTP    *corev1.HTTPGetAction   `json:"httpGet,omitempty"`
	TCP     *corev1.TCPSocketAction `json:"tcpSocket,omitempty"`
	GRPC    *corev1.GRPCAction      `json:"grpc,omitempty"`
	Timeout int32                   `json:"timeoutSeconds,omitempty"`
}

// moveProbes points the probes of all containers that stay at the sidecar. It returns the originals, and what the
// sidecar shall ask, with numbers for the names of ports.
func moveProbes(lists ...[]corev1.Container) (originals, probes map[string]json.RawMessage, err error) {
	originals, probes = map[string]json.RawMessage{}, map[string]json.RawMessage{}
	for _, list := range lists {
		for i := range list {
			c := &list[i]
			for _, h := range handlers(c) {
				original, a := h.take()
				if a == nil {
					continue
				}
				if err := a.resolve(c); err != nil {
					return nil, nil, fmt.Errorf("container %s: %s: %w", c.Name, strings.TrimPrefix(h.path, probesPath+c.Name+"/"), err)
				}
				was, err := plainJSON(original)
				if err != nil {
					return nil, nil, err
				}
				now, err := plainJSON(a)
				if err != nil {
					return nil, nil, err
				}
				originals[h.path], probes[h.path] = json.RawMessage(was), json.RawMessage(now)
				h.put(&corev1.HTTPGetAction{Path: h.path, Port: intstr.FromInt32(healthPort)}, nil, nil)
			}
		}
	}
	return originals, probes, nil
}

// take returns what a handler asks, or nil where the sidecar need not be in between: a command, another host.
func (h *handler) take() (original any, a *asked) {
	if h.hook != nil {
		if h.hook.HTTPGet == nil || h.hook.HTTPGet.Host != "" {
			return nil, nil
		}
		return asked{HTTP: h.hook.HTTPGet.DeepCopy()}, &asked{HTTP: h.hook.HTTPGet.DeepCopy(), Timeout: 30}
	}
	p := h.of.DeepCopy()
	switch {
	case p.HTTPGet != nil && p.HTTPGet.Host == "", p.TCPSocket != nil && p.TCPSocket.Host == "", p.GRPC != nil:
		return asked{HTTP: p.HTTPGet, TCP: p.TCPSocket, GRPC: p.GRPC},
			&asked{HTTP: p.HTTPGet.DeepCopy(), TCP: p.TCPSocket.DeepCopy(), GRPC: p.GRPC.DeepCopy(), Timeout: h.timeout}
	default:
		return nil, nil
	}
}

func (h *handler) put(http *corev1.HTTPGetAction, tcp *corev1.TCPSocketAction, grpc *corev1.GRPCAction) {
	if h.hook != nil {
		h.hook.HTTPGet = http
		return
	}
	h.of.HTTPGet, h.of.TCPSocket, h.of.GRPC = http, tcp, grpc
}

// resolve makes a number of the name of a port.
func (a *asked) resolve(c *corev1.Container) error {
	var port *intstr.IntOrString
	switch {
	case a.HTTP != nil:
		port = &a.HTTP.Port
	case a.TCP != nil:
		port = &a.TCP.Port
	default:
		return nil
	}
	if port.Type == intstr.String {
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				*port = intstr.FromInt32(p.ContainerPort)
				return nil
			}
		}
		return fmt.Errorf("port %q is not the name of one of the container's ports", port.StrVal)
	}
	if port.IntVal < 1 || port.IntVal > 65535 {
		return fmt.Errorf("port %d: must be 1 to 65535", port.IntVal)
	}
	return nil
}

// returnProbes puts the originals back where the sidecar's are still.
func returnProbes(containers, inits []corev1.Container, originals map[string]json.RawMessage) error {
	for _, list := range [][]corev1.Container{containers, inits} {
		for i := range list {
			for _, h := range handlers(&list[i]) {
				text, ok := originals[h.path]
				if now := h.now(); !ok || now == nil || now.Path != h.path {
					continue // its author has changed it since
				}
				var a asked
				if err := json.Unmarshal(text, &a); err != nil {
					return fmt.Errorf("annotation %s: %s: %w", AnnotationStatus, h.path, err)
				}
				h.put(a.HTTP, a.TCP, a.GRPC)
			}
		}
	}
	return nil
}

func (h *handler) now() *corev1.HTTPGetAction {
	if h.hook != nil {
		return h.hook.HTTPGet
	}
	return h.of.HTTPGet
}
