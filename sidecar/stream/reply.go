package stream

import (
	"slices"
	"strconv"

	"google.golang.org/grpc/codes"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream/chain"
)

// fail ends the request with a failure: as a response where none was begun,
// by resetting the stream where one was.
func (s *Stream) fail(k failure.Kind) {
	f := failure.Of(k)
	s.failAs(f, f.Status, f.Details)
}

func (s *Stream) failAs(f *failure.Failure, status int, details string) {
	s.answer(reply{status: status, grpc: f.GRPC, body: f.Body, details: details, flags: f.Flags, failure: f})
}

// resetDown ends a response that was begun and cannot be completed.
func (s *Stream) resetDown(r message.Reason) {
	if s.over {
		return
	}
	// The codec delivers nothing after a reset.
	s.request, s.response = requestReset, responseReset
	s.Manager.Stats.At(s.worker.ID()).Inc(StatRqTxReset)
	s.down.Reset(r)
	s.finish()
}

// Reply answers the request locally, for a filter: details and flags go to the
// log. The verdict is for the filter to return.
func (s *Stream) Reply(status int, body, details string, flags failure.Flags, headers ...route.HeaderValue) Verdict {
	s.answer(reply{status: status, grpc: failure.GRPCStatus(status), body: body, details: details, flags: flags, headers: headers})
	return Answered
}

// reply is what a request is answered with locally.
type reply struct {
	status  int
	grpc    codes.Code // for a client that speaks gRPC
	body    string
	details string
	flags   failure.Flags
	headers []route.HeaderValue
	failure *failure.Failure // nil for a filter's reply
}

// answer answers the request locally. A reply passes the response's filters,
// unless they have seen another response's head before. Where a response went
// to the client already, the stream is reset instead.
func (s *Stream) answer(r reply) {
	if s.over {
		return
	}
	s.Flags |= r.flags
	if s.response >= responseOpen {
		s.Details = r.details
		s.resetDown(message.LocalReset)
		return
	}
	s.Details = r.details
	s.answered = true
	s.routeTimer.Stop()
	s.retryTimer.Stop()
	s.try.Cancel()
	s.filters.Cut(chain.Request)
	if s.response == responseFilters {
		s.direct = true
		s.filters.Cut(chain.Response)
	}
	s.response = responseFilters
	s.replyWith(s.writeReply(&r))
}

// writeReply makes s.Response the head of a reply, and returns its body.
func (s *Stream) writeReply(r *reply) (body string) {
	h := &s.Response
	h.Reset()
	if body = r.body; message.IsGRPC(&s.Request) {
		// A gRPC client reads trailers, not the status or the body.
		h.AddNameString(message.Status, "200")
		h.AddNameString(message.ContentType, "application/grpc")
		h.SetNameInt(message.GRPCStatus, int64(r.grpc))
		if body != "" {
			h.SetName(message.GRPCMessage, percentEncode(s.factory.scratch[:0], body))
		}
		body = ""
	} else {
		h.SetStatus(r.status)
		if body != "" {
			h.SetNameInt(message.ContentLength, int64(len(body)))
			h.AddNameString(message.ContentType, "text/plain")
		}
	}
	if r.failure != nil {
		for _, v := range r.failure.Headers {
			h.Set(v[0], v[1])
		}
	}
	for _, v := range r.headers {
		h.Set(v.Name, v.Value)
	}
	s.mutateResponse()
	if s.Request.Is(message.Method, "HEAD") {
		return ""
	}
	return body
}

// replyWith sends s.Response and its body on its way.
func (s *Stream) replyWith(body string) {
	if s.direct {
		if s.sendHead(body == ""); body != "" {
			s.sendData([]byte(body), true)
		}
		return
	}
	epoch := s.filters.Epoch(chain.Response)
	s.filters.Head(chain.Response, body == "")
	if body != "" && !s.over && s.filters.Epoch(chain.Response) == epoch {
		s.filters.Data(chain.Response, []byte(body), true)
	}
}

// percentEncode writes a grpc-message (gRPC over HTTP/2, "Percent-Encoded").
func percentEncode(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c >= 0x20 && c <= 0x7e && c != '%' {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
		}
	}
	return dst
}

// redirect answers with a redirection (RedirectAction).
func (s *Stream) redirect(r *route.Redirect) {
	h := &s.Request
	b := s.factory.scratch[:0]
	scheme := string(h.Get(message.Scheme))
	old := scheme
	switch {
	case r.HTTPS:
		scheme = "https"
	case r.Scheme != "":
		scheme = r.Scheme
	}
	b = append(append(b, scheme...), "://"...)
	host, port := splitPort(h.Get(message.Authority))
	if r.Host != "" {
		b = append(b, r.Host...)
	} else {
		b = append(b, host...)
	}
	switch {
	case r.Port != 0:
		b = strconv.AppendUint(append(b, ':'), uint64(r.Port), 10)
	case r.Host == "" && len(port) > 0 && (scheme == old || !standardPort(old, port)):
		b = append(append(b, ':'), port...)
	}
	path := h.Get(message.Path)
	bare, query := cutQuery(path)
	at := len(b)
	switch {
	case r.Path != "":
		b = append(b, r.Path...)
		if hasQuery(r.Path) {
			query = nil
		}
	case r.Rewrite.HasPrefix:
		b = append(append(b, r.Rewrite.Prefix...), bare[min(s.Route.Matched.PrefixLen, len(bare)):]...)
	case r.Rewrite.Regex != nil:
		var ok bool
		if b, ok = r.Rewrite.Regex.Replace(b, bare); !ok {
			s.fail(failure.TooLongToMatch)
			return
		}
	default:
		b = append(b, bare...)
	}
	if len(b) == at || b[at] != '/' {
		// Or the path would go on with the host's name, and lead elsewhere.
		b = slices.Insert(b, at, '/')
	}
	if !r.StripQuery {
		b = append(b, query...)
	}
	s.factory.scratch = b[:0]
	s.Manager.Stats.At(s.worker.ID()).Inc(StatRedirect)
	s.Reply(r.Status, "", "direct_response", 0, route.HeaderValue{Name: "location", Value: string(b)})
}

func standardPort(scheme string, port []byte) bool {
	return scheme == "http" && string(port) == "80" || scheme == "https" && string(port) == "443"
}

func hasQuery(p string) bool {
	for i := 0; i < len(p); i++ {
		if p[i] == '?' {
			return true
		}
	}
	return false
}

// cutQuery splits a path before its "?".
func cutQuery(p []byte) (path, query []byte) {
	for i, c := range p {
		if c == '?' {
			return p[:i], p[i:]
		}
	}
	return p, nil
}

// splitPort splits an authority before the colon of its port.
func splitPort(a []byte) (host, port []byte) {
	for i := len(a) - 1; i >= 0; i-- {
		switch a[i] {
		case ':':
			return a[:i], a[i+1:]
		case ']':
			return a, nil
		}
	}
	return a, nil
}
