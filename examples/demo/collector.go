package demo

import (
	"context"
	"encoding/hex"
	"net"
	"sync"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// collector is an OpenTelemetry collector that keeps the spans it got, so that
// the demo can show one trace across its hops.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	server *grpc.Server
	addr   string

	mu     sync.Mutex
	traces map[string][]Span
	order  []string // the traces' ids, oldest first
}

// Span is what the demo shows of one.
type Span struct {
	Service, Name, ID, Parent string
	Millis                    float64
}

// Bounds of what the collector keeps: the newest traces, and of each the first spans.
const (
	maxTraces = 10_000
	maxSpans  = 1_000
)

func newCollector(addr string) (*collector, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &collector{server: grpc.NewServer(), addr: l.Addr().String(), traces: map[string][]Span{}}
	collectorv1.RegisterTraceServiceServer(c.server, c)
	go func() {
		_ = c.server.Serve(l) // ends with close
	}()
	return c, nil
}

// Export implements OTLP's trace service.
func (c *collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.GetResourceSpans() {
		service := ""
		for _, a := range rs.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				id := hex.EncodeToString(s.GetTraceId())
				if len(c.traces[id]) >= maxSpans {
					continue
				}
				if c.traces[id] == nil {
					if c.order = append(c.order, id); len(c.order) > maxTraces {
						delete(c.traces, c.order[0])
						c.order = c.order[1:]
					}
				}
				c.traces[id] = append(c.traces[id], Span{Service: service, Name: s.GetName(), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
					Millis: float64(s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano()) / 1e6})
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// trace returns the spans of a trace.
func (c *collector) trace(id string) []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.traces[id]...)
}

func (c *collector) close() { c.server.Stop() }
