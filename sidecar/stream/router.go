package stream

import (
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/upstream"
)

// match finds the route in the table of this moment, so that a change is in
// force at the next request of an open connection.
func (s *Stream) match() {
	s.forward, s.weighted, s.Cluster = nil, nil, ""
	s.Route, s.overrides = s.routeOf(s.Manager, &s.Request)
	if s.Route == nil || s.Route.Forward == nil {
		return
	}
	s.forward = s.Route.Forward
	if s.weighted = s.choose(s.forward); s.weighted != nil {
		s.Cluster = s.weighted.Cluster.Name
	}
}

// routeOf finds the route of a head, and what it says of the filters.
func (s *Stream) routeOf(m *Manager, h *message.Head) (*route.Route, []route.Override) {
	t := m.Routes.Table()
	if t == nil {
		return nil, nil
	}
	known := s.Conn.Peer != nil // a certificate that was not verified ends the handshake
	r := t.Match(h, s.random, route.MatchInfo{TLS: s.Conn.TLS != nil, ClientCert: known, Validated: known, Internal: h.Has(message.XEnvoyInternal)})
	switch {
	case r == nil:
		return nil, nil
	case r.Forward == nil:
		return r, r.Overrides
	}
	if w := s.choose(r.Forward); w != nil {
		return r, w.Overrides
	}
	return r, r.Overrides
}

// choose picks one of the weighted clusters, nil where the cluster is named by a header.
func (s *Stream) choose(f *route.Forward) *route.WeightedCluster {
	if len(f.Clusters) == 1 {
		return &f.Clusters[0]
	}
	if f.TotalWeight == 0 {
		return nil
	}
	at := uint32(s.random>>20) % f.TotalWeight
	for i := range f.Clusters {
		w := &f.Clusters[i]
		if at < w.Weight {
			return w
		}
		at -= w.Weight
	}
	return nil
}

// Reroute matches the route again: a filter changed what it depends on.
func (s *Stream) Reroute() { s.match() }

// forwardRequest is the router: what happens to a request that every filter let pass.
func (s *Stream) forwardRequest() {
	r := s.Route
	s.asked.Take(&s.Request)
	st := s.Manager.Stats.At(s.worker.ID())
	switch {
	case r == nil:
		st.Inc(StatNoRoute)
		s.fail(failure.NoRoute)
		return
	case r == route.Undecided:
		s.fail(failure.TooLongToMatch)
		return
	case r.Redirect != nil:
		s.redirect(r.Redirect)
		return
	case r.Direct != nil:
		st.Inc(StatDirectResponse)
		s.Reply(r.Direct.Status, string(r.Direct.Body), "direct_response", 0)
		return
	}
	f := s.forward
	s.cluster = s.chooseCluster()
	if s.cluster == nil {
		st.Inc(StatNoCluster)
		k := failure.Of(failure.NoCluster)
		s.failAs(k, f.NotFoundStatus, k.Details)
		return
	}
	s.Cluster = s.cluster.Config.Name
	if !s.upgradeAllowed() {
		s.fail(failure.UpgradeRefused)
		return
	}
	if s.cluster.DropOverload() {
		s.fail(failure.DropOverload)
		return
	}
	s.pick = upstream.Pick{Worker: s.worker.ID(), Original: s.Conn.OriginalDst}
	if len(f.Hash) > 0 {
		s.hash(f.Hash)
	}
	s.body.Limit = min(limitOr(s.cluster.Config.BufferLimit), limitOr(s.Conn.BufferLimit))
	s.timeouts()
	s.retryPolicy()
	if !s.mutateRequest() {
		s.fail(failure.TooLongToMatch)
		return
	}
	if s.request == requestWhole || s.deadline {
		s.startRouteTimer()
	}
	s.attempt()
}

func (s *Stream) chooseCluster() *upstream.Cluster {
	f := s.forward
	if s.weighted != nil {
		return s.weighted.Cluster.Ref.(*upstream.Ref).Cluster()
	}
	if f.ClusterHeader != "" {
		if name := s.Request.Lookup(f.ClusterHeader); name != nil {
			return s.factory.clusters.Lookup(string(name))
		}
	}
	return nil
}

// upgradeAllowed says whether the upgrade that the request asks for, if it
// does, is configured: each protocol of the list, since the upstream is free to
// choose (RFC 9110 §7.8).
func (s *Stream) upgradeAllowed() bool {
	if s.Request.Is(message.Method, "CONNECT") {
		return s.upgradeTo([]byte("connect"))
	}
	if !s.Request.Has(message.Upgrade) {
		return true
	}
	for e := s.Request.Elements(message.Upgrade); e.Next(); {
		if !s.upgradeTo(e.Element) {
			return false
		}
	}
	return s.Request.CountElements(message.Upgrade) > 0
}

// upgradeTo says whether one protocol is configured; the route's word is the last.
func (s *Stream) upgradeTo(name []byte) (allowed bool) {
	for _, list := range [2][]route.Upgrade{s.Manager.Upgrades, s.forward.Upgrades} {
		for _, u := range list {
			if message.EqualFold(name, u.Protocol) {
				allowed = u.Enabled
			}
		}
	}
	return allowed
}

// hash combines the hash policies as Envoy does: each result is rotated into
// the ones before; a terminal policy that gave one ends the list.
func (s *Stream) hash(policies []route.HashPolicy) {
	for i := range policies {
		p := &policies[i]
		var h uint64
		ok := false
		switch p.Kind {
		case route.HashHeader:
			if v, has := s.Request.Joined(p.Name); has {
				h, ok = xxhash.Sum64(v), true
			}
		case route.HashCookie:
			v, has := route.Cookie(&s.Request, p.Name)
			if !has && p.TTL >= 0 {
				v, has = s.makeCookie(p), true
			}
			if has {
				h, ok = xxhash.Sum64(v), true
			}
		case route.HashSourceIP:
			var b [46]byte
			h, ok = xxhash.Sum64(s.Remote.Addr().AppendTo(b[:0])), true
		case route.HashQuery:
			if v, has := queryValue(s.Request.Get(message.Path), p.Name); has {
				h, ok = xxhash.Sum64(v), true
			}
		}
		if ok {
			old := uint64(0)
			if s.pick.HasHash {
				old = s.pick.Hash<<1 | s.pick.Hash>>63
			}
			s.pick.Hash, s.pick.HasHash = old^h, true
			if p.Terminal {
				return
			}
		}
	}
}

// makeCookie generates the session cookie that the response will set, and returns its value.
func (s *Stream) makeCookie(p *route.HashPolicy) []byte {
	b := append(append(s.setCookie[:0], p.Name...), '=')
	at := len(b)
	id := rand.Uint64()
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, hexDigits[id>>shift&15])
	}
	end := len(b)
	if p.TTL > 0 {
		b = strconv.AppendInt(append(b, "; Max-Age="...), int64(p.TTL/time.Second), 10)
	}
	if p.Path != "" {
		b = append(append(b, "; Path="...), p.Path...)
	}
	b = append(b, p.Attrs...)
	s.setCookie = append(b, "; HttpOnly"...)
	return s.setCookie[at:end]
}

// queryValue returns the first value of a query parameter.
func queryValue(path []byte, name string) ([]byte, bool) {
	_, q := cutQuery(path)
	for len(q) > 1 {
		q = q[1:] // the "?" or "&" before
		item := q
		for i, c := range q {
			if c == '&' {
				item = q[:i]
				break
			}
		}
		q = q[len(item):]
		if len(item) > len(name) && item[len(name)] == '=' && string(item[:len(name)]) == name {
			return item[len(name)+1:], true
		}
		if string(item) == name {
			return nil, true
		}
	}
	return nil, false
}

// timeouts decides the route's timeout and that of each try: the route's,
// the caller's x-envoy-upstream-rq-timeout-ms (removed by prepare where the
// caller is not to be trusted), or grpc-timeout.
func (s *Stream) timeouts() {
	f := s.forward
	s.timeout = f.Timeout
	if f.Retry != nil {
		s.perTry = f.Retry.PerTry
	}
	if f.HonorGRPCTimeout {
		if d, ok := grpcTimeout(s.Request.Get(message.GRPCTimeout)); ok {
			// The caller's deadline counts from when it made the call, also
			// while it still streams its request.
			s.timeout, s.deadline = d, true
			if f.MaxGRPCTimeout > 0 && (d == 0 || d > f.MaxGRPCTimeout) {
				s.timeout = f.MaxGRPCTimeout
			}
		}
	}
	if v := s.Request.Get(message.XEnvoyUpstreamRequestTimeout); v != nil {
		if ms, err := strconv.ParseUint(string(v), 10, 32); err == nil {
			s.timeout, s.deadline = time.Duration(ms)*time.Millisecond, false
		}
		s.Request.RemoveName(message.XEnvoyUpstreamRequestTimeout)
	}
	if s.timeout > 0 && s.perTry >= s.timeout {
		s.perTry = 0
	}
	if s.Request.Has(message.Upgrade) || s.Request.Is(message.Method, "CONNECT") {
		s.timeout, s.perTry, s.deadline = 0, 0, false // a tunnel lives as long as it is used
	}
	if !s.Manager.SuppressEnvoyHeaders && s.timeout > 0 {
		least := s.timeout
		if s.perTry > 0 {
			least = s.perTry
		}
		s.Request.SetNameInt(message.XEnvoyExpectedRequestTimeout, least.Milliseconds())
	}
}

// grpcTimeout parses a grpc-timeout field: at most eight digits and a unit.
func grpcTimeout(v []byte) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n := int64(0)
	for _, c := range v[:len(v)-1] {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	unit := time.Duration(0)
	switch v[len(v)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	}
	if unit == 0 || n > int64(1<<62/unit) {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

func (s *Stream) startRouteTimer() {
	if s.timeout > 0 && !s.routeTimer.Scheduled() {
		s.worker.Schedule(&s.routeTimer, s.timeout)
	}
}

func (s *Stream) routeTimeout() {
	defer s.guard()
	s.cluster.Stats.At(s.worker.ID()).Inc(upstream.StatRqTimeout)
	if s.try.Live() && !s.try.Responded() {
		// The host did not answer in time: outlier detection takes it as a 504.
		s.Host.Report(504)
	}
	s.fail(failure.RouteTimeout)
}

// mutateRequest writes the head as it goes upstream. It fails where the path
// is too long to be rewritten.
func (s *Stream) mutateRequest() bool {
	h, f, r := &s.Request, s.forward, s.Route
	if s.weighted != nil {
		s.mutate(h, s.weighted.RequestHeaders)
	}
	s.mutate(h, r.RequestHeaders)
	if !s.rewritePath() {
		return false
	}
	host := f.HostRewrite
	if s.weighted != nil && s.weighted.HostRewrite != "" {
		host = s.weighted.HostRewrite
	}
	switch {
	case host != "":
		s.rewriteHost([]byte(host))
	case f.HostHeader != "":
		if v := h.Lookup(f.HostHeader); len(v) > 0 {
			s.rewriteHost(append(s.factory.scratch[:0], v...))
		}
	}
	if s.Span != nil {
		s.Span.Inject(s)
	}
	return true
}

func (s *Stream) rewriteHost(host []byte) {
	h := &s.Request
	if s.forward.AppendXFHost && !h.Has(message.XForwardedHost) {
		h.SetName(message.XForwardedHost, append([]byte(nil), h.Get(message.Authority)...))
	}
	if !s.Manager.SuppressEnvoyHeaders && h.Lookup("x-envoy-original-host") == nil {
		h.Add([]byte("x-envoy-original-host"), append([]byte(nil), h.Get(message.Authority)...))
	}
	h.SetName(message.Authority, host)
}

func (s *Stream) rewritePath() bool {
	w := &s.forward.Rewrite
	if !w.HasPrefix && w.Regex == nil {
		return true
	}
	old := s.Request.Get(message.Path)
	bare, query := cutQuery(old)
	b := s.factory.scratch[:0]
	if w.Regex != nil {
		var ok bool
		if b, ok = w.Regex.Replace(b, bare); !ok {
			return false
		}
	} else {
		b = append(append(b, w.Prefix...), bare[min(s.Route.Matched.PrefixLen, len(bare)):]...)
	}
	b = append(b, query...)
	s.factory.scratch = b[:0]
	s.OriginalPath = append(s.OriginalPath[:0], old...)
	if len(b) == 0 || b[0] != '/' {
		// A request line must have a path; "/x" rewritten by prefix to "" is "/".
		b = append([]byte{'/'}, b...)
	}
	s.Request.SetName(message.Path, b)
	if !s.Manager.SuppressEnvoyHeaders {
		s.Request.SetName(message.XEnvoyOriginalPath, s.OriginalPath)
	}
	return true
}

// mutate applies header mutations.
func (s *Stream) mutate(h *message.Head, list []route.HeaderMutation) {
	for i := range list {
		m := &list[i]
		if m.Action == route.RemoveHeader {
			h.Remove(m.Name)
			continue
		}
		value := m.Value
		if m.Format != nil {
			b := m.Format.AppendValue(s.factory.scratch[:0], s)
			s.factory.scratch = b[:0]
			value = string(b)
		}
		if value == "" && !m.KeepEmpty {
			continue
		}
		switch m.Action {
		case route.Append:
			h.AddString(m.Name, value)
		case route.AddIfAbsent:
			if h.Lookup(m.Name) == nil {
				h.AddString(m.Name, value)
			}
		case route.Overwrite:
			h.Set(m.Name, value)
		case route.OverwriteIfExists:
			if h.Lookup(m.Name) != nil {
				h.Set(m.Name, value)
			}
		}
	}
}
