package streamtest

import (
	"bytes"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// HTTP2 is a Link that speaks HTTP/2: the test plays frame by frame.
type HTTP2 struct {
	*Link
	in     bytes.Buffer
	out    bytes.Buffer
	framer *http2.Framer
	enc    *hpack.Encoder
	block  bytes.Buffer
}

// HTTP2 takes the client's preface and sends SETTINGS.
func (l *Link) HTTP2(settings ...http2.Setting) *HTTP2 {
	l.rig.T.Helper()
	h := &HTTP2{Link: l}
	if p := l.Take(len(http2.ClientPreface)); p != http2.ClientPreface {
		l.rig.T.Fatalf("the preface is %q", p)
	}
	h.framer = http2.NewFramer(&h.out, &h.in)
	h.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	h.enc = hpack.NewEncoder(&h.block)
	h.write(h.framer.WriteSettings(settings...))
	return h
}

// write sends what the framer wrote.
func (h *HTTP2) write(err error) {
	h.rig.T.Helper()
	if err != nil {
		h.rig.T.Fatal(err)
	}
	h.Send(h.out.String())
	h.out.Reset()
}

// Next waits for the next frame that is not SETTINGS, WINDOW_UPDATE or PING.
func (h *HTTP2) Next() http2.Frame {
	h.rig.T.Helper()
	for {
		head := h.Link.peek(9)
		h.in.WriteString(h.Take(9 + (int(head[0])<<16 | int(head[1])<<8 | int(head[2]))))
		f, err := h.framer.ReadFrame()
		if err != nil {
			h.rig.T.Fatalf("upstream: %v", err)
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				h.write(h.framer.WriteSettingsAck())
			}
		case *http2.WindowUpdateFrame, *http2.PingFrame:
		default:
			return f
		}
	}
}

// Request waits for the head of a request.
func (h *HTTP2) Request() (id uint32, path string, end bool) {
	h.rig.T.Helper()
	f, ok := h.Next().(*http2.MetaHeadersFrame)
	if !ok {
		h.rig.T.Fatalf("not a request: %v", f)
	}
	return f.StreamID, f.PseudoValue("path"), f.StreamEnded()
}

// Content waits for the rest of a request's content.
func (h *HTTP2) Content() string {
	h.rig.T.Helper()
	var b strings.Builder
	for {
		f, ok := h.Next().(*http2.DataFrame)
		if !ok {
			h.rig.T.Fatalf("not content: %v", f)
		}
		b.Write(f.Data())
		if f.StreamEnded() {
			return b.String()
		}
	}
}

// Reset resets a stream.
func (h *HTTP2) Reset(id uint32, code http2.ErrCode) { h.write(h.framer.WriteRSTStream(id, code)) }

// GoAway announces the end: streams above last were not processed.
func (h *HTTP2) GoAway(last uint32) { h.write(h.framer.WriteGoAway(last, http2.ErrCodeNo, nil)) }

// Respond sends a head of fields, name, value, name, value, the first of which is the status.
func (h *HTTP2) Respond(id uint32, end bool, status string, fields ...string) {
	h.rig.T.Helper()
	h.block.Reset()
	_ = h.enc.WriteField(hpack.HeaderField{Name: ":status", Value: status})
	h.headers(id, end, fields)
}

// Trailers ends a response with trailers.
func (h *HTTP2) Trailers(id uint32, fields ...string) {
	h.rig.T.Helper()
	h.block.Reset()
	h.headers(id, true, fields)
}

func (h *HTTP2) headers(id uint32, end bool, fields []string) {
	h.rig.T.Helper()
	for i := 0; i+1 < len(fields); i += 2 {
		_ = h.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	h.write(h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block.Bytes(), EndHeaders: true, EndStream: end}))
}

// Data sends content.
func (h *HTTP2) Data(id uint32, end bool, p string) {
	h.write(h.framer.WriteData(id, end, []byte(p)))
}

// peek waits for n bytes and leaves them.
func (l *Link) peek(n int) string {
	l.rig.T.Helper()
	l.rig.Until("bytes at the upstream", func() bool { l.fill(); return len(l.in) >= n })
	return l.in[:n]
}
