package http1

import "sallyport/sidecar/message"

// clientPhase is where the response side of an exchange stands.
type clientPhase uint8

const (
	clientIdle     clientPhase = iota // no exchange
	clientHead                        // waiting for, or in, a response head
	clientBody                        // in the content
	clientTrailers                    // in the trailers
	clientTunnel                      // another protocol
	clientDone                        // the response is complete
	clientClosed                      // nothing more is read; input is discarded
)

const (
	// maxInformational bounds 1xx responses to one request.
	maxInformational = 16
	// maxEarly bounds what a sender may hand over for a tunnel before the server agreed to it.
	maxEarly = 64 << 10
)

// ClientOwner has a ClientConn.
type ClientOwner interface {
	// StreamClosed is called when an exchange is over: request and response
	// are complete, or the ClientStream was reset. Capacity says whether the
	// connection can have another, which may be opened from within the call;
	// where it cannot, the owner closes.
	StreamClosed()
	// Resumed asks the owner to feed the bytes it kept again, after the
	// call that this one came from has returned.
	Resumed()
	// SendEOF is called when a tunnel's sending side ended: the owner
	// shuts down writing once the Output is empty.
	SendEOF()
}

// ClientConn is the client side of one connection: one exchange at a time.
//
// A Head that a Receiver is given may be taken by exchange: *own, *h = *h, *own.
type ClientConn struct {
	// Turn bounds what Feed does in a turn of the loop, which is one call.
	Turn message.Turn

	out    Output
	o      *Options
	limits limits
	owner  ClientOwner

	r      message.Receiver
	stream ClientStream
	reader *reader
	epoch  uint32 // number of exchanges finished

	phase    clientPhase
	body     body
	w        writer
	x        exchange // upgrade holds for CONNECT too
	infos    uint8
	paused   int32
	started  bool // the request head was written
	sent     bool // the request is complete
	keep     bool // the connection outlives the exchange
	wasFull  bool
	feeding  bool
	protocol []byte // of an upgrade that was asked for
	early    []byte // for a tunnel that the server has not agreed to
	earlyEnd bool
}

// NewClient returns the codec of an established connection.
func NewClient(out Output, o *Options, owner ClientOwner) *ClientConn {
	if o == nil {
		o = new(Options)
	}
	c := &ClientConn{out: out, o: o, limits: o.limits(), owner: owner}
	c.stream.c = c
	return c
}

// Open starts an exchange whose response goes to r, and returns its *ClientStream; nil where there is no Capacity.
func (c *ClientConn) Open(r message.Receiver) message.Sender {
	if c.phase != clientIdle {
		return nil
	}
	c.r, c.phase = r, clientHead
	c.w, c.x = writer{}, exchange{}
	c.infos, c.paused = 0, 0
	c.started, c.sent, c.keep, c.wasFull = false, false, true, false
	return &c.stream
}

// Capacity is 1 where an exchange can be opened: none is open and the last one
// left the connection in a known state.
func (c *ClientConn) Capacity() int {
	if c.phase == clientIdle {
		return 1
	}
	return 0
}

// Active is the number of open exchanges, 0 or 1.
func (c *ClientConn) Active() int {
	if c.phase == clientIdle || c.phase == clientClosed {
		return 0
	}
	return 1
}

// Draining says that no exchange can be opened any more.
func (c *ClientConn) Draining() bool { return c.phase == clientClosed }

// Limit is how many exchanges there can be at a time, which is known.
func (c *ClientConn) Limit() (n int, known bool) { return 1, true }

// Worn and StarvedSince say that exchanges do no harm to each other.
func (c *ClientConn) Worn() bool          { return false }
func (c *ClientConn) StarvedSince() int64 { return 0 }

// Drain tells the server nothing: a client closes.
func (c *ClientConn) Drain(bool) {}

// Sweep does nothing: an exchange has no time of its own here.
func (c *ClientConn) Sweep() int { return 0 }

// Feed takes bytes from the peer and says how many it consumed; those it did
// not must be the beginning of what the next Feed gets: they belong to a line that
// is not complete, or wait for Resume or for the next turn: see Rest. An error is an *Error:
// the stream was reset, and the caller closes. Feed must not be called from
// within a callback.
func (c *ClientConn) Feed(p []byte) (n int, err error) {
	if c.feeding || len(p) == 0 {
		return 0, nil
	}
	c.feeding = true
	c.Turn.Begin()
	n, e := c.feed(p)
	c.feeding = false
	if e != nil {
		c.fail(message.ProtocolError)
		return n, e
	}
	return n, nil
}

func (c *ClientConn) feed(p []byte) (n int, err *Error) {
	epoch := c.epoch
	for c.epoch == epoch {
		switch c.phase {
		case clientHead:
			if !c.started {
				return n, errUnsolicited
			}
			if n == len(p) {
				return n, nil
			}
			if c.reader == nil {
				c.reader = newReader(response, c.limits, c.o.Underscores)
			}
			k, done, err := c.reader.read(p[n:])
			n += k
			if err != nil || !done {
				return n, err
			}
			if err := c.begin(len(p) - n); err != nil {
				return n, err
			}
		case clientBody, clientTunnel:
			if n == len(p) || c.paused > 0 || c.Turn.Over() {
				return n, nil
			}
			c.Turn.Spend(message.PieceCost)
			k, data, last, err := c.body.next(p[n:], c.limits.piece)
			n += k
			if err != nil {
				return n, err
			}
			if last && c.body.kind == bodyChunked {
				c.phase = clientTrailers
				c.reader = newReader(trailers, c.limits, c.o.Underscores)
				continue
			}
			if last {
				c.received(len(p) - n)
			}
			if len(data) > 0 || last {
				c.r.Data(data, last)
				c.settle(epoch)
			}
		case clientTrailers:
			if n == len(p) || c.paused > 0 {
				return n, nil
			}
			k, done, err := c.reader.read(p[n:])
			n += k
			if err != nil || !done {
				return n, err
			}
			d := c.reader
			c.reader = nil
			c.received(len(p) - n)
			if d.head.Len() > 0 && c.o.EnableTrailers {
				c.r.Trailers(&d.head)
			} else {
				c.r.Data(nil, true)
			}
			d.free()
			c.settle(epoch)
		case clientDone, clientIdle:
			if n < len(p) {
				return n, errUnsolicited
			}
			return n, nil
		default:
			return len(p), nil
		}
	}
	return n, nil
}

// begin takes a complete response head; rest is how many bytes came behind it.
func (c *ClientConn) begin(rest int) *Error {
	d := c.reader
	kind, err := d.finishResponse(c.x.head, c.x.connect, c.protocol)
	if err != nil {
		return err
	}
	c.reader = nil
	defer d.free()
	epoch := c.epoch
	if d.status < 200 && d.status != 101 {
		if c.infos++; c.infos > maxInformational {
			return errInformation
		}
		c.r.Head(&d.head, false)
		return nil
	}
	c.body.start(kind, d.length)
	c.keep = d.persistent() && kind != bodyUntilClose && kind != bodyTunnel
	switch kind {
	case bodyTunnel:
		c.phase = clientTunnel
	case bodyNone:
		c.received(rest)
	default:
		c.phase = clientBody
	}
	if c.w.framing == frameTunnel && kind != bodyTunnel {
		// The upgrade is refused: the request has no content, and what was
		// meant for the tunnel must not reach a connection that lives on.
		c.w.framing, c.sent = frameNone, true
		c.early, c.earlyEnd = nil, false
	}
	c.r.Head(&d.head, kind == bodyNone)
	if c.epoch == epoch && c.phase == clientTunnel {
		c.sendEarly(epoch)
	}
	c.settle(epoch)
	return nil
}

// sendEarly sends what waited for the tunnel to be agreed on.
func (c *ClientConn) sendEarly(epoch uint32) {
	p, end := c.early, c.earlyEnd
	c.early, c.earlyEnd = nil, false
	if len(p) > 0 || end {
		c.stream.Data(p, end)
	}
	if c.epoch == epoch && c.wasFull && !c.out.Full() {
		c.Writable()
	}
}

// received marks the response complete, before the receiver hears of it. Bytes
// behind it answer nothing that was asked: the connection must not carry
// another request, which they would be taken for the answer of.
func (c *ClientConn) received(rest int) {
	c.phase = clientDone
	c.keep = c.keep && rest == 0
}

// settle ends the exchange of that epoch if both its messages are complete.
func (c *ClientConn) settle(epoch uint32) {
	if c.epoch != epoch || c.phase != clientDone || !c.sent {
		return
	}
	c.r = nil
	c.epoch++
	c.phase = clientClosed
	if c.keep {
		c.phase = clientIdle
	}
	c.owner.StreamClosed()
}

// shut ends the connection and returns the receiver that still expects events, or nil.
func (c *ClientConn) shut() (r message.Receiver) {
	if c.phase != clientDone {
		r = c.r
	}
	c.phase, c.r = clientClosed, nil
	c.early, c.earlyEnd = nil, false
	c.epoch++
	if c.reader != nil {
		c.reader.free()
		c.reader = nil
	}
	return r
}

// fail ends the connection because of what came in, or did not; the caller knows of it.
// A response that is cut is none (RFC 9112 §8).
func (c *ClientConn) fail(why message.Reason) {
	if c.phase == clientClosed {
		return
	}
	if why == message.ConnectionClosed && c.cut() {
		why = message.ProtocolError
	}
	if r := c.shut(); r != nil {
		r.Reset(why)
	}
}

// cut says that a part of a message is here of which the end of the connection is not the end.
func (c *ClientConn) cut() bool {
	return c.reader != nil || c.phase == clientBody && c.body.kind != bodyUntilClose
}

// EOF says that the peer will send nothing more; all bytes before it have been
// fed and consumed. It completes a response that ends with the connection.
func (c *ClientConn) EOF() {
	epoch := c.epoch
	switch {
	case c.phase == clientTunnel:
		c.received(0)
		c.r.Data(nil, true)
		c.settle(epoch)
	case c.phase == clientBody && c.body.kind == bodyUntilClose:
		c.received(0)
		c.r.Data(nil, true)
		c.settle(epoch)
		if c.epoch == epoch {
			c.shut() // the rest of the request has no one to go to
		}
	default:
		c.fail(message.ConnectionClosed)
	}
}

// Closed says that the connection is gone.
func (c *ClientConn) Closed(r message.Reason) { c.fail(r) }

// Writable says that the Output has room again.
func (c *ClientConn) Writable() {
	if c.wasFull && c.active() {
		c.wasFull = false
		c.r.Drained()
	}
}

// Rest says what the bytes wait for that Feed left; what is the owner's is a Resume.
func (c *ClientConn) Rest() message.Rest {
	switch {
	case c.paused > 0 && (c.phase == clientBody || c.phase == clientTrailers || c.phase == clientTunnel):
		return message.ForOwner
	case c.Turn.Over():
		return message.ForTurn
	}
	return message.ForBytes
}

// ClientStream is the request side of the exchange that is open. It belongs to
// its connection and is used again for the next exchange.
type ClientStream struct{ c *ClientConn }

func (c *ClientConn) active() bool { return c.r != nil && !c.sent }

// Head sends the request head. One that cannot be sent resets the stream.
func (s *ClientStream) Head(h *message.Head, end bool) {
	c := s.c
	if !c.active() {
		return
	}
	if c.started {
		c.misuse()
		return
	}
	upgrade, ok := c.w.requestHead(c.out.Buffer(), h, end)
	if !ok {
		c.misuse()
		return
	}
	c.started = true
	c.protocol = c.protocol[:0]
	if upgrade {
		c.protocol = append(c.protocol, h.OnlyElement(message.Upgrade)...)
	}
	c.x = exchange{head: h.Is(message.Method, "HEAD"), connect: h.Is(message.Method, "CONNECT"), upgrade: upgrade}
	c.out.Flush()
	if upgrade {
		c.earlyEnd = end
		return
	}
	c.sent = end
}

// waiting says that the server has not agreed to the tunnel.
func (c *ClientConn) waiting() bool { return c.w.framing == frameTunnel && c.phase == clientHead }

// Data sends content.
func (s *ClientStream) Data(p []byte, end bool) {
	c := s.c
	if !c.active() || len(p) == 0 && !end {
		return
	}
	if !c.started {
		c.misuse()
		return
	}
	if c.waiting() {
		// RFC 9110 §7.8: nothing of the new protocol before the server switched.
		if len(c.early)+len(p) > maxEarly || c.earlyEnd {
			c.misuse()
			return
		}
		c.early = append(c.early, p...)
		c.earlyEnd = end
		return
	}
	if !c.w.data(c.out.Buffer(), p, end) {
		c.misuse()
		return
	}
	c.out.Flush()
	if end {
		s.end()
	}
}

// Trailers ends the request with trailers, where it can carry them.
func (s *ClientStream) Trailers(h *message.Head) {
	c := s.c
	switch {
	case !c.active():
	case c.waiting():
		s.Data(nil, true)
	case !c.started || !c.w.trailers(c.out.Buffer(), h, c.o.EnableTrailers):
		c.misuse()
	default:
		c.out.Flush()
		s.end()
	}
}

// end marks the request complete.
func (s *ClientStream) end() {
	c := s.c
	epoch := c.epoch
	c.sent = true
	if c.w.framing == frameTunnel {
		c.owner.SendEOF()
	}
	c.settle(epoch)
}

// misuse resets a stream that was given something that cannot be sent.
func (c *ClientConn) misuse() {
	r := c.r
	if c.phase == clientDone {
		r = nil // it had its last event
	}
	c.drop()
	if r != nil {
		r.Reset(message.LocalReset)
	}
	c.owner.StreamClosed()
}

// drop gives the exchange up. Where nothing of it was written, the connection stays good.
func (c *ClientConn) drop() {
	written := c.started
	c.shut()
	if !written {
		c.phase = clientIdle
	}
}

// Reset abandons the exchange; the owner closes the connection if it is Draining then.
func (s *ClientStream) Reset(message.Reason) {
	c := s.c
	if c.r == nil {
		return
	}
	c.drop()
	c.owner.StreamClosed()
}

// Full says that the Output has more than its high mark, or that a tunnel waits for the server.
func (s *ClientStream) Full() bool {
	full := s.c.out.Full() || s.c.waiting() && s.c.started
	s.c.wasFull = s.c.wasFull || full
	return full
}

// Pause stops Data events; bytes stay with the caller of Feed.
func (s *ClientStream) Pause() { s.c.paused++ }

// Resume undoes one Pause.
func (s *ClientStream) Resume() {
	c := s.c
	if c.paused == 0 {
		return
	}
	if c.paused--; c.paused == 0 && c.r != nil {
		c.owner.Resumed()
	}
}
