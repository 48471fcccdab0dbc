package config

//lint:file-ignore SA1019 files in use have deprecated fields, which Envoy reads still, and so do we

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/http1"
	"sallyport/sidecar/secret"
	"sallyport/sidecar/upstream"
)

var (
	upstreamHTTPFields = fields.Of(&httpv3.HttpProtocolOptions{}, "common_http_protocol_options", "upstream_http_protocol_options",
		"explicit_http_config", "use_downstream_protocol_config", "auto_config", "http_filters")

	explicitFields = fields.Of(&httpv3.HttpProtocolOptions_ExplicitHttpConfig{}, "http_protocol_options", "http2_protocol_options").
			Refuse(&httpv3.HttpProtocolOptions_ExplicitHttpConfig{}, "http3_protocol_options")
	// HTTP/3 is one of several there, and never the only one.
	downstreamHTTPFields = fields.Of(&httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{}, "http_protocol_options", "http2_protocol_options")
	autoFields           = fields.Of(&httpv3.HttpProtocolOptions_AutoHttpConfig{}, "http_protocol_options", "http2_protocol_options")

	upstreamCommonFields = fields.Of(&corev3.HttpProtocolOptions{}, "idle_timeout", "max_headers_count", "max_response_headers_kb",
		"max_requests_per_connection", "headers_with_underscores_action")
	sniFields = fields.Of(&corev3.UpstreamHttpProtocolOptions{}, "auto_sni", "auto_san_validation").
			Refuse(&corev3.UpstreamHttpProtocolOptions{}, "override_auto_sni_header")

	upstreamCodecURL = typeURL((*codecv3.UpstreamCodec)(nil))
)

// upstreamHTTP is the key of HttpProtocolOptions in typed_extension_protocol_options.
const upstreamHTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// clusterHTTP reads what is spoken to the hosts, from HttpProtocolOptions or
// from the older fields of the cluster.
func (c *compiler) clusterHTTP(m *clusterv3.Cluster, o *upstream.Config) secret.ClientOptions {
	for key := range m.GetTypedExtensionProtocolOptions() {
		if key != upstreamHTTP {
			c.Errorf(fields.Key("", "typed_extension_protocol_options", key), "is not implemented; only %s is", upstreamHTTP)
		}
	}
	if a := m.GetTypedExtensionProtocolOptions()[upstreamHTTP]; a != nil {
		at := fields.Key("", "typed_extension_protocol_options", upstreamHTTP)
		var h httpv3.HttpProtocolOptions
		if a.GetTypeUrl() != typeURL(&h) {
			c.Errorf(at, "%s is not %s", a.GetTypeUrl(), typeURL(&h))
			return secret.ClientOptions{}
		}
		if !c.decode(at, a, &h) {
			return secret.ClientOptions{}
		}
		for _, old := range []struct {
			name string
			set  bool
		}{
			{"common_http_protocol_options", m.GetCommonHttpProtocolOptions() != nil},
			{"http_protocol_options", m.GetHttpProtocolOptions() != nil},
			{"http2_protocol_options", m.GetHttp2ProtocolOptions() != nil},
			{"upstream_http_protocol_options", m.GetUpstreamHttpProtocolOptions() != nil},
		} {
			if old.set {
				c.Warnf(old.name, "has no effect beside typed_extension_protocol_options")
			}
		}
		return c.upstreamProtocol(at, &h, o)
	}
	c.upstreamCommon("common_http_protocol_options", m.GetCommonHttpProtocolOptions(), o)
	o.HTTP1 = merge1(o.HTTP1, c.http1Options("http_protocol_options", m.GetHttpProtocolOptions()))
	o.HTTP2 = c.http2Options("http2_protocol_options", m.GetHttp2ProtocolOptions())
	var alpn []string
	switch {
	case m.GetProtocolSelection() == clusterv3.Cluster_USE_DOWNSTREAM_PROTOCOL:
		o.Protocol = upstream.SameAsDownstream
	case m.GetHttp2ProtocolOptions() != nil:
		o.Protocol, alpn = upstream.HTTP2, []string{"h2"}
	}
	u := m.GetUpstreamHttpProtocolOptions()
	c.sni("upstream_http_protocol_options", u)
	return tlsOptions(u, alpn)
}

func (c *compiler) upstreamProtocol(path string, h *httpv3.HttpProtocolOptions, o *upstream.Config) secret.ClientOptions {
	checkFields(c.report, path, h, upstreamHTTPFields)
	c.upstreamCommon(fields.At(path, "common_http_protocol_options"), h.GetCommonHttpProtocolOptions(), o)
	var alpn []string
	var one *corev3.Http1ProtocolOptions
	var two *corev3.Http2ProtocolOptions
	at := path
	switch t := h.GetUpstreamProtocolOptions().(type) {
	case *httpv3.HttpProtocolOptions_ExplicitHttpConfig_:
		at = fields.At(path, "explicit_http_config")
		checkFields(c.report, at, t.ExplicitHttpConfig, explicitFields)
		one, two = t.ExplicitHttpConfig.GetHttpProtocolOptions(), t.ExplicitHttpConfig.GetHttp2ProtocolOptions()
		if two != nil {
			o.Protocol, alpn = upstream.HTTP2, []string{"h2"}
		}
	case *httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig:
		at = fields.At(path, "use_downstream_protocol_config")
		checkFields(c.report, at, t.UseDownstreamProtocolConfig, downstreamHTTPFields)
		one, two = t.UseDownstreamProtocolConfig.GetHttpProtocolOptions(), t.UseDownstreamProtocolConfig.GetHttp2ProtocolOptions()
		o.Protocol = upstream.SameAsDownstream
	case *httpv3.HttpProtocolOptions_AutoConfig:
		at = fields.At(path, "auto_config")
		checkFields(c.report, at, t.AutoConfig, autoFields)
		one, two = t.AutoConfig.GetHttpProtocolOptions(), t.AutoConfig.GetHttp2ProtocolOptions()
		o.Protocol, alpn = upstream.ALPN, []string{"h2", "http/1.1"}
	}
	o.HTTP1 = merge1(o.HTTP1, c.http1Options(fields.At(at, "http_protocol_options"), one))
	o.HTTP2 = c.http2Options(fields.At(at, "http2_protocol_options"), two)
	for i, f := range h.GetHttpFilters() {
		if url := f.GetTypedConfig().GetTypeUrl(); url != upstreamCodecURL {
			c.Errorf(fields.Index(path, "http_filters", i), "%s (%s) is not implemented at a cluster; only %s is", url, f.GetName(), upstreamCodecURL)
		}
	}
	u := h.GetUpstreamHttpProtocolOptions()
	c.sni(fields.At(path, "upstream_http_protocol_options"), u)
	return tlsOptions(u, alpn)
}

func (c *compiler) sni(path string, u *corev3.UpstreamHttpProtocolOptions) {
	if u != nil {
		checkFields(c.report, path, u, sniFields)
	}
}

func (c *compiler) upstreamCommon(path string, m *corev3.HttpProtocolOptions, o *upstream.Config) {
	if m == nil {
		return
	}
	checkFields(c.report, path, m, upstreamCommonFields)
	o.IdleTimeout = c.duration(fields.At(path, "idle_timeout"), m.GetIdleTimeout(), defaultIdle)
	o.MaxRequests = number(m.GetMaxRequestsPerConnection(), o.MaxRequests)
	o.HTTP1.MaxHeaderCount = int(m.GetMaxHeadersCount().GetValue())
	o.HTTP1.MaxHeaderBytes = int(m.GetMaxResponseHeadersKb().GetValue()) << 10
	o.HTTP1.Underscores = underscores(m.GetHeadersWithUnderscoresAction())
}

// merge1 puts the limits of the common options into those of HTTP/1.
func merge1(common, own http1.Options) http1.Options {
	own.MaxHeaderCount, own.MaxHeaderBytes, own.Underscores = common.MaxHeaderCount, common.MaxHeaderBytes, common.Underscores
	return own
}
