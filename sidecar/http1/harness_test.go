package http1

import (
	"fmt"
	"strings"
	"testing"

	"sallyport/sidecar/buffer"
	"sallyport/sidecar/message"
)

// sink is an Output that keeps everything.
type sink struct {
	pool    buffer.Pool
	b       *buffer.Buffer
	flushes int
	full    bool
}

func newSink() *sink {
	s := &sink{}
	s.b = buffer.New(&s.pool)
	return s
}

func (s *sink) Buffer() *buffer.Buffer { return s.b }
func (s *sink) Flush()                 { s.flushes++ }
func (s *sink) Full() bool             { return s.full }

func (s *sink) take() string {
	out := string(s.b.Bytes())
	s.b.Release()
	return out
}

// tape writes the events of messages down as text. A head is its pseudo-header
// values and fields, Data is quoted and joined, "." is the end.
type tape struct {
	t      testing.TB
	b      strings.Builder
	data   []byte
	ended  bool
	onHead func(h *message.Head, end bool)
	onData func(p []byte, end bool)
	onEnd  func()
	reset  message.Reason
	drains int
}

func (r *tape) text() string {
	r.flush()
	return strings.TrimSpace(r.b.String())
}

func (r *tape) flush() {
	if len(r.data) > 0 {
		fmt.Fprintf(&r.b, "%q", r.data)
		r.data = r.data[:0]
	}
}

func (r *tape) event(end bool) {
	if r.ended || r.reset != 0 {
		r.t.Error("event after the end of the message")
	}
	r.ended = end
}

func (r *tape) end(end bool) {
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
	r.flush()
	if r.b.Len() > 0 {
		r.b.WriteByte(' ')
	}
	r.b.WriteString(headText(h))
	if r.onHead != nil {
		r.onHead(h, end)
	}
	r.end(end)
}

func headText(h *message.Head) string {
	var pseudo, fields []string
	for i := range h.Len() {
		name, value := h.At(i)
		if name[0] == ':' {
			if name != ":scheme" {
				pseudo = append(pseudo, string(value))
			}
			if len(fields) > 0 {
				panic("pseudo-header field after a field")
			}
			continue
		}
		fields = append(fields, name+": "+string(value))
	}
	return strings.Join(pseudo, " ") + "{" + strings.Join(fields, "|") + "}"
}

func (r *tape) Data(p []byte, end bool) {
	r.event(end)
	r.data = append(r.data, p...)
	if r.onData != nil {
		r.onData(p, end)
	}
	r.end(end)
}

func (r *tape) Trailers(h *message.Head) {
	r.event(true)
	r.flush()
	r.b.WriteString(headText(h))
	r.end(true)
}

func (r *tape) Reset(why message.Reason) {
	if r.reset != 0 {
		r.t.Error("two resets")
	}
	r.flush()
	r.reset = why
	fmt.Fprintf(&r.b, "<%v>", why)
}

func (r *tape) Drained() { r.drains++ }

// peer is a server connection whose requests go to tapes; it answers as answer says.
type peer struct {
	*tape
	c       *ServerConn
	s       *ServerStream
	out     *sink
	done    int
	resumes int
	eofs    int
	streams int
}

func newPeer(t testing.TB, o *Options) *peer {
	p := &peer{tape: &tape{t: t}, out: newSink()}
	p.c = NewServer(p.out, o, p)
	return p
}

// closing is a ClientOwner that is told of closed streams alone.
type closing func()

func (f closing) StreamClosed() { f() }
func (closing) Resumed()        {}
func (closing) SendEOF()        {}

// quiet is an Owner, of either side, whose test looks at the streams alone.
type quiet struct{}

func (quiet) StreamClosed()                 {}
func (quiet) Resumed()                      {}
func (quiet) SendEOF()                      {}
func (quiet) RefusalFields(b []byte) []byte { return b }

func (p *peer) StreamClosed() { p.done++ }
func (p *peer) Resumed()      { p.resumes++ }
func (p *peer) SendEOF()      { p.eofs++ }

// over and aborted say how a server's connection stands.
func over(c *ServerConn) bool    { return c.End() != message.Open }
func aborted(c *ServerConn) bool { return c.End() == message.Abort }

// RefusalFields adds nothing.
func (p *peer) RefusalFields(b []byte) []byte { return b }

func (p *peer) NewStream(s message.Sender, _ message.Version) message.Receiver {
	p.s = s.(*ServerStream)
	p.streams++
	p.tape.ended = false
	return p
}

// feed feeds everything, as a connection that keeps what is not consumed.
func (p *peer) feed(raw string, step int) (rest string, err error) { return feedAll(p.c, raw, step) }

func feedAll(c interface{ Feed([]byte) (int, error) }, raw string, step int) (rest string, err error) {
	var kept []byte
	for len(raw) > 0 {
		k := min(step, len(raw))
		kept = append(kept, raw[:k]...)
		raw = raw[k:]
		for len(kept) > 0 {
			n, err := c.Feed(kept)
			if n < 0 || n > len(kept) {
				panic("consumed more than there is")
			}
			kept = append([]byte(nil), kept[n:]...)
			if err != nil {
				return string(kept) + raw, err
			}
			if n == 0 {
				break
			}
		}
	}
	return string(kept), nil
}

func head(fields ...string) *message.Head {
	h := new(message.Head)
	for i := 0; i < len(fields); i += 2 {
		h.AddString(fields[i], fields[i+1])
	}
	return h
}

func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
