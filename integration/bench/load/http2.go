package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames splits what arrives into HTTP/2 frames (RFC 9113 §4.1).
type frames struct {
	part    []byte
	preface int // bytes of the client's preface that are still to come
}

type frame struct {
	kind    http2.FrameType
	flags   http2.Flags
	stream  uint32
	payload []byte
}

// maxFrame is the greatest frame that a peer may send to who did not say otherwise (§6.5.2).
const maxFrame = 16 << 10

func (f *frames) feed(b []byte, each func(frame) error) error {
	if len(f.part) > 0 {
		f.part = append(f.part, b...)
		b = f.part
	}
	if n := min(f.preface, len(b)); n > 0 {
		b, f.preface = b[n:], f.preface-n
	}
	for len(b) >= 9 {
		n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
		if n > maxFrame {
			return fmt.Errorf("a frame of %d bytes", n)
		}
		if len(b) < 9+n {
			break
		}
		at := frame{http2.FrameType(b[3]), http2.Flags(b[4]), binary.BigEndian.Uint32(b[5:9]) & (1<<31 - 1), b[9 : 9+n]}
		b = b[9+n:]
		if err := each(at); err != nil {
			return err
		}
	}
	f.part = append(f.part[:0], b...)
	return nil
}

// size is how long the data of a DATA frame is without its padding (§6.1).
func (f frame) size() int {
	if f.flags&http2.FlagDataPadded == 0 || len(f.payload) == 0 {
		return len(f.payload)
	}
	return len(f.payload) - 1 - int(f.payload[0])
}

func appendFrame(b []byte, kind http2.FrameType, flags http2.Flags, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), byte(kind), byte(flags))
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

func appendWindow(b []byte, stream uint32, by int) []byte {
	return appendFrame(b, http2.FrameWindowUpdate, 0, stream, binary.BigEndian.AppendUint32(nil, uint32(by)))
}

func appendSettings(b []byte, settings ...http2.Setting) []byte {
	var p []byte
	for _, s := range settings {
		p = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(p, uint16(s.ID)), s.Val)
	}
	return appendFrame(b, http2.FrameSettings, 0, 0, p)
}

// window is what a peer is given at once, on each stream and on the connection.
const window = 1 << 30

// settled answers the frames that concern a whole connection alike at both ends; it returns what to send.
func settled(f frame, out []byte, setting func(http2.Setting) error) ([]byte, error) {
	switch {
	case f.kind == http2.FrameSettings && f.flags&http2.FlagSettingsAck == 0:
		for p := f.payload; len(p) >= 6; p = p[6:] {
			if err := setting(http2.Setting{ID: http2.SettingID(binary.BigEndian.Uint16(p)), Val: binary.BigEndian.Uint32(p[2:])}); err != nil {
				return out, err
			}
		}
		out = appendFrame(out, http2.FrameSettings, http2.FlagSettingsAck, 0, nil)
	case f.kind == http2.FramePing && f.flags&http2.FlagPingAck == 0:
		out = appendFrame(out, http2.FramePing, http2.FlagPingAck, 0, f.payload)
	}
	return out, nil
}

// h2answerer is a backend's end of a connection. It does not look at the fields: every request gets a response of 1 KiB.
type h2answerer struct {
	frames
	body    []byte
	begun   bool
	out     []byte
	room    int // of the connection's window for what is sent
	blocked []uint32
	got     int // of the connection's window for what is received
}

// h2Body is what the backend of HTTP/2 answers with.
const h2Body = 1 << 10

// replyBlock is a response's fields, without the dynamic table (RFC 7541 §6.1, §6.2.2).
var replyBlock = func() []byte {
	b := []byte{0x80 | 8} // :status 200
	b = append(b, 0x0f, 28-15)
	return append(append(b, 4), fmt.Sprint(h2Body)...) // content-length
}()

func http2Backend(_ Spec, ready func(string)) error {
	l, err := newLoop()
	if err != nil {
		return err
	}
	text := body(h2Body)
	address, err := l.listen(func() peer {
		return &h2answerer{frames: frames{preface: len(http2.ClientPreface)}, body: text, room: 65535}
	})
	if err != nil {
		return err
	}
	ready(address)
	return l.run(time.Now().Add(24*time.Hour), nil)
}

func (a *h2answerer) data(s *sock, b []byte) {
	if !a.begun {
		a.begun = true
		a.out = appendSettings(a.out, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
		a.out = appendWindow(a.out, 0, window)
	}
	if err := a.feed(b, a.frame); err != nil {
		s.reset()
		return
	}
	s.flushed(&a.out)
}

// flushed sends what was gathered in one turn. The memory is used again when all of it was written.
func (s *sock) flushed(out *[]byte) {
	if len(*out) == 0 {
		return
	}
	s.send(*out)
	if len(s.pending) > 0 {
		*out = nil
		return
	}
	*out = (*out)[:0]
}

func (a *h2answerer) frame(f frame) (err error) {
	switch f.kind {
	case http2.FrameHeaders:
		if f.flags&http2.FlagHeadersEndStream != 0 {
			a.reply(f.stream)
		}
	case http2.FrameData:
		if a.got += len(f.payload); a.got >= window/2 {
			a.out = appendWindow(a.out, 0, a.got)
			a.got = 0
		}
		if f.flags&http2.FlagDataEndStream != 0 {
			a.reply(f.stream)
		}
	case http2.FrameWindowUpdate:
		if f.stream == 0 && len(f.payload) == 4 {
			a.room += int(binary.BigEndian.Uint32(f.payload))
			for len(a.blocked) > 0 && a.room >= len(a.body) {
				id := a.blocked[0]
				a.blocked = a.blocked[1:]
				a.reply(id)
			}
		}
	default:
		a.out, err = settled(f, a.out, func(s http2.Setting) error {
			// The window of a stream is never asked for: a body is smaller than any that a proxy gives.
			if s.ID == http2.SettingInitialWindowSize && s.Val < h2Body {
				return fmt.Errorf("a stream's window of %d bytes", s.Val)
			}
			return nil
		})
	}
	return err
}

func (a *h2answerer) reply(stream uint32) {
	if a.room < len(a.body) {
		a.blocked = append(a.blocked, stream)
		return
	}
	a.room -= len(a.body)
	a.out = appendFrame(a.out, http2.FrameHeaders, http2.FlagHeadersEndHeaders, stream, replyBlock)
	a.out = appendFrame(a.out, http2.FrameData, http2.FlagDataEndStream, stream, a.body)
}

func (a *h2answerer) gone(*sock, string) {}

// h2asker is a generator's end of a connection. A response is good when its stream ends with a body of the right
// size: an error that a proxy answers has another one. So no field is decoded.
type h2asker struct {
	frames
	l            *loop
	r            *Result
	address      string
	streams      int
	first, later []byte // the request's fields: with what enters the dynamic table, and when it is there (RFC 7541 §6.2.1)
	s            *sock
	next         uint32
	bodies       map[uint32]int // of the streams under way
	out          []byte
	got          int
	going        bool // GOAWAY has come
}

func http2Load(s Spec) (Result, error) {
	l, err := newLoop()
	if err != nil {
		return Result{}, err
	}
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	encode := func() []byte {
		block.Reset()
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "bench.local"}, {":path", s.path()}, {"user-agent", "bench"}, {"accept", "*/*"}} {
			_ = e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}) // a buffer takes it
		}
		return bytes.Clone(block.Bytes())
	}
	first, later := encode(), encode()
	var r Result
	for range max(s.Connections, 1) {
		(&h2asker{l: l, r: &r, address: s.Address, streams: max(s.Streams, 1), first: first, later: later}).open()
	}
	err = l.run(time.Now().Add(s.duration()), nil)
	return r, err
}

func (a *h2asker) open() {
	a.frames, a.bodies, a.next, a.got, a.going, a.out = frames{}, map[uint32]int{}, 1, 0, false, nil
	s, err := a.l.dial(a.address, a)
	if err != nil {
		a.r.fail(err.Error())
		a.l.later(20*time.Millisecond, a.open)
		return
	}
	a.s = s
	a.out = append(a.out, http2.ClientPreface...)
	a.out = appendSettings(a.out, http2.Setting{ID: http2.SettingEnablePush}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
	a.out = appendWindow(a.out, 0, window)
	for range a.streams {
		a.ask()
	}
	s.flushed(&a.out)
}

func (a *h2asker) ask() {
	block := a.later
	if a.next == 1 {
		block = a.first
	}
	a.out = appendFrame(a.out, http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, a.next, block)
	a.bodies[a.next] = 0
	a.next += 2
}

func (a *h2asker) data(s *sock, b []byte) {
	if err := a.feed(b, a.frame); err != nil {
		s.reset()
		a.gone(s, err.Error())
		return
	}
	if a.going && len(a.bodies) == 0 {
		s.close()
		a.open()
		return
	}
	s.flushed(&a.out)
}

func (a *h2asker) frame(f frame) (err error) {
	switch f.kind {
	case http2.FrameHeaders:
		if f.flags&http2.FlagHeadersEndStream != 0 {
			a.ended(f.stream, "a response without a body")
		}
	case http2.FrameData:
		a.bodies[f.stream] += f.size()
		if a.got += len(f.payload); a.got >= window/2 {
			a.out = appendWindow(a.out, 0, a.got)
			a.got = 0
		}
		if f.flags&http2.FlagDataEndStream != 0 {
			why := ""
			if n := a.bodies[f.stream]; n != h2Body {
				why = fmt.Sprintf("a response of %d bytes", n)
			}
			a.ended(f.stream, why)
		}
	case http2.FrameRSTStream:
		a.ended(f.stream, "RST_STREAM")
	case http2.FrameGoAway:
		a.going = true
	default:
		a.out, err = settled(f, a.out, func(s http2.Setting) error {
			switch {
			case s.ID == http2.SettingHeaderTableSize && s.Val < 4096:
				return errors.New("a dynamic table smaller than by default is not understood here")
			case s.ID == http2.SettingMaxConcurrentStreams && int(s.Val) < a.streams:
				return fmt.Errorf("%d concurrent streams at most", s.Val)
			}
			return nil
		})
	}
	return err
}

func (a *h2asker) ended(stream uint32, why string) {
	if _, known := a.bodies[stream]; !known {
		return
	}
	delete(a.bodies, stream)
	if why == "" {
		a.r.Done++
	} else {
		a.r.fail(why)
	}
	if !a.going {
		a.ask()
	}
}

func (a *h2asker) gone(_ *sock, why string) {
	a.r.fail(why)
	a.l.later(5*time.Millisecond, a.open)
}
