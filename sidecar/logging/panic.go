package logging

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
)

// panics counts those that were recovered, in the whole process: a metric (server.panics).
var panics atomic.Uint64

// Panics is that count.
func Panics() uint64 { return panics.Load() }

// Panicked counts and logs a panic that was recovered while something was done for a peer or a control plane, and returns it
// as an error without its stack, which is in the log. It is called in the deferred function that recovers:
//
//	defer func() {
//		if r := recover(); r != nil {
//			err = logging.Panicked(log, "compiling a cluster", r)
//		}
//	}()
func Panicked(log *slog.Logger, what string, value any) error {
	panics.Add(1)
	log.Error("panic; what caused it is given up, and the process goes on", "while", what, "panic", fmt.Sprint(value), "stack", string(debug.Stack()))
	return fmt.Errorf("an internal error (panic) while %s; its stack is in the proxy's log", what)
}

// Guard runs f and recovers a panic in it.
func Guard(log *slog.Logger, what string, f func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = Panicked(log, what, r)
		}
	}()
	f()
	return nil
}
