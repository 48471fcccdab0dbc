package loop

import (
	"math"
	"math/bits"
	"time"

	"sallyport/sidecar/invariants"
)

// tick is the wheel's resolution in nanoseconds. A timer never fires early and
// up to one tick, plus the turn's work, late.
const tick = uint64(time.Millisecond)

// A level has 64 slots; a slot of level n spans 64^n ticks. Seven levels reach
// 139 years, so the wheel never turns over.
const (
	slotBits = 6
	slots    = 1 << slotBits
	levels   = 7
	maxWhen  = 1<<(slotBits*levels) - 1
	firing   = levels * slots // the list that is being fired
)

// Timer calls a function once, at or soon after a time. It is embedded in what
// it belongs to, so that scheduling allocates nothing. Owned by its worker.
type Timer struct {
	f          func()
	wheel      *wheel // nil while not scheduled
	next, prev *Timer
	when       uint64 // in ticks
	list       uint16 // level*slots + slot, or firing
}

// Init sets what the timer calls; it is called once, before Schedule.
func (t *Timer) Init(f func()) { t.f = f }

// Scheduled says whether the timer is going to fire.
func (t *Timer) Scheduled() bool { return t.wheel != nil }

// Stop ends the timer; it is no error if it is not running. The function is
// not called after this, also when the timer was already due in this turn.
func (t *Timer) Stop() {
	if t.wheel != nil {
		t.wheel.owner.Check()
		t.wheel.unlink(t)
	}
}

// Schedule has the timer's function called once, after d from Now. A timer
// that is running is moved. The function may schedule its timer again.
func (w *Worker) Schedule(t *Timer, d time.Duration) {
	w.Owned()
	t.Stop()
	if d < 0 {
		d = 0
	}
	now := uint64(w.nowMono)
	// Not in this turn, where a timer that schedules itself would fire again.
	w.wheel.add(t, max((now+uint64(d)+tick-1)/tick, now/tick+1))
}

// Left is how long a timer still runs: 0 where it does not, else a millisecond at least.
func (w *Worker) Left(t *Timer) time.Duration {
	if t.wheel == nil {
		return 0
	}
	return max(time.Duration(t.when*tick)-time.Duration(w.nowMono), time.Duration(tick))
}

// wheel is a hierarchical timing wheel. A timer stands at the level of the
// highest group of six bits in which its time differs from now: therefore all
// occupied slots of a level are ahead of its current one, the lowest occupied
// level holds the earliest timer, and finding it is two bit operations.
type wheel struct {
	now      uint64 // in ticks; everything at or before is done
	levels   uint16 // bit per level that has an occupied slot
	occupied [levels]uint64
	heads    [firing + 1]*Timer // circular lists
	owner    *invariants.Owner  // nil where nobody asks
}

func (w *wheel) add(t *Timer, when uint64) {
	if when <= w.now {
		when = w.now + 1
	}
	t.when = min(when, maxWhen)
	w.place(t)
}

func (w *wheel) place(t *Timer) {
	level := (63 - bits.LeadingZeros64((t.when^w.now)|(slots-1))) / slotBits
	slot := t.when >> (slotBits * level) & (slots - 1)
	w.occupied[level] |= 1 << slot
	w.levels |= 1 << level
	w.link(t, uint16(uint64(level)*slots+slot))
}

func (w *wheel) link(t *Timer, list uint16) {
	t.wheel, t.list = w, list
	head := w.heads[list]
	if head == nil {
		w.heads[list] = t
		t.next, t.prev = t, t
		return
	}
	t.next, t.prev = head, head.prev
	head.prev.next = t
	head.prev = t
}

func (w *wheel) unlink(t *Timer) {
	if t.next == t {
		w.heads[t.list] = nil
		w.vacate(t.list)
	} else {
		t.next.prev, t.prev.next = t.prev, t.next
		if w.heads[t.list] == t {
			w.heads[t.list] = t.next
		}
	}
	t.wheel, t.next, t.prev = nil, nil, nil
}

func (w *wheel) vacate(list uint16) {
	if list == firing {
		return
	}
	level := list / slots
	w.occupied[level] &^= 1 << (list % slots)
	if w.occupied[level] == 0 {
		w.levels &^= 1 << level
	}
}

// earliest returns the first occupied list and the tick at which its span begins.
func (w *wheel) earliest() (list uint16, at uint64, ok bool) {
	if w.levels == 0 {
		return 0, 0, false
	}
	level := bits.TrailingZeros16(w.levels)
	slot := bits.TrailingZeros64(w.occupied[level])
	span := uint64(1) << (slotBits * level)
	at = w.now&^(span*slots-1) + uint64(slot)*span
	return uint16(level*slots + slot), at, true
}

// sleep returns how many milliseconds from mono the loop may sleep, if a timer runs.
func (w *wheel) sleep(mono uint64) (ms int, ok bool) {
	if w.heads[firing] != nil {
		return 0, true
	}
	_, at, ok := w.earliest()
	if !ok {
		return 0, false
	}
	if at*tick <= mono {
		return 0, true
	}
	return int(min((at*tick-mono+tick-1)/tick, math.MaxInt32)), true
}

// advance moves time to the tick `to` and fires what is due by then, at most
// limit timers; the rest fires at the next call.
func (w *wheel) advance(to uint64, limit int) {
	for n := 0; ; {
		for t := w.heads[firing]; t != nil; t = w.heads[firing] {
			if n == limit {
				return
			}
			n++
			w.unlink(t)
			t.f()
		}
		list, at, ok := w.earliest()
		if !ok || at > to {
			break
		}
		w.now = at
		w.empty(list)
	}
	w.now = max(w.now, to)
}

// empty moves the timers of a list whose span has begun: those of the lowest
// level are due, the others go to a lower level.
func (w *wheel) empty(list uint16) {
	head := w.heads[list]
	w.heads[list] = nil
	w.vacate(list)
	for t, end := head, head.prev; ; {
		next := t.next
		if t.when <= w.now {
			w.link(t, firing)
		} else {
			w.place(t)
		}
		if t == end {
			return
		}
		t = next
	}
}
