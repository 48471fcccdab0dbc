package policy

import (
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// isServiceRef says that a reference means a service of the catalog. A parentRef without kind means a Gateway, and
// isServiceRef is then false; a backendRef without kind means a Service: see BackendOf.
func isServiceRef(group *gatewayv1.Group, kind *gatewayv1.Kind) bool {
	return kind != nil && *kind == KindService && (group == nil || *group == "" || *group == "core")
}

func isSubsetRef(group *gatewayv1.Group, kind *gatewayv1.Kind) bool {
	return kind != nil && *kind == KindServiceSubset && group != nil && *group == Group
}

// Backend is what a backendRef means.
type Backend struct {
	Service Key
	Subset  *Object[ServiceSubset] // nil: all of the service
}

// BackendOf finds the backend of a reference in a route.
func (s *Set) BackendOf(r *HTTPRoute, ref gatewayv1.BackendObjectReference) Backend {
	key := Key{r.Namespace, string(ref.Name)}
	if isSubsetRef(ref.Group, ref.Kind) {
		if sub := s.Subsets[key]; sub != nil {
			return Backend{Key{r.Namespace, sub.Spec.Service}, sub}
		}
	}
	return Backend{Service: key}
}

// RoutesOf are the routes attached to a service (Gateway API for service mesh, GAMMA), in order.
func (s *Set) RoutesOf(service Key) (out []*HTTPRoute) {
	for _, r := range s.HTTPRoutes {
		for _, ref := range r.Spec.ParentRefs {
			if isServiceRef(ref.Group, ref.Kind) && parentKey(r, ref) == service {
				out = append(out, r)
				break
			}
		}
	}
	return out
}

// ListenerRoute is a route on a listener, with the hostnames that both have.
type ListenerRoute struct {
	Route     *HTTPRoute
	Hostnames []string // "*" for any
}

// RoutesOn are the routes attached to a listener of a gateway, in order.
func (s *Set) RoutesOn(gateway Key, listener string) (out []ListenerRoute) {
	g := s.Gateways[gateway]
	if g == nil {
		return nil
	}
	for _, r := range s.HTTPRoutes {
		for _, ref := range r.Spec.ParentRefs {
			if isServiceRef(ref.Group, ref.Kind) || parentKey(r, ref) != gateway {
				continue
			}
			taken := false
			for _, l := range ListenersOf(g, r, ref) {
				if string(l.Name) == listener {
					out = append(out, ListenerRoute{r, hostnames(l, r)})
					taken = true
				}
			}
			if taken {
				break
			}
		}
	}
	return out
}

// ListenersOf are the listeners of g that take route r by a parentRef: of that name and port, open to the route's
// namespace, with a hostname in common.
func ListenersOf(g *Gateway, r *HTTPRoute, ref gatewayv1.ParentReference) (out []*gatewayv1.Listener) {
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		if ref.SectionName != nil && *ref.SectionName != l.Name || ref.Port != nil && *ref.Port != l.Port {
			continue
		}
		all := l.AllowedRoutes != nil && l.AllowedRoutes.Namespaces != nil && l.AllowedRoutes.Namespaces.From != nil &&
			*l.AllowedRoutes.Namespaces.From == gatewayv1.NamespacesFromAll
		if g.Namespace != r.Namespace && !all {
			continue
		}
		if len(hostnames(l, r)) > 0 {
			out = append(out, l)
		}
	}
	return out
}

// hostnames are those that a listener and a route have in common: of two that overlap, the narrower.
func hostnames(l *gatewayv1.Listener, r *HTTPRoute) (out []string) {
	own := ""
	if l.Hostname != nil {
		own = strings.ToLower(string(*l.Hostname))
	}
	if len(r.Spec.Hostnames) == 0 {
		if own == "" {
			own = "*"
		}
		return []string{own}
	}
	for _, h := range r.Spec.Hostnames {
		switch name := strings.ToLower(string(h)); {
		case own == "" || own == name || covers(own, name):
			out = append(out, name)
		case covers(name, own):
			out = append(out, own)
		}
	}
	return out
}

// covers says that wide is a wildcard that name, which may be one too, falls under.
func covers(wide, name string) bool {
	suffix, ok := strings.CutPrefix(wide, "*")
	return ok && strings.HasSuffix(name, suffix) && len(name) > len(suffix)
}
