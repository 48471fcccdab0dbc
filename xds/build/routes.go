package build

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

// entry is one Envoy route with what decides over its place.
type entry struct {
	route *routev3.Route
	owner policy.Key // the HTTPRoute
	limit *policy.RateLimit
	// Precedence of Gateway API (HTTPRouteRule.matches): an exact path, then the longest prefix; with a method; the most
	// headers; the most query parameters; then by name and place. Regular expressions come after exact paths.
	kind, length   int
	method         bool
	headers, query int
	rule, match    int
	order          string
}

func compareEntries(x, y entry) int {
	less := func(a, b bool) int {
		switch {
		case a == b:
			return 0
		case a:
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(x.kind, y.kind), cmp.Compare(y.length, x.length), less(x.method, y.method), cmp.Compare(y.headers, x.headers),
		cmp.Compare(y.query, x.query), cmp.Compare(x.order, y.order), cmp.Compare(x.rule, y.rule), cmp.Compare(x.match, y.match))
}

// scope is where a route is put: on a gateway, or before a service.
type scope struct {
	gateway *policy.Key
	service *policy.Key
}

// target is what stands for the scope in policies.
func (s scope) target() policy.Target {
	if s.gateway != nil {
		return policy.GatewayTarget(*s.gateway)
	}
	return policy.ServiceTarget(s.service.Namespace, s.service.Name)
}

// entries are the Envoy routes of an HTTPRoute.
func (b *builder) entries(r *policy.HTTPRoute, s scope) (out []entry) {
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for j := range matches {
			e := entry{owner: policy.Key{Namespace: r.Namespace, Name: r.Name}, rule: i, match: j, order: r.Namespace + "/" + r.Name}
			e.route = &routev3.Route{Name: fmt.Sprintf("%s/%s/%d/%d", r.Namespace, r.Name, i, j)}
			if rule.Name != nil {
				e.route.Name = fmt.Sprintf("%s/%s/%s/%d", r.Namespace, r.Name, *rule.Name, j)
			}
			b.match(&e, &matches[j])
			b.action(&e, r, rule, &matches[j])
			b.routePolicies(&e, r, rule, s)
			out = append(out, e)
		}
	}
	return out
}

const (
	kindExact = iota
	kindRegex
	kindPrefix
)

func pathOf(m *gatewayv1.HTTPRouteMatch) (kind gatewayv1.PathMatchType, value string) {
	kind, value = gatewayv1.PathMatchPathPrefix, "/"
	if p := m.Path; p != nil {
		if p.Type != nil {
			kind = *p.Type
		}
		if p.Value != nil {
			value = *p.Value
		}
	}
	return kind, value
}

func (b *builder) match(e *entry, m *gatewayv1.HTTPRouteMatch) {
	out := &routev3.RouteMatch{}
	kind, value := pathOf(m)
	e.length = len(value)
	switch kind {
	case gatewayv1.PathMatchExact:
		e.kind, out.PathSpecifier = kindExact, &routev3.RouteMatch_Path{Path: value}
	case gatewayv1.PathMatchRegularExpression:
		e.kind, out.PathSpecifier = kindRegex, &routev3.RouteMatch_SafeRegex{SafeRegex: regex(value)}
	default:
		e.kind = kindPrefix
		// A prefix is of path elements: /foo is not one of /foobar.
		if p := strings.TrimRight(value, "/"); p != "" {
			out.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: p}
		} else {
			out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"}
		}
	}
	if m.Method != nil {
		e.method = true
		out.Headers = append(out.Headers, &routev3.HeaderMatcher{Name: ":method",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exactly(string(*m.Method))}})
	}
	seen := map[string]bool{}
	for _, h := range m.Headers {
		name := strings.ToLower(string(h.Name))
		if seen[name] {
			continue // HTTPHeaderMatch: only the first of a name counts
		}
		seen[name] = true
		e.headers++
		s := exactly(h.Value)
		if h.Type != nil && *h.Type == gatewayv1.HeaderMatchRegularExpression {
			s = matches(h.Value)
		}
		out.Headers = append(out.Headers, &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: s}})
	}
	seen = map[string]bool{}
	for _, q := range m.QueryParams {
		if seen[string(q.Name)] {
			continue
		}
		seen[string(q.Name)] = true
		e.query++
		s := exactly(q.Value)
		if q.Type != nil && *q.Type == gatewayv1.QueryParamMatchRegularExpression {
			s = matches(q.Value)
		}
		out.QueryParameters = append(out.QueryParameters, &routev3.QueryParameterMatcher{Name: string(q.Name),
			QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: s}})
	}
	e.route.Match = out
}

// action is where the rule leads.
func (b *builder) action(e *entry, r *policy.HTTPRoute, rule *gatewayv1.HTTPRouteRule, m *gatewayv1.HTTPRouteMatch) {
	for i := range rule.Filters {
		switch f := &rule.Filters[i]; f.Type {
		case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
			e.route.RequestHeadersToAdd, e.route.RequestHeadersToRemove = modify(f.RequestHeaderModifier)
		case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
			e.route.ResponseHeadersToAdd, e.route.ResponseHeadersToRemove = modify(f.ResponseHeaderModifier)
		}
	}
	for i := range rule.Filters {
		if f := &rule.Filters[i]; f.Type == gatewayv1.HTTPRouteFilterRequestRedirect {
			e.route.Action = &routev3.Route_Redirect{Redirect: redirect(f.RequestRedirect, m)}
			return
		}
	}
	a := &routev3.RouteAction{}
	if !b.destinations(a, r, rule) {
		// HTTPRouteRule.backendRefs: without a valid backend the answer is 500.
		e.route.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 500}}
		return
	}
	for i := range rule.Filters {
		if f := &rule.Filters[i]; f.Type == gatewayv1.HTTPRouteFilterURLRewrite {
			rewrite(a, f.URLRewrite, m)
		}
	}
	b.behavior(a, r, rule)
	e.route.Action = &routev3.Route_Route{Route: a}
}

// destinations chooses among the backends by weight. It is false where there is none with a weight.
func (b *builder) destinations(a *routev3.RouteAction, r *policy.HTTPRoute, rule *gatewayv1.HTTPRouteRule) bool {
	var list []*routev3.WeightedCluster_ClusterWeight
	plain := true
	for i := range rule.BackendRefs {
		ref := &rule.BackendRefs[i]
		weight := uint32(1)
		if ref.Weight != nil {
			weight = uint32(*ref.Weight)
		}
		if weight == 0 {
			continue
		}
		w := &routev3.WeightedCluster_ClusterWeight{Name: b.mesh(b.Policy.BackendOf(r, ref.BackendObjectReference)), Weight: number(weight)}
		for j := range ref.Filters {
			plain = false
			switch f := &ref.Filters[j]; f.Type {
			case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
				w.RequestHeadersToAdd, w.RequestHeadersToRemove = modify(f.RequestHeaderModifier)
			case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
				w.ResponseHeadersToAdd, w.ResponseHeadersToRemove = modify(f.ResponseHeaderModifier)
			}
		}
		list = append(list, w)
	}
	switch {
	case len(list) == 0:
		return false
	case len(list) == 1 && plain:
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: list[0].Name}
	default:
		a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: list}}
	}
	return true
}

// modify is Gateway API's header filter: set replaces, add appends.
func modify(h *gatewayv1.HTTPHeaderFilter) (add []*corev3.HeaderValueOption, remove []string) {
	option := func(v gatewayv1.HTTPHeader, action corev3.HeaderValueOption_HeaderAppendAction) {
		// A value is a constant, not a format: % stands for itself.
		add = append(add, &corev3.HeaderValueOption{AppendAction: action, KeepEmptyValue: true,
			Header: &corev3.HeaderValue{Key: strings.ToLower(string(v.Name)), Value: strings.ReplaceAll(v.Value, "%", "%%")}})
	}
	for _, v := range h.Set {
		option(v, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	}
	for _, v := range h.Add {
		option(v, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	}
	for _, n := range h.Remove {
		remove = append(remove, strings.ToLower(n))
	}
	return add, remove
}

// routePolicies attaches what the filters need to know of the route. The most specific policy counts: of the rule, of the
// route, of what the route is attached to.
func (b *builder) routePolicies(e *entry, r *policy.HTTPRoute, rule *gatewayv1.HTTPRouteRule, s scope) {
	var own overrides
	targets := routeTargets(r, rule)
	// A service asks for its tokens and counts its requests itself, at its own sidecar: who calls only adds what is of the route.
	if s.gateway != nil {
		targets = append(targets, s.target())
	}
	if o := find(b.Policy.JWT, targets...); o != nil {
		own = b.override(own, jwtFilter, routeJWT(o))
	}
	cors := b.Policy.CORS.Find(targets...)
	for i := range rule.Filters {
		if f := &rule.Filters[i]; f.Type == gatewayv1.HTTPRouteFilterCORS {
			p := policy.CORSOf(f.CORS)
			cors = &p
		}
	}
	if cors != nil {
		own = b.override(own, corsFilter, corsOf(cors))
	}
	// That of the Gateway is in the filter itself, for all of its routes together.
	e.limit = b.Policy.RateLimit.Find(routeTargets(r, rule)...)
	e.route.TypedPerFilterConfig = own
}

func routeTargets(r *policy.HTTPRoute, rule *gatewayv1.HTTPRouteRule) (out []policy.Target) {
	key := policy.Key{Namespace: r.Namespace, Name: r.Name}
	if rule.Name != nil {
		out = append(out, policy.RouteTarget(key, string(*rule.Name)))
	}
	return append(out, policy.RouteTarget(key, ""))
}

func find[T any](a policy.Attached[T], targets ...policy.Target) *policy.Object[T] {
	for _, t := range targets {
		if o := a[t]; o != nil {
			return o
		}
	}
	return nil
}

// jwtOf are the policies that routes may ask for, each once, by name.
func (b *builder) jwtOf(s scope, routes []*policy.HTTPRoute) (out []*policy.Object[policy.JWT]) {
	seen := map[string]bool{}
	add := func(o *policy.Object[policy.JWT]) {
		if o != nil && !seen[requirementName(o)] {
			seen[requirementName(o)] = true
			out = append(out, o)
		}
	}
	if s.gateway != nil {
		add(b.Policy.JWT[s.target()])
	}
	for _, r := range routes {
		for i := range r.Spec.Rules {
			for _, t := range routeTargets(r, &r.Spec.Rules[i]) {
				add(b.Policy.JWT[t])
			}
		}
	}
	slices.SortFunc(out, func(x, y *policy.Object[policy.JWT]) int { return cmp.Compare(requirementName(x), requirementName(y)) })
	return out
}

// virtualHost makes a virtual host of sorted entries. A rate limit that all its routes share is the host's, so that they
// have one bucket; otherwise each route has its own.
func (b *builder) virtualHost(name string, domains []string, entries []entry) *routev3.VirtualHost {
	slices.SortStableFunc(entries, compareEntries)
	out := &routev3.VirtualHost{Name: name, Domains: domains}
	shared := len(entries) > 0
	for _, e := range entries {
		shared = shared && e.limit != nil && e.limit == entries[0].limit
		out.Routes = append(out.Routes, e.route)
	}
	if shared {
		out.TypedPerFilterConfig = b.override(nil, limitFilter, limitOf(statOf(entries[0].owner.String()), entries[0].limit))
		return out
	}
	for _, e := range entries {
		if e.limit != nil {
			e.route.TypedPerFilterConfig = b.override(e.route.TypedPerFilterConfig, limitFilter, limitOf(statOf(e.route.Name), e.limit))
		}
	}
	return out
}

// plain is the route to a service that no HTTPRoute is attached to.
func (b *builder) plain(service catalog.Name) entry {
	key := policy.Key{Namespace: service.Namespace, Name: service.Name}
	a := &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: b.mesh(policy.Backend{Service: key})}}
	b.behaviorOf(a, behavior{backends: []policy.Key{key}})
	return entry{owner: key, route: &routev3.Route{Name: "default", Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: a}}}
}
