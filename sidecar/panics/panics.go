// Package panics is what the process makes of a panic that it survives: a counter and a line in the log that says
// where it was. What panicked ends: on a worker its connection or stream (loop.Worker.OnPanic), elsewhere the
// piece of work that the goroutine was at (Recover).
package panics

import (
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"sallyport/sidecar/metric"
)

const (
	// Counter is the name of the statistic.
	Counter = "server.panics"

	// A peer may be able to cause panics: a line a second is enough to see them, and a stack costs.
	logEvery = time.Second
	maxStack = 8 << 10
)

// Notes counts panics and logs them. Safe for concurrent use.
type Notes struct {
	count *metric.Single
	log   *slog.Logger
	last  atomic.Int64 // unix nanoseconds of the last line; 0: none yet
	left  atomic.Int64 // not logged since
}

// New returns Notes that count in the process's one counter, and log.
func New(metrics *metric.Registry, log *slog.Logger) *Notes {
	return &Notes{count: metrics.Single(Counter), log: log}
}

// Note is for loop.Worker.OnPanic. It is called on the stack of the panic.
func (n *Notes) Note(v any) { n.note("worker", v) }

// Recover ends the panic of the function that defers it, on a goroutine that is not a worker:
//
//	defer n.Recover("health check")
func (n *Notes) Recover(where string) {
	if v := recover(); v != nil {
		n.note(where, v)
	}
}

func (n *Notes) note(where string, v any) {
	n.count.Inc()
	now, last := time.Now().UnixNano(), n.last.Load()
	if last != 0 && now-last < int64(logEvery) || !n.last.CompareAndSwap(last, now) {
		n.left.Add(1)
		return
	}
	stack := debug.Stack()
	n.log.Error("panic; what it happened to was ended, the process goes on: please report it", "where", where, "panic", v,
		"left_out", n.left.Swap(0), "stack", string(stack[:min(len(stack), maxStack)]))
}
