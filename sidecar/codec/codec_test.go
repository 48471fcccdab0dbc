package codec

import (
	"bytes"
	"testing"
	"time"

	"sallyport/sidecar/buffer"
	"sallyport/sidecar/failure"
	"sallyport/sidecar/http2"
	"sallyport/sidecar/message"
)

func TestTheTableIsComplete(t *testing.T) {
	names, versions := map[string]bool{}, map[message.Version]bool{}
	for id := range N {
		p := &Protocols[id]
		if p.NewServer == nil || p.NewClient == nil || p.ALPN == "" || names[p.ALPN] || versions[p.Version] {
			t.Errorf("protocol %d: %+v", id, p)
		}
		names[p.ALPN], versions[p.Version] = true, true
		if got, ok := Negotiated(p.ALPN); got != id || !ok {
			t.Errorf("%s is %d, %v", p.ALPN, got, ok)
		}
		if got := Of(p.Version); got != id {
			t.Errorf("%v is %d", p.Version, got)
		}
		if p.Multiplexed != p.Version.Multiplexed() {
			t.Errorf("%s and its version differ in whether it is multiplexed", p.ALPN)
		}
	}
	if Of(message.HTTP10) != HTTP1 {
		t.Error("HTTP/1.0 has a codec of its own")
	}
	if _, ok := Negotiated(""); ok {
		t.Error("nothing was negotiated")
	}
}

func TestSniff(t *testing.T) {
	for _, c := range []struct {
		first string
		id    ID
		known bool
	}{
		{"", HTTP1, false},
		{"P", HTTP1, false},
		{"POST / HTTP/1.1\r\n", HTTP1, true},
		{"PRI * HTTP/2.0\r\n\r\nS", HTTP1, false},
		{http2.Preface, HTTP2, true},
		{http2.Preface + "\x00", HTTP2, true},
		{"PRI * HTTP/2.0\r\n\r\nSX", HTTP1, true},
		{"\x00", HTTP1, true},
	} {
		if id, known := Sniff([]byte(c.first)); id != c.id || known != c.known {
			t.Errorf("%q is %d, %v", c.first, id, known)
		}
	}
}

// side is the owner of one side and its Output.
type side struct {
	pool   buffer.Pool
	out    *buffer.Buffer
	kept   []byte
	taken  []*half // of a server: its streams
	closed int
	drains int
}

// half is what one side of a stream heard, and its way to answer.
type half struct {
	s       message.Sender
	version message.Version
	head    message.Head
	body    []byte
	ended   bool
	reset   message.Reason
}

func newSide() *side {
	s := new(side)
	s.out = buffer.New(&s.pool)
	return s
}

func (s *side) Buffer() *buffer.Buffer        { return s.out }
func (s *side) Flush()                        {}
func (s *side) Full() bool                    { return false }
func (s *side) NowMono() int64                { return 1 }
func (s *side) StreamClosed()                 { s.closed++ }
func (s *side) PeerDrains()                   { s.drains++ }
func (s *side) Resumed()                      {}
func (s *side) SendEOF()                      {}
func (s *side) Refused(failure.Kind, int)     {}
func (s *side) RefusalFields(b []byte) []byte { return b }
func (s *side) SweepIn(time.Duration)         {}

func (s *side) NewStream(down message.Sender, v message.Version) message.Receiver {
	s.taken = append(s.taken, &half{s: down, version: v})
	return s.taken[len(s.taken)-1]
}

func (s *half) Head(h *message.Head, end bool) { s.head.CopyFrom(h); s.ended = end }
func (s *half) Data(p []byte, end bool)        { s.body = append(s.body, p...); s.ended = end }
func (s *half) Trailers(*message.Head)         { s.ended = true }
func (s *half) Reset(r message.Reason)         { s.reset = r }
func (s *half) Drained()                       {}

// link is a client and a server that speak to each other.
type link struct {
	t      *testing.T
	up     *side
	down   *side
	client Client
	server Server
}

func newLink(t *testing.T, id ID) *link {
	l := &link{t: t, up: newSide(), down: newSide()}
	p := &Protocols[id]
	l.client = p.NewClient(l.up, new(Options), 1<<20, l.up)
	l.server = p.NewServer(l.down, ServerOptions{Options: new(Options), BufferLimit: 1 << 20}, l.down)
	l.carry()
	return l
}

// carry brings each side what the other sent, until both are silent.
func (l *link) carry() {
	l.t.Helper()
	for l.up.out.Len()+l.down.out.Len() > 0 {
		for _, d := range []struct {
			from *side
			to   interface{ Feed([]byte) (int, error) }
		}{{l.up, l.server}, {l.down, l.client}} {
			d.from.kept = append(d.from.kept, d.from.out.Bytes()...)
			d.from.out.Release()
			n, err := d.to.Feed(d.from.kept)
			if err != nil {
				l.t.Fatal(err)
			}
			d.from.kept = d.from.kept[n:]
		}
	}
}

// request opens a stream and sends a request without its end.
func (l *link) request() (asked, heard *half) {
	l.t.Helper()
	heard = new(half)
	s := l.client.Open(heard)
	if s == nil {
		l.t.Fatal("no stream in spite of capacity")
	}
	h := new(message.Head)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "h"}, {":path", "/x"}} {
		h.AddString(f[0], f[1])
	}
	before := len(l.down.taken)
	s.Head(h, false)
	heard.s = s
	if l.carry(); len(l.down.taken) != before+1 {
		l.t.Fatal("the request did not arrive")
	}
	return l.down.taken[before], heard
}

func (l *link) answer(asked *half) {
	h := new(message.Head)
	h.SetStatus(200)
	asked.s.Head(h, false)
	asked.s.Data([]byte("response"), true)
	l.carry()
}

// TestEveryProtocolKeepsTheContract of the two interfaces, as their owners rely on it.
func TestEveryProtocolKeepsTheContract(t *testing.T) {
	for id := range N {
		p := &Protocols[id]
		t.Run(p.ALPN, func(t *testing.T) {
			l := newLink(t, id)
			if l.client.Capacity() < 1 || l.client.Active() != 0 || l.client.Draining() || l.client.Worn() || l.server.End() != message.Open || l.server.Head(0) != 0 {
				t.Fatal("a new connection is not ready")
			}
			if n, known := l.client.Limit(); !known || n < 1 {
				t.Errorf("the limit is %d, known: %v", n, known)
			}

			asked, heard := l.request()
			if l.client.Active() != 1 || (l.client.Capacity() > 0) != p.Multiplexed || (l.client.Open(new(half)) != nil) != p.Multiplexed {
				t.Errorf("with a stream open: active %d, capacity %d", l.client.Active(), l.client.Capacity())
			}
			heard.s.Data([]byte("request"), true)
			l.carry()
			closed := l.up.closed
			l.answer(asked)
			if asked.version != p.Version || !asked.head.Is(message.Path, "/x") || !bytes.Equal(asked.body, []byte("request")) || !asked.ended {
				t.Errorf("the server heard %+v", asked)
			}
			if heard.head.StatusCode() != 200 || string(heard.body) != "response" || !heard.ended {
				t.Errorf("the client heard %+v", heard)
			}
			if l.up.closed != closed+1 || l.down.closed == 0 {
				t.Errorf("the owners were told of %d and %d closed streams", l.up.closed-closed, l.down.closed)
			}

			// A connection that drains without a request.
			l = newLink(t, id)
			l.server.Drain(false)
			l.carry()
			if l.server.End() != message.Open {
				t.Fatal("the first step of the end is the last")
			}
			if p.Multiplexed && l.up.drains == 0 {
				t.Error("the client's owner was not told")
			}
			l.server.Drain(true)
			if l.server.End() == message.Open {
				t.Error("nothing is open after the second step, and the connection goes on")
			}

			// One that drains with a request open ends with its response.
			l = newLink(t, id)
			asked, heard = l.request()
			heard.s.Data(nil, true)
			l.carry()
			l.server.Drain(true)
			if l.server.End() != message.Open {
				t.Error("the request is given up")
			}
			l.answer(asked)
			if l.server.End() == message.Open || l.server.End() == message.Abort || !heard.ended {
				t.Errorf("after the last response: %v, %+v", l.server.End(), heard)
			}

			// The client gives a request up.
			l = newLink(t, id)
			asked, heard = l.request()
			heard.s.Reset(message.LocalReset)
			if l.client.Draining() {
				l.server.EOF() // its owner closes
			}
			l.carry()
			if asked.reset == 0 || l.client.Active() != 0 || heard.reset != 0 {
				t.Errorf("given up: the server's stream %v, %d active", asked.reset, l.client.Active())
			}

			// What is no request ends the connection, at most with an answer.
			l = newLink(t, id)
			n, err := l.server.Feed([]byte("\x01\x02\x03 no protocol at all \r\n\r\n"))
			if r, ok := err.(Refusal); ok {
				refused, status, _ := l.server.Refuse(r.Failure())
				if !refused || status < 400 || l.down.out.Len() == 0 {
					t.Errorf("refused: %v, %d", refused, status)
				}
			}
			if err == nil || n < 0 || l.server.End() == message.Open {
				t.Errorf("%d bytes of nonsense: %v, %v", n, err, l.server.End())
			}

			// A connection that breaks ends what is on it.
			l = newLink(t, id)
			asked, heard = l.request()
			l.client.Closed(message.ConnectionClosed)
			l.server.Closed(message.ConnectionClosed)
			if asked.reset == 0 || heard.reset == 0 || l.client.Capacity() != 0 || !l.client.Draining() {
				t.Errorf("closed: %v and %v", asked.reset, heard.reset)
			}

			// A client that closes did not reset its request.
			for name, ends := range map[string]func(Server){
				"EOF":    Server.EOF,
				"closed": func(c Server) { c.Closed(message.ConnectionClosed) },
			} {
				l = newLink(t, id)
				asked, _ = l.request()
				if ends(l.server); asked.reset != message.ConnectionClosed || l.server.End() == message.Open {
					t.Errorf("%s: %v", name, asked.reset)
				}
			}
		})
	}
}

func TestTheLongestInputOfAnyProtocolIsKept(t *testing.T) {
	o := new(Options)
	o.HTTP1.MaxHeaderBytes = 123 << 10
	if n := o.InputLimit(); n < 123<<10 || n < o.HTTP2.InputLimit() {
		t.Error(n)
	}
}
