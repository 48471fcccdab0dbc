package http1

import (
	"math/rand/v2"
	"testing"

	"sallyport/sidecar/message"
)

// Streams are used in every order, sensible or not, from within events and from
// outside. A codec must neither panic nor break the order of events (the tape
// checks it), and what it wrote for whole exchanges must be readable.

var randomRequests = []string{
	getA, wrkRequest, upgrade,
	"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabcdef",
	"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n",
	"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
	"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
	"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
	"\r\n", "x", "\x00",
}

var randomResponses = []string{
	smallResponse,
	"HTTP/1.1 100 Continue\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n",
	"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
	"HTTP/1.1 200 OK\r\n\r\nuntil close",
	"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
	"tunnel bytes", "\x00",
}

var (
	randomResponseHeads = []*message.Head{
		head(":status", "200"), head(":status", "200", "content-length", "3"), head(":status", "204"), head(":status", "103"),
		head(":status", "101", "upgrade", "websocket"), head(":status", "500", "bad", "\n"), head(":status", "304"),
	}
	randomRequestHeads = []*message.Head{
		requestOf("GET"), requestOf("POST"), requestOf("HEAD"), requestOf("CONNECT"), requestOf("UPGRADE"),
		head(":method", "POST", ":authority", "h", ":path", "/", "content-length", "3"), head(":method", "GET"),
	}
)

// randomUse does one thing to a stream.
func randomUse(r *rand.Rand, s message.Sender, heads []*message.Head, out *sink) {
	switch r.IntN(9) {
	case 0, 1:
		s.Head(heads[r.IntN(len(heads))], r.IntN(2) == 0)
	case 2, 3:
		s.Data([]byte("abc")[:r.IntN(4)], r.IntN(2) == 0)
	case 4:
		s.Trailers(head("x", "y"))
	case 5:
		s.Pause()
	case 6:
		s.Resume()
		s.Resume()
	case 7:
		out.full = !out.full
		s.Full()
	case 8:
		if r.IntN(8) == 0 {
			s.Reset(message.LocalReset)
		}
	}
}

func TestAnyUseOfAServerKeepsTheRules(t *testing.T) {
	exchanges := 0
	for seed := range uint64(10000) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := newPeer(t, &Options{AllowHTTP10: true, DefaultHost: "d", EnableTrailers: seed%2 == 0, MaxBodyPiece: 1 + int(seed%4)})
		within := func() {
			for range r.IntN(3) {
				randomUse(r, p.s, randomResponseHeads, p.out)
			}
		}
		p.onHead = func(*message.Head, bool) { within() }
		p.onData = func([]byte, bool) { within() }
		p.c.owner = untaped{p}
		var kept []byte
		for range 40 {
			switch r.IntN(12) {
			default:
				if r.IntN(3) > 0 {
					kept = append(kept, randomRequests[r.IntN(len(randomRequests))]...)
				}
				n, err := p.c.Feed(kept[:r.IntN(len(kept)+1)])
				kept = kept[n:]
				if err != nil {
					p.c.Refuse(err.(*Error).Kind)
				}
			case 0, 1, 2, 3:
				if p.s != nil && p.c.r != nil {
					randomUse(r, p.s, randomResponseHeads, p.out)
				}
			case 4:
				p.c.Writable()
			case 5:
				switch r.IntN(20) {
				case 0:
					p.c.EOF()
				case 1:
					p.c.Closed(message.RemoteReset)
				case 2:
					p.c.Drain(r.IntN(2) == 0)
				}
			}
			if over(p.c) && p.c.r != nil {
				t.Fatalf("seed %d: a closed connection has a stream", seed)
			}
		}
		exchanges += p.done
	}
	if exchanges < 5000 {
		t.Errorf("only %d exchanges were completed", exchanges)
	}
}

// untaped is a peer that forgets the reset of the stream before.
type untaped struct{ *peer }

func (p untaped) NewStream(s message.Sender, v message.Version) message.Receiver {
	p.tape.reset = 0
	return p.peer.NewStream(s, v)
}

func TestAnyUseOfAClientKeepsTheRules(t *testing.T) {
	exchanges := 0
	for seed := range uint64(10000) {
		r := rand.New(rand.NewPCG(seed, 2))
		out := newSink()
		c := NewClient(out, &Options{EnableTrailers: seed%2 == 0, MaxBodyPiece: 1 + int(seed%4)}, closing(func() { exchanges++ }))
		var s message.Sender
		open := func() {
			p := &tape{t: t}
			within := func() {
				for range r.IntN(2) {
					randomUse(r, s, randomRequestHeads, out)
				}
			}
			p.onHead = func(*message.Head, bool) { within() }
			p.onData = func([]byte, bool) { within() }
			s = c.Open(p)
			s.Head(randomRequestHeads[r.IntN(len(randomRequestHeads))], r.IntN(3) > 0)
		}
		var kept []byte
		for range 30 {
			if c.Capacity() == 1 {
				open()
			}
			switch r.IntN(10) {
			default:
				kept = append(kept, randomResponses[r.IntN(len(randomResponses))]...)
				n, err := c.Feed(kept[:r.IntN(len(kept)+1)])
				kept = kept[n:]
				if err != nil && !c.Draining() {
					t.Fatalf("seed %d: %v left the connection open", seed, err)
				}
			case 0, 1, 2:
				if c.r != nil {
					randomUse(r, s, randomRequestHeads, out)
				}
			case 3:
				c.Writable()
			case 4:
				if r.IntN(8) == 0 {
					c.EOF()
				}
			case 5:
				if r.IntN(16) == 0 {
					c.Closed(message.RemoteReset)
				}
			}
			if c.Active() == 0 && c.r != nil {
				t.Fatalf("seed %d: a connection without an exchange has a stream", seed)
			}
		}
	}
	if exchanges < 5000 {
		t.Errorf("only %d exchanges were completed", exchanges)
	}
}
