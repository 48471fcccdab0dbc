package http1

import "sallyport/sidecar/message"

// bodyKind is how the end of a message is found (RFC 9112 §6.3).
type bodyKind uint8

const (
	bodyNone bodyKind = iota
	bodyFixed
	bodyChunked
	bodyUntilClose
	// bodyTunnel: no message follows but, if the other side agrees, another protocol.
	bodyTunnel
)

// Chunk extensions are dropped. What a peer may spend on them: a line's worth
// each, and in total a page more than it sends as data, or they would be a way to
// keep a proxy busy without sending anything.
const (
	maxChunkLine = 256
	chunkExtPage = 4096
)

// states of a chunked body (RFC 9112 §7.1).
type chunkState uint8

const (
	chunkStart   chunkState = iota // first digit of chunk-size
	chunkSize                      // further digits
	chunkExtName                   // first byte of an extension's name
	chunkExt                       // in the extensions
	chunkSizeLF                    // line feed of the size line
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailers
)

// body decodes the content of one message.
type body struct {
	kind   bodyKind
	state  chunkState
	line   uint16 // bytes of the current size line
	left   int64  // of the content, or of the chunk
	credit int64  // what extensions may still cost
}

func (b *body) start(k bodyKind, length int64) {
	*b = body{kind: k, left: length, credit: chunkExtPage}
}

// next takes framing and at most limit bytes of content from p. data is a view
// of p. last says that the content is complete: with data, or, in a chunked
// body, where the trailers begin, of which nothing is consumed.
func (b *body) next(p []byte, limit int) (n int, data []byte, last bool, err *Error) {
	switch b.kind {
	case bodyFixed:
		n = int(min(int64(min(len(p), limit)), b.left))
		b.left -= int64(n)
		return n, p[:n], b.left == 0, nil
	case bodyUntilClose, bodyTunnel:
		n = min(len(p), limit)
		return n, p[:n], false, nil
	case bodyChunked:
		return b.chunked(p, limit)
	}
	return 0, nil, true, nil
}

// chunked reads up to the next piece of chunk data, or the trailers.
func (b *body) chunked(p []byte, limit int) (n int, data []byte, last bool, err *Error) {
	for n < len(p) {
		c := p[n]
		switch b.state {
		case chunkStart:
			d, ok := message.HexDigit(c)
			if !ok {
				return n, nil, false, errChunkSize
			}
			b.left, b.line, b.state = int64(d), 1, chunkSize
		case chunkSize:
			if d, ok := message.HexDigit(c); ok {
				// Leading zeros count too: 15 digits are 2^60.
				if b.line++; b.line > 15 {
					return n, nil, false, errChunkHuge
				}
				b.left = b.left<<4 | int64(d)
				break
			}
			switch c {
			case '\r':
				b.state = chunkSizeLF
			case ';':
				// Directly after the size: the whitespace that RFC 9112
				// §7.1.1 has for bad senders is refused, as by net/http.
				b.state = chunkExtName
			case '\n':
				return n, nil, false, errBareLF
			default:
				return n, nil, false, errChunkSize
			}
		case chunkExtName:
			if err := b.extension(); err != nil {
				return n, nil, false, err
			}
			switch {
			case message.LowerToken(c) != 0:
				b.state = chunkExt
			case c != ' ' && c != '\t':
				return n, nil, false, errChunkExt
			}
		case chunkExt:
			if err := b.extension(); err != nil {
				return n, nil, false, err
			}
			switch {
			case c == '\r':
				b.state = chunkSizeLF
			case c == '\n':
				return n, nil, false, errBareLF
			case c < ' ' && c != '\t' || c == 0x7f:
				return n, nil, false, errChunkExt
			}
		case chunkSizeLF:
			if c != '\n' {
				return n, nil, false, errBareCR
			}
			if b.left == 0 {
				b.state = chunkTrailers
				return n + 1, nil, true, nil
			}
			b.credit += b.left
			b.state = chunkData
		case chunkData:
			k := int(min(int64(min(len(p)-n, limit)), b.left))
			if b.left -= int64(k); b.left == 0 {
				b.state = chunkDataCR
			}
			return n + k, p[n : n+k], false, nil
		case chunkDataCR:
			if c != '\r' {
				return n, nil, false, errChunkEnd
			}
			b.state = chunkDataLF
		case chunkDataLF:
			if c != '\n' {
				return n, nil, false, errChunkEnd
			}
			b.state = chunkStart
		case chunkTrailers:
			return n, nil, true, nil
		}
		n++
	}
	return n, nil, b.state == chunkTrailers, nil
}

// extension counts a byte of chunk extensions.
func (b *body) extension() *Error {
	b.line++
	b.credit--
	if b.line > maxChunkLine || b.credit < 0 {
		return errChunkExtSize
	}
	return nil
}
