package http2

// dataFrame is a DATA frame whose payload is passed on as it comes.
type dataFrame struct {
	open      bool
	end       bool
	stream    uint32
	left, pad uint32 // content and padding still to come
}

// beginData takes a DATA frame's header; pad is its padding length, where it has one.
func (c *Conn) beginData(h *header, pad []byte) *ConnError {
	c.data = dataFrame{open: true, end: h.has(flagEndStream), stream: h.stream, left: h.length}
	if h.has(flagPadded) {
		if h.length == 0 {
			return connError(FrameSizeError, "DATA without its padding length")
		}
		if uint32(pad[0]) >= h.length {
			return connError(ProtocolError, "DATA whose padding is as long as the frame") // §6.1
		}
		c.data.left, c.data.pad = h.length-1-uint32(pad[0]), uint32(pad[0])
	}
	if err := c.payload(c.data.left, c.data.end); err != nil {
		return err
	}
	// Flow control counts the whole payload, padding included (§6.9.1), and
	// on streams that are closed too (§5.1).
	length, overhead := int64(h.length), int64(h.length-c.data.left)
	if c.recvWindow -= length; c.recvWindow < 0 {
		return connError(FlowControlError, "more DATA than the connection's window")
	}
	c.credit(overhead)
	s := c.streams.get(h.stream)
	if s == nil {
		if c.ended.has(h.stream) {
			return connError(StreamClosed, "DATA on a stream after its end")
		}
		return nil // it was on its way when we reset the stream
	}
	if s.recvEnd {
		return c.streamError(s, StreamClosed)
	}
	if !c.server && !s.final {
		return c.streamError(s, ProtocolError) // §8.1: a response begins with its head
	}
	if s.recvWindow -= length; s.recvWindow < 0 {
		return c.streamError(s, FlowControlError)
	}
	s.credit(overhead)
	return nil
}

// onData takes what came of a DATA frame's payload.
func (c *Conn) onData(p []byte) *ConnError {
	d := &c.data
	content := p[:min(len(p), int(d.left))]
	n := int64(len(content))
	d.left -= uint32(n)
	d.pad -= uint32(len(p) - len(content))
	d.open = d.left+d.pad > 0
	end := d.left == 0 && d.end
	if end {
		d.end = false // what still comes is padding
	}
	s := c.streams.get(d.stream)
	if s == nil || s.recvEnd || s.discard || s.deaf() {
		c.credit(n)
		if s != nil && s.lingering && !s.recvEnd {
			s.lingered(n)
		}
		if s != nil && end && !s.gone {
			if s.lingering {
				c.ping() // see linger
			}
			s.recvEnd = true
			s.settle()
		}
		return nil
	}
	if n == 0 && !end {
		return nil
	}
	s.received += n
	if s.length >= 0 && (s.received > s.length || end && s.received != s.length) {
		c.credit(n)
		return c.streamError(s, ProtocolError) // §8.1.1: not as long as content-length said
	}
	s.recvEnd = end
	if s.holds() {
		s.in.Append(content)
		s.inEnd = end
		c.hold(n)
		return nil
	}
	s.delivered = end
	s.r.Data(content, end)
	c.credit(n)
	if !s.gone {
		s.credit(n)
		s.settle()
	}
	return nil
}

// hold takes n more bytes that a Pause holds back, or with a negative n takes such bytes back.
//
// The connection's window is not for holding one stream back, since all who share the connection share it: each
// stream's own window does that, and what is held gives the connection's window back at once. On a server the sum has
// a limit, beyond which what is held is withheld from all. What one client makes us keep is bounded by HoldLimit and
// the connection's window. On a client, each response that is read slowly has a stream window, and nothing else.
func (c *Conn) hold(n int64) {
	c.held += n
	owed := max(0, c.held-int64(c.o.HoldLimit))
	c.credit(max(n, 0) - (owed - c.owed))
	c.owed = owed
}

// credit gives window of the connection back, half of it at a time.
func (c *Conn) credit(n int64) {
	c.recvUnacked += n
	if c.recvUnacked >= int64(c.o.InitialConnWindow)/2 && !c.closed {
		c.writeWindowUpdate(0, uint32(c.recvUnacked))
		c.recvWindow += c.recvUnacked
		c.recvUnacked = 0
	}
}

// credit gives window of the stream back, half of it at a time, unless its
// receiver paused or nothing more is to come.
func (s *Stream) credit(n int64) {
	s.recvUnacked += n
	if s.paused > 0 || s.recvEnd || s.gone || s.deaf() || s.c.closed || s.recvUnacked < int64(s.c.o.InitialStreamWindow+1)/2 || s.recvUnacked == 0 {
		return
	}
	s.c.writeWindowUpdate(s.id, uint32(s.recvUnacked))
	s.recvWindow += s.recvUnacked
	s.recvUnacked = 0
}

// holds says that content is kept for a Resume.
func (s *Stream) holds() bool { return s.paused > 0 || s.delivering || s.in.Len() > 0 }

// deliverPiece bounds one Data event of what was held back.
const deliverPiece = 16 << 10

// deliver passes on what a Pause held back, until the next Pause.
func (s *Stream) deliver() {
	c := s.c
	if s.delivering || s.in.Len() == 0 && !s.inEnd {
		return // a Resume within an event: the loop below goes on
	}
	c.depth++ // s is not to become another stream's while this is under way
	s.delivering = true
	for s.in.Len() > 0 && s.paused == 0 && !s.gone && !s.deaf() {
		p := s.in.Bytes()
		p = p[:min(len(p), deliverPiece)]
		s.delivered = len(p) == s.in.Len() && s.inEnd && s.inTail == nil
		s.r.Data(p, s.delivered)
		s.in.Consume(len(p))
		c.hold(-int64(len(p)))
		if !s.gone {
			s.credit(int64(len(p)))
		}
	}
	s.delivering = false
	switch {
	case s.gone || s.lingering:
		s.dropInput()
	case s.in.Len() > 0:
	case s.inEnd && s.paused == 0 && !s.delivered && !s.deaf():
		s.delivered = true
		if t := s.inTail; t != nil {
			s.inTail = nil
			s.r.Trailers(t)
			c.spare.put(t)
		} else {
			s.r.Data(nil, true)
		}
	}
	if s.delivered {
		s.inEnd = false
	}
	c.depth--
	if !s.gone {
		s.settle()
	}
}

// dropInput forgets what was held back.
func (s *Stream) dropInput() {
	if s.delivering {
		return // the receiver has a view of it; deliver comes back here
	}
	if n := s.in.Len(); n > 0 {
		s.c.hold(-int64(n))
		s.in.Release()
	}
	s.inEnd = false
	if s.inTail != nil {
		s.c.spare.put(s.inTail)
		s.inTail = nil
	}
}
