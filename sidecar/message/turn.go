package message

// Turn bounds what a codec does for its connection in one call of its owner, so
// that no connection holds the worker for long: a read of 64 KiB may carry two
// thousand requests, or ten thousand pieces of content. The owner sets Limit,
// calls Begin before it feeds the codec, and where Over holds it feeds the rest in
// the next turn of the loop. A Turn belongs to its connection's worker; the zero
// value has no bound.
type Turn struct {
	Limit int // 0: none
	done  int
}

// What things cost, as a multiple of a piece of content or a small frame, and
// what a connection may spend in a turn: 64 requests, or 512 pieces. That is
// enough for a write of the turn to be well gathered.
const (
	HeadCost  = 8
	PieceCost = 1
	TurnCost  = 512
)

// Begin starts counting anew.
func (t *Turn) Begin() { t.done = 0 }

// Spend counts what was done.
func (t *Turn) Spend(cost int) { t.done += cost }

// Over says that the rest has to wait for the next turn.
func (t *Turn) Over() bool { return t.Limit > 0 && t.done >= t.Limit }
