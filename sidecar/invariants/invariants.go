// Package invariants asserts what the code relies on and no compiler checks: that a worker's things are
// touched by that worker alone, and that what begins ends exactly once. The assertions are in builds with
// the tag "invariants" (make unit); without it every function here is empty, every type has no size, and
// calls compile to nothing. A violation panics: it is a bug of ours, never of a peer.
//
// Arguments are evaluated in every build. Where that costs something, ask Enabled first:
//
//	if invariants.Enabled {
//		invariants.Check(h.sum() == h.total, "the sum of the parts is the total")
//	}
package invariants
