//go:build invariants

package conn

import (
	"fmt"
	"strings"
	"testing"

	"sallyport/sidecar/loop"
)

// TestOnlyTheWorkerTouchesAConnection: a test that did it from another goroutine would be a race that -race sees
// by luck alone.
func TestOnlyTheWorkerTouchesAConnection(t *testing.T) {
	w := worker(t)
	addr := listen(t, w, startEcho)
	s := newScript()
	var timer loop.Timer
	timer.Init(func() {})
	on(w, func() {
		s.c = Dial(w, addr, DialOptions{}, s)
		w.Schedule(&timer, 1<<40)
	})
	for name, call := range map[string]func(){
		"a write":            func() { s.c.Write([]byte("x")) },
		"a flush":            func() { s.c.Flush() },
		"its buffer":         func() { s.c.Buffer() },
		"a pause":            func() { s.c.PauseRead() },
		"a close":            func() { s.c.Close() },
		"a timer":            func() { w.Schedule(&timer, 1) },
		"a timer's end":      timer.Stop,
		"memory of the pool": func() { w.Pool().Get(1) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if v := recover(); !strings.Contains(fmt.Sprint(v), "only a worker touches what it owns") {
					t.Errorf("panic: %v", v)
				}
			}()
			call()
		})
	}
	on(w, s.c.Close)
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
}
