package harness

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// Collector receives OpenTelemetry traces in the test process, over OTLP's gRPC.
type Collector struct {
	collector.UnimplementedTraceServiceServer
	t    testing.TB
	addr string

	mu    sync.Mutex
	spans []Span
}

// Span is a received span, with what tests ask about in plain types.
type Span struct {
	Service               string // resource attribute service.name
	Name, Kind            string
	Trace, ID, Parent     string // hexadecimal; Parent is "" at the root
	Attributes            map[string]string
	Start, End            time.Time
	StatusCode, StatusMsg string
}

// NewCollector starts a collector.
func NewCollector(t testing.TB) *Collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Collector{t: t, addr: l.Addr().String()}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, c)
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-served })
	return c
}

// Addr is host:port.
func (c *Collector) Addr() string { return c.addr }

// Export implements the collector service.
func (c *Collector) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range req.ResourceSpans {
		service := texts(rs.GetResource().GetAttributes())["service.name"]
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				c.spans = append(c.spans, spanOf(service, s))
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func spanOf(service string, s *trace.Span) Span {
	return Span{Service: service, Name: s.Name, Kind: s.Kind.String(), Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId),
		Parent: hex.EncodeToString(s.ParentSpanId), Attributes: texts(s.Attributes), Start: time.Unix(0, int64(s.StartTimeUnixNano)),
		End: time.Unix(0, int64(s.EndTimeUnixNano)), StatusCode: s.GetStatus().GetCode().String(), StatusMsg: s.GetStatus().GetMessage()}
}

func texts(attributes []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range attributes {
		switch v := kv.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[kv.Key] = v.StringValue
		case *common.AnyValue_IntValue:
			out[kv.Key] = fmt.Sprint(v.IntValue)
		case *common.AnyValue_BoolValue:
			out[kv.Key] = fmt.Sprint(v.BoolValue)
		case *common.AnyValue_DoubleValue:
			out[kv.Key] = fmt.Sprint(v.DoubleValue)
		default:
			out[kv.Key] = kv.GetValue().String()
		}
	}
	return out
}

// Spans returns what came so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// WaitTrace waits until the trace (hexadecimal id) has n spans and returns them.
func (c *Collector) WaitTrace(id string, n int) []Span {
	c.t.Helper()
	var got []Span
	Eventually(c.t, patience, fmt.Sprintf("trace %s with %d spans", id, n), func() error {
		got = got[:0]
		for _, s := range c.Spans() {
			if s.Trace == id {
				got = append(got, s)
			}
		}
		if len(got) < n {
			return fmt.Errorf("%d spans so far: %+v", len(got), got)
		}
		return nil
	})
	return got
}
