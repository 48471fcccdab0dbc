//go:build !invariants

package invariants

// Enabled says whether the assertions are in this build.
const Enabled = false

// Check panics where ok is false. what says the invariant, as a sentence that is true.
func Check(ok bool, what string) {}

// Owner is the thread that a worker runs on. nil is an owner that is never checked.
type Owner struct{}

// Bind makes the caller's thread the owner. The caller has locked itself to it (runtime.LockOSThread).
func (o *Owner) Bind() {}

// Release ends the ownership: anybody may go on.
func (o *Owner) Release() {}

// Check panics where there is an owner and the caller is somebody else.
func (o *Owner) Check() {}

// Once asserts that something ends exactly once after it began. It is embedded in what it watches; the zero
// value has not begun. What ended may begin again, so that it can be recycled.
type Once struct{}

// Begin panics where it began before and has not ended.
func (o *Once) Begin(what string) {}

// Finish panics where it has not begun, or ended before.
func (o *Once) Finish(what string) {}
