package policy

import (
	"strings"
	"testing"
)

// at is a document of a kind that is attached to a target.
func at(kind, target, rest string) string {
	return "apiVersion: policy.sallyport.io/v1\nkind: " + kind + "\nmetadata: {name: p}\nspec:\n  targetRefs: [" + target + "]\n" + rest
}

const (
	keys = `  issuer: me
  jwks: {inline: '{"keys":[{"kty":"EC","crv":"P-256","kid":"1","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}'}
`
	toDB    = "{kind: Service, name: db}"
	ofRoute = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: db}"
)

// dbRoute is a route within the mesh before the service db.
const dbRoute = `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: db}
spec:
  parentRefs: [{group: "", kind: Service, name: db}]
  rules: [{name: all, backendRefs: [{name: db}]}]
`

func TestWhatATCPServiceCannotEnforceIsAConflict(t *testing.T) {
	const because = "cannot be enforced: service default/db speaks tcp, and a stream of bytes has no requests; declare its protocol as http, http2 or grpc, or remove this"
	for name, c := range map[string]struct {
		text   string
		want   string // place and field of the conflict, "" for none
		closes bool
	}{
		"a token":                        {at("JWTPolicy", toDB, keys), "f.yaml:5:38: spec.targetRefs[0].name: JWTPolicy default/p", true},
		"a token, second of two targets": {at("JWTPolicy", "{kind: Service, name: orders}, "+toDB, keys), "f.yaml:5:69: spec.targetRefs[1].name: JWTPolicy default/p", true},
		"a rate limit":                   {at("RateLimitPolicy", toDB, "  requests: 5\n  unit: Minute\n"), "f.yaml:5:38: spec.targetRefs[0].name: RateLimitPolicy default/p", true},
		"retries":                        {at("RetryPolicy", toDB, "  attempts: 2\n"), "f.yaml:5:38: spec.targetRefs[0].name: RetryPolicy default/p", false},
		"a timeout of requests":          {at("TimeoutPolicy", toDB, "  request: 1s\n"), "f.yaml:6:12: spec.request: TimeoutPolicy default/p", false},
		"an idle timeout of requests":    {at("TimeoutPolicy", toDB, "  idle: 1s\n"), "f.yaml:6:9: spec.idle: TimeoutPolicy default/p", false},
		"a timeout of connecting":        {at("TimeoutPolicy", toDB, "  connect: 1s\n"), "", false},
		"a session cookie":               {at("LoadBalancerPolicy", toDB, "  type: RING_HASH\n  sessionPersistence: {cookie: {name: s}}\n"), "f.yaml:7:23: spec.sessionPersistence: LoadBalancerPolicy default/p", false},
		"a hash of a header":             {at("LoadBalancerPolicy", toDB, "  type: RING_HASH\n  hashHeader: x-user\n"), "f.yaml:7:15: spec.hashHeader: LoadBalancerPolicy default/p", false},
		"a hash of the client's address": {at("LoadBalancerPolicy", toDB, "  type: RING_HASH\n  hashSourceIP: true\n"), "", false},
		"a check of a path":              {at("HealthCheckPolicy", toDB, "  interval: 1s\n  path: /healthz\n"), "f.yaml:7:9: spec.path: HealthCheckPolicy default/p", false},
		"a check of the connection":      {at("HealthCheckPolicy", toDB, "  interval: 1s\n"), "", false},
		"a limit of requests":            {at("CircuitBreakerPolicy", toDB, "  maxRequests: 5\n"), "f.yaml:6:16: spec.maxRequests: CircuitBreakerPolicy default/p", false},
		"a limit of retries":             {at("CircuitBreakerPolicy", toDB, "  maxRetries: 5\n"), "f.yaml:6:15: spec.maxRetries: CircuitBreakerPolicy default/p", false},
		"a limit of connections":         {at("CircuitBreakerPolicy", toDB, "  maxConnections: 5\n"), "", false},
		"who may connect":                {at("AuthorizationPolicy", toDB, "  action: ALLOW\n  rules: [{from: [{service: orders}]}]\n"), "", false},
		"ejection":                       {at("OutlierPolicy", toDB, "  consecutive5xx: 5\n"), "", false},
		"plaintext":                      {at("MutualTLSPolicy", toDB, "  mode: PERMISSIVE\n"), "", false},
		"a route":                        {dbRoute, "f.yaml:5:49: spec.parentRefs[0].name: HTTPRoute default/db", false},
		"a route with a token":           {dbRoute + "---\n" + at("JWTPolicy", ofRoute, keys), "f.yaml:5:49: spec.parentRefs[0].name: HTTPRoute default/db", true},
		"a route, one rule with a limit": {dbRoute + "---\n" + at("RateLimitPolicy", strings.TrimSuffix(ofRoute, "}")+", sectionName: all}", "  requests: 5\n  unit: Minute\n"), "f.yaml:5:49: spec.parentRefs[0].name: HTTPRoute default/db", true},
		"a token of another service":     {at("JWTPolicy", "{kind: Service, name: orders}", keys), "", false},
		"a route of another to this":     {strings.Replace(dbRoute, "kind: Service, name: db", "kind: Service, name: orders", 1), "", false},
		"a token at a service elsewhere": {strings.Replace(at("JWTPolicy", toDB, keys), "name: p", "name: p, namespace: other", 1), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			s, problems := Parse("f.yaml", []byte(c.text))
			if err := problems.Err(); err != nil {
				t.Fatal(err)
			}
			got := s.Conflicts(func(k Key) bool { return k == Key{"default", "db"} })
			switch {
			case c.want == "" && len(got) == 0:
			case c.want == "" || len(got) != 1:
				t.Errorf("%d conflicts: %+v", len(got), got)
			case got[0].Problem.Error() != c.want+" "+because || got[0].Closes != c.closes:
				t.Errorf("got  %s (closes: %v)\nwant %s %s", got[0].Problem, got[0].Closes, c.want, because)
			}
			if other := s.Conflicts(func(Key) bool { return false }); len(other) != 0 {
				t.Errorf("where all speak http: %+v", other)
			}
		})
	}
}

func TestAnAllowanceThatNamesAGatewayAsAServiceIsAConflict(t *testing.T) {
	const rule = "  action: ALLOW\n  rules: [{from: [{service: web}, {service: public}]}]\n"
	for name, c := range map[string]struct{ text, want string }{
		"as a service": {at("AuthorizationPolicy", toDB, rule),
			"f.yaml:7:45: spec.rules[0].from[1].service: does not let in the Gateway default/public, which is no service; write gateway: public (or, for a service of that name, spiffeID)"},
		"with its namespace": {at("AuthorizationPolicy", toDB, strings.Replace(rule, "public", "default/public", 1)),
			"f.yaml:7:45: spec.rules[0].from[1].service: does not let in the Gateway default/public, which is no service; write gateway: default/public (or, for a service of that name, spiffeID)"},
		"as a gateway":         {at("AuthorizationPolicy", toDB, strings.Replace(rule, "service: public", "gateway: public", 1)), ""},
		"of another namespace": {at("AuthorizationPolicy", toDB, strings.Replace(rule, "public", "shop/public", 1)), ""},
		"a denial":             {at("AuthorizationPolicy", toDB, strings.Replace(rule, "ALLOW", "DENY", 1)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, problems := Parse("f.yaml", []byte(c.text+"---\n"+gateway))
			if err := problems.Err(); err != nil {
				t.Fatal(err)
			}
			got := s.Conflicts(func(Key) bool { return false })
			if c.want == "" && len(got) == 0 {
				return
			}
			if len(got) != 1 || got[0].Problem.Error() != c.want || got[0].Closes || got[0].Service != (Key{"default", "db"}) {
				t.Errorf("got  %+v\nwant %s", got, c.want)
			}
		})
	}
}
