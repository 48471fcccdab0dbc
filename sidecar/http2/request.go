package http2

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math/rand/v2"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/hpack"
	"sallyport/sidecar/message"
)

// onRequest opens a stream on a server. bad is what HPACK found wrong with the fields.
func (c *Conn) onRequest(id uint32, end bool, bad error) *ConnError {
	c.seen = id
	if c.goneAway {
		return nil // above what GOAWAY named; the client knows (§6.8)
	}
	c.taken = id
	c.limits.opening()
	if c.active >= int(c.o.MaxConcurrentStreams) || c.refusing() {
		return c.refuseStream(id)
	}
	s := c.newStream()
	s.id = id
	c.streams.put(s)
	s.begun, s.recvEnd, s.delivered = true, end, end
	if bad == hpack.ErrLimit {
		c.owner.Refused(failure.StreamHeadTooLarge, 431)
		c.head.Reset()
		c.head.SetStatus(431) // RFC 6585 §5: the client learns what was wrong
		c.head.AddNameString(message.ContentLength, "0")
		s.Head(&c.head, true)
		return nil
	}
	if bad != nil || !s.request(&c.head, end) {
		c.owner.Refused(failure.MalformedStream, 0)
		return c.streamError(s, ProtocolError) // §8.1.1
	}
	if s.tunnel {
		s.paused = 1 // until it is accepted
	}
	s.r = c.owner.NewStream(s, message.HTTP2)
	s.r.Head(&c.head, end)
	return nil
}

// refuseStream is §5.1.2. A peer that knows the limit and goes above it is counted; one that cannot know it yet, or
// that meets another limit, is not, beyond what it must read.
func (c *Conn) refuseStream(id uint32) *ConnError {
	c.writeReset(id, RefusedStream)
	c.owner.Refused(failure.TooManyStreams, 0)
	if err := c.answered(); err != nil {
		return err
	}
	if c.acked && !c.o.Shared {
		return c.takenBack()
	}
	return c.idleFrame()
}

// request checks what a request must have (§8.3.1), beyond what holds for each
// field, and brings it into the form that HTTP/1 has.
func (s *Stream) request(h *message.Head, end bool) bool {
	if h.Has(message.Status) || !message.IsToken(h.Get(message.Method)) || !oneAuthority(h) {
		return false
	}
	connect := h.Is(message.Method, "CONNECT")
	switch {
	case connect && h.Has(message.Protocol): // RFC 8441 §4
		if !s.c.o.AllowConnect || !h.Has(message.Authority) || !validScheme(h) || !validPath(h) || !message.IsProtocol(h.Get(message.Protocol)) {
			return false
		}
		s.fromExtendedConnect(h)
	case connect: // §8.5
		if h.Has(message.Path) || h.Has(message.Scheme) || !message.ValidAuthority(h.Get(message.Authority), true) {
			return false
		}
		s.tunnel = true
	case h.Has(message.Protocol) || !validScheme(h) || !validPath(h):
		return false
	}
	var ok bool
	s.length, ok = h.ContentLength()
	if !ok || end && s.length > 0 {
		return false
	}
	if s.tunnel {
		s.length = -1
		h.RemoveName(message.ContentLength)
	}
	joinCookies(h, &s.c.scratch)
	return true
}

// fromExtendedConnect makes an upgrade request of an extended CONNECT, as Envoy does.
func (s *Stream) fromExtendedConnect(h *message.Head) {
	s.tunnel, s.extended = true, true
	h.SetNameString(message.Method, "GET")
	h.AddName(message.Upgrade, h.Get(message.Protocol))
	h.AddNameString(message.Connection, "upgrade")
	h.RemoveName(message.Protocol)
	if h.Is(message.Upgrade, "websocket") && !h.Has(message.SecWebSocketKey) {
		// HTTP/2 has no use for the key (RFC 8441 §5.1), but a server of
		// HTTP/1 answers no handshake without one (RFC 6455 §4.2.1). It is
		// a nonce against caches, and no secret.
		var nonce [16]byte
		binary.LittleEndian.PutUint64(nonce[:], rand.Uint64())
		binary.LittleEndian.PutUint64(nonce[8:], rand.Uint64())
		h.AddName(message.SecWebSocketKey, base64.StdEncoding.AppendEncode(s.c.scratch[:0], nonce[:]))
		s.madeKey = true
	}
}

// oneAuthority makes :authority and Host one (§8.3.1): a request that has them
// different means one thing to us and may mean another to who comes next.
func oneAuthority(h *message.Head) bool {
	if host := h.Get(message.Host); host != nil {
		if h.Count("host") > 1 {
			return false
		}
		if !h.Has(message.Authority) {
			h.SetName(message.Authority, host)
		} else if !bytes.EqualFold(host, h.Get(message.Authority)) {
			return false
		}
		h.RemoveName(message.Host)
	}
	return !h.Has(message.Authority) || message.ValidAuthority(h.Get(message.Authority), false)
}

// validScheme: a proxy for HTTP takes no other scheme (§8.3.1).
func validScheme(h *message.Head) bool {
	return h.Is(message.Scheme, "https") || h.Is(message.Scheme, "http")
}

// validPath is :path (§8.3.1).
func validPath(h *message.Head) bool {
	return message.ValidPath(h.Get(message.Path), h.Get(message.Method))
}

// joinCookies puts crumbs together (§8.2.3), so that what comes next gets one field.
func joinCookies(h *message.Head, scratch *[]byte) {
	if !h.Has(message.Cookie) {
		return
	}
	v, n := (*scratch)[:0], 0
	for i := range h.Len() {
		if h.NameAt(i) == message.Cookie {
			if n++; n > 1 {
				v = append(v, "; "...)
			}
			_, crumb := h.At(i)
			v = append(v, crumb...)
		}
	}
	if n > 1 {
		h.SetName(message.Cookie, v)
	}
	if cap(v) <= scratchKept {
		*scratch = v[:0]
	}
}
