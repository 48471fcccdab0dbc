package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"

	"sallyport/sidecar/message"
)

// roomy reads what a codec wrote, which may be longer than what it read.
var roomy = &Options{MaxHeaderBytes: 1 << 20, MaxHeaderCount: 1000, EnableTrailers: true, AllowCustomMethods: true}

// record is one message as it was received.
type record struct {
	head, trailers message.Head
	body           []byte
	ended          bool
	hasTrailers    bool
}

func (r *record) Head(h *message.Head, end bool) { r.head.CopyFrom(h); r.ended = end }
func (r *record) Data(p []byte, end bool)        { r.body = append(r.body, p...); r.ended = end }
func (r *record) Trailers(h *message.Head) {
	r.trailers.CopyFrom(h)
	r.ended, r.hasTrailers = true, true
}
func (r *record) Reset(message.Reason) {}
func (r *record) Drained()             {}

// send sends the message again.
func (r *record) send(s message.Sender) {
	if len(r.body) == 0 && !r.hasTrailers {
		s.Head(&r.head, true)
		return
	}
	s.Head(&r.head, false)
	if len(r.body) > 0 {
		s.Data(r.body, !r.hasTrailers)
	}
	if r.hasTrailers {
		s.Trailers(&r.trailers)
	}
}

// essence is what must survive being written and read again; a length is the codec's to choose where there is no content.
func (r *record) essence() string {
	if len(r.body) == 0 {
		r.head.RemoveName(message.ContentLength)
	}
	return fmt.Sprintf("%s %q %s %v", headText(&r.head), r.body, headText(&r.trailers), r.ended)
}

type recordAcceptor struct {
	record
	quiet
	s *ServerStream
}

func (a *recordAcceptor) NewStream(s message.Sender, _ message.Version) message.Receiver {
	a.s = s.(*ServerStream)
	return a
}

// errText compares errors; partial lines are told apart by the caller, who ends the input with LF.
func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func FuzzRequest(f *testing.F) {
	for i, c := range requestCases {
		f.Add([]byte(wire(c.raw)), uint8(i))
	}
	f.Add([]byte(browserRequest), uint8(7))
	f.Fuzz(func(t *testing.T, raw []byte, step uint8) {
		raw = append(raw, '\n') // ends the last line: a partial one is not judged yet
		o := &Options{AllowHTTP10: step&1 != 0, AllowCustomMethods: step&2 != 0, EnableTrailers: step&4 != 0, DefaultHost: "default"}
		whole, split := newPeer(t, o), newPeer(t, o)
		restW, errW := whole.feed(string(raw), len(raw))
		restS, errS := split.feed(string(raw), int(step)+1)
		if whole.text() != split.text() || errText(errW) != errText(errS) || errW == nil && restW != restS {
			t.Fatalf("whole: %s, %v, rest %q\nin steps of %d: %s, %v, rest %q", whole.text(), errW, restW, step+1, split.text(), errS, restS)
		}

		a := new(recordAcceptor)
		c := NewServer(newSink(), o, a)
		rest, err := feedAll(c, string(raw), len(raw))
		if err != nil || a.s == nil || !a.ended && !a.s.IsUpgrade() {
			return
		}
		if !a.s.IsUpgrade() {
			agreeOnRequest(t, raw, rest, &a.record)
		}

		// What is sent on is read as the same message.
		out := newSink()
		client := NewClient(out, roomy, quiet{})
		stream := client.Open(nobody{})
		if a.s.IsUpgrade() {
			stream.Head(&a.head, false)
		} else {
			a.send(stream)
		}
		sent := out.take()
		if one := message.IsProtocol(a.head.OnlyElement(message.Upgrade)); a.s.IsUpgrade() && a.head.Has(message.Upgrade) && !one {
			if sent != "" {
				t.Fatalf("a choice of protocols was sent on: %q", sent)
			}
			return
		}
		if sent == "" {
			t.Fatalf("what was read cannot be written: %s", headText(&a.head))
		}
		b := new(recordAcceptor)
		next := NewServer(newSink(), roomy, b)
		if rest, err := feedAll(next, sent, len(sent)); err != nil || rest != "" {
			t.Fatalf("own output is refused: %v, rest %q, in %q", err, rest, sent)
		}
		if b.s == nil || a.essence() != b.essence() || a.s.IsUpgrade() != b.s.IsUpgrade() {
			t.Fatalf("read  %s\nwrote %q\nread  %s", a.essence(), sent, b.essence())
		}
	})
}

// agreeOnRequest checks that net/http reads the same request from the same bytes, and as many of them.
func agreeOnRequest(t *testing.T, raw []byte, rest string, r *record) {
	if bytes.HasPrefix(raw, []byte("\r\n")) {
		raw = raw[2:] // net/http does not skip it
	}
	in := bufio.NewReader(bytes.NewReader(raw))
	q, err := http.ReadRequest(in)
	if err != nil {
		t.Fatalf("net/http refuses %q: %v", raw, err)
	}
	body, err := io.ReadAll(q.Body)
	if err != nil {
		t.Fatalf("net/http refuses the content of %q: %v", raw, err)
	}
	host := q.Host
	if host == "" {
		host = "default"
	}
	path := q.RequestURI
	if _, p, ok := splitAbsolute([]byte(path)); ok {
		switch path = string(p); {
		case path == "" && q.Method == "OPTIONS":
			path = "*"
		case path == "" || path[0] == '?':
			path = "/" + path
		}
	}
	if !r.head.Is(message.Method, q.Method) || !r.head.Is(message.Path, path) || !strings.EqualFold(string(r.head.Get(message.Authority)), host) || !bytes.Equal(body, r.body) {
		t.Fatalf("read %s %q\nnet/http read %s %s %s %q", headText(&r.head), r.body, q.Method, host, path, body)
	}
	left, _ := io.ReadAll(in)
	if string(left) != rest {
		t.Fatalf("left %q, net/http left %q", rest, left)
	}
}

func FuzzResponse(f *testing.F) {
	for i, c := range responseCases {
		f.Add([]byte(wire(c.raw)), uint8(i), c.method)
	}
	f.Fuzz(func(t *testing.T, raw []byte, step uint8, method string) {
		switch method {
		case "HEAD", "CONNECT", "UPGRADE":
		default:
			method = "GET"
		}
		open := method == "CONNECT" || method == "UPGRADE"
		raw = append(raw, '\n')
		o := &Options{EnableTrailers: step&1 != 0}
		whole, split := newCaller(t, o), newCaller(t, o)
		whole.s.Head(requestOf(method), !open)
		split.s.Head(requestOf(method), !open)
		_, errW := whole.feed(string(raw), len(raw))
		_, errS := split.feed(string(raw), int(step)+1)
		whole.c.EOF()
		split.c.EOF()
		// How far an unsolicited byte is from the response decides who notices it; that it is noticed is checked below.
		if whole.text() != split.text() || errText(errW) != errText(errS) && errS != error(errUnsolicited) && errW != nil {
			t.Fatalf("whole: %s, %v\nin steps of %d: %s, %v", whole.text(), errW, step+1, split.text(), errS)
		}

		r := new(record)
		done := false
		c := NewClient(newSink(), o, closing(func() { done = true }))
		c.Open(r).Head(requestOf(method), !open)
		n, err := c.Feed(raw)
		if err != nil {
			return
		}
		if done && c.Capacity() == 1 && n != len(raw) {
			t.Fatal("a connection with bytes behind the response is reusable")
		}
		c.EOF()
		code := r.head.StatusCode()
		if !r.ended || open || code < 200 {
			return
		}
		agreeOnResponse(t, raw, method, r)

		out := newSink()
		a := &recordAcceptor{}
		server := NewServer(out, roomy, a)
		feedAll(server, method+" / HTTP/1.1\r\nHost: h\r\n\r\n", 100)
		if method == "HEAD" || code == 204 || code == 304 {
			a.s.Head(&r.head, true)
		} else {
			r.send(a.s)
		}
		sent := out.take()
		if aborted(server) || !strings.HasPrefix(sent, fmt.Sprintf("HTTP/1.1 %d", code)) {
			t.Fatalf("what was read cannot be written: %s, %q", headText(&r.head), sent)
		}
		again := new(record)
		next := NewClient(newSink(), roomy, quiet{})
		next.Open(again).Head(requestOf(method), true)
		if rest, err := feedAll(next, sent, len(sent)); err != nil || rest != "" || next.Capacity() != 1 {
			t.Fatalf("own output is refused: %v, rest %q, in %q", err, rest, sent)
		}
		if r.essence() != again.essence() {
			t.Fatalf("read  %s\nwrote %q\nread  %s", r.essence(), sent, again.essence())
		}
	})
}

// agreeOnResponse checks that net/http reads the same final response from the same bytes.
func agreeOnResponse(t *testing.T, raw []byte, method string, r *record) {
	in := bufio.NewReader(bytes.NewReader(raw))
	for {
		q, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", raw, err)
		}
		if q.StatusCode < 200 {
			continue
		}
		body, err := io.ReadAll(q.Body)
		if err != nil || q.StatusCode != r.head.StatusCode() || !bytes.Equal(body, r.body) {
			t.Fatalf("read %s %q\nnet/http read %d %q, %v", headText(&r.head), r.body, q.StatusCode, body, err)
		}
		return
	}
}

func FuzzChunked(f *testing.F) {
	for _, c := range requestCases {
		if _, body, ok := strings.Cut(wire(c.raw), "chunked\r\n\r\n"); ok {
			f.Add([]byte(body), uint8(len(body)), uint8(3))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, step, piece uint8) {
		raw = append(raw, '\n')
		read := func(step, limit int) (data []byte, left int, last bool, err *Error) {
			var b body
			b.start(bodyChunked, 0)
			for at := 0; at < len(raw); {
				n, d, end, err := b.next(raw[at:min(at+step, len(raw))], limit)
				at += n
				data = append(data, d...)
				if err != nil || end {
					return data, len(raw) - at, end, err
				}
				if n == 0 {
					t.Fatal("nothing consumed")
				}
				if len(d) > limit {
					t.Fatal("a piece larger than the limit")
				}
			}
			return data, 0, false, nil
		}
		data, left, last, err := read(len(raw), 1<<20)
		data2, left2, last2, err2 := read(int(step)+1, int(piece)+1)
		if !bytes.Equal(data, data2) || left != left2 || last != last2 || err != err2 {
			t.Fatalf("whole: %q, %d left, %v, %v\nsplit: %q, %d left, %v, %v", data, left, last, err, data2, left2, last2, err2)
		}
		if !last {
			return
		}
		in := bufio.NewReader(bytes.NewReader(raw))
		want, goErr := io.ReadAll(httputil.NewChunkedReader(in))
		rest, _ := io.ReadAll(in)
		if goErr != nil || !bytes.Equal(data, want) || len(rest) != left {
			t.Fatalf("%q: read %q, %d left; net/http read %q, %d left, %v", raw, data, left, want, len(rest), goErr)
		}

		// What is written is read as the same.
		out := newSink()
		w := writer{framing: frameChunked}
		w.data(out.b, data, true)
		var b body
		b.start(bodyChunked, 0)
		var again []byte
		for raw := out.b.Bytes(); ; {
			n, d, end, err := b.next(raw, 1<<20)
			again, raw = append(again, d...), raw[n:]
			if err != nil || n == 0 && !end {
				t.Fatalf("own output is refused: %v", err)
			}
			if end {
				break
			}
		}
		if !bytes.Equal(data, again) {
			t.Fatalf("wrote %q, read %q", data, again)
		}
	})
}
