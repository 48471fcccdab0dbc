package policy

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"sallyport/xds/document"
)

// ClassName is the gatewayClassName that is meant for this control plane.
const ClassName = "sallyport"

func checkGateway(c *checker, g *gatewayv1.GatewaySpec) {
	if g.GatewayClassName != ClassName {
		c.fail("spec.gatewayClassName", "%q must be %s", g.GatewayClassName, ClassName)
	}
	for field, set := range map[string]bool{"spec.infrastructure": g.Infrastructure != nil, "spec.tls": g.TLS != nil,
		"spec.allowedListeners": g.AllowedListeners != nil, "spec.defaultScope": g.DefaultScope != ""} {
		if set {
			c.fail(field, "is not implemented; remove it")
		}
	}
	for i, a := range g.Addresses {
		at := document.Index("spec", "addresses", i)
		if a.Type != nil && *a.Type != gatewayv1.IPAddressType {
			c.fail(document.At(at, "type"), "%q is not implemented; use IPAddress", *a.Type)
		}
		if _, err := netip.ParseAddr(a.Value); err != nil {
			c.fail(document.At(at, "value"), "%q is not an IP address", a.Value)
		}
	}
	if len(g.Listeners) == 0 {
		c.fail("spec.listeners", "is required: at least one")
	}
	if len(g.Listeners) > 64 {
		c.fail("spec.listeners", "has %d entries; at most 64 are allowed", len(g.Listeners))
		return
	}
	names := map[gatewayv1.SectionName]bool{}
	ports := map[gatewayv1.PortNumber]gatewayv1.ProtocolType{}
	hosts := map[string]bool{}
	for i := range g.Listeners {
		l := &g.Listeners[i]
		at := document.Index("spec", "listeners", i)
		c.listener(at, l)
		if names[l.Name] {
			c.fail(document.At(at, "name"), "%q occurs twice", l.Name)
		}
		names[l.Name] = true
		if p, ok := ports[l.Port]; ok && p != l.Protocol {
			c.fail(document.At(at, "protocol"), "port %d is used for %s already", l.Port, p)
		}
		ports[l.Port] = l.Protocol
		host := ""
		if l.Hostname != nil {
			host = strings.ToLower(string(*l.Hostname))
		}
		key := host + ":" + strconv.Itoa(int(l.Port))
		if hosts[key] {
			c.fail(document.At(at, "hostname"), "another listener of port %d has the same hostname", l.Port)
		}
		hosts[key] = true
	}
}

func (c *checker) listener(at string, l *gatewayv1.Listener) {
	if !isName(string(l.Name)) {
		c.fail(document.At(at, "name"), "%q is not a name", l.Name)
	}
	if l.Port < 1 || l.Port > 65535 {
		c.fail(document.At(at, "port"), "%d is not a port", l.Port)
	}
	if l.Hostname != nil {
		c.hostname(document.At(at, "hostname"), string(*l.Hostname))
	}
	if p := string(l.Protocol); p == "TLS" || p == "TCP" || p == "UDP" {
		c.fail(document.At(at, "protocol"), "%s is not implemented; HTTP and HTTPS are", p)
	} else {
		c.oneOf(document.At(at, "protocol"), p, "HTTP", "HTTPS")
	}
	tls := document.At(at, "tls")
	switch {
	case l.Protocol == gatewayv1.HTTPProtocolType && l.TLS != nil:
		c.fail(tls, "is set, but the protocol is HTTP; use HTTPS")
	case l.Protocol == gatewayv1.HTTPSProtocolType && l.TLS == nil:
		c.fail(tls, "is required with HTTPS")
	case l.TLS != nil:
		if l.TLS.Mode != nil && *l.TLS.Mode != gatewayv1.TLSModeTerminate {
			c.fail(document.At(tls, "mode"), "%q is not implemented; use Terminate", *l.TLS.Mode)
		}
		if len(l.TLS.Options) > 0 {
			c.fail(document.At(tls, "options"), "is not implemented; remove it")
		}
		if len(l.TLS.CertificateRefs) == 0 {
			c.fail(document.At(tls, "certificateRefs"), "is required: the Secret with the certificate")
		}
		for i, r := range l.TLS.CertificateRefs {
			ref := document.Index(tls, "certificateRefs", i)
			if r.Kind != nil && *r.Kind != KindSecret || r.Group != nil && *r.Group != "" {
				c.fail(document.At(ref, "kind"), "is not implemented; use a Secret")
			}
			c.sameNamespace(ref, r.Namespace)
		}
	}
	if a := l.AllowedRoutes; a != nil {
		if n := a.Namespaces; n != nil {
			if n.Selector != nil {
				c.fail(document.At(at, "allowedRoutes.namespaces.selector"), "is not implemented; use from: All or Same")
			}
			if n.From != nil {
				c.oneOf(document.At(at, "allowedRoutes.namespaces.from"), string(*n.From), "Same", "All")
			}
		}
		for i, k := range a.Kinds {
			if k.Kind != KindHTTPRoute {
				c.fail(document.Index(document.At(at, "allowedRoutes"), "kinds", i), "%q is not implemented; HTTPRoute is", k.Kind)
			}
		}
	}
}

func (c *checker) sameNamespace(at string, n *gatewayv1.Namespace) {
	if n != nil && string(*n) != c.Namespace {
		c.fail(document.At(at, "namespace"), "%q is another namespace, which needs a ReferenceGrant; those are not implemented", *n)
	}
}

// hostname checks a name, or *.name.
func (c *checker) hostname(field, s string) {
	if !isName(strings.TrimPrefix(s, "*.")) || len(s) > 253 {
		c.fail(field, "%q is not a host name: lower-case, without a port; a wildcard is written *.example.com", s)
	} else if _, err := netip.ParseAddr(s); err == nil {
		c.fail(field, "%q is an IP address; a route without hostnames takes any", s)
	}
}

func checkHTTPRoute(c *checker, r *gatewayv1.HTTPRouteSpec) {
	if r.UseDefaultGateways != "" {
		c.fail("spec.useDefaultGateways", "is not implemented; name the Gateway in parentRefs")
	}
	if len(r.ParentRefs) == 0 {
		c.fail("spec.parentRefs", "is required: a Gateway or a Service")
	}
	for i, p := range r.ParentRefs {
		at := document.Index("spec", "parentRefs", i)
		if p.Name == "" {
			c.fail(document.At(at, "name"), "is required")
		}
		if isServiceRef(p.Group, p.Kind) {
			c.sameNamespace(at, p.Namespace)
			continue
		}
		if p.Kind != nil && *p.Kind == KindService {
			c.fail(document.At(at, "group"), `is "" for a Service`)
		} else if p.Kind != nil && *p.Kind != KindGateway {
			c.oneOf(document.At(at, "kind"), string(*p.Kind), KindGateway, KindService)
		} else if p.Group != nil && *p.Group != GatewayGroup {
			c.fail(document.At(at, "group"), "%q is not the group of a Gateway, which is %s", *p.Group, GatewayGroup)
		}
	}
	for i, h := range r.Hostnames {
		c.hostname(document.Index("spec", "hostnames", i), string(h))
	}
	if len(r.Rules) == 0 {
		c.fail("spec.rules", "is required: at least one")
	}
	names := map[gatewayv1.SectionName]bool{}
	for i := range r.Rules {
		at := document.Index("spec", "rules", i)
		if n := r.Rules[i].Name; n != nil {
			if names[*n] {
				c.fail(document.At(at, "name"), "%q occurs twice", *n)
			}
			names[*n] = true
		}
		c.rule(at, &r.Rules[i])
	}
}

func (c *checker) rule(at string, r *gatewayv1.HTTPRouteRule) {
	prefixOnly := len(r.Matches) > 0 // the default match is the prefix /
	for i := range r.Matches {
		m := &r.Matches[i]
		c.routeMatch(document.Index(at, "matches", i), m)
		if m.Path != nil && m.Path.Type != nil && *m.Path.Type != gatewayv1.PathMatchPathPrefix {
			prefixOnly = false
		}
	}
	redirect := c.filters(at, r.Filters, prefixOnly || len(r.Matches) == 0, false)
	if redirect && len(r.BackendRefs) > 0 {
		c.fail(document.At(at, "backendRefs"), "cannot be together with a RequestRedirect: nothing would get there")
	}
	for i := range r.BackendRefs {
		c.backend(document.Index(at, "backendRefs", i), &r.BackendRefs[i])
	}
	if r.SessionPersistence != nil {
		c.fail(document.At(at, "sessionPersistence"), "is not implemented here; attach a LoadBalancerPolicy to the Service")
	}
	if t := r.Timeouts; t != nil {
		request := c.gatewayDuration(document.At(at, "timeouts.request"), t.Request)
		backend := c.gatewayDuration(document.At(at, "timeouts.backendRequest"), t.BackendRequest)
		if request > 0 && backend > request {
			c.fail(document.At(at, "timeouts.backendRequest"), "%s is longer than the whole request, %s", backend, request)
		}
	}
	if t := r.Retry; t != nil {
		c.gatewayDuration(document.At(at, "retry.backoff"), t.Backoff)
		if t.Attempts != nil && (*t.Attempts < 0 || *t.Attempts > 10) {
			c.fail(document.At(at, "retry.attempts"), "%d is not between 0 and 10", *t.Attempts)
		}
		for i, s := range t.Codes {
			if s < 400 || s > 599 {
				c.fail(document.Index(document.At(at, "retry"), "codes", i), "%d is not between 400 and 599", s)
			}
		}
	}
}

// gatewayDuration checks GEP-2257's form, which is a part of Go's.
func (c *checker) gatewayDuration(field string, d *gatewayv1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	v, err := time.ParseDuration(string(*d))
	if err != nil || strings.ContainsAny(string(*d), ".-+µu") || strings.Contains(string(*d), "ns") {
		c.fail(field, "%q is not a duration; write 250ms, 10s or 1h30m", *d)
	} else if v > day {
		c.fail(field, "%s is more than a day", v)
	}
	return v
}

func (c *checker) routeMatch(at string, m *gatewayv1.HTTPRouteMatch) {
	if p := m.Path; p != nil {
		kind := gatewayv1.PathMatchPathPrefix
		if p.Type != nil {
			kind = *p.Type
		}
		c.oneOf(document.At(at, "path.type"), string(kind), "Exact", "PathPrefix", "RegularExpression")
		value := "/"
		if p.Value != nil {
			value = *p.Value
		}
		field := document.At(at, "path.value")
		switch {
		case kind == gatewayv1.PathMatchRegularExpression:
			c.regex(field, value)
		case !strings.HasPrefix(value, "/") || strings.ContainsAny(value, "?# ") || strings.Contains(value, "//"):
			c.fail(field, "%q is not a path: it begins with /, without // and without a query", value)
		case len(value) > 1024:
			c.fail(field, "is longer than 1024")
		}
	}
	for i, h := range m.Headers {
		f := document.Index(at, "headers", i)
		c.token(document.At(f, "name"), string(h.Name))
		if h.Type != nil {
			c.oneOf(document.At(f, "type"), string(*h.Type), "Exact", "RegularExpression")
			if *h.Type == gatewayv1.HeaderMatchRegularExpression {
				c.regex(document.At(f, "value"), h.Value)
			}
		}
	}
	for i, q := range m.QueryParams {
		f := document.Index(at, "queryParams", i)
		if q.Name == "" {
			c.fail(document.At(f, "name"), "is required")
		}
		if q.Type != nil {
			c.oneOf(document.At(f, "type"), string(*q.Type), "Exact", "RegularExpression")
			if *q.Type == gatewayv1.QueryParamMatchRegularExpression {
				c.regex(document.At(f, "value"), q.Value)
			}
		}
	}
	if m.Method != nil {
		c.oneOf(document.At(at, "method"), string(*m.Method), "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
	}
}

func (c *checker) backend(at string, b *gatewayv1.HTTPBackendRef) {
	kind, group := KindService, ""
	if b.Kind != nil {
		kind = string(*b.Kind)
	}
	if b.Group != nil {
		group = string(*b.Group)
	}
	switch {
	case kind == KindService && (group == "" || group == "core"), kind == KindServiceSubset && group == Group:
	case kind == KindServiceSubset:
		c.fail(document.At(at, "group"), "%q is not the group of a ServiceSubset, which is %s", group, Group)
	default:
		c.oneOf(document.At(at, "kind"), kind, KindService, KindServiceSubset)
	}
	if b.Name == "" {
		c.fail(document.At(at, "name"), "is required")
	}
	c.sameNamespace(at, b.Namespace)
	if b.Weight != nil && (*b.Weight < 0 || *b.Weight > 1_000_000) {
		c.fail(document.At(at, "weight"), "%d is not between 0 and 1000000", *b.Weight)
	}
	c.filters(at, b.Filters, false, true)
}

// filters checks the filters of a rule or of a backend, and says whether there is a redirect.
func (c *checker) filters(at string, filters []gatewayv1.HTTPRouteFilter, prefix, backend bool) (redirect bool) {
	seen := map[gatewayv1.HTTPRouteFilterType]bool{}
	for i := range filters {
		f := &filters[i]
		ref := document.Index(at, "filters", i)
		if seen[f.Type] {
			c.fail(document.At(ref, "type"), "%s occurs twice", f.Type)
		}
		seen[f.Type] = true
		if set := settingsOf(f); len(set) != 1 || !strings.EqualFold(set[0], string(f.Type)) {
			n := len(c.problems)
			c.oneOf(document.At(ref, "type"), string(f.Type), "RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "CORS")
			if len(c.problems) == n {
				c.fail(ref, "needs the settings of %s, and no others", f.Type)
			}
			continue
		}
		switch f.Type {
		case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
			c.headers(document.At(ref, "requestHeaderModifier"), f.RequestHeaderModifier)
		case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
			c.headers(document.At(ref, "responseHeaderModifier"), f.ResponseHeaderModifier)
		case gatewayv1.HTTPRouteFilterRequestRedirect, gatewayv1.HTTPRouteFilterURLRewrite, gatewayv1.HTTPRouteFilterCORS:
			if backend {
				c.fail(document.At(ref, "type"), "%s is for a rule, not for one of its backends", f.Type)
				continue
			}
			redirect = c.ruleFilter(ref, f, prefix) || redirect
		default:
			c.fail(document.At(ref, "type"), "%s is not implemented; RequestHeaderModifier, ResponseHeaderModifier, RequestRedirect, URLRewrite, CORS are", f.Type)
		}
	}
	if redirect && seen[gatewayv1.HTTPRouteFilterURLRewrite] {
		c.fail(document.At(at, "filters"), "RequestRedirect and URLRewrite exclude each other")
	}
	return redirect
}

func settingsOf(f *gatewayv1.HTTPRouteFilter) (out []string) {
	for _, s := range []struct {
		name string
		set  bool
	}{{"requestHeaderModifier", f.RequestHeaderModifier != nil}, {"responseHeaderModifier", f.ResponseHeaderModifier != nil},
		{"requestRedirect", f.RequestRedirect != nil}, {"urlRewrite", f.URLRewrite != nil}, {"cors", f.CORS != nil},
		{"requestMirror", f.RequestMirror != nil}, {"externalAuth", f.ExternalAuth != nil}, {"extensionRef", f.ExtensionRef != nil}} {
		if s.set {
			out = append(out, s.name)
		}
	}
	return out
}

func (c *checker) ruleFilter(ref string, f *gatewayv1.HTTPRouteFilter, prefix bool) (redirect bool) {
	switch f.Type {
	case gatewayv1.HTTPRouteFilterRequestRedirect:
		r := f.RequestRedirect
		at := document.At(ref, "requestRedirect")
		if r.Scheme != nil {
			c.oneOf(document.At(at, "scheme"), *r.Scheme, "http", "https")
		}
		if r.Hostname != nil {
			c.hostname(document.At(at, "hostname"), string(*r.Hostname))
		}
		if r.Port != nil && (*r.Port < 1 || *r.Port > 65535) {
			c.fail(document.At(at, "port"), "%d is not a port", *r.Port)
		}
		if s := r.StatusCode; s != nil && *s != 301 && *s != 302 && *s != 303 && *s != 307 && *s != 308 {
			c.fail(document.At(at, "statusCode"), "%d is not 301, 302, 303, 307 or 308", *s)
		}
		c.modifier(document.At(at, "path"), r.Path, prefix)
		return true
	case gatewayv1.HTTPRouteFilterURLRewrite:
		at := document.At(ref, "urlRewrite")
		if h := f.URLRewrite.Hostname; h != nil {
			c.hostname(document.At(at, "hostname"), string(*h))
		}
		c.modifier(document.At(at, "path"), f.URLRewrite.Path, prefix)
	case gatewayv1.HTTPRouteFilterCORS:
		p := CORSOf(f.CORS)
		c.cors(document.At(ref, "cors"), &p)
	}
	return false
}

// CORSOf is Gateway API's CORS filter as a policy.
func CORSOf(f *gatewayv1.HTTPCORSFilter) CORS {
	p := CORS{AllowCredentials: f.AllowCredentials != nil && *f.AllowCredentials, MaxAge: Duration(time.Duration(f.MaxAge) * time.Second)}
	for _, o := range f.AllowOrigins {
		p.AllowOrigins = append(p.AllowOrigins, string(o))
	}
	for _, m := range f.AllowMethods {
		p.AllowMethods = append(p.AllowMethods, string(m))
	}
	for _, h := range f.AllowHeaders {
		p.AllowHeaders = append(p.AllowHeaders, string(h))
	}
	for _, h := range f.ExposeHeaders {
		p.ExposeHeaders = append(p.ExposeHeaders, string(h))
	}
	return p
}

func (c *checker) modifier(at string, m *gatewayv1.HTTPPathModifier, prefix bool) {
	if m == nil {
		return
	}
	c.oneOf(document.At(at, "type"), string(m.Type), "ReplaceFullPath", "ReplacePrefixMatch")
	value, field := m.ReplaceFullPath, "replaceFullPath"
	if m.Type == gatewayv1.PrefixMatchHTTPPathModifier {
		value, field = m.ReplacePrefixMatch, "replacePrefixMatch"
		if !prefix {
			c.fail(document.At(at, "type"), "ReplacePrefixMatch needs matches by PathPrefix only")
		}
	}
	switch {
	case value == nil:
		c.fail(document.At(at, field), "is required with type %s", m.Type)
	case !strings.HasPrefix(*value, "/") && *value != "" || strings.ContainsAny(*value, "?# \t\r\n"):
		c.fail(document.At(at, field), "%q is not a path: it begins with /, without a query", *value)
	}
	if m.ReplaceFullPath != nil && m.ReplacePrefixMatch != nil {
		c.fail(at, "has both replaceFullPath and replacePrefixMatch")
	}
}

// reserved are headers that a route cannot change: the proxy's own, and those that frame the message.
var reserved = map[string]bool{"host": true, "content-length": true, "transfer-encoding": true, "connection": true, "te": true, "upgrade": true}

// MaxHeaders bounds the fields that one list of a filter, or the claims of a token, add to a message: the hop that comes
// next takes so many more than this one (package build). It is Gateway API's own bound (HTTPHeaderFilter, maxItems).
const MaxHeaders = 16

func (c *checker) headers(at string, h *gatewayv1.HTTPHeaderFilter) {
	for _, l := range []struct {
		field string
		n     int
	}{{"set", len(h.Set)}, {"add", len(h.Add)}, {"remove", len(h.Remove)}} {
		if l.n > MaxHeaders {
			c.fail(document.At(at, l.field), "has %d entries; at most %d are allowed", l.n, MaxHeaders)
		}
	}
	name := func(field, n string) {
		c.token(field, n)
		if reserved[strings.ToLower(n)] || strings.HasPrefix(n, ":") {
			c.fail(field, "%q cannot be changed; URLRewrite changes the host", n)
		}
	}
	for list, headers := range map[string][]gatewayv1.HTTPHeader{"set": h.Set, "add": h.Add} {
		for i, v := range headers {
			name(document.At(document.Index(at, list, i), "name"), string(v.Name))
			if strings.ContainsAny(v.Value, "\r\n\x00") {
				c.fail(document.At(document.Index(at, list, i), "value"), "holds a control character")
			}
		}
	}
	for i, n := range h.Remove {
		name(document.Index(at, "remove", i), n)
	}
}
