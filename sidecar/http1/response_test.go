package http1

import (
	"strings"
	"testing"

	"sallyport/sidecar/message"
)

// caller is a client connection with one request open.
type caller struct {
	*tape
	c       *ClientConn
	s       *ClientStream
	out     *sink
	done    int
	onDone  func()
	resumes int
	eofs    int
}

func newCaller(t testing.TB, o *Options) *caller {
	p := &caller{tape: &tape{t: t}, out: newSink()}
	p.c = NewClient(p.out, o, p)
	p.s = p.c.Open(p).(*ClientStream)
	return p
}

func (p *caller) StreamClosed() {
	p.done++
	if p.onDone != nil {
		p.onDone()
	}
}
func (p *caller) Resumed() { p.resumes++ }
func (p *caller) SendEOF() { p.eofs++ }

func (p *caller) feed(raw string, step int) (rest string, err error) { return feedAll(p.c, raw, step) }

func requestOf(method string) *message.Head {
	switch method {
	case "CONNECT":
		return head(":method", method, ":scheme", "http", ":authority", "h:1")
	case "UPGRADE":
		return head(":method", "GET", ":scheme", "http", ":authority", "h", ":path", "/", "upgrade", "websocket")
	}
	return head(":method", method, ":scheme", "http", ":authority", "h", ":path", "/")
}

type responseCase struct {
	name   string
	method string // "" is GET; UPGRADE is a GET with Upgrade
	raw    string
	want   string
	err    *Error
	eof    bool // the server closes behind raw
	reuse  bool // the connection can be used again
	o      *Options
}

var responseCases = []responseCase{
	// Status line, RFC 9112 §4.
	{name: "a plain response", raw: "HTTP/1.1 200 OK\nContent-Length: 2\nX-A: b\n\nhi", want: `200{content-length: 2|x-a: b}"hi".`, reuse: true},
	{name: "a reason of many words", raw: "HTTP/1.1 404 not at all here\xff\nContent-Length: 0\n\n", want: `404{content-length: 0}.`, reuse: true},
	{name: "a reason that is empty", raw: "HTTP/1.1 200 \nContent-Length: 0\n\n", want: `200{content-length: 0}.`, reuse: true},
	{name: "a reason that is missing with its space", raw: "HTTP/1.1 200\nContent-Length: 0\n\n", want: `200{content-length: 0}.`, reuse: true},
	{name: "a status above 599 passes", raw: "HTTP/1.1 999 No\nContent-Length: 0\n\n", want: `999{content-length: 0}.`, reuse: true},
	{name: "a status below 100 is refused", raw: "HTTP/1.1 099 No\n\n", err: errStatusLine},
	{name: "a status of two digits is refused", raw: "HTTP/1.1 20 OK\n\n", err: errStatusLine},
	{name: "a status of four digits is refused", raw: "HTTP/1.1 2000 OK\n\n", err: errStatusLine},
	{name: "a status with a letter is refused", raw: "HTTP/1.1 2a0 OK\n\n", err: errStatusLine},
	{name: "two spaces before the status are refused", raw: "HTTP/1.1  200 OK\n\n", err: errStatusLine},
	{name: "a space before the version is refused", raw: " HTTP/1.1 200 OK\n\n", err: errStatusLine},
	{name: "an empty line before the status is refused", raw: "\nHTTP/1.1 200 OK\n\n", err: errStatusLine},
	{name: "HTTP/1.2 is refused", raw: "HTTP/1.2 200 OK\n\n", err: errStatusLine},
	{name: "HTTP/2.0 is refused", raw: "HTTP/2.0 200 OK\n\n", err: errStatusLine},
	{name: "ICY is refused", raw: "ICY 200 OK\n\n", err: errStatusLine},
	{name: "a bare LF after the status line is refused", raw: "HTTP/1.1 200 OK␊\n", err: errBareLF},
	{name: "a bare CR in the reason is refused", raw: "HTTP/1.1 200 O␍K\n\n", err: errBareCR},
	{name: "a NUL in the reason is refused", raw: "HTTP/1.1 200 O␀K\n\n", err: errNUL},

	// Fields: as in requests.
	{name: "a folded line is refused", raw: "HTTP/1.1 200 OK\nA: b\n c\n\n", err: errFold},
	{name: "a space before a colon is refused", raw: "HTTP/1.1 200 OK\nA : b\n\n", err: errNameSpace},
	{name: "a bare LF after a field is refused", raw: "HTTP/1.1 200 OK\nA: b␊\n", err: errBareLF},
	{name: "too many fields are refused", raw: "HTTP/1.1 200 OK\nA: b\nA: b\nA: b\nA: b\n\n", err: errTooMany, o: small},
	{name: "a head that is too large is refused", raw: "HTTP/1.1 200 OK\nA: " + strings.Repeat("b", 64) + "\n\n", err: errTooLarge, o: small},
	{name: "fields of one hop end here", raw: "HTTP/1.1 200 OK\nConnection: a, keep-alive\nA: 1\nKeep-Alive: 3\nHost: x\nUpgrade: h2c\nContent-Length: 0\n\n", want: "200{content-length: 0}.", reuse: true},

	// Framing, RFC 9112 §6.3.
	{name: "chunks become data", raw: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nhi\n0\n\n", want: `200{}"hi".`, reuse: true},
	{name: "trailers are dropped", raw: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nhi\n0\nA: b\n\n", want: `200{}"hi".`, reuse: true},
	{name: "trailers are delivered where enabled", raw: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nhi\n0\nGRPC-Status: 0\n\n", want: `200{}"hi"{grpc-status: 0}.`, reuse: true, o: trailersOn},
	{name: "a body without length ends with the connection", raw: "HTTP/1.1 200 OK\n\nhello", want: `200{}"hello".`, eof: true},
	{name: "a body without length has no end before", raw: "HTTP/1.1 200 OK\n\nhello", want: `200{}"hello"`},
	{name: "a length that is not reached is an error", raw: "HTTP/1.1 200 OK\nContent-Length: 9\n\nhello", want: `200{content-length: 9}"hello"<protocol error>`, eof: true},
	{name: "chunks without end are an error", raw: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nhi\n", want: `200{}"hi"<protocol error>`, eof: true},
	{name: "a head that is cut off is an error", raw: "HTTP/1.1 200 OK\nA: b\n", want: `<protocol error>`, eof: true},
	{name: "a length and a coding are refused", raw: "HTTP/1.1 200 OK\nContent-Length: 2\nTransfer-Encoding: chunked\n\n0\n\n", err: errLengthCoding},
	{name: "two lengths are refused", raw: "HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 2\n\nhi", err: errLengths},
	{name: "a length that is no number is refused", raw: "HTTP/1.1 200 OK\nContent-Length: two\n\nhi", err: errLength},
	{name: "another coding is refused", raw: "HTTP/1.1 200 OK\nTransfer-Encoding: gzip, chunked\n\n", err: errCoding},
	{name: "a coding in HTTP/1.0 is refused", raw: "HTTP/1.0 200 OK\nTransfer-Encoding: chunked\n\n0\n\n", err: errCoding10},
	{name: "a broken chunk is refused", raw: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\nx\n", err: errChunkSize, want: "200{}<protocol error>"},
	{name: "204 has no content and no length", raw: "HTTP/1.1 204 No Content\nContent-Length: 0\n\n", want: "204{}.", reuse: true},
	{name: "304 keeps its length and has no content", raw: "HTTP/1.1 304 Not Modified\nContent-Length: 5\n\n", want: "304{content-length: 5}.", reuse: true},
	{name: "HEAD keeps the length and has no content", method: "HEAD", raw: "HTTP/1.1 200 OK\nContent-Length: 5\n\n", want: "200{content-length: 5}.", reuse: true},
	{name: "HEAD ignores a coding", method: "HEAD", raw: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", want: "200{}.", reuse: true},
	{name: "HEAD without a length can be followed", method: "HEAD", raw: "HTTP/1.1 200 OK\n\n", want: "200{}.", reuse: true},
	{name: "Connection: close ends the connection", raw: "HTTP/1.1 200 OK\nConnection: close\nContent-Length: 0\n\n", want: "200{content-length: 0}."},
	{name: "HTTP/1.0 ends the connection", raw: "HTTP/1.0 200 OK\nContent-Length: 0\n\n", want: "200{content-length: 0}."},
	{name: "HTTP/1.0 with keep-alive keeps it", raw: "HTTP/1.0 200 OK\nConnection: keep-alive\nContent-Length: 0\n\n", want: "200{content-length: 0}.", reuse: true},

	// Informational responses, upgrades and CONNECT.
	{name: "informational responses come first", raw: "HTTP/1.1 100 Continue\n\nHTTP/1.1 103 Early Hints\nLink: x\n\nHTTP/1.1 200 OK\nContent-Length: 0\n\n", want: "100{} 103{link: x} 200{content-length: 0}.", reuse: true},
	{name: "a length in an informational response is dropped", raw: "HTTP/1.1 103 Early Hints\nContent-Length: 5\n\nHTTP/1.1 200 OK\nContent-Length: 0\n\n", want: "103{} 200{content-length: 0}.", reuse: true},
	{name: "endless informational responses are refused", raw: strings.Repeat("HTTP/1.1 102 Processing\n\n", 17), want: strings.TrimSpace(strings.Repeat("102{} ", 16)) + "<protocol error>", err: errInformation},
	{name: "101 that nobody asked for is refused", raw: "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: x\n\n", err: errSwitch},
	{name: "101 without Upgrade is refused", method: "UPGRADE", raw: "HTTP/1.1 101 Switching Protocols\n\n", err: errSwitch},
	{name: "101 to another protocol is refused", method: "UPGRADE", raw: "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: spdy/3.1\n\n", err: errSwitch},
	{name: "101 to two protocols is refused", method: "UPGRADE", raw: "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: websocket\nUpgrade: spdy/3.1\n\n", err: errSwitch},
	{name: "101 may write the protocol in capitals", method: "UPGRADE", raw: "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: WebSocket\n\n", want: `101{upgrade: WebSocket}`},
	{name: "101 opens a tunnel", method: "UPGRADE", raw: "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: websocket\n\n\x01\x02GET / HTTP/1.1\n", want: `101{upgrade: websocket}"\x01\x02GET / HTTP/1.1\r\n".`, eof: true},
	{name: "101 ignores framing", method: "UPGRADE", raw: "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: websocket\nContent-Length: 3\n\nabcdef", want: `101{upgrade: websocket}"abcdef"`},
	{name: "200 to an upgrade is a response", method: "UPGRADE", raw: "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", want: `200{content-length: 2}"hi".`, reuse: true},
	{name: "200 to CONNECT with both framings is refused", method: "CONNECT", raw: "HTTP/1.1 200 OK\nContent-Length: 2\nTransfer-Encoding: chunked\n\nhello", err: errLengthCoding},
	{name: "204 to CONNECT opens a tunnel", method: "CONNECT", raw: "HTTP/1.1 204 OK\nContent-Length: 2\n\nhello", want: `204{}"hello".`, eof: true},
	{name: "403 to CONNECT is a response", method: "CONNECT", raw: "HTTP/1.1 403 No\nContent-Length: 2\n\nno", want: `403{content-length: 2}"no".`, reuse: true},
	{name: "426 says what it wants", raw: "HTTP/1.1 426 Upgrade Required\nUpgrade: TLS/1.0\nConnection: upgrade\nContent-Length: 0\n\n", want: `426{upgrade: TLS/1.0|content-length: 0}.`, reuse: true},
}

func TestResponsesAreReadInOneWayOrRefused(t *testing.T) {
	if len(responseCases) < 40 {
		t.Errorf("only %d cases", len(responseCases))
	}
	for _, c := range responseCases {
		t.Run(c.name, func(t *testing.T) {
			raw := wire(c.raw)
			want := c.want
			if want == "" && c.err != nil {
				want = "<protocol error>"
			}
			method := c.method
			if method == "" {
				method = "GET"
			}
			for step := 1; step <= len(raw); step++ {
				p := newCaller(t, c.o)
				p.s.Head(requestOf(method), method != "CONNECT" && method != "UPGRADE")
				_, err := p.feed(raw, step)
				if c.err == nil && err != nil || c.err != nil && err != error(c.err) {
					t.Fatalf("in steps of %d: error %v, want %v", step, err, c.err)
				}
				if c.eof {
					p.c.EOF()
				}
				if got := p.text(); got != want {
					t.Fatalf("in steps of %d: got  %s\nwant %s", step, got, want)
				}
				if (p.c.Capacity() == 1) != c.reuse {
					t.Fatalf("in steps of %d: reusable is %v", step, !c.reuse)
				}
				if c.reuse && p.done != 1 {
					t.Fatalf("StreamClosed was called %d times", p.done)
				}
			}
		})
	}
}

func TestBytesBehindAResponsePoisonTheConnection(t *testing.T) {
	for _, raw := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi!",
		"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nhi",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
	} {
		p := newCaller(t, nil)
		reusable := false
		p.onDone = func() { reusable = p.c.Capacity() == 1 }
		p.s.Head(requestOf("GET"), true)
		p.c.Feed([]byte(raw))
		if reusable || p.c.Capacity() == 1 || !p.c.Draining() {
			t.Errorf("%q: the connection could be used again", raw)
		}
		if p.c.Open(&tape{t: t}) != nil {
			t.Errorf("%q: Open gave a stream", raw)
		}
	}
}

func TestBytesWithoutARequestAreAnError(t *testing.T) {
	p := newCaller(t, nil)
	p.s.Head(requestOf("GET"), true)
	p.feed("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 100)
	if _, err := p.c.Feed([]byte("H")); err != error(errUnsolicited) || p.c.Capacity() == 1 {
		t.Errorf("idle: error %v", err)
	}

	p = newCaller(t, nil)
	if _, err := p.c.Feed([]byte("H")); err != error(errUnsolicited) || p.text() != "<protocol error>" {
		t.Errorf("before the request: error %v, %s", err, p.text())
	}
}

func TestAConnectionThatEndsUnderARequest(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\n"
	for name, c := range map[string]struct {
		heard    string
		eof, rst message.Reason
	}{
		"before a byte":                          {"", message.ConnectionClosed, message.ConnectionClosed},
		"after an informational head":            {"HTTP/1.1 103 Early Hints\r\n\r\n", message.ConnectionClosed, message.ConnectionClosed},
		"in the first line":                      {"H", message.ProtocolError, message.ProtocolError},
		"in the head":                            {head, message.ProtocolError, message.ProtocolError},
		"in the content":                         {head + "content-length: 3\r\n\r\na", message.ProtocolError, message.ProtocolError},
		"in the chunks":                          {head + "transfer-encoding: chunked\r\n\r\n1\r\na\r\n", message.ProtocolError, message.ProtocolError},
		"in the trailers":                        {head + "transfer-encoding: chunked\r\n\r\n0\r\na: b\r\n", message.ProtocolError, message.ProtocolError},
		"in content that ends with a connection": {head + "\r\na", 0, message.ConnectionClosed},
	} {
		for how, end := range map[string]func(*ClientConn){"EOF": (*ClientConn).EOF, "closed": func(c *ClientConn) { c.Closed(message.ConnectionClosed) }} {
			p := newCaller(t, nil)
			p.s.Head(requestOf("GET"), true)
			p.feed(c.heard, 100)
			want := c.rst
			if how == "EOF" {
				want = c.eof
			}
			if end(p.c); p.reset != want || p.c.Capacity() != 0 {
				t.Errorf("%s, %s: %v, want %v", name, how, p.reset, want)
			}
		}
	}
}

func TestAResponseMayComeBeforeTheRequestIsSent(t *testing.T) {
	p := newCaller(t, nil)
	p.s.Head(requestOf("POST"), false)
	p.feed("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\n\r\n", 100)
	if got := p.text(); got != "413{content-length: 0}." || p.done != 0 || p.c.Capacity() == 1 {
		t.Fatalf("%s, done %d", got, p.done)
	}
	p.s.Data([]byte("x"), false)
	p.s.Data(nil, true)
	if p.done != 1 || p.c.Capacity() != 1 {
		t.Errorf("done %d, reusable %v after the request was completed", p.done, p.c.Capacity() == 1)
	}

	p = newCaller(t, nil)
	p.s.Head(requestOf("POST"), false)
	p.feed("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\n\r\n", 100)
	p.s.Reset(message.LocalReset)
	if p.done != 1 || p.c.Capacity() == 1 || p.reset != 0 {
		t.Errorf("done %d, reusable %v, reset %v after a reset", p.done, p.c.Capacity() == 1, p.reset)
	}
}

func TestAConnectionCanBeReusedFromWithinTheHook(t *testing.T) {
	p := newCaller(t, nil)
	second := &tape{t: t}
	p.onDone = func() {
		if p.done == 1 {
			p.c.Open(second).Head(requestOf("GET"), true)
		}
	}
	p.s.Head(requestOf("GET"), true)
	const response = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	p.feed(response, 100)
	p.feed(response, 100)
	if p.text() != second.text() || second.text() != "200{content-length: 0}." || p.done != 2 {
		t.Errorf("%s and %s, done %d", p.text(), second.text(), p.done)
	}
}

func TestNothingReachesATunnelThatIsNotAgreedOn(t *testing.T) {
	p := newCaller(t, nil)
	p.s.Head(requestOf("UPGRADE"), false)
	p.out.take()
	p.s.Data([]byte("GET /admin HTTP/1.1\r\n\r\n"), false)
	if !p.s.Full() {
		t.Error("a tunnel that is not agreed on takes no data")
	}
	if got := p.out.take(); got != "" {
		t.Fatalf("sent %q", got)
	}
	p.feed("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 100)
	if got := p.out.take(); got != "" || p.c.Capacity() != 1 {
		t.Errorf("sent %q, reusable %v", got, p.c.Capacity() == 1)
	}

	p = newCaller(t, nil)
	p.s.Head(requestOf("UPGRADE"), false)
	p.out.take()
	p.s.Data([]byte("early"), true)
	p.s.Full()
	p.feed("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 100)
	if got := p.out.take(); got != "early" || p.eofs != 1 {
		t.Errorf("sent %q, %d half-closes", got, p.eofs)
	}
	p.feed("late", 100)
	p.c.EOF()
	if got := p.text(); got != `101{upgrade: websocket}"late".` || p.done != 1 || p.c.Capacity() == 1 {
		t.Errorf("%s, done %d", got, p.done)
	}

	p = newCaller(t, nil)
	p.s.Head(requestOf("CONNECT"), false)
	p.s.Data(make([]byte, maxEarly), false)
	p.s.Data([]byte("x"), false)
	if p.reset != message.LocalReset || p.c.Capacity() == 1 {
		t.Errorf("early data has no bound: %v", p.reset)
	}
}

func TestAPausedResponseLeavesBytes(t *testing.T) {
	p := newCaller(t, nil)
	p.s.Head(requestOf("GET"), true)
	p.onHead = func(*message.Head, bool) { p.s.Pause() }
	rest, err := p.feed("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 1000)
	if rest != "hi" || err != nil || p.c.Rest() != message.ForOwner {
		t.Fatalf("rest %q, error %v, it waits for %v", rest, err, p.c.Rest())
	}
	p.s.Resume()
	if rest, _ = p.feed(rest, 1000); rest != "" || p.resumes != 1 || p.c.Capacity() != 1 {
		t.Errorf("rest %q, %d resumes", rest, p.resumes)
	}
}

func TestDrainedFollowsFullOnTheClientToo(t *testing.T) {
	p := newCaller(t, nil)
	p.s.Head(requestOf("POST"), false)
	p.out.full = true
	if !p.s.Full() {
		t.Fatal("not full")
	}
	p.out.full = false
	p.c.Writable()
	if p.drains != 1 {
		t.Errorf("Drained was called %d times", p.drains)
	}

	// A tunnel has room as soon as the server agreed.
	p = newCaller(t, nil)
	p.s.Head(requestOf("UPGRADE"), false)
	p.s.Full()
	p.feed("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 1000)
	if p.drains != 1 {
		t.Errorf("Drained was called %d times", p.drains)
	}
}

func TestMisuseOfAStreamEndsIt(t *testing.T) {
	for name, use := range map[string]func(s *ClientStream){
		"content before the head":  func(s *ClientStream) { s.Data([]byte("x"), false) },
		"trailers before the head": func(s *ClientStream) { s.Trailers(head("a", "b")) },
		"two heads":                func(s *ClientStream) { s.Head(requestOf("POST"), false); s.Head(requestOf("POST"), false) },
		"bad trailers": func(s *ClientStream) {
			s.Head(requestOf("POST"), false)
			s.Trailers(head("a", "b\n"))
		},
	} {
		p := newCaller(t, trailersOn)
		use(p.s)
		if p.reset != message.LocalReset || p.done != 1 {
			t.Errorf("%s: reset %v, done %d", name, p.reset, p.done)
		}
		p.s.Data([]byte("x"), true) // without effect
		p.s.Head(requestOf("GET"), true)
	}
	for name, use := range map[string]func(s *ServerStream){
		"content before the head":  func(s *ServerStream) { s.Data([]byte("x"), false) },
		"trailers before the head": func(s *ServerStream) { s.Trailers(head("a", "b")) },
		"two heads":                func(s *ServerStream) { s.Head(head(":status", "200"), false); s.Head(head(":status", "200"), false) },
	} {
		p := newPeer(t, trailersOn)
		p.feed("GET / HTTP/1.1\r\nHost: h\r\n\r\n", 1000)
		use(p.s)
		if p.reset != message.LocalReset || p.done != 1 || !over(p.c) {
			t.Errorf("%s: reset %v, done %d", name, p.reset, p.done)
		}
	}
}

func TestAClientReadsAsMuchAsATurnAllows(t *testing.T) {
	p := newCaller(t, nil)
	p.s.Head(requestOf("GET"), true)
	p.c.Turn.Limit = 10
	pieces := 0
	p.onData = func([]byte, bool) { pieces++ }
	rest := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\na\r\n", 100) + "0\r\n\r\n"
	for rest != "" {
		before := pieces
		n, err := p.c.Feed([]byte(rest))
		if rest = rest[n:]; err != nil || pieces-before > 10 || pieces == before && rest != "" || rest != "" && p.c.Rest() != message.ForTurn {
			t.Fatalf("%d pieces in a turn, %v", pieces-before, err)
		}
	}
	if want := `200{}"` + strings.Repeat("a", 100) + `".`; p.text() != want || p.c.Capacity() != 1 {
		t.Errorf("got %s", p.text())
	}
}
