package build

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

// The meaning of RBAC, for the matchers that are emitted.
type call struct{ id, path, method string }

func decide(r *rbacv3.RBAC, c call) (matched bool) {
	for _, p := range r.GetPolicies() {
		if slices.ContainsFunc(p.GetPermissions(), c.may) && slices.ContainsFunc(p.GetPrincipals(), c.is) {
			return true
		}
	}
	return false
}

func admitted(a authorization, c call) bool { return !decide(a.deny, c) && decide(a.allow, c) }

func text(m *matcherv3.StringMatcher, s string) bool {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return s == p.Exact
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(s, p.Prefix)
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(s, p.Suffix)
	case *matcherv3.StringMatcher_SafeRegex:
		return regexp.MustCompile("^(?:" + p.SafeRegex.GetRegex() + ")$").MatchString(s)
	}
	panic(fmt.Sprintf("%T", m.GetMatchPattern()))
}

func (c call) may(p *rbacv3.Permission) bool {
	switch r := p.GetRule().(type) {
	case *rbacv3.Permission_Any:
		return true
	case *rbacv3.Permission_NotRule:
		return !c.may(r.NotRule)
	case *rbacv3.Permission_AndRules:
		return !slices.ContainsFunc(r.AndRules.GetRules(), func(p *rbacv3.Permission) bool { return !c.may(p) })
	case *rbacv3.Permission_OrRules:
		return slices.ContainsFunc(r.OrRules.GetRules(), c.may)
	case *rbacv3.Permission_UrlPath:
		return text(r.UrlPath.GetPath(), c.path)
	case *rbacv3.Permission_Header:
		return r.Header.GetName() == ":method" && text(r.Header.GetStringMatch(), c.method)
	}
	panic(fmt.Sprintf("%T", p.GetRule()))
}

func (c call) is(p *rbacv3.Principal) bool {
	switch r := p.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return true
	case *rbacv3.Principal_NotId:
		return !c.is(r.NotId)
	case *rbacv3.Principal_AndIds:
		return !slices.ContainsFunc(r.AndIds.GetIds(), func(p *rbacv3.Principal) bool { return !c.is(p) })
	case *rbacv3.Principal_OrIds:
		return slices.ContainsFunc(r.OrIds.GetIds(), c.is)
	case *rbacv3.Principal_Authenticated_:
		return text(r.Authenticated.GetPrincipalName(), c.id)
	}
	panic(fmt.Sprintf("%T", p.GetIdentifier()))
}

// naive is what Consul's documents say: the intention with the highest precedence decides, in it the first permission that
// matches, and the default where none does. far is of a caller of another namespace than the destination's or the default
// one, where Consul knows no namespaces: an allowance for its name is not for it, and one about requests only takes away.
func naive(list []catalog.Intention, source, path string, isHTTP, defaultAllow, far bool) bool {
	nothingMore := false
	for _, in := range list {
		if in.Source.Name != "*" && in.Source.Name != source || in.Destination.Name != "*" && in.Destination.Name != "orders" {
			continue
		}
		far := far && in.Source.Name != "*"
		if len(in.Permissions) == 0 {
			switch {
			case in.Action == catalog.Deny:
				return false
			case far:
				continue
			}
			return !nothingMore || defaultAllow
		}
		if !isHTTP {
			return false
		}
		action := catalog.Action("")
		for _, p := range in.Permissions {
			if p.Path.Kind == catalog.Any || p.Path.Kind == catalog.Exact && p.Path.Value == path || p.Path.Kind == catalog.Prefix && strings.HasPrefix(path, p.Path.Value) {
				action = p.Action
				break
			}
		}
		switch {
		case action == catalog.Deny:
			return false
		case far:
			nothingMore = true
			continue
		case action == catalog.Allow && !nothingMore:
			return true
		}
		return defaultAllow
	}
	return defaultAllow
}

// Every combination of intentions of a small space means what it says.
func TestIntentionsMeanWhatConsulSays(t *testing.T) {
	permission := func(a catalog.Action, path string) catalog.Permission {
		kind := catalog.Exact
		if strings.HasSuffix(path, "/") {
			kind = catalog.Prefix
		}
		return catalog.Permission{Action: a, Path: catalog.Match{Kind: kind, Value: path}}
	}
	// What an intention may do; the first is: there is none.
	does := []*catalog.Intention{nil, {Action: catalog.Allow}, {Action: catalog.Deny},
		{Permissions: []catalog.Permission{permission(catalog.Deny, "/admin/")}},
		{Permissions: []catalog.Permission{permission(catalog.Deny, "/admin/"), permission(catalog.Allow, "/")}},
		{Permissions: []catalog.Permission{permission(catalog.Allow, "/admin/health"), permission(catalog.Deny, "/admin/"), {Action: catalog.Allow}}},
		{Permissions: []catalog.Permission{permission(catalog.Allow, "/read/")}},
	}
	patterns := []struct{ source, destination string }{{"web", "orders"}, {"*", "orders"}, {"web", "*"}, {"*", "*"}} // by precedence
	checked := 0
	// Of a catalog that knows namespaces, and of one that does not: then a name is of any.
	for _, namespace := range []string{"shop", "*"} {
		checked += intentionsMean(t, does, patterns, namespace)
	}
	t.Log(checked, "calls")
}

func intentionsMean(t *testing.T, does []*catalog.Intention, patterns []struct{ source, destination string }, namespace string) (checked int) {
	name := func(s string) catalog.Name {
		if s == "*" {
			return catalog.Name{Namespace: "*", Name: "*"}
		}
		return catalog.Name{Namespace: namespace, Name: s}
	}
	type caller struct {
		namespace, name string
		far             bool
	}
	callers := []caller{{"shop", "web", false}, {"shop", "other", false}, {}}
	if namespace == "*" {
		callers = append(callers, caller{"default", "web", false}, caller{"strange", "web", true}, caller{"strange", "other", true})
	}
	for n := range len(does) * len(does) * len(does) * len(does) {
		var list []catalog.Intention
		rest := n
		for i, p := range patterns {
			if d := does[rest%len(does)]; d != nil {
				in := *d
				in.Source, in.Destination, in.Precedence = name(p.source), name(p.destination), 9-i
				list = append(list, in)
			}
			rest /= len(does)
		}
		for _, isHTTP := range []bool{true, false} {
			for _, allow := range []bool{true, false} {
				b := &builder{td: spiffeid.RequireTrustDomainFromString("example.org"), defaultDeny: !allow,
					Input: Input{Catalog: &catalog.Snapshot{Intentions: list}, Policy: policy.Empty()}}
				a := b.authorization(catalog.Name{Namespace: "shop", Name: "orders"}, isHTTP)
				for _, from := range callers {
					// A name is that of a service and of a gateway.
					for _, path := range []string{"/", "/admin/x", "/admin/health", "/read/x", "/gw"} {
						class, path := "/svc/", path
						if path == "/gw" {
							class, path = "/gw/", "/admin/x"
						}
						c := call{"spiffe://example.org/ns/" + from.namespace + class + from.name, path, "GET"}
						want := naive(list, from.name, path, isHTTP, allow, from.far)
						if from.name == "" { // comes in plaintext, as nobody: what is denied to all is denied, what is allowed to services is not theirs
							c.id, want = "", want && allow
						}
						if got := admitted(a, c); got != want {
							t.Fatalf("%+v calls %s, http %t, default allow %t: %t, want %t\n%v\n%v", from, path, isHTTP, allow, got, want, list, a)
						}
						checked++
					}
				}
			}
		}
	}
	return checked
}

func TestAuthorizationPolicies(t *testing.T) {
	set, problems := policy.Parse("f.yaml", []byte(`apiVersion: policy.sallyport.io/v1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  targetRefs: [{kind: Service, name: orders}]
  action: ALLOW
  rules: [{from: [{service: web}], to: [{paths: [/read/*], methods: [GET]}]}, {from: [{service: admin}]}]
---
apiVersion: policy.sallyport.io/v1
kind: AuthorizationPolicy
metadata: {name: never}
spec:
  targetRefs: [{kind: Service, name: orders}]
  action: DENY
  rules: [{to: [{paths: [/internal]}]}]
`))
	if problems.Err() != nil {
		t.Fatal(problems)
	}
	b := &builder{td: spiffeid.RequireTrustDomainFromString("example.org"), Input: Input{Catalog: &catalog.Snapshot{}, Policy: set}}
	http, tcp := b.authorization(catalog.Name{Namespace: "default", Name: "orders"}, true), b.authorization(catalog.Name{Namespace: "default", Name: "orders"}, false)
	for _, c := range []struct {
		source, path, method string
		http                 bool
	}{
		{"web", "/read/x", "GET", true}, {"web", "/read/x", "POST", false}, {"web", "/write", "GET", false}, {"admin", "/write", "POST", true},
		{"admin", "/internal", "GET", false}, {"other", "/read/x", "GET", false}, {"", "/read/x", "GET", false},
	} {
		id := "spiffe://example.org/ns/default/svc/" + c.source
		if c.source == "" { // in plaintext
			id = ""
		}
		if got := admitted(http, call{id, c.path, c.method}); got != c.http {
			t.Errorf("%+v: %t", c, got)
		}
		// Without requests to look at, the denial is of everything.
		if admitted(tcp, call{id: id}) {
			t.Errorf("%s was let in where paths cannot be seen", c.source)
		}
	}
}

func TestCallersByClass(t *testing.T) {
	const td = "spiffe://example.org/ns/"
	all := []string{td + "default/svc/web", td + "default/gw/web", td + "shop/svc/web", td + "shop/gw/web", td + "shop/svc/other", td + "shop/gw/other", "spiffe://other.org/ns/default/gw/web"}
	for name, c := range map[string]struct {
		from        string
		allow, deny []string // of all; deny is whom the rule is for where it denies
	}{
		"a service":                 {"service: web", all[:1], all[:2]},
		"a service of a namespace":  {"service: shop/web", all[2:3], all[2:4]},
		"services of a namespace":   {"service: shop/*", []string{all[2], all[4]}, all[2:6]},
		"a gateway":                 {"gateway: web", all[1:2], all[1:2]},
		"a gateway of a namespace":  {"gateway: shop/web", all[3:4], all[3:4]},
		"everybody of the mesh":     {`service: "*"`, all[:6], all},
		"one ID":                    {"spiffeID: " + all[3], all[3:4], all[3:4]},
		"IDs that begin with a way": {`spiffeID: "` + td + `shop/gw/*"`, []string{all[3], all[5]}, []string{all[3], all[5]}},
	} {
		t.Run(name, func(t *testing.T) {
			for action, want := range map[string][]string{"ALLOW": c.allow, "DENY": c.deny} {
				set, problems := policy.Parse("f.yaml", []byte("apiVersion: policy.sallyport.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  targetRefs: [{kind: Service, name: orders}]\n  action: "+
					action+"\n  rules: [{from: [{"+c.from+"}]}]\n"))
				if err := problems.Err(); err != nil {
					t.Fatal(err)
				}
				b := &builder{td: spiffeid.RequireTrustDomainFromString("example.org"), Input: Input{Catalog: &catalog.Snapshot{}, Policy: set}}
				a := b.authorization(catalog.Name{Namespace: "default", Name: "orders"}, true)
				for _, id := range all {
					if got := decide(a.allow, call{id: id}); action == "ALLOW" && got != slices.Contains(want, id) {
						t.Errorf("%s: allowed is %t", id, got)
					}
					if got := decide(a.deny, call{id: id}); action == "DENY" && got != slices.Contains(want, id) {
						t.Errorf("%s: denied is %t", id, got)
					}
				}
			}
		})
	}
}
