package rbac

//lint:file-ignore SA1019 deprecated fields still come from control planes

import (
	"sort"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/config/match"
	"sallyport/sidecar/filter"
	"sallyport/sidecar/stream"
)

// Kind is the HTTP filter.
var Kind = &filter.Kind{
	Name:         "envoy.filters.http.rbac",
	TypeURL:      "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
	RouteTypeURL: "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
	Compile:      compileHTTP,
	CompileRoute: compileRoute,
}

// NetworkKind is the network filter.
var NetworkKind = &filter.Kind{
	Name:           "envoy.filters.network.rbac",
	TypeURL:        "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
	CompileNetwork: compileNetwork,
}

// A rule with an unknown part could mean the opposite of what is left of it,
// so every set is strict.
var (
	httpFields = fields.Of(&httpv3.RBAC{}, "rules", "rules_stat_prefix", "shadow_rules", "shadow_rules_stat_prefix").
			Warn(&httpv3.RBAC{}, "track_per_rule_stats").Strict()
	routeFields   = fields.Of(&httpv3.RBACPerRoute{}, "rbac").Strict()
	networkFields = fields.Of(&networkv3.RBAC{}, "rules", "shadow_rules", "shadow_rules_stat_prefix", "stat_prefix", "enforcement_type").
			Warn(&networkv3.RBAC{}, "delay_deny").Strict()
	rulesFields      = fields.Of(&rbacv3.RBAC{}, "action", "policies").Strict()
	policyFields     = fields.Of(&rbacv3.Policy{}, "permissions", "principals").Strict()
	permissionFields = fields.Of(&rbacv3.Permission{}, "and_rules", "or_rules", "any", "header", "url_path", "destination_ip",
		"destination_port", "destination_port_range", "not_rule", "requested_server_name").Strict()
	principalFields = fields.Of(&rbacv3.Principal{}, "and_ids", "or_ids", "any", "authenticated", "source_ip", "direct_remote_ip",
		"remote_ip", "header", "url_path", "not_id").Strict()
)

// maxDepth bounds how deep rules nest.
const maxDepth = 32

func compileHTTP(c *filter.Compiler, cfg *anypb.Any) stream.Filter {
	var m httpv3.RBAC
	if !c.Decode(cfg, &m) {
		return nil
	}
	k := &compiler{Compiler: c, http: true}
	base := c.StatPrefix + "rbac."
	enforced, shadow := base+dotted(m.GetRulesStatPrefix()), base+dotted(m.GetShadowRulesStatPrefix())
	return &Filter{name: c.FilterName, rules: k.httpRules(c.Path, &m), stats: stats{
		allowed: c.Counter(enforced + "allowed"), denied: c.Counter(enforced + "denied"),
		shadowAllowed: c.Counter(shadow + "shadow_allowed"), shadowDenied: c.Counter(shadow + "shadow_denied"),
	}}
}

func compileRoute(c *filter.Compiler, cfg *anypb.Any) any {
	var m httpv3.RBACPerRoute
	if !c.Decode(cfg, &m) {
		return nil
	}
	fields.Check(c.Report, c.Path, &m, routeFields)
	if m.GetRbac() == nil {
		return &rules{} // the route is exempt
	}
	k := &compiler{Compiler: c, http: true}
	return k.httpRules(c.At("rbac"), m.GetRbac())
}

func compileNetwork(c *filter.Compiler, cfg *anypb.Any) filter.Network {
	var m networkv3.RBAC
	if !c.Decode(cfg, &m) {
		return nil
	}
	fields.Check(c.Report, c.Path, &m, networkFields)
	switch m.GetEnforcementType() {
	case networkv3.RBAC_ONE_TIME_ON_FIRST_BYTE, networkv3.RBAC_CONTINUOUS:
		// Either is more than it asks for: see Network.
	default:
		c.Errorf(c.At("enforcement_type"), "%d is not a type; known: ONE_TIME_ON_FIRST_BYTE, CONTINUOUS", m.GetEnforcementType())
	}
	k := &compiler{Compiler: c}
	base := dotted(m.GetStatPrefix()) + "rbac."
	shadow := base + dotted(m.GetShadowRulesStatPrefix())
	return &Network{
		rules: k.rules(c.Path, m.GetRules(), m.GetShadowRules(), m.GetShadowRulesStatPrefix()),
		stats: stats{
			allowed: c.Counter(base + "allowed"), denied: c.Counter(base + "denied"),
			shadowAllowed: c.Counter(shadow + "shadow_allowed"), shadowDenied: c.Counter(shadow + "shadow_denied"),
		},
	}
}

// dotted is a prefix with the dot after it, if it is not empty.
func dotted(prefix string) string {
	if prefix == "" || strings.HasSuffix(prefix, ".") {
		return prefix
	}
	return prefix + "."
}

type compiler struct {
	*filter.Compiler
	http bool
}

func (k *compiler) httpRules(path string, m *httpv3.RBAC) *rules {
	fields.Check(k.Report, path, m, httpFields)
	return k.rules(path, m.GetRules(), m.GetShadowRules(), m.GetShadowRulesStatPrefix())
}

func (k *compiler) rules(path string, enforced, shadow *rbacv3.RBAC, prefix string) *rules {
	return &rules{
		enforced:     k.engine(path+".rules", enforced),
		shadow:       k.engine(path+".shadow_rules", shadow),
		shadowPolicy: prefix + "shadow_effective_policy_id",
		shadowResult: prefix + "shadow_engine_result",
	}
}

func (k *compiler) engine(path string, m *rbacv3.RBAC) *engine {
	if m == nil {
		return nil
	}
	fields.Check(k.Report, path, m, rulesFields)
	e := &engine{deniedDetails: details("none")}
	switch m.GetAction() {
	case rbacv3.RBAC_ALLOW:
		e.action = allow
	case rbacv3.RBAC_DENY:
		e.action = deny
	case rbacv3.RBAC_LOG:
		e.action = logged
	default:
		k.Errorf(path+".action", "%d is not an action; known: ALLOW, DENY, LOG", m.GetAction())
	}
	names := make([]string, 0, len(m.GetPolicies()))
	for n := range m.GetPolicies() {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		e.policies = append(e.policies, k.policy(fields.Key(path, "policies", n), n, m.GetPolicies()[n]))
	}
	return e
}

func (k *compiler) policy(path, name string, m *rbacv3.Policy) policy {
	fields.Check(k.Report, path, m, policyFields)
	p := policy{name: name, boxed: name, details: details(name)}
	for i, r := range m.GetPermissions() {
		p.permissions = append(p.permissions, k.permission(fields.Index(path, "permissions", i), r, 0))
	}
	for i, r := range m.GetPrincipals() {
		p.principals = append(p.principals, k.principal(fields.Index(path, "principals", i), r, 0))
	}
	if len(p.permissions) == 0 || len(p.principals) == 0 {
		k.Errorf(path, "needs at least one permission and one principal")
	}
	return p
}

func (k *compiler) tooDeep(path string, depth int) bool {
	if depth > maxDepth {
		k.Errorf(path, "rules nest deeper than %d", maxDepth)
		return true
	}
	return false
}

func (k *compiler) permission(path string, m *rbacv3.Permission, depth int) (n node) {
	if k.tooDeep(path, depth) {
		return n
	}
	fields.Check(k.Report, path, m, permissionFields)
	switch r := m.GetRule().(type) {
	case *rbacv3.Permission_Any:
		return k.any(path, r.Any)
	case *rbacv3.Permission_AndRules:
		return node{op: opAnd, kids: k.permissions(path+".and_rules", r.AndRules, depth)}
	case *rbacv3.Permission_OrRules:
		return node{op: opOr, kids: k.permissions(path+".or_rules", r.OrRules, depth)}
	case *rbacv3.Permission_NotRule:
		return node{op: opNot, kids: []node{k.permission(path+".not_rule", r.NotRule, depth+1)}}
	case *rbacv3.Permission_Header:
		if k.httpOnly(path + ".header") {
			h := match.Header(k.Report, path+".header", r.Header)
			return node{op: opHeader, header: &h}
		}
	case *rbacv3.Permission_UrlPath:
		if k.httpOnly(path + ".url_path") {
			return node{op: opPath, text: match.Path(k.Report, path+".url_path", r.UrlPath)}
		}
	case *rbacv3.Permission_DestinationIp:
		return node{op: opDestinationIP, prefix: match.CIDR(k.Report, path+".destination_ip", r.DestinationIp)}
	case *rbacv3.Permission_DestinationPort:
		if r.DestinationPort > 65535 {
			k.Errorf(path+".destination_port", "%d is not a port", r.DestinationPort)
		}
		return node{op: opDestinationPort, low: r.DestinationPort, high: r.DestinationPort + 1}
	case *rbacv3.Permission_DestinationPortRange:
		start, end := r.DestinationPortRange.GetStart(), r.DestinationPortRange.GetEnd()
		if start < 0 || end > 65536 || start >= end {
			k.Errorf(path+".destination_port_range", "start %d must be less than end %d, and both ports", start, end)
			return n
		}
		return node{op: opDestinationPort, low: uint32(start), high: uint32(end)}
	case *rbacv3.Permission_RequestedServerName:
		return node{op: opServerName, text: match.String(k.Report, path+".requested_server_name", r.RequestedServerName)}
	case nil:
		k.Errorf(path, "the permission is empty")
	}
	return n // never matches; an error was reported
}

func (k *compiler) permissions(path string, m *rbacv3.Permission_Set, depth int) (out []node) {
	for i, r := range m.GetRules() {
		out = append(out, k.permission(fields.Index(path, "rules", i), r, depth+1))
	}
	if len(out) == 0 {
		k.Errorf(path+".rules", "is empty")
	}
	return out
}

func (k *compiler) principal(path string, m *rbacv3.Principal, depth int) (n node) {
	if k.tooDeep(path, depth) {
		return n
	}
	fields.Check(k.Report, path, m, principalFields)
	switch r := m.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return k.any(path, r.Any)
	case *rbacv3.Principal_AndIds:
		return node{op: opAnd, kids: k.principals(path+".and_ids", r.AndIds, depth)}
	case *rbacv3.Principal_OrIds:
		return node{op: opOr, kids: k.principals(path+".or_ids", r.OrIds, depth)}
	case *rbacv3.Principal_NotId:
		return node{op: opNot, kids: []node{k.principal(path+".not_id", r.NotId, depth+1)}}
	case *rbacv3.Principal_Authenticated_:
		if name := r.Authenticated.GetPrincipalName(); name != nil {
			return node{op: opPrincipal, text: match.String(k.Report, path+".authenticated.principal_name", name)}
		}
		return node{op: opAuthenticated}
	case *rbacv3.Principal_SourceIp:
		return node{op: opSourceIP, prefix: match.CIDR(k.Report, path+".source_ip", r.SourceIp)}
	case *rbacv3.Principal_DirectRemoteIp:
		return node{op: opDirectIP, prefix: match.CIDR(k.Report, path+".direct_remote_ip", r.DirectRemoteIp)}
	case *rbacv3.Principal_RemoteIp:
		return node{op: opRemoteIP, prefix: match.CIDR(k.Report, path+".remote_ip", r.RemoteIp)}
	case *rbacv3.Principal_Header:
		if k.httpOnly(path + ".header") {
			h := match.Header(k.Report, path+".header", r.Header)
			return node{op: opHeader, header: &h}
		}
	case *rbacv3.Principal_UrlPath:
		if k.httpOnly(path + ".url_path") {
			return node{op: opPath, text: match.Path(k.Report, path+".url_path", r.UrlPath)}
		}
	case nil:
		k.Errorf(path, "the principal is empty")
	}
	return n
}

func (k *compiler) principals(path string, m *rbacv3.Principal_Set, depth int) (out []node) {
	for i, r := range m.GetIds() {
		out = append(out, k.principal(fields.Index(path, "ids", i), r, depth+1))
	}
	if len(out) == 0 {
		k.Errorf(path+".ids", "is empty")
	}
	return out
}

func (k *compiler) any(path string, v bool) node {
	if !v {
		k.Errorf(path+".any", "must be true")
		return node{}
	}
	return node{op: opAny}
}

func (k *compiler) httpOnly(path string) bool {
	if !k.http {
		k.Errorf(path, "is about HTTP; a network filter cannot see it")
	}
	return k.http
}
