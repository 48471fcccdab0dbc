package stream

import (
	"time"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/upstream"
)

// attempt is one try to have a request answered by a host. A stream has one at
// a time. It is the pool's Requester and the Receiver of the response.
type attempt struct {
	stream *Stream
	waiter upstream.Waiter
	up     message.Sender
	client *upstream.Client
	timer  loop.Timer

	live      bool // acquired and not yet over
	headSent  bool
	endSent   bool
	responded bool // any part of a response came
	complete  bool // the response is complete
	stopped   bool // up.Pause was called: the client reads too slowly
	fresh     bool // this is the one repetition on a new connection
	began     time.Time
}

func (a *attempt) clear() {
	a.up, a.client = nil, nil
	a.live, a.headSent, a.endSent, a.responded, a.complete, a.stopped, a.fresh = false, false, false, false, false, false, false
	a.waiter.Fresh, a.waiter.Priority = false, 0
}

// attempt chooses a host and asks its pool for a stream.
func (s *Stream) attempt() {
	if s.over || s.replied {
		return
	}
	host := s.cluster.Host(&s.pick)
	if host == nil {
		s.fail(failNoHealthy)
		return
	}
	s.attemptOn(host)
}

func (s *Stream) attemptOn(host *upstream.Host) {
	a := &s.try
	fresh := a.waiter.Fresh
	a.clear()
	a.waiter.Fresh, a.fresh = fresh, fresh
	a.waiter.Priority = s.forward.Priority
	a.live = true
	a.began = s.worker.Now()
	s.Host = host
	s.Attempts++
	s.sentBytes = 0
	if s.Route.IncludeAttemptCount {
		s.Request.SetNameInt(message.XEnvoyAttemptCount, int64(s.Attempts))
	}
	proto := upstream.HTTP1
	if s.Protocol == ProtocolHTTP2 {
		proto = upstream.HTTP2
	}
	if r := host.Pool(s.worker, proto, s.Conn.Source).Acquire(&a.waiter); r != 0 {
		a.live = false
		a.end(r, "")
	}
}

// Ready sends the request on the stream that the pool found.
func (a *attempt) Ready(up message.Sender, c *upstream.Client) {
	s := a.stream
	a.up, a.client = up, c
	s.UpstreamLocal = c.Conn().LocalAddr()
	s.UpstreamProto = ProtocolHTTP11
	if c.HTTP2() {
		s.UpstreamProto = ProtocolHTTP2
	}
	s.UpstreamTLS = c.Conn().TLS() != nil
	if s.forward.AutoHost && c.Host().Hostname() != "" {
		s.rewriteHost([]byte(c.Host().Hostname()))
	}
	if s.Timings.UpstreamStart < 0 {
		s.Timings.UpstreamStart = s.since()
	}
	if s.perTry > 0 {
		s.worker.Schedule(&a.timer, s.perTry)
	}
	a.headSent = true
	if s.headOnly {
		a.endSent = true
		s.Timings.UpstreamEnd = s.Timings.UpstreamStart
	}
	up.Head(&s.Request, s.headOnly)
	if a.live && !s.over {
		s.pump()
	}
}

// Failed is the pool's word that no connection could be had.
func (a *attempt) Failed(r message.Reason, text string) {
	a.end(r, text)
}

// Head takes the response's head.
func (a *attempt) Head(h *message.Head, end bool) {
	s := a.stream
	if s.over || !a.live {
		return
	}
	a.responded = true
	s.active = s.worker.Now()
	status := h.StatusCode()
	if status < 200 && status != 101 {
		// 100 is the proxy's own affair unless told otherwise; other
		// informational responses go on (RFC 9110 §15.2).
		if status != 100 || s.Manager.Proxy100 {
			s.down.Head(h, false)
		}
		return
	}
	if s.Timings.ResponseStart < 0 {
		s.Timings.ResponseStart = s.since()
	}
	a.timer.Stop()
	s.Host.Report(outlierStatus(h, status))
	s.countResponse(status)
	if s.retryResponse(h, status) {
		return
	}
	if end {
		a.complete = true
		s.Timings.ResponseEnd = s.since()
	}
	if status == 101 || status < 300 && s.Request.Is(message.Method, "CONNECT") {
		s.tunnel = true
		s.routeTimer.Stop()
		s.Manager.Stats.At(s.worker.ID()).Inc(StatRqUpgrades)
	}
	s.respond(h, end)
	if end {
		a.finished()
	}
}

// outlierStatus is the status that outlier detection counts: a gRPC error in
// a trailers-only response counts as the HTTP status it stands for.
func outlierStatus(h *message.Head, status int) int {
	if v := h.Get(message.GRPCStatus); status == 200 && len(v) > 0 && string(v) != "0" {
		if string(v) == "14" || string(v) == "13" || string(v) == "2" || string(v) == "15" {
			return 503
		}
	}
	return status
}

func (s *Stream) countResponse(status int) {
	st := s.cluster.Stats.At(s.worker.ID())
	st.Inc(upstream.StatRqCompleted)
	st.Inc(upstream.StatRq1xx + min(max(status/100, 1), 5) - 1)
	st.Observe(upstream.StatRqTime, float64(s.worker.Now().Sub(s.try.began))/1e6)
}

// Data takes a piece of the response's body.
func (a *attempt) Data(p []byte, end bool) {
	s := a.stream
	if s.over || !a.live {
		return
	}
	s.active = s.worker.Now()
	if end {
		a.complete = true
		s.Timings.ResponseEnd = s.since()
	}
	s.Sent += uint64(len(p))
	s.down.Data(p, end)
	if !end && !s.over && !a.stopped && s.down.Full() {
		a.stopped = true
		a.up.Pause()
	}
	if end {
		s.responseSent()
		a.finished()
	}
}

// Trailers takes the response's trailers.
func (a *attempt) Trailers(h *message.Head) {
	s := a.stream
	if s.over || !a.live {
		return
	}
	a.complete = true
	s.Timings.ResponseEnd = s.since()
	s.ResponseTrailers.CopyFrom(h)
	s.down.Trailers(h)
	s.responseSent()
	a.finished()
}

// Drained is the word that the upstream connection takes bytes again.
func (a *attempt) Drained() {
	s := a.stream
	if !s.over && a.live {
		s.pump()
	}
}

// Reset is the codec's word that the response will not be completed.
func (a *attempt) Reset(r message.Reason) { a.end(r, "") }

// finished ends an attempt whose response is complete.
func (a *attempt) finished() {
	s := a.stream
	if !a.live {
		return
	}
	a.live = false
	a.timer.Stop()
	if !a.endSent && a.up != nil {
		// The host answered before it had the whole request, and will
		// not read the rest.
		a.up.Reset(message.LocalReset)
	}
	a.waiter.Finish()
	if s.retrying {
		s.doneRetrying()
		s.cluster.Stats.At(s.worker.ID()).Inc(upstream.StatRqRetrySuccess)
	}
	if s.sent && !s.over {
		s.finish()
	}
}

// abandon gives the attempt up from this side.
func (a *attempt) abandon() {
	if !a.live {
		return
	}
	a.live = false
	a.timer.Stop()
	if a.up != nil && !(a.complete && a.endSent) {
		a.stream.cluster.Stats.At(a.stream.worker.ID()).Inc(upstream.StatRqTxReset)
		a.up.Reset(message.LocalReset)
	}
	a.waiter.Finish()
}

// end is the failure of an attempt: retry, or answer.
func (a *attempt) end(r message.Reason, text string) {
	s := a.stream
	if s.over {
		return
	}
	a.live = false
	a.timer.Stop()
	a.waiter.Finish()
	if r == message.RemoteReset || r == message.ConnectionClosed || r == message.ProtocolError || r == message.Refused {
		s.cluster.Stats.At(s.worker.ID()).Inc(upstream.StatRqRxReset)
		s.Host.Report(503)
	}
	if text != "" {
		s.UpstreamFailure = text
	}
	if s.repeatFresh(r) || s.retryReset(r) {
		return
	}
	f := &resetFailures[r]
	if s.replied {
		s.Flags |= f.flags
		s.setDetails("upstream_reset_after_response_started{" + r.String() + "}")
		s.resetDown(message.RemoteReset)
		return
	}
	s.fail(f)
}

// repeatFresh repeats, once and on a new connection, a request that was sent
// on a kept connection and met its end without a byte of an answer: the peer
// closed it for idleness while the request was on its way. It is safe for
// methods that may be repeated (RFC 9110 §9.2.2, RFC 9112 §9.3.1).
func (s *Stream) repeatFresh(r message.Reason) bool {
	a := &s.try
	if s.replied || a.responded || a.fresh || a.client == nil || !a.client.Reused() {
		return false
	}
	safe := r == message.Refused || r == message.ConnectionClosed && s.idempotent()
	if !safe || !s.headOnly {
		return false
	}
	a.waiter.Fresh = true
	s.attemptOn(s.Host)
	return true
}

func (s *Stream) idempotent() bool {
	switch string(s.Request.Get(message.Method)) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// timeout is the per-try timeout.
func (a *attempt) timeout() {
	s := a.stream
	if s.over || !a.live || a.responded {
		return
	}
	s.cluster.Stats.At(s.worker.ID()).Inc(upstream.StatRqPerTryTimeout)
	s.Host.Report(504)
	a.abandon()
	if s.retryTimeout() {
		return
	}
	s.fail(failPerTry)
}

// sendBody takes a piece of the request's body on its way up.
func (s *Stream) sendBody(p []byte, end bool) {
	a := &s.try
	if !s.retained && s.held.Len() == 0 && a.live && a.headSent && !a.endSent && !(end && s.trailers.Len() > 0) {
		s.sentBytes += len(p)
		if end {
			a.endSent = true
			s.Timings.UpstreamEnd = s.since()
		}
		a.up.Data(p, end)
		if !end && !s.over && a.live && a.up.Full() {
			s.stop()
		}
		return
	}
	s.held.Append(p)
	s.heldEnd = s.heldEnd || end
	s.pump()
}

// pump sends what is held as far as there is someone to take it. With a retry
// policy what was sent is kept, as long as it is less than the buffer limit;
// beyond that it cannot be retried any more.
func (s *Stream) pump() {
	a := &s.try
	limit := s.bodyLimit()
	if s.retained && s.held.Len() > limit {
		s.retained = false
		s.held.Consume(s.sentBytes)
		s.retries = 0
	}
	if a.live && a.headSent && !a.endSent && !a.up.Full() {
		from := 0
		if s.retained {
			from = s.sentBytes
		}
		p := s.held.Bytes()[from:]
		end := s.heldEnd
		s.sentBytes += len(p)
		if end {
			a.endSent = true
			s.Timings.UpstreamEnd = s.since()
		}
		switch {
		case end && s.trailers.Len() > 0:
			if len(p) > 0 {
				a.up.Data(p, false)
			}
			if a.live {
				a.up.Trailers(&s.trailers)
			}
		case len(p) > 0 || end:
			a.up.Data(p, end)
		}
		if s.over {
			return
		}
		if !s.retained {
			s.held.Release()
		}
	}
	// The client is held back while more waits here than may; with a body
	// that is kept for a retry, only what was not sent counts.
	waiting := s.held.Len()
	if s.retained {
		waiting -= min(s.sentBytes, waiting)
	}
	if waiting > limit || a.live && a.headSent && a.up.Full() {
		s.stop()
	} else if !s.paused {
		s.start()
	}
}

// bodyLimit is how many bytes of a body may wait in the proxy.
func (s *Stream) bodyLimit() int {
	if s.cluster != nil && s.cluster.Config.BufferLimit > 0 {
		return s.cluster.Config.BufferLimit
	}
	return 1 << 20
}
