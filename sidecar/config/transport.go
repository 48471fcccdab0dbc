package config

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/listener"
	"sallyport/sidecar/secret"
	"sallyport/sidecar/upstream"
)

var (
	transportFields = fields.Of(&corev3.TransportSocket{}, "name", "typed_config").Strict()

	rawURL        = typeURL((*rawv3.RawBuffer)(nil))
	downstreamURL = typeURL((*tlsv3.DownstreamTlsContext)(nil))
	upstreamURL   = typeURL((*tlsv3.UpstreamTlsContext)(nil))
)

const rawName = "envoy.transport_sockets.raw_buffer"

// serverTLS compiles the transport socket of a filter chain: nil for plaintext.
// The second result identifies it without the certificates in it: their
// rotation is no reason to drain connections.
func (c *compiler) serverTLS(path string, m *corev3.TransportSocket) (listener.ServerTLS, uint64) {
	if !c.transport(path, m, downstreamURL) {
		return nil, 0
	}
	var ctx tlsv3.DownstreamTlsContext
	at := fields.At(path, "typed_config")
	if !c.decode(at, m.GetTypedConfig(), &ctx) {
		return nil, 0
	}
	secure := proto.Clone(&ctx).(*tlsv3.DownstreamTlsContext)
	if common := secure.GetCommonTlsContext(); common != nil {
		common.TlsCertificates = nil
	}
	if c.env.Secrets == nil {
		return nil, fingerprint(secure)
	}
	s := c.env.Secrets.Server(c.report, at, &ctx)
	if s == nil {
		return nil, 0
	}
	c.Needs.tls(s)
	return s, fingerprint(secure)
}

// clientTLS compiles the transport socket of a cluster: nil for plaintext.
func (c *compiler) clientTLS(path string, m *corev3.TransportSocket, o secret.ClientOptions) upstream.ClientTLS {
	if !c.transport(path, m, upstreamURL) {
		return nil
	}
	var ctx tlsv3.UpstreamTlsContext
	at := fields.At(path, "typed_config")
	if !c.decode(at, m.GetTypedConfig(), &ctx) || c.env.Secrets == nil {
		return nil
	}
	s := c.env.Secrets.Client(c.report, at, &ctx, o)
	if s == nil {
		return nil
	}
	c.Needs.tls(s)
	return s
}

// transport says whether m is TLS. What is neither that nor plaintext is refused.
func (c *compiler) transport(path string, m *corev3.TransportSocket, tlsURL string) bool {
	if m == nil {
		return false
	}
	checkFields(c.report, path, m, transportFields)
	switch url := m.GetTypedConfig().GetTypeUrl(); {
	case url == tlsURL:
		return true
	case url == rawURL || url == "" && m.GetName() == rawName:
		return false
	case url == "":
		c.Errorf(fields.At(path, "typed_config"), "is required")
	default:
		c.Errorf(fields.At(path, "typed_config"), "%s is not implemented here; use %s or %s", url, tlsURL, rawURL)
	}
	return false
}
