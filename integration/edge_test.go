package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sallyport/integration/harness"
)

// front is a mesh with an edge: routes to orders that are open, that ask for a token, and that answer browsers; and a service
// that asks for a token itself. shop is a caller within.
type front struct {
	t       *testing.T
	app     *harness.Backend
	issuer  *harness.Issuer
	control *harness.ControlPlane
	edge    *harness.Proxy
	shop    *harness.Proxy
	addr    string // of the edge
}

func newFront(t *testing.T) *front {
	t.Helper()
	f := &front{t: t, app: harness.NewBackend(t, "orders").HTTP1(), issuer: harness.NewIssuer(t, "https://login.example")}
	public := harness.FreePort(t)
	f.addr = fmt.Sprintf("127.0.0.1:%d", public)
	orders, vault := harness.NewSidecar(t).Service("orders", f.app.Port()), harness.NewSidecar(t).Service("vault", f.app.Port())
	f.control = harness.NewControlPlane(t).Args("--status-listen", "-").Policy("all.yaml", f.policies(public)).Catalog(fmt.Sprintf(`services:
- {name: shop, instances: []}
- name: orders
  instances: [{id: orders-0, address: 127.0.0.1, port: %d, sidecar: {port: %s}}]
- name: vault
  instances: [{id: vault-0, address: 127.0.0.1, port: %d, sidecar: {port: %s}}]
intentions:
- {source: public, destination: orders, action: allow}
- {source: shop, destination: orders, action: allow}
defaultIntention: deny
`, f.app.Port(), port(t, orders.Address("mesh")), f.app.Port(), port(t, vault.Address("mesh")))).Run()
	orders.ControlPlane(f.control.Addr(), f.control.Token("--service", "orders")).Run()
	vault.ControlPlane(f.control.Addr(), f.control.Token("--service", "vault")).Run()
	f.shop = harness.NewSidecar(t).Service("shop", 1).ControlPlane(f.control.Addr(), f.control.Token("--service", "shop")).Upstream("orders").Run()
	f.edge = harness.NewEdge(t).Gateway("public").ControlPlane(f.control.Addr(), f.control.Token("--gateway", "public")).Run()
	harness.Eventually(t, 15*time.Second, "a request through the edge", func() error {
		reply, err := harness.TryGet(f.addr, "/open", "host: shop.example")
		if err == nil && reply.Status() != 200 {
			err = fmt.Errorf("answered %d", reply.Status())
		}
		return err
	})
	f.app.Take()
	return f
}

func (f *front) policies(port int) string {
	token := func(name, target string) string {
		return "---\napiVersion: policy.sallyport.io/v1\nkind: JWTPolicy\nmetadata: {name: " + name + "}\nspec:\n  targetRefs: [" + target + "]\n  issuer: " + f.issuer.Name +
			"\n  jwks: {inline: '" + f.issuer.JWKS() + "'}\n"
	}
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public}
spec:
  gatewayClassName: sallyport
  addresses: [{value: 127.0.0.1}]
  listeners: [{name: http, port: %d, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: public}]
  rules:
  - {name: open, matches: [{path: {value: /open}}], backendRefs: [{name: orders}]}
  - {name: token, matches: [{path: {value: /token}}], backendRefs: [{name: orders}]}
  - {name: cors, matches: [{path: {value: /cors}}], backendRefs: [{name: orders}]}
  - {name: vault, matches: [{path: {value: /vault}}], backendRefs: [{name: vault}]}
---
apiVersion: policy.sallyport.io/v1
kind: CORSPolicy
metadata: {name: app}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: cors}]
  allowOrigins: ["https://app.example"]
  allowMethods: [PUT]
---
# The form in which a gateway is named where services and gateways are told apart.
apiVersion: policy.sallyport.io/v1
kind: AuthorizationPolicy
metadata: {name: vault}
spec: {targetRefs: [{kind: Service, name: vault}], action: ALLOW, rules: [{from: [{gateway: public}]}]}
`, port) + token("token", "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: token}, {group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: cors}") +
		token("vault", "{kind: Service, name: vault}")
}

func TestPreflightsAtAnEdge(t *testing.T) {
	f := newFront(t)
	preflight := []string{"OPTIONS", "origin: https://app.example", "access-control-request-method: PUT"}
	bearer := "authorization: Bearer " + f.issuer.Token(time.Now().Add(time.Hour), nil)
	for _, c := range []struct {
		name, path string
		request    []string // method, then fields
		want       int
		allows     bool // the origin
		reaches    bool // the application
	}{
		{"without a token policy it passes", "/open", preflight, 200, false, true},
		{"under a token policy it needs one", "/token", preflight, 401, false, false},
		{"with a token it passes", "/token", append(preflight, bearer), 200, false, true},
		{"under a CORS policy it is answered", "/cors", preflight, 200, true, false},
		{"of another origin too, and not allowed", "/cors", []string{"OPTIONS", "origin: https://evil.example", "access-control-request-method: PUT"}, 200, false, false},
		{"of another origin with a token, too", "/cors", []string{"OPTIONS", "origin: https://evil.example", "access-control-request-method: PUT", bearer}, 200, false, false},
		{"that is none needs a token", "/cors", []string{"OPTIONS", "origin: https://app.example"}, 401, true, false},
		{"a request under a CORS policy needs a token", "/cors", []string{"PUT", "origin: https://app.example", "content-length: 0"}, 401, true, false},
		{"at a service that asks for a token", "/vault", preflight, 401, false, false},
		{"at that service with a token", "/vault", append(preflight, bearer), 200, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.app.Take()
			text := c.request[0] + " " + c.path + " HTTP/1.1\r\nhost: shop.example\r\n" + strings.Join(c.request[1:], "\r\n") + "\r\n\r\n"
			x := harness.Exchange(t, f.addr, text, 1, "")
			if len(x.Responses) != 1 || x.Responses[0].Status() != c.want {
				t.Fatalf("%v, want %d", x, c.want)
			}
			if got := strings.Contains(string(x.Responses[0].Raw), "access-control-allow-origin: https://app.example"); got != c.allows {
				t.Errorf("the origin is allowed: %t, want %t\n%s", got, c.allows, x.Responses[0].Raw)
			}
			if got := len(f.app.Take()) > 0; got != c.reaches {
				t.Errorf("it reached the application: %t, want %t", got, c.reaches)
			}
		})
	}
}

func TestFieldsOnTheirWayThroughTheMesh(t *testing.T) {
	f := newFront(t)
	for name, addr := range map[string]string{"the edge": f.addr, "a sidecar": f.shop.Addr("orders")} {
		reply := harness.Get(t, addr, "/open", "host: shop.example", "x_forwarded_client_cert: URI=spiffe://sallyport.local/ns/default/svc/root", "x-mine: 1")
		got := f.app.Take()
		if reply.Status() != 200 || len(got) != 1 {
			t.Fatalf("through %s: %d, %d requests", name, reply.Status(), len(got))
		}
		if head := string(got[0].Raw); strings.Contains(head, "svc/root") || !strings.Contains(head, "x-mine: 1") {
			t.Errorf("through %s the application got\n%s", name, head)
		}
	}
	many := func(n int) (fields []string) {
		for i := range n {
			fields = append(fields, fmt.Sprintf("h%d: 1", i))
		}
		return append(fields, "host: shop.example")
	}
	// What the edge lets in, the sidecar takes with what the edge has added.
	for n, want := range map[int]int{90: 200, 97: 200, 120: 431} {
		if reply := harness.Get(t, f.addr, "/open", many(n)...); reply.Status() != want {
			t.Errorf("%d fields: %d, want %d", n, reply.Status(), want)
		}
	}
}

// The token of a service that is called like a gateway makes no edge.
func TestAnEdgeNeedsTheIdentityOfItsGateway(t *testing.T) {
	control := harness.NewControlPlane(t).Args("--status-listen", "-").Catalog("services: []\n").Run()
	p := harness.NewEdge(t).Gateway("public").ControlPlane(control.Addr(), control.Token("--service", "public")).Start()
	if code := p.WaitExit(20 * time.Second); code == 0 {
		t.Error("exit 0")
	}
	for _, want := range []string{"the join token is for spiffe://sallyport.local/ns/default/svc/public, not for spiffe://sallyport.local/ns/default/gw/public",
		"create a token with sallyport token create --gateway public"} {
		if !strings.Contains(p.Log(), want) {
			t.Errorf("it does not say %q", want)
		}
	}
}
