package telemetry

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"sallyport/sidecar/message"
	"sallyport/sidecar/stream"
)

// collecting is an exporter of tests.
type collecting struct {
	gate chan struct{} // not nil: each export waits for it, or for its context
	fail error

	mu      sync.Mutex
	batches []int
	closed  bool
}

func (c *collecting) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if c.gate != nil {
		select {
		case <-c.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if c.fail != nil {
		return c.fail
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batches = append(c.batches, len(spans))
	return nil
}

func (c *collecting) Shutdown(context.Context) error { c.closed = true; return nil }

func (c *collecting) sizes() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.batches)
}

// spanOf is a span with so many bytes of text.
func spanOf(n int) sdktrace.ReadOnlySpan {
	return tracetest.SpanStub{Name: "s", Attributes: []attribute.KeyValue{attribute.String("a", strings.Repeat("u", n))}}.Snapshot()
}

func TestSpansLeaveInBatchesAndSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, counts := &collecting{}, &spanCounts{}
		q := newSpanQueue(c, counts, quiet)
		for range 3 {
			q.OnEnd(spanOf(10))
		}
		synctest.Wait()
		if len(c.sizes()) > 0 {
			t.Error("a span was sent before others could join it")
		}
		time.Sleep(spanDelay)
		synctest.Wait()
		for range spanBatch {
			q.OnEnd(spanOf(10))
		}
		synctest.Wait() // a full batch does not wait
		q.OnEnd(spanOf(10))
		if err := q.Shutdown(t.Context()); err != nil || !c.closed {
			t.Errorf("%v, exporter closed %v", err, c.closed)
		}
		if got := c.sizes(); !slices.Equal(got, []int{3, spanBatch, 1}) {
			t.Errorf("batches %v", got)
		}
		if q.bytes != 0 || q.held != 0 || counts.sent.Load() != spanBatch+4 || counts.dropped.Load() != 0 {
			t.Errorf("%d spans and %d bytes are held, %d sent, %d dropped", q.held, q.bytes, counts.sent.Load(), counts.dropped.Load())
		}
		if q.OnEnd(spanOf(1)); counts.dropped.Load() != 1 {
			t.Error("a span after the end is not counted")
		}
	})
}

func TestSpansThatWaitHaveABound(t *testing.T) {
	for name, c := range map[string]struct{ size, most int }{
		"in number, where they are small": {0, maxSpans},
		"in bytes, where they are large":  {60 << 10, maxSpanBytes / (60 << 10)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				away, counts := &collecting{gate: make(chan struct{})}, &spanCounts{}
				q := newSpanQueue(away, counts, quiet)
				const all = 10000
				for range all {
					q.OnEnd(spanOf(c.size))
					synctest.Wait()
				}
				if q.held > c.most || q.bytes > maxSpanBytes || uint64(q.held)+counts.dropped.Load() != all {
					t.Errorf("%d spans and %d bytes are held, %d dropped", q.held, q.bytes, counts.dropped.Load())
				}
				close(away.gate)
				if err := q.Shutdown(t.Context()); err != nil || counts.sent.Load()+counts.dropped.Load() != all {
					t.Errorf("%v; %d sent, %d dropped", err, counts.sent.Load(), counts.dropped.Load())
				}
			})
		})
	}
}

func TestSpansThatNobodyTakesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, counts := &collecting{fail: errors.New("unavailable")}, &spanCounts{}
		q := newSpanQueue(c, counts, quiet)
		q.OnEnd(spanOf(1))
		time.Sleep(spanDelay)
		synctest.Wait()
		if counts.dropped.Load() != 1 || q.bytes != 0 {
			t.Errorf("%d dropped, %d bytes held", counts.dropped.Load(), q.bytes)
		}
		if err := q.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestACollectorThatIsStuckDoesNotKeepTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newSpanQueue(&collecting{gate: make(chan struct{})}, &spanCounts{}, quiet)
		for range 2 * spanBatch {
			q.OnEnd(spanOf(1))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		begin := time.Now()
		_ = q.Shutdown(ctx) // its error is the exporter's
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("the end took %v", took)
		}
	})
}

func TestNoTextOfARequestIsKeptWhole(t *testing.T) {
	huge := strings.Repeat("u", 55000)
	rec := tracetest.NewSpanRecorder()
	p := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(rec))
	field, err := customTag("custom", &tracingv3.CustomTag_RequestHeader{RequestHeader: &tracingv3.CustomTag_Header{Name: "x-custom"}})
	if err != nil {
		t.Fatal(err)
	}
	tr := &tracer{tracer: p.Tracer("test"), random: 1, overall: 1, maxPath: 256, tags: []tag{field}}
	s := finished()
	for _, name := range []message.Name{message.Method, message.Path, message.Scheme, message.Authority, message.UserAgent, message.XRequestID} {
		s.Request.SetNameString(name, huge)
	}
	s.Request.AddString("x-custom", huge)
	s.OriginalPath, s.Details, s.Conn.Peer = []byte(huge), huge, &stream.Peer{URI: []string{huge}}
	tr.Start(s).Finish(s)
	got := rec.Ended()[0]
	texts := map[string]string{"name": got.Name(), "status": got.Status().Description}
	for _, a := range got.Attributes() {
		texts[string(a.Key)] = a.Value.String()
	}
	if len(texts) < 12 || texts["custom"] == "" || texts["user_agent.original"] == "" || texts["peer.spiffe_id"] == "" {
		t.Fatalf("%d texts are there", len(texts))
	}
	for name, text := range texts {
		if len(text) > maxTag {
			t.Errorf("%s has %d bytes", name, len(text))
		}
	}
	if n := spanSize(got); n > 16<<10 {
		t.Errorf("the span holds %d bytes of a request with 55 kB in each field", n)
	}
}
