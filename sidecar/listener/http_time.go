package listener

import (
	"time"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/failure"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/stream"
)

// The timers of a connection that carries HTTP; those of requests are the stream's.

// openPreface stands for the head that begins with a part of a preface, before there is a codec.
const openPreface = -1

// watchHead bounds the time that a head takes, from its first byte to its last:
// by request_headers_timeout, and by stream_idle_timeout as Envoy, whose stream
// begins with the first byte. id tells heads apart, for each has its time; 0:
// none is open. A connection on which nothing was sent is idle.
func (h *httpServer) watchHead(id int64) {
	if id == 0 || id != h.headID && h.headID != openPreface {
		stop(h.head)
	}
	h.headID = id
	if id != 0 && !scheduled(h.head) && !h.late {
		if d, _ := h.headTime(); d > 0 {
			h.schedule(&h.head, h.headTimeout, d)
		}
	}
}

// headTime is how long a head may take, and whether that is stream_idle_timeout; 0 is for ever.
func (h *httpServer) headTime() (d time.Duration, idle bool) {
	m := h.k.chain.HTTP
	if d = m.RequestHeaders; d <= 0 || m.StreamIdle > 0 && m.StreamIdle < d {
		return m.StreamIdle, true
	}
	return d, false
}

// schedule makes the timer where it is not there yet.
func (h *httpServer) schedule(t **loop.Timer, f func(), d time.Duration) {
	if *t == nil {
		*t = new(loop.Timer)
		(*t).Init(f)
	}
	h.k.Worker.Schedule(*t, d)
}

func (h *httpServer) idleTimeout() {
	defer h.k.Worker.Guard(h.k.conn)
	m := h.k.chain.HTTP
	if h.closing || m.ConnectionIdle <= 0 {
		return
	}
	left := m.ConnectionIdle
	if h.active == 0 && !scheduled(h.head) {
		left -= h.k.Worker.Now().Sub(h.since)
	}
	if left > 0 {
		h.k.Worker.Schedule(&h.idle, left)
		return
	}
	h.stats.Inc(stream.StatCxIdleTimeout)
	h.endIdle()
}

// headTimeout ends a connection whose request head takes too long (slowloris), once
// the requests that are complete got their responses.
func (h *httpServer) headTimeout() {
	defer h.k.Worker.Guard(h.k.conn)
	if h.closing {
		return
	}
	_, idle := h.headTime()
	k := failure.HeadTimeout
	if idle {
		k = failure.IdleTimeout
		h.stats.Inc(stream.StatRqIdleTimeout)
	} else {
		h.stats.Inc(stream.StatRqTimeout)
	}
	if h.codec == nil {
		h.start(codec.HTTP1) // part of a preface: a client may see what the matter is all the same
	}
	h.late = true
	h.refuse(k)
	if h.codec.End() != message.Open {
		h.end()
	}
}

// waiting starts the timer for output that the client does not take. A stream that
// is open has a timer of its own; one whose response is complete has none, and its
// bytes would stay until the connection's idle timeout.
func (h *httpServer) waiting() {
	if d := h.k.chain.HTTP.StreamIdle; d > 0 && !h.closing && !scheduled(h.stall) {
		h.written, h.unsent = h.k.conn.BytesWritten(), h.k.conn.Unsent()
		h.schedule(&h.stall, h.stallTimeout, d)
	}
}

func (h *httpServer) stallTimeout() {
	defer h.k.Worker.Guard(h.k.conn)
	unsent := h.k.conn.Unsent()
	if h.closing || unsent == 0 {
		return
	}
	// Under TLS bytes count as written before they are sent.
	if h.active > 0 || h.k.conn.BytesWritten() != h.written || unsent < h.unsent {
		h.waiting()
		return
	}
	h.stats.Inc(stream.StatRqIdleTimeout)
	h.closing = true
	h.k.conn.Reset()
}

func (h *httpServer) lifeTimeout() {
	defer h.k.Worker.Guard(h.k.conn)
	h.stats.Inc(stream.StatCxMaxDuration)
	h.drain()
}

func scheduled(t *loop.Timer) bool { return t != nil && t.Scheduled() }

func stop(t *loop.Timer) {
	if t != nil {
		t.Stop()
	}
}
