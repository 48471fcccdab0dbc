package http1

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"sallyport/sidecar/message"
)

// How bytes arrive must not matter: in how many pieces, in how many turns of the
// loop, whether the receiver pauses or the output is full in between. The targets
// below feed the same bytes at once and in the worst of ways, and compare all that
// was heard and all that was sent.

// hearer writes down what it hears and answers from within: it echoes.
type hearer struct {
	quiet
	s      *ServerStream
	b      strings.Builder
	data   []byte
	body   []byte
	chance *rand.Rand // nil: it never pauses
	paused bool
}

func (h *hearer) flush() {
	if len(h.data) > 0 {
		fmt.Fprintf(&h.b, "%q", h.data)
		h.data = h.data[:0]
	}
}

func (h *hearer) NewStream(s message.Sender, _ message.Version) message.Receiver {
	h.s, h.paused = s.(*ServerStream), false
	h.body = h.body[:0]
	return h
}

func (h *hearer) Head(m *message.Head, end bool) {
	h.flush()
	h.b.WriteString(headText(m))
	switch protocol := m.OnlyElement(message.Upgrade); {
	case h.s == nil: // a client's
	case m.Is(message.Method, "CONNECT"):
		h.s.Head(head(":status", "200"), false)
	case h.s.IsUpgrade() && message.IsProtocol(protocol) && len(protocol)%2 == 1: // websocket
		h.s.Head(head(":status", "101", "upgrade", string(protocol)), false)
	case h.s.IsUpgrade():
		h.s.Head(head(":status", "403"), true)
	case end:
		h.answer()
	}
	h.rest(end)
}

func (h *hearer) Data(p []byte, end bool) {
	h.data = append(h.data, p...)
	h.body = append(h.body, p...)
	switch {
	case h.s == nil:
	case h.s.IsUpgrade():
		h.s.Data(p, end)
	case end:
		h.answer()
	}
	h.rest(end)
}

func (h *hearer) Trailers(m *message.Head) {
	h.flush()
	h.b.WriteString("+" + headText(m))
	if h.s != nil {
		h.answer()
	}
	h.rest(true)
}

func (h *hearer) answer() {
	h.s.Head(head(":status", "200", "content-type", "text/plain"), false)
	h.s.Data(h.body, true)
}

func (h *hearer) rest(end bool) {
	if end {
		h.flush()
		h.b.WriteString(". ")
	} else if h.chance != nil && h.s != nil && h.chance.IntN(4) == 0 {
		h.paused = true
		h.s.Pause()
	}
}

func (h *hearer) Reset(why message.Reason) {
	h.flush()
	fmt.Fprintf(&h.b, "<%v> ", why)
}

func (h *hearer) Drained() {}

// codec is a side of a connection as its owner sees it.
type codec interface {
	Feed(p []byte) (int, error)
	Rest() message.Rest
	Writable()
	EOF()
}

// arrive feeds raw to a codec: at once, or, with a source of chance, in pieces and
// turns, with an output that is full now and then. goOn is called where the codec
// waits for its receiver, and over says that the connection is.
func arrive(t *testing.T, c codec, turn *message.Turn, out *sink, raw []byte, chance *rand.Rand, over, goOn func() bool) (rest string, err error) {
	var kept []byte
	feeds := 0
	for left := raw; ; {
		n := len(left)
		if chance != nil {
			turn.Limit = 1 + chance.IntN(3*message.HeadCost)
			out.full = chance.IntN(3) == 0
			n = min(n, 1+chance.IntN(1+chance.IntN(40)))
		}
		kept = append(kept, left[:n]...)
		left = left[n:]
		for still := 0; still < 2 && len(kept) > 0; {
			if feeds++; feeds > 100*(len(raw)+1) {
				t.Fatalf("it goes on for ever with %q", kept)
			}
			n, err := c.Feed(kept)
			kept = append(kept[:0:0], kept[n:]...)
			if err != nil || over() {
				return string(kept) + string(left), err
			}
			moved := n > 0
			if c.Rest() == message.ForOwner {
				out.full = false
				c.Writable()
				moved = goOn() || moved
			}
			if still++; moved {
				still = 0
			}
		}
		if len(left) == 0 {
			break
		}
	}
	c.EOF()
	return string(kept), nil
}

// splitServer is everything that a server's side of those bytes comes to.
func splitServer(t *testing.T, raw []byte, o *Options, chance *rand.Rand) string {
	h := &hearer{chance: chance}
	out := newSink()
	c := NewServer(out, o, h)
	rest, err := arrive(t, c, &c.Turn, out, raw, chance, func() bool { return over(c) }, func() bool {
		if h.s == nil || !h.paused {
			return false
		}
		h.paused = false
		h.s.Resume()
		return true
	})
	h.flush()
	if over(c) {
		rest = "" // what comes behind the last request is nobody's
	}
	return fmt.Sprintf("heard %s\nsent %q\nerror %v, closes %v, aborted %v, rest %q", h.b.String(), out.take(), err, over(c), aborted(c), rest)
}

func FuzzSplits(f *testing.F) {
	for i, c := range requestCases {
		f.Add([]byte(wire(c.raw)), uint64(i))
	}
	f.Add([]byte(browserRequest+getA+upgrade+"in the tunnel"), uint64(1))
	f.Add([]byte(strings.Repeat(getA, 30)), uint64(2))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"+strings.Repeat("1\r\na\r\n", 30)+"0\r\nx: y\r\n\r\n"+getA), uint64(3))
	f.Fuzz(func(t *testing.T, raw []byte, seed uint64) {
		raw = append(raw, '\n') // ends the last line: a partial one is not judged yet
		o := &Options{AllowHTTP10: seed&1 != 0, AllowCustomMethods: seed&2 != 0, EnableTrailers: seed&4 != 0, DefaultHost: "default"}
		whole := splitServer(t, raw, o, nil)
		for i := range uint64(3) {
			if split := splitServer(t, raw, o, rand.New(rand.NewPCG(seed, i))); split != whole {
				t.Fatalf("at once:\n%s\nin pieces:\n%s", whole, split)
			}
		}
	})
}

// splitClient is everything that a client's side comes to, for one request.
func splitClient(t *testing.T, raw []byte, method string, o *Options, chance *rand.Rand) string {
	h := new(hearer)
	out := newSink()
	c := NewClient(out, o, quiet{})
	s := c.Open(h)
	s.Head(requestOf(method), method != "CONNECT" && method != "UPGRADE")
	if chance != nil && chance.IntN(2) == 0 {
		s.Pause()
	}
	_, err := arrive(t, c, &c.Turn, out, raw, chance, c.Draining, func() bool {
		s.Resume()
		return true
	})
	h.flush()
	if err == error(errUnsolicited) {
		err = nil // how far a byte that nobody asked for is from the response decides who notices it
	}
	return fmt.Sprintf("heard %s\nsent %q\nerror %v, reusable %v", h.b.String(), out.take(), err, c.Capacity() == 1)
}

func FuzzResponseSplits(f *testing.F) {
	methods := []string{"GET", "HEAD", "CONNECT", "UPGRADE"}
	for i, c := range responseCases {
		for m, method := range methods {
			if c.method == method || c.method == "" && m == 0 {
				f.Add([]byte(wire(c.raw)), uint64(i), uint8(m))
			}
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, seed uint64, method uint8) {
		raw = append(raw, '\n')
		o := &Options{EnableTrailers: seed&4 != 0}
		m := methods[int(method)%len(methods)]
		whole := splitClient(t, raw, m, o, nil)
		for i := range uint64(3) {
			if split := splitClient(t, raw, m, o, rand.New(rand.NewPCG(seed, i))); split != whole {
				t.Fatalf("at once:\n%s\nin pieces:\n%s", whole, split)
			}
		}
	})
}
