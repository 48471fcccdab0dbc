// Package http2 is the HTTP/2 codec (RFC 9113), both sides: bytes to events and
// events to bytes. It owns framing, HPACK state, stream states and flow
// control, and nothing else: no I/O, no timer, no goroutine. A Conn belongs to
// the worker of its connection, which feeds it what was read; what is to be
// sent goes to an Output. Bytes that come in are hostile: every queue that a
// peer can fill has a bound, and so has the work that a frame can cause.
//
// The files: conn.go is the connection, frame.go the rules of frames,
// control.go, data.go and headers.go what each frame does, request.go and
// response.go what a head must be, stream.go the way to send, write.go what
// goes out and in which order, pressure.go who is held back when it does not, limits.go the defenses by count, sweep.go
// those by time.
package http2

import (
	"math"
	"time"

	"sallyport/sidecar/buffer"
	"sallyport/sidecar/message"
)

// Output is where a codec writes; conn.Conn implements it.
type Output interface {
	// Buffer takes the bytes to send.
	Buffer() *buffer.Buffer
	// Flush says that the Buffer has something; it leaves at the end of the loop's turn.
	Flush()
	// Full says that more than the high mark waits for the socket. Where it
	// answered true, the owner calls Conn.Writable once there is room.
	Full() bool
	// NowMono is a clock in nanoseconds that never goes back. It costs no system call.
	NowMono() int64
}

// Options are a codec's limits. The zero value of each field is its default. In
// brackets: the field of Envoy's Http2ProtocolOptions that it is.
type Options struct {
	// MaxConcurrentStreams: on a server how many the peer may open, 100; on a client how
	// many are opened at most, 1024, or fewer as the peer says (max_concurrent_streams).
	MaxConcurrentStreams uint32
	// InitialStreamWindow and InitialConnWindow bound what a peer may send
	// before it is read on (initial_stream_window_size,
	// initial_connection_window_size): BufferLimit within 64 and 256 KiB, and 1 MiB. Envoy's advice for
	// an edge is 64 KiB and 1 MiB, its default 16 MiB and 24 MiB.
	InitialStreamWindow, InitialConnWindow uint32
	// MaxFrameSize of received frames: 16 KiB, the protocol's least.
	MaxFrameSize uint32
	// HeaderTableSize of HPACK in both directions: 4 KiB (hpack_table_size).
	HeaderTableSize uint32
	// MaxHeaderBytes and MaxHeaderCount bound a header list that is received, each field
	// counting 32 bytes beside its own: 60 KiB and 100, as Envoy's. On a client a
	// MaxHeaderCount that is set bounds requests, too: who sets it for a cluster knows its servers.
	MaxHeaderBytes, MaxHeaderCount int
	// AllowConnect offers extended CONNECT to clients (RFC 8441; allow_connect).
	AllowConnect bool
	// Shared says on a server that the peer is a proxy that sends the requests of many users on this connection, so
	// that it is not ended for what one of them did.
	Shared bool
	// BufferLimit is the high mark of what waits to be sent on all streams together, and the most of StreamBufferLimit:
	// 1 MiB (per_connection_buffer_limit_bytes of the listener or cluster).
	BufferLimit int
	// StreamBufferLimit is the high mark of what waits to be sent on one stream: 256 KiB.
	StreamBufferLimit int
	// HoldLimit is on a server how much content of paused streams is held before it withholds the connection's window
	// from all: 16 stream windows, and never less than the connection's. See Conn.hold.
	HoldLimit int
	// FlushTimeout is for a response that was given to a server's codec as a whole and for which the client gives no
	// window; 0: none (stream_idle_timeout, which is Envoy's default of stream_flush_timeout).
	FlushTimeout time.Duration
	// LingerTimeout is how long a client that still sends a request after it was answered may make no progress before
	// the request is reset; 0: it is reset at once.
	LingerTimeout time.Duration
	// MaxControlFrames is how many answers to control frames may wait for a
	// peer that does not read: 1000 (max_outbound_control_frames).
	MaxControlFrames int
	// MaxEmptyFrames is how many DATA, HEADERS and CONTINUATION frames
	// without payload and end may come in a row: 1
	// (max_consecutive_inbound_frames_with_empty_payload).
	MaxEmptyFrames int
	// MaxPriorityFrames for each stream that was opened: 100
	// (max_inbound_priority_frames_per_stream).
	MaxPriorityFrames int
	// MaxWindowUpdates for each DATA frame that was sent: 10
	// (max_inbound_window_update_frames_per_data_frame_sent).
	MaxWindowUpdates int
	// MaxResets is on a server how many streams a client may have end within their first second and before their response
	// began, by its own RST_STREAM or by what makes the server send one: 500 at once, as Envoy's
	// overload.premature_reset_total_stream_count, a fifth of it a second, and one for each stream that was answered.
	// On a client it is after how many such streams the connection is Worn: 100.
	MaxResets int

	maxRequestCount int // of fields that a client sends
}

// InputLimit is how many bytes Feed may leave unconsumed while it waits for more:
// a frame that is no DATA is read as a whole. The reader of the connection must be able to keep them.
func (o *Options) InputLimit() int {
	f := o.filled(true)
	return frameHeaderLen + int(f.MaxFrameSize)
}

func (o *Options) filled(server bool) Options {
	var f Options
	if o != nil {
		f = *o
	}
	if server {
		or(&f.MaxConcurrentStreams, 100)
		or(&f.MaxResets, 500)
	} else {
		or(&f.MaxConcurrentStreams, 1024)
		or(&f.MaxResets, 100)
	}
	or(&f.BufferLimit, 1<<20)
	or(&f.InitialStreamWindow, uint32(min(max(f.BufferLimit, 64<<10), 256<<10)))
	or(&f.InitialConnWindow, 1<<20)
	or(&f.MaxFrameSize, minMaxFrame)
	or(&f.HeaderTableSize, 4096)
	or(&f.MaxHeaderBytes, 60<<10)
	or(&f.MaxHeaderCount, 100)
	or(&f.StreamBufferLimit, 256<<10)
	f.StreamBufferLimit = min(f.StreamBufferLimit, f.BufferLimit)
	or(&f.MaxControlFrames, 1000)
	or(&f.MaxEmptyFrames, 1)
	or(&f.MaxPriorityFrames, 100)
	or(&f.MaxWindowUpdates, 10)
	f.InitialStreamWindow = min(f.InitialStreamWindow, maxWindow)
	f.InitialConnWindow = min(max(f.InitialConnWindow, defaultWindow), maxWindow)
	or(&f.HoldLimit, 16*int(f.InitialStreamWindow))
	f.HoldLimit = max(f.HoldLimit, int(f.InitialConnWindow))
	if !server {
		f.HoldLimit = math.MaxInt // see Conn.hold
		if o == nil || o.MaxHeaderCount == 0 {
			f.maxRequestCount = math.MaxInt
		} else {
			f.maxRequestCount = o.MaxHeaderCount
		}
	}
	f.MaxFrameSize = min(max(f.MaxFrameSize, minMaxFrame), maxMaxFrame)
	f.MaxHeaderCount = min(f.MaxHeaderCount, message.MaxFields)
	return f
}

func or[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

const (
	defaultWindow  = 65535 // of streams and connection before any SETTINGS (RFC 9113 §6.9.2)
	maxWindow      = 1<<31 - 1
	minMaxFrame    = 1 << 14
	maxMaxFrame    = 1<<24 - 1
	maxStreamID    = 1<<31 - 1
	defaultStreams = 100 // assumed of a server that did not say yet (§6.5.2 advises no less)
)
