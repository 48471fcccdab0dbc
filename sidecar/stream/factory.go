package stream

import (
	"math/rand/v2"
	"net/http"
	"time"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/failure"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/upstream"
)

// Factory makes streams for one worker and reuses those that are over, so
// that a request allocates nothing.
type Factory struct {
	worker   *loop.Worker
	clusters *upstream.Registry
	free     []*Stream
	finished []*Stream // over in this turn; free in the next
	date     [29]byte
	dated    int64
	uuid     [36]byte
	scratch  []byte // for values that a Head copies at once
}

// maxFree bounds the streams that a worker keeps for reuse.
const maxFree = 1024

// NewFactory returns the worker's factory.
func NewFactory(w *loop.Worker, clusters *upstream.Registry) *Factory {
	return &Factory{worker: w, clusters: clusters}
}

// New returns a stream for a request whose head is about to come.
func (f *Factory) New(owner Owner, c *Connection, down message.Sender, p message.Version) *Stream {
	var s *Stream
	if n := len(f.free); n > 0 {
		s = f.free[n-1]
		f.free = f.free[:n-1]
	} else {
		s = &Stream{factory: f, worker: f.worker}
		s.body.Init(f.worker.Pool(), s)
		s.try.Init(f.worker, (*router)(s))
		s.idleTimer.Init(s.idle)
		s.requestTimer.Init(s.requestTimeout)
		s.maxTimer.Init(s.maxDuration)
		s.routeTimer.Init(s.routeTimeout)
		s.retryTimer.Init(s.retryNow)
	}
	s.owner, s.Conn, s.Protocol = owner, c, p
	s.down = codec.Sender{Sender: down, Conn: owner}
	s.random = rand.Uint64()
	s.once.Begin("a stream")
	return s
}

// recycle takes a stream that is over. It is reused only after this turn of
// the loop: callers further up the stack may still look at it.
func (f *Factory) recycle(s *Stream) {
	if len(f.finished) == 0 {
		f.worker.AtTurnEnd(f)
	}
	f.finished = append(f.finished, s)
}

// TurnEnd makes the streams that ended in this turn free.
func (f *Factory) TurnEnd() {
	for i, s := range f.finished {
		f.finished[i] = nil
		if len(f.free) < maxFree {
			s.clear()
			f.free = append(f.free, s)
		}
	}
	f.finished = f.finished[:0]
}

// clear makes the stream as New expects it, keeping its memory and its timers.
func (s *Stream) clear() {
	info := &s.Info
	request, response, trailers := info.Request, info.Response, info.ResponseTrailers
	metadata, path := info.Metadata, info.OriginalPath
	request.Reset()
	response.Reset()
	trailers.Reset()
	clear(metadata)
	*info = Info{Request: request, Response: response, ResponseTrailers: trailers, Metadata: metadata[:0], OriginalPath: path[:0]}
	s.owner, s.down = nil, codec.Sender{}
	s.filters.Clear()
	s.overrides = nil
	s.request, s.response = requestNone, responseNone
	s.answered, s.direct, s.tunnel, s.crashed, s.over = false, false, false, false, false
	s.held = 0
	s.asked.Clear()
	s.pick = upstream.Pick{}
	clear(s.avoid[:])
	s.cluster, s.forward, s.weighted = nil, nil, nil
	s.setCookie = s.setCookie[:0]
	s.timeout, s.deadline, s.perTry, s.retryOn, s.retries, s.retrying = 0, false, 0, 0, 0, false
}

// Date is the Date field's value, made once per second.
func (f *Factory) Date() []byte {
	now := f.worker.Now()
	if u := now.Unix(); u != f.dated {
		f.dated = u
		now.UTC().AppendFormat(f.date[:0], http.TimeFormat)
	}
	return f.date[:]
}

const hexDigits = "0123456789abcdef"

// UUID is a random UUID (RFC 9562 §5.4), valid until the next call.
func (f *Factory) UUID() []byte {
	a, b := rand.Uint64(), rand.Uint64()
	a = a&^0xf000 | 0x4000
	b = b&^(3<<62) | 2<<62
	at := 0
	for i := range 32 {
		if i == 8 || i == 12 || i == 16 || i == 20 {
			f.uuid[at] = '-'
			at++
		}
		v := a
		if i >= 16 {
			v = b
		}
		f.uuid[at] = hexDigits[v>>(60-4*(i%16))&15]
		at++
	}
	return f.uuid[:]
}

// timers that end a stream; each answers where it still can.

func (s *Stream) idle() {
	defer s.guard()
	d := s.Manager.StreamIdle
	if f := s.forward; f != nil && f.IdleTimeout >= 0 {
		d = f.IdleTimeout
	}
	if d <= 0 || s.over {
		return
	}
	if left := d - s.worker.Now().Sub(s.active); left > 0 {
		s.worker.Schedule(&s.idleTimer, max(left, time.Millisecond))
		return
	}
	s.Manager.Stats.At(s.worker.ID()).Inc(StatRqIdleTimeout)
	s.fail(failure.IdleTimeout)
}

func (s *Stream) requestTimeout() {
	defer s.guard()
	s.Manager.Stats.At(s.worker.ID()).Inc(StatRqTimeout)
	s.fail(failure.RequestTimeout)
}

func (s *Stream) maxDuration() {
	defer s.guard()
	s.Manager.Stats.At(s.worker.ID()).Inc(StatRqMaxDuration)
	if s.request == requestWhole {
		s.fail(failure.MaxDurationResponse) // it is not the client that is late
		return
	}
	s.fail(failure.MaxDuration)
}

// Record returns a stream that stands for a TCP connection in access logs.
func Record(c *Connection, start time.Time) *Stream {
	s := &Stream{worker: c.Worker}
	s.Conn, s.Remote, s.Start = c, c.Remote, start
	s.Timings = Timings{-1, -1, -1, -1, -1}
	return s
}
