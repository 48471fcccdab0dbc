//go:build invariants

package invariants

import (
	"runtime"
	"strings"
	"testing"
)

// violation is the message of the panic that f ends in, "" where it does not.
func violation(f func()) (text string) {
	defer func() {
		if v := recover(); v != nil {
			text = v.(string)
		}
	}()
	f()
	return ""
}

func TestViolationsPanic(t *testing.T) {
	var once, recycled Once
	once.Begin("stream")
	once.Finish("stream")
	recycled.Begin("stream")
	recycled.Finish("stream")
	recycled.Begin("stream")
	for name, c := range map[string]struct {
		f    func()
		want string
	}{
		"a check that fails":           {func() { Check(false, "sums agree") }, "sums agree"},
		"a check that holds":           {func() { Check(true, "sums agree") }, ""},
		"an end after the end":         {func() { once.Finish("stream") }, "stream ends once"},
		"an end without a beginning":   {func() { new(Once).Finish("stream") }, "stream ends once"},
		"a beginning before the end":   {func() { recycled.Begin("stream") }, "stream begins"},
		"an owner that was never made": {func() { (*Owner)(nil).Check() }, ""},
		"an owner that is not bound":   {func() { new(Owner).Check() }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := violation(c.f)
			if got == "" != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("panic %q, want one with %q", got, c.want)
			}
		})
	}
}

func TestOnlyTheOwnersThreadPasses(t *testing.T) {
	var o Owner
	bound, done := make(chan struct{}), make(chan string)
	go func() {
		runtime.LockOSThread()
		o.Bind()
		close(bound)
		done <- violation(o.Check)
		<-bound
	}()
	<-bound
	if got := <-done; got != "" {
		t.Errorf("the owner is refused: %s", got)
	}
	// The owner's thread is locked, so this goroutine is on another one.
	if got := violation(o.Check); !strings.Contains(got, "only a worker touches what it owns") {
		t.Errorf("another goroutine is let pass: %q", got)
	}
	o.Release()
	if got := violation(o.Check); got != "" {
		t.Errorf("refused after the release: %s", got)
	}
}
