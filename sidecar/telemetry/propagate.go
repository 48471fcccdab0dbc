package telemetry

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"

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

// verdict is what a caller decided about sampling.
type verdict uint8

const (
	undecided verdict = iota // it is ours to decide
	sampled
	denied
)

func decided(yes bool) verdict {
	if yes {
		return sampled
	}
	return denied
}

// caller is the trace context of a request: a span, which is not valid where
// the caller sent none, and what the caller decided about sampling.
type caller struct {
	span    trace.SpanContext
	format  propagation
	verdict verdict
}

// maxTracestate is what a proxy must at least propagate
// (https://www.w3.org/TR/trace-context/#tracestate-limits); more is not read.
const maxTracestate = 512

// extract reads the trace context of a request: W3C traceparent
// (https://www.w3.org/TR/trace-context/#traceparent-header), else B3, single
// or in several fields. What is malformed counts as absent, as both demand; so
// does a traceparent that comes twice.
func extract(h *message.Head) caller {
	if sc, ok := parseTraceparent(h.Get(message.Traceparent)); ok && h.Count("traceparent") == 1 {
		if ts, ok := h.Joined("tracestate"); ok && len(ts) <= maxTracestate {
			if state, err := trace.ParseTraceState(string(ts)); err == nil {
				sc = sc.WithTraceState(state)
			}
		}
		return caller{sc, w3c, decided(sc.IsSampled())}
	}
	if v := h.Get(message.B3); v != nil {
		if c, ok := parseB3(v); ok {
			return c
		}
	}
	c := caller{format: b3Multi}
	switch string(h.Get(message.XB3Sampled)) {
	case "1", "true":
		c.verdict = sampled
	case "0", "false":
		c.verdict = denied
	}
	if h.Is(message.XB3Flags, "1") { // debug
		c.verdict = sampled
	}
	if id := h.Get(message.XB3TraceID); id != nil {
		c.span, _ = spanContext(id, h.Get(message.XB3SpanID), c.verdict == sampled)
	} else if c.verdict == undecided {
		c.format = w3c
	}
	return c
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

// parseB3 reads traceid-spanid[-sampled[-parentspanid]], or the sampling state
// alone (https://github.com/openzipkin/b3-propagation#single-header).
func parseB3(v []byte) (caller, bool) {
	c := caller{format: b3Single}
	if len(v) == 1 {
		var ok bool
		c.verdict, ok = b3State(v[0])
		return c, ok
	}
	at := 32
	if len(v) > 16 && v[16] == '-' {
		at = 16
	}
	if len(v) < at+17 || v[at] != '-' {
		return c, false
	}
	if rest := v[at+17:]; len(rest) > 0 {
		var ok bool
		if len(rest) != 2 && len(rest) != 2+17 || rest[0] != '-' {
			return c, false
		}
		if c.verdict, ok = b3State(rest[1]); !ok {
			return c, false
		}
		if parent := rest[2:]; len(parent) > 0 && (parent[0] != '-' || !lowerHex(parent[1:])) {
			return c, false
		}
	}
	var ok bool
	c.span, ok = spanContext(v[:at], v[at+1:at+17], c.verdict == sampled)
	return c, ok
}

func b3State(b byte) (verdict, bool) {
	switch b {
	case '1', 'd':
		return sampled, true
	case '0':
		return denied, true
	}
	return undecided, false
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

// inject writes the context for the upstream. A tracestate belongs to the
// traceparent that it came with: the one of a context that was not taken over
// is not passed on.
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
	if sc.TraceState().Len() == 0 {
		h.RemoveName(message.Tracestate)
	}
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
		field, def := strings.ToLower(t.RequestHeader.GetName()), t.RequestHeader.GetDefaultValue()
		return tag{name, func(s *stream.Stream) (string, bool) {
			if v := s.Request.Lookup(field); v != nil {
				return string(v[:min(len(v), maxTag)]), true
			}
			return def, def != ""
		}}, nil
	}
	return tag{}, fmt.Errorf("tag %q: %T is not implemented; literal, environment and request_header are", name, kind)
}
