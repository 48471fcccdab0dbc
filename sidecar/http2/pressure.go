package http2

import "sallyport/sidecar/message"

// Full says that more than the high mark waits on the stream, or on all streams of the connection, or in the Output.
// Drained follows. A stream of which nothing waits may go on in spite of the others: they may be those of another
// user, who does not read.
func (s *Stream) Full() bool {
	c := s.c
	if s.gone || c.closed {
		return false
	}
	n := s.out.Len()
	over := n > 0 && c.waiting > c.o.BufferLimit
	c.over = c.over || over
	full := over || n > c.o.StreamBufferLimit || c.out.Full()
	if full && !s.wasFull {
		s.wasFull = true
		c.full++
	}
	return full
}

// drained tells a sender that was told Full of room.
func (s *Stream) drained() {
	c, n := s.c, s.out.Len()
	if !s.wasFull || s.gone || n > c.o.StreamBufferLimit/2 || n > 0 && c.waiting > c.o.BufferLimit/2 || c.out.Full() {
		return
	}
	s.wasFull = false
	s.c.full--
	if !s.ended {
		s.r.Drained()
	}
}

// relieve tells senders of room when what waits on the whole connection has become little.
func (c *Conn) relieve() {
	if c.over && !c.closed && c.waiting <= c.o.BufferLimit/2 {
		c.over = false
		c.visit((*Stream).drained)
	}
}

// park keeps a copy of a head that has to wait: fields must be encoded when they are sent.
func (c *Conn) park(to **message.Head, h *message.Head) {
	*to = c.spare.get()
	(*to).CopyFrom(h)
	c.waiting += headCost(h)
}

// unpark ends that.
func (c *Conn) unpark(at **message.Head) {
	c.waiting -= headCost(*at)
	c.spare.put(*at)
	*at = nil
}

// headCost is about the memory of a head.
func headCost(h *message.Head) int { return h.Size() + 16*h.Len() }
