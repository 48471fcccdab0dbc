package localratelimit

import (
	"fmt"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/config/match"
	"sallyport/sidecar/filter"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"

// Kind is the filter; its override on a route is of the same type.
var Kind = &filter.Kind{
	Name: "envoy.filters.http.local_ratelimit", TypeURL: typeURL, RouteTypeURL: typeURL,
	Compile: compile, CompileRoute: compileRoute,
}

// Strict: a limit that is only half understood does not protect.
var (
	limitFields = fields.Of(&limitv3.LocalRateLimit{}, "stat_prefix", "status", "token_bucket", "filter_enabled", "filter_enforced",
		"request_headers_to_add_when_not_enforced", "response_headers_to_add", "local_rate_limit_per_downstream_connection",
		"enable_x_ratelimit_headers", "rate_limited_as_resource_exhausted", "enable_retry_after_header").
		// These only say something about descriptors, which are refused.
		Harmless(&limitv3.LocalRateLimit{}, "stage", "vh_rate_limits", "always_consume_default_token_bucket", "max_dynamic_descriptors").Strict()
	bucketFields = fields.Of(&typev3.TokenBucket{}, "max_tokens", "tokens_per_fill", "fill_interval").Strict()
)

// minFill is Envoy's least fill_interval.
const minFill = 50 * time.Millisecond

func compile(c *filter.Compiler, cfg *anypb.Any) stream.Filter {
	l := compileLimit(c, cfg, false)
	if l == nil {
		return nil
	}
	return &Filter{name: c.FilterName, limit: l}
}

func compileRoute(c *filter.Compiler, cfg *anypb.Any) any { return compileLimit(c, cfg, true) }

func compileLimit(c *filter.Compiler, cfg *anypb.Any, perRoute bool) *limit {
	var m limitv3.LocalRateLimit
	if !c.Decode(cfg, &m) {
		return nil
	}
	fields.Check(c.Report, c.Path, &m, limitFields)
	prefix := strings.TrimSuffix(m.GetStatPrefix(), ".") + ".http_local_rate_limit."
	l := &limit{
		enabled: match.Fraction(m.GetFilterEnabled(), 0), enforced: match.Fraction(m.GetFilterEnforced(), 0),
		perConnection: m.GetLocalRateLimitPerDownstreamConnection(), status: 429, exhausted: m.GetRateLimitedAsResourceExhausted(),
		rateLimit: m.GetEnableXRatelimitHeaders() != 0, retryAfter: m.GetEnableRetryAfterHeader(),
		seen: c.Counter(prefix + "enabled"), ok: c.Counter(prefix + "ok"),
		limited: c.Counter(prefix + "rate_limited"), refused: c.Counter(prefix + "enforced"),
	}
	if s := int(m.GetStatus().GetCode()); s >= 400 {
		l.status = s // as in Envoy, anything less means the default
	}
	l.reply = additions(c, "response_headers_to_add", m.GetResponseHeadersToAdd())
	l.unenforced = additions(c, "request_headers_to_add_when_not_enforced", m.GetRequestHeadersToAddWhenNotEnforced())
	t := m.GetTokenBucket()
	switch {
	case t != nil:
		l.tokens(c, &m, t)
	case perRoute || l.enabled > 0:
		c.Errorf(c.At("token_bucket"), "must be set: without it nothing would be limited")
	}
	return l
}

func (l *limit) tokens(c *filter.Compiler, m *limitv3.LocalRateLimit, t *typev3.TokenBucket) {
	path := c.At("token_bucket")
	fields.Check(c.Report, path, t, bucketFields)
	limit, perFill := t.GetMaxTokens(), uint32(1)
	if p := t.GetTokensPerFill(); p != nil {
		perFill = p.GetValue()
	}
	fill := t.GetFillInterval().AsDuration()
	switch {
	case limit == 0:
		c.Errorf(path+".max_tokens", "must be at least 1")
	case perFill == 0:
		c.Errorf(path+".tokens_per_fill", "must be at least 1")
	case fill < minFill:
		c.Errorf(path+".fill_interval", "%s is less than %s", fill, minFill)
	default:
		l.numbers = numbers{limit, perFill, fill}
		// What is the same bucket for an update: the filter's, or the
		// route's, with the same numbers.
		place := fmt.Sprintf("local_ratelimit %s %s %s %s", c.Resource, c.Path, c.FilterName, m.GetStatPrefix())
		if l.perConnection {
			l.place = place
			return
		}
		key := fmt.Sprintf("%s %d %d %s", place, limit, perFill, fill)
		l.bucket = filter.Keep(c.Memory, key, func() *bucket { return l.numbers.bucket(time.Now()) })
	}
}

func additions(c *filter.Compiler, field string, list []*corev3.HeaderValueOption) (out []route.HeaderMutation) {
	for i, o := range list {
		out = append(out, filter.Addition(c.Report, fields.Index(c.Path, field, i), o, c.Format))
	}
	return out
}
