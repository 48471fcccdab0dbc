package build

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

// Authorization is two RBAC filters, one after the other: what is denied is refused, then what is not allowed is refused.
// A denial is always written out as one, never as the absence of an allowance, and an allowance always excludes what was
// denied before it: neither depends on the default (compare CVE-2021-36213, where a request-level deny was dropped because
// the default denied anyway, and the allowance next to it then let the request in).
type authorization struct {
	deny, allow *rbacv3.RBAC
	// requests says that paths or headers decide, so that a path must mean the same here and at the application.
	requests bool
}

// authorization of a destination, from intentions and AuthorizationPolicies. isHTTP false: only peers can be told apart,
// and what is about requests is taken for the stricter.
func (b *builder) authorization(d catalog.Name, isHTTP bool) authorization {
	a := &rules{td: b.td.Name(), isHTTP: isHTTP,
		deny: map[string]*rbacv3.Policy{}, allow: map[string]*rbacv3.Policy{}}
	a.intentions(b.Catalog.Intentions, d)
	defaultAllow := !b.defaultDeny
	for _, o := range b.Policy.Authorization[policy.ServiceTarget(d.Namespace, d.Name)] {
		if o.Spec.Action == "ALLOW" {
			defaultAllow = false // who writes down who may means that others may not
		}
		a.policy(o)
	}
	if defaultAllow {
		a.allow = map[string]*rbacv3.Policy{"default": {Permissions: []*rbacv3.Permission{anyPermission()}, Principals: []*rbacv3.Principal{anyPrincipal()}}}
	}
	return authorization{
		deny:  &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: a.deny},
		allow: &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW, Policies: a.allow}, requests: a.requests,
	}
}

type rules struct {
	td          string
	isHTTP      bool
	requests    bool
	near        []string // namespaces of callers that are near to the destination
	deny, allow map[string]*rbacv3.Policy
}

func covers(pattern, n catalog.Name) bool {
	return (pattern.Namespace == catalog.Wildcard || pattern.Namespace == n.Namespace) && (pattern.Name == catalog.Wildcard || pattern.Name == n.Name)
}

// callers are those whom a name in an intention means. Consul's intentions know no namespaces, so that a source may be a
// name of any of them (catalog.Wildcard before a name). Then a denial is for all who are called so, and an allowance only for
// those of the destination's own namespace and of the default one: else whoever may name a service account in a namespace
// of his own would be let in.
type callers struct {
	catalog.Name
	everywhere bool // of such a name: in all namespaces
}

func (c callers) anyNamespace() bool {
	return c.Namespace == catalog.Wildcard && c.Name.Name != catalog.Wildcard
}

func (c callers) covers(other callers) bool {
	return covers(c.Name, other.Name) && (c.everywhere || !c.anyNamespace() || !other.everywhere)
}

// intentions gives each source to the one intention that decides for it: the first that covers it, in order of precedence.
// Patterns of sources are within one another or apart, so that what is left of a pattern is it without the narrower ones
// before it. Who is not near enough for an allowance is not decided by it; one about requests keeps what comes after it
// from allowing him, but not from denying.
func (a *rules) intentions(all []catalog.Intention, d catalog.Name) {
	a.near = []string{d.Namespace, catalog.DefaultNamespace}
	var mayBefore, mayNotBefore []callers
	for i, in := range all {
		if !covers(in.Destination, d) {
			continue
		}
		near, all := callers{in.Source, false}, callers{in.Source, true}
		may, mayNot := a.left(near, mayBefore), a.left(all, mayNotBefore)
		switch {
		case len(in.Permissions) > 0:
			mayBefore, mayNotBefore = append(mayBefore, all), append(mayNotBefore, near)
		case in.Action == catalog.Allow:
			mayBefore, mayNotBefore = append(mayBefore, near), append(mayNotBefore, near)
		default:
			mayBefore, mayNotBefore = append(mayBefore, all), append(mayNotBefore, all)
		}
		a.intention(fmt.Sprintf("intention/%03d/%s", i, in.Source), in, may, mayNot)
	}
}

// left are the callers without those before; nil: nobody is left.
func (a *rules) left(c callers, before []callers) *rbacv3.Principal {
	if slices.ContainsFunc(before, func(p callers) bool { return p.covers(c) }) {
		return nil
	}
	who := a.those(c)
	if c.everywhere {
		who = a.denied(c)
	}
	var except []*rbacv3.Principal
	for _, p := range before {
		if c.covers(p) {
			except = append(except, a.those(p))
		}
	}
	if len(except) > 0 {
		return allOf(who, notPrincipal(oneOf(except)))
	}
	return who
}

// those is who calls, by the SPIFFE ID of its certificate. A name in an intention is that of a service and of a gateway:
// Consul has one name for both, as its catalog has edges as instances of a service that is called like the gateway.
func (a *rules) those(c callers) *rbacv3.Principal {
	if !c.anyNamespace() {
		return oneOf(a.principals(c.Name, services, gateways))
	}
	var ids []*rbacv3.Principal
	if c.everywhere {
		for _, class := range []class{services, gateways} {
			ids = append(ids, authenticated(endsWith(string(class)+c.Name.Name)))
		}
		return oneOf(ids)
	}
	for _, ns := range slices.Compact(slices.Clone(a.near)) {
		ids = append(ids, a.principals(catalog.Name{Namespace: ns, Name: c.Name.Name}, services, gateways)...)
	}
	return oneOf(ids)
}

// denied is whom a denial is for. That of every service is for callers without a certificate too, who get as far as this
// where plaintext is permitted.
func (a *rules) denied(c callers) *rbacv3.Principal {
	if c.Namespace == catalog.Wildcard && c.Name.Name == catalog.Wildcard {
		return anyPrincipal()
	}
	return a.those(c)
}

// intention adds one: may are those whom it allows something, mayNot those whom it denies something.
func (a *rules) intention(name string, in catalog.Intention, may, mayNot *rbacv3.Principal) {
	switch {
	case len(in.Permissions) > 0 && !a.isHTTP:
		a.add(a.deny, name, anyPermission(), mayNot) // bytes have no paths: as Consul, refuse
	case len(in.Permissions) == 0 && in.Action == catalog.Allow:
		a.add(a.allow, name, anyPermission(), may)
	case len(in.Permissions) == 0:
		a.add(a.deny, name, anyPermission(), mayNot)
	}
	if !a.isHTTP {
		return
	}
	var allowed, denied []*rbacv3.Permission
	for i, p := range in.Permissions {
		m := permission(p)
		a.requests = true
		at := fmt.Sprintf("%s/%03d", name, i)
		if p.Action == catalog.Allow {
			a.add(a.allow, at, butNot(m, denied), may)
			allowed = append(allowed, m)
		} else {
			a.add(a.deny, at, butNot(m, allowed), mayNot)
			denied = append(denied, m)
		}
	}
}

func (a *rules) add(to map[string]*rbacv3.Policy, name string, what *rbacv3.Permission, who *rbacv3.Principal) {
	if who == nil {
		return
	}
	to[name] = &rbacv3.Policy{Permissions: []*rbacv3.Permission{what}, Principals: []*rbacv3.Principal{who}}
}

// policy adds an AuthorizationPolicy.
func (a *rules) policy(o *policy.Object[policy.Authorization]) {
	deny := o.Spec.Action != "ALLOW"
	for i, r := range o.Spec.Rules {
		p := &rbacv3.Policy{}
		for _, f := range r.From {
			if deny && f.Service == catalog.Wildcard {
				p.Principals = append(p.Principals, anyPrincipal())
				continue
			}
			p.Principals = append(p.Principals, a.caller(f, o.Namespace, deny)...)
		}
		if len(r.From) == 0 {
			p.Principals = []*rbacv3.Principal{anyPrincipal()}
		}
		switch {
		case len(r.To) == 0:
			p.Permissions = []*rbacv3.Permission{anyPermission()}
		case a.isHTTP:
			a.requests = true
			for _, t := range r.To {
				p.Permissions = append(p.Permissions, request(t))
			}
		case deny: // cannot be told apart: all of it
			p.Permissions = []*rbacv3.Permission{anyPermission()}
		default:
			continue
		}
		name := fmt.Sprintf("policy/%s/%s/%03d", o.Namespace, o.Name, i)
		if deny {
			a.deny[name] = p
		} else {
			a.allow[name] = p
		}
	}
}

// class is the part of a SPIFFE ID between namespace and name (package certs).
type class string

const (
	services class = "/svc/"
	gateways class = "/gw/"
)

// principals are those who call, by the SPIFFE IDs of their certificates. Any name in any namespace is every member of the
// trust domain.
func (a *rules) principals(n catalog.Name, classes ...class) (out []*rbacv3.Principal) {
	prefix := "spiffe://" + a.td + "/"
	if n.Namespace == catalog.Wildcard && n.Name == catalog.Wildcard {
		return []*rbacv3.Principal{authenticated(beginsWith(prefix))}
	}
	for _, c := range classes {
		id := prefix + "ns/" + n.Namespace + string(c) + n.Name
		switch {
		case n.Namespace == catalog.Wildcard:
			out = append(out, authenticated(matches(regexp.QuoteMeta(prefix)+"ns/[^/]+"+string(c)+regexp.QuoteMeta(n.Name))))
		case n.Name == catalog.Wildcard:
			out = append(out, authenticated(beginsWith(strings.TrimSuffix(id, catalog.Wildcard))))
		default:
			out = append(out, authenticated(exactly(id)))
		}
	}
	return out
}

// caller are those whom an AuthorizationPolicy means. A denial of a service is for the gateway of its name too: until
// gateways had identities of their own it was written so, and a denial must not be lifted by a new version.
func (a *rules) caller(f policy.Caller, namespace string, deny bool) []*rbacv3.Principal {
	switch {
	case f.SPIFFEID != "":
		if p, ok := strings.CutSuffix(f.SPIFFEID, "*"); ok {
			return []*rbacv3.Principal{authenticated(beginsWith(p))}
		}
		return []*rbacv3.Principal{authenticated(exactly(f.SPIFFEID))}
	case f.Gateway != "":
		return a.principals(catalog.ParseName(f.Gateway, namespace), gateways)
	case f.Service == catalog.Wildcard:
		return a.principals(catalog.Name{Namespace: catalog.Wildcard, Name: catalog.Wildcard})
	case deny:
		return a.principals(catalog.ParseName(f.Service, namespace), services, gateways)
	}
	return a.principals(catalog.ParseName(f.Service, namespace), services)
}

// permission is a rule of an intention.
func permission(p catalog.Permission) *rbacv3.Permission {
	var all []*rbacv3.Permission
	if p.Path.Kind != catalog.Any {
		all = append(all, path(stringMatch(p.Path, false)))
	}
	all = append(all, methods(p.Methods)...)
	for _, h := range p.Headers {
		m := &routev3.HeaderMatcher{Name: h.Name, InvertMatch: h.Invert}
		if h.Match.Kind == catalog.Present {
			m.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		} else {
			m.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: stringMatch(h.Match, h.IgnoreCase)}
		}
		all = append(all, &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: m}})
	}
	return every(all)
}

func stringMatch(m catalog.Match, fold bool) *matcherv3.StringMatcher {
	out := &matcherv3.StringMatcher{IgnoreCase: fold}
	switch m.Kind {
	case catalog.Prefix:
		out.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: m.Value}
	case catalog.Suffix:
		out.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: m.Value}
	case catalog.Contains:
		out.MatchPattern = &matcherv3.StringMatcher_Contains{Contains: m.Value}
	case catalog.Regex:
		if fold { // ignore_case does not reach regular expressions
			return matches("(?i:" + m.Value + ")")
		}
		return matches(m.Value)
	default:
		out.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: m.Value}
	}
	return out
}

// request is a rule of an AuthorizationPolicy.
func request(t policy.Request) *rbacv3.Permission {
	var all []*rbacv3.Permission
	if len(t.Paths) > 0 {
		all = append(all, some(paths(t.Paths)))
	}
	if len(t.NotPaths) > 0 {
		all = append(all, notPermission(some(paths(t.NotPaths))))
	}
	all = append(all, methods(t.Methods)...)
	names := make([]string, 0, len(t.Headers))
	for n := range t.Headers {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		all = append(all, header(strings.ToLower(n), exactly(t.Headers[n])))
	}
	return every(all)
}

func paths(list []string) (out []*rbacv3.Permission) {
	for _, p := range list {
		if prefix, ok := strings.CutSuffix(p, "*"); ok {
			out = append(out, path(beginsWith(prefix)))
		} else {
			out = append(out, path(exactly(p)))
		}
	}
	return out
}

func methods(list []string) []*rbacv3.Permission {
	var out []*rbacv3.Permission
	for _, m := range list {
		out = append(out, header(":method", exactly(m)))
	}
	if len(out) == 0 {
		return nil
	}
	return []*rbacv3.Permission{some(out)}
}

func path(m *matcherv3.StringMatcher) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: m}}}}
}

func header(name string, m *matcherv3.StringMatcher) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: &routev3.HeaderMatcher{Name: name,
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m}}}}
}

func anyPermission() *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
}

func notPermission(p *rbacv3.Permission) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: p}}
}

// every is the conjunction; of nothing, anything.
func every(list []*rbacv3.Permission) *rbacv3.Permission {
	switch len(list) {
	case 0:
		return anyPermission()
	case 1:
		return list[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{Rules: list}}}
}

func some(list []*rbacv3.Permission) *rbacv3.Permission {
	if len(list) == 1 {
		return list[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: slices.Clone(list)}}}
}

// butNot is p where none of the others holds.
func butNot(p *rbacv3.Permission, others []*rbacv3.Permission) *rbacv3.Permission {
	if len(others) == 0 {
		return p
	}
	return every([]*rbacv3.Permission{p, notPermission(some(others))})
}

func anyPrincipal() *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Any{Any: true}}
}

func authenticated(m *matcherv3.StringMatcher) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: m}}}
}

func notPrincipal(p *rbacv3.Principal) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: p}}
}

func allOf(list ...*rbacv3.Principal) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: list}}}
}

func oneOf(list []*rbacv3.Principal) *rbacv3.Principal {
	if len(list) == 1 {
		return list[0]
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: &rbacv3.Principal_Set{Ids: list}}}
}
