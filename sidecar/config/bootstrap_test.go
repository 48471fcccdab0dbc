package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/secret"
)

// keys writes an authority and a certificate of its into a folder, as ca.pem, a.pem and a.key.
func keys(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"a.local"}}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{"ca.pem": {Type: "CERTIFICATE", Bytes: der}, "a.pem": {Type: "CERTIFICATE", Bytes: der}, "a.key": {Type: "PRIVATE KEY", Bytes: k}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func testEnv(t testing.TB) Env {
	s := secret.NewStore(secret.Options{})
	t.Cleanup(s.Close)
	return Env{Secrets: s}
}

// write makes a file of a bootstrap.
func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "b.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// load compiles a bootstrap; errors have the file's folder taken off.
func load(t testing.TB, text string) (*Bootstrap, *Static, error) {
	t.Helper()
	path := write(t, text)
	b, err := LoadFile(path)
	var s *Static
	if err == nil {
		s, err = CompileStatic(b, testEnv(t))
	}
	if err != nil {
		err = fmt.Errorf("%s", strings.ReplaceAll(err.Error(), filepath.Dir(path)+"/", ""))
	}
	return b, s, err
}

const head = `static_resources:
  clusters:
  - name: backend
    load_assignment: {cluster_name: backend, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}}]}]}
`

// proxy is a whole bootstrap with one listener; filters stand before the router, routes in the one virtual host.
func proxy(filters, routes string) string {
	return head + `  listeners:
  - name: in
    address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            name: r
            virtual_hosts:
            - name: v
              domains: ["*"]
              routes:
              ` + routes + `
          http_filters:
          ` + filters + `
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
`
}

const toBackend = `- {match: {prefix: "/"}, route: {cluster: backend}}`

func TestMistakesAreToldWithPlaceAndRemedy(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"an unknown field": {"static_resources:\n  clusters:\n  - name: a\n    conect_timeout: 1s\n",
			`b.yaml:4:5: static_resources.clusters[0].conect_timeout: no such field in envoy.config.cluster.v3.Cluster; did you mean connect_timeout?`},
		"an unknown field in camel case": {"staticResource: {}\n",
			`b.yaml:1:1: staticResource: no such field in envoy.config.bootstrap.v3.Bootstrap; did you mean static_resources?`},
		"a string for a number": {"admin:\n  address:\n    socket_address: {address: 127.0.0.1, port_value: http}\n",
			`b.yaml:3:54: admin.address.socket_address.port_value: "http" is a string; needs a whole number from 0 to 4294967295`},
		"a number for a string": {"node: {id: 7}\n", `b.yaml:1:12: node.id: is the number 7; needs a string: put it in quotes`},
		"a list for a message":  {"node: [a]\n", `b.yaml:1:7: node: is a list; needs fields of envoy.config.core.v3.Node`},
		"a message for a list":  {"static_resources: {clusters: {name: a}}\n", `b.yaml:1:30: static_resources.clusters: is a mapping; needs a list`},
		"a duration of minutes": {"static_resources:\n  clusters:\n  - {name: a, connect_timeout: 5m}\n",
			`b.yaml:3:32: static_resources.clusters[0].connect_timeout: "5m" is not a duration in Envoy's files, which have seconds alone: write "300s"`},
		"a duration without unit": {"static_resources:\n  clusters:\n  - {name: a, connect_timeout: 5}\n",
			`b.yaml:3:32: static_resources.clusters[0].connect_timeout: is the number 5; needs a duration with its unit: write "5s"`},
		"a duration that is none": {"static_resources:\n  clusters:\n  - {name: a, connect_timeout: soon}\n",
			`b.yaml:3:32: static_resources.clusters[0].connect_timeout: "soon" is not a duration; write seconds followed by "s", like "1.5s"`},
		"an enum": {"static_resources:\n  clusters:\n  - {name: a, lb_policy: ROUNDROBIN}\n",
			`b.yaml:3:26: static_resources.clusters[0].lb_policy: "ROUNDROBIN" is not one of ROUND_ROBIN, LEAST_REQUEST, RING_HASH, RANDOM, MAGLEV, CLUSTER_PROVIDED, LOAD_BALANCING_POLICY_CONFIG; did you mean ROUND_ROBIN?`},
		"two of a oneof": {"static_resources:\n  clusters:\n  - {name: a, type: STATIC, cluster_type: {name: x}}\n",
			`b.yaml:3:29: static_resources.clusters[0].cluster_type: cannot be together with type: only one of them may be set`},
		"a key twice": {"node: {id: a, id: b}\n", `b.yaml:1:15: node.id: given twice`},
		"a rule of the proto": {"static_resources:\n  listeners:\n  - name: l\n    address: {socket_address: {address: 127.0.0.1, port_value: 70000}}\n",
			`b.yaml:4:64: static_resources.listeners[0].address.socket_address.port_value: value must be less than or equal to 65535`},
		"what is required": {"static_resources:\n  clusters:\n  - connect_timeout: 1s\n",
			`b.yaml:3:5: static_resources.clusters[0].name: value length must be at least 1 runes`},
		"an unknown type": {proxy(`- {name: lua, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}`, toBackend),
			`b.yaml:22:49: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0].typed_config: unknown "@type" "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua": not implemented`},
		"a typo in a type": {proxy(`- {name: cors, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Corse}}`, toBackend),
			`type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors?`},
		"a missing type": {proxy(`- {name: cors, typed_config: {allow: all}}`, toBackend),
			`b.yaml:22:40: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0].typed_config: needs "@type", like type.googleapis.com/envoy.extensions…`},
		"YAML that is none": {"node: {id: a\n", `b.yaml:1:1: not YAML: did not find expected ',' or '}'`},
		"an empty file":     {"# nothing\n", `b.yaml: is empty; needs an Envoy bootstrap, with static_resources or dynamic_resources`},
		"two documents":     {"node: {id: a}\n---\nnode: {id: b}\n", `b.yaml: holds more than one YAML document; remove what follows "---"`},
		"a cluster that is not there": {proxy("", `- {match: {prefix: "/"}, route: {cluster: bakend}}`),
			`b.yaml:20:57: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route.cluster: there is no cluster "bakend" in static_resources.clusters; did you mean backend?`},
		"a host name in a static cluster": {"static_resources:\n  clusters:\n  - name: a\n    load_assignment:\n      cluster_name: a\n      endpoints:\n      - lb_endpoints:\n        - endpoint: {address: {socket_address: {address: example.com, port_value: 80}}}\n",
			`b.yaml:8:58: static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: "example.com" is not an IP address; a cluster with names is of type STRICT_DNS or LOGICAL_DNS`},
		"the same name twice": {head + "  - name: backend\n", `b.yaml:5:11: static_resources.clusters[1].name: is the name of another cluster, clusters[0]; a name may occur once`},
		"a subset":            {"static_resources:\n  clusters:\n  - name: a\n    lb_subset_config: {}\n", `b.yaml:4:5: static_resources.clusters[0].lb_subset_config: not implemented, and refused because the rest must not be used without it; remove the field`},
		"ads without a source": {"dynamic_resources: {cds_config: {ads: {}}}\n",
			`b.yaml:1:34: dynamic_resources.cds_config.ads: there is no ads_config that it could mean`},
		"the control plane's cluster": {head + "dynamic_resources:\n  ads_config: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: backnd}}]}\n",
			`b.yaml:6:103: dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name: there is no cluster "backnd" in static_resources.clusters; did you mean backend?`},
		"aliases in a circle": {"node: &a {metadata: {x: *a}}\n", `b.yaml:1:`},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := load(t, c.text)
			if err == nil {
				t.Fatal("accepted")
			}
			if got := err.Error(); got != c.want && !strings.Contains(got, c.want) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %s", err)
			}
		})
	}
}
