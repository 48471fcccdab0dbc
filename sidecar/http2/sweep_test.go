package http2

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"sallyport/sidecar/message"
)

// alarm is the timer that an owner has for Sweep.
type alarm struct {
	c   *Conn
	out *sink
	at  int64 // 0: not set
}

func newAlarm(c *Conn, out *sink) *alarm {
	a := &alarm{c: c, out: out}
	c.common = alarmed{c.common, a}
	return a
}

// alarmed is an owner with an alarm.
type alarmed struct {
	commonOwner
	a *alarm
}

// SweepIn sets it.
func (o alarmed) SweepIn(in time.Duration) { o.a.at = o.a.out.now + int64(in) }

// wait lets time pass, and fires.
func (a *alarm) wait(d time.Duration) (stalled int) {
	for end := a.out.now + int64(d); ; {
		if a.at == 0 || a.at > end {
			a.out.now = end
			return stalled
		}
		a.out.now, a.at = max(a.at, a.out.now), 0
		stalled += a.c.Sweep()
	}
}

func TestAResponseThatIsNotTakenEnds(t *testing.T) {
	const timeout = 10 * time.Second
	for _, c := range []struct {
		name    string
		give    func(s *Stream)
		stalled int
		want    string
	}{
		{"with content that waits for a window", func(s *Stream) { s.Head(head(":status=200"), false); s.Data(make([]byte, 100), true) }, 1, "RST_STREAM 1 CANCEL"},
		{"with trailers behind it", func(s *Stream) {
			s.Head(head(":status=200"), false)
			s.Data(make([]byte, 100), false)
			s.Trailers(head("a=b"))
		}, 1, "RST_STREAM 1 CANCEL"},
		{"unless it is not here as a whole, which is its owner's affair", func(s *Stream) { s.Head(head(":status=200"), false); s.Data(make([]byte, 100), false) }, 0, ""},
	} {
		s := newServer(t, &Options{FlushTimeout: timeout})
		a := newAlarm(s.c, s.out)
		_ = s.f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		s.request(1, true)
		s.frames()
		c.give(s.tapes[0].s)
		s.frames()
		// A byte now and then is progress.
		for range 10 {
			if n := a.wait(timeout - 1); n != 0 {
				t.Errorf("%s: ended before its time", c.name)
			}
			_ = s.f.WriteWindowUpdate(1, 1)
			s.send()
			s.want("DATA 1 1")
		}
		if n := a.wait(timeout); n != c.stalled || s.tapes[0].reset != 0 {
			t.Errorf("%s: %d streams ended, %v", c.name, n, s.tapes[0].reset)
		}
		if s.want(c.want); a.at != 0 && c.stalled > 0 {
			t.Errorf("%s: the timer still runs", c.name)
		}
		if s.c.active != 1-c.stalled || c.stalled == 1 && s.c.waiting != 0 {
			t.Errorf("%s: %d streams, %d bytes are left", c.name, s.c.active, s.c.waiting)
		}
	}

	// A client that does not read its socket is the owner's affair, whose output is full.
	s := newServer(t, &Options{FlushTimeout: timeout})
	a := newAlarm(s.c, s.out)
	s.request(1, true)
	s.out.full = true
	s.tapes[0].s.Head(head(":status=200"), false)
	s.tapes[0].s.Data(make([]byte, 70_000), true)
	if n := a.wait(10 * timeout); n != 0 || s.c.active != 1 {
		t.Errorf("%d streams ended for an output that is full", n)
	}
	// When it has read, the stream has its time anew: 65,535 bytes are its window.
	s.out.full = false
	s.c.Writable()
	if n := a.wait(timeout - 1); n != 0 {
		t.Error("ended before its time")
	}
	if n := a.wait(1); n != 1 || s.c.active != 0 {
		t.Errorf("%d streams ended, %d are left", n, s.c.active)
	}
}

// TestAStreamBehindOthersIsNotStalled: the connection's window moves, though it is another stream that gets it.
func TestAStreamBehindOthersIsNotStalled(t *testing.T) {
	s := newServer(t, &Options{FlushTimeout: 10 * time.Second})
	a := newAlarm(s.c, s.out)
	_ = s.f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	for id := uint32(1); id < 5; id += 2 {
		s.request(id, true)
		r := s.tapes[len(s.tapes)-1].s
		r.Head(head(":status=200"), false)
		r.Data(make([]byte, 200_000), true)
	}
	for range 20 {
		if n := a.wait(9 * time.Second); n != 0 {
			t.Fatalf("%d streams ended while the client reads", n)
		}
		_ = s.f.WriteWindowUpdate(0, 10)
		s.send()
	}
	if n := a.wait(10 * time.Second); n != 2 {
		t.Errorf("%d streams of 2 ended", n)
	}
}

// TestARequestThatWasAnsweredMayEnd within a moment: a client that is reset behind the response may fail before it reads it.
func TestARequestThatWasAnsweredMayEnd(t *testing.T) {
	content := strings.Repeat("x", 10_000)
	const ping = "PING 0000000000000000 ack=false"
	for _, c := range []struct {
		name   string
		length string
		then   func(s *server, a *alarm)
		want   string
	}{
		{"with content", "", func(s *server, _ *alarm) { s.data(1, false, content); s.data(1, true, content) }, ping},
		{"with all the content that it said", "300005", func(s *server, _ *alarm) {
			for range 29 {
				s.data(1, false, content)
			}
			s.data(1, true, content)
		}, "WINDOW_UPDATE 1 200005\n" + ping},
		{"short of the content that it said, as curl does", "300005", func(s *server, _ *alarm) { s.data(1, true, "") }, "WINDOW_UPDATE 1 200005\n" + ping},
		{"with trailers", "", func(s *server, _ *alarm) { s.data(1, false, content); s.headers(1, true, "a=b") }, ping},
		{"by the client's reset", "", func(s *server, _ *alarm) { _ = s.f.WriteRSTStream(1, http2.ErrCodeCancel); s.send() }, ""},
		{"slowly", "", func(s *server, a *alarm) {
			for range 5 {
				s.data(1, false, "x")
				a.wait(time.Second - 1)
			}
			s.data(1, true, "x")
		}, ping},
		{"but not if nothing comes", "", func(_ *server, a *alarm) { a.wait(time.Second) }, "RST_STREAM 1 NO_ERROR"},
		{"but not for long, however busy it is", "", func(s *server, a *alarm) {
			for range 10 * lingerTimes {
				s.data(1, false, "x")
				a.wait(100 * time.Millisecond)
			}
		}, "RST_STREAM 1 NO_ERROR"},
		{"but not with content without end", "", func(s *server, a *alarm) {
			for range lingerBytes / 10_000 {
				s.data(1, false, content)
			}
			a.wait(time.Second)
		}, "RST_STREAM 1 NO_ERROR"},
		{"but not with more content than it said", "10005", func(s *server, _ *alarm) { s.data(1, false, content); s.data(1, false, content) }, "RST_STREAM 1 NO_ERROR"},
	} {
		s := newServer(t, &Options{InitialStreamWindow: 100_000, InitialConnWindow: 1 << 30, LingerTimeout: time.Second})
		a := newAlarm(s.c, s.out)
		if c.length == "" {
			s.request(1, false)
		} else {
			s.request(1, false, "content-length="+c.length)
		}
		s.tapes[0].s.Pause() // as with an upstream that is slow
		s.data(1, false, "begun")
		s.tapes[0].s.Head(head(":status=413"), true)
		got := strings.TrimPrefix(s.frames(), "HEADERS 1 end\n")
		if c.length == "" && got != fmt.Sprintf("WINDOW_UPDATE 1 %d", lingerBytes-99_995) {
			t.Errorf("%s: the client gets the window %s", c.name, got)
			continue
		}
		c.then(s, a)
		if s.err != nil || s.c.active != 0 || s.tapes[0].reset != 0 || s.c.held != 0 {
			t.Errorf("%s: %v, %d streams, %v, %d bytes held", c.name, s.err, s.c.active, s.tapes[0].reset, s.c.held)
		}
		if rest := s.frames(); c.length == "" || got == "HEADERS 1 end" {
			got = rest
		} else {
			got += "\n" + rest
		}
		if got != c.want {
			t.Errorf("%s: sent\n%s\nwant\n%s", c.name, got, c.want)
		}
		if got := s.c.recvWindow + s.c.recvUnacked + s.c.owed; got != int64(s.c.o.InitialConnWindow) {
			t.Errorf("%s: the connection's window is %d", c.name, got)
		}
		if a.wait(time.Hour); s.frames() != "" {
			t.Errorf("%s: something is sent later", c.name)
		}
	}
}

// TestWhoMayEndARequestThatWasAnswered: clients that would wait for a window, or have no end in mind, are reset at once.
func TestWhoMayEndARequestThatWasAnswered(t *testing.T) {
	for _, c := range []struct {
		name, status, length string
		may                  bool
	}{
		{"an error", "413", "", true},
		{"an error, whatever is still to come", "413", "100000000", true},
		{"a success, and the rest fits into the window", "200", "100005", true},
		{"a success, and the rest does not fit", "200", "100006", false},
		{"a success, and nobody knows how much is to come", "200", "", false},
	} {
		s := newServer(t, &Options{InitialStreamWindow: 100_005, LingerTimeout: time.Second})
		newAlarm(s.c, s.out)
		fields := []string{}
		if c.length != "" {
			fields = append(fields, "content-length="+c.length)
		}
		s.request(1, false, fields...)
		s.data(1, false, "begun")
		s.tapes[0].s.Head(head(":status="+c.status), true)
		if got := strings.HasSuffix(s.frames(), "RST_STREAM 1 NO_ERROR"); got == c.may {
			t.Errorf("%s: reset %v", c.name, got)
		}
	}
}

// cancelled opens so many requests and cancels them.
func (k *client) cancelled(n int) (tapes []*tape) {
	for range n {
		r := k.open(get, true)
		r.s.Reset(message.LocalReset)
		tapes = append(tapes, r)
	}
	return tapes
}

// TestAServerSeesFewEarlyCancellations on one connection: it might end it with all others that it carries.
func TestAServerSeesFewEarlyCancellations(t *testing.T) {
	k := newTestClient(t, nil, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000})
	a := newAlarm(k.c, k.out)
	victim := k.open(get, true)
	var late []*tape
	for range 300 {
		late = append(late, k.open(get, false))
	}
	old := k.open(get, true)
	a.wait(time.Duration(patience))
	k.cancelled(99)
	if k.c.Worn() {
		t.Error("worn after 99")
	}
	k.cancelled(1)
	if !k.c.Worn() {
		t.Fatal("not worn after 100")
	}
	if n := strings.Count(k.frames(), "RST_STREAM"); n != 100 {
		t.Errorf("%d of 100 cancellations were sent", n)
	}
	// What is old is no sign of an attack, and what was never sent costs nothing.
	aged := fmt.Sprintf("RST_STREAM %d CANCEL\nRST_STREAM %d CANCEL", late[0].s.id, old.s.id)
	late[0].s.Reset(message.LocalReset)
	old.s.Reset(message.LocalReset)
	unsent := k.c.Open(&tape{t: t})
	unsent.Reset(message.LocalReset)
	k.want(aged)

	held := k.cancelled(10)
	ids := make([]uint32, 10)
	for i, r := range held {
		ids[i] = r.s.id
	}
	if strings.Contains(k.frames(), "RST_STREAM") {
		t.Error("a cancellation is sent on a worn connection")
	}
	k.headers(ids[0], false, ":status=200") // answered: it is no early end any more
	_ = k.f.WriteRSTStream(ids[1], http2.ErrCodeCancel)
	k.headers(ids[2], true, ":status=200")
	k.want(fmt.Sprintf("RST_STREAM %d CANCEL", ids[0]))
	a.wait(time.Duration(patience) - 1)
	k.want("")
	a.wait(1)
	if got := k.frames(); strings.Count(got, "RST_STREAM") != 7 || strings.Count(got, "CANCEL") != 7 {
		t.Error(got)
	}
	k.headers(victim.s.id, true, ":status=200")
	if victim.String() != "[:status=200]." || k.err != nil {
		t.Error(victim, k.err)
	}
	for _, r := range held {
		if r.String() != "" {
			t.Error("an event after Reset:", r)
		}
	}
	if n := k.c.Active(); n != 299 {
		t.Errorf("%d streams are left", n)
	}
}

func TestWhatWearsAConnection(t *testing.T) {
	for _, c := range []struct {
		name string
		turn func(k *client, i int)
		worn bool
	}{
		{"requests that are cancelled at once", func(k *client, _ int) { k.cancelled(1) }, true},
		{"requests that the server resets", func(k *client, _ int) {
			_ = k.f.WriteRSTStream(k.open(get, true).s.id, http2.ErrCodeInternal)
			k.send()
		}, true},
		{"requests that are answered with what is no response", func(k *client, _ int) { k.headers(k.open(get, true).s.id, true, "a=b") }, true},
		{"requests that the server refuses", func(k *client, _ int) {
			_ = k.f.WriteRSTStream(k.open(get, true).s.id, http2.ErrCodeRefusedStream)
			k.send()
		}, false},
		{"responses that are cancelled", func(k *client, _ int) {
			r := k.open(get, true)
			k.headers(r.s.id, false, ":status=200")
			r.s.Reset(message.LocalReset)
		}, false},
		{"one cancelled request of four", func(k *client, i int) {
			r := k.open(get, true)
			if i%4 == 0 {
				r.s.Reset(message.LocalReset)
			} else {
				k.headers(r.s.id, true, ":status=200")
			}
		}, false},
		{"requests that are cancelled when they are old", func(k *client, _ int) {
			r := k.open(get, true)
			k.out.now += patience
			r.s.Reset(message.LocalReset)
		}, false},
	} {
		k := newTestClient(t, nil, noSettings...)
		newAlarm(k.c, k.out)
		for i := range 1000 {
			if k.c.Worn() {
				break
			}
			c.turn(k, i)
			k.out.b.Release()
		}
		if k.c.Worn() != c.worn || k.err != nil {
			t.Errorf("%s: worn %v, %v", c.name, k.c.Worn(), k.err)
		}
	}
}

// TestMemoryOfABurstIsGivenBack when it was not used for a while, and not what is used all the time.
func TestMemoryOfABurstIsGivenBack(t *testing.T) {
	s := newServer(t, nil)
	a := newAlarm(s.c, s.out)
	id := uint32(1)
	burst := func(n int, fields ...string) {
		for range n {
			s.request(id, true, fields...)
			id += 2
		}
		for _, r := range s.tapes {
			r.s.Head(head(":status=200", "x="+strings.Repeat("y", 10_000)), true)
		}
		s.tapes = nil
		s.out.b.Release()
	}
	for range 3 {
		burst(100)
		burst(1, "x="+strings.Repeat("z", 10_000))
		burst(20)
		if len(s.c.free)+len(s.c.dead) < 100 || len(s.c.streams.slots) < 200 || cap(s.c.scratch) == 0 {
			t.Fatal("the burst left nothing to give back")
		}
		// Twenty at a time go on, twice a second.
		for range 20 {
			a.wait(time.Second / 2)
			burst(20)
		}
		if n := len(s.c.free) + len(s.c.dead); n < 20 || n > 40 {
			t.Errorf("%d streams are kept, of which twenty are used", n)
		}
		if a.wait(time.Minute); len(s.c.free)+len(s.c.dead) > keptStreams || s.c.streams.slots != nil || cap(s.c.scratch)+cap(s.c.block.b)+cap(s.c.visiting)+len(s.c.spare.heads) > 0 {
			t.Errorf("%d streams, %d slots, %d bytes of scratch and %d of a block are kept", len(s.c.free), len(s.c.streams.slots), cap(s.c.scratch), cap(s.c.block.b))
		}
		if a.at != 0 {
			t.Error("an idle connection has a timer")
		}
	}
}
