package http2

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/message"
)

// FuzzFrames feeds the same bytes whole and in pieces, to a server and to a
// client, whose owners behave as how says, and checks that
//
//   - the events, the answers and the error are the same;
//   - events come in the order that message.Receiver promises (tape checks it);
//   - no byte of the connection's window is lost;
//   - what is kept for the peer is bounded;
//   - after the end no stream is left.
func FuzzFrames(f *testing.F) {
	request := string(raw(nil, frameHeaders, flagEndHeaders, 1, "\x82\x87\x84\x41\x01h"))
	response := string(raw(nil, frameHeaders, flagEndHeaders, 1, "\x88"))
	for _, s := range []string{
		request + string(raw(nil, frameData, flagEndStream, 1, "hello")),
		request + string(raw(nil, frameData, flagPadded, 1, "\x02hello..")) + string(raw(nil, frameHeaders, flagEndHeaders|flagEndStream, 1, "\x00\x01x\x01y")),
		response + string(raw(nil, frameData, flagEndStream, 1, "hello")),
		string(raw(nil, frameHeaders, flagEndHeaders, 1, "\x08\x03103")) + response + string(raw(nil, frameReset, 0, 1, "\x00\x00\x00\x00")),
		string(raw(nil, frameHeaders, 0, 1, "\x82\x87")) + string(raw(nil, frameContinuation, flagEndHeaders, 1, "\x84\x41\x01h")),
		request + string(raw(nil, frameWindowUpdate, 0, 1, "\x00\x00\x00\x01")) + string(raw(nil, frameReset, 0, 1, "\x00\x00\x00\x08")),
		string(raw(nil, frameSettings, 0, 0, "\x00\x04\x00\x00\x00\x05")) + string(raw(nil, framePing, 0, 0, "12345678")),
		string(raw(nil, frameGoAway, 0, 0, "\x00\x00\x00\x01\x00\x00\x00\x00")) + string(raw(nil, framePriority, 0, 3, "\x00\x00\x00\x01\x05")),
	} {
		for _, how := range []byte{0, 85, 170, 255, 128 | 8 | 16, 128 | 2 | 8 | 16} {
			f.Add(how, []byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, how byte, p []byte) {
		for _, server := range []bool{true, false} {
			whole := play(t, server, how, p, 1<<20)
			for _, piece := range []int{1, 1 + int(how)%20} {
				if got := play(t, server, how, p, piece); got != whole {
					t.Fatalf("server %v, in pieces of %d:\n%s\nwhole:\n%s", server, piece, got, whole)
				}
			}
		}
	})
}

var windowUpdates = regexp.MustCompile(`WINDOW_UPDATE [01357] \d+\n?`)

// owner answers and receives as the bits of how say.
func owner(t *testing.T, how byte, s *Stream) *tape {
	r := &tape{t: t, s: s}
	r.onHead = func(*message.Head, bool) {
		if how&2 != 0 {
			r.s.Pause()
		}
		if how&8 != 0 && s != nil {
			r.s.Head(head(":status=200"), how&16 != 0)
		}
	}
	r.onData = func([]byte, bool) {
		if how&32 != 0 {
			r.s.Pause()
			r.s.Resume()
		}
	}
	r.onEnd = func() {
		if how&4 != 0 && s != nil {
			if how&8 == 0 {
				r.s.Head(head(":status=200"), false)
			}
			r.s.Data(make([]byte, 3000), false)
			r.s.Trailers(head("a=b"))
		}
	}
	return r
}

// open says that the stream is still this message's.
func (r *tape) open() bool { return !r.s.gone && r.s.r == message.Receiver(r) }

// play runs one side over p and describes all that happened. WINDOW_UPDATE
// frames are left out: when they come depends on the pieces.
func play(t *testing.T, server bool, how byte, p []byte, piece int) string {
	out := newSink()
	o := &Options{MaxConcurrentStreams: 4, MaxHeaderBytes: 2000, StreamBufferLimit: 1000, AllowConnect: how&1 != 0}
	var tapes []*tape
	start := raw(nil, frameSettings, 0, 0, "")
	var c *Conn
	if server {
		start = append([]byte(Preface), start...)
		c = NewServer(out, o, &hooks{stream: func(s *Stream) message.Receiver {
			tapes = append(tapes, owner(t, how, s))
			return tapes[len(tapes)-1]
		}})
	} else {
		c = NewClient(out, o, new(hooks))
	}
	c.o.LingerTimeout, c.o.FlushTimeout = time.Second, time.Minute
	c.Start()
	p = append(start, p...)
	if !server {
		for i := range 3 {
			r := owner(t, how, nil)
			tapes = append(tapes, r)
			r.s = c.Open(r).(*Stream)
			r.s.Head(get, i > 0)
		}
	}
	out.full = how&64 != 0
	var b strings.Builder
	var rest []byte
	var failed error
	for len(p) > 0 && failed == nil {
		k := min(piece, len(p))
		rest = append(rest, p[:k]...)
		p = p[k:]
		n, err := c.Feed(rest)
		rest = append(rest[:0], rest[n:]...)
		failed = err
		held := int64(0)
		c.visit(func(s *Stream) {
			held += int64(s.in.Len())
			if s.out.Len() > 3000 || s.in.Len() > 256<<10 {
				t.Fatalf("%d and %d bytes wait on a stream", s.out.Len(), s.in.Len())
			}
		})
		if c.held != held {
			t.Fatalf("%d bytes are held, not %d", held, c.held)
		}
		open := int64(c.data.left)
		if got := c.recvWindow + c.recvUnacked + c.owed + open; failed == nil && got != int64(c.o.InitialConnWindow) {
			t.Fatalf("the connection's window is %d", got)
		}
		if c.active > 4 || len(c.block.b) > 2*c.o.MaxHeaderBytes+minMaxFrame {
			t.Fatalf("%d streams, %d bytes of a header block", c.active, len(c.block.b))
		}
	}
	out.full = false
	c.Writable()
	for _, r := range tapes {
		if how&2 != 0 && r.open() {
			r.s.Resume()
		}
	}
	out.now += int64(time.Hour)
	c.Sweep()
	c.Closed(message.ConnectionClosed)
	for _, r := range tapes {
		for range r.heads {
			if !server && how&2 != 0 && r.open() {
				r.s.Resume()
			}
		}
		fmt.Fprintln(&b, r)
	}
	if c.active != 0 || c.live.first != nil || c.streams.n != 0 || c.ready.first != nil || c.starved.first != nil || c.full != 0 || c.waiting != 0 || c.held != 0 {
		t.Fatalf("%d streams are left", c.active)
	}
	return fmt.Sprintf("%s%s\n%v", &b, windowUpdates.ReplaceAllString(describe(t, out.take(), nil)+"\n", ""), failed)
}
