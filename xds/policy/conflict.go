package policy

import (
	"cmp"
	"slices"
	"strings"

	"sallyport/xds/document"
)

// Conflict is a part of a document that does not mean what it says at a service: because the service speaks tcp, whose stream
// of bytes has no requests, paths or tokens; or because it lets in a Gateway as if that were a service.
type Conflict struct {
	Service Key
	Problem *document.Problem
	// Closes says that the part restricts who may do what. The service is closed until the conflict is gone: without the
	// policy it would be open to those whom the policy keeps out.
	Closes bool
}

// Services are all services that documents say something about: as a target, or as a route's parent. Sorted.
func (s *Set) Services() []Key {
	seen := map[Key]bool{}
	s.Targets(func(_ func(string, ...any) *document.Problem, t Target) {
		if t.Kind == KindService {
			seen[t.Key] = true
		}
	})
	for _, r := range s.HTTPRoutes {
		for _, ref := range r.Spec.ParentRefs {
			if isServiceRef(ref.Group, ref.Kind) {
				seen[parentKey(r, ref)] = true
			}
		}
	}
	return sortedKeys(seen)
}

// ConflictsOf are the parts that cannot be enforced at the service if it speaks tcp.
func (s *Set) ConflictsOf(service Key) (out []Conflict) {
	t := Target{Kind: KindService, Key: service}
	add := func(closes bool, p *document.Problem) {
		if p != nil {
			out = append(out, Conflict{service, p, closes})
		}
	}
	add(true, refused(s.JWT[t], t, ""))
	add(true, refused(s.RateLimit[t], t, ""))
	add(false, refused(s.Retry[t], t, ""))
	if o := s.Timeout[t]; o != nil {
		if o.Spec.Request != nil {
			add(false, refused(o, t, "spec.request"))
		}
		if o.Spec.Idle != nil {
			add(false, refused(o, t, "spec.idle"))
		}
	}
	if o := s.LoadBalancer[t]; o != nil {
		if o.Spec.SessionPersistence != nil {
			add(false, refused(o, t, "spec.sessionPersistence"))
		}
		if o.Spec.HashHeader != "" {
			add(false, refused(o, t, "spec.hashHeader"))
		}
	}
	if o := s.HealthCheck[t]; o != nil && o.Spec.Path != "" {
		add(false, refused(o, t, "spec.path"))
	}
	if o := s.CircuitBreaker[t]; o != nil {
		if o.Spec.MaxRequests != nil {
			add(false, refused(o, t, "spec.maxRequests"))
		}
		if o.Spec.MaxRetries != nil {
			add(false, refused(o, t, "spec.maxRetries"))
		}
	}
	for _, r := range s.RoutesOf(service) {
		for i, ref := range r.Spec.ParentRefs {
			if isServiceRef(ref.Group, ref.Kind) && parentKey(r, ref) == service {
				add(s.restricts(r), r.Problemf(document.At(document.Index("spec", "parentRefs", i), "name"), "%s cannot be enforced: %s", r.ID(), speaksTCP(service)))
			}
		}
	}
	return out
}

func speaksTCP(service Key) string {
	return "service " + service.String() + " speaks tcp, and a stream of bytes has no requests; declare its protocol as http, http2 or grpc, or remove this"
}

// refused is a policy at a target, or one field of it, that cannot be enforced there. nil where there is no policy.
func refused[T any](o *Object[T], t Target, field string) *document.Problem {
	if o == nil {
		return nil
	}
	if field == "" {
		field = "spec.targetRefs"
		if refs, ok := any(&o.Spec).(interface{ refs() []TargetRef }); ok {
			i := slices.IndexFunc(refs.refs(), func(r TargetRef) bool { return r.Kind == t.Kind && r.Name == t.Key.Name })
			field = document.At(document.Index("spec", "targetRefs", max(i, 0)), "name")
		}
	}
	return o.Problemf(field, "%s cannot be enforced: %s", o.ID(), speaksTCP(t.Key))
}

// refs are the targets as they were written.
func (t *targets) refs() []TargetRef { return t.TargetRefs }

// restricts says that something is attached to the route, or to one of its rules, that keeps requests out.
func (s *Set) restricts(r *HTTPRoute) bool {
	key := Key{r.Namespace, r.Name}
	of := func(t Target) bool { return t.Kind == KindHTTPRoute && t.Key == key }
	for t := range s.JWT {
		if of(t) {
			return true
		}
	}
	for t := range s.RateLimit {
		if of(t) {
			return true
		}
	}
	return false
}

// misnamed are the allowances that name a Gateway as a service. Gateways have identities of their own: the edges are turned
// away. It is no mistake of the document alone, so that a Gateway does not make other documents wrong.
func (s *Set) misnamed() (out []Conflict) {
	for _, t := range sortedTargets(s.Authorization) {
		for _, o := range s.Authorization[t] {
			if o.Spec.Action != "ALLOW" {
				continue
			}
			for i, r := range o.Spec.Rules {
				for j, f := range r.From {
					namespace, name, ok := strings.Cut(f.Service, "/")
					if !ok {
						namespace, name = o.Namespace, f.Service
					}
					if s.Gateways[Key{namespace, name}] == nil {
						continue
					}
					at := document.Index(document.Index("spec", "rules", i), "from", j)
					out = append(out, Conflict{Service: t.Key, Problem: o.Problemf(document.At(at, "service"),
						"does not let in the Gateway %s/%s, which is no service; write gateway: %s (or, for a service of that name, spiffeID)", namespace, name, f.Service)})
				}
			}
		}
	}
	return out
}

// Conflicts are all that there are, in the order of their places.
func (s *Set) Conflicts(isTCP func(Key) bool) (out []Conflict) {
	for _, k := range s.Services() {
		if isTCP(k) {
			out = append(out, s.ConflictsOf(k)...)
		}
	}
	out = append(out, s.misnamed()...)
	slices.SortStableFunc(out, func(a, b Conflict) int {
		return cmp.Or(cmp.Compare(a.Problem.File, b.Problem.File), cmp.Compare(a.Problem.Line, b.Problem.Line), cmp.Compare(a.Problem.Column, b.Problem.Column))
	})
	return out
}
