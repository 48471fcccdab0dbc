package stream

import (
	"strconv"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
)

// failure is a way in which a request can end without an upstream's response.
// This table is the one place that maps each to what the client sees, the
// response flag, and the reason in logs; bodies are constants, so that nothing
// of an internal error ever reaches a client.
type failure struct {
	status  int
	flags   Flags
	details string
	body    string
	// headers are added to the response.
	headers []route.HeaderValue
}

var (
	failMissingHost = &failure{400, FlagDPE, "missing_host_header", "Bad Request", nil}
	failPath        = &failure{400, FlagDPE, "path_normalization_failed", "Bad Request", nil}
	failFragment    = &failure{400, FlagDPE, "path_has_fragment", "Bad Request", nil}
	failUnderscore  = &failure{400, FlagDPE, "unexpected_underscore", "Bad Request", nil}
	failNoRoute     = &failure{404, FlagNR, "route_not_found", "", nil}
	failUpgrade     = &failure{403, 0, "upgrade_failed", "", nil}
	failIdle        = &failure{408, FlagSI, "stream_idle_timeout", "stream timeout", nil}
	failRequestTime = &failure{408, FlagDT, "request_overall_timeout", "request timeout", nil}
	failMaxDuration = &failure{408, FlagDT, "max_duration_timeout", "downstream duration timeout", nil}
	failRouteTime   = &failure{504, FlagUT, "response_timeout", "upstream request timeout", nil}
	failPerTry      = &failure{504, FlagUT, "upstream_per_try_timeout", "upstream request timeout", nil}
	failNoHealthy   = &failure{503, FlagUH, "no_healthy_upstream", "no healthy upstream", nil}
	failDrop        = &failure{503, 0, "drop_overload", "drop overload", []route.HeaderValue{{Name: "x-envoy-drop-overload", Value: "true"}}}
	failOverflow    = &failure{503, FlagUO, "upstream_reset_before_response_started{overflow}",
		"upstream connect error or disconnect/reset before headers. reset reason: overflow", []route.HeaderValue{{Name: "x-envoy-overloaded", Value: "true"}}}

	// failAnswered says that the request was already answered.
	failAnswered = &failure{}
)

// resetFailures maps how an upstream attempt ended to the failure.
var resetFailures = [...]failure{
	message.RemoteReset:      {503, FlagUR, "upstream_reset_before_response_started{remote_reset}", resetBody("remote reset"), nil},
	message.Refused:          {503, FlagUR, "upstream_reset_before_response_started{remote_refused_stream_reset}", resetBody("remote refused stream reset"), nil},
	message.ConnectionClosed: {503, FlagUC, "upstream_reset_before_response_started{connection_termination}", resetBody("connection termination"), nil},
	message.ConnectFailure:   {503, FlagUF, "upstream_reset_before_response_started{remote_connection_failure}", resetBody("remote connection failure"), nil},
	message.ConnectTimeout:   {503, FlagUF, "upstream_reset_before_response_started{connection_timeout}", resetBody("connection timeout"), nil},
	message.ProtocolError:    {502, FlagUPE, "upstream_reset_before_response_started{protocol_error}", resetBody("protocol error"), nil},
	message.LocalReset:       {503, FlagLR, "upstream_reset_before_response_started{local_reset}", resetBody("local reset"), nil},
	message.Overflow:         *failOverflow,
	message.TLSFailure:       {503, FlagUF, "upstream_reset_before_response_started{remote_connection_failure|TLS_error}", resetBody("remote connection failure"), nil},
}

func resetBody(reason string) string {
	return "upstream connect error or disconnect/reset before headers. reset reason: " + reason
}

// fail ends the request with a failure: as a response where none was begun,
// by resetting the stream where one was.
func (s *Stream) fail(f *failure) {
	if s.over || f == failAnswered {
		return
	}
	if f == failMaxDuration && s.received {
		// The request is whole: it is not the client who is late.
		s.failAs(f, 504)
		return
	}
	s.failAs(f, f.status)
}

func (s *Stream) failAs(f *failure, status int) {
	s.Flags |= f.flags
	if s.replied {
		s.setDetails(f.details)
		s.resetDown(message.LocalReset)
		return
	}
	s.Reply(status, f.body, f.details, 0, f.headers...)
}

// resetDown ends a response that was begun and cannot be completed.
func (s *Stream) resetDown(r message.Reason) {
	if s.over {
		return
	}
	s.sent = true
	s.received = true // the codec delivers nothing after a reset
	s.Manager.Stats.At(s.worker.ID()).Inc(StatRqTxReset)
	s.down.Reset(r)
	s.finish()
}

// Reply answers the request locally. It is how filters refuse a request and
// how failures become responses; details and flags go to the log. Where a
// response was begun already, the stream is reset instead.
func (s *Stream) Reply(status int, body, details string, flags Flags, headers ...route.HeaderValue) {
	if s.over {
		return
	}
	s.Flags |= flags
	if s.replied {
		s.setDetails(details)
		s.resetDown(message.LocalReset)
		return
	}
	s.Details = details
	s.try.abandon()
	h := &s.Response
	h.Reset()
	head := s.Request.Is(message.Method, "HEAD")
	if grpcCode, ok := s.grpc(status); ok {
		// A gRPC client reads trailers, not the status or the body.
		h.AddNameString(message.Status, "200")
		h.AddNameString(message.ContentType, "application/grpc")
		h.SetNameInt(message.GRPCStatus, int64(grpcCode))
		if body != "" {
			h.SetName(message.GRPCMessage, percentEncode(s.factory.scratch[:0], body))
		}
		body = ""
	} else {
		h.SetStatus(status)
		if body != "" {
			h.SetNameInt(message.ContentLength, int64(len(body)))
			h.AddNameString(message.ContentType, "text/plain")
		}
	}
	for _, v := range headers {
		h.Set(v.Name, v.Value)
	}
	s.Status = status
	s.sendHead(body == "" || head)
	if body != "" && !head && !s.over {
		s.Sent += uint64(len(body))
		s.down.Data([]byte(body), true)
		s.responseSent()
	}
}

// grpc says whether the client speaks gRPC, and the gRPC status for an HTTP
// status (https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md).
func (s *Stream) grpc(status int) (code int, ok bool) {
	ct := s.Request.Get(message.ContentType)
	const grpc = "application/grpc"
	if len(ct) < len(grpc) || string(ct[:len(grpc)]) != grpc || len(ct) > len(grpc) && ct[len(grpc)] != '+' && ct[len(grpc)] != ';' {
		return 0, false
	}
	switch status {
	case 400:
		return 13, true
	case 401:
		return 16, true
	case 403:
		return 7, true
	case 404:
		return 12, true
	case 429, 502, 503, 504:
		return 14, true
	}
	return 2, true
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
	switch {
	case r.Path != "":
		b = append(b, r.Path...)
		if hasQuery(r.Path) {
			query = nil
		}
	case r.Rewrite.HasPrefix:
		b = append(append(b, r.Rewrite.Prefix...), bare[min(s.Route.Matched.PrefixLen, len(bare)):]...)
	case r.Rewrite.Regex != nil:
		b = r.Rewrite.Regex.Replace(b, bare)
	default:
		b = append(b, bare...)
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
