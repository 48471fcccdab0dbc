// Package jwtauthn is envoy.filters.http.jwt_authn: a request must carry JSON
// Web Tokens that its route's rule asks for. Keys come with the configuration
// (local_jwks). Signatures are verified once for each token and then
// remembered; the few algorithms that take long are verified on a goroutine
// while the request pauses. Everything here fails closed.
package jwtauthn

import (
	"strings"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/filter"
	"sallyport/sidecar/message"
	"sallyport/sidecar/offload"
	"sallyport/sidecar/route"
	"sallyport/sidecar/route/regex"
	"sallyport/sidecar/stream"
)

// Filter is the compiled filter.
type Filter struct {
	name         string
	rules        []rule
	requirements map[string]*requirement // requirement_map
	known        string                  // their names, for the message about a wrong one
	bypass       bool                    // bypass_cors_preflight
	strip        bool                    // strip_failure_response
	// sanitize are the headers that only this filter may set.
	sanitize []string

	allowed, denied, bypassed filter.Counter
}

// rule is a compiled RequirementRule.
type rule struct {
	match route.Matcher
	needs *requirement // nil: nothing
}

// override is a compiled PerRouteConfig.
type override struct {
	disabled bool
	name     string
}

// scratch is the key of the worker's evaluation, which all requests use in turn.
type scratch struct{}

func newEvaluation() any { return &evaluation{} }

// Name is the filter's name in the configuration.
func (f *Filter) Name() string { return f.name }

// RequestHead checks the request's tokens.
func (f *Filter) RequestHead(c stream.Context, h *message.Head, _ bool) stream.Verdict {
	s := c.Stream
	for _, n := range f.sanitize {
		h.Remove(n)
	}
	if f.bypass && isPreflight(h) {
		f.bypassed.Inc()
		return stream.Continue
	}
	need, wrong, known := f.requirement(c, h)
	switch {
	case !known:
		f.denied.Inc()
		return s.Reply(414, "URI Too Long", "jwt_authn_access_denied{rule_undecided}", 0)
	case wrong != "":
		f.denied.Inc()
		return s.Reply(403, "Failed JWT authentication: Wrong requirement_name: "+wrong+". It should be one of ["+f.known+"]", "jwt_authn_access_denied{wrong_requirement_name}", 0)
	case need == nil:
		f.allowed.Inc()
		return stream.Continue
	}
	e := s.Worker().Local(scratch{}, newEvaluation).(*evaluation)
	e.begin(h, s.Now())
	st := need.evaluate(e)
	if st != pending {
		return f.finish(s, h, e, st)
	}
	return f.verifyLater(c, need, e.waiting)
}

// requirement finds what the request needs; wrong is the name of a
// requirement that the route asks for and that there is not. It is not known
// where it would take too long to find out which rule matches.
func (f *Filter) requirement(c stream.Context, h *message.Head) (need *requirement, wrong string, known bool) {
	if o, is := c.Override().(*override); is {
		if o.disabled {
			return nil, "", true
		}
		if need = f.requirements[o.name]; need == nil {
			return nil, o.name, true
		}
		return need, "", true
	}
	s := c.Stream
	info := route.MatchInfo{TLS: s.Conn.TLS != nil, ClientCert: s.Conn.Peer != nil, Validated: s.Conn.Peer != nil}
	var w regex.Budget
	for i := range f.rules {
		// Rules have no fractions, so no random number is needed.
		switch r := &f.rules[i]; r.match.Try(h, 0, info, &w) {
		case regex.Yes:
			return r.needs, "", true
		case regex.Unknown:
			return nil, "", false
		}
	}
	return nil, "", true
}

// verifyLater verifies signatures on a goroutine, and then goes on with the request.
func (f *Filter) verifyLater(c stream.Context, need *requirement, waiting []verdict) stream.Verdict {
	job := offload.Of(c.Stream.Worker()).New(c.Stream.Remote.Addr(), func() { find(waiting) })
	return c.Await(job, func(c stream.Context) stream.Verdict {
		s, h := c.Stream, &c.Stream.Request
		if job.Refused || job.Failed != nil {
			f.denied.Inc()
			return s.Reply(503, "", "jwt_authn_overloaded", failure.OM)
		}
		e := &evaluation{head: h, now: s.Now(), verified: waiting}
		if st := need.evaluate(e); st != pending {
			return f.finish(s, h, e, st)
		}
		// With requires_all a second token may only now come up for verification.
		return f.verifyLater(c, need, append(waiting, e.waiting...))
	})
}

// finish lets the request go on or refuses it.
func (f *Filter) finish(s *stream.Stream, h *message.Head, e *evaluation, st status) stream.Verdict {
	if st == ok {
		f.allowed.Inc()
		reroute := false
		for i := range e.accepted {
			reroute = e.accepted[i].apply(s, h) || reroute
		}
		if reroute {
			s.Reroute()
		}
		return stream.Continue
	}
	f.denied.Inc()
	code := 401
	if st == audienceNotAllowed {
		code = 403
	}
	body := texts[st]
	challenge := `Bearer realm="` + originalURI(h) + `"`
	if st != missing {
		challenge += `, error="invalid_token"`
	}
	if f.strip {
		body, challenge = "", "Bearer"
	}
	return s.Reply(code, body, details[st], 0, route.HeaderValue{Name: "www-authenticate", Value: challenge})
}

// maxURI bounds the URI in a challenge.
const maxURI = 256

// originalURI is what the client asked for, for the realm (RFC 6750 §3),
// without what would end the quoted string it stands in.
func originalURI(h *message.Head) string {
	path := h.Get(message.XEnvoyOriginalPath)
	if path == nil {
		path = h.Get(message.Path)
	}
	if len(path) > maxURI {
		path = path[:maxURI]
	}
	u := string(h.Get(message.Scheme)) + "://" + string(h.Get(message.Authority)) + string(path)
	if strings.ContainsAny(u, `"\`) {
		u = strings.NewReplacer(`"`, "%22", `\`, "%5C").Replace(u)
	}
	return u
}

// isPreflight says whether the request is a CORS preflight (Fetch §4.8).
func isPreflight(h *message.Head) bool {
	return h.Is(message.Method, "OPTIONS") && len(h.Get(message.Origin)) > 0 && len(h.Get(message.AccessControlRequestMethod)) > 0
}
