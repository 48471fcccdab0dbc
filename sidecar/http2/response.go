package http2

import "sallyport/sidecar/message"

// maxInformational bounds the 1xx responses to one request.
const maxInformational = 16

// onResponse takes a head on a client.
func (c *Conn) onResponse(s *Stream, end bool) *ConnError {
	h := &c.head
	status := h.StatusCode()
	if status < 100 || status > 999 || h.Has(message.Method) || h.Has(message.Path) || h.Has(message.Authority) || h.Has(message.Scheme) || h.Has(message.Protocol) {
		return c.streamError(s, ProtocolError) // §8.3.2
	}
	length, ok := h.ContentLength()
	if !ok {
		return c.streamError(s, ProtocolError)
	}
	s.begun = true
	if status < 200 {
		// §8.1: an informational head ends no stream; §8.6: there is no
		// 101. RFC 9110 §8.6: and no content-length.
		if end || status == 101 || length > 0 {
			return c.streamError(s, ProtocolError)
		}
		if s.informational++; s.informational > maxInformational {
			return c.streamError(s, EnhanceYourCalm)
		}
		h.RemoveName(message.ContentLength)
		s.r.Head(h, false)
		return nil
	}
	s.final = true
	switch {
	case s.tunnel && status/100 == 2:
		h.RemoveName(message.ContentLength) // RFC 9110 §9.3.6
		if s.extended {
			s.toSwitchingProtocols(h)
		}
		length = -1
	case s.isHead || status == 304:
		length = 0 // the field tells of a content that does not come (RFC 9110 §8.6)
		s.tunnel = false
	case status == 204:
		if length > 0 {
			return c.streamError(s, ProtocolError)
		}
		h.RemoveName(message.ContentLength)
		length, s.tunnel = 0, false
	default:
		s.tunnel = false // refused: what comes is a response
	}
	if end && length > 0 {
		return c.streamError(s, ProtocolError) // §8.1.1
	}
	s.length = length
	s.recvEnd, s.delivered = end, end
	s.r.Head(h, end)
	s.settle()
	return nil
}

// toSwitchingProtocols makes of the answer to an extended CONNECT what HTTP/1
// has for it, as Envoy does.
func (s *Stream) toSwitchingProtocols(h *message.Head) {
	h.SetStatus(101)
	h.SetNameString(message.Upgrade, s.protocol)
	h.SetNameString(message.Connection, "upgrade")
}
