package chain

// Context is a filter's view of one stream, for one direction. It may be kept
// until the stream ends; what it offers is used on the stream's worker.
type Context[S Stream] struct {
	Stream S
	run    *Run[S]
	at     uint8
	dir    Direction
}

// Direction is that of the event, or of what Of has chosen.
func (c Context[S]) Direction() Direction { return c.dir }

// Of is the same filter's view of the other direction.
func (c Context[S]) Of(d Direction) Context[S] {
	c.dir = d
	return c
}

// Slot is where the filter keeps what it must remember of the stream.
func (c Context[S]) Slot() *any { return &c.run.slots[c.at] }

// Override is what the stream's route says of this filter: the configuration
// that is the most specific, nil where there is none.
func (c Context[S]) Override() any {
	cfg, _ := c.Stream.Override(c.run.chain.ids[c.at])
	return cfg
}

// Held is the content that this filter keeps, valid until it changes.
func (c Context[S]) Held() []byte {
	pos := c.run.chain.position(c.dir, c.at)
	if h := c.run.sides[c.dir].holder(pos); h.is(pos) {
		return h.content.Bytes()
	}
	return nil
}

// SetHeld replaces the content that this filter keeps. p is copied.
func (c Context[S]) SetHeld(p []byte) {
	pos := c.run.chain.position(c.dir, c.at)
	if h := c.run.sides[c.dir].holder(pos); h.is(pos) && !h.releasing {
		h.content.Release()
		h.content.Append(p)
		c.run.balance(c.dir)
	}
}

// Resume lets the message go on that this filter holds. It does nothing where
// it holds none, or the message was cut: answered, or the stream is over.
// Within an event of this filter it makes the verdict Continue.
func (c Context[S]) Resume() {
	r := c.run
	sd := &r.sides[c.dir]
	pos := r.chain.position(c.dir, c.at)
	if sd.event.pos == pos+1 {
		sd.event.resumed = true
		return
	}
	if h := sd.holder(pos); h.is(pos) && !h.releasing && !sd.cut {
		defer r.guard()
		r.release(c.dir, h)
	}
}

// TakeEnd takes the end of the message over, at the head or the content that
// has it, or while this filter holds it: the filter then owes one by Inject.
func (c Context[S]) TakeEnd() {
	sd := &c.run.sides[c.dir]
	pos := c.run.chain.position(c.dir, c.at)
	if sd.event.pos == pos+1 {
		sd.event.taken = true
	}
	if sd.headPos == pos {
		sd.headEnd = false
	}
	if h := sd.holder(pos); h.is(pos) {
		h.end = false
	}
}

// Inject passes content on from this filter as if the filter before it had
// sent it. A head that this filter has or holds goes first. end ends the
// message: what this filter holds, and what still comes to it, is dropped.
func (c Context[S]) Inject(p []byte, end bool) {
	r := c.run
	sd := &r.sides[c.dir]
	pos := r.chain.position(c.dir, c.at)
	if sd.cut || !sd.begun || sd.headPos < pos || sd.closed > pos {
		return
	}
	defer r.guard()
	epoch := sd.epoch
	if sd.headPos == pos {
		sd.headEnd = sd.headEnd && end && len(p) == 0
		if h := sd.holder(pos); h.is(pos) {
			h.head = false
		}
		if r.head(c.dir, pos+1); sd.headEnd {
			end = false // it went with the head
		}
	}
	if sd.epoch != epoch {
		return
	}
	if end {
		sd.closed = pos + 1
		r.drop(c.dir, pos)
	}
	if len(p) > 0 || end {
		r.content(c.dir, pos+1, p, end)
	}
}

// guard ends the stream after a panic where no event of it is on the stack.
func (r *Run[S]) guard() {
	if !r.stream.Worker().Survives() {
		return
	}
	if v := recover(); v != nil {
		r.stream.Panicked(v)
	}
}
