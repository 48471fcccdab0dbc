package config

import (
	"fmt"
	"strings"
	"testing"
)

// envoyYAML is what the benchmarks give to Envoy and to us: a listener and a
// cluster, HTTP or TCP, plain or with mutual TLS, HTTP/1.1 or HTTP/2 upstream.
func envoyYAML(pki string, tcp, tlsIn, tlsOut, h2 bool) string {
	context := func(name, direction, extra, alpn string) string {
		return fmt.Sprintf(`
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.%[3]sTlsContext
        %[4]s
        common_tls_context:
          %[5]s
          tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
          tls_certificates: [{certificate_chain: {filename: %[1]s/%[2]s.pem}, private_key: {filename: %[1]s/%[2]s.key}}]
          validation_context: {trusted_ca: {filename: %[1]s/ca.pem}}`, pki, name, direction, extra, alpn)
	}
	filter := `
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: i
          http2_protocol_options: {max_concurrent_streams: 1000}
          route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: b}}]}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}`
	protocol := "http_protocol_options: {}"
	if h2 {
		protocol = "http2_protocol_options: {max_concurrent_streams: 1000}"
	}
	options := fmt.Sprintf(`
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {%s}`, protocol)
	alpnIn, alpnOut := "alpn_protocols: [h2, http/1.1]", ""
	if h2 {
		alpnOut = "alpn_protocols: [h2]"
	}
	if tcp {
		filter = `
      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: b}`
		options, alpnIn = "", ""
	}
	chain, out := "\n    - filters:", ""
	if tlsIn {
		chain = "\n    - transport_socket:" + strings.ReplaceAll(context("a", "Downstream", "require_client_certificate: true", alpnIn), "\n", "\n  ") + "\n      filters:"
	}
	if tlsOut {
		out = "\n    transport_socket:" + context("a", "Upstream", "sni: b.local", alpnOut)
	}
	return fmt.Sprintf(`static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 9100}}
    filter_chains:%s%s
  clusters:
  - name: b
    type: STATIC
    load_assignment: {cluster_name: b, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9001}}}}]}]}
    circuit_breakers: {thresholds: [{max_connections: 10000, max_pending_requests: 10000, max_requests: 10000}]}%s%s
`, chain, filter, options, out)
}

// meshYAML is what a sidecar holds that sees a whole mesh: a virtual host and a static cluster for each service.
func meshYAML(services, endpoints int) string {
	var hosts, clusters strings.Builder
	for i := range services {
		fmt.Fprintf(&hosts, "            - {name: v%d, domains: [\"s%d.mesh\"], routes: [{match: {prefix: \"/\"}, route: {cluster: c%d}}]}\n", i, i, i)
		fmt.Fprintf(&clusters, "  - {name: c%d, type: STATIC, load_assignment: {cluster_name: c%d, endpoints: [{lb_endpoints: [", i, i)
		for j := range endpoints {
			if j > 0 {
				clusters.WriteString(", ")
			}
			fmt.Fprintf(&clusters, "{endpoint: {address: {socket_address: {address: 10.%d.%d.%d, port_value: 80}}}}", i/250, i%250, j+1)
		}
		clusters.WriteString("]}]}}\n")
	}
	return `static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 9100}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: i
          route_config:
            name: r
            virtual_hosts:
` + hosts.String() + `          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
` + clusters.String()
}

func TestTheBenchmarksConfigurationsLoadWithoutAWarning(t *testing.T) {
	pki := keys(t)
	for i := range 16 {
		tcp, in, out, h2 := i&1 != 0, i&2 != 0, i&4 != 0, i&8 != 0
		if tcp && h2 {
			continue
		}
		b, s, err := load(t, envoyYAML(pki, tcp, in, out, h2))
		if err != nil {
			t.Fatalf("tcp %v, tls in %v out %v, h2 %v: %v", tcp, in, out, h2, err)
		}
		if w := append(b.Warnings, s.Warnings()...); len(w) > 0 {
			t.Errorf("tcp %v, tls in %v out %v, h2 %v: %v", tcp, in, out, h2, w)
		}
		c := s.Listeners[0].Config.Chains[0]
		if (c.TCP != nil) != tcp || (c.HTTP != nil) == tcp || (c.TLS != nil) != in || (s.Clusters[0].Config.TLS != nil) != out {
			t.Errorf("compiled into something else: %+v", c)
		}
	}
	b, s, err := load(t, meshYAML(20, 3))
	if err != nil || len(b.Warnings)+len(s.Warnings()) > 0 {
		t.Fatal(err, b.Warnings, s.Warnings())
	}
	if len(s.Clusters) != 20 || len(s.Clusters[7].Config.Endpoints) != 3 || s.Clusters[7].Config.Endpoints[2].Address.String() != "10.0.7.3:80" {
		t.Errorf("%+v", s.Clusters[7].Config)
	}
}

func BenchmarkMesh(b *testing.B) {
	path := write(b, meshYAML(1000, 10))
	b.ReportAllocs()
	for b.Loop() {
		boot, err := LoadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := CompileStatic(boot, Env{}); err != nil {
			b.Fatal(err)
		}
	}
}
