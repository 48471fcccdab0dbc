package build

import (
	"cmp"
	"regexp"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/xds/policy"
)

// Names of filters. What a route says to a filter is found by its name.
const (
	corsFilter   = "envoy.filters.http.cors"
	denyFilter   = "envoy.filters.http.rbac.deny"
	allowFilter  = "envoy.filters.http.rbac.allow"
	jwtFilter    = "envoy.filters.http.jwt_authn"
	limitFilter  = "envoy.filters.http.local_ratelimit"
	routerFilter = "envoy.filters.http.router"
)

// filterSet is what the filters of one connection manager need to know. Their order is here and nowhere else:
// CORS first, as a browser's preflight carries no token: where a CORSPolicy is attached it answers all of them itself, and
// elsewhere a preflight needs what any other request needs; then who may call at all; then the token; then the limit, so
// that nobody without a token uses up what others are owed; the router last.
type filterSet struct {
	authorization *authorization
	jwt           []*policy.Object[policy.JWT]
	limit         *policy.RateLimit // of all requests
	stat          string
}

func (b *builder) filters(f filterSet) (out []*hcmv3.HttpFilter) {
	add := func(name string, m proto.Message) {
		out = append(out, &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(m)}})
	}
	add(corsFilter, &corsv3.Cors{})
	if a := f.authorization; a != nil {
		add(denyFilter, &rbachttpv3.RBAC{Rules: a.deny})
		add(allowFilter, &rbachttpv3.RBAC{Rules: a.allow})
	}
	if len(f.jwt) > 0 {
		add(jwtFilter, jwtFilterOf(f.jwt))
	}
	// Without a bucket it waits for what routes say.
	l := &limitv3.LocalRateLimit{StatPrefix: f.stat}
	if f.limit != nil {
		l = limitOf(f.stat, f.limit)
	}
	add(limitFilter, l)
	add(routerFilter, &routerv3.Router{})
	return out
}

func requirementName(o *policy.Object[policy.JWT]) string { return o.Namespace + "/" + o.Name }

// jwtFilterOf has one provider and one requirement per policy. No rule names them: routes do, so that a token is asked for
// by the very route that takes the request.
func jwtFilterOf(list []*policy.Object[policy.JWT]) *jwtv3.JwtAuthentication {
	out := &jwtv3.JwtAuthentication{Providers: map[string]*jwtv3.JwtProvider{}, RequirementMap: map[string]*jwtv3.JwtRequirement{}}
	for _, o := range list {
		name, j := requirementName(o), &o.Spec
		p := &jwtv3.JwtProvider{
			Issuer: j.Issuer, Audiences: j.Audiences, Forward: j.Forward, FromCookies: j.FromCookies, FromParams: j.FromParams,
			JwksSourceSpecifier: &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: j.Keys()}}},
		}
		for _, h := range j.FromHeaders {
			p.FromHeaders = append(p.FromHeaders, &jwtv3.JwtHeader{Name: h.Name, ValuePrefix: h.Prefix})
		}
		for _, c := range j.ClaimsToHeaders {
			p.ClaimToHeaders = append(p.ClaimToHeaders, &jwtv3.JwtClaimToHeader{ClaimName: c.Claim, HeaderName: c.Header})
		}
		if s := j.ClockSkew; s != nil {
			p.ClockSkewSeconds = uint32(time.Duration(*s) / time.Second)
		}
		out.Providers[name] = p
		need := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: name}}
		if !j.IsRequired() {
			need = &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{RequiresAny: &jwtv3.JwtRequirementOrList{
				Requirements: []*jwtv3.JwtRequirement{need, {RequiresType: &jwtv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}}}}}
		}
		out.RequirementMap[name] = need
	}
	return out
}

// routeJWT has a route ask for the token of a policy.
func routeJWT(o *policy.Object[policy.JWT]) *jwtv3.PerRouteConfig {
	return &jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_RequirementName{RequirementName: requirementName(o)}}
}

// limitOf is a token bucket that holds burst requests and is refilled evenly.
func limitOf(stat string, r *policy.RateLimit) *limitv3.LocalRateLimit {
	unit := map[string]time.Duration{"Second": time.Second, "Minute": time.Minute, "Hour": time.Hour}[r.Unit]
	// Few tokens often, not many seldom: the rate holds over shorter times too. Envoy fills at most every 50 ms.
	fill, tokens := unit, r.Requests
	for _, part := range []uint32{20, 10, 5, 4, 2} {
		if tokens%part == 0 && fill/time.Duration(part) >= 50*time.Millisecond {
			fill, tokens = fill/time.Duration(part), tokens/part
			break
		}
	}
	all := &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}}
	return &limitv3.LocalRateLimit{
		StatPrefix:    stat,
		TokenBucket:   &typev3.TokenBucket{MaxTokens: cmp.Or(r.Burst, r.Requests), TokensPerFill: number(tokens), FillInterval: durationpb.New(fill)},
		FilterEnabled: all, FilterEnforced: all,
		LocalRateLimitPerDownstreamConnection: r.PerConnection,
		ResponseHeadersToAdd: []*corev3.HeaderValueOption{{
			Header: &corev3.HeaderValue{Key: "retry-after", Value: strconv.Itoa(int(max(time.Duration(1), (fill+time.Second-1)/time.Second)))}}},
	}
}

// corsOf is a CORS policy as a route's override of the filter.
func corsOf(p *policy.CORS) *corsv3.CorsPolicy {
	out := &corsv3.CorsPolicy{
		AllowMethods: strings.Join(p.AllowMethods, ","), AllowHeaders: strings.Join(p.AllowHeaders, ","), ExposeHeaders: strings.Join(p.ExposeHeaders, ","),
		// A preflight of another origin is answered here too, without the fields that would allow anything.
		ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	}
	if p.MaxAge > 0 {
		out.MaxAge = strconv.Itoa(int(time.Duration(p.MaxAge) / time.Second))
	}
	if p.AllowCredentials {
		out.AllowCredentials = wrapperspb.Bool(true)
	}
	for _, o := range p.AllowOrigins {
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, origin(o))
	}
	return out
}

func origin(o string) *matcherv3.StringMatcher {
	if o == "*" {
		return matches(".*")
	}
	if scheme, host, ok := strings.Cut(o, "://*."); ok {
		// One label or more, and no port but the one that is written.
		return matches(regexp.QuoteMeta(scheme+"://") + `([A-Za-z0-9-]+\.)+` + regexp.QuoteMeta(host))
	}
	return exactly(strings.ToLower(o))
}

// overrides collects what a route or a virtual host says to filters.
type overrides map[string]*anypb.Any

func (b *builder) override(o overrides, filter string, m proto.Message) overrides {
	if o == nil {
		o = overrides{}
	}
	o[filter] = b.pack(m)
	return o
}

// statOf makes a name fit for statistics.
func statOf(parts ...string) string {
	return cmp.Or(strings.NewReplacer("/", "_", ".", "_", "*", "any").Replace(strings.Join(parts, "_")), "none")
}
