package listener

import (
	"errors"
	"time"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/http1"
	"sallyport/sidecar/http2"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/stream"
)

// httpServer is a connection under a connection manager: it feeds the codec,
// makes a stream for each request, and ends the connection in order. Owned by
// the connection's worker.
type httpServer struct {
	k        *connection
	h1       *http1.ServerConn
	h2       *http2.Conn
	stats    *metric.Block
	streams  stream.List
	active   int
	served   uint32
	draining bool
	closing  bool
	held     bool // reading is paused until the codec goes on
	late     bool // a head over HTTP/2 took too long: the connection ends with the streams it has
	http2    bool // the codec is HTTP/2
	idle     loop.Timer
	since    time.Time // idle since
	// What the output was when the stall timer was started.
	written uint64
	unsent  int
	// headSince tells heads over HTTP/2 apart, for their timer.
	headSince int64

	// Those below are made when they are first scheduled, which on most connections is never.
	head  *loop.Timer // request_headers_timeout, stream_idle_timeout: runs from the first byte of a head to its last
	stall *loop.Timer // stream_idle_timeout, for responses that are complete here and wait for the client
	life  *loop.Timer // max_connection_duration
	grace *loop.Timer // drain_timeout: between the two GOAWAYs, and to the forced end
	sweep *loop.Timer // what the HTTP/2 codec ends by time: see stall.go
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
	h.k.conn.SetInputLimit(max(m.HTTP1.InputLimit(), m.HTTP2.InputLimit()))
	h.since = h.k.Worker.Now()
	if m.ConnectionIdle > 0 {
		h.k.Worker.Schedule(&h.idle, m.ConnectionIdle)
	}
	if m.MaxConnection > 0 {
		h.schedule(&h.life, h.lifeTimeout, m.MaxConnection)
	}
	switch {
	case m.Codec == stream.HTTP2 || m.Codec == stream.Auto && h.k.TLS != nil && h.k.TLS.NegotiatedProtocol == "h2":
		h.start2()
	case m.Codec == stream.HTTP1 || h.k.TLS != nil && h.k.TLS.NegotiatedProtocol == "http/1.1":
		h.start1()
	}
}

func (h *httpServer) start1() {
	h.stats.Inc(stream.StatCxHTTP1)
	h.h1 = http1.NewServer(h.k.conn, &h.k.chain.HTTP.HTTP1, (*acceptor1)(h))
	if h.k.TLS != nil {
		h.h1.Scheme = "https"
	}
	h.h1.Turn.Limit = message.TurnCost
	if h.draining {
		h.h1.Drain()
	}
}

func (h *httpServer) start2() {
	h.stats.Inc(stream.StatCxHTTP2)
	h.http2 = true
	o := h.k.chain.HTTP.HTTP2
	o.BufferLimit = h.k.cfg.BufferLimit
	o.Shared = h.k.TLS != nil && len(h.k.TLS.PeerCertificates) > 0 // a proxy of the mesh, known by its certificate
	o.FlushTimeout, o.LingerTimeout = h.k.chain.HTTP.StreamIdle, lingerTime
	h.h2 = http2.NewServer(h.k.conn, &o, (*acceptor2)(h))
	h.h2.OnRefused, h.h2.OnSweep = h.countRefused, h.sweepIn
	h.h2.Turn.Limit = message.TurnCost
	h.h2.Start()
	if h.draining {
		h.h2.GoAway(true)
	}
}

// countRefused counts and logs a request that the HTTP/2 codec refused: it answered
// one that is too large, and reset the stream of the others.
func (h *httpServer) countRefused(status int) {
	stop(h.head)
	h.stats.Inc(stream.StatRqTotal)
	h.stats.Inc(stream.StatRqInvalid)
	switch status {
	case 431:
		h.stats.Inc(stream.StatRqTooLarge)
		h.logRefused(stream.ProtocolHTTP2, failure.StreamHeadTooLarge, status, 0)
	case 400:
		h.logRefused(stream.ProtocolHTTP2, failure.MalformedStream, 0, 0)
	}
}

// logRefused writes the line of a request that no stream was made for; status is what the client got, 0 for a reset.
func (h *httpServer) logRefused(p stream.Protocol, k failure.Kind, status, sent int) {
	if len(h.Manager().AccessLogs) == 0 {
		return
	}
	r := stream.Record(&h.k.Connection, h.k.Worker.Now())
	r.Manager, r.Protocol, r.Status, r.Flags, r.Details = h.Manager(), p, status, failure.Of(k).Flags, failure.Of(k).Details
	r.Sent = uint64(sent)
	for _, l := range h.Manager().AccessLogs {
		l.Log(r)
	}
}

type prefaceState uint8

const (
	prefaceNo prefaceState = iota
	prefaceMaybe
	prefaceYes
)

// preface is HTTP/2's connection preface (RFC 9113 §3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

func isPreface(p []byte) prefaceState {
	n := min(len(p), len(preface))
	if string(p[:n]) != preface[:n] {
		return prefaceNo
	}
	if n < len(preface) {
		return prefaceMaybe
	}
	return prefaceYes
}

// Data feeds the codec.
func (h *httpServer) Data(p []byte) int {
	if h.closing {
		return len(p)
	}
	if h.h1 == nil && h.h2 == nil {
		switch isPreface(p) {
		case prefaceYes:
			h.start2()
		case prefaceMaybe:
			h.watchHead(len(p) > 0)
			return 0
		default:
			h.start1()
		}
	}
	if h.h2 != nil {
		h.h2.Turn.Begin()
		n, err := h.h2.Feed(p)
		if err != nil && !h.closing {
			h.stats.Inc(stream.StatCxProtocolError)
			h.h2.Closed(message.ProtocolError)
			h.end()
			return len(p)
		}
		if n < len(p) && h.h2.Turn.Over() {
			h.k.conn.Yield()
		} else {
			if since := h.h2.HeadSince(); since != h.headSince {
				stop(h.head) // another head: one that ended may have had the timer
				h.headSince = since
			}
			h.watchHead(h.h2.HeadOpen())
		}
		return n
	}
	return h.data1(p)
}

func (h *httpServer) data1(p []byte) int {
	n := 0
	h.h1.Turn.Begin()
	for {
		k, err := h.h1.Feed(p[n:])
		n += k
		if err != nil {
			h.stats.Inc(stream.StatCxProtocolError)
			k := failure.BadRequest
			if e := (*http1.Error)(nil); errors.As(err, &e) {
				k = e.Kind
			}
			h.refuse(k)
		}
		if h.h1.ShouldClose() {
			h.end()
			return len(p)
		}
		if n == len(p) || k == 0 {
			break
		}
	}
	switch {
	case n < len(p) && h.h1.Blocked():
		if !h.held {
			h.held = true
			h.k.conn.PauseRead()
		}
	case n < len(p) && h.h1.Turn.Over():
		h.k.conn.Yield()
	default:
		h.watchHead(h.h1.InHead(len(p) - n))
	}
	return n
}

// RefusalFields are what every response of the manager has.
func (a *acceptor1) RefusalFields(b []byte) []byte {
	h := (*httpServer)(a)
	b = append(append(b, "date: "...), h.k.local.factory.Date()...)
	if m := h.Manager(); m.ServerHeader != stream.ServerPassThrough {
		b = append(append(b, "\r\nserver: "...), m.ServerName...)
	}
	return append(b, "\r\n"...)
}

// refuse answers, counts and logs a request that the codec did not take, or that did not come in time.
func (h *httpServer) refuse(k failure.Kind) {
	status := failure.Of(k).Status
	n := h.h1.Refuse(status)
	if n < 0 {
		return // a response was begun: its stream has the line in the log
	}
	h.logRefused(stream.ProtocolHTTP11, k, status, n)
	h.stats.Inc(stream.StatRqTotal)
	h.stats.Inc(stream.StatRq1xx + status/100 - 1)
	h.stats.Inc(stream.StatRqInvalid)
	if status == 431 || status == 413 {
		h.stats.Inc(stream.StatRqTooLarge)
	}
}

// unhold lets the codec have the bytes that it left; at the end of HTTP/1 it closes.
func (h *httpServer) unhold() {
	if h.closing {
		return
	}
	if h.h1 != nil && h.h1.ShouldClose() {
		h.end()
		return
	}
	if h.held {
		h.held = false
		h.k.conn.ResumeRead()
	}
}

// end sends what waits and closes.
func (h *httpServer) end() {
	if h.closing {
		return
	}
	h.closing = true
	if h.h1 != nil && h.h1.Aborted() {
		h.k.conn.Reset()
		return
	}
	d := time.Second
	if m := h.k.chain.HTTP; m != nil && m.DelayedClose > 0 {
		d = m.DelayedClose
	}
	if h.h1 != nil {
		h.k.conn.CloseAfterAnswer(d)
		return
	}
	h.k.conn.CloseAfterFlush(d)
}

// acceptor1 and acceptor2 make streams for the two codecs, whose NewStream
// differs in the type of the way back.
type (
	acceptor1 httpServer
	acceptor2 httpServer
)

// NewStream makes the stream of a request.
func (a *acceptor1) NewStream(s *http1.ServerStream) message.Receiver {
	p := stream.ProtocolHTTP11
	if s.HTTP10() {
		p = stream.ProtocolHTTP10
	}
	return (*httpServer)(a).newStream(s, p)
}

// MessageDone, Resumed and SendEOF are the codec's: see http1.Owner.
func (a *acceptor1) MessageDone() { (*httpServer)(a).unhold() }
func (a *acceptor1) Resumed()     { (*httpServer)(a).unhold() }
func (a *acceptor1) SendEOF()     { a.k.conn.CloseWrite() }

// NewStream makes the stream of a request.
func (a *acceptor2) NewStream(s *http2.Stream) message.Receiver {
	return (*httpServer)(a).newStream(s, stream.ProtocolHTTP2)
}

func (h *httpServer) newStream(down message.Sender, p stream.Protocol) message.Receiver {
	h.active++
	h.served++
	stop(h.head)
	if limit := h.Manager().MaxRequests; limit > 0 && h.served >= limit {
		h.drain()
	}
	s := h.k.local.factory.New(h, &h.k.Connection, down, p)
	h.streams.Add(s)
	return s
}

// Manager is the connection manager in force.
func (h *httpServer) Manager() *stream.Manager { return h.k.chain.HTTP }

// Last makes the next response say "connection: close".
func (h *httpServer) Last() {
	if h.h1 != nil {
		h.h1.Drain()
	}
}

// StreamDone is a stream's word that it is over.
func (h *httpServer) StreamDone(s *stream.Stream) {
	h.streams.Remove(s)
	h.active--
	if h.active == 0 {
		h.since = h.k.Worker.Now()
		if h.draining && h.h2 != nil && h.h2.Draining() && !scheduled(h.grace) {
			h.end()
		}
	}
}

// drain lets the connection end: HTTP/1 with the next response, HTTP/2 by
// GOAWAY in two steps, so that a request on its way is not lost (RFC 9113 §6.8).
func (h *httpServer) drain() {
	if h.draining || h.closing {
		return
	}
	h.draining = true
	h.stats.Inc(stream.StatCxDrainClose)
	switch {
	case h.h2 != nil:
		h.h2.GoAway(true)
		h.schedule(&h.grace, h.graceOver, h.graceTime())
	case h.h1 != nil:
		h.h1.Drain()
		if h.active == 0 {
			// An idle connection may have a request on its way; it is
			// given a moment, and gets "connection: close" with the answer.
			h.schedule(&h.grace, h.graceOver, h.graceTime())
		}
	default:
		// Nothing has come yet; the first request may be on its way, too.
		h.schedule(&h.grace, h.graceOver, h.graceTime())
	}
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
	if h.h2 != nil {
		h.h2.GoAway(false)
	}
	if h.active == 0 {
		h.end()
	}
}

// EOF is the client's end of sending.
func (h *httpServer) EOF() {
	if h.closing {
		return
	}
	switch {
	case h.h1 != nil:
		h.h1.EOF()
		if h.h1.ShouldClose() {
			h.end()
		}
	case h.h2 != nil:
		h.h2.Closed(message.RemoteReset)
		h.end()
	default:
		h.end()
	}
}

// Drained lets the codec send what waits.
func (h *httpServer) Drained() {
	if h.h1 != nil {
		h.h1.Writable()
	} else if h.h2 != nil {
		h.h2.Writable()
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
	if h.h1 != nil {
		h.h1.Closed(message.ConnectionClosed)
	} else if h.h2 != nil {
		h.h2.Closed(message.ConnectionClosed)
	}
}
