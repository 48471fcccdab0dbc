package listener

import (
	"time"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/failure"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/stream"
)

// httpServer is a connection under a connection manager: it feeds the codec,
// makes a stream for each request, and ends the connection in order. It is the
// codec's owner and the streams'. Owned by the connection's worker.
type httpServer struct {
	k        *connection
	proto    *codec.Protocol
	codec    codec.Server // nil until the protocol is known
	stats    *metric.Block
	streams  stream.List
	active   int
	served   uint32
	draining bool
	closing  bool
	held     bool // reading is paused until the codec goes on
	late     bool // a head took too long: the connection ends with the streams it has
	idle     loop.Timer
	since    time.Time // idle since
	// What the output was when the stall timer was started.
	written uint64
	unsent  int
	// headID is the head that its timer is for: see codec.Server.Head, and openPreface.
	headID int64

	// Those below are made when they are first scheduled, which on most connections is never.
	head  *loop.Timer // request_headers_timeout, stream_idle_timeout: runs from the first byte of a head to its last
	stall *loop.Timer // stream_idle_timeout, for responses that are complete here and wait for the client
	life  *loop.Timer // max_connection_duration
	grace *loop.Timer // between the two steps of the codec's Drain
	sweep *loop.Timer // what the codec ends by time: see stall.go
}

func newHTTPServer(k *connection) *httpServer {
	h := &httpServer{k: k, stats: k.chain.HTTP.Stats.At(k.Worker.ID())}
	h.idle.Init(h.idleTimeout)
	return h
}

// Connected begins: the codec is chosen by ALPN, by configuration, or by the first bytes.
func (h *httpServer) Connected() {
	m := h.k.chain.HTTP
	h.stats.Inc(stream.StatCxTotal)
	h.stats.Add(stream.StatCxActive, 1)
	if h.k.TLS != nil {
		h.stats.Inc(stream.StatCxTLS)
	}
	// The limits of heads and frames are the codec's, which answers what exceeds them.
	h.k.conn.SetInputLimit(m.InputLimit())
	h.k.conn.EndOnReset()
	h.since = h.k.Worker.Now()
	if m.ConnectionIdle > 0 {
		h.k.Worker.Schedule(&h.idle, m.ConnectionIdle)
	}
	if m.MaxConnection > 0 {
		h.schedule(&h.life, h.lifeTimeout, m.MaxConnection)
	}
	if m.Codec != codec.Auto {
		h.start(m.Codec)
	} else if h.k.TLS != nil {
		if id, ok := codec.Negotiated(h.k.TLS.NegotiatedProtocol); ok {
			h.start(id)
		}
	}
}

// statCxProtocol is where connections are counted by protocol.
var statCxProtocol = [codec.N]int{codec.HTTP1: stream.StatCxHTTP1, codec.HTTP2: stream.StatCxHTTP2}

func (h *httpServer) start(id codec.ID) {
	h.stats.Inc(statCxProtocol[id])
	m := h.Manager()
	o := codec.ServerOptions{Options: &m.Options, BufferLimit: h.k.cfg.BufferLimit, FlushTimeout: m.StreamIdle, LingerTimeout: lingerTime}
	if t := h.k.TLS; t != nil {
		o.Scheme = "https"
		o.Shared = len(t.PeerCertificates) > 0 // a proxy of the mesh, known by its certificate
	}
	h.proto = &codec.Protocols[id]
	h.codec = h.proto.NewServer(h.k.conn, o, h)
	if h.draining {
		h.codec.Drain(false)
	}
}

// Data feeds the codec.
func (h *httpServer) Data(p []byte) int {
	if h.closing {
		return len(p)
	}
	if h.codec == nil {
		id, ok := codec.Sniff(p)
		if !ok {
			if len(p) > 0 {
				h.watchHead(openPreface)
			}
			return 0
		}
		h.start(id)
	}
	n, err := h.codec.Feed(p)
	if err != nil {
		h.stats.Inc(stream.StatCxProtocolError)
	}
	if h.closing {
		return len(p)
	}
	if r, ok := err.(codec.Refusal); ok {
		h.refuse(r.Failure())
	}
	if h.codec.End() != message.Open {
		h.end()
		return len(p)
	}
	rest := message.ForBytes
	if n < len(p) {
		rest = h.codec.Rest()
	}
	switch rest {
	case message.ForTurn:
		h.k.conn.Yield()
	case message.ForOwner:
		if !h.held {
			h.held = true
			h.k.conn.PauseRead()
		}
	default:
		h.watchHead(h.codec.Head(len(p) - n))
	}
	return n
}

// refuse ends the request whose head is not one, or takes too long, and with it the connection.
func (h *httpServer) refuse(k failure.Kind) {
	// Where a stream was made, it has the line in the log.
	if refused, status, sent := h.codec.Refuse(k); refused {
		h.refused(k, status, sent)
	}
}

// Refused is for a request that the codec answered or reset by itself.
func (h *httpServer) Refused(k failure.Kind, status int) {
	stop(h.head)
	h.refused(k, status, 0)
}

// refused counts and logs a request that no stream was made for; status is what the client got, 0 for a reset.
func (h *httpServer) refused(k failure.Kind, status, sent int) {
	h.stats.Inc(stream.StatRqTotal)
	h.stats.Inc(stream.StatRqInvalid)
	if status > 0 {
		h.stats.Inc(stream.StatRq1xx + status/100 - 1)
	}
	if status == 431 || status == 413 {
		h.stats.Inc(stream.StatRqTooLarge)
	}
	m := h.Manager()
	if len(m.AccessLogs) == 0 {
		return
	}
	r := stream.Record(&h.k.Connection, h.k.Worker.Now())
	r.Manager, r.Protocol, r.Status, r.Flags, r.Details = m, h.proto.Version, status, failure.Of(k).Flags, failure.Of(k).Details
	r.Sent = uint64(sent)
	for _, l := range m.AccessLogs {
		l.Log(r)
	}
}

// RefusalFields are what every response of the manager has.
func (h *httpServer) RefusalFields(b []byte) []byte {
	b = append(append(b, "date: "...), h.k.local.factory.Date()...)
	if m := h.Manager(); m.ServerHeader != stream.ServerPassThrough {
		b = append(append(b, "\r\nserver: "...), m.ServerName...)
	}
	return append(b, "\r\n"...)
}

// StreamClosed lets the codec have the bytes that it left, or ends the connection with the last stream.
func (h *httpServer) StreamClosed() {
	if h.closing {
		return
	}
	if h.codec.End() != message.Open {
		h.end()
		return
	}
	h.Resumed()
}

// Resumed lets the codec have the bytes that it left.
func (h *httpServer) Resumed() {
	if h.held && !h.closing {
		h.held = false
		h.k.conn.ResumeRead()
	}
}

// SendEOF ends a tunnel's sending side.
func (h *httpServer) SendEOF() { h.k.conn.CloseWrite() }

// end sends what waits and closes.
func (h *httpServer) end() {
	if h.closing {
		return
	}
	h.closing = true
	end := message.Close
	if h.codec != nil {
		end = h.codec.End()
	}
	d := time.Second
	if m := h.k.chain.HTTP; m != nil && m.DelayedClose > 0 {
		d = m.DelayedClose
	}
	switch end {
	case message.Abort:
		h.k.conn.Reset()
	case message.Linger:
		h.k.conn.CloseAfterAnswer(d)
	default:
		h.k.conn.CloseAfterFlush(d)
	}
}

// NewStream makes the stream of a request.
func (h *httpServer) NewStream(down message.Sender, v message.Version) message.Receiver {
	h.active++
	h.served++
	stop(h.head)
	if limit := h.Manager().MaxRequests; limit > 0 && h.served >= limit {
		h.drain()
	}
	s := h.k.local.factory.New(h, &h.k.Connection, down, v)
	h.streams.Add(s)
	return s
}

// Manager is the connection manager in force.
func (h *httpServer) Manager() *stream.Manager { return h.k.chain.HTTP }

// StreamDone is a stream's word that it is over.
func (h *httpServer) StreamDone(s *stream.Stream) {
	h.streams.Remove(s)
	h.active--
	if h.active == 0 {
		h.since = h.k.Worker.Now()
	}
}

// Panicked ends the connection after a panic in its codec.
func (h *httpServer) Panicked(v any) { h.k.conn.Panicked(v) }

// drain lets the connection end, in two steps, so that a request on its way is not
// lost (RFC 9112 §9.6, RFC 9113 §6.8).
func (h *httpServer) drain() {
	if h.draining || h.closing {
		return
	}
	h.draining = true
	h.stats.Inc(stream.StatCxDrainClose)
	if h.codec != nil {
		h.codec.Drain(false)
	}
	h.schedule(&h.grace, h.graceOver, h.graceTime())
}

// graceTime is how long a peer has to notice that the connection drains: a
// round trip, within the manager's drain_timeout.
func (h *httpServer) graceTime() time.Duration {
	return min(max(h.k.chain.HTTP.Drain, time.Millisecond), 250*time.Millisecond)
}

func (h *httpServer) graceOver() {
	defer h.k.Worker.Guard(h.k.conn)
	if h.closing {
		return
	}
	if h.codec != nil && !h.proto.Multiplexed && scheduled(h.head) {
		// A request is on its way, and has its time. HTTP/1 cannot say, as GOAWAY does, that it
		// was not processed: it is answered, and the connection ends with its response.
		return
	}
	h.endIdle()
}

// endIdle takes no more requests, and ends the connection with the last stream it has.
func (h *httpServer) endIdle() {
	if h.codec != nil {
		if h.codec.Drain(true); h.codec.End() == message.Open {
			return
		}
	}
	h.end()
}

// EOF is the client's end of sending.
func (h *httpServer) EOF() {
	if h.closing {
		return
	}
	if h.codec != nil {
		if h.codec.EOF(); h.codec.End() == message.Open {
			return
		}
	}
	h.end()
}

// Drained lets the codec send what waits.
func (h *httpServer) Drained() {
	if h.codec != nil {
		h.codec.Writable()
	}
}

// Closed is the end of the connection.
func (h *httpServer) Closed(error) {
	h.closing = true
	h.idle.Stop()
	stop(h.head)
	stop(h.stall)
	stop(h.life)
	stop(h.grace)
	stop(h.sweep)
	h.stats.Add(stream.StatCxActive, -1)
	h.stats.Inc(stream.StatCxDestroy)
	h.stats.Add(stream.StatCxRxBytes, int64(h.k.conn.BytesRead()))
	h.stats.Add(stream.StatCxTxBytes, int64(h.k.conn.BytesWritten()))
	if h.codec != nil {
		h.codec.Closed(message.ConnectionClosed)
	}
}
