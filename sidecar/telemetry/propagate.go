package telemetry

import (
	"encoding/hex"
	"fmt"
	"os"

	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	"go.opentelemetry.io/otel/trace"

	"sallyport/sidecar/message"
	"sallyport/sidecar/stream"
)

// propagation is the format in which a caller sent its trace context; the
// upstream gets W3C's always, and B3 where the caller spoke it.
type propagation uint8

const (
	w3c propagation = iota
	b3Single
	b3Multi
)

// extract reads the trace context of a request: W3C traceparent
// (https://www.w3.org/TR/trace-context/#traceparent-header), else B3, single
// or in several fields. What is malformed counts as absent, as both demand.
func extract(h *message.Head) (trace.SpanContext, propagation) {
	if sc, ok := parseTraceparent(h.Get(message.Traceparent)); ok {
		if ts := h.Get(message.Tracestate); len(ts) > 0 {
			if state, err := trace.ParseTraceState(string(ts)); err == nil {
				sc = sc.WithTraceState(state)
			}
		}
		return sc, w3c
	}
	if v := h.Get(message.B3); v != nil {
		if sc, ok := parseB3(v); ok {
			return sc, b3Single
		}
	}
	if id := h.Get(message.XB3TraceID); id != nil {
		sampled := string(h.Get(message.XB3Sampled))
		sc, ok := spanContext(id, h.Get(message.XB3SpanID), sampled == "1" || sampled == "true" || string(h.Get(message.XB3Flags)) == "1")
		return sc, mode(ok, b3Multi)
	}
	return trace.SpanContext{}, w3c
}

func mode(ok bool, p propagation) propagation {
	if ok {
		return p
	}
	return w3c
}

// parseTraceparent reads version-traceid-parentid-flags. A higher version may
// have more behind another dash; version ff is invalid.
func parseTraceparent(v []byte) (trace.SpanContext, bool) {
	const size = 2 + 1 + 32 + 1 + 16 + 1 + 2
	if len(v) < size || v[2] != '-' || v[35] != '-' || v[52] != '-' || string(v[:2]) == "ff" || !lowerHex(v[:2]) || !lowerHex(v[53:55]) {
		return trace.SpanContext{}, false
	}
	if len(v) > size && (string(v[:2]) == "00" || v[size] != '-') {
		return trace.SpanContext{}, false
	}
	if !lowerHex(v[3:35]) || !lowerHex(v[36:52]) {
		return trace.SpanContext{}, false
	}
	var flags [1]byte
	if _, err := hex.Decode(flags[:], v[53:55]); err != nil {
		return trace.SpanContext{}, false
	}
	return spanContext(v[3:35], v[36:52], flags[0]&1 == 1)
}

func lowerHex(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// parseB3 reads traceid-spanid[-sampled[-parent]] (https://github.com/openzipkin/b3-propagation#single-header).
func parseB3(v []byte) (trace.SpanContext, bool) {
	at := 32
	if len(v) > 16 && v[16] == '-' {
		at = 16
	}
	if len(v) < at+17 || v[at] != '-' {
		return trace.SpanContext{}, false
	}
	rest := v[at+17:]
	sampled := len(rest) >= 2 && rest[0] == '-' && (rest[1] == '1' || rest[1] == 'd')
	return spanContext(v[:at], v[at+1:at+17], sampled)
}

func spanContext(id, span []byte, sampled bool) (trace.SpanContext, bool) {
	var cfg trace.SpanContextConfig
	if len(id) != 32 && len(id) != 16 || len(span) != 16 {
		return trace.SpanContext{}, false
	}
	// A 64-bit trace id of B3 is padded on the left.
	if _, err := hex.Decode(cfg.TraceID[16-len(id)/2:], id); err != nil {
		return trace.SpanContext{}, false
	}
	if _, err := hex.Decode(cfg.SpanID[:], span); err != nil {
		return trace.SpanContext{}, false
	}
	cfg.TraceFlags = trace.TraceFlags(0).WithSampled(sampled)
	cfg.Remote = true
	sc := trace.NewSpanContext(cfg)
	return sc, sc.IsValid()
}

// inject writes the context for the upstream.
func inject(h *message.Head, sc trace.SpanContext, format propagation) {
	id, span := sc.TraceID(), sc.SpanID()
	b := make([]byte, 0, 64)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, id[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, span[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, []byte{byte(sc.TraceFlags())})
	h.SetName(message.Traceparent, b)
	switch format {
	case b3Single:
		b = hex.AppendEncode(b[:0], id[:])
		b = append(b, '-')
		b = hex.AppendEncode(b, span[:])
		h.SetName(message.B3, append(b, "-1"...))
	case b3Multi:
		h.SetName(message.XB3TraceID, hex.AppendEncode(b[:0], id[:]))
		h.SetName(message.XB3SpanID, hex.AppendEncode(b[:0], span[:]))
		h.SetNameString(message.XB3Sampled, "1")
		h.RemoveName(message.XB3ParentSpanID)
	}
}

// tag is a custom tag of the configuration.
type tag struct {
	name  string
	value func(*stream.Stream) (string, bool)
}

func customTag(name string, kind any) (tag, error) {
	switch t := kind.(type) {
	case *tracingv3.CustomTag_Literal_:
		v := t.Literal.GetValue()
		return tag{name, func(*stream.Stream) (string, bool) { return v, true }}, nil
	case *tracingv3.CustomTag_Environment_:
		v, ok := os.LookupEnv(t.Environment.GetName())
		if !ok {
			v = t.Environment.GetDefaultValue()
		}
		return tag{name, func(*stream.Stream) (string, bool) { return v, v != "" }}, nil
	case *tracingv3.CustomTag_RequestHeader:
		field, def := t.RequestHeader.GetName(), t.RequestHeader.GetDefaultValue()
		return tag{name, func(s *stream.Stream) (string, bool) {
			if v := s.Request.Lookup(field); v != nil {
				return string(v), true
			}
			return def, def != ""
		}}, nil
	}
	return tag{}, fmt.Errorf("tag %q: %T is not implemented; literal, environment and request_header are", name, kind)
}
