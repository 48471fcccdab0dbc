// Package http1 is the HTTP/1.1 codec (RFC 9112), both sides: bytes to events
// and events to bytes. It owns the framing of messages and nothing else: no
// I/O, no timer, no goroutine. ServerConn and ClientConn belong to the worker of
// their connection, which feeds them the bytes it read and is called back through
// message.Receiver; what is to be sent goes to the Output. All bytes that come
// in are hostile: a message is either understood in exactly one way or refused.
package http1

import "sallyport/sidecar/buffer"

// Output is where a codec writes; conn.Conn implements it.
type Output interface {
	// Buffer takes the bytes to send.
	Buffer() *buffer.Buffer
	// Flush says that the Buffer has something; it leaves at the end of the loop's turn.
	Flush()
	// Full says that more than the high mark is waiting.
	Full() bool
}

// Options are a codec's limits and permissions. The zero value of each field is Envoy's default.
type Options struct {
	// MaxHeaderBytes bounds a head from its first byte to its empty line, and
	// trailers likewise (max_request_headers_kb). 0: 60 KiB.
	MaxHeaderBytes int
	// MaxHeaderCount bounds the number of fields (max_headers_count). 0: 100.
	MaxHeaderCount int
	// MaxBodyPiece bounds what one Data event carries, so that Pause takes effect soon. 0: 32 KiB.
	MaxBodyPiece int
	// AllowHTTP10 accepts HTTP/1.0 requests (accept_http_10); else they get 426.
	AllowHTTP10 bool
	// DefaultHost is :authority of HTTP/1.0 requests without Host (default_host_for_http_10).
	DefaultHost string
	// ForbidAbsoluteURL refuses absolute-form targets (allow_absolute_url false).
	ForbidAbsoluteURL bool
	// AllowCustomMethods accepts any token as method (allow_custom_methods); else only registered ones.
	AllowCustomMethods bool
	// EnableTrailers delivers and sends trailers (enable_trailers); else they are checked and dropped.
	EnableTrailers bool
	// Underscores says what to do with names that contain one (headers_with_underscores_action).
	Underscores Underscores
	// Scheme is :scheme of requests; "" is "http". ServerConn.Scheme overrides it.
	Scheme string
}

// Underscores is what happens to a field whose name contains an underscore,
// which some upstreams take for a hyphen.
type Underscores uint8

const (
	AllowUnderscores Underscores = iota
	RejectUnderscores
	DropUnderscores
)

const (
	defaultHeaderBytes = 60 << 10
	defaultHeaderCount = 100
	defaultBodyPiece   = 32 << 10
)

// limits are Options with defaults filled in, shared by the two sides.
type limits struct {
	bytes, count, piece int
}

// InputLimit is how many bytes Feed may leave unconsumed while it waits for more:
// one line may be as long as a head. The reader of the connection must be able to
// keep them, or whether a head is taken would depend on how its bytes were split.
func (o *Options) InputLimit() int { return o.limits().bytes }

func (o *Options) limits() limits {
	l := limits{o.MaxHeaderBytes, o.MaxHeaderCount, o.MaxBodyPiece}
	if l.bytes <= 0 {
		l.bytes = defaultHeaderBytes
	}
	// The names of a Head have 16-bit lengths and message.MaxFields bounds their number.
	if l.count <= 0 {
		l.count = defaultHeaderCount
	}
	l.count = min(l.count, maxFieldCount)
	if l.piece <= 0 {
		l.piece = defaultBodyPiece
	}
	return l
}
