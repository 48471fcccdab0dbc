package http2

import (
	"bytes"

	"sallyport/sidecar/hpack"
	"sallyport/sidecar/message"
)

func (c *Conn) onHeaders(h *header, p []byte) *ConnError {
	pad := 0
	if h.flags&flagPadded != 0 {
		if len(p) == 0 {
			return &ConnError{FrameSizeError, "HEADERS without its padding length"}
		}
		pad = int(p[0])
		p = p[1:]
	}
	selfDependent := false
	if h.flags&flagPriority != 0 {
		if len(p) < 5 {
			return &ConnError{FrameSizeError, "HEADERS without its priority"}
		}
		selfDependent = be32(p)&^(1<<31) == h.stream
		p = p[5:]
	}
	if pad > len(p) {
		return &ConnError{ProtocolError, "HEADERS padding is longer than the frame"}
	}
	p = p[:len(p)-pad]
	if selfDependent {
		return &ConnError{ProtocolError, "a stream depends on itself"}
	}
	if c.server && c.streams[h.stream] == nil {
		if h.stream%2 == 0 {
			return &ConnError{ProtocolError, "a client's stream has an even identifier"} // §5.1.1
		}
		if h.stream <= c.last && !c.resetRecently(h.stream) {
			if c.wasClosed.has(h.stream) {
				return &ConnError{StreamClosed, "HEADERS on a closed stream"} // §5.1
			}
			return &ConnError{ProtocolError, "a stream's identifier is lower than the one before"} // §5.1.1
		}
	}
	if !c.server && c.idle(h.stream) {
		return &ConnError{ProtocolError, "HEADERS on a stream that was not opened"}
	}
	c.blockEnd = h.flags&flagEndStream != 0
	if h.flags&flagEndHeaders != 0 {
		return c.onBlock(h.stream, p)
	}
	c.blockOn, c.blockFrames = h.stream, 0
	c.block = append(c.block[:0], p...)
	return nil
}

// maxContinuation bounds the frames of one header block: with 16 KiB each this is
// far more than the limit on headers allows, unless they are made small to cost CPU (CVE-2024-27919).
const maxContinuation = 64

func (c *Conn) onContinuation(h *header, p []byte) *ConnError {
	if c.blockOn == 0 {
		return &ConnError{ProtocolError, "CONTINUATION without HEADERS"}
	}
	c.blockFrames++
	// Encoded fields are smaller than decoded ones, or hardly larger.
	if c.blockFrames > maxContinuation || len(c.block)+len(p) > 2*c.o.MaxHeaderBytes {
		return &ConnError{EnhanceYourCalm, "a header block is too large"}
	}
	c.block = append(c.block, p...)
	if h.flags&flagEndHeaders == 0 {
		return nil
	}
	c.blockOn = 0
	block := c.block
	if cap(c.block) > 64<<10 {
		c.block = nil
	}
	return c.onBlock(h.stream, block)
}

// onBlock takes a complete header block. It is decoded in any case, since it
// changes the table that both sides share (§4.3).
func (c *Conn) onBlock(id uint32, block []byte) *ConnError {
	c.head.Reset()
	err := c.dec.Decode(block, &c.head)
	tooLarge := err == hpack.ErrLimit
	if err != nil && !tooLarge {
		return &ConnError{CompressionError, err.Error()}
	}
	s := c.streams[id]
	if s == nil {
		if !c.server || id <= c.last {
			return nil // reset by us before it came
		}
		return c.newRequest(id, tooLarge)
	}
	if s.recvEnd {
		return c.streamError(s, StreamClosed)
	}
	c.progress()
	if tooLarge {
		return c.streamError(s, ProtocolError)
	}
	if s.headIn {
		return c.onTrailers(s)
	}
	return c.onResponse(s)
}

// newRequest begins a stream on a server.
func (c *Conn) newRequest(id uint32, tooLarge bool) *ConnError {
	if c.goneAway {
		return nil // above what GOAWAY named
	}
	c.last = id
	if uint32(c.active) >= c.o.MaxConcurrentStreams {
		c.opened++
		c.sendReset(id, RefusedStream) // §5.1.2
		return c.countReset()
	}
	s := c.newStream()
	s.id = id
	c.streams[id] = s
	c.active++
	c.progress()
	if tooLarge {
		// RFC 6585 §5: the client learns what was wrong.
		s.recvEnd = c.blockEnd
		var h message.Head
		h.SetStatus(431)
		h.AddNameString(message.ContentLength, "0")
		s.Head(&h, true)
		return c.countReset()
	}
	if !validFields(&c.head, true) || !c.request(s) {
		return c.streamError(s, ProtocolError)
	}
	s.headIn = true
	s.recvEnd = c.blockEnd
	s.isHead = c.head.Is(message.Method, "HEAD")
	s.r = c.acceptor.NewStream(s)
	s.r.Head(&c.head, c.blockEnd)
	s.settle()
	return nil
}

// request checks what a request must have (§8.3.1) and brings it into the form that HTTP/1 has.
func (c *Conn) request(s *Stream) bool {
	h := &c.head
	if h.Has(message.Status) || !h.Has(message.Method) || !validMethod(h.Get(message.Method)) {
		return false
	}
	if host := h.Get(message.Host); host != nil {
		switch {
		case h.Count("host") > 1:
			return false
		case !h.Has(message.Authority):
			// Set takes a copy of the value within the arena.
			h.SetName(message.Authority, append(c.scratch[:0], host...))
		case !bytes.EqualFold(host, h.Get(message.Authority)):
			return false
		}
		h.RemoveName(message.Host)
	}
	if a := h.Get(message.Authority); h.Has(message.Authority) && (len(a) == 0 || bytes.IndexByte(a, '@') >= 0) {
		return false
	}
	switch {
	case h.Is(message.Method, "CONNECT") && h.Has(message.Protocol):
		// Extended CONNECT (RFC 8441 §4) is an upgrade.
		if !c.o.AllowConnect || !h.Has(message.Path) || !h.Has(message.Scheme) || !h.Has(message.Authority) {
			return false
		}
		s.connect = true
		h.SetNameString(message.Method, "GET")
		h.AddName(message.Upgrade, append(c.scratch[:0], h.Get(message.Protocol)...))
		h.AddNameString(message.Connection, "upgrade")
		h.RemoveName(message.Protocol)
	case h.Is(message.Method, "CONNECT"):
		// §8.5
		if h.Has(message.Path) || h.Has(message.Scheme) || !h.Has(message.Authority) {
			return false
		}
	default:
		if h.Has(message.Protocol) || !h.Has(message.Scheme) || !validPath(h) {
			return false
		}
	}
	var ok bool
	if s.length, ok = contentLength(h); !ok || c.blockEnd && s.length > 0 {
		return false
	}
	joinCookies(h, &c.scratch)
	return true
}

func validPath(h *message.Head) bool {
	p := h.Get(message.Path)
	if len(p) == 0 {
		return false
	}
	for _, b := range p {
		if b <= 0x20 || b == 0x7f {
			return false
		}
	}
	return p[0] == '/' || string(p) == "*" && h.Is(message.Method, "OPTIONS")
}

func validMethod(m []byte) bool {
	for _, b := range m {
		if !tokenChar[b] {
			return false
		}
	}
	return len(m) > 0
}

// joinCookies puts crumbs together (§8.2.3), so that HTTP/1 behind us gets one field.
func joinCookies(h *message.Head, scratch *[]byte) {
	if h.Count("cookie") < 2 {
		return
	}
	v := (*scratch)[:0]
	for i := range h.Len() {
		if h.NameAt(i) == message.Cookie {
			if len(v) > 0 {
				v = append(v, "; "...)
			}
			_, crumb := h.At(i)
			v = append(v, crumb...)
		}
	}
	h.SetName(message.Cookie, v)
	*scratch = v[:0]
}

// maxInformational bounds 1xx responses to one request.
const maxInformational = 16

// onResponse takes a head on a client.
func (c *Conn) onResponse(s *Stream) *ConnError {
	h := &c.head
	status := h.StatusCode()
	if !validFields(h, true) || status < 100 || h.Has(message.Method) || h.Has(message.Path) || h.Has(message.Authority) || h.Has(message.Scheme) || h.Has(message.Protocol) {
		return c.streamError(s, ProtocolError)
	}
	if status < 200 {
		// §8.1: an informational head ends no stream; 101 is not used (§8.6).
		if c.blockEnd || status == 101 {
			return c.streamError(s, ProtocolError)
		}
		if s.received++; s.received > maxInformational {
			return c.streamError(s, EnhanceYourCalm)
		}
		s.r.Head(h, false)
		return nil
	}
	s.received = 0
	s.headIn = true
	var ok bool
	if s.length, ok = contentLength(h); !ok {
		return c.streamError(s, ProtocolError)
	}
	if s.isHead || status == 304 || status == 204 {
		s.length = -1
		if status != 204 && c.blockEnd {
			s.length = 0 // the field speaks of a content that does not come
		}
	}
	if c.blockEnd && s.length > 0 {
		return c.streamError(s, ProtocolError)
	}
	if s.connect && status/100 == 2 {
		h.SetStatus(101)
		h.AddNameString(message.Upgrade, "websocket")
		h.AddNameString(message.Connection, "upgrade")
	}
	s.recvEnd = c.blockEnd
	s.r.Head(h, c.blockEnd)
	s.settle()
	return nil
}

func (c *Conn) onTrailers(s *Stream) *ConnError {
	if !c.blockEnd || !validFields(&c.head, false) || s.length >= 0 && s.received != s.length {
		return c.streamError(s, ProtocolError) // §8.1
	}
	s.recvEnd = true
	s.r.Trailers(&c.head)
	s.settle()
	return nil
}

// tokenChar is RFC 9110 §5.6.2; nameChar the same without upper case (RFC 9113 §8.2.1).
var tokenChar, nameChar = func() (t, n [256]bool) {
	for c := range 256 {
		b := byte(c)
		letter := b|0x20 >= 'a' && b|0x20 <= 'z'
		t[c] = letter || b >= '0' && b <= '9' || bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), b) >= 0
		n[c] = t[c] && (b < 'A' || b > 'Z')
	}
	return t, n
}()

// validFields checks what holds for every head and trailer (§8.2, §8.3):
// pseudo-header fields first, known and once; names in lower case; no
// connection-specific field; values without NUL, CR, LF and outer blanks.
func validFields(h *message.Head, pseudoAllowed bool) bool {
	regular := false
	var seen [message.Status + 1]bool
	for i := range h.Len() {
		n := h.NameAt(i)
		name, value := h.At(i)
		if n != message.Unknown && n <= message.Status || len(name) > 0 && name[0] == ':' {
			if regular || !pseudoAllowed || n == message.Unknown || n > message.Status || seen[n] {
				return false
			}
			seen[n] = true
		} else {
			regular = true
			if n == message.Unknown {
				if len(name) == 0 {
					return false
				}
				for j := 0; j < len(name); j++ {
					if !nameChar[name[j]] {
						return false
					}
				}
			}
		}
		switch n {
		case message.Connection, message.KeepAlive, message.ProxyConnection, message.TransferEncoding, message.Upgrade, message.HTTP2Settings:
			return false
		case message.TE:
			if string(value) != "trailers" {
				return false
			}
		}
		for _, b := range value {
			if b < 0x20 && b != '\t' || b == 0x7f {
				return false
			}
		}
		if len(value) > 0 && (blank(value[0]) || blank(value[len(value)-1])) {
			return false
		}
	}
	return true
}

func blank(b byte) bool { return b == ' ' || b == '\t' }
