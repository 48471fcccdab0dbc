// Package http2 is the HTTP/2 codec (RFC 9113), both sides: bytes to events and
// events to bytes. It owns framing, HPACK state, stream states and flow
// control, and nothing else: no I/O, no timer, no goroutine. A Conn belongs to
// the worker of its connection, which feeds it what it read; what is to be
// sent goes to the Output. Bytes that come in are hostile: every queue that a
// peer can fill has a bound.
package http2

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

// Options are a codec's limits. The zero value of each field is its default.
type Options struct {
	// MaxConcurrentStreams that the peer may open (max_concurrent_streams). 0: 100 for servers.
	MaxConcurrentStreams uint32
	// InitialStreamWindow and InitialConnWindow bound what a peer may send
	// before it is read on. 0: 256 KiB and 1 MiB, as Envoy's edge guide advises 64 KiB and 1 MiB.
	InitialStreamWindow, InitialConnWindow uint32
	// MaxFrameSize of received frames. 0: 16 KiB, the protocol's least.
	MaxFrameSize uint32
	// HeaderTableSize of HPACK in both directions. 0: 4 KiB.
	HeaderTableSize uint32
	// MaxHeaderBytes and MaxHeaderCount bound a header list. 0: 60 KiB, 100.
	MaxHeaderBytes, MaxHeaderCount int
	// AllowConnect offers extended CONNECT to clients (RFC 8441, allow_connect).
	AllowConnect bool
	// StreamBufferLimit is the high mark of what waits on one stream. 0: 256 KiB.
	StreamBufferLimit int
	// Limits against floods, as Envoy's: frames that make us answer while
	// nothing is read of our answers; DATA and HEADERS without payload in a row; PRIORITY and
	// WINDOW_UPDATE frames for each stream; streams that the peer resets.
	// 0: 1000, 16, 100 and 500.
	MaxControlFrames, MaxEmptyFrames, MaxPriorityFrames, MaxResets int
}

// filled returns the options with their defaults.
func (o *Options) filled() Options {
	var f Options
	if o != nil {
		f = *o
	}
	or(&f.MaxConcurrentStreams, 100)
	or(&f.InitialStreamWindow, 256<<10)
	or(&f.InitialConnWindow, 1<<20)
	or(&f.MaxFrameSize, 16<<10)
	or(&f.HeaderTableSize, 4096)
	or(&f.MaxHeaderBytes, 60<<10)
	or(&f.MaxHeaderCount, 100)
	or(&f.StreamBufferLimit, 256<<10)
	or(&f.MaxControlFrames, 1000)
	or(&f.MaxEmptyFrames, 16)
	or(&f.MaxPriorityFrames, 100)
	or(&f.MaxResets, 500)
	f.InitialConnWindow = max(f.InitialConnWindow, defaultWindow)
	return f
}

func or[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

const (
	defaultWindow = 65535 // of streams and connection before any SETTINGS (RFC 9113 §6.9.2)
	maxWindow     = 1<<31 - 1
	minMaxFrame   = 16384
)
