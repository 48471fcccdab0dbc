package chain

import (
	"sallyport/sidecar/buffer"
	"sallyport/sidecar/message"
)

// hold is what one filter keeps of a message.
type hold struct {
	pos      uint8
	collects bool
	head     bool // the head waits here
	end      bool // so does the end, behind the content,
	trailers bool // or the trailers, which are in side.trailers
	// releasing says that what is kept is passing on. What arrives meanwhile
	// joins the end of it: the next filter must not see it first. again says
	// that the filter holds that.
	releasing, again bool
	content          buffer.Buffer
}

// is says that the filter at pos holds; h may be nil.
func (h *hold) is(pos uint8) bool { return h != nil && h.pos == pos }

// holder returns the first hold at pos or behind it.
func (sd *side) holder(pos uint8) *hold {
	for _, h := range sd.holds {
		if h.pos >= pos {
			return h
		}
	}
	return nil
}

// hold returns what the filter at pos keeps, by its verdict at this event.
func (r *Run[S]) hold(d Direction, pos uint8, v Verdict) *hold {
	sd := &r.sides[d]
	i := 0
	for i < len(sd.holds) && sd.holds[i].pos < pos {
		i++
	}
	if i == len(sd.holds) || sd.holds[i].pos != pos {
		sd.holds = append(sd.holds, nil)
		copy(sd.holds[i+1:], sd.holds[i:])
		sd.holds[i] = r.newHold(pos)
	}
	h := sd.holds[i]
	h.collects = v == Collect
	h.again = h.releasing
	return h
}

func (r *Run[S]) newHold(pos uint8) *hold {
	if n := len(r.spare); n > 0 {
		h := r.spare[n-1]
		r.spare = r.spare[:n-1]
		*h = hold{pos: pos, content: h.content}
		return h
	}
	h := &hold{pos: pos}
	h.content.Init(r.stream.Worker().Pool())
	return h
}

func (h *hold) take(p []byte, end bool) {
	h.content.Append(p)
	h.end = h.end || end
}

func (h *hold) takeTrailers(sd *side, t *message.Head) {
	if sd.trailers == nil {
		sd.trailers = new(message.Head)
	}
	if t != sd.trailers {
		sd.trailers.CopyFrom(t)
	}
	h.trailers = true
}

// unhold forgets that a filter holds.
func (r *Run[S]) unhold(sd *side, h *hold) {
	for i := range sd.holds {
		if sd.holds[i] == h {
			copy(sd.holds[i:], sd.holds[i+1:])
			sd.holds = sd.holds[:len(sd.holds)-1]
			r.free(h)
			return
		}
	}
}

func (r *Run[S]) free(h *hold) {
	h.content.Release()
	r.spare = append(r.spare, h)
}

// drop forgets what the filters hold up to a place.
func (r *Run[S]) drop(d Direction, upTo uint8) {
	sd := &r.sides[d]
	kept := sd.holds[:0]
	for _, h := range sd.holds {
		if h.pos > upTo {
			kept = append(kept, h)
		} else {
			r.free(h)
		}
	}
	sd.holds = kept
	if sd.throttled {
		sd.throttled = false
		r.stream.Throttle(d, false)
	}
}

// release passes on what the filter at pos has held, until it holds again.
func (r *Run[S]) release(d Direction, h *hold) {
	sd := &r.sides[d]
	// Not h.pos below: where the message is cut meanwhile, h may be another's already.
	epoch, pos := sd.epoch, h.pos
	h.releasing = true
	if h.head {
		h.head = false
		r.head(d, pos+1)
	}
	for sd.epoch == epoch && sd.closed <= pos && !h.again && (h.content.Len() > 0 || h.end) {
		// Out of the hold, whose memory what arrives meanwhile may move.
		passing, end := h.content, h.end
		h.content = buffer.Buffer{}
		h.content.Init(passing.Pool())
		h.end = false
		r.content(d, pos+1, passing.Bytes(), end)
		passing.Release()
	}
	if sd.epoch != epoch || sd.closed > pos {
		return
	}
	if h.trailers && !h.again {
		h.trailers = false
		r.tail(d, pos+1, sd.trailers)
		if sd.epoch != epoch || sd.closed > pos {
			return
		}
	}
	h.releasing = false
	if h.again {
		h.again = false
	} else {
		r.unhold(sd, h)
	}
	r.balance(d)
}

// balance holds what the filters keep against the limit.
func (r *Run[S]) balance(d Direction) {
	sd := &r.sides[d]
	limit := r.stream.HoldLimit(d)
	waiting := 0
	for _, h := range sd.holds {
		if !h.collects {
			waiting += h.content.Len()
		} else if h.content.Len() > limit {
			r.stream.Overflow(d)
			return
		}
	}
	if full := waiting > limit; full != sd.throttled {
		sd.throttled = full
		r.stream.Throttle(d, full)
	}
}
