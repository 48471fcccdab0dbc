package build

import (
	"fmt"
	"slices"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	dnsfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/dns_filter/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

func transparentOf(t *testing.T, catalogText, policies string) (*Resources, *builder) {
	t.Helper()
	c, problems := catalog.ParseFile("c.yaml", []byte(catalogText))
	if problems.Err() != nil {
		t.Fatal(problems)
	}
	set, problems := policy.Parse("p.yaml", []byte(policies))
	if problems.Err() != nil {
		t.Fatal(problems)
	}
	in := Input{Catalog: c, Policy: set, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org")}
	p := Proxy{Kind: Sidecar, Namespace: "default", Service: "storefront", Port: 8000, Transparent: &Transparent{Outbound: 15001, Inbound: 15006, DNS: 15053}}
	r, err := Build(in, p)
	if err != nil {
		t.Fatal(err)
	}
	return r, &builder{Input: in, proxy: p}
}

func namesOfDNS(t *testing.T, r *Resources) (out []string) {
	t.Helper()
	for _, l := range r.Listeners {
		if l.Name != "dns" {
			continue
		}
		var f dnsfilterv3.DnsFilterConfig
		if err := l.ListenerFilters[0].GetTypedConfig().UnmarshalTo(&f); err != nil {
			t.Fatal(err)
		}
		for _, d := range f.GetServerConfig().GetInlineDnsTable().GetVirtualDomains() {
			out = append(out, d.GetName())
		}
		return out
	}
	t.Fatal("there is no resolver")
	return nil
}

// unique fails where something stands twice: Envoy refuses such a table whole.
func unique(t *testing.T, what string, list []string) {
	t.Helper()
	sorted := slices.Sorted(slices.Values(list))
	if twice := len(sorted) - len(slices.Compact(sorted)); twice > 0 {
		t.Errorf("%s: %d stand twice in %q", what, twice, list)
	}
}

func TestNamesThatMeetAreOfOneService(t *testing.T) {
	text := "services:\n"
	for _, n := range []string{"orders", "orders.default", "orders.mesh", "orders.default.mesh", "Orders", "orders.svc", "orders.service.consul"} {
		text += fmt.Sprintf("- {name: %s, instances: [{id: %s, address: 10.0.0.2, port: 8080, sidecar: {port: 15006}}]}\n", n, n)
	}
	r, b := transparentOf(t, text, "")
	unique(t, "names", namesOfDNS(t, r))
	for _, rc := range r.Routes {
		var all []string
		for _, h := range rc.VirtualHosts {
			if len(h.Domains) == 0 {
				t.Errorf("%s: %s has no domain", rc.Name, h.Name)
			}
			all = append(all, h.Domains...)
		}
		unique(t, rc.Name, all)
	}
	domains := b.domains(b.Catalog.Names())
	if got := domains[catalog.Name{Namespace: "default", Name: "orders"}]; !slices.Contains(got, "orders.default.mesh") {
		t.Errorf("orders has lost its name in full: %q", got)
	}
}

func TestWhatHasNoSidecarKeepsItsNames(t *testing.T) {
	r, _ := transparentOf(t, `services:
- {name: vault, instances: [{id: v, address: 10.0.0.5, port: 8200}]}
- {name: db, protocol: tcp, instances: [{id: d, address: 10.0.0.6, port: 5432}]}
- {name: orders, instances: [{id: o, address: 10.0.0.2, port: 8080, sidecar: {port: 15006}}, {id: old, address: 10.0.0.3, port: 8080}]}
- {name: later}
`, "")
	names := namesOfDNS(t, r)
	for name, want := range map[string]bool{"vault": false, "vault.service.consul": false, "db.default.mesh": false, "orders": true, "later": true} {
		if slices.Contains(names, name) != want {
			t.Errorf("%s: answered by the sidecar %t, want %t", name, !want, want)
		}
	}
	for _, rc := range r.Routes {
		for _, h := range rc.VirtualHosts {
			if h.Name == "default/vault" {
				t.Errorf("%s leads %q to a service without sidecars", rc.Name, h.Domains)
			}
		}
	}
	for _, l := range r.Listeners {
		if l.Address.GetSocketAddress().GetPortValue() == 8200 || l.Address.GetSocketAddress().GetPortValue() == 5432 {
			t.Errorf("listener %s", l.Name)
		}
	}
}

func TestThereIsAResolverWithoutServices(t *testing.T) {
	r, _ := transparentOf(t, "services: []\n", "")
	if got := namesOfDNS(t, r); !slices.Equal(got, []string{nobody}) {
		t.Errorf("%q", got)
	}
}

// TestNobodyTakesAVirtualAddress: default/a6640de6 was searched for, its hash has the same address as that of orders.
func TestNobodyTakesAVirtualAddress(t *testing.T) {
	orders, other := catalog.Name{Namespace: "default", Name: "orders"}, catalog.Name{Namespace: "default", Name: "a6640de6"}
	alone, chosen := virtualAddresses([]catalog.Name{orders})[orders], virtualAddresses([]catalog.Name{other})[other]
	if alone.v4 != chosen.v4 {
		t.Fatalf("the two do not meet: %v, %v", alone, chosen)
	}
	both := virtualAddresses([]catalog.Name{other, orders})
	if a, b := both[other], both[orders]; a.v4 == alone.v4 || b.v4 == alone.v4 || a.v4 == b.v4 || a.v6 == b.v6 {
		t.Errorf("alone: %v, together: %v", alone, both)
	}
	var names []catalog.Name
	for i := range 50_000 {
		names = append(names, catalog.Name{Namespace: "default", Name: fmt.Sprint("s", i)})
	}
	seen := map[string]bool{}
	for _, v := range virtualAddresses(names) {
		last := v.v4.As4()[3]
		if seen[v.v4.String()] || last == 0 || last == 255 || !virtualPrefix4.Contains(v.v4) || !virtualPrefix6.Contains(v.v6) {
			t.Fatalf("%v", v)
		}
		seen[v.v4.String()] = true
	}
}

const ordersAndStorefront = `services:
- {name: orders, instances: [{id: o, address: 10.0.0.2, port: 8080, sidecar: {port: 15006}}]}
- {name: storefront, instances: [{id: s, address: 10.0.0.1, port: 8000, sidecar: {port: 15006}}]}
`

const jwks = `inline: '{"keys":[{"kty":"EC","crv":"P-256","kid":"1","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}'`

// TestARouteAsksForItsTokenHoweverItIsReached: by name, by address, and by a host that is sent to another address.
func TestARouteAsksForItsTokenHoweverItIsReached(t *testing.T) {
	r, _ := transparentOf(t, ordersAndStorefront, `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: to-orders}
spec:
  parentRefs: [{group: "", kind: Service, name: orders}]
  rules: [{backendRefs: [{name: orders, port: 8080}]}]
---
apiVersion: policy.sallyport.io/v1
kind: JWTPolicy
metadata: {name: users}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: to-orders}]
  issuer: https://issuer.example.org
  jwks:
    `+jwks+"\n")
	asked := 0
	for _, rc := range r.Routes {
		for _, h := range rc.VirtualHosts {
			for _, route := range h.Routes {
				if route.TypedPerFilterConfig[jwtFilter] != nil {
					asked++
					if !hasFilter(t, r, rc.Name, jwtFilter) {
						t.Errorf("%s: route %s asks for a token, and no filter looks for one", rc.Name, route.Name)
					}
				}
			}
		}
	}
	if asked != 2 {
		t.Errorf("%d routes ask for a token", asked)
	}
}

// hasFilter says whether each connection manager with those routes has a filter.
func hasFilter(t *testing.T, r *Resources, routes, filter string) (has bool) {
	t.Helper()
	for _, l := range r.Listeners {
		for _, c := range append(slices.Clone(l.FilterChains), l.DefaultFilterChain) {
			for _, f := range c.GetFilters() {
				var m hcmv3.HttpConnectionManager
				if f.Name != managerFilter {
					continue
				}
				if err := f.GetTypedConfig().UnmarshalTo(&m); err != nil {
					t.Fatal(err)
				}
				if m.GetRds().GetRouteConfigName() != routes {
					continue
				}
				if has = slices.ContainsFunc(m.HttpFilters, func(f *hcmv3.HttpFilter) bool { return f.Name == filter }); !has {
					return false
				}
			}
		}
	}
	return has
}

// TestTLSOfTheApplicationsOwnDoesNotPassWhereATokenIsDue: it could not be looked for in there.
func TestTLSOfTheApplicationsOwnDoesNotPassWhereATokenIsDue(t *testing.T) {
	open := `apiVersion: policy.sallyport.io/v1
kind: MutualTLSPolicy
metadata: {name: open}
spec:
  targetRefs: [{kind: Service, name: storefront}]
  mode: PERMISSIVE
`
	due := map[string]string{"nothing": "", "a token": `---
apiVersion: policy.sallyport.io/v1
kind: JWTPolicy
metadata: {name: users}
spec:
  targetRefs: [{kind: Service, name: storefront}]
  issuer: https://issuer.example.org
  jwks:
    ` + jwks + "\n", "a rate": `---
apiVersion: policy.sallyport.io/v1
kind: RateLimitPolicy
metadata: {name: slow}
spec:
  targetRefs: [{kind: Service, name: storefront}]
  requests: 10
  unit: Second
`}
	for name, text := range due {
		r, _ := transparentOf(t, ordersAndStorefront, open+text)
		i := slices.IndexFunc(r.Listeners, func(l *listenerv3.Listener) bool { return l.Name == "inbound" })
		passes := slices.ContainsFunc(r.Listeners[i].FilterChains, func(c *listenerv3.FilterChain) bool { return c.Name == "tls" })
		if passes != (name == "nothing") {
			t.Errorf("where %s is due, TLS passes %t", name, passes)
		}
	}
}
