// Package cors is envoy.filters.http.cors: cross-origin resource sharing (the
// Fetch standard, §3.2). The policy is a route's, in typed_per_filter_config;
// the filter answers preflights itself and adds the headers to responses.
package cors

import (
	"bytes"
	"math/rand/v2"

	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/config/match"
	"sallyport/sidecar/filter"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/route/regex"
	"sallyport/sidecar/stream"
)

// Kind is the filter.
var Kind = &filter.Kind{
	Name:         "envoy.filters.http.cors",
	TypeURL:      "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors",
	RouteTypeURL: "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
	Compile:      compile,
	CompileRoute: compileRoute,
}

var policyFields = fields.Of(&corsv3.CorsPolicy{}, "allow_origin_string_match", "allow_methods", "allow_headers", "expose_headers", "max_age",
	"allow_credentials", "filter_enabled", "shadow_enabled", "allow_private_network_access", "forward_not_matching_preflights").Strict()

// Filter is the compiled filter.
type Filter struct {
	name           string
	valid, invalid filter.Counter
}

// policy is a compiled CorsPolicy.
type policy struct {
	origins         []route.StringMatcher
	any             bool // an origin matcher takes "*"
	methods         string
	headers         string
	expose          string
	maxAge          string
	credentials     bool
	private         bool
	forwardMismatch bool
	// enabled and shadow are in millionths of the requests.
	enabled, shadow uint32
	// What is to be done with the response to an origin that is allowed, and to
	// any other request.
	shared, kept *response
}

// response is what the filter adds to a response.
type response struct {
	policy *policy
	shared bool // with the request's origin
}

func compile(c *filter.Compiler, cfg *anypb.Any) stream.Filter {
	var m corsv3.Cors
	if !c.Decode(cfg, &m) {
		return nil
	}
	prefix := c.StatPrefix + "cors."
	return &Filter{name: c.FilterName, valid: c.Counter(prefix + "origin_valid"), invalid: c.Counter(prefix + "origin_invalid")}
}

func compileRoute(c *filter.Compiler, cfg *anypb.Any) any {
	var m corsv3.CorsPolicy
	if !c.Decode(cfg, &m) {
		return nil
	}
	fields.Check(c.Report, c.Path, &m, policyFields)
	p := &policy{
		origins: match.Strings(c.Report, c.Path, "allow_origin_string_match", m.GetAllowOriginStringMatch()),
		methods: m.GetAllowMethods(), headers: m.GetAllowHeaders(), expose: m.GetExposeHeaders(), maxAge: m.GetMaxAge(),
		credentials: m.GetAllowCredentials().GetValue(), private: m.GetAllowPrivateNetworkAccess().GetValue(),
		forwardMismatch: m.GetForwardNotMatchingPreflights() == nil || m.GetForwardNotMatchingPreflights().GetValue(),
		enabled:         match.Fraction(m.GetFilterEnabled(), route.Always), shadow: match.Fraction(m.GetShadowEnabled(), 0),
	}
	p.shared, p.kept = &response{p, true}, &response{p, false}
	for i := range p.origins {
		p.any = p.any || p.origins[i].MatchString("*")
	}
	for _, v := range [...]string{p.methods, p.headers, p.expose, p.maxAge} {
		for i := 0; i < len(v); i++ {
			if v[i] < ' ' || v[i] == 0x7f {
				c.Errorf(c.Path, "%q holds a control character", v)
				break
			}
		}
	}
	return p
}

// Name is the filter's name in the configuration.
func (f *Filter) Name() string { return f.name }

// RequestHead answers a preflight, or notes that the response needs headers.
func (f *Filter) RequestHead(c stream.Context, h *message.Head, _ bool) stream.Verdict {
	p, is := c.Override().(*policy)
	if !is {
		return stream.Continue
	}
	enabled := chance(p.enabled)
	if enabled {
		*c.Slot() = p.kept
	}
	origin := h.Get(message.Origin)
	if len(origin) == 0 || !enabled && !chance(p.shadow) {
		return stream.Continue
	}
	preflight := h.Is(message.Method, "OPTIONS") && len(h.Get(message.AccessControlRequestMethod)) > 0
	if h.Count("origin") > 1 || !p.allows(origin) {
		f.invalid.Inc()
		if enabled && preflight && !p.forwardMismatch {
			return c.Stream.Reply(200, "", "cors_response", 0)
		}
		return stream.Continue
	}
	f.valid.Inc()
	if !enabled {
		return stream.Continue
	}
	*c.Slot() = p.shared // the preflight's answer, too
	if !preflight {
		return stream.Continue
	}
	return c.Stream.Reply(200, "", "cors_response", 0, p.preflight(h)...)
}

func (p *policy) allows(origin []byte) bool {
	if p.any {
		return true
	}
	var w regex.Budget // for all expressions together; beyond it no origin is allowed
	for i := range p.origins {
		if p.origins[i].Try(origin, &w) == regex.Yes {
			return true
		}
	}
	return false
}

// preflight are the headers that only the answer to a preflight has. Where all
// methods or headers are allowed it names those that were asked for, as Envoy
// does: "*" would not stand for all with credentials (Fetch §3.2.3).
func (p *policy) preflight(h *message.Head) []route.HeaderValue {
	list := make([]route.HeaderValue, 0, 4)
	add := func(name, value, asked string) {
		if value == "*" {
			v, _ := h.Joined(asked)
			value = string(v)
		}
		if value != "" {
			list = append(list, route.HeaderValue{Name: name, Value: value})
		}
	}
	add("access-control-allow-methods", p.methods, "access-control-request-method")
	add("access-control-allow-headers", p.headers, "access-control-request-headers")
	add("access-control-max-age", p.maxAge, "")
	if p.private && string(h.Lookup("access-control-request-private-network")) == "true" {
		add("access-control-allow-private-network", "true", "")
	}
	return list
}

// ResponseHead adds the headers to a response that the policy lets the origin
// read, and Vary to each that could have had them (Fetch, "CORS protocol and
// HTTP caches"): a cache must not give one origin what was meant for another. A
// response whose request this filter never saw has neither.
func (f *Filter) ResponseHead(c stream.Context, h *message.Head, _ bool) stream.Verdict {
	if r, is := (*c.Slot()).(*response); is {
		r.apply(h, c.Stream.Request.Get(message.Origin))
	}
	return stream.Continue
}

func (r *response) apply(h *message.Head, origin []byte) {
	varyByOrigin(h)
	if !r.shared {
		return
	}
	// The origin is one that the policy allows; "*" would not go with credentials.
	p := r.policy
	h.SetName(message.AccessControlAllowOrigin, origin)
	if p.credentials {
		h.SetNameString(message.AccessControlAllowCredentials, "true")
	}
	if p.expose != "" {
		h.SetNameString(message.AccessControlExposeHeaders, p.expose)
	}
}

// varyByOrigin adds Origin to Vary (RFC 9110 §12.5.5), unless it is there.
func varyByOrigin(h *message.Head) {
	last := -1
	for i := range h.Len() {
		if h.NameAt(i) != message.Vary {
			continue
		}
		last = i
		_, v := h.At(i)
		for item := range bytes.SplitSeq(v, []byte(",")) {
			if item = bytes.TrimSpace(item); string(item) == "*" || bytes.EqualFold(item, []byte("origin")) {
				return
			}
		}
	}
	if last < 0 {
		h.AddNameString(message.Vary, "origin")
		return
	}
	// Into one line with the others: some caches read the last one alone.
	var buf [256]byte
	_, v := h.At(last)
	if len(v) > 0 {
		v = append(append(buf[:0], v...), ", origin"...)
	} else {
		v = append(buf[:0], "origin"...)
	}
	h.SetAt(last, v)
}

func chance(millionths uint32) bool {
	return millionths >= route.Always || millionths > 0 && route.InFraction(rand.Uint64(), millionths)
}
