package stream

import (
	"time"

	"sallyport/sidecar/buffer"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/upstream"
)

// What a request meets, top to bottom. Order is said here and nowhere else.
//
//	codec           a head was read: strict HTTP, limits on sizes (http1, http2)
//	begin           statistics and timers start before anything can fail
//	prepare         who the client is (XFF), what the path is (normalization), x-request-id, forged
//	                x-envoy-* and x-forwarded-client-cert fields removed: every later part relies on it
//	match           the route, before the filters, since routes override their configuration
//	trace           the span, so that a filter's refusal is traced too
//	filters         in configured order; each may refuse, pause or change the head
//	router          the cluster, header mutations and rewrites: after the filters, since they may
//	                have changed what the route is chosen by (Reroute)
//	balance         a host; hash policies see the head as the client sent it plus what filters changed
//	pool            a connection under the circuit breakers
//	attempt         the request goes up; per-try timeout, retries
//	response        the head comes down: retry or commit, mutations, filters in reverse order
//	finish          access log, span, statistics, the stream goes back to its factory

// Owner is the connection a stream came on, as the stream needs it.
type Owner interface {
	// Manager is the connection manager in force now.
	Manager() *Manager
	// Last makes the response that is about to be sent the connection's last.
	Last()
	// StreamDone tells that the stream is over.
	StreamDone(s *Stream)
}

// Stream is one request and its response. Owned by the worker of its
// downstream connection.
type Stream struct {
	Info

	factory *Factory
	owner   Owner
	down    message.Sender
	worker  *loop.Worker

	slots []any
	// at is the filter that paused the request head; -1 when none did.
	at      int
	paused  bool // a filter holds the request
	routed  bool // the router has the request
	over    bool // finish was called
	replied bool // a response head, or a local reply, went to the client

	received bool // the request is complete, or was reset
	sent     bool // the response is complete, or was reset
	tunnel   bool // a 101, or a 2xx to CONNECT, was sent on
	headOnly bool // the request ended with its head

	// held are body bytes that a paused filter, or a connection still to be
	// made, keeps from going up; with a retry policy also those sent, as
	// long as they fit (retained).
	held      buffer.Buffer
	heldEnd   bool
	trailers  message.Head
	retained  bool
	sentBytes int  // of held, in this attempt
	stopped   bool // down.Pause was called for back-pressure

	try       attempt
	pick      upstream.Pick
	avoid     [4]*upstream.Host
	cluster   *upstream.Cluster
	forward   *route.Forward
	weighted  *route.WeightedCluster
	setCookie []byte
	timeout   time.Duration
	perTry    time.Duration
	retryOn   route.RetryOn
	retries   uint32 // left
	retrying  bool   // a retry is counted in the breaker
	random    uint64

	active time.Time // last activity, for the idle timeout

	idleTimer    loop.Timer
	requestTimer loop.Timer // request_timeout
	maxTimer     loop.Timer // max_stream_duration
	routeTimer   loop.Timer // the route's timeout
	retryTimer   loop.Timer // back-off
}

// Worker is the worker that owns the stream.
func (s *Stream) Worker() *loop.Worker { return s.worker }

// Now is the worker's clock, read once per turn.
func (s *Stream) Now() time.Time { return s.worker.Now() }

func (s *Stream) since() time.Duration { return s.worker.Now().Sub(s.Start) }

// Head takes the request's head from the codec.
func (s *Stream) Head(h *message.Head, end bool) {
	if s.over || s.routed || s.at >= 0 {
		return
	}
	// By exchange: the codec resets the Head that it gets back.
	s.Request, *h = *h, s.Request
	s.headOnly = end
	s.received = end
	s.begin()
	if f := s.prepare(); f != nil {
		s.fail(f)
		return
	}
	s.expect()
	s.match()
	if t := s.Manager.Tracer; t != nil {
		s.Span = t.Start(s)
	}
	s.filter(0)
}

// expect answers a client that waits for 100 before it sends its content
// (RFC 9110 §10.1.1): the proxy takes the content in any case, so the word is
// its own to give, and the upstream is not asked.
func (s *Stream) expect() {
	if s.Manager.Proxy100 || !s.Request.Has(message.Expect) || !equalFold(s.Request.Get(message.Expect), "100-continue") {
		return
	}
	s.Request.RemoveName(message.Expect)
	if s.received || s.Protocol == ProtocolHTTP10 {
		return
	}
	h := &s.Response
	h.Reset()
	h.SetStatus(100)
	s.down.Head(h, false)
	h.Reset()
}

func (s *Stream) begin() {
	m := s.owner.Manager()
	s.Manager = m
	s.Start = s.worker.Now()
	s.active = s.Start
	s.Timings = Timings{-1, -1, -1, -1, -1}
	if s.received {
		s.Timings.RequestEnd = 0
	}
	if n := len(m.Filters); cap(s.slots) < n {
		s.slots = make([]any, n)
	} else {
		s.slots = s.slots[:n]
	}
	st := m.Stats.At(s.worker.ID())
	st.Inc(StatRqTotal)
	st.Add(StatRqActive, 1)
	if s.Protocol == ProtocolHTTP2 {
		st.Inc(StatRqHTTP2)
	} else {
		st.Inc(StatRqHTTP1)
	}
	if m.StreamIdle > 0 {
		s.worker.Schedule(&s.idleTimer, m.StreamIdle)
	}
	if m.RequestTime > 0 && !s.received {
		s.worker.Schedule(&s.requestTimer, m.RequestTime)
	}
	if m.MaxStream > 0 {
		s.worker.Schedule(&s.maxTimer, m.MaxStream)
	}
}

// filter runs the request filters from the i-th on, then the router.
func (s *Stream) filter(i int) {
	for ; i < len(s.Manager.Filters); i++ {
		f, ok := s.Manager.Filters[i].(RequestHeadFilter)
		if !ok {
			continue
		}
		if s.Route != nil && len(s.Route.Overrides) > 0 {
			if _, disabled := s.Override(f.Name()); disabled {
				continue
			}
		}
		s.at = i // a reply from here passes the response side of the filters up to this one
		switch f.RequestHead(s, i, &s.Request, s.headOnly) {
		case Pause:
			if !s.over && !s.replied {
				s.paused = true
				s.stop()
			}
			return
		case Replied:
			return
		}
		if s.over || s.replied {
			return
		}
	}
	s.at = len(s.Manager.Filters)
	s.forwardRequest()
}

// Resume lets a request that a filter paused go on, on the stream's worker.
// On a stream that is over it does nothing.
func (s *Stream) Resume() {
	if s.over || !s.paused || s.replied {
		return
	}
	s.paused = false
	s.filter(s.at + 1)
	s.pump()
}

// Slot is where a filter keeps what it must remember of a request; slot is
// what the filter was called with.
func (s *Stream) Slot(slot int) *any { return &s.slots[slot] }

// Override returns the configuration of the named filter for this request:
// the most specific of weighted cluster, route, virtual host and route
// configuration; nil where there is none.
func (s *Stream) Override(filter string) (cfg any, disabled bool) {
	if s.weighted != nil {
		for i := range s.weighted.Overrides {
			if o := &s.weighted.Overrides[i]; o.Filter == filter {
				return o.Config, o.Disabled
			}
		}
	}
	if s.Route != nil {
		if o := s.Route.Override(filter); o != nil {
			return o.Config, o.Disabled
		}
	}
	return nil, false
}

// SetMetadata records dynamic metadata for other filters and the access log.
func (s *Stream) SetMetadata(namespace, key string, v any) {
	for i := range s.Metadata {
		if m := &s.Metadata[i]; m.Namespace == namespace && m.Key == key {
			m.Value = v
			return
		}
	}
	s.Metadata = append(s.Metadata, Metadatum{namespace, key, v})
}

// MetadataValue returns dynamic metadata, nil where there is none.
func (s *Stream) MetadataValue(namespace, key string) any {
	for i := range s.Metadata {
		if m := &s.Metadata[i]; m.Namespace == namespace && m.Key == key {
			return m.Value
		}
	}
	return nil
}

// Data takes a piece of the request's body from the codec.
func (s *Stream) Data(p []byte, end bool) {
	if s.over || s.received {
		return
	}
	s.active = s.worker.Now()
	s.Received += uint64(len(p))
	if end {
		s.requestReceived()
	}
	if s.replied && !s.tunnel && !s.try.live {
		return // answered locally; the rest of the request is of no interest
	}
	for i, f := range s.Manager.Filters {
		if d, ok := f.(RequestDataFilter); ok && d.RequestData(s, i, p, end) != Continue {
			break
		}
		if s.over || s.replied && !s.try.live {
			return
		}
	}
	s.sendBody(p, end)
}

// Trailers takes the request's trailers from the codec.
func (s *Stream) Trailers(h *message.Head) {
	if s.over || s.received {
		return
	}
	s.requestReceived()
	if s.replied && !s.try.live {
		return
	}
	s.trailers.CopyFrom(h)
	s.sendBody(nil, true)
}

// requestReceived notes that the whole request is here.
func (s *Stream) requestReceived() {
	s.received = true
	s.Timings.RequestEnd = s.since()
	s.requestTimer.Stop()
	if s.routed && !s.tunnel {
		s.startRouteTimer()
	}
}

// Reset is the codec's word that the client, or the connection to it, is gone.
func (s *Stream) Reset(r message.Reason) {
	if s.over {
		return
	}
	s.received, s.sent = true, true
	switch r {
	case message.ProtocolError:
		s.Flags |= FlagDPE
		s.setDetails("downstream_protocol_error")
	case message.RemoteReset:
		s.Flags |= FlagDR
		s.setDetails("downstream_remote_reset")
	default:
		s.Flags |= FlagDC
		s.setDetails("downstream_remote_disconnect")
	}
	s.Manager.Stats.At(s.worker.ID()).Inc(StatRqRxReset)
	s.finish()
}

// Drained is the codec's word that the client takes bytes again.
func (s *Stream) Drained() {
	if !s.over && s.try.live && s.try.stopped {
		s.try.stopped = false
		s.try.up.Resume()
	}
}

// stop holds the client's body back; start lets it come again.
func (s *Stream) stop() {
	if !s.stopped && !s.received {
		s.stopped = true
		s.down.Pause()
	}
}

func (s *Stream) start() {
	if s.stopped && !s.over {
		s.stopped = false
		s.down.Resume()
	}
}

func (s *Stream) setDetails(d string) {
	if s.Details == "" {
		s.Details = d
	}
}

// finish ends the stream, once, whatever way it ended.
func (s *Stream) finish() {
	if s.over {
		return
	}
	s.over = true
	s.idleTimer.Stop()
	s.requestTimer.Stop()
	s.maxTimer.Stop()
	s.routeTimer.Stop()
	s.retryTimer.Stop()
	s.try.abandon()
	s.doneRetrying()
	s.Duration = s.since()
	if s.Manager == nil {
		return // reset before there was a head
	}
	for i, f := range s.Manager.Filters {
		if d, ok := f.(DoneFilter); ok && i <= s.at {
			d.Done(s, i)
		}
	}
	st := s.Manager.Stats.At(s.worker.ID())
	st.Add(StatRqActive, -1)
	st.Inc(StatRqCompleted)
	st.Observe(StatRqTime, float64(s.Duration)/1e6)
	if s.Status >= 100 && s.Status < 600 {
		st.Inc(StatRq1xx + s.Status/100 - 1)
	}
	for _, l := range s.Manager.AccessLogs {
		l.Log(s)
	}
	if s.Span != nil {
		s.Span.Finish(s)
	}
	s.held.Release()
	if !s.received && s.Protocol != ProtocolHTTP2 {
		// The response is complete and the request is not: the rest of an
		// HTTP/1 request would have to be read to the end, however long,
		// so the connection ends instead. HTTP/2's codec resets the stream.
		s.down.Reset(message.LocalReset)
	}
	s.owner.StreamDone(s)
	// A stream that the codec, or a goroutine of a paused filter, may still
	// call is left to the garbage collector.
	if s.received && s.sent && !s.paused {
		s.factory.recycle(s)
	}
}
