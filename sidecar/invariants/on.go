//go:build invariants

package invariants

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Enabled says whether the assertions are in this build.
const Enabled = true

// Check panics where ok is false. what says the invariant, as a sentence that is true.
func Check(ok bool, what string) {
	if !ok {
		panic("invariant does not hold: " + what)
	}
}

// Owner is the thread that a worker runs on. nil is an owner that is never checked.
type Owner struct{ thread atomic.Int64 }

// Bind makes the caller's thread the owner. The caller has locked itself to it (runtime.LockOSThread). A
// thread and not a goroutine, because the coroutines of handshakes run on the worker's thread too.
func (o *Owner) Bind() { o.thread.Store(int64(unix.Gettid())) }

// Release ends the ownership: anybody may go on.
func (o *Owner) Release() { o.thread.Store(0) }

// Check panics where there is an owner and the caller is somebody else.
func (o *Owner) Check() {
	if o == nil {
		return
	}
	if owner, caller := o.thread.Load(), int64(unix.Gettid()); owner != 0 && owner != caller {
		panic(fmt.Sprintf("invariant does not hold: only a worker touches what it owns (its thread is %d, the caller's is %d)", owner, caller))
	}
}

// Once asserts that something ends exactly once after it began. It is embedded in what it watches; the zero
// value has not begun. What ended may begin again, so that it can be recycled.
type Once struct{ live bool }

// Begin panics where it began before and has not ended.
func (o *Once) Begin(what string) {
	Check(!o.live, what+" begins when the one before has ended")
	o.live = true
}

// Finish panics where it has not begun, or ended before.
func (o *Once) Finish(what string) {
	Check(o.live, what+" ends once")
	o.live = false
}
