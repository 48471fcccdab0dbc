package policy

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/xds/document"
)

// opener reads a file that a document refers to: as it is written there, and its path.
type opener func(written, path string) ([]byte, *document.Problem)

func fromDisk(_, path string) ([]byte, *document.Problem) { return document.ReadFile(path) }

// checker collects the problems of one document.
type checker struct {
	ident
	doc      *document.Document
	dir      string            // that relative paths start from
	open     opener            // of the files it refers to
	refs     []string          // files it refers to
	read     map[string][]byte // their content, by what is written in the document
	problems document.Problems
}

func (c *checker) fail(field, format string, args ...any) {
	if len(c.problems) < 20 {
		c.problems = append(c.problems, c.doc.Problemf(field, format, args...))
	}
}

func (c *checker) oneOf(field, s string, known ...string) {
	switch {
	case slices.Contains(known, s):
	case s == "":
		c.fail(field, "is required; known: %s", strings.Join(known, ", "))
	default:
		c.fail(field, "%q is not known%s", s, document.DidYouMean(s, known))
	}
}

// file reads a file that the document refers to.
func (c *checker) file(field, written string) []byte {
	path := written
	if !filepath.IsAbs(path) {
		path = filepath.Join(c.dir, path)
	}
	c.refs = append(c.refs, path)
	data, p := c.open(written, path)
	if p != nil {
		c.fail(field, "%s %s", p.File, p.Text)
		return nil
	}
	if c.read == nil {
		c.read = map[string][]byte{}
	}
	c.read[written] = data
	return data
}

func (c *checker) regex(field, s string) {
	if len(s) > 1024 {
		c.fail(field, "is longer than 1024")
	} else if _, err := regexp.Compile(s); err != nil {
		c.fail(field, "%q is not a regular expression: %v", s, err)
	}
}

// token checks the name of a header or a cookie (RFC 9110 §5.6.2).
func (c *checker) token(field, s string) {
	if !isToken(s) {
		c.fail(field, "%q is not a name: letters, digits and !#$%%&'*+-.^_`|~ are allowed", s)
	}
}

func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}

func (c *checker) duration(field string, d Duration, least, most time.Duration) {
	if t := time.Duration(d); t < least || t > most {
		c.fail(field, "%s is not between %s and %s", t, least, most)
	}
}

func (c *checker) optional(field string, d *Duration, least, most time.Duration) {
	if d != nil {
		c.duration(field, *d, least, most)
	}
}

const day = 24 * time.Hour

// targets checks the form of targetRefs; whether they exist is the linker's.
func (c *checker) targets(t targets, allowed ...string) {
	if len(t.TargetRefs) == 0 {
		c.fail("spec.targetRefs", "is required: what the policy is for (%s)", strings.Join(allowed, ", "))
	}
	seen := map[TargetRef]bool{}
	for i, r := range t.TargetRefs {
		at := document.Index("spec", "targetRefs", i)
		if r.Kind == "" || !slices.Contains(allowed, r.Kind) {
			c.oneOf(document.At(at, "kind"), r.Kind, allowed...)
			continue
		}
		group := GatewayGroup
		if r.Kind == KindService {
			group = ""
			if r.Group == "core" {
				r.Group = ""
			}
		}
		if r.Group != group {
			c.fail(document.At(at, "group"), "%q is not the group of a %s, which is %q", r.Group, r.Kind, group)
		}
		if r.Name == "" {
			c.fail(document.At(at, "name"), "is required")
		}
		if r.SectionName != "" && r.Kind != KindHTTPRoute {
			c.fail(document.At(at, "sectionName"), "is for a rule of an HTTPRoute; a %s is targeted as a whole", r.Kind)
		}
		if seen[r] {
			c.fail(at, "occurs twice")
		}
		seen[r] = true
	}
}

func checkJWT(c *checker, j *JWT) {
	c.targets(j.targets, KindGateway, KindHTTPRoute, KindService)
	if j.Issuer == "" {
		c.fail("spec.issuer", "is required: the iss of the tokens")
	}
	field := "spec.jwks.inline"
	j.keys = j.JWKS.Inline
	switch {
	case j.JWKS.Inline != "" && j.JWKS.File != "":
		c.fail("spec.jwks", "has both inline and file; use one")
	case j.JWKS.File != "":
		field = "spec.jwks.file"
		n := len(c.problems)
		if j.keys = string(c.file(field, j.JWKS.File)); len(c.problems) > n {
			return
		}
	case j.JWKS.Inline == "":
		c.fail("spec.jwks", "is required: inline or file, a JSON Web Key Set")
		return
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(j.keys), &set); err != nil {
		c.fail(field, "is not a JSON Web Key Set: %v", err)
		return
	}
	if len(set.Keys) == 0 {
		c.fail(field, "has no keys, so that every token would be refused")
	}
	for i, k := range set.Keys {
		if !k.IsPublic() {
			c.fail(field, "key %d (kid %q) is a private or symmetric key; only public keys belong here", i, k.KeyID)
		} else if !k.Valid() {
			c.fail(field, "key %d (kid %q) is not valid", i, k.KeyID)
		}
	}
	if n := len(j.ClaimsToHeaders); n > MaxHeaders {
		c.fail("spec.claimsToHeaders", "has %d entries; at most %d are allowed", n, MaxHeaders)
	}
	for i, h := range j.ClaimsToHeaders {
		at := document.Index("spec", "claimsToHeaders", i)
		c.token(document.At(at, "header"), h.Header)
		if h.Claim == "" {
			c.fail(document.At(at, "claim"), "is required")
		}
	}
	for i, h := range j.FromHeaders {
		c.token(document.At(document.Index("spec", "fromHeaders", i), "name"), h.Name)
	}
	for i, n := range j.FromCookies {
		c.token(document.Index("spec", "fromCookies", i), n)
	}
	for i, n := range j.FromParams {
		if n == "" {
			c.fail(document.Index("spec", "fromParams", i), "is empty")
		}
	}
	c.optional("spec.clockSkew", j.ClockSkew, 0, time.Hour)
}

func checkRateLimit(c *checker, r *RateLimit) {
	c.targets(r.targets, KindGateway, KindHTTPRoute, KindService)
	c.oneOf("spec.unit", r.Unit, "Second", "Minute", "Hour")
	if r.Requests < 1 || r.Requests > 10_000_000 {
		c.fail("spec.requests", "%d is not between 1 and 10000000", r.Requests)
	}
	if r.Burst > 10_000_000 {
		c.fail("spec.burst", "%d is more than 10000000", r.Burst)
	}
}

func checkMutualTLS(c *checker, m *MutualTLS) {
	c.targets(m.targets, KindService)
	if m.Mode != "" || len(m.Ports) == 0 {
		c.oneOf("spec.mode", m.Mode, "STRICT", permissive)
	}
	seen := map[uint32]bool{}
	for i, p := range m.Ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		if p.Port < 1 || p.Port > 65535 {
			c.fail(at+".port", "%d is not a port", p.Port)
		}
		if seen[p.Port] {
			c.fail(at+".port", "%d is there twice", p.Port)
		}
		seen[p.Port] = true
		c.oneOf(at+".mode", p.Mode, "STRICT", permissive)
	}
}

func checkLoadBalancer(c *checker, l *LoadBalancer) {
	c.targets(l.targets, KindService)
	c.oneOf("spec.type", l.Type, "ROUND_ROBIN", "LEAST_REQUEST", "RING_HASH")
	ring := l.Type == "RING_HASH"
	if p := l.SessionPersistence; p != nil {
		at := "spec.sessionPersistence.cookie"
		c.token(at+".name", p.Cookie.Name)
		c.duration(at+".ttl", p.Cookie.TTL, 0, 400*day)
		if p.Cookie.Path != "" && (!strings.HasPrefix(p.Cookie.Path, "/") || strings.ContainsAny(p.Cookie.Path, "; \t\r\n")) {
			c.fail(at+".path", "%q is not the path of a cookie", p.Cookie.Path)
		}
		if !ring {
			c.fail("spec.sessionPersistence", "needs type RING_HASH, not %s", l.Type)
		}
	}
	if l.HashHeader != "" {
		c.token("spec.hashHeader", l.HashHeader)
	}
	switch some := l.SessionPersistence != nil || l.HashHeader != "" || l.HashSourceIP; {
	case some && !ring:
		if l.SessionPersistence == nil {
			c.fail("spec.type", "must be RING_HASH: there is something to hash")
		}
	case ring && !some:
		c.fail("spec.type", "RING_HASH needs one of sessionPersistence, hashHeader, hashSourceIP: without, instances are chosen at random")
	}
}

func checkHealthCheck(c *checker, h *HealthCheck) {
	c.targets(h.targets, KindService)
	if h.Path != "" && (!strings.HasPrefix(h.Path, "/") || strings.ContainsAny(h.Path, "?# \t\r\n")) {
		c.fail("spec.path", "%q is not a path: it begins with /, without a query", h.Path)
	}
	if h.Interval == 0 {
		c.fail("spec.interval", "is required")
	} else {
		c.duration("spec.interval", h.Interval, 50*time.Millisecond, day)
	}
	if h.Timeout == 0 {
		h.Timeout = min(h.Interval, Duration(5*time.Second))
	}
	c.duration("spec.timeout", h.Timeout, 0, day)
	for _, t := range []struct {
		field string
		v     uint32
	}{{"spec.healthyThreshold", h.HealthyThreshold}, {"spec.unhealthyThreshold", h.UnhealthyThreshold}} {
		if t.v > 100 {
			c.fail(t.field, "%d is more than 100", t.v)
		}
	}
	for i, s := range h.Statuses {
		if s < 200 || s > 599 {
			c.fail(document.Index("spec", "statuses", i), "%d is not between 200 and 599", s)
		}
	}
	if h.Path == "" && (len(h.Statuses) > 0 || h.Host != "") {
		c.fail("spec.path", "is required, where host or statuses are given; without, it is checked whether a connection can be made")
	}
}

func checkCORS(c *checker, p *CORS) {
	c.targets(p.targets, KindGateway, KindHTTPRoute)
	c.cors("spec", p)
}

func (c *checker) cors(at string, p *CORS) {
	if len(p.AllowOrigins) == 0 {
		c.fail(document.At(at, "allowOrigins"), "is required")
	}
	for i, o := range p.AllowOrigins {
		if o == "*" {
			if p.AllowCredentials {
				c.fail(document.Index(at, "allowOrigins", i), `"*" with allowCredentials would let every site act for its visitors; name the origins`)
			}
			continue
		}
		scheme, host, ok := strings.Cut(o, "://")
		if !ok || scheme == "" || host == "" || strings.ContainsAny(host, "/?# ") || strings.Count(host, "*") > 1 ||
			strings.Contains(host, "*") && !strings.HasPrefix(host, "*.") {
			c.fail(document.Index(at, "allowOrigins", i), "%q is not an origin: https://example.com, https://*.example.com or *", o)
		}
	}
	for i, h := range p.AllowHeaders {
		c.token(document.Index(at, "allowHeaders", i), h)
	}
	for i, h := range p.ExposeHeaders {
		c.token(document.Index(at, "exposeHeaders", i), h)
	}
	for i, m := range p.AllowMethods {
		c.token(document.Index(at, "allowMethods", i), m)
	}
	c.duration(document.At(at, "maxAge"), p.MaxAge, 0, 365*day)
}

// RetryConditions are what spec.on of a RetryPolicy may name: those of Envoy's retry_on.
var RetryConditions = []string{"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx", "refused-stream",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}

func checkRetry(c *checker, r *Retry) {
	c.targets(r.targets, KindHTTPRoute, KindService)
	if r.Attempts > 10 {
		c.fail("spec.attempts", "%d is more than 10", r.Attempts)
	}
	for i, on := range r.On {
		c.oneOf(document.Index("spec", "on", i), on, RetryConditions...)
	}
	for i, s := range r.Statuses {
		if s < 400 || s > 599 {
			c.fail(document.Index("spec", "statuses", i), "%d is not between 400 and 599", s)
		}
	}
	c.optional("spec.perTryTimeout", r.PerTryTimeout, time.Millisecond, day)
	if b := r.BackOff; b != nil {
		c.duration("spec.backOff.base", b.Base, time.Millisecond, time.Hour)
		if b.Max != 0 {
			c.duration("spec.backOff.max", b.Max, time.Duration(b.Base), time.Hour)
		}
	}
	if p := r.BudgetPercent; p != nil {
		if *p <= 0 || *p > 100 {
			c.fail("spec.budgetPercent", "%v is not above 0 and at most 100", *p)
		}
		for i, t := range r.TargetRefs {
			if t.Kind != KindService {
				c.fail(document.At(document.Index("spec", "targetRefs", i), "kind"), "a policy with budgetPercent can only target Services")
			}
		}
	}
}

func checkTimeout(c *checker, t *Timeout) {
	c.targets(t.targets, KindHTTPRoute, KindService)
	if t.Request == nil && t.Idle == nil && t.Connect == nil {
		c.fail("spec", "needs one of request, idle, connect")
	}
	c.optional("spec.request", t.Request, 0, day)
	c.optional("spec.idle", t.Idle, 0, day)
	c.optional("spec.connect", t.Connect, time.Millisecond, time.Hour)
	if t.Connect != nil {
		for i, r := range t.TargetRefs {
			if r.Kind != KindService {
				c.fail(document.At(document.Index("spec", "targetRefs", i), "kind"), "a policy with connect can only target Services")
			}
		}
	}
}

func checkAuthorization(c *checker, a *Authorization) {
	c.targets(a.targets, KindService)
	c.oneOf("spec.action", a.Action, "ALLOW", "DENY")
	if a.Rules != nil && len(a.Rules) == 0 || a.Rules == nil {
		c.fail("spec.rules", "is required: at least one; an empty rule ({}) is anybody and anything")
	}
	for i, r := range a.Rules {
		at := document.Index("spec", "rules", i)
		for j, f := range r.From {
			c.caller(document.Index(at, "from", j), f)
		}
		for j, t := range r.To {
			c.request(document.Index(at, "to", j), t)
		}
	}
}

func (c *checker) caller(at string, f Caller) {
	set := 0
	for _, s := range []string{f.Service, f.Gateway, f.SPIFFEID} {
		if s != "" {
			set++
		}
	}
	switch {
	case set != 1:
		c.fail(at, "needs exactly one of service, gateway, spiffeID")
	case f.Gateway != "":
		namespace, name, ok := strings.Cut(f.Gateway, "/")
		if !ok {
			namespace, name = "default", f.Gateway
		}
		if spiffeid.ValidatePathSegment(namespace) != nil || spiffeid.ValidatePathSegment(name) != nil {
			c.fail(document.At(at, "gateway"), "%q is not NAME or NAMESPACE/NAME", f.Gateway)
		}
	case f.SPIFFEID != "":
		if _, err := spiffeid.FromString(strings.TrimSuffix(f.SPIFFEID, "/*")); err != nil {
			c.fail(document.At(at, "spiffeID"), "%q: %v", f.SPIFFEID, err)
		}
	default:
		namespace, name, ok := strings.Cut(f.Service, "/")
		if !ok {
			namespace, name = "default", f.Service
		}
		for _, s := range []string{namespace, name} {
			if s != "*" && spiffeid.ValidatePathSegment(s) != nil {
				c.fail(document.At(at, "service"), "%q is not NAME, NAMESPACE/NAME, NAMESPACE/* or *", f.Service)
				break
			}
		}
		if namespace == "*" && name != "*" {
			c.fail(document.At(at, "service"), "%q: the namespace must be named", f.Service)
		}
	}
}

func (c *checker) request(at string, t Request) {
	if len(t.Paths)+len(t.Methods)+len(t.Headers)+len(t.NotPaths) == 0 {
		c.fail(at, "is empty; leave it out where any request is meant")
	}
	for field, paths := range map[string][]string{"paths": t.Paths, "notPaths": t.NotPaths} {
		for i, p := range paths {
			if !strings.HasPrefix(p, "/") || strings.Contains(strings.TrimSuffix(p, "*"), "*") {
				c.fail(document.Index(at, field, i), "%q must begin with /; a * may stand at its end only", p)
			}
		}
	}
	for i, m := range t.Methods {
		if !isToken(m) || strings.ToUpper(m) != m {
			c.fail(document.Index(at, "methods", i), "%q is not a method: they are written in capitals", m)
		}
	}
	for h := range t.Headers {
		c.token(document.At(document.At(at, "headers"), h), h)
	}
}

func checkOutlier(c *checker, o *Outlier) {
	c.targets(o.targets, KindService)
	c.optional("spec.interval", o.Interval, 10*time.Millisecond, day)
	c.optional("spec.baseEjectionTime", o.BaseEjectionTime, 10*time.Millisecond, day)
	if p := o.MaxEjectionPercent; p != nil && *p > 100 {
		c.fail("spec.maxEjectionPercent", "%d is more than 100", *p)
	}
}

func checkCircuitBreaker(c *checker, b *CircuitBreaker) {
	c.targets(b.targets, KindService)
	if b.MaxConnections == nil && b.MaxPendingRequests == nil && b.MaxRequests == nil && b.MaxRetries == nil {
		c.fail("spec", "needs one of maxConnections, maxPendingRequests, maxRequests, maxRetries")
	}
}

func checkSubset(c *checker, s *ServiceSubset) {
	if s.Service == "" {
		c.fail("spec.service", "is required: a service of the same namespace")
	}
	if len(s.Tags)+len(s.Meta) == 0 {
		c.fail("spec", "needs tags or meta: what tells the subset's instances from the others")
	}
}

func checkMesh(c *checker, m *Mesh) {
	if m.TrustDomain != "" {
		if _, err := spiffeid.TrustDomainFromString(m.TrustDomain); err != nil {
			c.fail("spec.trustDomain", "%q: %v", m.TrustDomain, err)
		}
	}
	if m.DefaultAuthorization != "" {
		c.oneOf("spec.defaultAuthorization", m.DefaultAuthorization, "allow", "deny")
	}
	if m.OutboundTraffic != "" {
		c.oneOf("spec.outboundTraffic", m.OutboundTraffic, "allow", "block")
	}
	if t := m.Tracing; t != nil {
		host, port, err := net.SplitHostPort(t.Endpoint)
		n, bad := strconv.ParseUint(port, 10, 16)
		if _, isIP := netip.ParseAddr(host); err != nil || bad != nil || n == 0 || isIP != nil && !isName(strings.ToLower(host)) {
			c.fail("spec.tracing.endpoint", "%q is not HOST:PORT of an OTLP collector (gRPC)", t.Endpoint)
		}
		if s := t.Sampling; s != nil && (*s < 0 || *s > 100) {
			c.fail("spec.tracing.sampling", "%v is not between 0 and 100", *s)
		}
	}
	if l := m.AccessLog; l != nil && l.Stdout == (l.File != "") {
		c.fail("spec.accessLog", "needs exactly one of stdout: true, file")
	}
}

func checkSecret(c *checker, s *Secret) {
	if s.Type != "" && s.Type != "kubernetes.io/tls" {
		c.fail("type", "%q is not known; the secrets here are certificates: kubernetes.io/tls", s.Type)
	}
	ways := 0
	at := [2]string{"stringData", "stringData"}
	if len(s.StringData) > 0 {
		ways++
		s.Certificate, s.Key = []byte(s.StringData["tls.crt"]), []byte(s.StringData["tls.key"])
	}
	if len(s.Data) > 0 {
		ways++
		at = [2]string{"data", "data"}
		s.Certificate, s.Key = s.Data["tls.crt"], s.Data["tls.key"]
	}
	if f := s.Files; f != nil {
		ways++
		at = [2]string{"files", "files"}
		if f.Certificate == "" || f.Key == "" {
			c.fail("files", "needs tls.crt and tls.key: paths, relative to this document")
			return
		}
		n := len(c.problems)
		s.Certificate, s.Key = c.file("files", f.Certificate), c.file("files", f.Key)
		if len(c.problems) > n {
			return
		}
	}
	if ways != 1 {
		c.fail("", "needs exactly one of stringData, data, files, with tls.crt and tls.key")
		return
	}
	if len(s.Certificate) == 0 || len(s.Key) == 0 {
		c.fail(at[0], "needs tls.crt and tls.key")
		return
	}
	// The error names the block that is wrong and never holds what is in it.
	if _, err := tls.X509KeyPair(s.Certificate, s.Key); err != nil {
		c.fail(at[0], "%s", strings.TrimPrefix(err.Error(), "tls: "))
	}
}
