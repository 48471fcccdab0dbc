// Package match compiles the matchers of Envoy's protos, which routes and
// filters share, into those of package route. Whatever is wrong is reported
// under the path of its field, and then the result must not be used.
package match

//lint:file-ignore SA1019 deprecated fields still come from control planes

import (
	"fmt"
	"math"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/route"
)

var (
	stringFields = fields.Of(&matcherv3.StringMatcher{}, "exact", "prefix", "suffix", "contains", "safe_regex", "ignore_case").Strict()
	regexFields  = fields.Of(&matcherv3.RegexMatcher{}, "regex").
			Harmless(&matcherv3.RegexMatcher{}, "google_re2").Strict()
	headerFields = fields.Of(&routev3.HeaderMatcher{}, "name", "exact_match", "safe_regex_match", "range_match", "present_match",
		"prefix_match", "suffix_match", "contains_match", "string_match", "invert_match", "treat_missing_header_as_empty").Strict()
	pathFields  = fields.Of(&matcherv3.PathMatcher{}, "path").Strict()
	queryFields = fields.Of(&routev3.QueryParameterMatcher{}, "name", "string_match", "present_match").Strict()
	// A match that is not understood must not be taken for one that holds.
	routeFields = fields.Of(&routev3.RouteMatch{}, "prefix", "path", "safe_regex", "connect_matcher", "path_separated_prefix",
		"case_sensitive", "runtime_fraction", "headers", "query_parameters", "cookies", "grpc", "tls_context").Strict()
)

// String compiles a StringMatcher that stands at path.
func String(r *fields.Report, path string, m *matcherv3.StringMatcher) route.StringMatcher {
	fields.Check(r, path, m, stringFields)
	fold := m.GetIgnoreCase()
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return route.NewString(route.StringExact, p.Exact, fold)
	case *matcherv3.StringMatcher_Prefix:
		return route.NewString(route.StringPrefix, p.Prefix, fold)
	case *matcherv3.StringMatcher_Suffix:
		return route.NewString(route.StringSuffix, p.Suffix, fold)
	case *matcherv3.StringMatcher_Contains:
		return route.NewString(route.StringContains, p.Contains, fold)
	case *matcherv3.StringMatcher_SafeRegex:
		return Regex(r, fields.At(path, "safe_regex"), p.SafeRegex)
	case *matcherv3.StringMatcher_Custom:
		return route.StringMatcher{} // reported above
	}
	r.Errorf(path, "needs one of exact, prefix, suffix, contains, safe_regex")
	return route.StringMatcher{}
}

// Strings compiles a list of StringMatchers.
func Strings(r *fields.Report, path, field string, list []*matcherv3.StringMatcher) []route.StringMatcher {
	out := make([]route.StringMatcher, 0, len(list))
	for i, m := range list {
		out = append(out, String(r, fields.Index(path, field, i), m))
	}
	return out
}

// Regex compiles a RegexMatcher. The limit on the program's size that
// google_re2 can set is deprecated; route.NewRegex has its own.
func Regex(r *fields.Report, path string, m *matcherv3.RegexMatcher) route.StringMatcher {
	fields.Check(r, path, m, regexFields)
	s, err := route.NewRegex(m.GetRegex())
	if err != nil {
		r.Fail(path, err)
	}
	return s
}

// Header compiles a HeaderMatcher.
func Header(r *fields.Report, path string, m *routev3.HeaderMatcher) route.HeaderMatcher {
	fields.Check(r, path, m, headerFields)
	name := m.GetName()
	if name == "" {
		r.Errorf(fields.At(path, "name"), "a header matcher needs the name of a header")
	}
	o := route.HeaderOptions{Invert: m.GetInvertMatch(), TreatMissingAsEmpty: m.GetTreatMissingHeaderAsEmpty()}
	value := func(kind route.StringKind, v string) route.HeaderMatcher {
		return route.HeaderValueMatches(name, route.NewString(kind, v, false), o)
	}
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case nil:
		return route.HeaderPresent(name, true, o)
	case *routev3.HeaderMatcher_ExactMatch:
		if s.ExactMatch == "" { // the deprecated field's "" means any value
			return value(route.StringAny, "")
		}
		return value(route.StringExact, s.ExactMatch)
	case *routev3.HeaderMatcher_PrefixMatch:
		return value(route.StringPrefix, s.PrefixMatch)
	case *routev3.HeaderMatcher_SuffixMatch:
		return value(route.StringSuffix, s.SuffixMatch)
	case *routev3.HeaderMatcher_ContainsMatch:
		return value(route.StringContains, s.ContainsMatch)
	case *routev3.HeaderMatcher_SafeRegexMatch:
		return route.HeaderValueMatches(name, Regex(r, fields.At(path, "safe_regex_match"), s.SafeRegexMatch), o)
	case *routev3.HeaderMatcher_StringMatch:
		return route.HeaderValueMatches(name, String(r, fields.At(path, "string_match"), s.StringMatch), o)
	case *routev3.HeaderMatcher_PresentMatch:
		return route.HeaderPresent(name, s.PresentMatch, o)
	case *routev3.HeaderMatcher_RangeMatch:
		return route.HeaderInRange(name, s.RangeMatch.GetStart(), s.RangeMatch.GetEnd(), o)
	}
	r.Errorf(path, "header matcher %T is not implemented", m.GetHeaderMatchSpecifier())
	return route.HeaderMatcher{}
}

// Headers compiles a list of HeaderMatchers.
func Headers(r *fields.Report, path, field string, list []*routev3.HeaderMatcher) []route.HeaderMatcher {
	var out []route.HeaderMatcher
	for i, m := range list {
		out = append(out, Header(r, fields.Index(path, field, i), m))
	}
	return out
}

// Path compiles a PathMatcher.
func Path(r *fields.Report, path string, m *matcherv3.PathMatcher) route.StringMatcher {
	fields.Check(r, path, m, pathFields)
	if m.GetPath() == nil {
		r.Errorf(path, "needs path")
		return route.StringMatcher{}
	}
	return String(r, fields.At(path, "path"), m.GetPath())
}

// Route compiles a RouteMatch.
func Route(r *fields.Report, path string, m *routev3.RouteMatch) route.Matcher {
	fields.Check(r, path, m, routeFields)
	fold := m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	var c route.Matcher
	switch s := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		c = route.NewPath(route.PathPrefix, s.Prefix, fold)
	case *routev3.RouteMatch_Path:
		c = route.NewPath(route.PathExact, s.Path, fold)
	case *routev3.RouteMatch_PathSeparatedPrefix:
		if p := s.PathSeparatedPrefix; !strings.HasPrefix(p, "/") || len(p) < 2 || strings.HasSuffix(p, "/") || strings.ContainsAny(p, "?#") {
			r.Errorf(fields.At(path, "path_separated_prefix"), "%q must begin with a slash, must not end with one, and holds neither ? nor #", p)
		}
		c = route.NewPath(route.PathSeparated, s.PathSeparatedPrefix, fold)
	case *routev3.RouteMatch_SafeRegex:
		// As in Envoy, case_sensitive has no effect on it.
		c = route.Matcher{Kind: route.PathRegex, Regex: Regex(r, fields.At(path, "safe_regex"), s.SafeRegex)}
	case *routev3.RouteMatch_ConnectMatcher_:
		c = route.Matcher{Kind: route.PathConnect}
	default:
		if r.Count() == 0 || s == nil {
			r.Errorf(path, "needs one of prefix, path, safe_regex, path_separated_prefix, connect_matcher")
		}
	}
	c.Headers = Headers(r, path, "headers", m.GetHeaders())
	for i, q := range m.GetQueryParameters() {
		c.Query = append(c.Query, query(r, fields.Index(path, "query_parameters", i), q))
	}
	for i, k := range m.GetCookies() {
		p := fields.Index(path, "cookies", i)
		c.Cookies = append(c.Cookies, route.CookieMatcher{Name: k.GetName(), Value: String(r, fields.At(p, "string_match"), k.GetStringMatch()), Invert: k.GetInvertMatch()})
	}
	c.Fraction = Fraction(m.GetRuntimeFraction(), route.Always)
	c.GRPC = m.GetGrpc() != nil
	if t := m.GetTlsContext(); t != nil {
		c.Presented, c.Validated = tri(t.GetPresented().GetValue(), t.GetPresented() != nil), tri(t.GetValidated().GetValue(), t.GetValidated() != nil)
	}
	return c
}

func tri(v, set bool) int8 {
	switch {
	case !set:
		return 0
	case v:
		return 1
	}
	return -1
}

func query(r *fields.Report, path string, m *routev3.QueryParameterMatcher) route.QueryMatcher {
	fields.Check(r, path, m, queryFields)
	q := route.QueryMatcher{Name: m.GetName()}
	switch s := m.GetQueryParameterMatchSpecifier().(type) {
	case *routev3.QueryParameterMatcher_StringMatch:
		q.Value = String(r, fields.At(path, "string_match"), s.StringMatch)
	case *routev3.QueryParameterMatcher_PresentMatch:
		if !s.PresentMatch {
			r.Errorf(fields.At(path, "present_match"), "false is not implemented; only true is")
		}
	}
	return q
}

// Fraction is a RuntimeFractionalPercent in millionths, unset where it is nil.
// There is no runtime: the default value always holds.
func Fraction(f *corev3.RuntimeFractionalPercent, unset uint32) uint32 {
	if f == nil {
		return unset
	}
	return Percent(f.GetDefaultValue(), 0)
}

// Percent is a FractionalPercent in millionths, unset where it is nil.
func Percent(p *typev3.FractionalPercent, unset uint32) uint32 {
	if p == nil {
		return unset
	}
	n := uint64(p.GetNumerator())
	switch p.GetDenominator() {
	case typev3.FractionalPercent_HUNDRED:
		n *= 10_000
	case typev3.FractionalPercent_TEN_THOUSAND:
		n *= 100
	}
	return uint32(min(n, route.Always, math.MaxUint32))
}

// CIDR compiles a CidrRange. Bits of the address below the prefix are ignored, as in Envoy.
func CIDR(r *fields.Report, path string, c *corev3.CidrRange) netip.Prefix {
	a, err := netip.ParseAddr(c.GetAddressPrefix())
	if err != nil || a.Zone() != "" {
		r.Errorf(fields.At(path, "address_prefix"), "%q is not an IP address", c.GetAddressPrefix())
		return netip.Prefix{}
	}
	p, err := a.Prefix(int(c.GetPrefixLen().GetValue()))
	if err != nil {
		r.Errorf(fields.At(path, "prefix_len"), "%d is too long for %s", c.GetPrefixLen().GetValue(), a)
	}
	return p
}

// Data reads a DataSource that must be there and at most limit bytes long.
func Data(d *corev3.DataSource, limit int) ([]byte, error) {
	b, err := readData(d, limit)
	if err == nil && len(b) > limit {
		return nil, fmt.Errorf("has %d bytes; at most %d are allowed", len(b), limit)
	}
	return b, err
}
