package demo

import (
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// tour prints the picture, the URLs and what to try.
func (s *shop) tour(out io.Writer) {
	fmt.Fprint(out, s.picture())
	fmt.Fprint(out, "\nTo try, in another shell (the first two lines once):\n\n")
	fmt.Fprintf(out, "  cd %s; TOKEN=$(cat token); SHOP=https://%s:%d\n", s.dir, publicHost, s.public)
	fmt.Fprintf(out, "  shop() { curl -sS -w '\\n' --cacert keys/shop.crt --resolve %s:%d:127.0.0.1 \"$@\"; }\n\n", publicHost, s.public)
	if s.Transparent {
		fmt.Fprint(out, "  The services run by \"sallyport run\": they call http://orders/ and http://payments/, and their own\n"+
			"  network does the rest. See how: sallyport redirect show --rules\n\n")
	}
	for i, t := range s.tries() {
		fmt.Fprintf(out, "%3d. %s\n", i+1, t.what)
		for line := range strings.Lines(t.command) {
			fmt.Fprintf(out, "       %s\n", strings.TrimRight(line, "\n"))
		}
	}
	fmt.Fprint(out, "\nCtrl-C ends everything and removes the folder.\n")
}

// picture shows who listens where.
func (s *shop) picture() string {
	var b strings.Builder
	source := "catalog.yaml"
	if s.consul != nil {
		source = "Consul http://" + s.consul.addr + "/ui/"
	}
	edges := make([]string, 0, len(s.edges))
	for _, e := range s.edges {
		edges = append(edges, fmt.Sprintf("%s :%d", e.id, e.port))
	}
	fmt.Fprintf(&b, " client ─► L4 tier :%d ─► %s\n", s.public, strings.Join(edges, ", "))
	fmt.Fprint(&b, "   (HTTPS ends at the edges; from there on, ══ is mutual TLS with SPIFFE identities)\n")
	for i, in := range s.instances {
		calls := ""
		for _, name := range sortedNames(in.upstreams) {
			calls += "  ─► " + name
			if !s.allowed(in.service, name) {
				calls += " (denied)"
			}
		}
		corner := "╠"
		if i == len(s.instances)-1 {
			corner = "╚"
		}
		fmt.Fprintf(&b, "        %s══► sidecar :%d ─► %-12s :%d%s\n", corner, in.mesh, in.id, in.app, calls)
	}
	fmt.Fprintf(&b, " control plane :%d ◄─ %s, policies/\n\n", s.control, source)
	fmt.Fprintf(&b, " shop      https://%s:%d/   (127.0.0.1; certificate %s)\n", publicHost, s.public, filepath.Join(s.dir, "keys/shop.crt"))
	fmt.Fprintf(&b, " admin     http://%s/   of %s; the other proxies have one, too\n", local(s.edges[0].admin), s.edges[0].id)
	fmt.Fprintf(&b, " status    http://%s/   of the control plane\n", local(s.status))
	fmt.Fprintf(&b, " policies  %s   edit, and watch the next request\n logs      %s/*.log\n", filepath.Join(s.dir, "policies"), s.dir)
	return b.String()
}

// try is something for the user to do.
type try struct{ what, command string }

func (s *shop) tries() []try {
	orders := s.of("orders", "v1")[0]
	auth := `-H "Authorization: Bearer $TOKEN"`
	return []try{
		{"HTTPS at the edge, and the header fields that the storefront got", `shop -i $SHOP/`},
		{"three hops under mutual TLS: storefront, orders, payments; one trace", `shop $SHOP/checkout/pay`},
		{"what the storefront may not do: call payments itself", `shop -i $SHOP/steal`},
		{"orders wants a token", `shop -i $SHOP/api/orders`},
		{"with one: the path rewritten, header fields added and removed, the user named",
			`shop -i ` + auth + ` -H "x-removed: 1" $SHOP/api/orders/7`},
		{"the canary: one request in five goes to version 2",
			`for i in $(seq 20); do shop -o /dev/null -D - ` + auth + ` $SHOP/api/orders | grep -i x-served-by; done`},
		{"session persistence: the cookie brings you back to the same storefront",
			`for i in $(seq 6); do shop -b jar -c jar -o /dev/null -D - $SHOP/ | grep -i x-served-by; done`},
		{"the rate limit: five requests a minute in each edge", `for i in $(seq 12); do shop -o /dev/null -w '%{http_code}\n' $SHOP/limited; done`},
		{"an instance dies, nobody notices",
			fmt.Sprintf("kill -9 %d; for i in $(seq 20); do shop -o /dev/null -w '%%{http_code}\\n' %s $SHOP/api/orders; done", orders.process.cmd.Process.Pid, auth)},
		{"a policy, in force at the next request: nobody sees /secret any more", "echo '" + denySecret + "' > policies/secret.yaml; sleep 1; shop -i $SHOP/secret"},
	}
}

// denySecret is a policy that the tour and the check put into the folder while everything runs.
const denySecret = `{apiVersion: policy.sallyport.io/v1, kind: AuthorizationPolicy, metadata: {name: secret}, ` +
	`spec: {targetRefs: [{kind: Service, name: storefront}], action: DENY, rules: [{to: [{paths: ["/secret*"]}]}]}}`
