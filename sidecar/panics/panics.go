// Package panics is what the process makes of a panic that it survives: a count and a line in the log that says
// where it was. What panicked ends: on a worker its connection or stream (loop.Worker.OnPanic), elsewhere the
// piece of work that the goroutine was at (Recover, Guard).
package panics

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// Counter is the name of the statistic that Count is shown as.
	Counter = "server.panics"

	// A peer may be able to cause panics: a line a second is enough to see them, and a stack costs.
	logEvery = time.Second
	maxStack = 8 << 10
)

// count is the process's: a metric.
var count atomic.Uint64

// Count is how many panics the process has survived.
func Count() uint64 { return count.Load() }

// Notes counts panics and logs them. Safe for concurrent use.
type Notes struct {
	log  *slog.Logger
	last atomic.Int64 // unix nanoseconds of the last line; 0: none yet
	left atomic.Int64 // not logged since
}

// New returns Notes that log.
func New(log *slog.Logger) *Notes { return &Notes{log: log} }

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
	count.Add(1)
	now, last := time.Now().UnixNano(), n.last.Load()
	if last != 0 && now-last < int64(logEvery) || !n.last.CompareAndSwap(last, now) {
		n.left.Add(1)
		return
	}
	write(n.log, where, v, "left_out", n.left.Swap(0))
}

func write(log *slog.Logger, where string, v any, more ...any) {
	stack := debug.Stack()
	log.Error("panic; what it happened to was ended, the process goes on: please report it",
		append([]any{"where", where, "panic", fmt.Sprint(v), "stack", string(stack[:min(len(stack), maxStack)])}, more...)...)
}

// Error counts and logs a panic that was recovered while something was done for a control plane or an operator, and
// returns it as an error without its stack, which is in the log. It is called in the deferred function that recovers.
func Error(log *slog.Logger, what string, v any) error {
	count.Add(1)
	write(log, what, v)
	return fmt.Errorf("an internal error (panic) while %s; its stack is in the proxy's log", what)
}

// Guard runs f, and returns a panic in it as Error does.
func Guard(log *slog.Logger, what string, f func()) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = Error(log, what, v)
		}
	}()
	f()
	return nil
}
