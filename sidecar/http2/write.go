package http2

import "sallyport/sidecar/message"

const (
	// maxData is the content of one DATA frame: what every peer takes
	// (§4.2), and what a stream may send in its turn.
	maxData = minMaxFrame
	// scratchKept is the memory for encoded heads that is kept.
	scratchKept = 16 << 10
)

func (c *Conn) write(b []byte) {
	c.written += uint64(len(b))
	c.out.Buffer().Append(b)
	c.out.Flush()
}

func (c *Conn) writeWindowUpdate(stream, n uint32) {
	var b [frameHeaderLen + 4]byte
	putHeader(b[:], 4, frameWindowUpdate, 0, stream)
	put32(b[frameHeaderLen:], n)
	c.write(b[:])
}

func (c *Conn) writeReset(id uint32, code ErrCode) {
	var b [frameHeaderLen + 4]byte
	putHeader(b[:], 4, frameReset, 0, id)
	put32(b[frameHeaderLen:], uint32(code))
	c.write(b[:])
	c.reset.add(id)
}

func (c *Conn) writeGoAway(last uint32, code ErrCode) {
	if !c.server {
		last = 0 // a client names the last stream that the server opened: none
	}
	var b [frameHeaderLen + 8]byte
	putHeader(b[:], 8, frameGoAway, 0, 0)
	put32(b[frameHeaderLen:], last)
	put32(b[frameHeaderLen+4:], uint32(code))
	c.write(b[:])
}

// writeHead writes a request's or response's head.
func (c *Conn) writeHead(s *Stream, h *message.Head, flags uint8) {
	b := c.beginBlock()
	if c.server {
		b = c.status(b, s, h)
	} else {
		b = c.requestLine(b, s, h)
	}
	c.writeBlock(s.id, c.fields(b, s, h), flags)
}

// writeTrailers ends a message with trailers.
func (c *Conn) writeTrailers(s *Stream, h *message.Head) {
	c.writeBlock(s.id, c.fields(c.beginBlock(), s, h), flagEndStream)
}

// beginBlock begins a header block behind room for its frame's header.
func (c *Conn) beginBlock() []byte {
	var hdr [frameHeaderLen]byte
	return c.enc.Begin(append(c.scratch[:0], hdr[:]...))
}

// writeBlock writes a block as HEADERS and, where it is larger than a frame, CONTINUATION.
func (c *Conn) writeBlock(id uint32, b []byte, flags uint8) {
	if n := cap(b); n <= scratchKept {
		if c.scratch = b[:0]; n > keptBytes {
			c.bulk()
		}
	}
	c.limits.progress()
	kind := frameHeaders
	for {
		n := min(len(b)-frameHeaderLen, c.peerFrame)
		rest := b[frameHeaderLen+n:]
		if len(rest) == 0 {
			flags |= flagEndHeaders
		}
		putHeader(b, n, kind, flags, id)
		c.write(b[:frameHeaderLen+n])
		if len(rest) == 0 {
			return
		}
		kind, flags = frameContinuation, 0
		b = b[n:] // the next header goes over the end of what was written
	}
}

func (c *Conn) field(b []byte, n message.Name, v []byte) []byte {
	return c.enc.Field(b, n, n.String(), v, false)
}

// status is the pseudo-header field of a response.
func (c *Conn) status(b []byte, s *Stream, h *message.Head) []byte {
	v := h.Get(message.Status)
	if s.extended && string(v) == "101" {
		v = ok
	}
	return c.field(b, message.Status, v)
}

var (
	ok         = []byte("200")
	connect    = []byte("CONNECT")
	httpScheme = []byte("http")
)

// requestLine is the pseudo-header fields of a request, which come first (§8.3).
func (c *Conn) requestLine(b []byte, s *Stream, h *message.Head) []byte {
	method, authority := h.Get(message.Method), h.Get(message.Authority)
	if s.extended {
		method = connect
	}
	if authority == nil {
		authority = h.Get(message.Host)
	}
	b = c.field(b, message.Method, method)
	if !s.tunnel || s.extended { // §8.5: CONNECT has neither
		scheme := h.Get(message.Scheme)
		if scheme == nil {
			scheme = httpScheme
		}
		b = c.field(b, message.Scheme, scheme)
		b = c.field(b, message.Path, h.Get(message.Path))
	}
	if len(authority) > 0 {
		b = c.field(b, message.Authority, authority)
	}
	if s.extended {
		b = c.field(b, message.Protocol, h.OnlyElement(message.Upgrade))
	}
	return b
}

// fate is what becomes of a field that is sent.
type fate uint8

const (
	send         fate = iota
	drop              // pseudo-header and connection-specific fields (§8.2.2)
	onlyTrailers      // te
	notInTunnel       // content-length (RFC 9110 §9.3.6)
)

var fates = func() (t [256]fate) {
	for n := message.Method; n <= message.Status; n++ {
		t[n] = drop
	}
	for _, n := range []message.Name{message.Connection, message.KeepAlive, message.ProxyConnection, message.TransferEncoding,
		message.Upgrade, message.HTTP2Settings, message.Host} {
		t[n] = drop
	}
	t[message.TE] = onlyTrailers
	t[message.ContentLength] = notInTunnel
	return t
}()

// fields is everything but pseudo-header fields.
func (c *Conn) fields(b []byte, s *Stream, h *message.Head) []byte {
	for i := range h.Len() {
		n := h.NameAt(i)
		f := fates[n]
		if f == drop {
			continue
		}
		name, value := h.At(i)
		if f == onlyTrailers && string(value) != "trailers" || f == notInTunnel && s.tunnel ||
			s.madeKey && name == "sec-websocket-accept" { // the answer to a key that the client does not know
			continue
		}
		b = c.enc.Field(b, n, name, value, h.Sensitive(i))
	}
	return b
}

// fits says on a client whether the server will take the head: SETTINGS_MAX_HEADER_LIST_SIZE (§10.5.1) says how large
// it may be, and nothing but configuration how many fields it may have.
// A server resets what is too large, and for many of those it ends the connection with the requests of all others.
func (s *Stream) fits(h *message.Head) bool {
	c := s.c
	if h.SizeAtMost()+32*h.Len() <= int(c.peerHeaders) && h.Len() <= c.o.maxRequestCount {
		return true
	}
	size, n := h.Size()+32*h.Len(), h.Len()
	// What is not sent is not counted.
	for i := range h.Len() {
		if name, value := h.At(i); fates[h.NameAt(i)] == drop {
			size -= len(name) + len(value) + 32
			n--
		}
	}
	add := func(v []byte, name message.Name) {
		if v != nil {
			size += len(name.String()) + len(v) + 32
			n++
		}
	}
	for _, name := range []message.Name{message.Method, message.Scheme, message.Path, message.Authority} {
		add(h.Get(name), name)
	}
	if s.extended {
		add(h.Get(message.Upgrade), message.Protocol)
	}
	return size <= int(c.peerHeaders) && n <= c.o.maxRequestCount
}

// allowance is how much content of n bytes may be sent as one frame.
func (s *Stream) allowance(n int) int {
	return int(max(0, min(int64(n), maxData, s.sendWindow, s.c.sendWindow)))
}

func (s *Stream) writeData(p []byte, end bool) {
	c := s.c
	flags := uint8(0)
	if end {
		flags = flagEndStream
	}
	b := c.out.Buffer()
	var hdr [frameHeaderLen]byte
	putHeader(hdr[:], len(p), frameData, flags, s.id)
	b.SetTail(append(append(b.Tail(frameHeaderLen+len(p)), hdr[:]...), p...))
	c.out.Flush()
	s.sendWindow -= int64(len(p))
	c.sendWindow -= int64(len(p))
	c.written += uint64(frameHeaderLen + len(p))
	c.limits.sentData(&c.o)
}

// queue has a stream wait for its turn, if it has something that it may send.
func (s *Stream) queue() {
	c := s.c
	switch {
	case s.turnIn != nil || s.gone:
	case s.firstHead != nil:
		if s.mayGo() {
			c.ready.push(s)
		}
	case s.out.Len() > 0:
		switch {
		case s.sendWindow <= 0: // until a WINDOW_UPDATE or SETTINGS
		case c.sendWindow <= 0:
			if c.starved.first == nil {
				c.starvedAt = max(1, c.out.NowMono())
			}
			c.starved.push(s)
		default:
			c.ready.push(s)
		}
	case s.outEnd:
		c.ready.push(s)
	}
}

// pump sends what waits, a frame of each stream in turn, as far as windows and
// the Output allow.
func (c *Conn) pump() {
	c.depth++
	for !c.closed && c.ready.first != nil && !c.out.Full() {
		s := c.ready.first
		c.ready.remove(s)
		s.sendNext()
		if !s.gone {
			s.queue()
			s.drained()
		}
	}
	c.relieve()
	c.depth--
}

// sendNext sends one frame of what waits.
func (s *Stream) sendNext() {
	c := s.c
	s.moved = c.out.NowMono()
	if h := s.firstHead; h != nil {
		s.firstHead = nil
		c.waiting -= headCost(h)
		s.sendHead(h, s.headEnd)
		c.spare.put(h)
		return
	}
	if s.out.Len() > 0 {
		n := s.allowance(s.out.Len())
		if n == 0 {
			return
		}
		last := n == s.out.Len() && s.outEnd && s.tail == nil
		s.writeData(s.out.Bytes()[:n], last)
		s.out.Consume(n)
		c.waiting -= n
		if last {
			s.outEnd = false
			s.sentEnd()
		}
		return
	}
	s.outEnd = false
	if t := s.tail; t != nil {
		c.writeTrailers(s, t)
		c.unpark(&s.tail)
	} else {
		s.writeData(nil, true)
	}
	s.sentEnd()
}

// spareHeads keeps heads for those that have to wait.
type spareHeads struct{ heads []*message.Head }

// maxSpare bounds what a connection keeps after a time of slowness.
const maxSpare = 4

func (p *spareHeads) get() *message.Head {
	n := len(p.heads)
	if n == 0 {
		return new(message.Head)
	}
	h := p.heads[n-1]
	p.heads = p.heads[:n-1]
	return h
}

func (p *spareHeads) put(h *message.Head) {
	if len(p.heads) < maxSpare {
		h.Reset()
		p.heads = append(p.heads, h)
	}
}
