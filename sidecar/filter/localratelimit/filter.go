// Package localratelimit is envoy.filters.http.local_ratelimit: a token bucket
// in this process limits the requests of a listener, a route or a connection.
// A bucket is shared by all workers and survives an update of the
// configuration that leaves its numbers as they are.
package localratelimit

import (
	"math/rand/v2"
	"strconv"
	"time"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/filter"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

// Filter is the compiled filter.
type Filter struct {
	name  string
	limit *limit
}

// limit is one compiled LocalRateLimit, the filter's or a route's.
type limit struct {
	// enabled and enforced are in millionths of the requests.
	enabled, enforced uint32
	bucket            *bucket
	// perConnection makes each downstream connection have a bucket of its own,
	// which the connection keeps under place, a string.
	perConnection bool
	place         any
	numbers       numbers

	status     int
	reply      []route.HeaderMutation // response_headers_to_add
	unenforced []route.HeaderMutation // request_headers_to_add_when_not_enforced
	exhausted  bool                   // rate_limited_as_resource_exhausted
	rateLimit  bool                   // enable_x_ratelimit_headers
	retryAfter bool                   // enable_retry_after_header

	seen, ok, limited, refused filter.Counter
}

// Name is the filter's name in the configuration.
func (f *Filter) Name() string { return f.name }

// RequestHead takes a token, or answers 429.
func (f *Filter) RequestHead(c stream.Context, h *message.Head, _ bool) stream.Verdict {
	l, s := f.limit, c.Stream
	if over, is := c.Override().(*limit); is {
		l = over
	}
	if l.bucket == nil && !l.perConnection || !chance(l.enabled) {
		return stream.Continue
	}
	l.seen.Inc()
	b := l.bucket
	if l.perConnection {
		b = l.ofConnection(s)
	}
	if l.rateLimit {
		*c.Slot() = b // for the response
	}
	now := s.Now()
	if b.take(now) {
		l.ok.Inc()
		return stream.Continue
	}
	l.limited.Inc()
	if !chance(l.enforced) {
		for i := range l.unenforced {
			add(h, &l.unenforced[i], s)
		}
		return stream.Continue
	}
	l.refused.Inc()
	return s.Reply(l.status, "local_rate_limited", "local_rate_limited", failure.RL, l.headers(s, h, b, now)...)
}

// ResponseHead tells the client how much is left.
func (f *Filter) ResponseHead(c stream.Context, h *message.Head, _ bool) stream.Verdict {
	b, is := (*c.Slot()).(*bucket)
	if !is {
		return stream.Continue
	}
	now := c.Stream.Now()
	var buf [20]byte
	set := func(name string, n int64) { h.Set(name, string(strconv.AppendInt(buf[:0], n, 10))) }
	set("x-ratelimit-limit", b.max)
	set("x-ratelimit-remaining", b.left(now))
	set("x-ratelimit-reset", seconds(b.refill(now)))
	return stream.Continue
}

// headers are those of a refusal.
func (l *limit) headers(s *stream.Stream, h *message.Head, b *bucket, now time.Time) (list []route.HeaderValue) {
	if l.retryAfter && l.status == 429 {
		// First, so that response_headers_to_add has the last word.
		list = append(list, route.HeaderValue{Name: "retry-after", Value: strconv.FormatInt(max(seconds(b.wait(now)), 1), 10)})
	}
	for i := range l.reply {
		m := &l.reply[i]
		list = append(list, route.HeaderValue{Name: m.Name, Value: value(m, s)})
	}
	if l.exhausted && message.IsGRPC(h) {
		list = append(list, route.HeaderValue{Name: "grpc-status", Value: "8"})
	}
	return list
}

// seconds rounds up: a client that comes back then finds what it was told.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// kept is what a connection keeps of a limit. An update with the same numbers
// goes on with the bucket, and one with others replaces it: a connection that
// lives through many of them keeps one for each place all the same.
type kept struct {
	numbers numbers
	bucket  *bucket
}

// ofConnection returns the bucket of the stream's connection for l.
func (l *limit) ofConnection(s *stream.Stream) *bucket {
	c := s.Conn
	if k, is := c.Attached[l.place].(*kept); is && k.numbers == l.numbers {
		return k.bucket
	}
	if c.Attached == nil {
		c.Attached = map[any]any{}
	}
	b := l.numbers.bucket(s.Now())
	c.Attached[l.place] = &kept{l.numbers, b}
	return b
}

// chance says yes for that many millionths of the requests.
func chance(millionths uint32) bool {
	return millionths >= route.Always || millionths > 0 && route.InFraction(rand.Uint64(), millionths)
}

func value(m *route.HeaderMutation, s *stream.Stream) string {
	if m.Format != nil {
		return string(m.Format.AppendValue(nil, s))
	}
	return m.Value
}

// add applies an addition to the request.
func add(h *message.Head, m *route.HeaderMutation, s *stream.Stream) {
	v := value(m, s)
	if v == "" && !m.KeepEmpty {
		return
	}
	there := h.Lookup(m.Name) != nil
	switch {
	case m.Action == route.Append:
		h.AddString(m.Name, v)
	case m.Action == route.Overwrite, m.Action == route.AddIfAbsent && !there, m.Action == route.OverwriteIfExists && there:
		h.Set(m.Name, v)
	}
}
