package loop

// A panic in something that the worker calls must not end the process. One deferred call serves a whole turn:
// where a handler panics, work ends, survive tells the handler, and turn calls work again for the rest. An
// event costs nothing for it.

// Panicker is told that a panic ended what was called on it: Event, Turn or TurnEnd. Its state is then not to
// be relied on: it lets go of what it holds, without calling what may have panicked.
type Panicker interface {
	Panicked(v any)
}

// OnPanic has the worker go on after a panic, and note be told its value, on the stack of the panic, so that
// debug.Stack says where it was. Without it a panic ends the process, as tests want it. It is called before
// Run. note must not block.
func (w *Worker) OnPanic(note func(v any)) { w.note = note }

// Survives says that the worker goes on after a panic: where it does not, none is to be recovered.
func (w *Worker) Survives() bool { return w.note != nil }

// NotePanic tells what OnPanic has set of a panic that the caller has recovered by itself, on its stack.
func (w *Worker) NotePanic(v any) {
	if w.note != nil {
		w.note(v)
	}
}

// Guard ends the panic of the function that defers it, and tells p. It is for what runs on the worker on
// behalf of p and is not p's own Event, Turn or TurnEnd: a timer's function, a posted one, a callback for one
// of many. A function that is guarded costs two nanoseconds more.
//
//	defer w.Guard(p)
func (w *Worker) Guard(p Panicker) {
	if w.note == nil {
		return
	}
	if v := recover(); v != nil {
		w.caught(p, v)
	}
}

// survive is Guard for a turn: it finds out who was called.
func (w *Worker) survive() {
	if w.note == nil {
		return
	}
	v := recover()
	if v == nil {
		return
	}
	var called any
	switch w.phase {
	case phaseEvents:
		called = w.handler
	case phaseAgain:
		called = w.againNow[w.done-1]
	case phaseTurnEnds:
		called = w.turnEnds[w.ended-1]
	default:
		// Posted functions and timers belong to nobody: who posts or schedules one guards it.
	}
	p, _ := called.(Panicker)
	w.caught(p, v)
}

func (w *Worker) caught(p Panicker, v any) {
	w.note(v)
	if p != nil {
		// What it holds may be the reason of the panic: a second one changes nothing.
		defer w.Guard(nil)
		p.Panicked(v)
	}
}
