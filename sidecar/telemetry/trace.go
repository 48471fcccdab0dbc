package telemetry

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/message"
	"sallyport/sidecar/stream"
)

// Dial opens a connection to a host of a cluster, TLS included, for calls
// made off the workers (*upstream.Registry has it).
type Dial func(ctx context.Context, cluster string) (net.Conn, error)

// Tracers makes tracers and owns their exporters: connection managers with the
// same provider share one. Safe for concurrent use.
type Tracers struct {
	dial Dial
	node string // service.instance.id
	name string // service.name where the configuration has none
	log  *slog.Logger

	counts spanCounts

	mu        sync.Mutex
	providers map[string]*sdktrace.TracerProvider
}

// Sent counts the spans that a collector has taken, Dropped those that none has: it was away, or more came than may wait.
func (t *Tracers) Sent() uint64    { return t.counts.sent.Load() }
func (t *Tracers) Dropped() uint64 { return t.counts.dropped.Load() }

// NewTracers returns the process's tracers; node and service name come from the bootstrap.
func NewTracers(dial Dial, node, service string, log *slog.Logger) *Tracers {
	return &Tracers{dial: dial, node: node, name: cmp.Or(service, "sallyport"), log: log, providers: map[string]*sdktrace.TracerProvider{}}
}

const otelType = "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"

// Compile makes the tracer of a connection manager.
func (t *Tracers) Compile(cfg *hcmv3.HttpConnectionManager_Tracing) (stream.Tracer, error) {
	provider := cfg.GetProvider()
	if provider == nil {
		return nil, nil
	}
	if u := provider.GetTypedConfig().GetTypeUrl(); u != otelType {
		return nil, fmt.Errorf("tracing.provider %q: extension %q is not implemented; OpenTelemetry (%s) is", provider.GetName(), u, otelType)
	}
	var otel tracev3.OpenTelemetryConfig
	if err := provider.GetTypedConfig().UnmarshalTo(&otel); err != nil {
		return nil, fmt.Errorf("tracing.provider: %w", err)
	}
	if otel.GetSampler() != nil {
		return nil, fmt.Errorf("tracing.provider.sampler: %q is not implemented; use random_sampling", otel.GetSampler().GetName())
	}
	p, err := t.provider(&otel)
	if err != nil {
		return nil, fmt.Errorf("tracing.provider: %w", err)
	}
	percent := func(p *typev3.Percent) float64 {
		if p == nil {
			return 1
		}
		return p.GetValue() / 100
	}
	tr := &tracer{
		tracer:  p.Tracer("sallyport"),
		random:  percent(cfg.GetRandomSampling()),
		overall: percent(cfg.GetOverallSampling()),
		maxPath: 256,
	}
	if cfg.GetMaxPathTagLength() != nil {
		tr.maxPath = int(cfg.GetMaxPathTagLength().GetValue())
	}
	for i, c := range cfg.GetCustomTags() {
		tag, err := customTag(c.GetTag(), c.GetType())
		if err != nil {
			return nil, fmt.Errorf("tracing.custom_tags[%d]: %w", i, err)
		}
		tr.tags = append(tr.tags, tag)
	}
	return tr, nil
}

func (t *Tracers) provider(cfg *tracev3.OpenTelemetryConfig) (*sdktrace.TracerProvider, error) {
	key, err := proto.MarshalOptions{Deterministic: true}.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.providers[string(key)]; p != nil {
		return p, nil
	}
	exp, err := t.exporter(cfg)
	if err != nil {
		return nil, err
	}
	res := resource.NewSchemaless(
		attribute.String("service.name", cmp.Or(cfg.GetServiceName(), t.name)),
		attribute.String("service.instance.id", t.node),
		attribute.String("telemetry.sdk.language", "go"))
	p := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithResource(res),
		sdktrace.WithSpanProcessor(newSpanQueue(exp, &t.counts, t.log)))
	t.providers[string(key)] = p
	return p, nil
}

func (t *Tracers) exporter(cfg *tracev3.OpenTelemetryConfig) (sdktrace.SpanExporter, error) {
	if h := cfg.GetHttpService(); h != nil {
		u, err := url.Parse(h.GetHttpUri().GetUri())
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("http_service.http_uri.uri %q is not a URL", h.GetHttpUri().GetUri())
		}
		cluster := h.GetHttpUri().GetCluster()
		headers := map[string]string{}
		for _, v := range h.GetRequestHeadersToAdd() {
			headers[v.GetHeader().GetKey()] = v.GetHeader().GetValue()
		}
		// The cluster does TLS, as in Envoy: plain HTTP over its connection.
		client := &http.Client{Timeout: cmp.Or(h.GetHttpUri().GetTimeout().AsDuration(), 10*time.Second), Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return t.dial(ctx, cluster) }}}
		return otlptracehttp.New(context.Background(), otlptracehttp.WithEndpoint(u.Host), otlptracehttp.WithURLPath(u.Path),
			otlptracehttp.WithInsecure(), otlptracehttp.WithHTTPClient(client), otlptracehttp.WithHeaders(headers))
	}
	g := cfg.GetGrpcService()
	var target string
	var opts []grpc.DialOption
	switch {
	case g.GetEnvoyGrpc() != nil:
		cluster := g.GetEnvoyGrpc().GetClusterName()
		target = "passthrough:///" + cluster
		opts = append(opts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return t.dial(ctx, cluster) }))
		if a := g.GetEnvoyGrpc().GetAuthority(); a != "" {
			opts = append(opts, grpc.WithAuthority(a))
		}
	default:
		return nil, fmt.Errorf("grpc_service.envoy_grpc or http_service is required")
	}
	conn, err := grpc.NewClient(target, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		return nil, err
	}
	return otlptrace.New(context.Background(), otlptracegrpc.NewClient(otlptracegrpc.WithGRPCConn(conn),
		otlptracegrpc.WithTimeout(cmp.Or(g.GetTimeout().AsDuration(), 10*time.Second))))
}

// Close exports what waits, for at most two seconds.
func (t *Tracers) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.providers {
		if err := p.Shutdown(ctx); err != nil {
			t.log.Warn("last spans could not be exported", "error", err)
		}
	}
}

// tracer implements stream.Tracer.
type tracer struct {
	tracer          trace.Tracer
	random, overall float64
	maxPath         int
	tags            []tag
}

// Start implements stream.Tracer.
func (t *tracer) Start(s *stream.Stream) stream.Span {
	parent := extract(&s.Request)
	yes := parent.verdict == sampled
	if parent.verdict == undecided {
		// Nobody before us decided: it is ours to decide, here, for all hops below.
		rate := t.random
		if s.Route != nil && s.Route.TraceSampling >= 0 {
			rate = float64(s.Route.TraceSampling) / 10000
		}
		yes = rand.Float64() < rate
	}
	if !yes || t.overall < 1 && rand.Float64() >= t.overall {
		return nil
	}
	ctx := context.Background()
	if parent.span.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent.span.WithTraceFlags(trace.FlagsSampled))
	}
	name := valid(s.Request.Get(message.Method), maxMethod)
	if s.Route != nil && s.Route.Name != "" {
		name += " " + s.Route.Name
	}
	_, sp := t.tracer.Start(ctx, name, trace.WithTimestamp(s.Start), trace.WithSpanKind(trace.SpanKindServer))
	s.TraceID = sp.SpanContext().TraceID().String()
	return &span{t: t, span: sp, format: parent.format}
}

type span struct {
	t      *tracer
	span   trace.Span
	format propagation
}

// Inject implements stream.Span.
func (p *span) Inject(s *stream.Stream) { inject(&s.Request, p.span.SpanContext(), p.format) }

// Finish implements stream.Span.
func (p *span) Finish(s *stream.Stream) {
	path := s.Request.Get(message.Path)
	if len(s.OriginalPath) > 0 {
		path = s.OriginalPath
	}
	attrs := make([]attribute.KeyValue, 0, 16)
	attrs = append(attrs,
		attribute.String("component", "proxy"),
		attribute.String("http.request.method", valid(s.Request.Get(message.Method), maxMethod)),
		attribute.String("url.path", valid(path, p.t.maxPath)),
		attribute.String("url.scheme", valid(s.Request.Get(message.Scheme), maxMethod)),
		attribute.String("server.address", valid(s.Request.Get(message.Authority), maxTag)),
		attribute.String("network.protocol.name", s.Protocol.String()),
		attribute.Int("http.response.status_code", s.Status),
		attribute.String("response_flags", string(s.Flags.Append(nil))),
		attribute.Int64("http.request.body.size", int64(s.Received)),
		attribute.Int64("http.response.body.size", int64(s.Sent)))
	optional := func(key, v string) {
		if v != "" {
			attrs = append(attrs, attribute.String(key, v))
		}
	}
	optional("user_agent.original", valid(s.Request.Get(message.UserAgent), maxTag))
	optional("guid:x-request-id", valid(s.Request.Get(message.XRequestID), maxTag))
	if s.Remote.IsValid() {
		optional("client.address", s.Remote.Addr().String())
	}
	optional("upstream_cluster", s.Cluster)
	if s.Host != nil {
		optional("upstream_address", s.Host.String())
	}
	optional("peer.spiffe_id", validText(s.Conn.Principal()))
	for _, c := range p.t.tags {
		if v, ok := c.value(s); ok {
			attrs = append(attrs, attribute.String(c.name, validText(v)))
		}
	}
	p.span.SetAttributes(attrs...)
	if s.Status == 0 || s.Status >= 500 {
		p.span.SetStatus(codes.Error, validText(s.Details))
	}
	p.span.End(trace.WithTimestamp(s.Start.Add(s.Duration)))
}

const replacement = "\uFFFD"

const (
	// maxTag is what one attribute of a span may have of a peer's text: spans wait while the collector is away. The path's
	// own bound is max_path_tag_length.
	maxTag = 1 << 10
	// maxMethod is more than any method or scheme in use has.
	maxMethod = 64
)

// valid makes bytes of a client a string that a protobuf may hold: one byte that is no UTF-8 would have the collector refuse
// every span of the batch. It is cut before it is copied, so that nothing holds the rest.
func valid(b []byte, limit int) string {
	return strings.ToValidUTF8(string(b[:min(len(b), limit)]), replacement)
}

// validText is valid for a text, which is copied if it is cut.
func validText(s string) string {
	if len(s) > maxTag {
		s = strings.Clone(s[:maxTag])
	}
	return strings.ToValidUTF8(s, replacement)
}
