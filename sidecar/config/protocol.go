package config

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/http1"
	"sallyport/sidecar/http2"
)

var (
	// allow_chunked_length would let a request with two lengths in; ours
	// are always refused, which is what everybody wants.
	http1Fields = fields.Of(&corev3.Http1ProtocolOptions{}, "allow_absolute_url", "accept_http_10", "default_host_for_http_10", "enable_trailers",
		"allow_custom_methods").
		Harmless(&corev3.Http1ProtocolOptions{}, "use_balsa_parser", "override_stream_error_on_invalid_http_message")

	http2Fields = fields.Of(&corev3.Http2ProtocolOptions{}, "hpack_table_size", "max_concurrent_streams", "initial_stream_window_size",
		"initial_connection_window_size", "allow_connect", "connection_keepalive").
		// Limits against floods are built in, with bounds of their own; errors are always those of a stream where the RFC allows it.
		Harmless(&corev3.Http2ProtocolOptions{}, "use_oghttp2_codec", "stream_error_on_invalid_http_messaging", "override_stream_error_on_invalid_http_message",
			"max_outbound_frames", "max_outbound_control_frames", "max_consecutive_inbound_frames_with_empty_payload",
			"max_inbound_priority_frames_per_stream", "max_inbound_window_update_frames_per_data_frame_sent", "enable_huffman_encoding",
			"stream_reset_burst", "stream_reset_rate", "max_header_field_size_kb", "max_metadata_size")

	keepaliveFields = fields.Of(&corev3.KeepaliveSettings{}, "interval", "timeout").
			Harmless(&corev3.KeepaliveSettings{}, "interval_jitter", "connection_idle_interval")
)

// http1Options compiles Http1ProtocolOptions, which may be nil.
func (c *compiler) http1Options(path string, m *corev3.Http1ProtocolOptions) http1.Options {
	if m == nil {
		return http1.Options{}
	}
	checkFields(c.report, path, m, http1Fields)
	return http1.Options{
		AllowHTTP10:        m.GetAcceptHttp_10(),
		DefaultHost:        m.GetDefaultHostForHttp_10(),
		ForbidAbsoluteURL:  !boolean(m.GetAllowAbsoluteUrl(), true),
		AllowCustomMethods: m.GetAllowCustomMethods(),
		EnableTrailers:     m.GetEnableTrailers(),
	}
}

// http2Options compiles Http2ProtocolOptions, which may be nil. Sizes that
// are not set are left to the codec.
func (c *compiler) http2Options(path string, m *corev3.Http2ProtocolOptions) (o http2.Options) {
	if m == nil {
		return o
	}
	checkFields(c.report, path, m, http2Fields)
	return o
}

// underscores is headers_with_underscores_action for the HTTP/1 codec.
func underscores(a corev3.HttpProtocolOptions_HeadersWithUnderscoresAction) http1.Underscores {
	switch a {
	case corev3.HttpProtocolOptions_REJECT_REQUEST:
		return http1.RejectUnderscores
	case corev3.HttpProtocolOptions_DROP_HEADER:
		return http1.DropUnderscores
	}
	return http1.AllowUnderscores
}

// keepalive reads connection_keepalive.
func (c *compiler) keepalive(path string, k *corev3.KeepaliveSettings) (interval, timeout time.Duration) {
	if k == nil {
		return 0, 0
	}
	path = fields.At(path, "connection_keepalive")
	checkFields(c.report, path, k, keepaliveFields)
	return c.duration(fields.At(path, "interval"), k.GetInterval(), 0), c.duration(fields.At(path, "timeout"), k.GetTimeout(), 0)
}
