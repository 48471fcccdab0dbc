package http2

import (
	"strconv"

	"sallyport/sidecar/buffer"
	"sallyport/sidecar/message"
)

// Stream is one request and its response: the way to send on. It belongs to
// its connection and is used again: after the message in both directions is
// complete, or Reset was called by either side, it may not be touched.
type Stream struct {
	c  *Conn
	r  message.Receiver
	id uint32 // 0: a client's stream before its head

	sendWindow  int64
	recvWindow  int64 // what the peer may still send
	recvUnacked int64
	paused      int
	length      int64 // content-length of what is received, -1: none
	received    int64

	pending    buffer.Buffer // DATA that waits for window or Output
	pendingEnd bool          // END_STREAM follows it
	tail       *message.Head

	headIn, headOut bool // a final head was received, sent
	recvEnd         bool
	sendEnd         bool // END_STREAM was sent
	ended           bool // the sender said its last
	isHead          bool // the request is HEAD
	connect         bool // extended CONNECT: the content is a tunnel
	gone            bool
	wasFull         bool
	queued          bool
	prev, following *Stream
}

func (c *Conn) newStream() *Stream {
	var s *Stream
	if c.depth == 0 {
		c.free = append(c.free, c.dead...)
		clear(c.dead)
		c.dead = c.dead[:0]
	}
	if n := len(c.free); n > 0 {
		s = c.free[n-1]
		c.free = c.free[:n-1]
	} else {
		s = &Stream{c: c}
		s.pending.Init(c.pool())
	}
	s.gone = false
	s.sendWindow, s.recvWindow = c.peerWindow, int64(c.o.InitialStreamWindow)
	s.length = -1
	c.opened++
	return s
}

// maxFree bounds the streams kept for reuse by a connection.
const maxFree = 128

// remove forgets a stream that is over.
func (s *Stream) remove() {
	c := s.c
	if s.gone {
		return
	}
	s.gone = true
	c.dequeue(s)
	if s.wasFull {
		c.full--
	}
	if s.id != 0 {
		delete(c.streams, s.id)
		c.wasClosed.add(s.id)
	}
	c.active--
	s.pending.Release()
	if len(c.free)+len(c.dead) < maxFree && !c.closed {
		pending := s.pending
		*s = Stream{c: c, pending: pending, gone: true}
		c.dead = append(c.dead, s)
	}
	if c.OnStreamClosed != nil {
		c.OnStreamClosed()
	}
}

// end ends the stream early and tells its receiver.
func (s *Stream) end(why message.Reason) {
	if s.gone {
		return
	}
	r, complete := s.r, s.recvEnd && s.ended
	s.remove()
	if r != nil && !complete {
		r.Reset(why)
	}
}

// settle removes a stream whose two messages are complete.
func (s *Stream) settle() {
	if s.gone || !s.recvEnd || !s.sendEnd {
		return
	}
	s.remove()
}

// SetReceiver replaces who gets the stream's events.
func (s *Stream) SetReceiver(r message.Receiver) { s.r = r }

// ID is the stream's identifier, 0 for a client's stream before its head was sent.
func (s *Stream) ID() uint32 { return s.id }

// Head sends a head.
func (s *Stream) Head(h *message.Head, end bool) {
	c := s.c
	if s.gone || c.closed || s.ended {
		return
	}
	if !c.server && s.id == 0 && !s.openFor(h) {
		return
	}
	status := 0
	if c.server {
		status = h.StatusCode()
		if status == 101 && !s.connect {
			s.refuseHead() // §8.6: 101 does not exist in HTTP/2
			return
		}
	}
	informational := c.server && status < 200 && status != 101
	flags := uint8(flagEndHeaders)
	if end {
		flags |= flagEndStream
		s.ended = true
	}
	s.headOut = s.headOut || !informational
	c.writeBlock(s, h, flags)
	if end {
		s.sentEnd()
	}
}

// openFor gives the client's stream its identifier; the order of identifiers
// is that of the heads on the wire (§5.1.1). It answers false where the head cannot be sent.
func (s *Stream) openFor(h *message.Head) bool {
	c := s.c
	s.isHead = h.Is(message.Method, "HEAD")
	if h.Has(message.Upgrade) {
		if !c.peerConnect {
			// The peer does not take WebSockets over HTTP/2 (RFC 8441 §3).
			r := s.r
			s.remove()
			r.Reset(message.LocalReset)
			return false
		}
		s.connect = true
	}
	s.id = c.next
	c.next += 2
	c.last = s.id
	c.streams[s.id] = s
	return true
}

// refuseHead ends a stream whose owner sent a head that HTTP/2 cannot carry.
func (s *Stream) refuseHead() {
	s.c.sendReset(s.id, InternalError)
	s.end(message.LocalReset)
}

// writeBlock encodes the fields into HEADERS and CONTINUATION frames.
func (c *Conn) writeBlock(s *Stream, h *message.Head, flags uint8) {
	b := c.enc.Begin(c.scratch[:0])
	b = c.encode(b, s, h)
	c.scratch = b[:0]
	out := c.out.Buffer()
	kind := frameHeaders
	for first := true; first || len(b) > 0; first = false {
		piece := b[:min(len(b), c.peerFrame)]
		b = b[len(piece):]
		f := flags
		if len(b) > 0 {
			f &^= flagEndHeaders
		}
		var hdr [frameHeaderLen]byte
		out.Append(appendHeader(hdr[:0], len(piece), kind, f, s.id))
		out.Append(piece)
		kind, flags = frameContinuation, flags&flagEndHeaders
	}
	c.out.Flush()
}

// pseudo-header fields come first (§8.3).
var pseudo = [...]message.Name{message.Method, message.Scheme, message.Authority, message.Path, message.Protocol, message.Status}

func (c *Conn) encode(b []byte, s *Stream, h *message.Head) []byte {
	for _, n := range pseudo {
		v := h.Get(n)
		switch {
		case v == nil && !(n == message.Protocol && s.connect && !c.server):
			continue
		case n == message.Method && s.connect && !c.server:
			v = []byte("CONNECT")
		case n == message.Protocol && s.connect && !c.server:
			v = h.Get(message.Upgrade)
		case n == message.Status && s.connect && string(v) == "101":
			v = []byte("200")
		case n == message.Path && !c.server && !s.connect && h.Is(message.Method, "CONNECT"),
			n == message.Scheme && !c.server && !s.connect && h.Is(message.Method, "CONNECT"):
			continue // §8.5
		}
		b = c.enc.Field(b, n, n.String(), v)
	}
	for i := range h.Len() {
		n := h.NameAt(i)
		name, value := h.At(i)
		switch n {
		case message.Method, message.Scheme, message.Authority, message.Path, message.Protocol, message.Status,
			// Connection-specific fields (§8.2.2).
			message.Connection, message.KeepAlive, message.ProxyConnection, message.TransferEncoding, message.Upgrade, message.HTTP2Settings, message.Host:
			continue
		case message.TE:
			if string(value) != "trailers" {
				continue
			}
		case message.ContentLength:
			if s.connect {
				continue
			}
		}
		b = c.enc.Field(b, n, name, value)
	}
	return b
}

// Data sends content, as far as windows and Output allow; the rest waits.
func (s *Stream) Data(p []byte, end bool) {
	c := s.c
	if s.gone || c.closed || s.ended || s.id == 0 {
		return
	}
	s.ended = end
	if s.pending.Len() == 0 && !s.queued && !c.out.Full() {
		for len(p) > 0 {
			n := int(min(int64(min(len(p), c.peerFrame)), s.sendWindow, c.sendWindow))
			if n <= 0 {
				break
			}
			s.writeData(p[:n], end && n == len(p))
			p = p[n:]
			if len(p) == 0 && end {
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
	s.pending.Append(p)
	s.pendingEnd = end
	s.queue()
}

func (s *Stream) writeData(p []byte, end bool) {
	c := s.c
	var hdr [frameHeaderLen]byte
	flags := uint8(0)
	if end {
		flags = flagEndStream
	}
	b := c.out.Buffer()
	b.Append(appendHeader(hdr[:0], len(p), frameData, flags, s.id))
	b.Append(p)
	s.sendWindow -= int64(len(p))
	c.sendWindow -= int64(len(p))
	c.out.Flush()
}

// queue puts a stream that has something to send, and a window, behind the others.
func (s *Stream) queue() {
	c := s.c
	if s.queued || s.gone || s.pending.Len() == 0 && !s.pendingEnd && s.tail == nil || s.pending.Len() > 0 && s.sendWindow <= 0 {
		return
	}
	s.queued = true
	s.prev, s.following = c.lastIn, nil
	if c.lastIn != nil {
		c.lastIn.following = s
	} else {
		c.first = s
	}
	c.lastIn = s
}

// sendFrame sends one frame of what waits.
func (s *Stream) sendFrame() {
	c := s.c
	n := int(min(int64(min(s.pending.Len(), c.peerFrame)), s.sendWindow, c.sendWindow))
	if n > 0 {
		last := n == s.pending.Len() && s.pendingEnd && s.tail == nil
		s.writeData(s.pending.Bytes()[:n], last)
		s.pending.Consume(n)
		if last {
			s.pendingEnd = false
			s.sentEnd()
			return
		}
	}
	if s.pending.Len() > 0 {
		return
	}
	switch {
	case s.tail != nil:
		t := s.tail
		s.tail = nil
		c.writeBlock(s, t, flagEndHeaders|flagEndStream)
		s.sentEnd()
	case s.pendingEnd:
		s.pendingEnd = false
		s.writeData(nil, true)
		s.sentEnd()
	}
}

// Trailers ends the message with trailers, behind what waits.
func (s *Stream) Trailers(h *message.Head) {
	if s.gone || s.c.closed || s.ended || s.id == 0 {
		return
	}
	s.ended = true
	if s.pending.Len() == 0 && !s.queued {
		s.c.writeBlock(s, h, flagEndHeaders|flagEndStream)
		s.sentEnd()
		return
	}
	// The fields must be encoded when they are sent, so a copy waits. This
	// is the one place that allocates, for a slow reader of a trailer.
	s.tail = new(message.Head)
	s.tail.CopyFrom(h)
	s.queue()
}

// sentEnd notes that END_STREAM is on its way. A server that has answered
// does not want the rest of the request (§8.1).
func (s *Stream) sentEnd() {
	s.sendEnd = true
	if s.c.server && !s.recvEnd && !s.gone {
		s.c.sendReset(s.id, NoError)
		s.remove()
		return
	}
	s.settle()
}

// Reset abandons the stream; the receiver hears nothing more.
func (s *Stream) Reset(why message.Reason) {
	if s.gone {
		return
	}
	if s.id != 0 && !s.c.closed && !(s.recvEnd && s.sendEnd) {
		code := Cancel
		switch why {
		case message.ProtocolError:
			code = ProtocolError
		case message.Overflow, message.Refused:
			code = RefusedStream
		case message.RemoteReset, message.ConnectionClosed:
			code = InternalError
		}
		s.c.sendReset(s.id, code)
	}
	s.remove()
}

// Full says that more than the high mark waits on the stream, or on the connection.
func (s *Stream) Full() bool {
	if s.gone {
		return false
	}
	full := s.pending.Len() > s.c.o.StreamBufferLimit || s.c.out.Full()
	if full && !s.wasFull {
		s.wasFull = true
		s.c.full++
	}
	return full
}

// drained tells a sender that was told Full of room.
func (s *Stream) drained() {
	if s.wasFull && !s.gone && s.pending.Len() <= s.c.o.StreamBufferLimit/2 && !s.c.out.Full() {
		s.wasFull = false
		s.c.full--
		if s.r != nil {
			s.r.Drained()
		}
	}
}

// Pause keeps the stream's window shut: at most one window of DATA still comes.
func (s *Stream) Pause() { s.paused++ }

// Resume opens it again.
func (s *Stream) Resume() {
	if s.gone || s.paused == 0 {
		return
	}
	if s.paused--; s.paused == 0 {
		s.consumed(0)
	}
}

// consumed gives window of the stream back, half of it at a time, unless it is
// paused or nothing more is to come.
func (s *Stream) consumed(n int64) {
	s.recvUnacked += n
	if s.paused > 0 || s.recvEnd || s.gone || s.c.closed || s.recvUnacked < int64(s.c.o.InitialStreamWindow)/2 {
		return
	}
	s.c.windowUpdate(s.id, uint32(s.recvUnacked))
	s.recvWindow += s.recvUnacked
	s.recvUnacked = 0
}

// contentLength parses a content-length that is one or more equal decimal numbers.
func contentLength(h *message.Head) (n int64, ok bool) {
	n = -1
	for i := range h.Len() {
		if h.NameAt(i) != message.ContentLength {
			continue
		}
		_, v := h.At(i)
		if len(v) == 0 || len(v) > 18 {
			return 0, false
		}
		for _, c := range v {
			if c < '0' || c > '9' {
				return 0, false
			}
		}
		k, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil || n >= 0 && k != n {
			return 0, false
		}
		n = k
	}
	return n, true
}
