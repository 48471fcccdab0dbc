package telemetry

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"sallyport/sidecar/panics"
)

// Bounds of the spans that wait for a collector, those of the batch under way among them. Callers may force a span for each
// of their requests (traceparent), and a collector may be away.
const (
	maxSpans      = 4096
	maxSpanBytes  = 8 << 20
	spanBatch     = 512
	spanDelay     = time.Second      // how long a span waits for others
	exportTimeout = 30 * time.Second // of a batch, with what the exporter tries again
	// spanOverhead is about what the SDK keeps of a span besides its texts.
	spanOverhead = 2 << 10
)

// spanQueue hands ended spans to an exporter, in batches, from a goroutine of its own (sdktrace.SpanProcessor). In place of
// the SDK's own, which counts spans and not their bytes, and drops them without a word. OnEnd is called on workers: it holds a
// lock for an append, and never waits.
type spanQueue struct {
	exporter sdktrace.SpanExporter
	counts   *spanCounts
	log      *slog.Logger

	mu      sync.Mutex
	waiting []sdktrace.ReadOnlySpan
	held    int // spans in waiting, and in the batch under way
	bytes   int // of those
	closed  bool

	wake    chan struct{} // something waits
	full    chan struct{} // a batch waits
	stop    chan struct{}
	ended   chan struct{}
	ctx     context.Context // of exports
	abandon context.CancelFunc
}

// spanCounts are those of all queues of a process.
type spanCounts struct{ sent, dropped atomic.Uint64 }

func newSpanQueue(exporter sdktrace.SpanExporter, counts *spanCounts, log *slog.Logger) *spanQueue {
	q := &spanQueue{exporter: exporter, counts: counts, log: log, wake: make(chan struct{}, 1), full: make(chan struct{}, 1),
		stop: make(chan struct{}), ended: make(chan struct{})}
	q.ctx, q.abandon = context.WithCancel(context.Background())
	go q.run()
	return q
}

// OnStart implements sdktrace.SpanProcessor.
func (q *spanQueue) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd implements sdktrace.SpanProcessor.
func (q *spanQueue) OnEnd(s sdktrace.ReadOnlySpan) {
	n := spanSize(s)
	q.mu.Lock()
	if q.closed || q.held >= maxSpans || q.bytes+n > maxSpanBytes {
		q.mu.Unlock()
		q.counts.dropped.Add(1)
		return
	}
	q.waiting = append(q.waiting, s)
	q.held++
	q.bytes += n
	batch := len(q.waiting) >= spanBatch
	q.mu.Unlock()
	signal(q.wake)
	if batch {
		signal(q.full)
	}
}

// spanSize is about the memory that a span holds.
func spanSize(s sdktrace.ReadOnlySpan) int {
	n := spanOverhead + len(s.Name()) + len(s.Status().Description)
	for _, a := range s.Attributes() {
		n += len(a.Key)
		if a.Value.Type() == attribute.STRING {
			n += len(a.Value.AsString())
		}
	}
	return n
}

func (q *spanQueue) run() {
	defer close(q.ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for stopped := false; !stopped; {
		select {
		case <-q.wake:
			timer.Reset(spanDelay)
			select {
			case <-timer.C:
			case <-q.full:
			case <-q.stop:
				stopped = true
			}
		case <-q.stop:
			stopped = true
		}
		for q.exportBatch() {
		}
	}
}

// exportBatch sends what waits, at most a batch; false: nothing waited.
func (q *spanQueue) exportBatch() bool {
	q.mu.Lock()
	n := min(len(q.waiting), spanBatch)
	batch := q.waiting[:n:n]
	if q.waiting = q.waiting[n:]; len(q.waiting) == 0 {
		q.waiting = nil // with the batch goes its memory
	}
	q.mu.Unlock()
	if n == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(q.ctx, exportTimeout)
	var err error
	if p := panics.Guard(q.log, "exporting spans", func() { err = q.exporter.ExportSpans(ctx, batch) }); p != nil {
		err = p
	}
	cancel()
	if err != nil {
		otel.Handle(err) // said once a batch, which takes a second and more
		q.counts.dropped.Add(uint64(n))
	} else {
		q.counts.sent.Add(uint64(n))
	}
	size := 0
	for _, s := range batch {
		size += spanSize(s)
	}
	clear(batch) // the array may live on with what waits behind it
	q.mu.Lock()
	q.held -= n
	q.bytes -= size
	q.mu.Unlock()
	return true
}

// Shutdown exports what waits, until ctx ends (sdktrace.SpanProcessor). What comes later is dropped.
func (q *spanQueue) Shutdown(ctx context.Context) error {
	q.mu.Lock()
	if !q.closed {
		q.closed = true
		close(q.stop)
	}
	q.mu.Unlock()
	select {
	case <-q.ended:
	case <-ctx.Done():
		q.abandon()
		<-q.ended
	}
	q.abandon()
	return q.exporter.Shutdown(ctx)
}

// ForceFlush implements sdktrace.SpanProcessor; nothing calls it.
func (q *spanQueue) ForceFlush(context.Context) error { return nil }
