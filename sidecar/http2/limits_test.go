package http2

import (
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"sallyport/sidecar/message"
)

// raw appends a frame of any kind.
func raw(b []byte, kind frameType, flags uint8, stream uint32, payload string) []byte {
	var h [frameHeaderLen]byte
	putHeader(h[:], len(payload), kind, flags, stream)
	return append(append(b, h[:]...), payload...)
}

// TestFrameRules sends one frame that breaks a rule. Stream 1 is open, 3 had its end from
// both sides, 5 was reset by us, 7 has its end from the client, 9 and above are idle.
func TestFrameRules(t *testing.T) {
	u32 := func(v uint32) string { return string(binary.BigEndian.AppendUint32(nil, v)) }
	setting := func(id uint16, v uint32) string { return string(binary.BigEndian.AppendUint16(nil, id)) + u32(v) }
	for _, c := range []struct {
		name    string
		kind    frameType
		flags   uint8
		stream  uint32
		payload string
		want    ErrCode // of the connection; 0: none
		reset   ErrCode // of the stream
	}{
		{"larger than SETTINGS_MAX_FRAME_SIZE", frameData, 0, 1, strings.Repeat("x", 16385), FrameSizeError, 0},
		{"DATA on stream 0", frameData, 0, 0, "x", ProtocolError, 0},
		{"DATA on an idle stream", frameData, 0, 9, "x", ProtocolError, 0},
		{"DATA on an even stream", frameData, 0, 2, "x", ProtocolError, 0},
		{"DATA after the end of both", frameData, 0, 3, "x", StreamClosed, 0},
		{"DATA after our reset", frameData, 0, 5, "x", 0, 0},
		{"DATA after the end", frameData, 0, 7, "x", 0, StreamClosed},
		{"DATA padded, without the length", frameData, flagPadded, 1, "", FrameSizeError, 0},
		{"DATA with padding of the frame's length", frameData, flagPadded, 1, "\x03xyz", 0, 0},
		{"DATA with padding beyond the frame", frameData, flagPadded, 1, "\x04xyz", ProtocolError, 0},
		{"HEADERS on stream 0", frameHeaders, flagEndHeaders, 0, "\x82", ProtocolError, 0},
		{"HEADERS on an even stream", frameHeaders, flagEndHeaders, 2, "\x82", ProtocolError, 0},
		{"HEADERS after the end of both", frameHeaders, flagEndHeaders, 3, "\x82", StreamClosed, 0},
		{"HEADERS after our reset", frameHeaders, flagEndHeaders, 5, "\x82", 0, 0},
		{"HEADERS after the end", frameHeaders, flagEndHeaders, 7, "\x82", 0, StreamClosed},
		{"HEADERS with padding beyond the frame", frameHeaders, flagEndHeaders | flagPadded, 9, "\x05\x82", ProtocolError, 0},
		{"HEADERS padded, without the length", frameHeaders, flagEndHeaders | flagPadded, 9, "", FrameSizeError, 0},
		{"HEADERS without its priority", frameHeaders, flagEndHeaders | flagPriority, 9, "\x00", FrameSizeError, 0},
		{"HEADERS that depend on themselves", frameHeaders, flagEndHeaders | flagPriority, 9, u32(9) + "\x10\x82", ProtocolError, 0},
		{"HEADERS that HPACK cannot read", frameHeaders, flagEndHeaders, 9, "\x80", CompressionError, 0},
		{"CONTINUATION by itself", frameContinuation, flagEndHeaders, 1, "\x82", ProtocolError, 0},
		{"CONTINUATION on stream 0", frameContinuation, flagEndHeaders, 0, "\x82", ProtocolError, 0},
		{"PRIORITY on stream 0", framePriority, 0, 0, u32(1) + "\x00", ProtocolError, 0},
		{"PRIORITY of a wrong length", framePriority, 0, 1, "1234", 0, FrameSizeError},
		{"PRIORITY of a wrong length on an idle stream", framePriority, 0, 9, "1234", FrameSizeError, 0},
		{"PRIORITY on itself", framePriority, 0, 1, u32(1) + "\x00", 0, ProtocolError},
		{"PRIORITY on an idle stream", framePriority, 0, 9, u32(1) + "\x00", 0, 0},
		{"RST_STREAM on stream 0", frameReset, 0, 0, u32(0), ProtocolError, 0},
		{"RST_STREAM on an idle stream", frameReset, 0, 9, u32(0), ProtocolError, 0},
		{"RST_STREAM on a closed stream", frameReset, 0, 3, u32(0), 0, 0},
		{"RST_STREAM of a wrong length", frameReset, 0, 1, "123", FrameSizeError, 0},
		{"SETTINGS on a stream", frameSettings, 0, 1, "", ProtocolError, 0},
		{"SETTINGS of a wrong length", frameSettings, 0, 0, "12345", FrameSizeError, 0},
		{"SETTINGS acknowledgment with a payload", frameSettings, flagAck, 0, setting(1, 1), FrameSizeError, 0},
		{"ENABLE_PUSH 2", frameSettings, 0, 0, setting(settingEnablePush, 2), ProtocolError, 0},
		{"INITIAL_WINDOW_SIZE 2^31", frameSettings, 0, 0, setting(settingInitialWindow, 1<<31), FlowControlError, 0},
		{"MAX_FRAME_SIZE 16383", frameSettings, 0, 0, setting(settingMaxFrame, 16383), ProtocolError, 0},
		{"MAX_FRAME_SIZE 2^24", frameSettings, 0, 0, setting(settingMaxFrame, 1<<24), ProtocolError, 0},
		{"ENABLE_CONNECT_PROTOCOL 2", frameSettings, 0, 0, setting(settingConnectProtocol, 2), ProtocolError, 0},
		{"an unknown setting", frameSettings, 0, 0, setting(99, 5), 0, 0},
		{"PUSH_PROMISE", framePushPromise, flagEndHeaders, 1, u32(2), ProtocolError, 0},
		{"PING on a stream", framePing, 0, 1, "12345678", ProtocolError, 0},
		{"PING of a wrong length", framePing, 0, 0, "1234567", FrameSizeError, 0},
		{"GOAWAY on a stream", frameGoAway, 0, 1, "12345678", ProtocolError, 0},
		{"GOAWAY too short", frameGoAway, 0, 0, "1234567", FrameSizeError, 0},
		{"WINDOW_UPDATE of 0 for the connection", frameWindowUpdate, 0, 0, u32(0), ProtocolError, 0},
		{"WINDOW_UPDATE of 0 for a stream", frameWindowUpdate, 0, 1, u32(0), 0, ProtocolError},
		{"WINDOW_UPDATE beyond 2^31-1 for the connection", frameWindowUpdate, 0, 0, u32(maxWindow), FlowControlError, 0},
		{"WINDOW_UPDATE beyond 2^31-1 for a stream", frameWindowUpdate, 0, 1, u32(maxWindow), 0, FlowControlError},
		{"WINDOW_UPDATE on an idle stream", frameWindowUpdate, 0, 9, u32(1), ProtocolError, 0},
		{"WINDOW_UPDATE on a closed stream", frameWindowUpdate, 0, 3, u32(1), 0, 0},
		{"WINDOW_UPDATE of a wrong length", frameWindowUpdate, 0, 1, "123", FrameSizeError, 0},
		{"a frame of an unknown type", 0x20, 0xff, 1, "what", 0, 0},
	} {
		s := newServer(t, nil)
		s.request(1, false)
		s.request(3, true)
		s.tapes[1].s.Head(head(":status=200"), true)
		s.request(5, false)
		s.tapes[2].s.Reset(message.LocalReset)
		s.request(7, true)
		s.frames()
		s.in.Write(raw(nil, c.kind, c.flags, c.stream, c.payload))
		s.send()
		if c.want != 0 {
			t.Run(c.name, func(t *testing.T) { s.t = t; s.wantError(c.want) })
			continue
		}
		got := s.frames()
		if s.err != nil || (c.reset != 0) != strings.HasPrefix(got, "RST_STREAM ") || c.reset != 0 && !strings.HasSuffix(got, " "+c.reset.String()) {
			t.Errorf("%s: %v, %s", c.name, s.err, got)
		}
	}
}

func TestWhatMustComeFirst(t *testing.T) {
	for name, c := range map[string]struct {
		first string
		want  string
	}{
		"another protocol":  {"GET / HTTP/1.1\r\n", "PROTOCOL_ERROR"},
		"no SETTINGS":       {Preface + string(raw(nil, framePing, 0, 0, "12345678")), "PROTOCOL_ERROR"},
		"an acknowledgment": {Preface + string(raw(nil, frameSettings, flagAck, 0, "")), "PROTOCOL_ERROR"},
		"SETTINGS":          {Preface + string(raw(nil, frameSettings, 0, 0, "")), ""},
	} {
		_, err := NewServer(newSink(), nil, new(hooks)).Feed([]byte(c.first))
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHeaderBlocksMayNotBeInterrupted(t *testing.T) {
	for name, between := range map[string][]byte{
		"PING":                      raw(nil, framePing, 0, 0, "12345678"),
		"DATA":                      raw(nil, frameData, 0, 1, "x"),
		"CONTINUATION of another":   raw(nil, frameContinuation, flagEndHeaders, 3, ""),
		"a frame of unknown type":   raw(nil, 0x20, 0, 1, ""),
		"HEADERS of another stream": raw(nil, frameHeaders, flagEndHeaders, 3, "\x82"),
	} {
		s := newServer(t, nil)
		s.in.Write(append(raw(nil, frameHeaders, 0, 1, "\x82"), between...))
		s.send()
		t.Run(name, func(t *testing.T) { s.t = t; s.wantError(ProtocolError) })
	}
}

func TestWindowsAreKept(t *testing.T) {
	s := newServer(t, &Options{InitialStreamWindow: 100, InitialConnWindow: 70000})
	s.request(1, false)
	s.tapes[0].s.Pause()
	s.data(1, false, strings.Repeat("x", 100))
	s.want("")
	_ = s.f.WriteDataPadded(1, false, nil, nil)
	s.data(1, false, "x")
	s.want("RST_STREAM 1 FLOW_CONTROL_ERROR")
	if s.tapes[0].reset != message.ProtocolError {
		t.Error(s.tapes[0].reset)
	}

	// The connection's window, over many streams that pause: it is given back up to HoldLimit.
	s = newServer(t, &Options{InitialConnWindow: 70000, InitialStreamWindow: 40000, HoldLimit: 90000})
	held := 0
	for id := uint32(1); s.err == nil && id < 100; id += 2 {
		s.request(id, false)
		s.tapes[len(s.tapes)-1].s.Pause()
		for range 4 {
			s.data(id, false, strings.Repeat("x", 10000))
			held = max(held, int(s.c.held))
		}
	}
	if s.wantError(FlowControlError); held < 150000 || held > 160000 {
		t.Errorf("%d bytes were held", held)
	}
}

// TestUploadsThatNobodyReadsStopNoOther on the same connection, until they are as many as may be held.
func TestUploadsThatNobodyReadsStopNoOther(t *testing.T) {
	s := newServer(t, nil)
	upload := func(id uint32, bytes int) (sent int) {
		for st := s.c.streams.get(id); sent < bytes && st.recvWindow >= 10000 && s.c.recvWindow >= 10000; sent += 10000 {
			s.data(id, false, strings.Repeat("x", 10000))
			s.out.b.Release()
		}
		return sent
	}
	id := uint32(1)
	for ; id < 2*15; id += 2 {
		s.request(id, false)
		s.tapes[len(s.tapes)-1].s.Pause()
		if n := upload(id, 1<<30); n != 260000 {
			t.Fatalf("stream %d: %d bytes were taken, its window is %d", id, n, s.c.o.InitialStreamWindow)
		}
	}
	s.request(id, false)
	if n := upload(id, 10_000_000); n != 10_000_000 {
		t.Errorf("%d bytes of an upload that is read went through", n)
	}
}

// TestNothingOfTheConnectionsWindowIsLost, whatever becomes of streams.
func TestNothingOfTheConnectionsWindowIsLost(t *testing.T) {
	s := newServer(t, &Options{MaxResets: 1 << 20, HoldLimit: 1 << 20})
	s.setup = func(r *tape) {
		switch len(s.tapes) % 5 {
		case 0:
			r.onData = func([]byte, bool) { r.s.Reset(message.LocalReset) }
		case 1:
			r.onHead = func(*message.Head, bool) { r.s.Head(head(":status=200"), true) }
		case 2:
			r.onHead = func(*message.Head, bool) { r.s.Pause() }
		}
	}
	for id := uint32(1); id < 1000; id += 2 {
		s.request(id, false)
		if n := len(s.tapes); n%5 == 4 {
			s.data(id, false, "x") // ends by content-length
		}
		_ = s.f.WriteDataPadded(id, false, make([]byte, 8000), make([]byte, 100))
		if s.send(); s.c.Active() > 50 {
			for _, r := range s.tapes {
				r.s.Reset(message.LocalReset)
			}
			s.tapes = nil
		}
		s.out.take()
	}
	if s.err != nil {
		t.Fatal(s.err)
	}
	held := int64(0)
	s.c.visit(func(st *Stream) { held += int64(st.in.Len()) })
	if s.c.held != held {
		t.Errorf("%d bytes are held, not %d", held, s.c.held)
	}
	if got := s.c.recvWindow + s.c.recvUnacked + s.c.owed; got != int64(s.c.o.InitialConnWindow) {
		t.Errorf("the window is %d, want %d", got, s.c.o.InitialConnWindow)
	}
}

// TestAPeerThatDoesNotReadCostsABoundedAmount: requests whose answers have no content wait.
func TestAPeerThatDoesNotReadCostsABoundedAmount(t *testing.T) {
	s := newServer(t, nil)
	s.setup = func(r *tape) {
		r.onHead = func(*message.Head, bool) { r.s.Head(head(":status=304", "x="+strings.Repeat("y", 100)), true) }
	}
	s.out.full = true
	id := uint32(1)
	for ; s.err == nil && id < 20000; id += 2 {
		s.request(id, true)
	}
	if s.err == nil || s.out.b.Len() > 16<<10 {
		t.Errorf("%v, %d bytes wait after %d requests", s.err, s.out.b.Len(), id/2)
	}
}

// TestSettingsWithManyWindows: the last of them counts.
func TestSettingsWithManyWindows(t *testing.T) {
	s := newServer(t, nil)
	s.request(1, true)
	s.tapes[0].s.Head(head(":status=200"), false)
	s.tapes[0].s.Data(make([]byte, 100), false)
	var many []http2.Setting
	for i := range uint32(2000) {
		many = append(many, http2.Setting{ID: http2.SettingInitialWindowSize, Val: i})
	}
	_ = s.f.WriteSettings(many...)
	s.send()
	s.frames()
	if got := s.tapes[0].s.sendWindow; got != 1999-100 || s.err != nil {
		t.Error(got, s.err)
	}
	// A window may become negative, and is waited for.
	_ = s.f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 50})
	s.send()
	s.tapes[0].s.Data([]byte("x"), true)
	s.want("SETTINGS ack=true")
	_ = s.f.WriteWindowUpdate(1, 50)
	s.send()
	s.want("")
	_ = s.f.WriteWindowUpdate(1, 1)
	s.send()
	s.want("DATA 1 1 end")
}

func TestIdentifiersAreFound(t *testing.T) {
	var table idTable
	model := map[uint32]*Stream{}
	rnd := uint32(1)
	for i := range 20000 {
		rnd = rnd*1664525 + 1013904223
		id := (rnd>>16)%97*64 + 1 // collides on purpose
		if s := model[id]; s != nil && i%2 == 0 {
			table.remove(id)
			delete(model, id)
		} else if s == nil {
			s = &Stream{id: id}
			table.put(s)
			model[id] = s
		}
		for k := uint32(0); k < 97; k++ {
			if got := table.get(k*64 + 1); got != model[k*64+1] {
				t.Fatalf("step %d: stream %d is %v", i, k*64+1, got)
			}
		}
	}
	table.remove(3)
	displaced := 0
	for i, s := range table.slots {
		if s != nil && table.home(s.id) != i {
			displaced++
		}
	}
	if table.n != len(model) || table.displaced != displaced {
		t.Error(table.n, len(model), table.displaced, displaced)
	}
}

func TestWhichStreamsAreRemembered(t *testing.T) {
	var m memory
	model := map[uint32]bool{}
	rnd, top := uint32(1), uint32(0)
	for i := range 3000 {
		rnd = rnd*1664525 + 1013904223
		id := top + rnd>>16%40*2 + 1
		if i%500 == 499 {
			id += rnd >> 16 % 3 * memorySpan
		}
		if i%3 == 0 && id > 300 {
			id -= 2 * (rnd >> 20 % 100)
		}
		id |= 1
		m.add(id)
		model[id] = true
		top = max(top, id)
		for back := uint32(0); back < 2*memorySpan && back < top; back += 2 {
			if id := top - back; m.has(id) != model[id] || m.older(id) {
				t.Fatalf("step %d: stream %d, %d before the highest: %v", i, id, back, m.has(id))
			}
		}
		if m.has(top+2) || m.has(top-2*memorySpan) {
			t.Fatal("what was never added is remembered")
		}
	}
}

// TestManyStreamsAreResetAtOnce: what was on its way for each is dropped, and the connection goes on.
func TestManyStreamsAreResetAtOnce(t *testing.T) {
	s := newServer(t, &Options{MaxConcurrentStreams: 1000})
	for id := uint32(1); id < 2000; id += 2 {
		s.request(id, false)
	}
	for _, r := range s.tapes {
		r.s.Reset(message.LocalReset)
	}
	for id := uint32(1); id < 2000; id += 2 {
		s.data(id, false, "on its way")
		s.headers(id, true, "x-trailer=1")
	}
	if s.err != nil {
		t.Error(s.err)
	}
}

// TestFeedDoesAsMuchAsATurnAllows: what is left is read in the next turn, and nothing is lost.
func TestFeedDoesAsMuchAsATurnAllows(t *testing.T) {
	const requests = 60
	s := newServer(t, nil)
	s.c.Turn.Limit = 5*message.HeadCost + 5
	block := string(s.fields(":method=GET", ":scheme=https", ":authority=h.example", ":path=/"))
	block2 := string(s.fields(":method=GET", ":scheme=https", ":authority=h.example", ":path=/"))
	var all []byte
	for i := range uint32(requests) {
		if i > 0 {
			block = block2
		}
		all = raw(all, frameHeaders, flagEndHeaders, 1+2*i, block)
	}
	for i := range uint32(requests) {
		for range 20 {
			all = raw(all, frameData, 0, 1+2*i, "x")
		}
		all = raw(all, frameData, flagEndStream, 1+2*i, "")
	}
	s.in.Write(all)
	s.setup = func(r *tape) { r.onEnd = func() { r.s.Head(head(":status=204"), true) } }
	for turns := 0; s.in.Len()+len(s.rest) > 0; turns++ {
		heads, left := len(s.tapes), s.in.Len()+len(s.rest)
		s.send()
		switch {
		case s.err != nil:
			t.Fatal(s.err)
		case len(s.tapes)-heads > 5:
			t.Fatalf("turn %d: %d requests", turns, len(s.tapes)-heads)
		case left-len(s.rest) > 5*(frameHeaderLen+len(block))+46*(frameHeaderLen+1)+100:
			t.Fatalf("turn %d: %d bytes were read", turns, left-len(s.rest))
		case len(s.rest) == left:
			t.Fatalf("turn %d: nothing was read", turns)
		case len(s.rest) > 0 && s.c.Rest() != message.ForTurn:
			t.Fatal("something is left, and the turn is not over")
		}
	}
	if len(s.tapes) != requests {
		t.Errorf("%d requests of %d", len(s.tapes), requests)
	}
	for i, r := range s.tapes {
		if want := `"` + strings.Repeat("x", 20) + `".`; !strings.HasSuffix(r.String(), want) {
			t.Errorf("request %d is %s", i, r)
		}
	}
}
