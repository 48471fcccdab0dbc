package rbac

//lint:file-ignore SA1019 deprecated fields still come from control planes

import (
	"crypto/x509"
	"net/netip"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/sidecar/filter"
	"sallyport/sidecar/filter/filtertest"
	"sallyport/sidecar/stream"
)

// rules reads a config.rbac.v3.RBAC from JSON.
func rulesOf(t testing.TB, text string) *rbacv3.RBAC {
	t.Helper()
	m := &rbacv3.RBAC{}
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	return m
}

const anyone = `[{"any": true}]`

func policyJSON(action, permissions, principals string) string {
	return `{"action":"` + action + `","policies":{"p":{"permissions":` + permissions + `,"principals":` + principals + `}}}`
}

func TestRules(t *testing.T) {
	cert := func(r *filtertest.Rig) {
		r.Conn.Peer = &stream.Peer{Cert: &x509.Certificate{}, URI: []string{"spiffe://mesh/ns/default/svc/web"}, DNS: []string{"web.mesh"}, Subject: "CN=web"}
	}
	for name, c := range map[string]struct {
		action, permissions, principals string
		setup                           func(*filtertest.Rig)
		path                            string
		headers                         []string
		want                            bool
	}{
		"allow anybody":                        {"ALLOW", anyone, anyone, nil, "/", nil, true},
		"deny anybody":                         {"DENY", anyone, anyone, nil, "/", nil, false},
		"log denies nobody":                    {"LOG", anyone, anyone, nil, "/", nil, true},
		"allowed path":                         {"ALLOW", `[{"url_path":{"path":{"prefix":"/api/"}}}]`, anyone, nil, "/api/x", nil, true},
		"other path":                           {"ALLOW", `[{"url_path":{"path":{"prefix":"/api/"}}}]`, anyone, nil, "/admin", nil, false},
		"query does not hide a path":           {"DENY", `[{"url_path":{"path":{"exact":"/admin"}}}]`, anyone, nil, "/admin?x", nil, false},
		"query does not make a path":           {"ALLOW", `[{"url_path":{"path":{"suffix":"/public"}}}]`, anyone, nil, "/admin?/public", nil, false},
		"path regex spans the whole":           {"ALLOW", `[{"url_path":{"path":{"safe_regex":{"regex":"/a"}}}}]`, anyone, nil, "/ab", nil, false},
		"principal by SPIFFE ID":               {"ALLOW", anyone, `[{"authenticated":{"principal_name":{"exact":"spiffe://mesh/ns/default/svc/web"}}}]`, cert, "/", nil, true},
		"principal by DNS name":                {"ALLOW", anyone, `[{"authenticated":{"principal_name":{"exact":"web.mesh"}}}]`, cert, "/", nil, true},
		"principal by subject":                 {"ALLOW", anyone, `[{"authenticated":{"principal_name":{"exact":"CN=web"}}}]`, cert, "/", nil, true},
		"another SPIFFE ID":                    {"ALLOW", anyone, `[{"authenticated":{"principal_name":{"exact":"spiffe://mesh/ns/default/svc/api"}}}]`, cert, "/", nil, false},
		"no certificate, any name":             {"ALLOW", anyone, `[{"authenticated":{"principal_name":{"safe_regex":{"regex":".*"}}}}]`, nil, "/", nil, false},
		"no certificate":                       {"ALLOW", anyone, `[{"authenticated":{}}]`, nil, "/", nil, false},
		"any certificate":                      {"ALLOW", anyone, `[{"authenticated":{}}]`, cert, "/", nil, true},
		"not":                                  {"ALLOW", anyone, `[{"not_id":{"authenticated":{}}}]`, nil, "/", nil, true},
		"and, both":                            {"ALLOW", `[{"and_rules":{"rules":[{"any":true},{"header":{"name":":method","string_match":{"exact":"GET"}}}]}}]`, anyone, nil, "/", nil, true},
		"and, one":                             {"ALLOW", `[{"and_rules":{"rules":[{"any":true},{"header":{"name":":method","string_match":{"exact":"POST"}}}]}}]`, anyone, nil, "/", nil, false},
		"or, one":                              {"ALLOW", anyone, `[{"or_ids":{"ids":[{"authenticated":{}},{"source_ip":{"address_prefix":"127.0.0.0","prefix_len":8}}]}}]`, nil, "/", nil, true},
		"second value of a header is seen":     {"DENY", `[{"header":{"name":"x-role","string_match":{"contains":"admin"}}}]`, anyone, nil, "/", []string{"x-role", "user", "x-role", "admin"}, false},
		"exact header with two values":         {"ALLOW", `[{"header":{"name":"x-role","string_match":{"exact":"user"}}}]`, anyone, nil, "/", []string{"x-role", "user", "x-role", "admin"}, true},
		"a denied value behind another one":    {"DENY", `[{"header":{"name":"x-role","string_match":{"exact":"guest"}}}]`, anyone, nil, "/", []string{"x-role", "admin", "x-role", "guest"}, false},
		"missing header, inverted, no match":   {"ALLOW", `[{"header":{"name":"x","string_match":{"exact":"y"},"invert_match":true}}]`, anyone, nil, "/", nil, false},
		"destination port":                     {"ALLOW", `[{"destination_port":80}]`, anyone, nil, "/", nil, true},
		"destination port range has no end":    {"ALLOW", `[{"destination_port_range":{"start":70,"end":80}}]`, anyone, nil, "/", nil, false},
		"destination ip":                       {"ALLOW", `[{"destination_ip":{"address_prefix":"127.0.0.1","prefix_len":32}}]`, anyone, nil, "/", nil, true},
		"original destination goes before":     {"ALLOW", `[{"destination_port":9999}]`, anyone, func(r *filtertest.Rig) { r.Conn.OriginalDst = netip.MustParseAddrPort("10.0.0.1:9999") }, "/", nil, true},
		"server name":                          {"ALLOW", `[{"requested_server_name":{"suffix":".mesh"}}]`, anyone, func(r *filtertest.Rig) { r.Conn.SNI = "web.mesh" }, "/", nil, true},
		"direct address is the socket's":       {"ALLOW", anyone, `[{"direct_remote_ip":{"address_prefix":"10.0.0.0","prefix_len":8}}]`, func(r *filtertest.Rig) { r.Conn.Direct = netip.MustParseAddrPort("10.9.9.9:1") }, "/", nil, true},
		"source address is the PROXY header's": {"ALLOW", anyone, `[{"source_ip":{"address_prefix":"10.0.0.0","prefix_len":8}}]`, func(r *filtertest.Rig) { r.Conn.Direct = netip.MustParseAddrPort("10.9.9.9:1") }, "/", nil, false},
		"mapped address is IPv4":               {"ALLOW", anyone, `[{"source_ip":{"address_prefix":"10.0.0.0","prefix_len":8}}]`, func(r *filtertest.Rig) { r.Conn.Remote = netip.MustParseAddrPort("[::ffff:10.9.9.9]:1") }, "/", nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := filtertest.Compile(t, Kind, &httpv3.RBAC{Rules: rulesOf(t, policyJSON(c.action, c.permissions, c.principals))})
			r := filtertest.New(t, f, nil)
			if c.setup != nil {
				c.setup(r)
			}
			res := r.Get(t, c.path, c.headers...)
			if res.Passed() != c.want {
				t.Errorf("passed is %v, want %v (%s)", res.Passed(), c.want, res.Details)
			}
			if !c.want && (res.Status != 403 || res.Body != "RBAC: access denied") {
				t.Errorf("answered %d %q", res.Status, res.Body)
			}
		})
	}
}

func TestDetailsNameThePolicy(t *testing.T) {
	f, reg := filtertest.Compile(t, Kind, &httpv3.RBAC{Rules: rulesOf(t, `{"action":"DENY","policies":{
		"z last":{"permissions":[{"any":true}],"principals":[{"any":true}]},
		"a policy":{"permissions":[{"any":true}],"principals":[{"any":true}]}}}`)})
	res := filtertest.New(t, f, nil).Get(t, "/")
	if want := "rbac_access_denied_matched_policy[a_policy]"; res.Details != want {
		t.Errorf("details %q, want %q", res.Details, want)
	}
	if n := reg.Singles()["http.test.rbac.denied"]; n != 1 {
		t.Errorf("denied is %d", n)
	}
	f, _ = filtertest.Compile(t, Kind, &httpv3.RBAC{Rules: &rbacv3.RBAC{}})
	if res = filtertest.New(t, f, nil).Get(t, "/"); res.Details != "rbac_access_denied_matched_policy[none]" {
		t.Errorf("ALLOW without policies: %d %q", res.Status, res.Details)
	}
}

func TestShadowRulesNeverDeny(t *testing.T) {
	f, reg := filtertest.Compile(t, Kind, &httpv3.RBAC{ShadowRulesStatPrefix: "s_", ShadowRules: rulesOf(t, policyJSON("DENY", anyone, anyone))})
	res := filtertest.New(t, f, nil).Get(t, "/")
	if !res.Passed() || res.Metadata["envoy.filters.http.rbac s_shadow_engine_result"] != "denied" || res.Metadata["envoy.filters.http.rbac s_shadow_effective_policy_id"] != "p" {
		t.Errorf("%d %v", res.Status, res.Metadata)
	}
	if n := reg.Singles()["http.test.rbac.s_.shadow_denied"]; n != 1 {
		t.Errorf("counters: %v", reg.Singles())
	}
}

func TestARouteHasItsOwnRules(t *testing.T) {
	f, _ := filtertest.Compile(t, Kind, &httpv3.RBAC{Rules: rulesOf(t, policyJSON("DENY", anyone, anyone))})
	exempt := filtertest.CompileRoute(t, Kind, &httpv3.RBACPerRoute{})
	if !filtertest.New(t, f, exempt).Get(t, "/").Passed() {
		t.Error("an empty override does not exempt the route")
	}
	own := filtertest.CompileRoute(t, Kind, &httpv3.RBACPerRoute{Rbac: &httpv3.RBAC{Rules: rulesOf(t, policyJSON("ALLOW", `[{"url_path":{"path":{"exact":"/a"}}}]`, anyone))}})
	r := filtertest.New(t, f, own)
	if !r.Get(t, "/a").Passed() || r.Get(t, "/b").Passed() {
		t.Error("the route's rules are not the ones in force")
	}
}

func TestNetwork(t *testing.T) {
	c := filtertest.Compiler()
	n := NetworkKind.CompileNetwork(c, filtertest.Any(t, &networkv3.RBAC{StatPrefix: "tcp", Rules: rulesOf(t,
		policyJSON("ALLOW", anyone, `[{"authenticated":{"principal_name":{"prefix":"spiffe://mesh/"}}}]`))}))
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
	conn := &stream.Connection{Remote: netip.MustParseAddrPort("127.0.0.1:1")}
	if ok, detail := n.Allow(conn); ok || detail != "rbac_access_denied_matched_policy[none]" {
		t.Errorf("without a certificate: %v %q", ok, detail)
	}
	conn.Peer = &stream.Peer{Cert: &x509.Certificate{}, URI: []string{"spiffe://mesh/x"}}
	if ok, _ := n.Allow(conn); !ok {
		t.Error("the right certificate is denied")
	}
	if m := c.Metrics.Singles(); m["tcp.rbac.allowed"] != 1 || m["tcp.rbac.denied"] != 1 {
		t.Errorf("counters: %v", m)
	}
}

func TestRefused(t *testing.T) {
	perm := func(p *rbacv3.Permission) *httpv3.RBAC {
		return &httpv3.RBAC{Rules: &rbacv3.RBAC{Policies: map[string]*rbacv3.Policy{"p": {
			Permissions: []*rbacv3.Permission{p}, Principals: []*rbacv3.Principal{{Identifier: &rbacv3.Principal_Any{Any: true}}}}}}}
	}
	deep := &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
	for range 100 {
		deep = &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: deep}}
	}
	unknown := &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
	unknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 500, protowire.VarintType), 1))
	for name, c := range map[string]struct {
		m    *httpv3.RBAC
		want string
	}{
		"metadata":       {perm(&rbacv3.Permission{Rule: &rbacv3.Permission_Metadata{Metadata: &matcherv3.MetadataMatcher{Filter: "x", Path: []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: "a"}}}, Value: &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}}}}), `rules.policies["p"].permissions[0].metadata: not implemented`},
		"matcher":        {perm(&rbacv3.Permission{Rule: &rbacv3.Permission_Matcher{Matcher: &corev3.TypedExtensionConfig{Name: "x", TypedConfig: filtertest.Any(t, &rbacv3.RBAC{})}}}), "permissions[0].matcher: not implemented"},
		"bad regex":      {perm(&rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: &routev3.HeaderMatcher{Name: "x", HeaderMatchSpecifier: &routev3.HeaderMatcher_SafeRegexMatch{SafeRegexMatch: &matcherv3.RegexMatcher{Regex: "("}}}}}), "missing closing )"},
		"bad address":    {perm(&rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: &corev3.CidrRange{AddressPrefix: "nonsense", PrefixLen: wrapperspb.UInt32(8)}}}), `"nonsense" is not an IP address`},
		"bad range":      {perm(&rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPortRange{DestinationPortRange: &typev3.Int32Range{Start: 9, End: 9}}}), "start 9 must be less than end 9"},
		"too deep":       {perm(deep), "nest deeper"},
		"unknown field":  {perm(unknown), "number 500"},
		"track per rule": {&httpv3.RBAC{TrackPerRuleStats: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := filtertest.CompileError(t, Kind, c.m)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	err := filtertest.CompileError(t, NetworkKind, &networkv3.RBAC{StatPrefix: "x", Rules: rulesOf(t, policyJSON("DENY", `[{"url_path":{"path":{"exact":"/"}}}]`, anyone))})
	if err == nil || !strings.Contains(err.Error(), "url_path: is about HTTP") {
		t.Errorf("a path in a network filter: %v", err)
	}
}

func BenchmarkAllow(b *testing.B) {
	f, _ := filtertest.Compile(b, Kind, &httpv3.RBAC{Rules: rulesOf(b, policyJSON("ALLOW",
		`[{"and_rules":{"rules":[{"header":{"name":":method","string_match":{"exact":"GET"}}},{"url_path":{"path":{"prefix":"/api/"}}}]}}]`,
		`[{"authenticated":{"principal_name":{"exact":"spiffe://mesh/ns/default/svc/web"}}}]`))})
	e := f.(*Filter).rules.enforced
	x := facts{head: filtertest.Head("GET", "/api/orders?x=1"), conn: &stream.Connection{Peer: &stream.Peer{Cert: &x509.Certificate{}, URI: []string{"spiffe://mesh/ns/default/svc/web"}}}}
	b.ReportAllocs()
	for b.Loop() {
		if ok, _ := e.judge(&x); !ok {
			b.Fatal("denied")
		}
	}
}

func TestJudgingAllocatesNothing(t *testing.T) {
	if r := testing.Benchmark(BenchmarkAllow); r.AllocsPerOp() != 0 {
		t.Errorf("%d allocations per request", r.AllocsPerOp())
	}
}

func TestARequestAllocatesNothing(t *testing.T) {
	rules := rulesOf(t, policyJSON("ALLOW", `[{"url_path":{"path":{"safe_regex":{"regex":"/api/[a-z]+/[0-9]+"}}}}]`, `[{"or_ids":{"ids":[{"authenticated":{}},{"header":{"name":"x-role","string_match":{"exact":"admin"}}}]}}]`))
	f, _ := filtertest.Compile(t, Kind, &httpv3.RBAC{Rules: rules, ShadowRules: rules})
	if n := filtertest.Extra(t, f, nil, "GET", "/api/orders/1?x", "x-role", "guest", "x-role", "admin"); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestWhatWouldTakeTooLongToJudge: a denial holds where it is not known whether
// it applies, and a permission does not.
func TestWhatWouldTakeTooLongToJudge(t *testing.T) {
	// The expression has no table of states, and the path is far too long for its program.
	const slow = `{"url_path":{"path":{"safe_regex":{"regex":"/(a|b)*a(a|b){20}"}}}}`
	const header = `{"header":{"name":"x-a","invert_match":true,"string_match":{"safe_regex":{"regex":"(a|b)*a(a|b){20}"}}}}`
	long := strings.Repeat("ab", 25<<10)
	for name, c := range map[string]struct {
		action, permission string
		path               string
		want               bool
	}{
		"a denial":                                     {"DENY", slow, "/" + long, false},
		"a denial of what is not so":                   {"DENY", `{"not_rule":` + slow + `}`, "/" + long, false},
		"a denial by a header":                         {"DENY", header, "/", false},
		"a permission":                                 {"ALLOW", slow, "/" + long, false},
		"a permission of what is not so":               {"ALLOW", `{"not_rule":` + slow + `}`, "/" + long, false},
		"a permission by a header":                     {"ALLOW", header, "/", false},
		"a permission with another way":                {"ALLOW", `{"or_rules":{"rules":[` + slow + `,{"any":true}]}}`, "/" + long, true},
		"a denial with a condition that does not hold": {"DENY", `{"and_rules":{"rules":[` + slow + `,{"destination_port":1}]}}`, "/" + long, true},
		"a log":                        {"LOG", slow, "/" + long, true},
		"a denial of a short path":     {"DENY", slow, "/ab", true},
		"a permission of a short path": {"ALLOW", slow, "/a" + long[:20], true},
	} {
		t.Run(name, func(t *testing.T) {
			rules := rulesOf(t, policyJSON(c.action, "["+c.permission+"]", anyone))
			f, _ := filtertest.Compile(t, Kind, &httpv3.RBAC{Rules: rules, ShadowRules: rules})
			if res := filtertest.New(t, f, nil).Get(t, c.path, "x-a", long); res.Passed() != c.want {
				t.Errorf("%d (%s)", res.Status, res.Details)
			}
		})
	}
}

func TestRecheck(t *testing.T) {
	allow := &httpv3.RBAC{Rules: rulesOf(t, policyJSON("ALLOW", anyone, anyone))}
	deny := &httpv3.RBAC{Rules: rulesOf(t, policyJSON("DENY", anyone, anyone))}
	over := func(m *httpv3.RBAC) any { return filtertest.CompileRoute(t, Kind, &httpv3.RBACPerRoute{Rbac: m}) }
	exempt := filtertest.CompileRoute(t, Kind, &httpv3.RBACPerRoute{})
	for name, c := range map[string]struct {
		now      *httpv3.RBAC
		override any
		want     bool
	}{
		"still allowed":                     {allow, nil, true},
		"denied now":                        {deny, nil, false},
		"denied now, by the route":          {allow, over(deny), false},
		"denied now, and the route exempt":  {deny, exempt, true},
		"denied now, allowed by the route":  {deny, over(allow), true},
		"denied by shadow rules":            {&httpv3.RBAC{Rules: allow.Rules, ShadowRules: deny.Rules}, nil, true},
		"denied by the route's shadow":      {allow, over(&httpv3.RBAC{ShadowRules: deny.Rules}), true},
		"no rules any more":                 {&httpv3.RBAC{}, nil, true},
		"only logged":                       {&httpv3.RBAC{Rules: rulesOf(t, policyJSON("LOG", anyone, anyone))}, nil, true},
		"denied by what the request has":    {&httpv3.RBAC{Rules: rulesOf(t, policyJSON("DENY", `[{"header":{"name":"x-role","string_match":{"exact":"guest"}}}]`, anyone))}, nil, false},
		"allowed by what the request lacks": {&httpv3.RBAC{Rules: rulesOf(t, policyJSON("ALLOW", `[{"header":{"name":"x-admin"}}]`, anyone))}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			before, _ := filtertest.Compile(t, Kind, allow)
			now, reg := filtertest.Compile(t, Kind, c.now)
			res := filtertest.New(t, before, nil).Recheck(t, now, c.override, "GET", "/", "x-role", "guest")
			if res.Passed() != c.want {
				t.Errorf("%d %q (%s)", res.Status, res.Body, res.Details)
			}
			if !c.want && (res.Status != 403 || !strings.HasPrefix(res.Details, "rbac_access_denied_matched_policy[")) {
				t.Errorf("answered %d, %s", res.Status, res.Details)
			}
			for name, n := range reg.Singles() {
				if n != 0 {
					t.Errorf("%s is %d: the request is no other one", name, n)
				}
			}
		})
	}
}

// TestBothEnforcementTypesHoldForAllOfAConnection: what the rules look at never
// changes while a connection lives; the rules do, and are asked again then.
func TestBothEnforcementTypesHoldForAllOfAConnection(t *testing.T) {
	for _, e := range []networkv3.RBAC_EnforcementType{networkv3.RBAC_ONE_TIME_ON_FIRST_BYTE, networkv3.RBAC_CONTINUOUS} {
		compile := func(action string) filter.Network {
			c := filtertest.Compiler()
			n := NetworkKind.CompileNetwork(c, filtertest.Any(t, &networkv3.RBAC{StatPrefix: "tcp", EnforcementType: e, Rules: rulesOf(t, policyJSON(action, anyone, anyone))}))
			if err := c.Err(); err != nil {
				t.Fatal(err)
			}
			return n
		}
		conn := &stream.Connection{}
		if ok, _ := compile("ALLOW").Allow(conn); !ok {
			t.Errorf("%s: a connection that is allowed is denied", e)
		}
		if ok, _ := compile("DENY").Allow(conn); ok {
			t.Errorf("%s: a connection that is denied goes on", e)
		}
	}
	c := filtertest.Compiler()
	NetworkKind.CompileNetwork(c, filtertest.Any(t, &networkv3.RBAC{StatPrefix: "tcp", EnforcementType: 7}))
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "enforcement_type: 7 is not") {
		t.Errorf("an unknown type: %v", err)
	}
}
