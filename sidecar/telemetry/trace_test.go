package telemetry

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	otlpv1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

// receiver is an OTLP collector.
type receiver struct {
	collectorv1.UnimplementedTraceServiceServer
	batches chan *otlpv1.ResourceSpans
}

func (r *receiver) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	for _, b := range req.GetResourceSpans() {
		r.batches <- b
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

func newReceiver(t testing.TB) (*receiver, Dial) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, r := grpc.NewServer(), &receiver{batches: make(chan *otlpv1.ResourceSpans, 100)}
	collectorv1.RegisterTraceServiceServer(s, r)
	go func() { _ = s.Serve(l) }() // ends by Stop
	t.Cleanup(s.Stop)
	return r, func(ctx context.Context, cluster string) (net.Conn, error) {
		if cluster != "otel" {
			t.Errorf("cluster %q was dialed", cluster)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}
}

func tracing(t testing.TB, cfg proto.Message, random float64) *hcmv3.HttpConnectionManager_Tracing {
	t.Helper()
	a, err := anypb.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &hcmv3.HttpConnectionManager_Tracing{RandomSampling: &typev3.Percent{Value: random},
		Provider: &tracev3.Tracing_Http{Name: "otel", ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: a}}}
}

func overGRPC() *tracev3.OpenTelemetryConfig {
	return &tracev3.OpenTelemetryConfig{ServiceName: "shop", GrpcService: &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "otel"}}}}
}

func attributes(list []*commonv1.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range list {
		switch v := kv.GetValue().GetValue().(type) {
		case *commonv1.AnyValue_StringValue:
			m[kv.GetKey()] = v.StringValue
		case *commonv1.AnyValue_IntValue:
			m[kv.GetKey()] = string(rune('0' + v.IntValue%10))
		}
	}
	return m
}

func TestSpansReachACollector(t *testing.T) {
	r, dial := newReceiver(t)
	tracers := NewTracers(dial, "node-1", "unused", quiet)
	cfg := tracing(t, overGRPC(), 100)
	cfg.MaxPathTagLength = wrapperspb.UInt32(6)
	cfg.CustomTags = []*tracingv3.CustomTag{{Tag: "team", Type: &tracingv3.CustomTag_Literal_{Literal: &tracingv3.CustomTag_Literal{Value: "blue"}}}}
	tr, err := tracers.Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := tracers.Compile(cfg); err != nil || again == nil || len(tracers.providers) != 1 {
		t.Errorf("two managers with one provider have %d exporters, %v", len(tracers.providers), err)
	}

	s := finished()
	s.Request.AddString("traceparent", "00-"+id128+"-"+spanID+"-01")
	// Bytes that are no UTF-8 are allowed in HTTP, and not in a protobuf.
	s.Request.SetNameString(message.UserAgent, "evil\xff\xfe")
	span := tr.Start(s)
	if span == nil || s.TraceID != id128 {
		t.Fatalf("span %v, trace %q", span, s.TraceID)
	}
	span.Inject(s)
	span.Finish(s)
	passed := strings.Split(string(s.Request.Lookup("traceparent")), "-")
	tracers.Close() // exports what waits
	b := <-r.batches
	if got := attributes(b.GetResource().GetAttributes()); got["service.name"] != "shop" || got["service.instance.id"] != "node-1" {
		t.Errorf("resource: %v", got)
	}
	sp := b.GetScopeSpans()[0].GetSpans()[0]
	if hex.EncodeToString(sp.GetTraceId()) != id128 || hex.EncodeToString(sp.GetParentSpanId()) != spanID || sp.GetKind() != otlpv1.Span_SPAN_KIND_SERVER || sp.GetName() != "GET r1" {
		t.Errorf("%v", sp)
	}
	if len(passed) != 4 || passed[1] != id128 || passed[2] != hex.EncodeToString(sp.GetSpanId()) || passed[3] != "01" {
		t.Errorf("upstream got traceparent %v", passed)
	}
	if d := time.Duration(sp.GetEndTimeUnixNano() - sp.GetStartTimeUnixNano()); d != s.Duration || sp.GetStartTimeUnixNano() != uint64(s.Start.UnixNano()) {
		t.Errorf("start %d, duration %s", sp.GetStartTimeUnixNano(), d)
	}
	if sp.GetStatus().GetCode() != otlpv1.Status_STATUS_CODE_ERROR || sp.GetStatus().GetMessage() != "upstream_reset" {
		t.Errorf("status %v", sp.GetStatus())
	}
	got := attributes(sp.GetAttributes())
	for key, want := range map[string]string{"http.request.method": "GET", "url.path": "/now?x", "server.address": "shop.example", "network.protocol.name": "HTTP/2",
		"client.address": "2001:db8::1", "http.response.status_code": "3", "response_flags": "UF,URX", "user_agent.original": "evil\uFFFD", "upstream_cluster": "orders",
		"peer.spiffe_id": "spiffe://a/b", "team": "blue", "guid:x-request-id": "id-1"} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
}

func TestSampling(t *testing.T) {
	_, dial := newReceiver(t)
	tracers := NewTracers(dial, "", "", quiet)
	defer tracers.Close()
	full := func(sampling int) *route.Route { return &route.Route{Name: "r", TraceSampling: int32(sampling)} }
	for _, x := range []struct {
		name            string
		random, overall float64
		route           *route.Route
		fields          []string
		want            bool
	}{
		{"always", 100, 100, full(-1), nil, true},
		{"never", 0, 100, full(-1), nil, false},
		{"the route says always", 0, 100, full(10000), nil, true},
		{"the route says never", 100, 100, full(0), nil, false},
		{"no route", 100, 100, nil, nil, true},
		{"the caller sampled", 0, 100, full(0), []string{"traceparent", "00-" + id128 + "-" + spanID + "-01"}, true},
		{"the caller did not", 100, 100, full(10000), []string{"traceparent", "00-" + id128 + "-" + spanID + "-00"}, false},
		{"a B3 caller denied", 100, 100, full(-1), []string{"b3", "0"}, false},
		{"a B3 caller asked, without ids", 0, 100, full(-1), []string{"b3", "1"}, true},
		{"overall is zero", 100, 0, full(-1), []string{"traceparent", "00-" + id128 + "-" + spanID + "-01"}, false},
		{"a malformed parent is none", 100, 100, full(-1), []string{"traceparent", "00-xyz"}, true},
	} {
		cfg := tracing(t, overGRPC(), x.random)
		cfg.OverallSampling = &typev3.Percent{Value: x.overall}
		tr, err := tracers.Compile(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s := finished()
		s.Route = x.route
		s.TraceID = ""
		for i := 0; i < len(x.fields); i += 2 {
			s.Request.AddString(x.fields[i], x.fields[i+1])
		}
		span := tr.Start(s)
		if (span != nil) != x.want || (s.TraceID != "") != x.want {
			t.Errorf("%s: span %v, trace %q", x.name, span, s.TraceID)
		}
	}
	if tr, err := tracers.Compile(&hcmv3.HttpConnectionManager_Tracing{}); tr != nil || err != nil {
		t.Errorf("no provider: %v, %v", tr, err)
	}
}

func TestSpansOverHTTP(t *testing.T) {
	bodies, heads := make(chan []byte, 10), make(chan *http.Request, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		heads <- r
		bodies <- b
	}))
	defer srv.Close()
	tracers := NewTracers(func(ctx context.Context, cluster string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}, "n", "", quiet)
	tr, err := tracers.Compile(tracing(t, &tracev3.OpenTelemetryConfig{HttpService: &corev3.HttpService{
		HttpUri:             &corev3.HttpUri{Uri: "http://collector.example/v1/traces", HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "otel"}},
		RequestHeadersToAdd: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-team", Value: "blue"}}},
	}}, 100))
	if err != nil {
		t.Fatal(err)
	}
	s := finished()
	tr.Start(s).Finish(s)
	tracers.Close()
	var req collectorv1.ExportTraceServiceRequest
	if err := proto.Unmarshal(<-bodies, &req); err != nil || len(req.GetResourceSpans()) != 1 {
		t.Errorf("%v, %v", &req, err)
	}
	if r := <-heads; r.URL.Path != "/v1/traces" || r.Host != "collector.example" || r.Header.Get("X-Team") != "blue" {
		t.Errorf("%s %s %v", r.Host, r.URL, r.Header)
	}
}

func TestACollectorThatIsAwayStopsNothing(t *testing.T) {
	var told bytes.Buffer
	tracers := NewTracers(func(context.Context, string) (net.Conn, error) { return nil, net.ErrClosed }, "", "", slog.New(slog.NewTextHandler(&told, nil)))
	tr, err := tracers.Compile(tracing(t, overGRPC(), 100))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 10000 { // more than the queue takes
		s := &stream.Stream{}
		s.Conn, s.Manager, s.Start = &stream.Connection{}, &stream.Manager{}, began
		tr.Start(s).Finish(s)
	}
	tracers.Close()
	if d := time.Since(began); d > 20*time.Second || !strings.Contains(told.String(), "could not be exported") {
		t.Errorf("%s, told %q", d, told.String())
	}
}

func TestTracingThatIsRefused(t *testing.T) {
	tracers := NewTracers(nil, "", "", quiet)
	defer tracers.Close()
	sampler := overGRPC()
	sampler.Sampler = &corev3.TypedExtensionConfig{Name: "parent"}
	bad := tracing(t, overGRPC(), 100)
	bad.CustomTags = []*tracingv3.CustomTag{{Tag: "x"}}
	for want, cfg := range map[string]*hcmv3.HttpConnectionManager_Tracing{
		"ZipkinConfig\" is not implemented": tracing(t, &tracev3.ZipkinConfig{}, 100),
		"sampler":                           tracing(t, sampler, 100),
		"grpc_service.envoy_grpc":           tracing(t, &tracev3.OpenTelemetryConfig{}, 100),
		"is not a URL":                      tracing(t, &tracev3.OpenTelemetryConfig{HttpService: &corev3.HttpService{HttpUri: &corev3.HttpUri{Uri: "nonsense"}}}, 100),
		"custom_tags[0]":                    bad,
	} {
		if tr, err := tracers.Compile(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, %v; want %q", tr, err, want)
		}
	}
}
