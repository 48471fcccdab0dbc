package stream

import (
	"sallyport/sidecar/message"
)

// respond commits to the upstream's response: it goes through the mutations
// and the filters to the client.
func (s *Stream) respond(h *message.Head, end bool) {
	s.Response, *h = *h, s.Response
	r := &s.Response
	s.Status = r.StatusCode()
	s.Details = "via_upstream"
	if !s.Manager.SuppressEnvoyHeaders {
		r.SetNameInt(message.XEnvoyUpstreamServiceTime, s.worker.Now().Sub(s.try.began).Milliseconds())
	}
	if s.Route.IncludeAttemptCountResponse {
		r.SetNameInt(message.XEnvoyAttemptCount, int64(s.Attempts))
	}
	if len(s.setCookie) > 0 {
		r.AddName(message.SetCookie, s.setCookie)
	}
	s.sendHead(end)
}

// sendHead sends s.Response, an upstream's or a local one, through the
// response filters to the client.
func (s *Stream) sendHead(end bool) {
	h := &s.Response
	if s.Route != nil {
		if s.weighted != nil {
			s.mutate(h, s.weighted.ResponseHeaders)
		}
		s.mutate(h, s.Route.ResponseHeaders)
	}
	for i := min(s.at, len(s.Manager.Filters)-1); i >= 0; i-- {
		if f, ok := s.Manager.Filters[i].(ResponseHeadFilter); ok {
			f.ResponseHead(s, i, h, end)
		}
	}
	switch s.Manager.ServerHeader {
	case ServerOverwrite:
		h.SetNameString(message.Server, s.Manager.ServerName)
	case ServerAppendIfAbsent:
		if !h.Has(message.Server) {
			h.SetNameString(message.Server, s.Manager.ServerName)
		}
	}
	if !h.Has(message.Date) {
		h.AddName(message.Date, s.factory.Date())
	}
	if s.Manager.Via != "" {
		h.AddNameString(message.Via, s.Manager.Via)
	}
	if s.Manager.RequestIDResponse {
		if id := s.Request.Get(message.XRequestID); id != nil {
			h.SetName(message.XRequestID, id)
		}
	}
	s.replied = true
	if !s.received && !s.tunnel && s.Protocol != ProtocolHTTP2 {
		// The client should not have to find out that nobody waits for the
		// rest of its request on this connection.
		s.owner.Last()
	}
	s.down.Head(h, end)
	if end {
		s.responseSent()
	} else {
		// A client that the request's body is no longer wanted from may
		// still be held back; it must be able to end its request.
		if !s.try.live {
			s.start()
		}
	}
}

// responseSent notes that the whole response was given to the codec.
func (s *Stream) responseSent() {
	if s.over {
		return
	}
	s.sent = true
	if !s.try.live || s.try.complete {
		if s.try.live {
			return // finished() follows
		}
		s.finish()
	}
}
