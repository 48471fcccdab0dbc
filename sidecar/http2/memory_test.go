package http2

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// pushAll has each stream send pieces until it is told that it is full.
func (s *server) pushAll(piece int) {
	for _, r := range s.tapes {
		for r.reset == 0 && !r.s.Full() {
			r.s.Data(make([]byte, piece), false)
		}
	}
}

// TestWhatWaitsOnAConnectionIsBounded: a client that opens no window gets a hundred responses without end.
func TestWhatWaitsOnAConnectionIsBounded(t *testing.T) {
	const limit, piece, streams = 32 << 10, 16 << 10, 100
	s := newServer(t, &Options{BufferLimit: limit})
	_ = s.f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	for id := uint32(1); id < 2*streams; id += 2 {
		s.request(id, true)
		s.tapes[len(s.tapes)-1].s.Head(head(":status=200"), false)
	}
	s.pushAll(piece)
	// Each stream may be told only after a piece.
	if most := limit + streams*piece; s.c.waiting > most || s.c.waiting < limit {
		t.Fatalf("%d bytes wait, at most %d may", s.c.waiting, most)
	}
	if s.c.full != streams {
		t.Errorf("%d senders are held back", s.c.full)
	}

	// One that has a window flows in spite of the others.
	s.out.b.Release()
	s.request(201, true)
	if s.err != nil || len(s.tapes) != streams {
		t.Fatal(s.err)
	}
	_ = s.f.WriteRSTStream(1, http2.ErrCodeCancel)
	s.request(203, true)
	_ = s.f.WriteWindowUpdate(203, 1<<20)
	_ = s.f.WriteWindowUpdate(0, 1<<20)
	s.send()
	flows := s.tapes[len(s.tapes)-1]
	flows.s.Head(head(":status=200"), false)
	for range 20 {
		if flows.s.Data(make([]byte, piece), false); flows.s.Full() {
			t.Fatal("a stream that is read is held back for those that are not")
		}
	}

	// When those that are not read are gone, the rest are told.
	for id := uint32(3); id < 2*streams-1; id += 2 {
		_ = s.f.WriteRSTStream(id, http2.ErrCodeCancel)
	}
	s.send()
	last := s.tapes[streams-1]
	if last.drains != 1 || last.s.Full() || s.c.waiting != piece {
		t.Errorf("%d drains, %d bytes wait", last.drains, s.c.waiting)
	}
}

// TestHeadsThatWaitCount as what waits on the connection.
func TestHeadsThatWaitCount(t *testing.T) {
	s := newServer(t, &Options{BufferLimit: 10000})
	s.request(1, true)
	s.request(3, true)
	s.out.full = true
	s.tapes[0].s.Head(head(":status=200", "x="+strings.Repeat("y", 20000)), false)
	s.tapes[1].s.Head(head(":status=200"), false)
	s.tapes[1].s.Data([]byte("x"), false)
	if s.c.waiting < 20000 {
		t.Errorf("%d bytes wait", s.c.waiting)
	}
	s.out.full = false
	if !s.tapes[1].s.Full() {
		t.Error("not full beside a head of 20 kB")
	}
	s.c.Writable()
	if s.c.waiting != 0 || s.tapes[1].drains != 1 {
		t.Error(s.c.waiting, s.tapes[1].drains)
	}
}

// TestAnOutputThatIsFullGetsNoMoreHeads: neither trailers nor informational ones, of which each response may have many.
func TestAnOutputThatIsFullGetsNoMoreHeads(t *testing.T) {
	s := newServer(t, nil)
	s.request(1, true)
	r := s.tapes[0].s
	r.Head(head(":status=200"), false)
	s.request(3, true)
	s.frames()
	s.out.full = true
	r.Trailers(head("x=" + strings.Repeat("y", 20000)))
	s.tapes[1].s.Head(head(":status=103", "link=x"), false)
	s.want("")
	s.out.full = false
	s.c.Writable()
	s.want("HEADERS 1 end\nCONTINUATION")
}
