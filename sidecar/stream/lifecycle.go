package stream

import (
	"time"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/failure"
	"sallyport/sidecar/invariants"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream/chain"
	"sallyport/sidecar/stream/exchange"
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
//	filters         in configured order; each may answer, hold, change or replace (package chain)
//	router          the cluster, header mutations and rewrites: after the filters, since they may
//	                have changed what the route is chosen by (Reroute)
//	balance         a host; hash policies see the head as the client sent it plus what filters changed
//	exchange        a connection under the circuit breakers, the request on it, the response (package
//	                exchange); a try that fails comes back to the router, which retries or answers
//	response        commit: mutations, filters in reverse order, the fields that are the proxy's own
//	finish          access log, span, statistics, the stream goes back to its factory

// Owner is the connection a stream came on, as the stream needs it.
type Owner interface {
	// Manager is the connection manager in force now.
	Manager() *Manager
	// StreamDone tells that the stream is over.
	StreamDone(s *Stream)
	// Panicked ends the connection after a panic in its codec.
	Panicked(v any)
}

// requestPhase is where the request of a stream stands.
type requestPhase uint8

const (
	requestNone  requestPhase = iota // no head yet
	requestOpen                      // content or trailers are to come
	requestWhole                     // all of it is here
	requestReset                     // the codec says nothing more
)

// responsePhase is where the response of a stream stands.
type responsePhase uint8

const (
	responseNone    responsePhase = iota
	responseFilters               // the head is with the filters
	responseOpen                  // the head went to the client
	responseWhole                 // the codec has all of it
	responseReset                 // or will not get the rest
)

// Reasons for which the client's content is held back.
const (
	heldByFilters uint8 = 1 << iota
	heldByBody
)

// Stream is one request and its response. Owned by the worker of its
// downstream connection.
type Stream struct {
	Info

	factory *Factory
	owner   Owner
	down    codec.Sender
	worker  *loop.Worker

	filters   chain.Run[*Stream]
	overrides []route.Override // of the route, or of the cluster that it chose

	request  requestPhase
	response responsePhase
	answered bool            // by a local reply: the rest of the request is of no interest
	direct   bool            // the local reply takes the place of a response that filters saw: they see no other
	tunnel   bool            // a 101, or a 2xx to CONNECT, was sent on
	held     uint8           // why the client's content is held back
	crashed  bool            // a panic ended the stream
	over     bool            // finish was called
	once     invariants.Once // from New to finish

	// The router's part.
	asked     message.Snapshot // the head as the filters let it pass
	body      exchange.Body
	try       exchange.Exchange
	pick      upstream.Pick
	avoid     [4]*upstream.Host
	cluster   *upstream.Cluster
	forward   *route.Forward
	weighted  *route.WeightedCluster
	setCookie []byte
	timeout   time.Duration // of the route, or of grpc-timeout where deadline
	deadline  bool
	perTry    time.Duration
	retryOn   route.RetryOn
	retries   uint32 // left
	retrying  bool   // a retry is counted in the breaker
	random    uint64

	active time.Time // last activity, for the idle timeout

	next, prev *Stream // of its owner's List

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

// guard ends the stream, and not the process, where what it calls panics.
func (s *Stream) guard() {
	if !s.worker.Survives() {
		return
	}
	if v := recover(); v != nil {
		s.Panicked(v)
	}
}

// Head takes the request's head from the codec.
func (s *Stream) Head(h *message.Head, end bool) {
	s.worker.Owned()
	if s.over || s.request != requestNone {
		return
	}
	defer s.guard()
	// By exchange: the codec resets the Head that it gets back.
	s.Request, *h = *h, s.Request
	s.request = requestOpen
	if end {
		s.request = requestWhole
	}
	s.body.HeadOnly = end
	s.begin()
	if f := s.prepare(); f != failure.None {
		s.fail(f)
		return
	} else if s.answered {
		return
	}
	s.expect()
	s.match()
	if t := s.Manager.Tracer; t != nil {
		s.Span = t.Start(s)
	}
	s.filters.Head(chain.Request, end)
}

// expect answers a client that waits for 100 before it sends its content
// (RFC 9110 §10.1.1): the proxy takes the content in any case, so the word is
// its own to give, and the upstream is not asked.
func (s *Stream) expect() {
	if s.Manager.Proxy100 || !s.Request.Has(message.Expect) || !s.Request.HasElement(message.Expect, "100-continue") {
		return
	}
	s.Request.RemoveName(message.Expect)
	if s.request == requestWhole || s.Protocol == message.HTTP10 {
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
	if s.request == requestWhole {
		s.Timings.RequestEnd = 0
	}
	s.filters.Begin(m.chain(), s)
	st := m.Stats.At(s.worker.ID())
	st.Inc(StatRqTotal)
	st.Add(StatRqActive, 1)
	if s.Protocol == message.HTTP2 {
		st.Inc(StatRqHTTP2)
	} else {
		st.Inc(StatRqHTTP1)
	}
	if m.StreamIdle > 0 {
		s.worker.Schedule(&s.idleTimer, m.StreamIdle)
	}
	if m.RequestTime > 0 && s.request != requestWhole {
		s.worker.Schedule(&s.requestTimer, m.RequestTime)
	}
	if m.MaxStream > 0 {
		s.worker.Schedule(&s.maxTimer, m.MaxStream)
	}
}

// Data takes a piece of the request's body from the codec.
func (s *Stream) Data(p []byte, end bool) {
	s.worker.Owned()
	if s.over || s.request != requestOpen {
		return
	}
	defer s.guard()
	s.active = s.worker.Now()
	s.Received += uint64(len(p))
	if end {
		s.requestReceived()
	}
	if !s.answered {
		s.filters.Data(chain.Request, p, end)
	}
}

// Trailers takes the request's trailers from the codec.
func (s *Stream) Trailers(h *message.Head) {
	s.worker.Owned()
	if s.over || s.request != requestOpen {
		return
	}
	defer s.guard()
	s.active = s.worker.Now()
	s.requestReceived()
	if !s.answered {
		s.filters.Trailers(chain.Request, h)
	}
}

// requestReceived notes that the whole request is here.
func (s *Stream) requestReceived() {
	s.request = requestWhole
	s.Timings.RequestEnd = s.since()
	s.requestTimer.Stop()
	if s.cluster != nil && !s.tunnel {
		s.startRouteTimer()
	}
}

// Reset is the codec's word that the client, or the connection to it, is gone.
func (s *Stream) Reset(r message.Reason) {
	if s.over {
		return
	}
	defer s.guard()
	unanswered := s.response < responseOpen
	s.request, s.response = requestReset, responseReset
	switch r {
	case message.ProtocolError, message.HeaderTooLarge:
		s.brokenBy(r, unanswered)
	case message.RemoteReset:
		s.Flags |= failure.DR
		s.Details = "downstream_remote_reset"
	case message.LocalReset: // the codec cannot send what it was given, or the client does not take it
		s.Flags |= failure.LR
		s.Details = "local_reset"
	default:
		s.Flags |= failure.DC
		s.Details = "downstream_remote_disconnect"
	}
	if s.Manager != nil {
		s.Manager.Stats.At(s.worker.ID()).Inc(StatRqRxReset)
	}
	s.finish()
}

// brokenBy notes that the rest of the request was wrong. HTTP/1's codec answers that where nothing was answered.
func (s *Stream) brokenBy(r message.Reason, unanswered bool) {
	s.Flags |= failure.DPE
	if !unanswered || s.Protocol.Multiplexed() {
		s.Details = "downstream_protocol_error"
		return
	}
	k := failure.BadRequest
	if r == message.HeaderTooLarge {
		k = failure.HeadTooLarge
	}
	s.Status, s.Details = failure.Of(k).Status, failure.Of(k).Details
}

// Drained is the codec's word that the client takes bytes again.
func (s *Stream) Drained() {
	if s.over || s.filters.Throttled(chain.Response) {
		return
	}
	defer s.guard()
	s.try.Resume()
}

// hold keeps the client's content back for a reason, and release takes the
// reason away. When the request is whole there is nothing to keep back.
func (s *Stream) hold(why uint8) {
	if s.held == 0 && s.request == requestOpen {
		s.down.Pause()
		s.held = why
	} else if s.held != 0 {
		s.held |= why
	}
}

func (s *Stream) release(why uint8) {
	if s.held&why == 0 {
		return
	}
	if s.held &^= why; s.held == 0 && !s.over {
		s.down.Resume()
	}
}

// settle ends a stream whose response is complete. What still comes from the
// upstream, where a filter has ended the response, is of no use to anyone; and what
// stood for the stream in the codec may be another request's soon.
func (s *Stream) settle() {
	if s.response == responseWhole && !(s.try.Live() && s.try.Answered()) {
		s.finish()
	}
}

// finish ends the stream, once, whatever way it ended.
func (s *Stream) finish() {
	if s.over {
		return
	}
	s.over = true
	s.once.Finish("a stream")
	s.idleTimer.Stop()
	s.requestTimer.Stop()
	s.maxTimer.Stop()
	s.routeTimer.Stop()
	s.retryTimer.Stop()
	s.try.Cancel()
	s.doneRetrying()
	s.Duration = s.since()
	if s.Manager != nil { // else it was reset before there was a head
		s.filters.End()
		s.conclude()
	}
	s.body.Clear()
	if s.request == requestOpen && !s.Protocol.Multiplexed() {
		// The response is complete and the request is not: the rest of an
		// HTTP/1 request would have to be read to the end, however long,
		// so the connection ends instead. HTTP/2's codec resets the stream.
		s.down.Reset(message.LocalReset)
	}
	s.owner.StreamDone(s)
	// A stream that the codec may still call is left to the garbage collector.
	if s.request > requestOpen && s.response >= responseWhole {
		s.factory.recycle(s)
	}
}

// conclude tells everybody what became of the stream.
func (s *Stream) conclude() {
	defer s.guard()
	s.filters.Done()
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
}
