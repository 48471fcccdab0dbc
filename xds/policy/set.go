package policy

import (
	"cmp"
	"maps"
	"slices"

	"sallyport/xds/document"
)

// Key is a namespace and a name.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Target is what a policy is attached to.
type Target struct {
	Kind    string // KindGateway, KindHTTPRoute, KindService
	Key     Key
	Section string // a rule's name, for KindHTTPRoute
}

// GatewayTarget is a Gateway as a target.
func GatewayTarget(k Key) Target { return Target{Kind: KindGateway, Key: k} }

// ServiceTarget is a service as a target.
func ServiceTarget(namespace, name string) Target {
	return Target{Kind: KindService, Key: Key{namespace, name}}
}

// RouteTarget is an HTTPRoute, or one of its rules, as a target.
func RouteTarget(k Key, rule string) Target {
	return Target{Kind: KindHTTPRoute, Key: k, Section: rule}
}

// Attached are the policies of one kind, by what they are attached to.
type Attached[T any] map[Target]*Object[T]

// Find is the policy of the first of the targets that has one: name the most specific first.
func (a Attached[T]) Find(targets ...Target) *T {
	for _, t := range targets {
		if o := a[t]; o != nil {
			return &o.Spec
		}
	}
	return nil
}

// Set is all documents at one time. Immutable.
type Set struct {
	Gateways   map[Key]*Gateway
	HTTPRoutes []*HTTPRoute // sorted by namespace and name
	Secrets    map[Key]*Object[Secret]
	Subsets    map[Key]*Object[ServiceSubset]
	Mesh       Mesh

	JWT            Attached[JWT]
	RateLimit      Attached[RateLimit]
	LoadBalancer   Attached[LoadBalancer]
	HealthCheck    Attached[HealthCheck]
	CORS           Attached[CORS]
	Retry          Attached[Retry]
	Timeout        Attached[Timeout]
	Outlier        Attached[Outlier]
	CircuitBreaker Attached[CircuitBreaker]
	MutualTLS      Attached[MutualTLS]
	// Authorization may be attached several times to a service; they add up.
	Authorization map[Target][]*Object[Authorization]

	mesh *Object[Mesh]
}

// MeshDocument is the document that Mesh is from; nil where there is none.
func (s *Set) MeshDocument() *Object[Mesh] { return s.mesh }

// Targets are all policies that are attached to services, for a look whether the catalog has these.
func (s *Set) Targets(each func(problem func(format string, args ...any) *document.Problem, t Target)) {
	for _, visit := range []func(){
		func() { visitTargets(s.JWT, each) }, func() { visitTargets(s.RateLimit, each) }, func() { visitTargets(s.LoadBalancer, each) },
		func() { visitTargets(s.HealthCheck, each) }, func() { visitTargets(s.CORS, each) }, func() { visitTargets(s.Retry, each) },
		func() { visitTargets(s.Timeout, each) }, func() { visitTargets(s.Outlier, each) }, func() { visitTargets(s.CircuitBreaker, each) },
		func() { visitTargets(s.MutualTLS, each) },
	} {
		visit()
	}
	for _, t := range sortedTargets(s.Authorization) {
		for _, o := range s.Authorization[t] {
			each(targetProblem(o), t)
		}
	}
}

func visitTargets[T any](a Attached[T], each func(func(string, ...any) *document.Problem, Target)) {
	for _, t := range sortedTargets(a) {
		each(targetProblem(a[t]), t)
	}
}

func targetProblem[T any](o *Object[T]) func(string, ...any) *document.Problem {
	return func(format string, args ...any) *document.Problem {
		return o.Problemf("spec.targetRefs", format, args...)
	}
}

func sortedTargets[V any](m map[Target]V) []Target {
	return slices.SortedFunc(maps.Keys(m), func(a, b Target) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key.Namespace, b.Key.Namespace), cmp.Compare(a.Key.Name, b.Key.Name),
			cmp.Compare(a.Section, b.Section))
	})
}

func newSet() *Set {
	return &Set{Gateways: map[Key]*Gateway{}, Secrets: map[Key]*Object[Secret]{}, Subsets: map[Key]*Object[ServiceSubset]{},
		JWT: Attached[JWT]{}, RateLimit: Attached[RateLimit]{}, LoadBalancer: Attached[LoadBalancer]{}, HealthCheck: Attached[HealthCheck]{},
		CORS: Attached[CORS]{}, Retry: Attached[Retry]{}, Timeout: Attached[Timeout]{}, Outlier: Attached[Outlier]{},
		CircuitBreaker: Attached[CircuitBreaker]{}, MutualTLS: Attached[MutualTLS]{}, Authorization: map[Target][]*Object[Authorization]{}}
}

// Empty is a Set without documents.
func Empty() *Set { return newSet() }

// GatewayNames are the names of all gateways, sorted.
func (s *Set) GatewayNames() []Key { return sortedKeys(s.Gateways) }

func sortedKeys[V any](m map[Key]V) []Key {
	return slices.SortedFunc(maps.Keys(m), compareKeys)
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
