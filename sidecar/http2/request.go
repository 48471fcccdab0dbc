package http2

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"unsafe"

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
	c.limits.open(&c.o)
	if c.active >= int(c.o.MaxConcurrentStreams) {
		c.writeReset(id, RefusedStream) // §5.1.2
		c.refused(503)
		return c.limits.reset(&c.o)
	}
	s := c.newStream()
	s.id = id
	c.streams.put(s)
	s.begun, s.recvEnd, s.delivered = true, end, end
	if bad == hpack.ErrLimit {
		c.refused(431)
		c.head.Reset()
		c.head.SetStatus(431) // RFC 6585 §5: the client learns what was wrong
		c.head.AddNameString(message.ContentLength, "0")
		s.Head(&c.head, true)
		return c.limits.reset(&c.o)
	}
	if bad != nil || !s.request(&c.head, end) {
		c.refused(400)
		return c.streamError(s, ProtocolError) // §8.1.1
	}
	if s.tunnel {
		s.paused = 1 // until it is accepted
	}
	s.r = c.acceptor.NewStream(s)
	s.r.Head(&c.head, end)
	return nil
}

func (c *Conn) refused(status int) {
	if c.OnRefused != nil {
		c.OnRefused(status)
	}
}

// request checks what a request must have (§8.3.1), beyond what holds for each
// field, and brings it into the form that HTTP/1 has.
func (s *Stream) request(h *message.Head, end bool) bool {
	if h.Has(message.Status) || !isToken(h.Get(message.Method)) || !oneAuthority(h) {
		return false
	}
	connect := h.Is(message.Method, "CONNECT")
	switch {
	case connect && h.Has(message.Protocol): // RFC 8441 §4
		if !s.c.o.AllowConnect || !h.Has(message.Authority) || !validScheme(h) || !validPath(h) || !isToken(h.Get(message.Protocol)) {
			return false
		}
		s.fromExtendedConnect(h)
	case connect: // §8.5
		if h.Has(message.Path) || h.Has(message.Scheme) || !h.Has(message.Authority) {
			return false
		}
		s.tunnel = true
	case h.Has(message.Protocol) || !validScheme(h) || !validPath(h):
		return false
	}
	var ok bool
	s.length, ok = contentLength(h)
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
	return !h.Has(message.Authority) || validAuthority(h.Get(message.Authority))
}

// validAuthority checks uri-host [ ":" port ] (RFC 9110 §7.2), as the HTTP/1
// codec does: no userinfo (RFC 9113 §8.3.1), no empty host, no comma, no percent-encoding.
func validAuthority(p []byte) bool {
	i := 0
	if len(p) > 0 && p[0] == '[' {
		if i = bytes.IndexByte(p, ']'); i < 0 {
			return false
		}
		// The string is a view that ParseAddr does not keep.
		a, err := netip.ParseAddr(unsafe.String(&p[1], i-1))
		if err != nil || !a.Is6() || a.Zone() != "" {
			return false
		}
		i++
	} else {
		for i < len(p) && hostChar[p[i]] {
			i++
		}
		if i == 0 {
			return false
		}
	}
	if i == len(p) {
		return true
	}
	port := 0
	for _, c := range p[i+1:] {
		if c < '0' || c > '9' || port > 65535 {
			return false
		}
		port = port*10 + int(c-'0')
	}
	return p[i] == ':' && port <= 65535 && len(p)-i <= 6
}

// validScheme: a proxy for HTTP takes no other scheme (§8.3.1).
func validScheme(h *message.Head) bool {
	return h.Is(message.Scheme, "https") || h.Is(message.Scheme, "http")
}

// validPath is path-absolute with a query, or "*" for OPTIONS (§8.3.1): visible
// ASCII without "#", and each "%" of the path followed by two hexadecimal
// digits, as the HTTP/1 codec wants it.
func validPath(h *message.Head) bool {
	p := h.Get(message.Path)
	if len(p) == 0 || p[0] != '/' {
		return string(p) == "*" && h.Is(message.Method, "OPTIONS")
	}
	query := false
	for i, c := range p {
		switch {
		case c <= ' ' || c >= 0x7f || c == '#':
			return false
		case c == '?':
			query = true
		case c == '%' && !query:
			if i+2 >= len(p) || !hexDigit[p[i+1]] || !hexDigit[p[i+2]] {
				return false
			}
		}
	}
	return true
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

// isToken is RFC 9110 §5.6.2.
func isToken(p []byte) bool {
	for _, c := range p {
		if !tokenChar[c] {
			return false
		}
	}
	return len(p) > 0
}

var tokenChar, hostChar, hexDigit = func() (token, host, hex [256]bool) {
	for c := range 256 {
		b := byte(c)
		alphanumeric := '0' <= b && b <= '9' || 'a' <= b|0x20 && b|0x20 <= 'z'
		token[c] = alphanumeric || b != 0 && bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), b) >= 0
		host[c] = alphanumeric || b != 0 && bytes.IndexByte([]byte("-._~!$&'()*+;="), b) >= 0
		hex[c] = '0' <= b && b <= '9' || 'a' <= b|0x20 && b|0x20 <= 'f'
	}
	return token, host, hex
}()
