package http2

import (
	"testing"

	"sallyport/sidecar/message"
)

// echo answers each request at its end, as a stream would, without keeping anything.
type echo struct {
	s    *Stream
	free **echo
	head *message.Head
	body []byte
}

func (e *echo) Head(_ *message.Head, end bool) { e.answer(end) }
func (e *echo) Data(_ []byte, end bool)        { e.answer(end) }
func (e *echo) Trailers(*message.Head)         { e.answer(true) }
func (e *echo) Reset(message.Reason)           {}
func (e *echo) Drained()                       {}
func (e *echo) answer(end bool) {
	if !end {
		return
	}
	e.s.Head(e.head, len(e.body) == 0)
	if len(e.body) > 0 {
		e.s.Data(e.body, true)
	}
	*e.free = e
}

type counter struct {
	ended int
	bytes int
}

func (n *counter) Head(_ *message.Head, end bool) { n.count(end) }
func (n *counter) Data(p []byte, end bool)        { n.bytes += len(p); n.count(end) }
func (n *counter) Trailers(*message.Head)         { n.ended++ }
func (n *counter) Reset(message.Reason)           { n.ended = -1 << 30 }
func (n *counter) Drained()                       {}
func (n *counter) count(end bool) {
	if end {
		n.ended++
	}
}

// roundTrips returns a function that sends some requests at once from a client
// to a server and back; what differs between requests is their x-request-id.
func roundTrips(t testing.TB, at, requestBody, responseBody int) func() {
	p := newPair(t, nil, nil)
	var free *echo
	answer := head(":status=200", "content-type=text/plain", "server=x", "date=Sun, 06 Nov 1994 08:49:37 GMT")
	echoes := make([]*echo, 0, at)
	p.accept = func(s *Stream) message.Receiver {
		e := free
		if free = nil; e == nil {
			e = &echo{free: &free, head: answer, body: make([]byte, responseBody)}
			echoes = append(echoes, e)
		}
		e.s = s
		return e
	}
	request := head(":method=POST", ":scheme=https", ":authority=orders.mesh.example", ":path=/api/v1/orders", "user-agent=bench/1.0", "accept=*/*",
		"x-forwarded-proto=https", "x-request-id=0", "x-envoy-expected-rq-timeout-ms=15000")
	body := make([]byte, requestBody)
	n := &counter{}
	id := int64(0)
	feed := func(from *sink, to *Conn) {
		b := from.b.Bytes()
		if m, err := to.Feed(b); m != len(b) || err != nil {
			t.Fatal(m, err)
		}
		from.b.Release()
	}
	var h message.Head
	return func() {
		n.ended, n.bytes = 0, 0
		for range at {
			s := p.client.Open(n)
			h.CopyFrom(request)
			h.SetNameInt(message.XRequestID, 1<<40+id)
			id++
			s.Head(&h, requestBody == 0)
			if requestBody > 0 {
				s.Data(body, true)
			}
		}
		for p.up.b.Len()+p.down.b.Len() > 0 {
			feed(p.up, p.server)
			feed(p.down, p.client)
		}
		if n.ended != at || n.bytes != at*responseBody {
			t.Fatal(n.ended, n.bytes)
		}
	}
}

func TestARoundTripAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("allocations differ under the race detector")
	}
	for _, c := range []struct{ at, up, down int }{{1, 0, 13}, {1, 0, 0}, {32, 0, 13}, {1, 5000, 100000}, {8, 40000, 40000}} {
		f := roundTrips(t, c.at, c.up, c.down)
		for range 100 {
			f()
		}
		if n := testing.AllocsPerRun(500, f); n != 0 {
			t.Errorf("%+v: %v allocations", c, n)
		}
	}
}

func benchmarkRoundTrips(b *testing.B, at, up, down int) {
	f := roundTrips(b, at, up, down)
	b.ReportAllocs()
	b.SetBytes(int64(up + down))
	for i := 0; i < b.N; i += at {
		f()
	}
}

// One operation is one request through a client's codec, a server's, and back.
func BenchmarkRoundTrip(b *testing.B)          { benchmarkRoundTrips(b, 1, 0, 13) }
func BenchmarkRoundTripOf32(b *testing.B)      { benchmarkRoundTrips(b, 32, 0, 13) }
func BenchmarkRoundTripWith100K(b *testing.B)  { benchmarkRoundTrips(b, 1, 0, 100_000) }
func BenchmarkRoundTripUpload64K(b *testing.B) { benchmarkRoundTrips(b, 1, 64<<10, 0) }
