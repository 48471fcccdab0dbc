package stream

import (
	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
	"sallyport/sidecar/stream/chain"
	"sallyport/sidecar/stream/exchange"
	"sallyport/sidecar/upstream"
)

// router is a Stream as the user of the exchange with its cluster.
type router Stream

// attempt chooses a host and sends the request to it.
func (s *Stream) attempt() {
	if s.over || s.response != responseNone {
		return
	}
	host := s.cluster.Host(&s.pick)
	if host == nil {
		s.fail(failure.NoHealthyUpstream)
		return
	}
	s.Host = host
	s.Attempts++
	if s.Route.IncludeAttemptCount {
		s.Request.SetNameInt(message.XEnvoyAttemptCount, int64(s.Attempts))
	}
	o := exchange.Options{Priority: s.forward.Priority, Downstream: s.Protocol, Source: s.Conn.Source, PerTry: s.perTry}
	if s.forward.Retry != nil {
		o.PerTryIdle = s.forward.Retry.PerTryIdle
	}
	s.try.Start(host, &s.Request, &s.body, o)
}

// Ready notes the connection, which may have a say in the head.
func (r *router) Ready(x *exchange.Exchange) {
	s, c := (*Stream)(r), x.Client()
	s.UpstreamLocal = c.Conn().LocalAddr()
	s.UpstreamProto = c.Version()
	s.UpstreamTLS = c.Conn().TLS() != nil
	if s.forward.AutoHost && c.Host().Hostname() != "" {
		s.rewriteHost([]byte(c.Host().Hostname()))
	}
	if s.Timings.UpstreamStart < 0 {
		s.Timings.UpstreamStart = s.since()
	}
}

// Sent notes when the request was sent as a whole.
func (r *router) Sent(*exchange.Exchange) {
	s := (*Stream)(r)
	s.Timings.UpstreamEnd = s.since()
}

// Informational passes a 1xx head on. 100 is the proxy's own affair unless told
// otherwise (RFC 9110 §15.2). A head that the client has no room for is left
// out: it is advice, and must not pile up.
func (r *router) Informational(_ *exchange.Exchange, h *message.Head) {
	s := (*Stream)(r)
	defer s.guard()
	s.active = s.worker.Now()
	if (h.StatusCode() != 100 || s.Manager.Proxy100) && s.response == responseNone && !s.down.Full() {
		s.down.Head(h, false)
	}
}

// Head takes the response's head: it is dropped for a retry, or the client's.
func (r *router) Head(x *exchange.Exchange, h *message.Head, end bool) {
	s := (*Stream)(r)
	defer s.guard()
	s.active = s.worker.Now()
	if s.Timings.ResponseStart < 0 {
		s.Timings.ResponseStart = s.since()
	}
	status := h.StatusCode()
	if s.retryResponse(h, status) {
		return
	}
	if end {
		s.Timings.ResponseEnd = s.since()
	}
	if status == 101 || status < 300 && s.Request.Is(message.Method, "CONNECT") {
		s.tunnel = true
		s.routeTimer.Stop()
		s.Manager.Stats.At(s.worker.ID()).Inc(StatRqUpgrades)
	}
	s.respond(h, end)
}

// Data takes a piece of the response's body.
func (r *router) Data(_ *exchange.Exchange, p []byte, end bool) {
	s := (*Stream)(r)
	defer s.guard()
	s.active = s.worker.Now()
	if end {
		s.Timings.ResponseEnd = s.since()
	}
	s.filters.Data(chain.Response, p, end)
}

// Trailers takes the response's trailers.
func (r *router) Trailers(_ *exchange.Exchange, h *message.Head) {
	s := (*Stream)(r)
	defer s.guard()
	s.Timings.ResponseEnd = s.since()
	s.filters.Trailers(chain.Response, h)
}

// Done is the end of an attempt: of the stream too, or a retry, or a failure.
func (r *router) Done(_ *exchange.Exchange, o exchange.Outcome) {
	s := (*Stream)(r)
	if s.over {
		return
	}
	defer s.guard()
	if o.Text != "" {
		s.UpstreamFailure = o.Text
	}
	switch {
	case o.Complete():
		if s.retrying {
			s.doneRetrying()
			s.cluster.Stats.At(s.worker.ID()).Inc(upstream.StatRqRetrySuccess)
		}
		s.settle()
	case s.response == responseWhole:
		s.finish()
	case o.Timeout != 0:
		if s.response != responseNone || !s.retryTimeout() {
			s.fail(o.Failure())
		}
	case s.response == responseOpen:
		f := failure.Of(o.Failure())
		s.Flags |= f.Flags
		s.Details = f.AfterHead()
		s.resetDown(message.RemoteReset)
	case s.response == responseNone && s.retryReset(o.Reason):
	default:
		s.fail(o.Failure())
	}
}
