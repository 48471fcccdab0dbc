package chain

// Work is something that ends later: a job on a goroutine, a call to a
// cluster, a timer. Both methods are called on the stream's worker.
type Work interface {
	// Start begins the work. done is called once it has ended, on the worker;
	// it may be called from within Start.
	Start(done func())
	// Cancel says that nobody waits any more: done need not be called, and
	// does nothing where it is.
	Cancel()
}

// await is a filter that waits for work.
type await[S Stream] struct {
	c          Context[S]
	work       Work
	then       func(Context[S]) Verdict
	next, prev *await[S]

	starting bool // Start is on the stack
	early    bool // and done was called from there
	over     bool
}

// Await starts work, and calls then when it has ended. The filter returns what
// Await returns, which is Hold while the work goes on: until then no verdict of
// this filter lets the message go on, only Resume does. then's verdict is what
// becomes of the message: Continue resumes it.
//
// There is one rule for a message that ends first, whatever the reason (the
// stream is over, somebody has answered): the work is canceled, and then is
// never called. A filter therefore finds its stream alive in then, and needs
// no check of its own.
func (c Context[S]) Await(w Work, then func(Context[S]) Verdict) Verdict {
	r := c.run
	if r.sides[c.dir].cut {
		return Answered
	}
	a := &await[S]{c: c, work: w, then: then, next: r.awaits, starting: true}
	if a.next != nil {
		a.next.prev = a
	}
	r.awaits = a
	w.Start(a.done)
	a.starting = false
	switch {
	case a.over:
		return Answered
	case a.early:
		a.unlink()
		return then(c)
	}
	return Hold
}

func (a *await[S]) done() {
	switch {
	case a.over:
		return
	case a.starting:
		a.early = true
		return
	}
	a.unlink()
	defer a.c.run.guard()
	if a.then(a.c) == Continue {
		a.c.Resume()
	}
}

func (a *await[S]) unlink() {
	a.over = true
	if a.prev != nil {
		a.prev.next = a.next
	} else {
		a.c.run.awaits = a.next
	}
	if a.next != nil {
		a.next.prev = a.prev
	}
	a.next, a.prev = nil, nil
}

// awaitsAt says that the filter at that place awaits something.
func (r *Run[S]) awaitsAt(d Direction, pos uint8) bool {
	for a := r.awaits; a != nil; a = a.next {
		if a.c.dir == d && r.chain.position(d, a.c.at) == pos {
			return true
		}
	}
	return false
}

// cancel ends what is awaited for a direction.
func (r *Run[S]) cancel(d Direction) {
	for a := r.awaits; a != nil; {
		next := a.next
		if a.c.dir == d {
			a.unlink()
			a.work.Cancel()
		}
		a = next
	}
}
