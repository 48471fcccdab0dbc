package call

import (
	"encoding/binary"
	"math"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream/exchange"
	"sallyport/sidecar/upstream"
)

// DefaultMaxMessage is how long a message that is received may be, as grpc-go has it.
const DefaultMaxMessage = 4 << 20

// prefix is what stands before a message: whether it is compressed, and its
// length (gRPC over HTTP/2, "Length-Prefixed-Message").
const prefix = 5

// Method is what a stream calls. The zero value of a field is its default.
type Method struct {
	Path       string // "/package.Service/Method"
	Authority  string // the cluster's name
	Metadata   []route.HeaderValue
	Timeout    time.Duration // sent as grpc-timeout and held here too; 0 is none
	MaxMessage int           // DefaultMaxMessage
	Buffer     int           // how much may wait to be sent before Full; 1 MiB
}

// Receiver gets what a stream receives, on the stream's worker.
type Receiver interface {
	// Message is one message, valid during the call.
	Message(b []byte)
	// Room says that the stream, after its Full answered true, takes messages again.
	Room()
	// Closed is the end of the stream: the server's status, or that of the
	// failure that ended it.
	Closed(s Status)
}

// Status is how a stream ended.
type Status struct {
	Code    codes.Code
	Message string
	// Failure is None where the server has said the status.
	Failure failure.Kind
}

// Stream is a call of gRPC with messages in both directions. Owned by its worker.
type Stream struct {
	worker   *loop.Worker
	method   *Method
	receiver Receiver
	head     message.Head
	body     exchange.Body
	try      exchange.Exchange
	timer    loop.Timer
	in       []byte // a message that is not whole
	status   int    // of HTTP
	over     bool
}

// Open begins a stream. It always returns one; where it fails at once, Closed
// is called from within Open.
func Open(w *loop.Worker, cluster *upstream.Ref, m *Method, r Receiver) *Stream {
	s := &Stream{worker: w, method: m, receiver: r}
	s.body.Init(w.Pool(), s)
	s.body.Limit = m.Buffer
	if s.body.Limit <= 0 {
		s.body.Limit = 1 << 20
	}
	s.try.Init(w, (*streamUser)(s))
	s.timer.Init(func() { s.fail(failure.RouteTimeout) })
	host, f := choose(w, cluster)
	if f != failure.None {
		s.fail(f)
		return s
	}
	h := &s.head
	h.AddNameString(message.Method, "POST")
	h.AddNameString(message.Scheme, scheme(host))
	h.AddNameString(message.Authority, or(m.Authority, cluster.Name))
	h.AddNameString(message.Path, m.Path)
	h.AddNameString(message.TE, "trailers")
	if m.Timeout > 0 {
		h.AddName(message.GRPCTimeout, appendTimeout(nil, m.Timeout))
		w.Schedule(&s.timer, m.Timeout)
	}
	h.AddNameString(message.ContentType, "application/grpc")
	for _, v := range m.Metadata {
		h.AddString(v.Name, v.Value)
	}
	s.try.Start(host, h, &s.body, exchange.Options{Downstream: message.HTTP2})
	return s
}

// appendTimeout writes a grpc-timeout: at most eight digits and a unit.
func appendTimeout(b []byte, d time.Duration) []byte {
	for _, u := range [...]struct {
		d    time.Duration
		name byte
	}{{time.Nanosecond, 'n'}, {time.Microsecond, 'u'}, {time.Millisecond, 'm'}, {time.Second, 'S'}, {time.Minute, 'M'}, {time.Hour, 'H'}} {
		n := d / u.d
		if d%u.d > 0 {
			n++ // a deadline of the server must not be before ours
		}
		if n < 1e8 {
			return append(strconv.AppendInt(b, int64(n), 10), u.name)
		}
	}
	return b // never: the longest Duration is 2,562,048 hours
}

// Send sends a message. One that comes after CloseSend or the end is dropped.
func (s *Stream) Send(b []byte) {
	if s.over || uint64(len(b)) > math.MaxUint32 {
		return
	}
	var p [prefix]byte
	binary.BigEndian.PutUint32(p[1:], uint32(len(b)))
	s.body.Write(p[:], false)
	if !s.over && len(b) > 0 {
		s.body.Write(b, false)
	}
}

// Full says that as much waits to be sent as may.
func (s *Stream) Full() bool { return !s.over && s.body.Full() }

// CloseSend says that no message follows.
func (s *Stream) CloseSend() {
	if !s.over {
		s.body.Write(nil, true)
	}
}

// Cancel gives the stream up; nothing follows.
func (s *Stream) Cancel() {
	if s.over {
		return
	}
	s.over = true
	s.timer.Stop()
	s.try.Cancel()
	s.body.Clear()
	s.in = nil
}

func (s *Stream) close(st Status) {
	if !s.over {
		s.Cancel()
		s.receiver.Closed(st)
	}
}

func (s *Stream) fail(f failure.Kind) {
	s.close(Status{Code: failure.Of(f).GRPC, Message: failure.Of(f).Details, Failure: f})
}

// Room passes on.
func (s *Stream) Room() {
	if !s.over {
		s.receiver.Room()
	}
}

// streamUser is a Stream as the user of its exchange.
type streamUser Stream

// Ready sees to it that gRPC goes over HTTP/2, which it is defined for.
func (u *streamUser) Ready(x *exchange.Exchange) {
	if s := (*Stream)(u); !x.Client().Version().Multiplexed() {
		s.close(Status{Code: codes.Unavailable, Message: "the host speaks HTTP/1.1; gRPC needs HTTP/2", Failure: failure.UpstreamProtocol})
	}
}

func (u *streamUser) Sent(*exchange.Exchange)                         {}
func (u *streamUser) Informational(*exchange.Exchange, *message.Head) {}

// Head takes the response's head; in one that ends the stream stands the status.
func (u *streamUser) Head(_ *exchange.Exchange, h *message.Head, end bool) {
	s := (*Stream)(u)
	if s.status = h.StatusCode(); end {
		s.close(s.statusOf(h))
	}
}

// Data takes messages out of what comes.
func (u *streamUser) Data(_ *exchange.Exchange, p []byte, end bool) {
	s := (*Stream)(u)
	if s.status != 200 {
		p = nil // the body of an answer that is not gRPC's
	}
	if len(s.in) > 0 {
		s.in = append(s.in, p...)
		p = s.in
	}
	for !s.over && len(p) >= prefix {
		n := binary.BigEndian.Uint32(p[1:])
		switch most := s.maxMessage(); {
		case p[0] != 0:
			s.close(Status{Code: codes.Internal, Message: "a compressed message, which was not offered", Failure: failure.UpstreamProtocol})
			return
		case uint64(n) > uint64(most):
			s.close(Status{Code: codes.ResourceExhausted, Message: "a message larger than " + strconv.Itoa(most) + " bytes", Failure: failure.ResponseTooLarge})
			return
		}
		if uint64(len(p)) < prefix+uint64(n) {
			break
		}
		s.receiver.Message(p[prefix : prefix+n])
		p = p[prefix+n:]
	}
	if s.over {
		return
	}
	s.in = append(s.in[:0], p...)
	if end {
		s.close(s.statusOf(nil))
	}
}

func (s *Stream) maxMessage() int {
	if s.method.MaxMessage > 0 {
		return s.method.MaxMessage
	}
	return DefaultMaxMessage
}

// Trailers hold the status.
func (u *streamUser) Trailers(_ *exchange.Exchange, h *message.Head) {
	s := (*Stream)(u)
	s.close(s.statusOf(h))
}

// Done is the end without trailers.
func (u *streamUser) Done(_ *exchange.Exchange, o exchange.Outcome) {
	s := (*Stream)(u)
	if o.Complete() {
		s.close(s.statusOf(nil))
		return
	}
	f := o.Failure()
	text := o.Text
	if text == "" {
		text = failure.Of(f).Details
	}
	s.close(Status{Code: failure.Of(f).GRPC, Message: text, Failure: f})
}

// statusOf reads the status from the fields that end a stream; h may be nil.
func (s *Stream) statusOf(h *message.Head) Status {
	var v []byte
	if h != nil {
		v = h.Get(message.GRPCStatus)
	}
	n, err := strconv.ParseUint(string(v), 10, 8)
	switch {
	case err == nil:
		return Status{Code: codes.Code(n), Message: unescape(h.Get(message.GRPCMessage))}
	case s.status != 200:
		return Status{Code: failure.GRPCStatus(s.status), Message: "HTTP status " + strconv.Itoa(s.status), Failure: failure.UpstreamProtocol}
	}
	return Status{Code: codes.Internal, Message: "the stream ended without a status", Failure: failure.UpstreamProtocol}
}

// unescape decodes a grpc-message ("Percent-Encoded"); what is no escape stands for itself.
func unescape(v []byte) string {
	b := make([]byte, 0, len(v))
	for i := 0; i < len(v); i++ {
		if v[i] == '%' && i+2 < len(v) {
			if n, err := strconv.ParseUint(string(v[i+1:i+3]), 16, 8); err == nil {
				b = append(b, byte(n))
				i += 2
				continue
			}
		}
		b = append(b, v[i])
	}
	return string(b)
}
