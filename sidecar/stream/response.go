package stream

import (
	"sallyport/sidecar/message"
	"sallyport/sidecar/stream/chain"
)

// respond commits to the upstream's response: it goes through the mutations
// and the filters to the client.
func (s *Stream) respond(h *message.Head, end bool) {
	s.Response, *h = *h, s.Response
	s.body.Commit()
	s.response = responseFilters
	r := &s.Response
	s.Status = r.StatusCode()
	s.Details = "via_upstream"
	if !s.Manager.SuppressEnvoyHeaders {
		r.SetNameInt(message.XEnvoyUpstreamServiceTime, s.worker.Now().Sub(s.try.Began()).Milliseconds())
	}
	if s.Route.IncludeAttemptCountResponse {
		r.SetNameInt(message.XEnvoyAttemptCount, int64(s.Attempts))
	}
	if len(s.setCookie) > 0 {
		r.AddName(message.SetCookie, s.setCookie)
	}
	s.mutateResponse()
	s.filters.Head(chain.Response, end)
}

// mutateResponse applies the route's header mutations, to a local reply too.
func (s *Stream) mutateResponse() {
	if s.Route == nil {
		return
	}
	if s.weighted != nil {
		s.mutate(&s.Response, s.weighted.ResponseHeaders)
	}
	s.mutate(&s.Response, s.Route.ResponseHeaders)
}

// sendHead sends s.Response, an upstream's or a local one, to the client.
func (s *Stream) sendHead(end bool) {
	h := &s.Response
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
	s.Status = h.StatusCode()
	s.response = responseOpen
	if end {
		s.response = responseWhole
	}
	s.down.Head(h, end)
	if end {
		s.settle()
	} else if s.answered && s.held != 0 {
		// A client that the rest of its request is not wanted from must be
		// able to end it.
		s.release(s.held)
	}
}

// sendData sends a piece of the response's body to the client.
func (s *Stream) sendData(p []byte, end bool) {
	if s.over || s.response != responseOpen {
		return
	}
	s.Sent += uint64(len(p))
	if end {
		s.response = responseWhole
	}
	s.down.Data(p, end)
	switch {
	case s.over:
	case end:
		s.settle()
	case s.down.Full():
		s.try.Pause()
	}
}

// sendTrailers ends the response with trailers.
func (s *Stream) sendTrailers(h *message.Head) {
	if s.over || s.response != responseOpen {
		return
	}
	s.ResponseTrailers.CopyFrom(h)
	s.response = responseWhole
	s.down.Trailers(h)
	s.settle()
}
