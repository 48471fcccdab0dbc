package main

import (
	"fmt"
	"strings"
)

// A hop is one proxy: a listener and where it goes. All peers are configured from it.
type hop struct {
	tcp           bool // a TCP proxy, else HTTP
	h2In, h2Out   bool // HTTP/2 is what comes in and goes out, else HTTP/1.1; grpc says that it is gRPC
	grpc          bool
	tlsIn, tlsOut bool // mutual TLS
	filters       bool // JWT, RBAC, local rate limit, CORS
	large         bool // bodies are larger than the buffers that a peer has by default
	workers       int
	to            string // the cluster, "out" where empty

	listen, upstream, admin int // ports of 127.0.0.1
}

// bootstrap is Envoy's, of parts: what our proxy and Envoy are started with.
type bootstrap struct {
	pki   string
	jwks  string
	admin int

	listeners, clusters []string
}

func (b *bootstrap) String() string {
	return fmt.Sprintf(`admin:
  address: {socket_address: {address: 127.0.0.1, port_value: %d}}
static_resources:
  listeners:
%s  clusters:
%s`, b.admin, strings.Join(b.listeners, ""), strings.Join(b.clusters, ""))
}

// envoyYAML is the bootstrap of a hop.
func (b *bench) envoyYAML(h hop) string {
	y := &bootstrap{pki: b.pki, jwks: b.jwks, admin: h.admin}
	y.listener("in", h)
	y.cluster("out", h)
	return y.String()
}

// listener adds a listener that goes to the hop's cluster; more are routes that go before.
func (b *bootstrap) listener(name string, h hop, more ...string) {
	if h.to == "" {
		h.to = "out"
	}
	chain := "\n    - filters:"
	if h.tlsIn {
		alpn := "alpn_protocols: [h2, http/1.1]"
		if h.tcp {
			alpn = ""
		}
		chain = "\n    - transport_socket:" + b.context("b", "Downstream", "require_client_certificate: true", alpn, "        ") + "\n      filters:"
	}
	network := fmt.Sprintf(`
      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: %s, cluster: %s}`, name, h.to)
	if !h.tcp {
		network = b.manager(name, h, more)
	}
	b.listeners = append(b.listeners, fmt.Sprintf(`  - name: %s
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:%s%s
`, name, h.listen, chain, network))
}

// manager is the HTTP connection manager; more are routes before the one that takes everything.
func (b *bootstrap) manager(name string, h hop, more []string) string {
	filters, override := "", ""
	if h.filters {
		filters, override = b.filterChain(), corsPolicy
	}
	routes := append(append([]string(nil), more...), fmt.Sprintf(`{match: {prefix: "/"}, route: {cluster: %s}%s}`, h.to, override))
	return fmt.Sprintf(`
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: %s
          http2_protocol_options: {max_concurrent_streams: 1000}
          route_config:
            name: r
            virtual_hosts:
            - name: v
              domains: ["*"]
              routes:
              - %s
          http_filters:%s
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}`, name, strings.Join(routes, "\n              - "), filters)
}

const corsPolicy = `, typed_per_filter_config: {envoy.filters.http.cors: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, ` +
	`allow_origin_string_match: [{exact: "` + origin + `"}], allow_methods: "GET, POST", expose_headers: x-seen, max_age: "600", allow_credentials: true}}`

// origin is that of the requests to the filters.
const origin = "https://shop.bench.local"

// filterChain: the token cache is on, as ours always is; the rate limit is never reached.
func (b *bootstrap) filterChain() string {
	return fmt.Sprintf(`
          - name: envoy.filters.http.cors
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}
          - name: envoy.filters.http.jwt_authn
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
              providers:
                bench:
                  issuer: %s
                  audiences: [bench]
                  forward: true
                  jwt_cache_config: {jwt_cache_size: 1000}
                  local_jwks: {inline_string: '%s'}
              rules: [{match: {prefix: /}, requires: {provider_name: bench}}]
          - name: envoy.filters.http.rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: ALLOW
                policies:
                  admins: {permissions: [{url_path: {path: {prefix: /admin}}}], principals: [{header: {name: x-role, string_match: {exact: admin}}}]}
                  readers:
                    permissions: [{and_rules: {rules: [{header: {name: ":method", string_match: {exact: GET}}}, {url_path: {path: {prefix: /}}}]}}]
                    principals: [{direct_remote_ip: {address_prefix: 127.0.0.0, prefix_len: 8}}]
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: limit
              token_bucket: {max_tokens: 1000000000, tokens_per_fill: 1000000000, fill_interval: 1s}
              filter_enabled: {default_value: {numerator: 100}}
              filter_enforced: {default_value: {numerator: 100}}`, issuer, b.jwks)
}

// cluster adds a cluster with one endpoint.
func (b *bootstrap) cluster(name string, h hop) {
	options, socket := "", ""
	if !h.tcp {
		protocol := "http_protocol_options: {}"
		if h.h2Out {
			protocol = "http2_protocol_options: {max_concurrent_streams: 1000}"
		}
		options = fmt.Sprintf(`
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {%s}`, protocol)
	}
	if h.tlsOut {
		alpn := ""
		if h.h2Out {
			alpn = "alpn_protocols: [h2]"
		}
		socket = "\n    transport_socket:" + b.context("a", "Upstream", "sni: b.local", alpn, "      ")
	}
	b.clusters = append(b.clusters, fmt.Sprintf(`  - name: %s
    type: STATIC
    load_assignment: {cluster_name: %[1]s, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]}
    circuit_breakers: {thresholds: [{max_connections: 10000, max_pending_requests: 10000, max_requests: 10000}]}%s%s
`, name, h.upstream, options, socket))
}

// context is a TLS context, each line at an indentation.
func (b *bootstrap) context(name, direction, extra, alpn, indent string) string {
	lines := []string{"name: envoy.transport_sockets.tls", "typed_config:",
		`  "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.` + direction + "TlsContext",
		"  " + extra, "  common_tls_context:"}
	if alpn != "" {
		lines = append(lines, "    "+alpn)
	}
	lines = append(lines, "    tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}",
		fmt.Sprintf("    tls_certificates: [{certificate_chain: {filename: %s/%s.pem}, private_key: {filename: %[1]s/%[2]s.key}}]", b.pki, name),
		fmt.Sprintf("    validation_context: {trusted_ca: {filename: %s/ca.pem}}", b.pki))
	return "\n" + indent + strings.Join(lines, "\n"+indent)
}
