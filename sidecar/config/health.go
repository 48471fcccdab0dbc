package config

import (
	"encoding/hex"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/filter"
	"sallyport/sidecar/route"
	"sallyport/sidecar/upstream"
)

var (
	healthFields = fields.Of(&corev3.HealthCheck{}, "timeout", "interval", "interval_jitter", "interval_jitter_percent",
		"unhealthy_threshold", "healthy_threshold", "alt_port", "reuse_connection", "http_health_check", "tcp_health_check", "grpc_health_check",
		"no_traffic_interval", "unhealthy_interval").
		Harmless(&corev3.HealthCheck{}, "name", "event_log_path", "event_logger", "event_service", "always_log_health_check_failures", "always_log_health_check_success").
		// Over another transport a check says something else, or says it to somebody else.
		Refuse(&corev3.HealthCheck{}, "tls_options", "transport_socket_match_criteria")
	httpCheckFields = fields.Of(&corev3.HealthCheck_HttpHealthCheck{}, "host", "path", "request_headers_to_add", "expected_statuses",
		"retriable_statuses", "codec_client_type", "method").
		Refuse(&corev3.HealthCheck_HttpHealthCheck{}, "service_name_matcher", "receive", "send")
	tcpCheckFields  = fields.Of(&corev3.HealthCheck_TcpHealthCheck{}, "send", "receive").Refuse(&corev3.HealthCheck_TcpHealthCheck{}, "proxy_protocol_config")
	grpcCheckFields = fields.Of(&corev3.HealthCheck_GrpcHealthCheck{}, "service_name", "authority", "initial_metadata")
)

func (c *compiler) healthCheck(path string, m *corev3.HealthCheck) (h upstream.HealthCheck) {
	checkFields(c.report, path, m, healthFields)
	positive := func(field string, d *durationpb.Duration, absent time.Duration) time.Duration {
		t := c.duration(fields.At(path, field), d, absent)
		if t == 0 {
			c.Errorf(fields.At(path, field), "must be above 0s")
		}
		return t
	}
	h = upstream.HealthCheck{
		Timeout:            positive("timeout", m.GetTimeout(), 0),
		Interval:           positive("interval", m.GetInterval(), 0),
		Jitter:             c.duration(fields.At(path, "interval_jitter"), m.GetIntervalJitter(), 0),
		JitterPercent:      m.GetIntervalJitterPercent(),
		NoTrafficInterval:  positive("no_traffic_interval", m.GetNoTrafficInterval(), time.Minute),
		UnhealthyThreshold: max(m.GetUnhealthyThreshold().GetValue(), 1),
		HealthyThreshold:   max(m.GetHealthyThreshold().GetValue(), 1),
		ReuseConnection:    boolean(m.GetReuseConnection(), true),
		AltPort:            c.port(fields.At(path, "alt_port"), m.GetAltPort().GetValue()),
	}
	h.UnhealthyInterval = h.Interval
	if m.GetUnhealthyInterval() != nil {
		h.UnhealthyInterval = positive("unhealthy_interval", m.GetUnhealthyInterval(), h.Interval)
	}
	switch t := m.GetHealthChecker().(type) {
	case *corev3.HealthCheck_HttpHealthCheck_:
		c.httpCheck(fields.At(path, "http_health_check"), t.HttpHealthCheck, &h)
	case *corev3.HealthCheck_TcpHealthCheck_:
		at := fields.At(path, "tcp_health_check")
		checkFields(c.report, at, t.TcpHealthCheck, tcpCheckFields)
		if p := t.TcpHealthCheck.GetSend(); p != nil {
			h.Send = c.payload(fields.At(at, "send"), p)
		}
		for i, p := range t.TcpHealthCheck.GetReceive() {
			h.Receive = append(h.Receive, c.payload(fields.Index(at, "receive", i), p))
		}
	case *corev3.HealthCheck_GrpcHealthCheck_:
		at := fields.At(path, "grpc_health_check")
		checkFields(c.report, at, t.GrpcHealthCheck, grpcCheckFields)
		h.GRPC, h.GRPCService, h.Host = true, t.GrpcHealthCheck.GetServiceName(), t.GrpcHealthCheck.GetAuthority()
		h.Headers = c.checkHeaders(at, "initial_metadata", t.GrpcHealthCheck.GetInitialMetadata())
	default:
		c.Errorf(path, "this kind of health check is not implemented; use http_health_check, tcp_health_check or grpc_health_check")
	}
	return h
}

func (c *compiler) httpCheck(path string, m *corev3.HealthCheck_HttpHealthCheck, h *upstream.HealthCheck) {
	checkFields(c.report, path, m, httpCheckFields)
	h.HTTP, h.Host, h.Path, h.Method = true, m.GetHost(), m.GetPath(), "GET"
	if m.GetMethod() != corev3.RequestMethod_METHOD_UNSPECIFIED {
		h.Method = m.GetMethod().String()
	}
	switch m.GetCodecClientType() {
	case typev3.CodecClientType_HTTP2:
		h.HTTP2 = true
	case typev3.CodecClientType_HTTP3:
		c.Errorf(fields.At(path, "codec_client_type"), "HTTP3 is not implemented")
	}
	h.Headers = c.checkHeaders(path, "request_headers_to_add", m.GetRequestHeadersToAdd())
	h.Expected = c.statuses(path, "expected_statuses", m.GetExpectedStatuses())
	h.Retriable = c.statuses(path, "retriable_statuses", m.GetRetriableStatuses())
}

func (c *compiler) statuses(path, field string, list []*typev3.Int64Range) (out []upstream.StatusRange) {
	for i, r := range list {
		if r.GetStart() < 100 || r.GetEnd() > 600 || r.GetStart() >= r.GetEnd() {
			c.Errorf(fields.Index(path, field, i), "[%d, %d) is not a range within 100 to 600", r.GetStart(), r.GetEnd())
			continue
		}
		out = append(out, upstream.StatusRange{Start: int(r.GetStart()), End: int(r.GetEnd())})
	}
	return out
}

// checkHeaders are constants: a check belongs to no request that a format could speak of.
func (c *compiler) checkHeaders(path, field string, list []*corev3.HeaderValueOption) (out []route.HeaderValue) {
	for i, o := range list {
		at := fields.Index(path, field, i)
		m := filter.Addition(c.report, at, o, c.env.HeaderFormat)
		if m.Format != nil {
			c.Errorf(at, "a health check belongs to no request: its headers cannot have %%COMMANDS%%")
		}
		out = append(out, route.HeaderValue{Name: m.Name, Value: m.Value})
	}
	return out
}

func (c *compiler) payload(path string, p *corev3.HealthCheck_Payload) []byte {
	switch t := p.GetPayload().(type) {
	case *corev3.HealthCheck_Payload_Text:
		b, err := hex.DecodeString(t.Text)
		if err != nil {
			c.Errorf(fields.At(path, "text"), "is not hex") // not repeated: a payload may log in
		}
		return b
	case *corev3.HealthCheck_Payload_Binary:
		return t.Binary
	}
	c.Errorf(path, "is empty")
	return nil
}
