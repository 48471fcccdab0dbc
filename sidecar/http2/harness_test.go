package http2

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sallyport/sidecar/buffer"
	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
)

// sink is an Output that keeps everything.
type sink struct {
	pool buffer.Pool
	b    *buffer.Buffer
	full bool
	now  int64
}

func newSink() *sink {
	s := &sink{}
	s.b = buffer.New(&s.pool)
	return s
}

func (s *sink) Buffer() *buffer.Buffer { return s.b }
func (s *sink) Flush()                 {}
func (s *sink) Full() bool             { return s.full }
func (s *sink) NowMono() int64         { return s.now }

func (s *sink) take() []byte {
	p := bytes.Clone(s.b.Bytes())
	s.b.Release()
	return p
}

// tape writes the events of one message down as text. Data is quoted and joined, "." is the end.
type tape struct {
	t       testing.TB
	s       *Stream
	b       strings.Builder
	data    []byte
	heads   int
	ended   bool
	reset   message.Reason
	drains  int
	onHead  func(h *message.Head, end bool)
	onData  func(p []byte, end bool)
	onEnd   func()
	onReset func()
}

func (r *tape) String() string {
	r.flush()
	return r.b.String()
}

func (r *tape) flush() {
	if len(r.data) > 0 {
		fmt.Fprintf(&r.b, "%q", r.data)
		r.data = r.data[:0]
	}
}

func (r *tape) event(end bool) {
	if r.ended || r.reset != 0 {
		r.t.Error("an event after the last")
	}
	r.ended = end
}

func (r *tape) finish(end bool) {
	if end {
		r.flush()
		r.b.WriteByte('.')
		if r.onEnd != nil {
			r.onEnd()
		}
	}
}

func (r *tape) Head(h *message.Head, end bool) {
	r.event(end)
	r.heads++
	r.b.WriteString(text(h))
	if r.onHead != nil {
		r.onHead(h, end)
	}
	r.finish(end)
}

func (r *tape) Data(p []byte, end bool) {
	r.event(end)
	r.data = append(r.data, p...)
	if r.onData != nil {
		r.onData(p, end)
	}
	r.finish(end)
}

func (r *tape) Trailers(h *message.Head) {
	r.event(true)
	r.flush()
	r.b.WriteString("+" + text(h))
	r.finish(true)
}

func (r *tape) Reset(why message.Reason) {
	if r.reset != 0 {
		r.t.Error("Reset twice")
	}
	r.reset = why
	r.flush()
	r.b.WriteString("!" + why.String())
	if r.onReset != nil {
		r.onReset()
	}
}

func (r *tape) Drained() { r.drains++ }

// text is a head as "[name=value name=value]".
func text(h *message.Head) string {
	var b strings.Builder
	for i := range h.Len() {
		name, value := h.At(i)
		fmt.Fprintf(&b, " %s=%s", name, value)
	}
	return "[" + strings.TrimPrefix(b.String(), " ") + "]"
}

// head makes a head of "name=value" strings.
func head(fields ...string) *message.Head {
	h := new(message.Head)
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		h.AddString(name, value)
	}
	return h
}

var get = head(":method=GET", ":scheme=https", ":authority=h.example", ":path=/")

// server is a server's connection whose peer is a framer of x/net.
type server struct {
	hooks
	t      testing.TB
	c      *Conn
	out    *sink
	in     bytes.Buffer // what the framer wrote
	f      *http2.Framer
	enc    *hpack.Encoder
	block  bytes.Buffer
	tapes  []*tape
	setup  func(*tape)
	refuse []failure.Kind
	err    error
	rest   []byte
}

func newServer(t testing.TB, o *Options) *server {
	s := &server{t: t, out: newSink()}
	s.f = http2.NewFramer(&s.in, nil)
	s.f.AllowIllegalWrites = true
	s.enc = hpack.NewEncoder(&s.block)
	s.c = NewServer(s.out, o, s)
	s.c.Start()
	s.in.WriteString(Preface)
	_ = s.f.WriteSettings()
	_ = s.f.WriteSettingsAck()
	s.send()
	s.frames() // SETTINGS and their acknowledgment
	return s
}

// hooks own a connection of either side; a function that is nil does nothing.
type hooks struct {
	stream func(*Stream) message.Receiver
	closed func()
	drains func()
}

func (h *hooks) NewStream(s message.Sender, _ message.Version) message.Receiver {
	return h.stream(s.(*Stream))
}

func (h *hooks) StreamClosed() {
	if h.closed != nil {
		h.closed()
	}
}

func (h *hooks) PeerDrains() {
	if h.drains != nil {
		h.drains()
	}
}

func (*hooks) Refused(failure.Kind, int) {}
func (*hooks) SweepIn(time.Duration)     {}

// Refused notes what no stream was made for.
func (s *server) Refused(k failure.Kind, _ int) { s.refuse = append(s.refuse, k) }

func (s *server) NewStream(st message.Sender, _ message.Version) message.Receiver {
	r := &tape{t: s.t, s: st.(*Stream)}
	if s.setup != nil {
		s.setup(r)
	}
	s.tapes = append(s.tapes, r)
	return r
}

// send feeds what was written.
func (s *server) send() {
	if s.err != nil {
		s.in.Reset()
		return
	}
	p := append(s.rest, s.in.Bytes()...)
	s.in.Reset()
	n, err := s.c.Feed(p)
	s.rest = bytes.Clone(p[n:])
	if err != nil {
		s.err = err
	}
}

// fields encodes "name=value" strings.
func (s *server) fields(fields ...string) []byte {
	s.block.Reset()
	for _, f := range fields {
		i := strings.IndexByte(f[1:], '=') + 1
		_ = s.enc.WriteField(hpack.HeaderField{Name: f[:i], Value: f[i+1:]})
	}
	return bytes.Clone(s.block.Bytes())
}

// request sends a head; fields that begin with ":" replace those of a GET.
func (s *server) request(id uint32, end bool, fields ...string) {
	s.headers(id, end, append([]string{":method=GET", ":scheme=https", ":authority=h.example", ":path=/"}, fields...)...)
}

func (s *server) headers(id uint32, end bool, fields ...string) {
	_ = s.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: s.fields(fields...), EndStream: end, EndHeaders: true})
	s.send()
}

func (s *server) data(id uint32, end bool, p string) {
	_ = s.f.WriteData(id, end, []byte(p))
	s.send()
}

// frames describes what the server sent since the last call.
func (s *server) frames() string { return describe(s.t, s.out.take(), nil) }

// describe reads frames with x/net. dec keeps the HPACK state, where heads matter.
func describe(t testing.TB, p []byte, dec *hpack.Decoder) string {
	p = bytes.TrimPrefix(p, []byte(Preface))
	f := http2.NewFramer(io.Discard, bytes.NewReader(p))
	f.SetMaxReadFrameSize(maxMaxFrame)
	var lines []string
	for {
		fr, err := f.ReadFrame()
		if err == io.EOF {
			return strings.Join(lines, "\n")
		}
		if err != nil {
			t.Fatalf("the codec wrote what x/net does not read: %v", err)
		}
		id := fr.Header().StreamID
		end := ""
		if k := fr.Header().Type; (k == http2.FrameData || k == http2.FrameHeaders) && fr.Header().Flags&flagEndStream != 0 {
			end = " end"
		}
		line := ""
		switch fr := fr.(type) {
		case *http2.DataFrame:
			line = fmt.Sprintf("DATA %d %d%s", id, len(fr.Data()), end)
		case *http2.HeadersFrame:
			line = fmt.Sprintf("HEADERS %d%s", id, end)
			if dec != nil {
				fields, err := dec.DecodeFull(fr.HeaderBlockFragment())
				if err != nil {
					t.Fatal(err)
				}
				for _, hf := range fields {
					line += " " + hf.Name + "=" + hf.Value
				}
			}
		case *http2.RSTStreamFrame:
			line = fmt.Sprintf("RST_STREAM %d %v", id, fr.ErrCode)
		case *http2.GoAwayFrame:
			line = fmt.Sprintf("GOAWAY %d %v", fr.LastStreamID, fr.ErrCode)
		case *http2.WindowUpdateFrame:
			line = fmt.Sprintf("WINDOW_UPDATE %d %d", id, fr.Increment)
		case *http2.PingFrame:
			line = fmt.Sprintf("PING %x ack=%v", fr.Data, fr.IsAck())
		case *http2.SettingsFrame:
			line = fmt.Sprintf("SETTINGS ack=%v", fr.IsAck())
		default:
			line = fr.Header().Type.String()
		}
		lines = append(lines, line)
	}
}

func (s *server) want(what string) {
	s.t.Helper()
	if got := s.frames(); got != what {
		s.t.Errorf("sent\n%s\nwant\n%s", got, what)
	}
}

func (s *server) wantError(code ErrCode) {
	s.t.Helper()
	e, ok := s.err.(*ConnError)
	if !ok || e.Code != code {
		s.t.Fatalf("the connection's error is %v, want %v", s.err, code)
	}
	if got := s.frames(); !strings.HasSuffix(got, " "+code.String()) {
		s.t.Errorf("no GOAWAY %v:\n%s", code, got)
	}
}

// pair is a client and a server of ours that feed each other.
type pair struct {
	hooks
	t      testing.TB
	client *Conn
	server *Conn
	up     *sink // what the client wrote
	down   *sink
	cut    func(n int) int // how much of n bytes is fed at once
	upRest []byte
	dnRest []byte
	accept func(*Stream) message.Receiver
}

func (p *pair) NewStream(s message.Sender, _ message.Version) message.Receiver {
	return p.accept(s.(*Stream))
}

func newPair(t testing.TB, client, server *Options) *pair {
	p := &pair{t: t, up: newSink(), down: newSink(), cut: func(n int) int { return n }}
	p.client = NewClient(p.up, client, p)
	p.server = NewServer(p.down, server, p)
	p.client.Start()
	p.server.Start()
	return p
}

// settle carries bytes until neither side has any for the other.
func (p *pair) settle() {
	p.t.Helper()
	for p.up.b.Len()+p.down.b.Len() > 0 {
		p.carry(p.up, p.server, &p.upRest)
		p.carry(p.down, p.client, &p.dnRest)
	}
}

func (p *pair) carry(from *sink, to *Conn, rest *[]byte) {
	b := from.take()
	for len(b) > 0 {
		k := p.cut(len(b))
		*rest = append(*rest, b[:k]...)
		b = b[k:]
		n, err := to.Feed(*rest)
		if err != nil {
			p.t.Fatal(err)
		}
		*rest = append((*rest)[:0], (*rest)[n:]...)
	}
}

func (p *pair) open(r message.Receiver) *Stream {
	p.t.Helper()
	s := p.client.Open(r)
	if s == nil {
		p.t.Fatal("no stream")
	}
	return s.(*Stream)
}
