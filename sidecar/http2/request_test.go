package http2

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
)

// TestRequests sends one head each; want is what the receiver gets, or "" for a stream error.
func TestRequests(t *testing.T) {
	const line = ":method=GET :scheme=https :authority=h.example :path=/ "
	for _, c := range []struct{ name, fields, want string }{
		{"a GET", line, "[:method=GET :scheme=https :authority=h.example :path=/]."},
		{"Host alone becomes :authority", ":method=GET :scheme=https :path=/ host=a:80", "[:method=GET :scheme=https :path=/ :authority=a:80]."},
		{"Host beside the same :authority", line + "host=H.example", "[:method=GET :scheme=https :authority=h.example :path=/]."},
		{"Host that differs", line + "host=other", ""},
		{"two Hosts", line + "host=h.example host=h.example", ""},
		{"neither, which is for others to refuse", ":method=GET :scheme=https :path=/", "[:method=GET :scheme=https :path=/]."},
		{"cookie crumbs", line + "cookie=a=b x=y cookie=c=d cookie=e=f", "[:method=GET :scheme=https :authority=h.example :path=/ cookie=a=b;_c=d;_e=f x=y]."},
		{"te: trailers", line + "te=trailers", "[:method=GET :scheme=https :authority=h.example :path=/ te=trailers]."},
		{"te: gzip", line + "te=gzip", ""},
		{"te: trailers, gzip", line + "te=trailers,gzip", ""},
		{"connection", line + "connection=close", ""},
		{"keep-alive", line + "keep-alive=5", ""},
		{"proxy-connection", line + "proxy-connection=close", ""},
		{"transfer-encoding", line + "transfer-encoding=chunked", ""},
		{"upgrade", line + "upgrade=h2c", ""},
		{"a capital in a name", line + "X-a=b", ""},
		{"no :method", ":scheme=https :authority=h :path=/", ""},
		{"no :scheme", ":method=GET :authority=h :path=/", ""},
		{"no :path", ":method=GET :scheme=https :authority=h", ""},
		{"an empty :path", ":method=GET :scheme=https :authority=h :path=", ""},
		{"an empty :method", ":method= :scheme=https :authority=h :path=/", ""},
		{"a :method that is no token", ":method=G(T :scheme=https :authority=h :path=/", ""},
		{"an unknown :scheme", ":method=GET :scheme=ftp :authority=h :path=/", ""},
		{"an empty :authority", ":method=GET :scheme=https :authority= :path=/", ""},
		{"an :authority with userinfo", ":method=GET :scheme=https :authority=u@h :path=/", ""},
		{"an :authority with a path", ":method=GET :scheme=https :authority=h/x :path=/", ""},
		{"an :authority with a comma", ":method=GET :scheme=https :authority=a,b :path=/", ""},
		{"an :authority with a port too large", ":method=GET :scheme=https :authority=h:65536 :path=/", ""},
		{"an :authority with a port too long", ":method=GET :scheme=https :authority=h:000080 :path=/", ""},
		{"an IPv6 :authority", ":method=GET :scheme=https :authority=[::1]:80 :path=/", "[:method=GET :scheme=https :authority=[::1]:80 :path=/]."},
		{"an IPv6 :authority that is none", ":method=GET :scheme=https :authority=[::x] :path=/", ""},
		{":status in a request", line + ":status=200", ""},
		{"a :path of another form", ":method=GET :scheme=https :authority=h :path=x", ""},
		{"a :path with a fragment", ":method=GET :scheme=https :authority=h :path=/#x", ""},
		{"a :path with a byte above ASCII", ":method=GET :scheme=https :authority=h :path=/\xe9", ""},
		{"a :path with half an escape", ":method=GET :scheme=https :authority=h :path=/%2", ""},
		{"a query with half an escape", ":method=GET :scheme=https :authority=h :path=/?%2", "[:method=GET :scheme=https :authority=h :path=/?%2]."},
		{"* for GET", ":method=GET :scheme=https :authority=h :path=*", ""},
		{"* for OPTIONS", ":method=OPTIONS :scheme=https :authority=h :path=*", "[:method=OPTIONS :scheme=https :authority=h :path=*]."},
		{"CONNECT", ":method=CONNECT :authority=h:1", "[:method=CONNECT :authority=h:1]."},
		{"CONNECT with a path", ":method=CONNECT :authority=h:1 :path=/", ""},
		{"CONNECT without authority", ":method=CONNECT", ""},
		{"CONNECT without a port", ":method=CONNECT :authority=h", ""},
		{":protocol that was not offered", ":method=CONNECT :protocol=websocket :scheme=https :authority=h :path=/", ""},
		{":protocol without CONNECT", line + ":protocol=websocket", ""},
		{"content-length of an empty request", line + "content-length=5", ""},
		{"content-length 0", line + "content-length=0", "[:method=GET :scheme=https :authority=h.example :path=/ content-length=0]."},
		{"the same content-length twice", line + "content-length=0 content-length=0", "[:method=GET :scheme=https :authority=h.example :path=/ content-length=0]."},
		{"two content-lengths", line + "content-length=0 content-length=1", ""},
		{"a content-length with a sign", line + "content-length=+0", ""},
		{"a list of content-lengths", line + "content-length=0,0", ""},
		{"an empty content-length", line + "content-length=", ""},
		{"a content-length beyond 18 digits", line + "content-length=0000000000000000000", ""},
	} {
		s := newServer(t, nil)
		fields := strings.Fields(c.fields)
		for i := range fields {
			fields[i] = strings.ReplaceAll(fields[i], "_", " ")
		}
		s.headers(1, true, fields...)
		if c.want == "" {
			s.want("RST_STREAM 1 PROTOCOL_ERROR")
			if len(s.tapes) > 0 || !slices.Equal(s.refuse, []failure.Kind{failure.MalformedStream}) || s.err != nil || s.c.Active() != 0 {
				t.Errorf("%s: %v, %v, %v", c.name, s.tapes, s.refuse, s.err)
			}
			continue
		}
		if len(s.tapes) != 1 {
			t.Errorf("%s: refused: %s", c.name, s.frames())
		} else if got := s.tapes[0].String(); got != strings.ReplaceAll(c.want, "_", " ") {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

func TestContentAndItsLength(t *testing.T) {
	for _, c := range []struct {
		name string
		send func(s *server)
		want string // what the receiver gets behind the head
	}{
		{"right", func(s *server) { s.data(1, false, "he"); s.data(1, true, "llo") }, `"hello".`},
		{"right, with an empty frame at the end", func(s *server) { s.data(1, false, "hello"); s.data(1, true, "") }, `"hello".`},
		{"right, with trailers", func(s *server) { s.data(1, false, "hello"); s.headers(1, true, "x=y") }, `"hello"+[x=y].`},
		{"right, with padding", func(s *server) { _ = s.f.WriteDataPadded(1, true, []byte("hello"), make([]byte, 200)); s.send() }, `"hello".`},
		{"too long", func(s *server) { s.data(1, false, "hello!") }, "!protocol error"},
		{"too short", func(s *server) { s.data(1, true, "hell") }, "!protocol error"},
		{"too short, with trailers", func(s *server) { s.data(1, false, "hell"); s.headers(1, true, "x=y") }, `"hell"!protocol error`},
		{"trailers without the end", func(s *server) { s.data(1, false, "hello"); s.headers(1, false, "x=y") }, `"hello"!protocol error`},
		{"trailers with a pseudo-header field", func(s *server) { s.data(1, false, "hello"); s.headers(1, true, ":path=/") }, `"hello"!protocol error`},
		{"trailers with connection", func(s *server) { s.data(1, false, "hello"); s.headers(1, true, "connection=x") }, `"hello"!protocol error`},
	} {
		s := newServer(t, nil)
		s.request(1, false, "content-length=5")
		s.tapes[0].b.Reset()
		c.send(s)
		if got := s.tapes[0].String(); got != c.want || s.err != nil {
			t.Errorf("%s: %s, %v", c.name, got, s.err)
		}
		if bad := strings.Contains(c.want, "!"); bad != (s.frames() == "RST_STREAM 1 PROTOCOL_ERROR") {
			t.Errorf("%s: not as it should be answered", c.name)
		}
	}
}

func TestAHeadThatIsTooLargeIsAnswered(t *testing.T) {
	s := newServer(t, &Options{MaxHeaderBytes: 1000})
	s.request(1, false, "x="+strings.Repeat("a", 1000))
	if got := describe(t, s.out.take(), newDecoder()); got != "HEADERS 1 end :status=431 content-length=0\nRST_STREAM 1 NO_ERROR" || len(s.tapes) > 0 {
		t.Error(got, s.tapes)
	}
	s.request(3, true)
	if len(s.tapes) != 1 || !slices.Equal(s.refuse, []failure.Kind{failure.StreamHeadTooLarge}) {
		t.Error("the connection does not go on", s.refuse)
	}
}

func TestManyCrumbsOfACookieAreOneField(t *testing.T) {
	s := newServer(t, nil)
	var crumbs []string
	for i := range 110 {
		crumbs = append(crumbs, fmt.Sprintf("cookie=k%d=v", i))
	}
	s.request(1, true, crumbs...)
	if len(s.tapes) != 1 || !strings.Contains(s.tapes[0].String(), "cookie=k0=v; k1=v; ") || strings.Count(s.tapes[0].String(), "cookie=") != 1 {
		t.Error(s.refuse, s.tapes)
	}
}

func TestTooManyStreamsAreRefused(t *testing.T) {
	s := newServer(t, &Options{MaxConcurrentStreams: 2})
	for id := uint32(1); id < 9; id += 2 {
		s.request(id, true)
	}
	s.want("RST_STREAM 5 REFUSED_STREAM\nRST_STREAM 7 REFUSED_STREAM")
	s.tapes[0].s.Head(head(":status=200"), true)
	s.request(9, true)
	if len(s.tapes) != 3 || !slices.Equal(s.refuse, []failure.Kind{failure.TooManyStreams, failure.TooManyStreams}) {
		t.Error(len(s.tapes), s.refuse)
	}
}

// TestResponseHeads looks at what a head becomes on the wire.
func TestResponseHeads(t *testing.T) {
	s := newServer(t, nil)
	dec := newDecoder()
	s.request(1, true)
	s.tapes[0].s.Head(head(":status=103", "link=x"), false)
	s.tapes[0].s.Head(head(":status=200", "connection=close", "keep-alive=5", "transfer-encoding=chunked", "upgrade=h2c",
		"proxy-connection=x", "te=gzip", "server=s"), true)
	if got := describe(t, s.out.take(), dec); got != "HEADERS 1 :status=103 link=x\nHEADERS 1 end :status=200 server=s" {
		t.Error(got)
	}
}

// TestALargeHeadIsCutIntoFrames and put together again.
func TestALargeHeadIsCutIntoFrames(t *testing.T) {
	s := newServer(t, nil)
	s.request(1, true)
	s.tapes[0].s.Head(head(":status=200", "x="+strings.Repeat("a", 40000)), true)
	p := s.out.take()
	if got := describe(t, p, nil); got != "HEADERS 1 end\nCONTINUATION\nCONTINUATION" {
		t.Error(got)
	}
}

func TestExtendedConnect(t *testing.T) {
	request := []string{":method=CONNECT", ":protocol=websocket", ":scheme=https", ":authority=h", ":path=/ws"}
	open := func(fields ...string) (*server, *tape) {
		s := newServer(t, &Options{AllowConnect: true})
		s.headers(1, false, append(request, fields...)...)
		if len(s.tapes) != 1 {
			t.Fatal(s.frames())
		}
		return s, s.tapes[0]
	}
	t.Run("accepted", func(t *testing.T) {
		s, r := open("sec-websocket-version=13")
		s.data(1, false, "ahead")
		if got := r.String(); !strings.HasPrefix(got, "[:method=GET :scheme=https :authority=h :path=/ws sec-websocket-version=13 upgrade=websocket connection=upgrade sec-websocket-key=") || strings.Contains(got, "ahead") {
			t.Error(got)
		}
		r.b.Reset()
		r.s.Head(head(":status=101", "upgrade=websocket", "connection=upgrade", "sec-websocket-accept=x"), false)
		if got := describe(t, s.out.take(), newDecoder()); got != "HEADERS 1 :status=200" {
			t.Error(got)
		}
		r.s.Data([]byte("to you"), true) // a tunnel ends one way at a time
		s.data(1, true, " and more")
		if got := r.String(); got != `"ahead and more".` {
			t.Error(got)
		}
		s.want("DATA 1 6 end")
		if s.c.Active() != 0 {
			t.Error("the stream is left")
		}
	})
	t.Run("refused", func(t *testing.T) {
		s, r := open("sec-websocket-key=k")
		s.data(1, false, "ahead")
		r.b.Reset()
		r.s.Head(head(":status=403"), false)
		s.data(1, true, "more")
		r.s.Data([]byte("no"), true)
		if got := r.String(); got != "." {
			t.Error(got)
		}
		s.want("HEADERS 1\nDATA 1 2 end")
	})
	t.Run("answered with 200 by a server that does not upgrade", func(t *testing.T) {
		s, r := open()
		r.s.Head(head(":status=200"), false)
		s.want("RST_STREAM 1 CONNECT_ERROR")
		if r.reset != message.LocalReset {
			t.Error(r.reset)
		}
	})
}

func TestConnectHoldsWhatCameAhead(t *testing.T) {
	s := newServer(t, nil)
	s.headers(1, false, ":method=CONNECT", ":authority=h:1")
	s.data(1, false, "ahead")
	r := s.tapes[0]
	if got := r.String(); got != "[:method=CONNECT :authority=h:1]" {
		t.Error(got)
	}
	r.b.Reset()
	r.s.Head(head(":status=200"), false)
	if got := r.String(); got != `"ahead"` {
		t.Error(got)
	}
}

// TestDrain is the two steps of a server's end.
func TestDrain(t *testing.T) {
	s := newServer(t, nil)
	s.request(1, true)
	s.c.Drain(false)
	s.request(3, true)
	s.c.Drain(true)
	s.want("GOAWAY 2147483647 NO_ERROR\nGOAWAY 3 NO_ERROR")
	s.request(5, false) // it crossed the second
	s.data(5, true, "ignored")
	s.request(7, true)
	if s.err != nil || len(s.tapes) != 2 || !s.c.Draining() {
		t.Fatal(s.err, len(s.tapes))
	}
	s.tapes[0].s.Head(head(":status=200"), true)
	s.tapes[1].s.Head(head(":status=200"), true)
	if s.want("HEADERS 1 end\nHEADERS 3 end"); s.c.Active() != 0 {
		t.Error("streams are left")
	}
}

func TestAClientsResetReachesTheReceiver(t *testing.T) {
	s := newServer(t, nil)
	s.request(1, true)
	_ = s.f.WriteRSTStream(1, http2.ErrCodeCancel)
	s.send()
	if s.tapes[0].reset != message.RemoteReset || s.c.Active() != 0 {
		t.Error(s.tapes[0].reset)
	}
}

// TestAnUpgradeNamesOneProtocol: it becomes :protocol (RFC 8441 §4), which is one, and is read as it was written.
func TestAnUpgradeNamesOneProtocol(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines []string
		want  string // "": the stream is reset
	}{
		{"a protocol", []string{"websocket"}, "websocket"},
		{"a protocol with its version", []string{"SPDY/3.1"}, "SPDY/3.1"},
		{"one among empty elements", []string{"", ", websocket ,"}, "websocket"},
		{"two in a line", []string{"websocket, spdy/3.1"}, ""},
		{"two in two lines", []string{"websocket", "spdy/3.1"}, ""},
		{"none", []string{""}, ""},
		{"what is no protocol", []string{"web socket"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, nil, &Options{AllowConnect: true})
			got := ""
			p.accept = func(s *Stream) message.Receiver {
				return &tape{t: t, s: s, onHead: func(h *message.Head, _ bool) { got = string(h.Get(message.Upgrade)) }}
			}
			p.settle()
			h := head(":method=GET", ":scheme=https", ":authority=h", ":path=/")
			for _, l := range c.lines {
				h.AddNameString(message.Upgrade, l)
			}
			r := &tape{t: t}
			p.open(r).Head(h, false)
			p.settle()
			if got != c.want || (c.want == "") != (r.reset == message.LocalReset) {
				t.Errorf("the server got an upgrade to %q, reset %v", got, r.reset)
			}
		})
	}
}

// TestAHeadIsOpen as long as the client owes the rest of its preface or of a header block.
func TestAHeadIsOpen(t *testing.T) {
	block := "\x82\x87\x84\x41\x01h"
	whole := string(raw(nil, frameHeaders, flagEndHeaders, 1, block))
	first := string(raw(nil, frameHeaders, 0, 3, block))
	rest := string(raw(nil, frameContinuation, flagEndHeaders, 3, ""))
	data := string(raw(nil, frameData, 0, 1, "hello"))
	settings := string(raw(nil, frameSettings, 0, 0, ""))
	for _, c := range []struct {
		name string
		sent []string
		open bool
	}{
		{"nothing", nil, true},
		{"a part of the preface", []string{Preface[:10]}, true},
		{"the preface without SETTINGS", []string{Preface}, true},
		{"a part of SETTINGS", []string{Preface + settings[:8]}, true},
		{"the whole preface", []string{Preface + settings}, false},
		{"a whole head", []string{Preface + settings, whole}, false},
		{"a part of HEADERS", []string{Preface + settings, whole[:12]}, true},
		{"HEADERS without END_HEADERS", []string{Preface + settings, first}, true},
		{"a part of CONTINUATION", []string{Preface + settings, first, rest[:9-1]}, true},
		{"HEADERS and CONTINUATION", []string{Preface + settings, first + rest}, false},
		{"a part of a frame's header, of whatever kind", []string{Preface + settings, whole[:3]}, false},
		{"a part of DATA", []string{Preface + settings, whole + data[:12]}, false},
	} {
		out := newSink()
		s := NewServer(out, nil, &hooks{stream: func(s *Stream) message.Receiver { return &tape{t: t, s: s} }})
		s.Start()
		var kept []byte
		for _, p := range c.sent {
			out.now += 1000
			kept = append(kept, p...)
			n, err := s.Feed(kept)
			if err != nil {
				t.Fatal(c.name, err)
			}
			kept = kept[n:]
		}
		if got := s.Head(0); (got != 0) != c.open {
			t.Errorf("%s: %d", c.name, got)
		}
	}
}

// TestEachHeadHasATimeOfItsOwn: one that is cut is as old as its first byte, whatever came before it in the same turn.
func TestEachHeadHasATimeOfItsOwn(t *testing.T) {
	s := newServer(t, nil)
	block := s.fields(":method=GET", ":scheme=https", ":authority=h", ":path=/")
	at := func(now int64, frames ...[]byte) int64 {
		s.out.now = now
		for _, f := range frames {
			s.in.Write(f)
		}
		s.send()
		return s.c.Head(0)
	}
	end := raw(nil, frameContinuation, flagEndHeaders, 1, string(block[1:]))
	if got := at(100, raw(nil, frameHeaders, 0, 1, string(block[:1]))); got != 100 {
		t.Error(got)
	}
	if got := at(200, end[:11]); got != 100 {
		t.Error("more of it makes it younger:", got)
	}
	if got := at(300, end[11:], raw(nil, frameHeaders, 0, 3, string(block[:1]))); got != 300 {
		t.Error("the next head is as old as the one before:", got)
	}
	if got := at(400, raw(nil, frameContinuation, flagEndHeaders, 3, string(block[1:]))); got != 0 || len(s.tapes) != 2 {
		t.Error(got, len(s.tapes))
	}
}
