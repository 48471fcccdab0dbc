package http2

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestFloods sends what costs us more than the peer, until the connection ends.
func TestFloods(t *testing.T) {
	u32 := func(v uint32) string { return string(binary.BigEndian.AppendUint32(nil, v)) }
	for _, c := range []struct {
		name  string
		frame func(s *server, i int)
		most  int // frames until the end
	}{
		{"PING that is not read", func(s *server, _ int) { _ = s.f.WritePing(false, [8]byte{}) }, 1001},
		{"SETTINGS that are not read", func(s *server, _ int) { _ = s.f.WriteSettings() }, 1001},
		{"PING that is read", func(s *server, _ int) { _ = s.f.WritePing(false, [8]byte{}); s.out.take() }, idlesAtOnce + 1},
		{"acknowledgments", func(s *server, _ int) { _ = s.f.WriteSettingsAck() }, idlesAtOnce + 1},
		{"frames of an unknown type", func(s *server, _ int) { s.in.Write(raw(nil, 0x20, 0, 0, "")) }, idlesAtOnce + 1},
		{"empty DATA", func(s *server, _ int) { _ = s.f.WriteData(1, false, nil) }, 2},
		{"DATA of padding only", func(s *server, _ int) { _ = s.f.WriteDataPadded(1, false, nil, []byte{0}) }, 2},
		{"PRIORITY", func(s *server, i int) { s.in.Write(raw(nil, framePriority, 0, uint32(2*i+1), u32(0)+"\x00")) }, 203},
		{"WINDOW_UPDATE", func(s *server, _ int) { _ = s.f.WriteWindowUpdate(0, 1) }, 10},
		{"WINDOW_UPDATE on a stream", func(s *server, _ int) { _ = s.f.WriteWindowUpdate(1, 1) }, 10},
		{"CONTINUATION without end", func(s *server, i int) {
			if i == 0 {
				s.in.Write(raw(nil, frameHeaders, 0, 3, "\x82"))
			}
			s.in.Write(raw(nil, frameContinuation, 0, 3, "\x00\x01x\x01y"))
		}, 100},
		{"CONTINUATION of whole frames", func(s *server, i int) {
			if i == 0 {
				s.in.Write(raw(nil, frameHeaders, 0, 3, "\x82"))
			}
			s.in.Write(raw(nil, frameContinuation, 0, 3, strings.Repeat("\x90", 16384)))
		}, 9},
		{"empty CONTINUATION", func(s *server, i int) {
			if i == 0 {
				s.in.Write(raw(nil, frameHeaders, 0, 3, "\x82"))
			}
			s.in.Write(raw(nil, frameContinuation, 0, 3, ""))
		}, 3},
		{"rapid reset", func(s *server, i int) {
			s.request(uint32(2*i+3), true)
			_ = s.f.WriteRSTStream(uint32(2*i+3), http2.ErrCodeCancel)
		}, 502},
		{"made to reset, by WINDOW_UPDATE of 0", func(s *server, i int) {
			s.request(uint32(2*i+3), true)
			_ = s.f.WriteRawFrame(http2.FrameWindowUpdate, 0, uint32(2*i+3), make([]byte, 4))
		}, 502},
		{"malformed requests", func(s *server, i int) { s.request(uint32(2*i+3), true, "connection=x") }, 502},
	} {
		s := newServer(t, &Options{MaxHeaderBytes: 4096 * 16})
		s.request(1, false)
		s.frames()
		frames := 0
		for ; s.err == nil && frames <= idlesAtOnce+10; frames++ {
			c.frame(s, frames)
			if s.send(); s.out.b.Len() > 1<<20 {
				t.Fatalf("%s: %d bytes wait", c.name, s.out.b.Len())
			}
		}
		if e, ok := s.err.(*ConnError); !ok || e.Code != EnhanceYourCalm || frames > c.most {
			t.Errorf("%s: %v after %d frames", c.name, s.err, frames)
		}
	}
}

// TestAGoodPastDoesNotPayForAnAttack, and a bad moment is forgiven.
func TestAGoodPastDoesNotPayForAnAttack(t *testing.T) {
	s := newServer(t, nil)
	id := uint32(1)
	good := func() {
		s.request(id, true)
		s.tapes[len(s.tapes)-1].s.Head(head(":status=200"), true)
		s.out.take()
		id += 2
	}
	bad := func() {
		s.request(id, true)
		_ = s.f.WriteRSTStream(id, http2.ErrCodeCancel)
		s.send()
		id += 2
	}
	for range 100 {
		for range 40 {
			bad()
		}
		for range 60 {
			good()
		}
	}
	if s.err != nil {
		t.Fatalf("40 of 100: %v", s.err)
	}
	for range 20000 {
		good()
	}
	n := 0
	for ; s.err == nil && n < 5000; n++ {
		bad()
	}
	if n > 2000 {
		t.Errorf("%d resets in a row", n)
	}
}

// many is n, or fewer under the race detector, which is slow.
func many(n int) int {
	if raceDetector {
		return n / 10
	}
	return n
}

// TestNoTransferEndsForItsLength: a receiver's frames are paid for by what it received, and a sender's by what it
// sent, without any help of the clock, which stands still here.
func TestNoTransferEndsForItsLength(t *testing.T) {
	frames := many(300_000)
	for _, c := range []struct {
		name string
		turn func(s *server)
	}{
		{"a download of which each DATA frame brings two WINDOW_UPDATE and a PING, as grpc-go's", func(s *server) {
			s.tapes[0].s.Data(make([]byte, 1000), false)
			_ = s.f.WriteWindowUpdate(0, 1000)
			_ = s.f.WriteWindowUpdate(1, 1000)
			_ = s.f.WritePing(false, [8]byte{})
		}},
		{"a download of which each DATA frame brings ten WINDOW_UPDATE", func(s *server) {
			s.tapes[0].s.Data(make([]byte, 1000), false)
			for range 5 {
				_ = s.f.WriteWindowUpdate(0, 200)
				_ = s.f.WriteWindowUpdate(1, 200)
			}
		}},
		{"an upload with a PING for each DATA frame", func(s *server) {
			_ = s.f.WriteData(1, false, make([]byte, 1000))
			_ = s.f.WritePing(false, [8]byte{})
		}},
		{"responses of a head alone, with a PING for each", func(s *server) {
			id := s.c.taken + 2
			s.request(id, true)
			s.tapes[1].s.Head(head(":status=204"), true)
			s.tapes = s.tapes[:1]
			_ = s.f.WritePing(false, [8]byte{})
		}},
	} {
		s := newServer(t, nil)
		s.request(1, false)
		s.tapes[0].s.Head(head(":status=200"), false)
		s.tapes[0].onData = func([]byte, bool) { s.tapes[0].data = s.tapes[0].data[:0] }
		for i := 0; i < frames && s.err == nil; i++ {
			c.turn(s)
			s.send()
			s.out.b.Release()
		}
		if s.err != nil || s.tapes[0].reset != 0 {
			t.Errorf("%s: %v, %v", c.name, s.err, s.tapes[0].reset)
		}
	}
}

func TestAKeepaliveNeverEndsAConnection(t *testing.T) {
	for _, perSecond := range []int{1, 900} {
		s := newServer(t, nil)
		for range many(300_000) {
			s.out.now += int64(time.Second) / int64(perSecond)
			_ = s.f.WritePing(false, [8]byte{})
			s.send()
			s.out.b.Release()
		}
		if s.err != nil {
			t.Errorf("%d a second: %v", perSecond, s.err)
		}
	}
}

// TestTransfersDoNotPayForAFlood: what a transfer saved up is bounded.
func TestTransfersDoNotPayForAFlood(t *testing.T) {
	s := newServer(t, nil)
	s.request(1, true)
	s.tapes[0].s.Head(head(":status=200"), false)
	for range 50_000 {
		_ = s.f.WriteWindowUpdate(0, 1)
		_ = s.f.WriteWindowUpdate(1, 1)
		s.send()
		s.tapes[0].s.Data([]byte("x"), false)
		s.out.b.Release()
	}
	frames := 0
	for ; s.err == nil && frames < 10*windowUpdatesSaved; frames++ {
		_ = s.f.WriteWindowUpdate(0, 1)
		s.send()
	}
	if frames > windowUpdatesSaved+1 {
		t.Errorf("%d WINDOW_UPDATE without DATA: %v", frames, s.err)
	}
}

// TestAnswersThatLeaveAreNotCounted: the Output of a busy connection is never empty.
func TestAnswersThatLeaveAreNotCounted(t *testing.T) {
	s := newServer(t, nil)
	s.out.b.Append(make([]byte, 300*(frameHeaderLen+8)))
	for range many(100_000) {
		s.out.now += int64(time.Millisecond)
		_ = s.f.WritePing(false, [8]byte{})
		s.send()
		s.out.b.Consume(frameHeaderLen + 8)
	}
	if s.err != nil || s.out.b.Len() != 300*(frameHeaderLen+8) {
		t.Errorf("%v, %d bytes wait", s.err, s.out.b.Len())
	}
	frames := 0
	for ; s.err == nil; frames++ {
		s.out.now += int64(time.Millisecond)
		_ = s.f.WritePing(false, [8]byte{})
		s.send()
	}
	if s.wantError(EnhanceYourCalm); frames > s.c.o.MaxControlFrames+1 {
		t.Errorf("%d answers wait", frames)
	}
}

// TestCancelledRequests: what each costs the connection of the client who cancels.
func TestCancelledRequests(t *testing.T) {
	cancel := func(s *server, id uint32) { _ = s.f.WriteRSTStream(id, http2.ErrCodeCancel); s.send() }
	for _, c := range []struct {
		name string
		turn func(s *server, r *tape, id uint32)
		ends bool
	}{
		{"at once", func(s *server, _ *tape, id uint32) { cancel(s, id) }, true},
		{"at once, 50 a second", func(s *server, _ *tape, id uint32) { cancel(s, id); s.out.now += int64(time.Second) / 50 }, false},
		{"after an informational response", func(s *server, r *tape, id uint32) {
			r.s.Head(head(":status=103"), false)
			cancel(s, id)
		}, true},
		{"after the response began", func(s *server, r *tape, id uint32) {
			r.s.Head(head(":status=200"), false)
			r.s.Data([]byte("event"), false)
			cancel(s, id)
		}, false},
		{"after a second without a response", func(s *server, _ *tape, id uint32) { s.out.now += youth; cancel(s, id) }, false},
		{"by an invalid frame, before the response", func(s *server, _ *tape, id uint32) {
			_ = s.f.WriteRawFrame(http2.FrameWindowUpdate, 0, id, make([]byte, 4))
			s.send()
		}, true},
	} {
		s := newServer(t, nil)
		for i := 0; i < 3000 && s.err == nil; i++ {
			id := uint32(2*i + 1)
			s.request(id, true)
			if s.err == nil {
				c.turn(s, s.tapes[i], id)
				s.out.b.Release()
			}
		}
		if (s.err != nil) != c.ends {
			t.Errorf("%s: %v", c.name, s.err)
		}
	}
}

// TestASharedConnectionIsNotEndedForWhatOneUserCancels: new requests are refused for a while, those under way go on.
func TestASharedConnectionIsNotEndedForWhatOneUserCancels(t *testing.T) {
	s := newServer(t, &Options{Shared: true})
	s.request(1, true)
	victim := s.tapes[0]
	id, taken := uint32(3), 0
	attack := func(n int) {
		for ; n > 0; n-- {
			s.request(id, true)
			_ = s.f.WriteRSTStream(id, http2.ErrCodeCancel)
			s.send()
			id += 2
			s.out.b.Release()
		}
		taken, s.tapes = len(s.tapes), nil
	}
	if attack(5000); s.err != nil || taken != 501 {
		t.Fatalf("%v, %d taken", s.err, taken)
	}
	s.request(id, true)
	s.want(fmt.Sprintf("RST_STREAM %d REFUSED_STREAM", id))
	id += 2
	// As many as may be concurrent are let in each second, and those that are answered count for nothing.
	if s.out.now += int64(time.Second); true {
		attack(5000)
	}
	if s.err != nil || taken != 100 {
		t.Fatalf("%v, %d taken after a second", s.err, taken)
	}
	s.out.now += int64(time.Second)
	for range 1000 {
		s.request(id, true)
		if len(s.tapes) != 1 {
			t.Fatal("an honest request is refused")
		}
		s.tapes[0].s.Head(head(":status=200"), true)
		s.tapes = nil
		id += 2
	}
	s.out.b.Release()
	victim.s.Head(head(":status=200"), true)
	s.want("HEADERS 1 end")
	if victim.reset != 0 || s.err != nil {
		t.Error(victim.reset, s.err)
	}
}

// TestHeadsThatAreTooLargeEndNoConnection: each caused no more work than reading it.
func TestHeadsThatAreTooLargeEndNoConnection(t *testing.T) {
	s := newServer(t, &Options{MaxHeaderBytes: 1000})
	for id := uint32(1); id < 6000; id += 2 {
		s.request(id, true, "x="+strings.Repeat("y", 1000))
		if got := s.frames(); s.err != nil || got != fmt.Sprintf("HEADERS %d end", id) {
			t.Fatal(id, s.err, got)
		}
	}
}

// TestStreamsBeyondALimitThatIsNotKnownYet are refused and cost nothing: they are what a client may send before it
// has our SETTINGS.
func TestStreamsBeyondALimitThatIsNotKnownYet(t *testing.T) {
	s := &server{t: t, out: newSink()}
	s.f = http2.NewFramer(&s.in, nil)
	s.enc = newEncoder(&s.block)
	s.c = NewServer(s.out, &Options{MaxConcurrentStreams: 5}, s)
	s.c.Start()
	s.in.WriteString(Preface)
	_ = s.f.WriteSettings()
	s.send()
	s.out.b.Release()
	for id := uint32(1); id < 1800; id += 2 {
		s.request(id, true)
	}
	if n := strings.Count(s.frames(), "REFUSED_STREAM"); s.err != nil || n != 900-5 || len(s.tapes) != 5 {
		t.Errorf("%v, %d refused", s.err, n)
	}
}
