package http2

import (
	"sallyport/sidecar/buffer"
	"sallyport/sidecar/message"
)

// Stream is one request and its response: the way to send on. It belongs to
// its connection, which uses it again for another: it may not be touched any more
//
//   - after its receiver's Reset was called, or Reset was called on it;
//   - on a server, after the end of the response was given to it. No event
//     follows either, except in a tunnel (CONNECT, an upgrade that was
//     accepted), whose two directions end apart;
//   - on a client, after the end of the request was given to it and the
//     receiver got the end of the response. A receiver that got the end of
//     the response first gets no more events but Drained, and calls Reset
//     or sends on to the end.
//
// Until another stream takes its place, calls have no effect.
type Stream struct {
	c  *Conn
	r  message.Receiver
	id uint32 // 0: a client's stream before its head

	// What the message in each direction is.
	tunnel   bool   // CONNECT or an upgrade: no end of one direction ends the other
	extended bool   // extended CONNECT
	madeKey  bool   // the upgrade's Sec-WebSocket-Key is ours
	isHead   bool   // client: the request is HEAD
	protocol string // client: of the extended CONNECT

	// Receiving.
	begun         bool // a head came, on a client also an informational one
	final         bool // client: the final head came
	recvEnd       bool // END_STREAM came
	delivered     bool // the receiver has the end
	delivering    bool // deliver is on the stack
	inEnd         bool // the end waits behind in, as inTail where there are trailers
	discard       bool // server: a tunnel was refused, and what comes is dropped
	informational int
	paused        int
	length        int64 // content-length, -1 where there is none
	received      int64
	recvWindow    int64 // what the peer may still send
	recvUnacked   int64
	in            buffer.Buffer // content that came during a Pause
	inTail        *message.Head

	// Sending.
	headGiven  bool // the sender gave the final head
	ended      bool // and the end
	failed     bool // the response is an error
	sendEnd    bool // END_STREAM was sent, or the peer does not want the rest
	headEnd    bool // END_STREAM goes with the head that waits
	outEnd     bool // END_STREAM goes behind out, with tail where there are trailers
	wasFull    bool
	sendWindow int64
	firstHead  *message.Head // waits for room in the Output, or for the peer's SETTINGS
	out        buffer.Buffer // content that waits for window or Output
	tail       *message.Head

	since     int64 // when it was opened
	moved     int64 // when it last did what Sweep waits for
	budget    int64 // of content that is dropped while it lingers
	lingerEnd int64 // until when it lingers at most
	lingering bool  // server: answered, and the client still sends
	orphan    bool  // client: cancelled, and the server does not know yet
	gone      bool
	live      links
	turnIn    *sendList // the list in which it has its turn, nil where it has nothing that it may send
	turn      links
}

// maxFree bounds the streams that a connection keeps for reuse.
const maxFree = 128

func (c *Conn) newStream() *Stream {
	var s *Stream
	if n := len(c.free); n > 0 {
		s = c.free[n-1]
		c.free[n-1] = nil
		c.free = c.free[:n-1]
		c.unused = min(c.unused, n-1)
	} else {
		s = new(Stream)
	}
	*s = Stream{}
	s.c, s.length, s.since = c, -1, c.out.NowMono()
	s.sendWindow, s.recvWindow = c.peerWindow, int64(c.o.InitialStreamWindow)
	if !c.acked {
		s.recvWindow = max(s.recvWindow, defaultWindow) // the peer may not know ours yet (§6.9.3)
	}
	s.in.Init(c.out.Buffer().Pool())
	s.out.Init(c.out.Buffer().Pool())
	c.live.add(s)
	c.active++
	return s
}

// recycle makes streams that ended usable again, where nobody on the stack can look at them.
func (c *Conn) recycle() {
	if c.depth > 0 || len(c.dead) == 0 {
		return
	}
	if n := maxFree - len(c.free); n > 0 {
		c.free = append(c.free, c.dead[:min(n, len(c.dead))]...)
	}
	clear(c.dead)
	c.dead = c.dead[:0]
	if len(c.free) > keptStreams {
		c.bulk()
	}
}

// remove forgets a stream that is over. The caller calls streamClosed when it
// does not touch the stream any more. Where the sender has neither given the
// end nor heard of it, it may still call: then s is left to the garbage
// collector, or what it sends would go out on another stream.
func (s *Stream) remove(told bool) {
	c := s.c
	s.gone = true
	s.dropOutput()
	s.dropInput()
	if s.wasFull {
		c.full--
	}
	if s.id != 0 {
		c.streams.remove(s.id)
		if s.recvEnd {
			c.ended.add(s.id)
		}
	}
	c.live.remove(s)
	c.active--
	if c.server && s.headGiven {
		c.limits.paid(&c.o)
	}
	if told || s.ended {
		c.dead = append(c.dead, s)
	}
}

func (c *Conn) streamClosed() {
	c.relieve()
	c.common.StreamClosed()
}

// end ends the stream early and tells its receiver.
func (s *Stream) end(why message.Reason) {
	if s.gone {
		return
	}
	c, r := s.c, s.r
	told := !s.deaf()
	s.remove(told)
	if told && r != nil {
		r.Reset(why)
	}
	c.streamClosed()
}

// deaf says that the receiver has had its last event but Drained.
func (s *Stream) deaf() bool {
	if s.c.server {
		return s.ended && (s.delivered || !s.tunnel)
	}
	return s.delivered
}

// settle removes a stream whose two messages are complete.
func (s *Stream) settle() {
	if s.gone || !s.recvEnd || !s.sendEnd || s.inEnd {
		return
	}
	s.remove(false)
	s.c.streamClosed()
}

// dropOutput forgets what waits to be sent.
func (s *Stream) dropOutput() {
	if s.turnIn != nil {
		s.turnIn.remove(s)
	}
	if n := s.out.Len(); n > 0 {
		s.c.waiting -= n
		s.out.Release()
	}
	s.outEnd, s.headEnd = false, false
	if s.firstHead != nil {
		s.c.unpark(&s.firstHead)
	}
	if s.tail != nil {
		s.c.unpark(&s.tail)
	}
}

// SetReceiver replaces who gets the stream's events.
func (s *Stream) SetReceiver(r message.Receiver) { s.r = r }

// ID is the stream's identifier, 0 for a client's stream before its head was sent.
func (s *Stream) ID() uint32 { return s.id }

// Head sends a head. A server's 101 accepts an extended CONNECT; a client's
// head with an Upgrade field becomes one, and where the server does not take
// these (RFC 8441 §3) the stream ends with Reset(LocalReset). A head that
// HTTP/2 cannot carry ends it in the same way.
func (s *Stream) Head(h *message.Head, end bool) {
	c := s.c
	if s.gone || c.closed || s.ended {
		return
	}
	if s.headGiven {
		s.abort(InternalError)
		return
	}
	if c.server {
		status := h.StatusCode()
		if status >= 100 && status < 200 && status != 101 && !end {
			if !c.out.Full() { // a client that does not read does without
				c.writeHead(s, h, 0)
			}
			return
		}
		s.failed = status >= 400
		if code := s.refuses(status); code != NoError {
			s.abort(code)
			return
		}
		if s.tunnel {
			s.answerTunnel(h, end, status == 101 || status/100 == 2)
			return
		}
	} else if !s.prepareRequest(h) {
		s.abort(InternalError)
		return
	}
	s.giveHead(h, end)
}

// answerTunnel sends the answer to CONNECT or an upgrade. What the client sent
// ahead of it was meant for the tunnel, and goes nowhere else.
func (s *Stream) answerTunnel(h *message.Head, end, accepted bool) {
	if accepted {
		s.giveHead(h, end)
		s.Resume()
		return
	}
	s.tunnel, s.discard = false, true
	s.giveHead(h, end)
	if !s.deaf() && !s.gone && !s.delivered {
		s.delivered = true
		s.r.Data(nil, true)
	}
}

// giveHead sends the final head, or has it wait.
func (s *Stream) giveHead(h *message.Head, end bool) {
	c := s.c
	s.headGiven, s.ended = true, end
	if c.out.Full() || !s.mayGo() {
		c.park(&s.firstHead, h)
		s.headEnd = end
		s.awaitClient()
		s.queue()
		return
	}
	s.sendHead(h, end)
}

// refuses says with which error a final response head cannot be sent.
func (s *Stream) refuses(status int) ErrCode {
	switch {
	case status < 200 && status != 101, status == 101 && !s.extended:
		return InternalError // §8.6
	case s.extended && status/100 == 2:
		// To the client it would say that the tunnel is open.
		return ConnectError
	}
	return NoError
}

// prepareRequest looks at a request's head before it is sent.
func (s *Stream) prepareRequest(h *message.Head) bool {
	switch {
	case !h.Has(message.Method):
		return false
	case h.Has(message.Upgrade):
		s.tunnel, s.extended = true, true
		s.protocol = string(h.OnlyElement(message.Upgrade))
		return message.IsProtocol(h.OnlyElement(message.Upgrade))
	}
	s.tunnel = h.Is(message.Method, "CONNECT")
	s.isHead = h.Is(message.Method, "HEAD")
	return s.tunnel || h.Has(message.Path)
}

// mayGo says that the head needs not wait for the peer's SETTINGS.
func (s *Stream) mayGo() bool { return s.c.server || !s.extended || s.c.settings }

// sendHead writes the final head.
func (s *Stream) sendHead(h *message.Head, end bool) {
	c := s.c
	if !c.server && !s.open(h) {
		return
	}
	flags := uint8(0)
	if end {
		flags = flagEndStream
	}
	c.writeHead(s, h, flags)
	if end {
		s.sentEnd()
	}
}

// open gives a client's stream its identifier: their order is that of the
// heads on the wire (§5.1.1).
func (s *Stream) open(h *message.Head) bool {
	c := s.c
	switch {
	case c.peerGone || c.next > maxStreamID:
		s.end(message.Refused)
		return false
	case s.extended && !c.peerConnect:
		s.end(message.LocalReset)
		return false
	case !s.fits(h):
		s.end(message.HeaderTooLarge)
		return false
	}
	s.id = c.next
	c.next += 2
	c.seen = s.id
	s.since = c.out.NowMono()
	c.limits.opening()
	c.streams.put(s)
	return true
}

// abort ends a stream whose sender did what HTTP/2 cannot carry.
func (s *Stream) abort(code ErrCode) {
	if s.id != 0 {
		s.c.writeReset(s.id, code)
	}
	s.end(message.LocalReset)
}

// Data sends content, as far as windows and Output allow; the rest waits.
func (s *Stream) Data(p []byte, end bool) {
	c := s.c
	if s.gone || c.closed || s.ended || len(p) == 0 && !end {
		return
	}
	if !s.headGiven {
		s.abort(InternalError)
		return
	}
	s.ended = end
	if s.sendEnd {
		return
	}
	// Straight into the Output, unless that would be out of turn.
	if s.firstHead == nil && s.out.Len() == 0 && c.ready.first == nil {
		for len(p) > 0 && !c.out.Full() {
			n := s.allowance(len(p))
			if n == 0 {
				break
			}
			last := end && n == len(p)
			s.writeData(p[:n], last)
			if p = p[n:]; last {
				s.sentEnd()
				return
			}
		}
		if len(p) == 0 {
			if end {
				s.writeData(nil, true)
				s.sentEnd()
			}
			return
		}
	}
	s.out.Append(p)
	c.waiting += len(p)
	s.outEnd = end
	s.awaitClient()
	s.queue()
}

// Trailers ends the message with trailers, behind what waits.
func (s *Stream) Trailers(h *message.Head) {
	c := s.c
	if s.gone || c.closed || s.ended {
		return
	}
	if !s.headGiven {
		s.abort(InternalError)
		return
	}
	s.ended = true
	if s.sendEnd {
		return
	}
	if !c.server && !s.fits(h) {
		if s.id != 0 {
			c.writeReset(s.id, Cancel)
		}
		s.end(message.HeaderTooLarge)
		return
	}
	if s.firstHead == nil && s.out.Len() == 0 && !c.out.Full() {
		c.writeTrailers(s, h)
		s.sentEnd()
		return
	}
	c.park(&s.tail, h)
	s.outEnd = true
	s.awaitClient()
	s.queue()
}

// sentEnd notes that END_STREAM was sent. A server that has answered does not
// want the rest of the request (§8.1), but gives the client time to see that.
func (s *Stream) sentEnd() {
	s.sendEnd = true
	if !s.c.server || s.tunnel {
		s.settle()
		return
	}
	if !s.recvEnd {
		if s.mayLinger() {
			s.linger()
			return
		}
		s.c.writeReset(s.id, NoError)
	}
	s.remove(false)
	s.c.streamClosed()
}

// Reset abandons the stream; the receiver hears nothing more.
func (s *Stream) Reset(why message.Reason) {
	if s.gone {
		return
	}
	c := s.c
	if s.id != 0 && !c.closed && !(s.recvEnd && s.sendEnd) {
		if c.Worn() && s.young() {
			s.abandon()
			return
		}
		s.endsUnanswered()
		c.writeReset(s.id, s.codeFor(why))
	}
	s.remove(true)
	c.streamClosed()
}

// codeFor says to the peer why this side gave up.
func (s *Stream) codeFor(why message.Reason) ErrCode {
	switch {
	case why == message.ProtocolError:
		return ProtocolError
	case !s.c.server:
		return Cancel
	case (why == message.Refused || why == message.Overflow) && !s.headGiven:
		return RefusedStream // §8.7: nothing was done, the client may repeat it
	}
	return InternalError
}

// Pause stops Data and Trailers events. What comes is kept: at most the
// stream's window, which stays shut.
func (s *Stream) Pause() { s.paused++ }

// Resume undoes one Pause. What was kept comes from within the call.
func (s *Stream) Resume() {
	if s.gone || s.paused == 0 {
		return
	}
	if s.paused--; s.paused == 0 {
		s.credit(0)
		s.deliver()
	}
}
