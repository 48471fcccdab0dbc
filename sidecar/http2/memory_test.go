package http2

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sallyport/sidecar/buffer"
	"sallyport/sidecar/message"
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

// bound is what one client can make a server's connection hold, from its options: piece is the largest piece of a
// response that its owner gives at once, head the size of the response's head.
func bound(o Options, piece, head int) int {
	o = o.filled(true)
	streams := int(o.MaxConcurrentStreams)
	in := o.HoldLimit + int(o.InitialConnWindow)
	out := o.BufferLimit + streams*(piece+head)
	block := 2*o.MaxHeaderBytes + int(o.MaxFrameSize)
	request := 2 * (o.MaxHeaderBytes + 32*o.MaxHeaderCount)        // decoded, and its long strings
	tables := 2 * 4 * int(max(o.HeaderTableSize, 4096))            // an arena of twice the table, and its entries
	objects := streams*(int(unsafe.Sizeof(Stream{}))+4*8) + 16<<10 // streams, their slots, the connection
	return 2*(in+out+block+request+tables) + objects               // buffers grow by doubling
}

// heap is what is reachable.
func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// quiet is an owner that keeps nothing, and pauses what it is told to.
type quiet struct {
	s     *Stream
	pause bool
}

func (q *quiet) Head(*message.Head, bool) {
	if q.pause {
		q.s.Pause()
	}
}
func (q *quiet) Data([]byte, bool)      {}
func (q *quiet) Trailers(*message.Head) {}
func (q *quiet) Reset(message.Reason)   {}
func (q *quiet) Drained()               {}

// TestOneClientCannotMakeAConnectionHoldMore than its options say, whatever it does; what it made it hold goes with its
// streams.
func TestOneClientCannotMakeAConnectionHoldMore(t *testing.T) {
	const piece = 64 << 10 // what a connection to a host reads at once
	type world struct {
		out    *sink
		c      *Conn
		owners []*quiet
		pause  bool
		err    error
		rest   []byte
	}
	feed := func(w *world, p []byte) {
		if w.err != nil {
			return
		}
		w.rest = append(w.rest, p...)
		n, err := w.c.Feed(w.rest)
		w.rest, w.err = append([]byte(nil), w.rest[n:]...), err
		w.out.b.Release()
	}
	request := "\x82\x87\x84\x41\x01h"
	next := func(w *world, id uint32, end uint8) { feed(w, raw(nil, frameHeaders, flagEndHeaders|end, id, request)) }
	content := strings.Repeat("x", minMaxFrame)
	for _, c := range []struct {
		name  string
		o     Options
		drive func(w *world)
		least int // that must be held for the case to be one
	}{
		{"uploads on every stream that nobody reads", Options{}, func(w *world) {
			w.pause = true
			for id := uint32(1); id < 200 && w.err == nil; id += 2 {
				next(w, id, 0)
				for range 15 {
					if w.c.recvWindow >= minMaxFrame { // or the connection ends
						feed(w, raw(nil, frameData, 0, id, content))
					}
				}
			}
		}, 4 << 20},
		{"responses on every stream that the client does not take", Options{BufferLimit: 32 << 10}, func(w *world) {
			feed(w, raw(nil, frameSettings, 0, 0, "\x00\x04\x00\x00\x00\x00"))
			for id := uint32(1); id < 200; id += 2 {
				next(w, id, flagEndStream)
			}
			for _, o := range w.owners {
				for o.s.Head(head(":status=200"), false); !o.s.Full(); {
					o.s.Data(make([]byte, piece), false)
				}
			}
		}, 100 * piece},
		{"heads on every stream that an Output which is full does not take", Options{}, func(w *world) {
			w.out.full = true
			for id := uint32(1); id < 200; id += 2 {
				next(w, id, flagEndStream)
			}
			for _, o := range w.owners {
				o.s.Head(head(":status=200", "x="+strings.Repeat("y", 4000)), true)
			}
			w.out.full = false
		}, 100 * 4000},
		{"a header block that does not end", Options{}, func(w *world) {
			feed(w, raw(nil, frameHeaders, 0, 1, content))
			for range 6 {
				feed(w, raw(nil, frameContinuation, 0, 1, content))
			}
		}, 100_000},
		{"heads of long strings in Huffman code, and a table full of entries", Options{HeaderTableSize: 64 << 10}, func(w *world) {
			var block bytes.Buffer
			enc := hpack.NewEncoder(&block)
			enc.SetMaxDynamicTableSizeLimit(64 << 10)
			enc.SetMaxDynamicTableSize(64 << 10)
			for id := uint32(1); id < 400; id += 2 {
				block.Reset()
				for _, f := range []string{":method GET", ":scheme http", ":path /", ":authority h"} {
					name, value, _ := strings.Cut(f, " ")
					_ = enc.WriteField(hpack.HeaderField{Name: name, Value: value})
				}
				for i := range 90 {
					_ = enc.WriteField(hpack.HeaderField{Name: fmt.Sprintf("x%d", i), Value: fmt.Sprint(id)})
				}
				_ = enc.WriteField(hpack.HeaderField{Name: "y", Value: strings.Repeat("0", 50_000), Sensitive: true})
				b := block.String()
				feed(w, raw(nil, frameHeaders, 0, id, b[:16384]))
				feed(w, raw(nil, frameContinuation, flagEndHeaders, id, b[16384:]))
				feed(w, raw(nil, frameReset, 0, id, "\x00\x00\x00\x08"))
			}
		}, 0},
	} {
		before := heap()
		w := &world{out: newSink()}
		w.c = NewServer(w.out, &c.o, &hooks{stream: func(s *Stream) message.Receiver {
			w.owners = append(w.owners, &quiet{s, w.pause})
			return w.owners[len(w.owners)-1]
		}})
		a := newAlarm(w.c, w.out)
		w.c.Start()
		feed(w, append([]byte(Preface), raw(nil, frameSettings, 0, 0, "")...))
		feed(w, raw(nil, frameSettings, flagAck, 0, ""))
		c.drive(w)
		w.owners = nil
		grown, most := heap()-before, bound(c.o, piece, 4100)
		if w.err != nil || grown > most || grown < c.least {
			t.Errorf("%s: %d bytes are held, at least %d should and at most %d may: %v", c.name, grown, c.least, most, w.err)
		}
		// The client goes on, as if nothing had been.
		if w.c.block.stream == 0 {
			w.c.visit(func(s *Stream) { s.Reset(message.LocalReset) })
			w.rest = nil
			next(w, 1001, flagEndStream)
			w.owners[0].s.Head(head(":status=204"), true)
			w.owners = nil
			a.wait(time.Minute)
			w.out.pool = buffer.Pool{} // the worker's, which has a bound of its own
			if left := heap() - before; w.err != nil || left > 64<<10+16*int(c.o.HeaderTableSize) {
				t.Errorf("%s: %d bytes stay: %v", c.name, left, w.err)
			}
		}
		runtime.KeepAlive(w)
	}
}
