package build

import (
	"regexp"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

const (
	requestTimeout  = 15 * time.Second
	defaultRetries  = 2
	defaultRetryOn  = "connect-failure,refused-stream,reset-before-request" // nothing of the request was seen by the application
	hostAttempts    = 3
	gatewayRetryOn  = "connect-failure,refused-stream,reset" // HTTPRouteRetry: connection errors count as well as its codes
	gatewayAttempts = 1
)

// rewrite is Gateway API's URLRewrite.
func rewrite(a *routev3.RouteAction, f *gatewayv1.HTTPURLRewriteFilter, m *gatewayv1.HTTPRouteMatch) {
	if f.Hostname != nil {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: string(*f.Hostname)}
	}
	if f.Path == nil {
		return
	}
	if f.Path.Type == gatewayv1.FullPathHTTPPathModifier {
		a.RegexRewrite = substitute("^.*$", fullPath(*f.Path.ReplaceFullPath))
		return
	}
	a.PrefixRewrite, a.RegexRewrite = prefixRewrite(*f.Path.ReplacePrefixMatch, m)
}

func fullPath(p string) string {
	if p == "" {
		return "/"
	}
	return p
}

func substitute(pattern, by string) *matcherv3.RegexMatchAndSubstitute {
	return &matcherv3.RegexMatchAndSubstitute{Pattern: regex(pattern), Substitution: strings.ReplaceAll(by, `\`, `\\`)}
}

// prefixRewrite replaces a prefix of path elements. Envoy replaces characters: where one of both, what is matched and what
// replaces it, ends in a slash and the other does not, elements would be glued together or a slash doubled
// (HTTPPathModifier.replacePrefixMatch has the table).
func prefixRewrite(to string, m *gatewayv1.HTTPRouteMatch) (prefix string, re *matcherv3.RegexMatchAndSubstitute) {
	_, from := pathOf(m)
	from, to = strings.TrimRight(from, "/"), strings.TrimRight(to, "/")
	switch {
	case from == "" && to == "":
		return "", nil // from everything to everything
	case from == "":
		return to + "/", nil
	case to == "":
		return "", substitute("^"+regexp.QuoteMeta(from)+"/*", "/")
	}
	return to, nil
}

// redirect is Gateway API's RequestRedirect.
func redirect(f *gatewayv1.HTTPRequestRedirectFilter, m *gatewayv1.HTTPRouteMatch) *routev3.RedirectAction {
	out := &routev3.RedirectAction{ResponseCode: routev3.RedirectAction_FOUND}
	if f.StatusCode != nil {
		switch *f.StatusCode {
		case 301:
			out.ResponseCode = routev3.RedirectAction_MOVED_PERMANENTLY
		case 303:
			out.ResponseCode = routev3.RedirectAction_SEE_OTHER
		case 307:
			out.ResponseCode = routev3.RedirectAction_TEMPORARY_REDIRECT
		case 308:
			out.ResponseCode = routev3.RedirectAction_PERMANENT_REDIRECT
		}
	}
	if f.Hostname != nil {
		out.HostRedirect = string(*f.Hostname)
	}
	if f.Scheme != nil {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: *f.Scheme}
		// HTTPRequestRedirectFilter.port: with a scheme and no port it is the scheme's own.
		out.PortRedirect = map[string]uint32{"http": 80, "https": 443}[*f.Scheme]
	}
	if f.Port != nil {
		out.PortRedirect = uint32(*f.Port)
	}
	if p := f.Path; p != nil {
		if p.Type == gatewayv1.FullPathHTTPPathModifier {
			out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: fullPath(*p.ReplaceFullPath)}
		} else if prefix, re := prefixRewrite(*p.ReplacePrefixMatch, m); re != nil {
			out.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: re}
		} else if prefix != "" {
			out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: prefix}
		}
	}
	return out
}

// behavior is what a route is bound by besides where it leads.
type behavior struct {
	timeout  *policy.Timeout
	retry    *policy.Retry
	rule     *gatewayv1.HTTPRouteRule
	backends []policy.Key
}

func (b *builder) behavior(a *routev3.RouteAction, r *policy.HTTPRoute, rule *gatewayv1.HTTPRouteRule) {
	h := behavior{rule: rule}
	targets := routeTargets(r, rule)
	for i := range rule.BackendRefs {
		if w := rule.BackendRefs[i].Weight; w != nil && *w == 0 {
			continue
		}
		h.backends = append(h.backends, b.Policy.BackendOf(r, rule.BackendRefs[i].BackendObjectReference).Service)
	}
	h.timeout, h.retry = b.Policy.Timeout.Find(targets...), b.Policy.Retry.Find(targets...)
	b.behaviorOf(a, h)
}

// behaviorOf sets timeouts, retries and what requests are spread by. What the route does not say, its backends do: of
// several, the first that says something.
func (b *builder) behaviorOf(a *routev3.RouteAction, h behavior) {
	rpc := false
	cookies := map[string]bool{}
	for _, k := range h.backends {
		t := policy.ServiceTarget(k.Namespace, k.Name)
		if h.timeout == nil {
			if p := b.Policy.Timeout.Find(t); p != nil && (p.Request != nil || p.Idle != nil) {
				h.timeout = p
			}
		}
		if h.retry == nil {
			h.retry = b.Policy.Retry.Find(t)
		}
		rpc = rpc || b.Catalog.Service(catalog.Name{Namespace: k.Namespace, Name: k.Name}).Protocol == catalog.GRPC
		for _, p := range hashes(b.Policy.LoadBalancer.Find(t)) {
			if key := p.String(); !cookies[key] {
				cookies[key] = true
				a.HashPolicy = append(a.HashPolicy, p)
			}
		}
	}
	a.Timeout = durationpb.New(requestTimeout)
	if rpc {
		// A call says itself how long it may take (grpc-timeout); a stream has no end.
		a.Timeout = durationpb.New(0)
		a.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{GrpcTimeoutHeaderMax: durationpb.New(0)}
	}
	if t := h.timeout; t != nil {
		if t.Request != nil {
			a.Timeout = seconds(*t.Request)
		}
		a.IdleTimeout = durationOf(t.Idle)
	}
	a.RetryPolicy = retryPolicy(h.retry)
	if h.rule == nil {
		return
	}
	if r := h.rule.Retry; r != nil {
		a.RetryPolicy = gatewayRetry(r)
	}
	if t := h.rule.Timeouts; t != nil {
		if t.Request != nil {
			a.Timeout = gatewayDuration(t.Request)
		}
		if t.BackendRequest != nil && a.RetryPolicy != nil {
			a.RetryPolicy.PerTryTimeout = gatewayDuration(t.BackendRequest)
		}
	}
}

// hashes are what requests to a service are spread by, if by anything.
func hashes(l *policy.LoadBalancer) (out []*routev3.RouteAction_HashPolicy) {
	if l == nil {
		return nil
	}
	if s := l.SessionPersistence; s != nil {
		path := s.Cookie.Path
		if path == "" {
			path = "/"
		}
		out = append(out, &routev3.RouteAction_HashPolicy{Terminal: true, PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{
			Cookie: &routev3.RouteAction_HashPolicy_Cookie{Name: s.Cookie.Name, Ttl: seconds(s.Cookie.TTL), Path: path}}})
	}
	if l.HashHeader != "" {
		out = append(out, &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
			Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: strings.ToLower(l.HashHeader)}}})
	}
	if l.HashSourceIP {
		out = append(out, &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true}}})
	}
	return out
}

// retryPolicy is a RetryPolicy, or what holds without one: what surely never reached an application is tried elsewhere.
func retryPolicy(p *policy.Retry) *routev3.RetryPolicy {
	out := &routev3.RetryPolicy{RetryOn: defaultRetryOn, NumRetries: number(defaultRetries), RetryHostPredicate: elsewhere(), HostSelectionRetryMaxAttempts: hostAttempts}
	if p == nil {
		return out
	}
	if p.Attempts == 0 {
		return nil
	}
	out.NumRetries = number(p.Attempts)
	if len(p.On) > 0 || len(p.Statuses) > 0 {
		on := p.On
		if len(p.Statuses) > 0 {
			on = append(on[:len(on):len(on)], "retriable-status-codes")
		}
		out.RetryOn = strings.Join(on, ",")
		out.RetriableStatusCodes = p.Statuses
	}
	out.PerTryTimeout = durationOf(p.PerTryTimeout)
	if o := p.BackOff; o != nil {
		out.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: seconds(o.Base)}
		if o.Max != 0 {
			out.RetryBackOff.MaxInterval = seconds(o.Max)
		}
	}
	return out
}

func gatewayRetry(r *gatewayv1.HTTPRouteRetry) *routev3.RetryPolicy {
	out := &routev3.RetryPolicy{RetryOn: gatewayRetryOn, NumRetries: number(gatewayAttempts), RetryHostPredicate: elsewhere(), HostSelectionRetryMaxAttempts: hostAttempts}
	if r.Attempts != nil {
		if *r.Attempts == 0 {
			return nil
		}
		out.NumRetries = number(uint32(*r.Attempts))
	}
	if len(r.Codes) > 0 {
		out.RetryOn += ",retriable-status-codes"
		for _, c := range r.Codes {
			out.RetriableStatusCodes = append(out.RetriableStatusCodes, uint32(c))
		}
	}
	if r.Backoff != nil {
		out.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: gatewayDuration(r.Backoff)}
	}
	return out
}

// elsewhere has a retry go to another instance. The message is empty, so that there is nothing to marshal.
func elsewhere() []*routev3.RetryPolicy_RetryHostPredicate {
	return []*routev3.RetryPolicy_RetryHostPredicate{{Name: "envoy.retry_host_predicates.previous_hosts",
		ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: &anypb.Any{
			TypeUrl: "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}}}
}

// gatewayDuration is a duration that was checked when it was read.
func gatewayDuration(d *gatewayv1.Duration) *durationpb.Duration {
	v, err := time.ParseDuration(string(*d))
	if err != nil {
		return durationpb.New(requestTimeout)
	}
	return durationpb.New(v)
}
