package telemetry

import (
	"strings"
	"testing"

	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"

	"sallyport/sidecar/message"
)

const (
	id128  = "0af7651916cd43dd8448eb211c80319c"
	id64   = "a3ce929d0e0e4736"
	spanID = "b7ad6b7169203331"
)

func head(fields ...string) *message.Head {
	h := &message.Head{}
	for i := 0; i < len(fields); i += 2 {
		h.AddString(fields[i], fields[i+1])
	}
	return h
}

func TestExtract(t *testing.T) {
	const none = "00000000000000000000000000000000"
	long := id128 + "-" + spanID
	for _, x := range []struct {
		name    string
		fields  []string
		trace   string // none: no parent
		format  propagation
		verdict verdict
	}{
		{"nothing", nil, none, w3c, undecided},
		{"traceparent, sampled", []string{"traceparent", "00-" + long + "-01"}, id128, w3c, sampled},
		{"traceparent, not sampled", []string{"traceparent", "00-" + long + "-00"}, id128, w3c, denied},
		{"other flags", []string{"traceparent", "00-" + long + "-03"}, id128, w3c, sampled},
		{"a version to come", []string{"traceparent", "cc-" + long + "-01-what-the-future-holds"}, id128, w3c, sampled},
		{"a version to come, no dash", []string{"traceparent", "cc-" + long + "-01x"}, none, w3c, undecided},
		{"version 00 with more", []string{"traceparent", "00-" + long + "-01-more"}, none, w3c, undecided},
		{"version ff", []string{"traceparent", "ff-" + long + "-01"}, none, w3c, undecided},
		{"version in upper case", []string{"traceparent", "0A-" + long + "-01"}, none, w3c, undecided},
		{"trace id in upper case", []string{"traceparent", "00-" + strings.ToUpper(id128) + "-" + spanID + "-01"}, none, w3c, undecided},
		{"zero trace id", []string{"traceparent", "00-" + none + "-" + spanID + "-01"}, none, w3c, undecided},
		{"zero span id", []string{"traceparent", "00-" + id128 + "-0000000000000000-01"}, none, w3c, undecided},
		{"cut off", []string{"traceparent", "00-" + long + "-0"}, none, w3c, undecided},
		{"other separators", []string{"traceparent", "00_" + long + "-01"}, none, w3c, undecided},
		{"no hex", []string{"traceparent", "00-" + id128[:31] + "g-" + spanID + "-01"}, none, w3c, undecided},
		{"flags that are no hex", []string{"traceparent", "00-" + long + "-0g"}, none, w3c, undecided},
		{"empty", []string{"traceparent", ""}, none, w3c, undecided},
		{"twice", []string{"traceparent", "00-" + long + "-01", "traceparent", "00-" + long + "-01"}, none, w3c, undecided},
		{"B3", []string{"b3", long + "-1"}, id128, b3Single, sampled},
		{"B3, debug", []string{"b3", long + "-d-" + spanID}, id128, b3Single, sampled},
		{"B3, not sampled", []string{"b3", long + "-0"}, id128, b3Single, denied},
		{"B3 without a decision", []string{"b3", long}, id128, b3Single, undecided},
		{"B3 of 64 bits", []string{"b3", id64 + "-" + spanID + "-1"}, none[:16] + id64, b3Single, sampled},
		{"B3, denied alone", []string{"b3", "0"}, none, b3Single, denied},
		{"B3, accepted alone", []string{"b3", "1"}, none, b3Single, sampled},
		{"B3, rubbish alone", []string{"b3", "x"}, none, w3c, undecided},
		{"B3, rubbish behind", []string{"b3", long + "-1x"}, none, w3c, undecided},
		{"B3, unknown state", []string{"b3", long + "-2"}, none, w3c, undecided},
		{"B3, cut off", []string{"b3", id128 + "-" + spanID[:10]}, none, w3c, undecided},
		{"B3, bad parent", []string{"b3", long + "-1-zzzzzzzzzzzzzzzz"}, none, w3c, undecided},
		{"B3 in several fields", []string{"x-b3-traceid", id128, "x-b3-spanid", spanID, "x-b3-sampled", "1"}, id128, b3Multi, sampled},
		{"B3 in several fields, not sampled", []string{"x-b3-traceid", id64, "x-b3-spanid", spanID, "x-b3-sampled", "0"}, none[:16] + id64, b3Multi, denied},
		{"B3 in several fields, debug", []string{"x-b3-traceid", id128, "x-b3-spanid", spanID, "x-b3-flags", "1"}, id128, b3Multi, sampled},
		{"B3 in several fields, undecided", []string{"x-b3-traceid", id128, "x-b3-spanid", spanID}, id128, b3Multi, undecided},
		{"B3 in several fields, no span", []string{"x-b3-traceid", id128, "x-b3-sampled", "1"}, none, b3Multi, sampled},
		{"B3, the decision alone", []string{"x-b3-sampled", "0"}, none, b3Multi, denied},
		{"traceparent before B3", []string{"b3", "0", "traceparent", "00-" + long + "-01"}, id128, w3c, sampled},
		{"B3 where traceparent is malformed", []string{"traceparent", "00", "b3", long + "-1"}, id128, b3Single, sampled},
	} {
		got := extract(head(x.fields...))
		if got.span.TraceID().String() != x.trace || got.span.IsValid() != (x.trace != none) || got.format != x.format || got.verdict != x.verdict {
			t.Errorf("%s: trace %s, format %d, verdict %d", x.name, got.span.TraceID(), got.format, got.verdict)
		}
		if got.span.IsValid() && (got.span.SpanID().String() != spanID || got.span.IsSampled() != (got.verdict == sampled)) {
			t.Errorf("%s: span %s, sampled %v", x.name, got.span.SpanID(), got.span.IsSampled())
		}
	}
}

func TestTracestate(t *testing.T) {
	parent := "00-" + id128 + "-" + spanID + "-01"
	for state, want := range map[string]string{"a=1,b=2": "a=1,b=2", "not valid!": "", strings.Repeat("x", 600) + "=1": ""} {
		if got := extract(head("traceparent", parent, "tracestate", state)).span.TraceState().String(); got != want {
			t.Errorf("%q became %q", state, got)
		}
	}
	if got := extract(head("traceparent", parent, "tracestate", "a=1", "tracestate", "b=2")).span.TraceState().String(); got != "a=1,b=2" {
		t.Errorf("two fields became %q", got)
	}
}

func TestInject(t *testing.T) {
	sc := extract(head("traceparent", "00-"+id128+"-"+spanID+"-01")).span
	long := id128 + "-" + spanID
	for _, x := range []struct {
		format propagation
		in     []string
		want   map[string]string
	}{
		{w3c, nil, map[string]string{"traceparent": "00-" + long + "-01", "b3": "", "x-b3-traceid": ""}},
		{w3c, []string{"traceparent", "rubbish", "traceparent", "more", "tracestate", "of=another"}, map[string]string{"traceparent": "00-" + long + "-01", "tracestate": ""}},
		{b3Single, []string{"b3", "old"}, map[string]string{"traceparent": "00-" + long + "-01", "b3": long + "-1"}},
		{b3Multi, []string{"x-b3-parentspanid", "old"}, map[string]string{"traceparent": "00-" + long + "-01", "x-b3-traceid": id128, "x-b3-spanid": spanID, "x-b3-sampled": "1", "x-b3-parentspanid": ""}},
	} {
		h := head(x.in...)
		inject(h, sc, x.format)
		for name, want := range x.want {
			if got := string(h.Lookup(name)); got != want || h.Count(name) > 1 {
				t.Errorf("format %d: %s is %q, %d times; want %q", x.format, name, got, h.Count(name), want)
			}
		}
	}
	h := head("tracestate", "a=1")
	inject(h, extract(head("traceparent", "00-"+id128+"-"+spanID+"-01", "tracestate", "a=1")).span, w3c)
	if got := string(h.Lookup("tracestate")); got != "a=1" {
		t.Errorf("the tracestate that belongs to the trace became %q", got)
	}
}

// FuzzExtract: what is taken over is valid, and what is written for the
// upstream is read there as the same trace.
func FuzzExtract(f *testing.F) {
	f.Add([]byte("00-"+id128+"-"+spanID+"-01"), []byte(id128+"-"+spanID+"-1"), []byte(id64), []byte(spanID), []byte("a=1"))
	f.Add([]byte("01-"+id128+"-"+spanID+"-00-x"), []byte("0"), []byte(id128), []byte(""), []byte(""))
	f.Fuzz(func(t *testing.T, traceparent, b3, id, span, state []byte) {
		h := &message.Head{}
		for n, v := range map[message.Name][]byte{message.Traceparent: traceparent, message.B3: b3, message.XB3TraceID: id, message.XB3SpanID: span, message.Tracestate: state} {
			if len(v) > 0 {
				h.SetName(n, v)
			}
		}
		got := extract(h)
		if !got.span.IsValid() {
			return
		}
		if got.verdict == sampled != got.span.IsSampled() {
			t.Fatalf("verdict %d, sampled %v", got.verdict, got.span.IsSampled())
		}
		inject(h, got.span, got.format)
		again := extract(h)
		if again.span.TraceID() != got.span.TraceID() || again.span.SpanID() != got.span.SpanID() || again.span.IsSampled() != got.span.IsSampled() {
			t.Fatalf("%v was passed on as %v", got.span, again.span)
		}
	})
}

func TestCustomTags(t *testing.T) {
	t.Setenv("TEAM", "blue")
	s := finished()
	for _, x := range []struct {
		tag  *tracingv3.CustomTag
		want string
		ok   bool
	}{
		{&tracingv3.CustomTag{Type: &tracingv3.CustomTag_Literal_{Literal: &tracingv3.CustomTag_Literal{Value: "v"}}}, "v", true},
		{&tracingv3.CustomTag{Type: &tracingv3.CustomTag_Environment_{Environment: &tracingv3.CustomTag_Environment{Name: "TEAM"}}}, "blue", true},
		{&tracingv3.CustomTag{Type: &tracingv3.CustomTag_Environment_{Environment: &tracingv3.CustomTag_Environment{Name: "NOT_SET_HERE", DefaultValue: "d"}}}, "d", true},
		{&tracingv3.CustomTag{Type: &tracingv3.CustomTag_Environment_{Environment: &tracingv3.CustomTag_Environment{Name: "NOT_SET_HERE"}}}, "", false},
		{&tracingv3.CustomTag{Type: &tracingv3.CustomTag_RequestHeader{RequestHeader: &tracingv3.CustomTag_Header{Name: "X-Request-Id"}}}, "id-1", true},
		{&tracingv3.CustomTag{Type: &tracingv3.CustomTag_RequestHeader{RequestHeader: &tracingv3.CustomTag_Header{Name: "x-none", DefaultValue: "d"}}}, "d", true},
		{&tracingv3.CustomTag{Type: &tracingv3.CustomTag_RequestHeader{RequestHeader: &tracingv3.CustomTag_Header{Name: "x-none"}}}, "", false},
	} {
		c, err := customTag("n", x.tag.GetType())
		if err != nil {
			t.Fatal(err)
		}
		if v, ok := c.value(s); v != x.want || ok != x.ok {
			t.Errorf("%v: %q, %v", x.tag, v, ok)
		}
	}
	if _, err := customTag("n", (&tracingv3.CustomTag{Type: &tracingv3.CustomTag_Metadata_{Metadata: &tracingv3.CustomTag_Metadata{Kind: &metadatav3.MetadataKind{}}}}).GetType()); err == nil {
		t.Error("a tag of metadata was taken")
	}
}
