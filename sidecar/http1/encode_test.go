package http1

import (
	"strconv"
	"strings"
	"testing"

	"sallyport/sidecar/message"
)

func TestRequestsAreWritten(t *testing.T) {
	get := func(more ...string) *message.Head {
		return head(append([]string{":method", "GET", ":scheme", "http", ":authority", "h", ":path", "/p"}, more...)...)
	}
	post := func(more ...string) *message.Head {
		return head(append([]string{":method", "POST", ":scheme", "http", ":authority", "h", ":path", "/p"}, more...)...)
	}
	for _, c := range []struct {
		name string
		h    *message.Head
		data []string // nil: the head ends the request
		tail *message.Head
		want string // "": the stream is reset and nothing is written
		o    *Options
	}{
		{name: "a GET has no framing", h: get("a", "b"), want: "GET /p HTTP/1.1\nhost: h\na: b\n\n"},
		{name: "Host is written from :authority and first", h: get("a", "b", "host", "other"), want: "GET /p HTTP/1.1\nhost: h\na: b\n\n"},
		{name: "Host stands in where :authority is missing", h: head(":method", "GET", ":path", "/", "host", "other"), want: "GET / HTTP/1.1\nhost: other\n\n"},
		{name: "an empty POST says so", h: post(), want: "POST /p HTTP/1.1\nhost: h\ncontent-length: 0\n\n"},
		{name: "an empty POST that says so is not told twice", h: post("content-length", "0"), want: "POST /p HTTP/1.1\nhost: h\ncontent-length: 0\n\n"},
		{name: "an empty QUERY says so", h: head(":method", "QUERY", ":authority", "h", ":path", "/"), want: "QUERY / HTTP/1.1\nhost: h\ncontent-length: 0\n\n"},
		{name: "QUERY carries its content", h: head(":method", "QUERY", ":authority", "h", ":path", "/"), data: []string{"abc"}, want: "QUERY / HTTP/1.1\nhost: h\ntransfer-encoding: chunked\n\n3\nabc\n0\n\n"},
		{name: "a length is kept", h: post("content-length", "3", "a", "b"), data: []string{"ab", "c"}, want: "POST /p HTTP/1.1\nhost: h\ncontent-length: 3\na: b\n\nabc"},
		{name: "the same length twice is written once", h: post("content-length", "3", "content-length", "3"), data: []string{"abc"}, want: "POST /p HTTP/1.1\nhost: h\ncontent-length: 3\n\nabc"},
		{name: "no length makes chunks", h: post(), data: []string{"ab", "", "0123456789abcdef"}, want: "POST /p HTTP/1.1\nhost: h\ntransfer-encoding: chunked\n\n2\nab\n10\n0123456789abcdef\n0\n\n"},
		{name: "fields of one hop are not written", h: get("connection", "x", "keep-alive", "1", "proxy-connection", "x", "transfer-encoding", "chunked", "http2-settings", "x"), want: "GET /p HTTP/1.1\nhost: h\n\n"},
		{name: "TE names trailers or nothing", h: get("te", "gzip"), want: "GET /p HTTP/1.1\nhost: h\n\n"},
		{name: "TE needs its connection option", h: get("te", "trailers"), want: "GET /p HTTP/1.1\nhost: h\nte: trailers\nconnection: te\n\n"},
		{name: "an upgrade has its connection option and no framing", h: get("upgrade", "websocket"), data: []string{}, want: "GET /p HTTP/1.1\nhost: h\nupgrade: websocket\nconnection: upgrade\n\n"},
		{name: "an upgrade is written from the protocol that it names", h: get("upgrade", " , spdy/3.1,"), data: []string{}, want: "GET /p HTTP/1.1\nhost: h\nupgrade: spdy/3.1\nconnection: upgrade\n\n"},
		{name: "a request that is over cannot ask for an upgrade", h: get("upgrade", "websocket"), want: "GET /p HTTP/1.1\nhost: h\n\n"},
		{name: "CONNECT has its authority for a target", h: head(":method", "CONNECT", ":authority", "h:1"), data: []string{}, want: "CONNECT h:1 HTTP/1.1\nhost: h:1\n\n"},
		{name: "OPTIONS * passes", h: head(":method", "OPTIONS", ":authority", "h", ":path", "*"), want: "OPTIONS * HTTP/1.1\nhost: h\ncontent-length: 0\n\n"},
		{name: "trailers are dropped where not enabled", h: post(), data: []string{"a"}, tail: head("x", "y"), want: "POST /p HTTP/1.1\nhost: h\ntransfer-encoding: chunked\n\n1\na\n0\n\n"},
		{name: "trailers are written where enabled", h: post(), data: []string{"a"}, tail: head("x", "y", "content-length", "9", "connection", "z"), want: "POST /p HTTP/1.1\nhost: h\ntransfer-encoding: chunked\n\n1\na\n0\nx: y\n\n", o: trailersOn},
		{name: "trailers end a body with a length", h: post("content-length", "1"), data: []string{"a"}, tail: head("x", "y"), want: "POST /p HTTP/1.1\nhost: h\ncontent-length: 1\n\na", o: trailersOn},

		{name: "no method", h: head(":authority", "h", ":path", "/")},
		{name: "no authority", h: head(":method", "GET", ":path", "/")},
		{name: "no path", h: head(":method", "GET", ":authority", "h")},
		{name: "an empty path", h: head(":method", "GET", ":authority", "h", ":path", "")},
		{name: "a path with a space", h: head(":method", "GET", ":authority", "h", ":path", "/ HTTP/1.1")},
		{name: "a path with CRLF", h: head(":method", "GET", ":authority", "h", ":path", "/\r\nx: y")},
		{name: "a path that is a URI", h: head(":method", "GET", ":authority", "h", ":path", "http://x/")},
		{name: "a path of * for GET", h: head(":method", "GET", ":authority", "h", ":path", "*")},
		{name: "a method with a space", h: head(":method", "GET /", ":authority", "h", ":path", "/")},
		{name: "an authority with CRLF", h: head(":method", "GET", ":authority", "h\r\nx: y", ":path", "/")},
		{name: "an authority with user information", h: head(":method", "GET", ":authority", "u@h", ":path", "/")},
		{name: "CONNECT without a port", h: head(":method", "CONNECT", ":authority", "h")},
		{name: "CONNECT with a path", h: head(":method", "CONNECT", ":authority", "h:1", ":path", "/")},
		{name: "extended CONNECT", h: head(":method", "CONNECT", ":authority", "h:1", ":protocol", "websocket")},
		{name: "a value with LF", h: get("a", "b\nc: d")},
		{name: "a value with CR", h: get("a", "b\rc")},
		{name: "a value with NUL", h: get("a", "b\x00c")},
		{name: "a known field with LF", h: get("user-agent", "b\nc: d")},
		{name: "a name in capitals", h: get("A", "b")},
		{name: "a name with a space", h: get("a b", "c")},
		{name: "a name with a colon", h: get("a:b", "c")},
		{name: "a name with CRLF", h: get("a: b\r\nc", "d")},
		{name: "an empty name", h: get("", "b")},
		{name: "an upgrade to one of two", h: get("upgrade", "websocket, spdy/3.1"), data: []string{}},
		{name: "an upgrade to one of two, in two lines", h: get("upgrade", "websocket", "upgrade", "spdy/3.1"), data: []string{}},
		{name: "an upgrade to nothing", h: get("upgrade", ""), data: []string{}},
		{name: "an upgrade to what is no protocol", h: get("upgrade", "web socket"), data: []string{}},
		{name: "two lengths that differ", h: post("content-length", "1", "content-length", "2"), data: []string{"a"}},
		{name: "a length that is no number", h: post("content-length", "1,1")},
		{name: "a length without content", h: post("content-length", "1")},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newCaller(t, c.o)
			p.s.Head(c.h, c.data == nil)
			for _, d := range c.data {
				p.s.Data([]byte(d), false)
			}
			if c.tail != nil {
				p.s.Trailers(c.tail)
			} else if len(c.data) > 0 {
				p.s.Data(nil, true)
			}
			if got := p.out.take(); got != crlf(c.want) {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if c.want == "" && (p.reset != message.LocalReset || p.done != 1 || p.c.Capacity() != 1) {
				t.Errorf("reset %v, done %d, reusable %v", p.reset, p.done, p.c.Capacity() == 1)
			}
			if c.want != "" && p.reset != 0 {
				t.Errorf("reset %v", p.reset)
			}
		})
	}
}

func TestAContentLengthIsAPromise(t *testing.T) {
	post := head(":method", "POST", ":authority", "h", ":path", "/", "content-length", "3")
	for name, send := range map[string]func(s *ClientStream){
		"too much":        func(s *ClientStream) { s.Data([]byte("abcd"), false) },
		"too much at end": func(s *ClientStream) { s.Data([]byte("abcd"), true) },
		"too little":      func(s *ClientStream) { s.Data([]byte("ab"), true) },
		"trailers early":  func(s *ClientStream) { s.Trailers(head("a", "b")) },
	} {
		p := newCaller(t, nil)
		p.s.Head(post, false)
		send(p.s)
		if p.reset != message.LocalReset || p.c.Capacity() == 1 {
			t.Errorf("%s: reset %v, reusable %v", name, p.reset, p.c.Capacity() == 1)
		}
	}
}

func TestResponsesAreWritten(t *testing.T) {
	const get = "GET / HTTP/1.1\nHost: h\n\n"
	const headReq = "HEAD / HTTP/1.1\nHost: h\n\n"
	const old = "GET / HTTP/1.0\n\n"
	const oldKeep = "GET / HTTP/1.0\nConnection: keep-alive\n\n"
	const ws = "GET / HTTP/1.1\nHost: h\nConnection: upgrade\nUpgrade: websocket\n\n"
	const connect = "CONNECT h:1 HTTP/1.1\nHost: h\n\n"
	for _, c := range []struct {
		name    string
		request string
		h       *message.Head
		data    []string // nil: the head ends the response
		tail    *message.Head
		drain   bool
		want    string
		closes  bool
		o       *Options
	}{
		{name: "a head alone has a length of 0", request: get, h: head(":status", "200", "a", "b"), want: "HTTP/1.1 200 OK\na: b\ncontent-length: 0\n\n"},
		{name: "a length is kept", request: get, h: head(":status", "200", "content-length", "2"), data: []string{"hi"}, want: "HTTP/1.1 200 OK\ncontent-length: 2\n\nhi"},
		{name: "no length makes chunks", request: get, h: head(":status", "200"), data: []string{"hi"}, want: "HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n2\nhi\n0\n\n"},
		{name: "an empty body without length is chunked", request: get, h: head(":status", "200"), data: []string{""}, want: "HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n0\n\n"},
		{name: "trailers are written where enabled", request: get, h: head(":status", "200"), data: []string{"hi"}, tail: head("grpc-status", "0"), want: "HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n2\nhi\n0\ngrpc-status: 0\n\n", o: trailersOn},
		{name: "a status without a name", request: get, h: head(":status", "299"), want: "HTTP/1.1 299 Unknown\ncontent-length: 0\n\n"},
		{name: "fields of one hop are not written", request: get, h: head(":status", "200", "connection", "x", "transfer-encoding", "gzip", "keep-alive", "1", "upgrade", "x", "te", "trailers"), want: "HTTP/1.1 200 OK\ncontent-length: 0\n\n"},
		{name: "204 has neither length nor content", request: get, h: head(":status", "204", "content-length", "0"), data: []string{"x"}, want: "HTTP/1.1 204 No Content\n\n"},
		{name: "304 keeps its length without content", request: get, h: head(":status", "304", "content-length", "7"), want: "HTTP/1.1 304 Not Modified\ncontent-length: 7\n\n"},
		{name: "304 needs no length", request: get, h: head(":status", "304"), want: "HTTP/1.1 304 Not Modified\n\n"},
		{name: "HEAD keeps the length without content", request: headReq, h: head(":status", "200", "content-length", "7"), want: "HTTP/1.1 200 OK\ncontent-length: 7\n\n"},
		{name: "HEAD drops content", request: headReq, h: head(":status", "200", "content-length", "2"), data: []string{"hi"}, want: "HTTP/1.1 200 OK\ncontent-length: 2\n\n"},
		{name: "HEAD says what GET would have", request: headReq, h: head(":status", "200"), data: []string{"hi"}, want: "HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n"},
		{name: "HEAD without content says nothing", request: headReq, h: head(":status", "200"), want: "HTTP/1.1 200 OK\n\n"},
		{name: "an HTTP/1.0 client gets a close", request: old, h: head(":status", "200"), want: "HTTP/1.1 200 OK\ncontent-length: 0\nconnection: close\n\n", closes: true, o: http10},
		{name: "an HTTP/1.0 client may keep the connection", request: oldKeep, h: head(":status", "200"), want: "HTTP/1.1 200 OK\ncontent-length: 0\nconnection: keep-alive\n\n", o: http10},
		{name: "an HTTP/1.0 client never sees chunks", request: oldKeep, h: head(":status", "200"), data: []string{"hi"}, want: "HTTP/1.1 200 OK\nconnection: close\n\nhi", closes: true, o: http10},
		{name: "a client that asks for a close gets it", request: "GET / HTTP/1.1\nHost: h\nConnection: close\n\n", h: head(":status", "200"), want: "HTTP/1.1 200 OK\ncontent-length: 0\nconnection: close\n\n", closes: true},
		{name: "a connection that drains closes", request: get, h: head(":status", "200"), drain: true, want: "HTTP/1.1 200 OK\ncontent-length: 0\nconnection: close\n\n", closes: true},
		{name: "101 has its connection option", request: ws, h: head(":status", "101", "upgrade", "websocket", "content-length", "3"), data: []string{"raw"}, want: "HTTP/1.1 101 Switching Protocols\nupgrade: websocket\nconnection: upgrade\n\nraw"},
		{name: "a refused upgrade closes", request: ws, h: head(":status", "403", "upgrade", "x"), want: "HTTP/1.1 403 Forbidden\ncontent-length: 0\nconnection: close\n\n", closes: true},
		{name: "200 to CONNECT has no framing", request: connect, h: head(":status", "200", "content-length", "3"), data: []string{"raw"}, want: "HTTP/1.1 200 OK\n\nraw"},
		{name: "a refused CONNECT closes", request: connect, h: head(":status", "403"), want: "HTTP/1.1 403 Forbidden\ncontent-length: 0\nconnection: close\n\n", closes: true},
		{name: "426 says what it wants", request: get, h: head(":status", "426", "upgrade", "h2c"), want: "HTTP/1.1 426 Upgrade Required\nupgrade: h2c\ncontent-length: 0\nconnection: upgrade\n\n"},

		{name: "a value with LF becomes 502", request: get, h: head(":status", "200", "a", "b\nc"), want: bad502, closes: true},
		{name: "a name in capitals becomes 502", request: get, h: head(":status", "200", "A", "b"), want: bad502, closes: true},
		{name: "a status that is none becomes 502", request: get, h: head(":status", "2000"), want: bad502, closes: true},
		{name: "no status becomes 502", request: get, h: head("a", "b"), want: bad502, closes: true},
		{name: "a length without content becomes 502", request: get, h: head(":status", "200", "content-length", "3"), want: bad502, closes: true},
		{name: "101 that nobody asked for becomes 502", request: get, h: head(":status", "101", "upgrade", "x"), want: bad502, closes: true},
		{name: "101 without Upgrade becomes 502", request: ws, h: head(":status", "101"), want: bad502, closes: true},
		{name: "an informational response at the end becomes 502", request: get, h: head(":status", "103"), want: bad502, closes: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPeer(t, c.o)
			if _, err := p.feed(crlf(c.request), 1000); err != nil {
				t.Fatal(err)
			}
			if c.drain {
				p.c.Drain(false)
			}
			p.s.Head(c.h, c.data == nil)
			for _, d := range c.data {
				p.s.Data([]byte(d), false)
			}
			if c.tail != nil {
				p.s.Trailers(c.tail)
			} else if len(c.data) > 0 {
				p.s.Data(nil, true)
			}
			if got := p.out.take(); got != crlf(c.want) {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if over(p.c) != c.closes || aborted(p.c) {
				t.Errorf("should close: %v, aborted: %v", over(p.c), aborted(p.c))
			}
			if (c.want == bad502) != (p.reset != 0) {
				t.Errorf("reset %v", p.reset)
			}
		})
	}
}

const bad502 = "HTTP/1.1 502 Bad Gateway\ncontent-length: 11\ncontent-type: text/plain\nconnection: close\n\nBad Gateway"

func TestAResponseThatBreaksItsLengthIsCutOff(t *testing.T) {
	for _, data := range []string{"a", "abcd"} {
		p := newPeer(t, nil)
		p.feed("GET / HTTP/1.1\r\nHost: h\r\n\r\n", 1000)
		p.s.Head(head(":status", "200", "content-length", "3"), false)
		p.s.Data([]byte(data), true)
		if !over(p.c) || !aborted(p.c) || p.reset != message.LocalReset {
			t.Errorf("%q: close %v, aborted %v, reset %v", data, over(p.c), aborted(p.c), p.reset)
		}
	}
}

func TestEveryByteThatIsSentInAValueIsChecked(t *testing.T) {
	for c := range 256 {
		value := "aaaaaaaaa" + string([]byte{byte(c)})
		p := newCaller(t, nil)
		p.s.Head(head(":method", "GET", ":authority", "h", ":path", "/", "x", value), true)
		ok := c == '\t' || c >= ' ' && c != 0x7f
		if got := p.out.take(); ok != (got != "") || ok && !strings.Contains(got, "\r\nx: "+value+"\r\n\r\n") {
			t.Errorf("byte %#02x: sent %q", c, got)
		}
	}
}

// TestWhatIsSentMayHaveAnyLength writes messages of every kind whose parts are as long as a block of
// memory, a little less and more, behind output that fills a block nearly: what room was guessed must not matter.
func TestWhatIsSentMayHaveAnyLength(t *testing.T) {
	var many []string
	for range 2000 {
		many = append(many, "a", "")
	}
	fields := strings.Repeat("a: \r\n", 2000)
	request := func(p *caller, h *message.Head) string { p.s.Head(h, false); return p.out.take() }
	respond := func(out *sink, f func(s *ServerStream)) string {
		p := &peer{tape: &tape{t: t}, out: out}
		p.c = NewServer(out, trailersOn, p)
		if _, err := p.feed("GET / HTTP/1.1\r\nHost: h\r\n\r\n", 1000); err != nil {
			t.Fatal(err)
		}
		f(p.s)
		return out.take()
	}
	for _, n := range []int{1, 1300, 2000, 3900, 4000, 4096, 4200, 20000, 70000} {
		long := strings.Repeat("x", n)
		for _, before := range []int{0, 1, 3000, 4095, 4096} {
			ahead := strings.Repeat("-", before)
			start := func() *sink {
				out := newSink()
				out.b.AppendString(ahead)
				return out
			}
			client := func() *caller {
				p := newCaller(t, trailersOn)
				p.out.b.AppendString(ahead)
				return p
			}
			for _, c := range []struct{ name, got, want string }{
				{"CONNECT", request(client(), head(":method", "CONNECT", ":authority", long+":1")),
					"CONNECT " + long + ":1 HTTP/1.1\r\nhost: " + long + ":1\r\n\r\n"},
				{"a path", request(client(), head(":method", "GET", ":authority", "h", ":path", "/"+long, "te", "trailers", "upgrade", "x")),
					"GET /" + long + " HTTP/1.1\r\nhost: h\r\nte: trailers\r\nupgrade: x\r\nconnection: upgrade, te\r\n\r\n"},
				{"many short fields", request(client(), head(append([]string{":method", "POST", ":authority", "h", ":path", "/", "te", "trailers", "upgrade", "x"}, many...)...)),
					"POST / HTTP/1.1\r\nhost: h\r\nte: trailers\r\n" + fields + "upgrade: x\r\nconnection: upgrade, te\r\n\r\n"},
				{"a response's field", respond(start(), func(s *ServerStream) { s.Head(head(":status", "200", "a", long), true) }),
					"HTTP/1.1 200 OK\r\na: " + long + "\r\ncontent-length: 0\r\n\r\n"},
				{"chunks and trailers", respond(start(), func(s *ServerStream) {
					s.Head(head(":status", "200"), false)
					s.Data([]byte(long), false)
					s.Trailers(head(append([]string{"a", long}, many...)...))
				}), "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + strconv.FormatInt(int64(n), 16) + "\r\n" + long + "\r\n0\r\na: " + long + "\r\n" + fields + "\r\n"},
			} {
				if c.got != ahead+c.want {
					t.Errorf("%s of %d bytes behind %d: %d bytes were sent, want %d", c.name, n, before, len(c.got), before+len(c.want))
				}
			}
		}
	}
}

// TestAHeadThatIsNotSentLeavesNothing in the Output.
func TestAHeadThatIsNotSentLeavesNothing(t *testing.T) {
	p := newCaller(t, nil)
	p.s.Head(head(":method", "GET", ":authority", "h", ":path", "/", "a", strings.Repeat("x", 5000), "b", "\n"), false)
	if p.reset != message.LocalReset || p.out.b.Len() != 0 {
		t.Errorf("reset %v, %d bytes wait", p.reset, p.out.b.Len())
	}
}
