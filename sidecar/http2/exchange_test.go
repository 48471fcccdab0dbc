package http2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"sallyport/sidecar/message"
)

// TestExchangesCutAnywhere: however the bytes are cut, the events are the same.
func TestExchangesCutAnywhere(t *testing.T) {
	run := func(cut func(int) int) string {
		p := newPair(t, nil, &Options{AllowConnect: true})
		p.cut = cut
		var requests, responses []*tape
		p.accept = func(s *Stream) message.Receiver {
			r := &tape{t: t, s: s}
			requests = append(requests, r)
			r.onHead = func(h *message.Head, end bool) {
				if h.Has(message.Upgrade) {
					s.Head(head(":status=101", "upgrade=websocket", "connection=upgrade"), false)
				}
			}
			r.onEnd = func() {
				s.Head(head(":status=103", "link=</a>"), false)
				s.Head(head(":status=200", "x-a=b"), false)
				s.Data(bytes.Repeat([]byte("0123456789"), 4000), false)
				s.Trailers(head("grpc-status=0"))
			}
			return r
		}
		p.settle()
		send := func(h *message.Head, body string, trailers *message.Head) {
			r := &tape{t: t}
			responses = append(responses, r)
			s := p.open(r)
			s.Head(h, body == "" && trailers == nil)
			if trailers != nil {
				s.Data([]byte(body), false)
				s.Trailers(trailers)
			} else if body != "" {
				s.Data([]byte(body), true)
			}
		}
		send(get, "", nil)
		send(head(":method=POST", ":scheme=http", ":authority=h", ":path=/p", "cookie=a=b", "x-long="+strings.Repeat("v", 20000)), "hello", nil)
		send(head(":method=POST", ":scheme=http", ":authority=h", ":path=/t", "content-length=5", "te=trailers"), "hello", head("x-sum=1"))
		send(head(":method=GET", ":scheme=http", ":authority=h", ":path=/ws", "upgrade=websocket", "connection=upgrade", "sec-websocket-key=k"), "frame", nil)
		p.settle()
		var b strings.Builder
		for _, r := range append(requests, responses...) {
			fmt.Fprintln(&b, r)
		}
		if p.client.Active() != 0 || p.server.Active() != 0 {
			t.Errorf("%d and %d streams are left", p.client.Active(), p.server.Active())
		}
		return b.String()
	}
	want := run(func(n int) int { return n })
	for _, part := range []string{
		"[:method=GET :scheme=https :path=/ :authority=h.example].",
		`x-long=` + strings.Repeat("v", 20000) + `]"hello".`,
		`content-length=5 te=trailers]"hello"+[x-sum=1].`,
		`[:method=GET :scheme=http :path=/ws :authority=h sec-websocket-key=k upgrade=websocket connection=upgrade]"frame".`,
		"[:status=103 link=</a>][:status=200 x-a=b]" + fmt.Sprintf("%q", strings.Repeat("0123456789", 4000)) + "+[grpc-status=0].",
		"[:status=101 upgrade=websocket connection=upgrade]",
	} {
		if !strings.Contains(want, part) {
			t.Fatalf("%.200s\nis not in\n%.2000s", part, want)
		}
	}
	if got := run(func(int) int { return 1 }); got != want {
		t.Errorf("byte by byte:\n%.2000s\nwant\n%.2000s", got, want)
	}
	r := rand.New(rand.NewPCG(9, 10))
	for range 20 {
		if got := run(func(n int) int { return 1 + r.IntN(min(n, 1<<r.IntN(14))) }); got != want {
			t.Fatalf("cut at random:\n%.2000s\nwant\n%.2000s", got, want)
		}
	}
}

// TestRandomTraffic has many streams with content both ways, small windows,
// pauses and full outputs, and checks that every byte comes, in order, and nothing is left.
func TestRandomTraffic(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 11))
		o := &Options{InitialStreamWindow: 1 << (4 + r.IntN(14)), MaxConcurrentStreams: 8, StreamBufferLimit: 5000, BufferLimit: 1 + r.IntN(20000), HeaderTableSize: uint32(1 + r.IntN(5000)),
			MaxWindowUpdates: 1000}
		p := newPair(t, &Options{InitialStreamWindow: 1 << (4 + r.IntN(14)), StreamBufferLimit: 5000, MaxWindowUpdates: 1000}, o)
		p.cut = func(n int) int { return 1 + r.IntN(min(n, 5000)) }
		content := func(n int) []byte {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(i*7 + i>>8)
			}
			return b
		}
		type side struct {
			*tape
			left   []byte
			got    []byte
			paused bool
		}
		var sides []*side
		sent, received := 0, 0
		// push sends as much as may be sent, as a well-behaved owner does.
		push := func(s *side) {
			for len(s.left) > 0 && !s.s.Full() {
				n := 1 + r.IntN(len(s.left))
				b := s.left[:n]
				s.left = s.left[n:]
				s.s.Data(b, len(s.left) == 0)
			}
		}
		add := func(st *Stream) *side {
			s := &side{tape: &tape{t: t, s: st}, left: content(1 + r.IntN(60000))}
			sent += len(s.left)
			s.onData = func(p []byte, _ bool) {
				s.got, s.data = append(s.got, p...), s.data[:0]
				received += len(p)
				if !s.paused && r.IntN(4) == 0 {
					s.paused = true
					s.s.Pause()
				}
			}
			sides = append(sides, s)
			return s
		}
		p.accept = func(st *Stream) message.Receiver {
			s := add(st)
			s.onEnd = func() {
				st.Head(head(":status=200", "content-length="+fmt.Sprint(len(s.left))), false)
				push(s)
			}
			return s
		}
		p.settle()
		for range 30 {
			if p.client.Capacity() > 0 {
				s := add(nil)
				s.s = p.open(s)
				s.s.Head(get, false)
				push(s)
			}
			p.settle()
		}
		for range 100000 {
			busy := false
			for _, s := range sides {
				if s.paused {
					s.paused, busy = false, true
					s.s.Resume()
				}
				if len(s.left) > 0 && s.heads > 0 && s.reset == 0 && (s.s.c == p.client || s.ended) && !s.ended == (s.s.c == p.client) {
					push(s)
					busy = true
				}
			}
			p.up.full, p.down.full = r.IntN(2) == 0, r.IntN(2) == 0
			if !p.up.full {
				p.client.Writable()
			}
			if !p.down.full {
				p.server.Writable()
			}
			p.settle()
			for _, s := range sides {
				if s.s.c == p.client && s.heads == 0 && len(s.left) > 0 {
					push(s)
					busy = true
				}
			}
			if !busy && p.client.Active()+p.server.Active() == 0 {
				break
			}
		}
		if p.client.Active()+p.server.Active() != 0 {
			t.Fatalf("seed %d: %d and %d streams are left", seed, p.client.Active(), p.server.Active())
		}
		for _, s := range sides {
			if !s.ended || s.reset != 0 || len(s.left) > 0 || !bytes.Equal(s.got, content(len(s.got))) {
				t.Fatalf("seed %d: ended %v, reset %v, %d bytes not sent", seed, s.ended, s.reset, len(s.left))
			}
		}
		if sent != received {
			t.Fatalf("seed %d: %d bytes of %d came", seed, received, sent)
		}
		for _, c := range []*Conn{p.client, p.server} {
			if c.waiting != 0 || c.held != 0 || c.full != 0 {
				t.Fatalf("seed %d: %d bytes wait, %d are held, %d senders are held back", seed, c.waiting, c.held, c.full)
			}
		}
	}
}

func TestAnEarlyResponseEndsTheRequest(t *testing.T) {
	s := newServer(t, nil)
	s.setup = func(r *tape) {
		r.onHead = func(*message.Head, bool) { r.s.Head(head(":status=413"), true) }
	}
	s.request(1, false)
	s.want("HEADERS 1 end\nRST_STREAM 1 NO_ERROR")
	s.data(1, false, "still on its way")
	s.headers(1, true, "x-trailer=1")
	if s.err != nil || s.frames() != "" || s.c.Active() != 0 {
		t.Error(s.err)
	}
	// HPACK agrees still, and the connection goes on.
	s.request(3, true, "x-trailer=1")
	s.want("HEADERS 3 end")
	if got := s.tapes[1].String(); !strings.Contains(got, "x-trailer=1].") {
		t.Error(got)
	}
}

// TestAPauseKeepsContentAndTheWindowShut, of the stream: the connection's is for others.
func TestAPauseKeepsContentAndTheWindowShut(t *testing.T) {
	s := newServer(t, &Options{InitialStreamWindow: 100000, InitialConnWindow: 200000})
	s.request(1, false)
	r := s.tapes[0]
	r.s.Pause()
	for range 10 {
		s.data(1, false, strings.Repeat("x", 10000))
	}
	if len(r.data) != 0 {
		t.Error("content is delivered during a pause")
	}
	s.want("WINDOW_UPDATE 0 100000")
	r.s.Resume()
	if len(r.data) != 100000 {
		t.Errorf("%d bytes after Resume", len(r.data))
	}
	s.want("WINDOW_UPDATE 1 65536")
}

func TestAPauseWithinResumeStopsTheRest(t *testing.T) {
	s := newServer(t, nil)
	s.request(1, false)
	r := s.tapes[0]
	r.s.Pause()
	r.onData = func([]byte, bool) { r.s.Pause() }
	s.data(1, false, strings.Repeat("a", 16000))
	s.data(1, false, strings.Repeat("b", 16000))
	s.headers(1, true, "x-sum=1")
	for i, want := range []int{deliverPiece, 32000} {
		if r.s.Resume(); len(r.data) != want || r.ended {
			t.Fatalf("%d bytes after Resume %d", len(r.data), i)
		}
	}
	if r.s.Resume(); !strings.HasSuffix(r.String(), "+[x-sum=1].") {
		t.Errorf("%.50s", r)
	}
}

// TestAResponseSurvivesTheConnection: what is here as a whole is delivered after the transport ended.
func TestAResponseSurvivesTheConnection(t *testing.T) {
	p := newPair(t, nil, nil)
	p.accept = func(s *Stream) message.Receiver {
		return &tape{t: t, onEnd: func() {
			s.Head(head(":status=200"), false)
			s.Data([]byte("hello"), true)
		}}
	}
	whole, part := &tape{t: t}, &tape{t: t}
	s := p.open(whole)
	s.Pause()
	s.Head(get, true)
	p.open(part).Head(get, false)
	unsent := &tape{t: t}
	p.open(unsent)
	p.settle()
	p.client.Closed(message.ConnectionClosed)
	if part.reset != message.ConnectionClosed || unsent.reset != message.Refused || whole.reset != 0 {
		t.Error(part.reset, unsent.reset, whole.reset)
	}
	if s.Resume(); whole.String() != `[:status=200]"hello".` || p.client.Active() != 0 {
		t.Error(whole, p.client.Active())
	}
}

func TestStreamsTakeTurns(t *testing.T) {
	s := newServer(t, nil)
	_ = s.f.WriteWindowUpdate(0, 1<<20)
	s.out.full = true
	for id := uint32(1); id < 7; id += 2 {
		s.request(id, true)
		r := s.tapes[len(s.tapes)-1]
		r.s.Head(head(":status=200"), false)
		r.s.Data(make([]byte, 40000), true)
	}
	if got := s.frames(); got != "" {
		t.Errorf("sent into a full output: %s", got)
	}
	s.out.full = false
	s.c.Writable()
	s.want("HEADERS 1\nHEADERS 3\nHEADERS 5\nDATA 1 16384\nDATA 3 16384\nDATA 5 16384\nDATA 1 16384\nDATA 3 16384\nDATA 5 16384\n" +
		"DATA 1 7232 end\nDATA 3 7232 end\nDATA 5 7232 end")
}

func TestAHeadNeedsNoWindow(t *testing.T) {
	s := newServer(t, nil)
	s.request(1, true)
	s.tapes[0].s.Head(head(":status=200"), false)
	s.tapes[0].s.Data(make([]byte, 70000), true)
	s.want("HEADERS 1\nDATA 1 16384\nDATA 1 16384\nDATA 1 16384\nDATA 1 16383")
	s.out.full = true
	s.request(3, true)
	s.tapes[1].s.Head(head(":status=204"), true)
	s.out.full = false
	s.c.Writable()
	s.want("HEADERS 3 end")
	_ = s.f.WriteWindowUpdate(1, 1<<16)
	s.send()
	s.want("")
	_ = s.f.WriteWindowUpdate(0, 1<<16)
	s.send()
	s.want("DATA 1 4465 end")
}

func TestFullAndDrained(t *testing.T) {
	s := newServer(t, &Options{StreamBufferLimit: 1000})
	s.request(1, true)
	r := s.tapes[0]
	r.s.Head(head(":status=200"), false)
	r.s.Data(make([]byte, 65535+2000), false)
	if !r.s.Full() {
		t.Fatal("not full")
	}
	_ = s.f.WriteWindowUpdate(1, 1000)
	_ = s.f.WriteWindowUpdate(0, 1<<16)
	s.send()
	if r.drains != 0 {
		t.Error("Drained with 1000 bytes waiting")
	}
	_ = s.f.WriteWindowUpdate(1, 600)
	s.send()
	if r.drains != 1 || r.s.Full() {
		t.Errorf("%d drains", r.drains)
	}
	s.out.full = true
	if !r.s.Full() {
		t.Error("not full with the output full")
	}
	s.out.full = false
	if s.c.Writable(); r.drains != 2 {
		t.Errorf("%d drains", r.drains)
	}
}

func TestTheOwnersMistakesResetTheStream(t *testing.T) {
	for name, f := range map[string]func(*Stream){
		"data before the head":     func(s *Stream) { s.Data([]byte("x"), false) },
		"trailers before the head": func(s *Stream) { s.Trailers(head("a=b")) },
		"two heads":                func(s *Stream) { s.Head(head(":status=200"), false); s.Head(head(":status=200"), false) },
		"no status":                func(s *Stream) { s.Head(head("a=b"), false) },
		"101 to no upgrade":        func(s *Stream) { s.Head(head(":status=101"), false) },
		"the end with a 1xx head":  func(s *Stream) { s.Head(head(":status=103"), true) },
	} {
		s := newServer(t, nil)
		s.request(1, false)
		f(s.tapes[0].s)
		if got := s.frames(); !strings.HasSuffix(got, "RST_STREAM 1 INTERNAL_ERROR") || s.tapes[0].reset != message.LocalReset || s.c.Active() != 0 {
			t.Errorf("%s: %s, %v", name, got, s.tapes[0].reset)
		}
	}
}

func TestResetCodes(t *testing.T) {
	for _, c := range []struct {
		why    message.Reason
		headed bool
		want   string
	}{
		{message.LocalReset, false, "INTERNAL_ERROR"},
		{message.RemoteReset, true, "INTERNAL_ERROR"},
		{message.ProtocolError, false, "PROTOCOL_ERROR"},
		{message.Overflow, false, "REFUSED_STREAM"},
		{message.Overflow, true, "INTERNAL_ERROR"},
	} {
		s := newServer(t, nil)
		s.request(1, true)
		if c.headed {
			s.tapes[0].s.Head(head(":status=200"), false)
			s.frames()
		}
		s.tapes[0].s.Reset(c.why)
		s.want("RST_STREAM 1 " + c.want)
	}
}
