package http1

import "sallyport/sidecar/message"

// ServerStream is the response side of the exchange that is open. It belongs
// to its connection and is used again for the next exchange.
type ServerStream struct{ c *ServerConn }

// IsUpgrade says that the request asks to leave HTTP: it has an Upgrade field
// or is CONNECT. Its content follows only after a 101, or 2xx to CONNECT; else
// its end is delivered from within the call of Head that refuses it.
func (s *ServerStream) IsUpgrade() bool { return s.c.x.upgrade || s.c.x.connect }

// active says that there is a stream to send on.
func (c *ServerConn) active() bool { return c.r != nil && !c.sent }

// Head sends a response head. One that cannot be sent resets the stream; the client gets 502.
func (s *ServerStream) Head(h *message.Head, end bool) {
	c := s.c
	if !c.active() {
		return
	}
	if c.answered {
		c.misuse()
		return
	}
	code := h.StatusCode()
	if code/100 == 1 && code != 101 && !end && (c.x.http10 || c.out.Full()) {
		// RFC 9110 §15.2: not to an HTTP/1.0 client. A client that does not
		// read has no use for one either, and an upstream may send many.
		return
	}
	x := c.x
	// A response that comes before the request's end is the last: the client should not have to find out that nobody
	// waits for the rest. That of an upgrade or CONNECT which is refused is what the client sent ahead: it was meant for
	// the tunnel, and must not be read as a request.
	refused := c.phase == serverAsked && code >= 200 && !(x.connect && code/100 == 2)
	early := code >= 200 && (c.phase == serverBody || c.phase == serverTrailers)
	x.close = x.close || c.draining || early || refused
	if !c.w.responseHead(c.out.Buffer(), h, end, &x) {
		c.misuse()
		return
	}
	c.out.Flush()
	if code < 200 && code != 101 {
		return
	}
	epoch := c.epoch
	c.x, c.answered = x, true
	switch {
	case c.w.framing == frameTunnel:
		c.x.close = true
		c.phase = serverTunnel
		c.owner.Resumed()
		if end && c.epoch == epoch {
			s.end(epoch)
		}
		return
	case refused:
		c.received()
		c.sent = end
		c.r.Data(nil, true)
	case end:
		c.sent = true
	}
	c.settle(epoch)
}

// Data sends content.
func (s *ServerStream) Data(p []byte, end bool) {
	c := s.c
	if !c.active() || c.sentEOF || len(p) == 0 && !end {
		return
	}
	if !c.answered || !c.w.data(c.out.Buffer(), p, end) {
		c.misuse()
		return
	}
	c.out.Flush()
	if end {
		s.end(c.epoch)
	}
}

// Trailers ends the response with trailers, where it can carry them.
func (s *ServerStream) Trailers(h *message.Head) {
	c := s.c
	if !c.active() || c.sentEOF {
		return
	}
	if !c.answered || !c.w.trailers(c.out.Buffer(), h, c.o.EnableTrailers) {
		c.misuse()
		return
	}
	c.out.Flush()
	s.end(c.epoch)
}

// end marks the response complete.
func (s *ServerStream) end(epoch uint32) {
	c := s.c
	if c.w.framing == frameTunnel {
		c.sentEOF = true
		c.owner.SendEOF()
		c.tunnelDone(epoch)
		return
	}
	c.sent = true
	c.settle(epoch)
}

// tunnelDone ends the exchange when both directions of a tunnel ended.
func (c *ServerConn) tunnelDone(epoch uint32) {
	if c.epoch == epoch && c.sentEOF {
		c.sent = true
		c.settle(epoch)
	}
}

// Reset abandons the exchange. The connection is closed: at once where a
// response is not complete, else when it was sent.
func (s *ServerStream) Reset(message.Reason) {
	if c := s.c; c.r != nil {
		c.abort()
	}
}

// Full says that the Output has more than its high mark.
func (s *ServerStream) Full() bool {
	full := s.c.out.Full()
	s.c.wasFull = s.c.wasFull || full
	return full
}

// Pause stops Data events; bytes stay with the caller of Feed.
func (s *ServerStream) Pause() { s.c.paused++ }

// Resume undoes one Pause.
func (s *ServerStream) Resume() {
	c := s.c
	if c.paused == 0 {
		return
	}
	if c.paused--; c.paused == 0 && c.r != nil {
		c.owner.Resumed()
	}
}
