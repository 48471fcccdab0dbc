package stream

import (
	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream/chain"
)

// What filters are, in the terms of this package: see package chain.
type (
	Filter  = chain.Filter
	Context = chain.Context[*Stream]
	Verdict = chain.Verdict
	Chain   = chain.Chain[*Stream]
)

const (
	Continue = chain.Continue
	Hold     = chain.Hold
	Collect  = chain.Collect
	Answered = chain.Answered
)

// NewChain compiles the filters of a connection manager, without the router.
func NewChain(filters []Filter, ids []route.FilterID) (*Chain, error) {
	return chain.Compile[*Stream](filters, ids)
}

// noFilters is the chain of a manager that has none.
var noFilters = func() *Chain {
	c, err := NewChain(nil, nil)
	if err != nil {
		panic(err)
	}
	return c
}()

func (m *Manager) chain() *Chain {
	if m.Filters == nil {
		return noFilters
	}
	return m.Filters
}

// Rechecks says that requests under way may have to be asked about when the
// configuration changes.
func (m *Manager) Rechecks() bool { return m.chain().Rechecks() }

// MessageHead is the head of a direction, for filters.
func (s *Stream) MessageHead(d chain.Direction) *message.Head {
	if d == chain.Request {
		return &s.Request
	}
	return &s.Response
}

// Override is what the stream's route says of a filter: the most specific of
// weighted cluster, route, virtual host and route configuration.
func (s *Stream) Override(id route.FilterID) (cfg any, disabled bool) {
	for i := range s.overrides {
		if o := &s.overrides[i]; o.Filter == id {
			return o.Config, o.Disabled
		}
	}
	return nil, false
}

// PassHead takes a head that every filter let pass.
func (s *Stream) PassHead(d chain.Direction, end bool) {
	if d == chain.Request {
		s.forwardRequest()
	} else {
		s.sendHead(end)
	}
}

// PassData takes content that every filter let pass.
func (s *Stream) PassData(d chain.Direction, p []byte, end bool) {
	if d == chain.Response {
		s.sendData(p, end)
		return
	}
	if s.body.Write(p, end); !end && !s.over && s.body.Full() {
		s.hold(heldByBody)
	}
}

// PassTrailers takes trailers that every filter let pass.
func (s *Stream) PassTrailers(d chain.Direction, h *message.Head) {
	if d == chain.Request {
		s.body.End(h)
		return
	}
	s.sendTrailers(h)
}

// Room is the word of the request's body that it takes content again.
func (s *Stream) Room() { s.release(heldByBody) }

// HoldLimit is how much filters may keep of a message: of a request what the
// listener allows a connection, of a response what the cluster does.
func (s *Stream) HoldLimit(d chain.Direction) int {
	if d == chain.Response && s.cluster != nil {
		return limitOr(s.cluster.Config.BufferLimit)
	}
	return limitOr(s.Conn.BufferLimit)
}

// defaultLimit is Envoy's per_connection_buffer_limit_bytes.
const defaultLimit = 1 << 20

func limitOr(n int) int {
	if n > 0 {
		return n
	}
	return defaultLimit
}

// Throttle stops or starts the sender of a direction for the filters.
func (s *Stream) Throttle(d chain.Direction, on bool) {
	switch {
	case d == chain.Request && on:
		s.hold(heldByFilters)
	case d == chain.Request:
		s.release(heldByFilters)
	case on:
		s.try.Pause()
	case !s.down.Full():
		s.try.Resume()
	}
}

// Overflow answers a message that is larger than a filter may collect.
func (s *Stream) Overflow(d chain.Direction) {
	if d == chain.Request {
		s.Manager.Stats.At(s.worker.ID()).Inc(StatRqTooLarge)
		s.fail(failure.RequestTooLarge)
		return
	}
	s.fail(failure.ResponseTooLarge)
}

// Panicked ends the stream after a panic: with 500 where nothing went to the
// client, else by resetting it. The answer passes no filter: one that panicked
// might do so again. A second panic is the connection's.
func (s *Stream) Panicked(v any) {
	s.worker.NotePanic(v)
	switch {
	case s.over:
	case s.crashed:
		panic(v)
	default:
		s.crashed = true
		s.response = max(s.response, responseFilters)
		s.fail(failure.Panic)
	}
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

// Recheck asks the filters of the manager that is in force now about a request
// that was let pass under an earlier configuration, with the route that it
// would take now. One that is not allowed any more ends: an L7 policy holds
// for what is under way, too.
func (s *Stream) Recheck() {
	if s.over || !s.asked.Taken() {
		return
	}
	m := s.owner.Manager()
	if !m.Rechecks() {
		return
	}
	defer s.guard()
	var h message.Head
	s.asked.Restore(&h, &s.Request)
	route, overrides := s.Route, s.overrides
	s.Route, s.overrides = s.routeOf(m, &h)
	ok, details := m.chain().Recheck(s, &h)
	s.Route, s.overrides = route, overrides
	if ok {
		return
	}
	m.Stats.At(s.worker.ID()).Inc(StatRqRevoked)
	f := failure.Of(failure.Revoked)
	s.failAs(f, f.Status, details)
}
