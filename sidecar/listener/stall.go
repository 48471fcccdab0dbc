package listener

import (
	"time"

	"sallyport/sidecar/stream"
)

// lingerTime is how long an HTTP/2 client may pause that goes on to send a request that was answered before its end.
const lingerTime = time.Second

// SweepIn is the codec's wish to be swept: it has no timer of its own.
func (h *httpServer) SweepIn(d time.Duration) { h.schedule(&h.sweep, h.sweepNow, d) }

// sweepNow ends streams whose client takes nothing of a response that is here as a whole, which the stream's own
// stream_idle_timeout does not see any more, and those that go on to send a request that was answered.
func (h *httpServer) sweepNow() {
	defer h.k.Worker.Guard(h.k.conn)
	if h.closing {
		return
	}
	if n := h.codec.Sweep(); n > 0 {
		h.stats.Add(stream.StatRqIdleTimeout, int64(n))
	}
}
