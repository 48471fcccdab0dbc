package http2

import (
	"sallyport/sidecar/hpack"
	"sallyport/sidecar/message"
)

// headerBlock is a header block that is not complete.
type headerBlock struct {
	stream uint32 // 0: none
	end    bool   // END_STREAM
	frames int    // CONTINUATION
	b      []byte
}

const (
	// blockFrame is the least that the CONTINUATION frames of one block must
	// hold on average: encoders fill frames, and many small ones only cost (CVE-2024-27919).
	blockFrame = 4 << 10
	// blockKept is the memory for blocks that is kept for the next one.
	blockKept = 32 << 10
)

// onHeaders is HEADERS, §6.2.
func (c *Conn) onHeaders(h *header, p []byte) *ConnError {
	pad := 0
	if h.has(flagPadded) {
		if len(p) == 0 {
			return connError(FrameSizeError, "HEADERS without its padding length")
		}
		pad, p = int(p[0]), p[1:]
	}
	if h.has(flagPriority) {
		if len(p) < 5 {
			return connError(FrameSizeError, "HEADERS without its priority")
		}
		if be32(p)&^(1<<31) == h.stream {
			return connError(ProtocolError, "a stream that depends on itself")
		}
		p = p[5:]
	}
	if pad > len(p) {
		return connError(ProtocolError, "HEADERS whose padding is longer than the frame")
	}
	p = p[:len(p)-pad]
	if err := c.mayHaveHead(h.stream); err != nil {
		return err
	}
	if err := c.payload(uint32(len(p)), h.has(flagEndStream)); err != nil {
		return err
	}
	if h.has(flagEndHeaders) {
		return c.onBlock(h.stream, p, h.has(flagEndStream))
	}
	c.block.stream, c.block.end, c.block.frames = h.stream, h.has(flagEndStream), 0
	c.block.b = append(c.block.b[:0], p...)
	return nil
}

// mayHaveHead checks the stream that a head comes on (§5.1, §5.1.1).
func (c *Conn) mayHaveHead(id uint32) *ConnError {
	switch {
	case c.streams.get(id) != nil:
	case id%2 == 0, !c.server && c.idle(id):
		return connError(ProtocolError, "HEADERS on a stream that the peer may not open")
	case c.idle(id):
	case c.ended.has(id):
		return connError(StreamClosed, "HEADERS on a stream after its end")
	case c.server && id <= c.taken && !c.reset.has(id) && !c.reset.older(id):
		return connError(ProtocolError, "a stream's identifier is lower than that of one before")
	}
	return nil // open, new, or reset by us when this was on its way
}

// onContinuation is CONTINUATION, §6.10.
func (c *Conn) onContinuation(h *header, p []byte) *ConnError {
	b := &c.block
	if b.stream == 0 {
		return connError(ProtocolError, "CONTINUATION without HEADERS")
	}
	if err := c.payload(uint32(len(p)), false); err != nil {
		return err
	}
	// A block that decodes to more than the limit is answered, so it may
	// be larger, but not without end.
	b.frames++
	most := 2 * c.o.MaxHeaderBytes
	if len(b.b)+len(p) > most || b.frames > 8+most/blockFrame {
		return connError(EnhanceYourCalm, "a header block is too large, or in too many frames")
	}
	b.b = append(b.b, p...)
	if !h.has(flagEndHeaders) {
		return nil
	}
	id := b.stream
	b.stream = 0
	err := c.onBlock(id, b.b, b.end)
	switch n := cap(b.b); {
	case n > blockKept:
		b.b = nil
	case n > keptBytes:
		c.bulk()
	}
	return err
}

// onBlock takes a complete header block. It is decoded in any case, since it
// changes the table that both sides share (§4.3).
func (c *Conn) onBlock(id uint32, p []byte, end bool) *ConnError {
	c.Turn.Spend(message.HeadCost)
	c.headSince = 0
	if len(p) > keptBytes {
		c.bulk()
	}
	err := c.takeBlock(id, p, end)
	c.head.Reset() // after its use, so that an idle connection keeps no large one
	return err
}

func (c *Conn) takeBlock(id uint32, p []byte, end bool) *ConnError {
	err := c.dec.Decode(p, &c.head)
	if err != nil && err != hpack.ErrLimit && err != hpack.ErrField {
		return connError(CompressionError, err.Error())
	}
	s := c.streams.get(id)
	switch {
	case s == nil && c.server && c.idle(id):
		return c.onRequest(id, end, err)
	case s == nil:
		return nil // reset by us when it was on its way
	case s.orphan:
		s.recvEnd = end
		s.cancelOrphan()
		return nil
	case s.recvEnd:
		return c.streamError(s, StreamClosed) // §5.1
	case err != nil:
		return c.streamError(s, ProtocolError)
	case s.begun && (c.server || s.final):
		return c.onTrailers(s, end)
	}
	return c.onResponse(s, end)
}

// onTrailers ends a message with a second header block (§8.1).
func (c *Conn) onTrailers(s *Stream, end bool) *ConnError {
	h := &c.head
	wanted := !s.discard && !s.deaf() // or it was not counted
	if !end || h.Len() > 0 && isPseudo(h.NameAt(0)) || wanted && s.length >= 0 && s.received != s.length {
		return c.streamError(s, ProtocolError)
	}
	s.recvEnd = true
	switch {
	case !wanted:
		if s.lingering {
			c.ping()
		}
		s.settle()
	case s.holds():
		s.inEnd = true
		s.inTail = c.spare.get()
		s.inTail.CopyFrom(h)
	default:
		s.delivered = true
		s.r.Trailers(h)
		s.settle()
	}
	return nil
}

// isPseudo says whether n is a pseudo-header field. They are first in a head, the codec sees to that.
func isPseudo(n message.Name) bool { return n != message.Unknown && n <= message.Status }
