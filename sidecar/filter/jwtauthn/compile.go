package jwtauthn

import (
	"fmt"
	"math"
	"sort"
	"strings"
	"time"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/config/match"
	"sallyport/sidecar/filter"
	"sallyport/sidecar/stream"
)

// Kind is the filter.
var Kind = &filter.Kind{
	Name:         "envoy.filters.http.jwt_authn",
	TypeURL:      "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
	RouteTypeURL: "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig",
	Compile:      compile,
	CompileRoute: compileRoute,
}

// Strict: what a rule demands beyond what is known must not be left out.
var (
	filterFields = fields.Of(&jwtv3.JwtAuthentication{}, "providers", "rules", "bypass_cors_preflight", "requirement_map",
		"strip_failure_response", "stat_prefix").Strict()
	providerFields = fields.Of(&jwtv3.JwtProvider{}, "issuer", "audiences", "subjects", "require_expiration", "max_lifetime", "forward",
		"from_headers", "from_params", "from_cookies", "forward_payload_header", "pad_forward_payload_header", "payload_in_metadata",
		"clock_skew_seconds", "claim_to_headers", "clear_route_cache", "local_jwks", "remote_jwks").
		Harmless(&jwtv3.JwtProvider{}, "jwt_cache_config").
		Warn(&jwtv3.JwtProvider{}, "header_in_metadata", "failed_status_in_metadata", "normalize_payload_in_metadata").Strict()
	ruleFields        = fields.Of(&jwtv3.RequirementRule{}, "match", "requires", "requirement_name").Strict()
	requirementFields = fields.Of(&jwtv3.JwtRequirement{}, "provider_name", "provider_and_audiences", "requires_any", "requires_all",
		"allow_missing_or_failed", "allow_missing").Strict()
	overrideFields = fields.Of(&jwtv3.PerRouteConfig{}, "disabled", "requirement_name").Strict()
)

const (
	defaultSkew = 60
	maxDepth    = 16
	// maxLocations keeps the tokens of one provider below maxTokens.
	maxLocations = maxTokens
)

type compiler struct {
	*filter.Compiler
	providers map[string]*provider
	names     []string // of providers, sorted
	filter    *Filter
	places    map[string]*places
}

func compile(c *filter.Compiler, cfg *anypb.Any) stream.Filter {
	var m jwtv3.JwtAuthentication
	if !c.Decode(cfg, &m) {
		return nil
	}
	fields.Check(c.Report, c.Path, &m, filterFields)
	prefix := c.StatPrefix + "jwt_authn."
	if p := m.GetStatPrefix(); p != "" {
		prefix += strings.TrimSuffix(p, ".") + "."
	}
	f := &Filter{
		name: c.FilterName, requirements: map[string]*requirement{}, bypass: m.GetBypassCorsPreflight(), strip: m.GetStripFailureResponse(),
		allowed: c.Counter(prefix + "allowed"), denied: c.Counter(prefix + "denied"), bypassed: c.Counter(prefix + "cors_preflight_bypassed"),
	}
	k := &compiler{Compiler: c, providers: map[string]*provider{}, filter: f, places: map[string]*places{}}
	for n := range m.GetProviders() {
		k.names = append(k.names, n)
	}
	sort.Strings(k.names)
	for _, n := range k.names {
		k.providers[n] = k.provider(fields.Key(c.Path, "providers", n), n, m.GetProviders()[n])
	}
	var known []string
	for n := range m.GetRequirementMap() {
		known = append(known, n)
	}
	sort.Strings(known)
	f.known = strings.Join(known, ",")
	for _, n := range known {
		r := k.requirement(fields.Key(c.Path, "requirement_map", n), m.GetRequirementMap()[n], 0)
		f.requirements[n] = &r
	}
	for i, r := range m.GetRules() {
		f.rules = append(f.rules, k.rule(fields.Index(c.Path, "rules", i), r))
	}
	return f
}

func compileRoute(c *filter.Compiler, cfg *anypb.Any) any {
	var m jwtv3.PerRouteConfig
	if !c.Decode(cfg, &m) {
		return nil
	}
	fields.Check(c.Report, c.Path, &m, overrideFields)
	return &override{disabled: m.GetDisabled(), name: m.GetRequirementName()}
}

func (k *compiler) rule(path string, m *jwtv3.RequirementRule) rule {
	fields.Check(k.Report, path, m, ruleFields)
	if m.GetMatch().GetRuntimeFraction() != nil {
		k.Errorf(path+".match.runtime_fraction", "a rule cannot hold for a part of the requests only")
	}
	r := rule{match: match.Route(k.Report, path+".match", m.GetMatch())}
	switch n := m.GetRequirementType().(type) {
	case *jwtv3.RequirementRule_Requires:
		need := k.requirement(path+".requires", n.Requires, 0)
		r.needs = &need
	case *jwtv3.RequirementRule_RequirementName:
		if r.needs = k.filter.requirements[n.RequirementName]; r.needs == nil {
			k.Errorf(path+".requirement_name", "%q is not in requirement_map; known: %s", n.RequirementName, k.filter.known)
		}
	}
	return r
}

func (k *compiler) find(path, name string) *provider {
	p := k.providers[name]
	if p == nil {
		k.Errorf(path, "%q is not a provider; known: %s", name, strings.Join(k.names, ", "))
	}
	return p
}

func (k *compiler) requirement(path string, m *jwtv3.JwtRequirement, depth int) requirement {
	if depth > maxDepth {
		k.Errorf(path, "requirements nest deeper than %d", maxDepth)
		return requirement{}
	}
	fields.Check(k.Report, path, m, requirementFields)
	switch r := m.GetRequiresType().(type) {
	case *jwtv3.JwtRequirement_ProviderName:
		return requirement{kind: needProvider, provider: k.find(path+".provider_name", r.ProviderName)}
	case *jwtv3.JwtRequirement_ProviderAndAudiences:
		n := requirement{kind: needProvider, provider: k.find(path+".provider_and_audiences.provider_name", r.ProviderAndAudiences.GetProviderName())}
		// Audiences take the place of the provider's, also if there are none.
		n.audiences = audiences(r.ProviderAndAudiences.GetAudiences())
		return n
	case *jwtv3.JwtRequirement_RequiresAll:
		return requirement{kind: needAll, kids: k.list(path+".requires_all", r.RequiresAll.GetRequirements(), depth)}
	case *jwtv3.JwtRequirement_RequiresAny:
		return k.any(path+".requires_any", r.RequiresAny.GetRequirements(), depth)
	case *jwtv3.JwtRequirement_AllowMissing:
		return requirement{kind: allowMissing, among: k.all()}
	case *jwtv3.JwtRequirement_AllowMissingOrFailed:
		return requirement{kind: allowFailed, among: k.all()}
	case nil:
		// As in Envoy, an empty requirement lets everything pass. It is
		// more likely a mistake than meant.
		k.Errorf(path, "needs one of provider_name, provider_and_audiences, requires_any, requires_all, allow_missing, allow_missing_or_failed")
	}
	return requirement{}
}

func (k *compiler) list(path string, list []*jwtv3.JwtRequirement, depth int) (out []requirement) {
	for i, m := range list {
		out = append(out, k.requirement(fields.Index(path, "requirements", i), m, depth+1))
	}
	if len(out) == 0 {
		k.Errorf(path+".requirements", "is empty")
	}
	return out
}

// any puts what lets requests without a token pass last, and lets it look
// only at the places of the providers beside it: a token of some other
// provider must not pass for one of theirs.
func (k *compiler) any(path string, list []*jwtv3.JwtRequirement, depth int) requirement {
	all := k.list(path, list, depth)
	r := requirement{kind: needAny}
	var last []requirement
	var beside []*provider
	for _, n := range all {
		switch n.kind {
		case allowMissing, allowFailed:
			last = append(last, n)
		case needProvider:
			beside = append(beside, n.provider)
			r.kids = append(r.kids, n)
		default:
			r.kids = append(r.kids, n)
		}
	}
	for _, n := range last {
		if len(beside) > 0 && len(beside) == len(r.kids) {
			n.among = beside
		}
		r.kids = append(r.kids, n)
	}
	return r
}

func (k *compiler) all() (list []*provider) {
	for _, n := range k.names {
		list = append(list, k.providers[n])
	}
	return list
}

// audiences is never nil, so that a list that is set differs from one that is not.
func audiences(list []string) []string {
	out := make([]string, 0, len(list))
	for _, a := range list {
		out = append(out, audience(a))
	}
	return out
}

func (k *compiler) provider(path, name string, m *jwtv3.JwtProvider) *provider {
	fields.Check(k.Report, path, m, providerFields)
	p := &provider{
		name: name, issuer: m.GetIssuer(), audiences: audiences(m.GetAudiences()), cache: newCache(), skew: defaultSkew,
		requireExpiry: m.GetRequireExpiration(), forward: m.GetForward(), padPayload: m.GetPadForwardPayloadHeader(),
		payloadMetadata: m.GetPayloadInMetadata(), reroute: m.GetClearRouteCache(), places: k.locations(path, m),
	}
	if s := m.GetClockSkewSeconds(); s != 0 {
		p.skew = int64(s)
	}
	if m.GetSubjects() != nil {
		s := match.String(k.Report, path+".subjects", m.GetSubjects())
		p.subject = &s
	}
	if l := m.GetMaxLifetime(); l != nil {
		p.maxLifetime = l.AsDuration()
		if p.maxLifetime < time.Second || p.maxLifetime > math.MaxInt64/2 {
			k.Errorf(path+".max_lifetime", "%s is less than a second or too long", p.maxLifetime)
		}
	}
	p.payloadHeader = k.owned(path+".forward_payload_header", m.GetForwardPayloadHeader())
	for i, c := range m.GetClaimToHeaders() {
		cp := fields.Index(path, "claim_to_headers", i)
		h := claimHeader{header: k.owned(cp+".header_name", c.GetHeaderName())}
		switch {
		case (c.GetClaimName() == "") == (len(c.GetClaimPath()) == 0):
			k.Errorf(cp, "exactly one of claim_name and claim_path must be set")
		case c.GetClaimName() != "":
			h.path = strings.Split(c.GetClaimName(), ".")
		default:
			for _, s := range c.GetClaimPath() {
				h.path = append(h.path, s.GetKey())
			}
		}
		if h.header == "" {
			k.Errorf(cp+".header_name", "is empty")
		}
		p.claims = append(p.claims, h)
	}
	switch s := m.GetJwksSourceSpecifier().(type) {
	case *jwtv3.JwtProvider_LocalJwks:
		b, err := match.Data(s.LocalJwks, maxJWKS)
		if err == nil {
			p.keys, err = parseKeys(b, func(w string) { k.Warnf(path+".local_jwks", "%s", w) })
		}
		if err != nil {
			k.Errorf(path+".local_jwks", "%v", err)
		}
		if alg := dearest(p.keys); alg != "" {
			k.Warnf(path+".local_jwks", "a token of %s that names no key is not tried against all keys that fit it: that would take too long", alg)
		}
	case *jwtv3.JwtProvider_RemoteJwks:
		k.Errorf(path+".remote_jwks", "not implemented; give the keys in local_jwks")
	default:
		k.Errorf(path, "needs local_jwks")
	}
	return p
}

func (k *compiler) locations(path string, m *jwtv3.JwtProvider) *places {
	p := &places{params: m.GetFromParams(), cookies: m.GetFromCookies()}
	for i, h := range m.GetFromHeaders() {
		n := strings.ToLower(h.GetName())
		if n == "" || n[0] == ':' || n == "host" {
			k.Errorf(fields.Index(path, "from_headers", i)+".name", "%q cannot hold a token", h.GetName())
		}
		p.headers = append(p.headers, newHeaderLocation(n, h.GetValuePrefix()))
	}
	if n := len(p.headers) + len(p.params) + len(p.cookies); n > maxLocations {
		k.Errorf(path, "tokens are looked for in %d places; at most %d are allowed", n, maxLocations)
	} else if n == 0 {
		// RFC 6750 §2.1 and §2.3.
		p.headers = []headerLocation{newHeaderLocation("authorization", "Bearer ")}
		p.params = []string{"access_token"}
	}
	key := fmt.Sprintf("%q %q", p.params, p.cookies)
	for i := range p.headers {
		key += fmt.Sprintf(" %q %q", p.headers[i].name, p.headers[i].prefix)
	}
	if k.places[key] == nil {
		k.places[key] = p
	}
	return k.places[key]
}

// owned notes a header that only the filter may set.
func (k *compiler) owned(path, name string) string {
	if name == "" {
		return ""
	}
	name = strings.ToLower(name)
	if name[0] == ':' || name == "host" || strings.ContainsAny(name, " \r\n\x00") {
		k.Errorf(path, "%q cannot be set", name)
	}
	if !contains(k.filter.sanitize, name) {
		k.filter.sanitize = append(k.filter.sanitize, name)
	}
	return name
}
