package config

import (
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
		"initial_connection_window_size", "allow_connect", "max_outbound_control_frames", "max_consecutive_inbound_frames_with_empty_payload",
		"max_inbound_priority_frames_per_stream").
		// The other limits against floods are built in, with bounds of their own; an error is one of a stream alone where the RFC allows it.
		Harmless(&corev3.Http2ProtocolOptions{}, "use_oghttp2_codec", "stream_error_on_invalid_http_messaging", "override_stream_error_on_invalid_http_message",
			"max_outbound_frames", "max_inbound_window_update_frames_per_data_frame_sent", "enable_huffman_encoding",
			"stream_reset_burst", "stream_reset_rate", "max_header_field_size_kb", "max_metadata_size")
)

// defaultStreams is Envoy's limit of concurrent streams.
const defaultStreams = 1024

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

// http2Options compiles Http2ProtocolOptions, which may be nil. Windows that
// are not set are left to the codec: Envoy's, of 16 MiB, would let each of many
// streams fill as much memory.
func (c *compiler) http2Options(path string, m *corev3.Http2ProtocolOptions) http2.Options {
	o := http2.Options{MaxConcurrentStreams: defaultStreams}
	if m == nil {
		return o
	}
	checkFields(c.report, path, m, http2Fields)
	o.MaxConcurrentStreams = number(m.GetMaxConcurrentStreams(), defaultStreams)
	o.InitialStreamWindow = m.GetInitialStreamWindowSize().GetValue()
	o.InitialConnWindow = m.GetInitialConnectionWindowSize().GetValue()
	o.AllowConnect = m.GetAllowConnect()
	o.MaxControlFrames = int(m.GetMaxOutboundControlFrames().GetValue())
	o.MaxEmptyFrames = int(m.GetMaxConsecutiveInboundFramesWithEmptyPayload().GetValue())
	o.MaxPriorityFrames = int(m.GetMaxInboundPriorityFramesPerStream().GetValue())
	if t := m.GetHpackTableSize(); t != nil {
		o.HeaderTableSize = min(t.GetValue(), maxHeaderTable)
		if t.GetValue() == 0 || t.GetValue() > maxHeaderTable {
			c.Warnf(fields.At(path, "hpack_table_size"), "must be from 1 to %d here; %d is used", maxHeaderTable, o.HeaderTableSize)
		}
	}
	return o
}

// maxHeaderTable bounds HPACK's table: each connection has two.
const maxHeaderTable = 64 << 10

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
