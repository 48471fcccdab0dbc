package chain

import "sallyport/sidecar/message"

// Run is one stream's way through a chain. The zero value is ready for Begin.
// Owned by the stream's worker.
type Run[S Stream] struct {
	chain  *Chain[S]
	stream S
	sides  [2]side
	slots  []any
	// reached and disabled are bits of filters: those that saw an event, and
	// those that the stream's route turned off when their first event came.
	reached, disabled uint64
	awaits            *await[S]
	spare             []*hold
}

// side is one direction of a run.
type side struct {
	// epoch changes when the message is cut: an event that is on the stack
	// then goes no further.
	epoch uint32
	cut   bool
	begun bool
	// headPos is the place of the first filter that the head has not passed;
	// behind the last filter it is the number of filters.
	headPos uint8
	headEnd bool // the message ends with its head
	// closed is one more than the place of a filter that has ended the message
	// by itself: what still comes from before it is dropped.
	closed uint8
	event  event

	holds     []*hold // by place, of the filters that hold
	throttled bool
	trailers  *message.Head // of a message that is held, when they are here
}

// event is the event of a filter that is on the stack.
type event struct {
	pos     uint8 // one more than the filter's place; 0 is none
	resumed bool  // it called Resume
	taken   bool  // and TakeEnd
}

// Begin makes the run ready for a stream.
func (r *Run[S]) Begin(c *Chain[S], s S) {
	r.chain, r.stream = c, s
	if n := len(c.filters); cap(r.slots) < n {
		r.slots = make([]any, n)
	} else {
		r.slots = r.slots[:n]
	}
}

// Clear forgets the stream; End was called before, or Begin never.
func (r *Run[S]) Clear() {
	var none S
	r.chain, r.stream = nil, none
	clear(r.slots)
	r.reached, r.disabled = 0, 0
	for d := range r.sides {
		sd := &r.sides[d]
		*sd = side{epoch: sd.epoch, holds: sd.holds[:0]}
	}
}

// Throttled says that the sender of that direction is paused for the filters.
func (r *Run[S]) Throttled(d Direction) bool { return r.sides[d].throttled }

// Epoch changes when the message of that direction is cut.
func (r *Run[S]) Epoch(d Direction) uint32 { return r.sides[d].epoch }

// Head takes the head of a direction into the chain.
func (r *Run[S]) Head(d Direction, end bool) {
	sd := &r.sides[d]
	sd.begun, sd.headEnd = true, end
	r.head(d, 0)
}

// Data takes content into the chain.
func (r *Run[S]) Data(d Direction, p []byte, end bool) {
	sd := &r.sides[d]
	switch {
	case sd.cut || sd.closed > 0:
	case len(sd.holds) == 0 && len(r.chain.data[d]) == 0:
		r.stream.PassData(d, p, end)
	default:
		r.content(d, 0, p, end)
	}
}

// Trailers takes the trailers into the chain.
func (r *Run[S]) Trailers(d Direction, h *message.Head) {
	sd := &r.sides[d]
	switch {
	case sd.cut || sd.closed > 0:
	case len(sd.holds) == 0 && len(r.chain.trailers[d]) == 0:
		r.stream.PassTrailers(d, h)
	default:
		r.tail(d, 0, h)
	}
}

// Cut ends the message of a direction: nothing more of it reaches a filter,
// what they hold is dropped, and what they await for it is canceled.
func (r *Run[S]) Cut(d Direction) {
	sd := &r.sides[d]
	sd.epoch++
	sd.cut = true
	r.drop(d, MaxFilters)
	r.cancel(d)
}

// End is the end of the stream. Filters are told after that; see Done.
func (r *Run[S]) End() {
	for d := range r.sides {
		r.Cut(Direction(d))
	}
}

// Done tells the filters that saw an event, in configured order.
func (r *Run[S]) Done() {
	if r.chain == nil {
		return
	}
	for i := range r.chain.done {
		if l := &r.chain.done[i]; r.reached&(1<<l.at) != 0 {
			r.tell(l)
		}
	}
}

// tell has a panic of one filter not keep the others from hearing.
func (r *Run[S]) tell(l *link[Done[S]]) {
	defer r.guard()
	l.call.Done(Context[S]{Stream: r.stream, run: r, at: l.at})
}

// Recheck asks the chain's filters whether a stream that they, or those of the
// same names before them, let pass may go on.
func (c *Chain[S]) Recheck(s S, h *message.Head) (ok bool, details string) {
	r := Run[S]{}
	r.Begin(c, s)
	for i := range c.recheck {
		l := &c.recheck[i]
		if r.skips(l.at) {
			continue
		}
		if ok, details := l.call.Recheck(Context[S]{Stream: s, run: &r, at: l.at}, h); !ok {
			return false, details
		}
	}
	return true, ""
}

// skips says that the filter is turned off for this stream, which is settled
// when its first event comes: a filter before it may have changed the route.
func (r *Run[S]) skips(at uint8) bool {
	bit := uint64(1) << at
	switch {
	case r.reached&bit != 0:
		return false
	case r.disabled&bit != 0:
		return true
	}
	if _, off := r.stream.Override(r.chain.ids[at]); off {
		r.disabled |= bit
		return true
	}
	r.reached |= bit
	return false
}

// enter notes that the filter at pos is called, and returns what was on the
// stack before, for leave.
func (sd *side) enter(pos uint8) event {
	before := sd.event
	sd.event = event{pos: pos + 1}
	return before
}

// leave returns the filter's verdict, and whether it took the end over. What
// awaits something holds, whatever the filter says of content that comes
// meanwhile: a request must not get past a check by sending its body early.
func (r *Run[S]) leave(d Direction, before event, v Verdict) (Verdict, bool) {
	sd := &r.sides[d]
	e := sd.event
	sd.event = before
	switch {
	case e.resumed && (v == Hold || v == Collect):
		v = Continue
	case v == Continue && r.awaits != nil && r.awaitsAt(d, e.pos-1):
		v = Hold
	}
	return v, e.taken
}

// head takes the head on from pos.
func (r *Run[S]) head(d Direction, pos uint8) {
	sd := &r.sides[d]
	epoch := sd.epoch
	h := r.stream.MessageHead(d)
	for list := from(r.chain.heads[d], pos); len(list) > 0; list = list[1:] {
		l := &list[0]
		if r.skips(l.at) {
			continue
		}
		sd.headPos = l.pos
		before := sd.enter(l.pos)
		v, _ := r.leave(d, before, l.call(Context[S]{r.stream, r, l.at, d}, h, sd.headEnd))
		if sd.epoch != epoch || v == Answered || sd.headPos > l.pos {
			return // cut, or an Inject has taken the head on
		}
		if v != Continue {
			r.hold(d, l.pos, v).head = true
			r.balance(d)
			return
		}
	}
	sd.headPos = uint8(len(r.chain.filters))
	r.stream.PassHead(d, sd.headEnd)
}

// content takes a piece of content on from pos: through the filters up to the
// first one that holds, or through all.
func (r *Run[S]) content(d Direction, pos uint8, p []byte, end bool) {
	sd := &r.sides[d]
	epoch := sd.epoch
	for list := from(r.chain.data[d], pos); len(list) > 0; list = list[1:] {
		l := &list[0]
		if h := sd.holder(pos); h != nil && h.pos < l.pos {
			break // it holds and has no event for content
		}
		if r.skips(l.at) {
			continue
		}
		before := sd.enter(l.pos)
		out, v := l.call(Context[S]{r.stream, r, l.at, d}, p, end)
		v, taken := r.leave(d, before, v)
		if sd.epoch != epoch || v == Answered || sd.closed > l.pos {
			return
		}
		p, end = out, end && !taken
		switch h := sd.holder(l.pos); {
		case v != Continue:
			r.hold(d, l.pos, v).take(p, end)
			r.balance(d)
			return
		case h.is(l.pos):
			if h.take(p, end); !h.releasing {
				r.release(d, h)
			}
			return
		case len(p) == 0 && !end:
			return
		}
		pos = l.pos + 1
	}
	if h := sd.holder(pos); h != nil {
		h.take(p, end)
		r.balance(d)
		return
	}
	r.stream.PassData(d, p, end)
}

// tail takes the trailers on from pos.
func (r *Run[S]) tail(d Direction, pos uint8, t *message.Head) {
	sd := &r.sides[d]
	epoch := sd.epoch
	for list := from(r.chain.trailers[d], pos); len(list) > 0; list = list[1:] {
		l := &list[0]
		if h := sd.holder(pos); h != nil && h.pos < l.pos {
			break
		}
		if r.skips(l.at) {
			continue
		}
		before := sd.enter(l.pos)
		v, _ := r.leave(d, before, l.call(Context[S]{r.stream, r, l.at, d}, t))
		if sd.epoch != epoch || v == Answered || sd.closed > l.pos {
			return
		}
		switch h := sd.holder(l.pos); {
		case v != Continue:
			r.hold(d, l.pos, v).takeTrailers(sd, t)
			return
		case h.is(l.pos):
			if h.takeTrailers(sd, t); !h.releasing {
				r.release(d, h)
			}
			return
		}
		pos = l.pos + 1
	}
	if h := sd.holder(pos); h != nil {
		h.takeTrailers(sd, t)
		return
	}
	r.stream.PassTrailers(d, t)
}
