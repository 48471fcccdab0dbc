package http1

import (
	"strings"
	"testing"

	"sallyport/sidecar/message"
)

// wrkRequest is what wrk sends, browserRequest a request with ten fields.
const (
	wrkRequest     = "GET /index.html HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
	browserRequest = "GET /api/v1/orders?page=2&size=50 HTTP/1.1\r\n" +
		"Host: shop.example.com\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n" +
		"Accept-Language: en-US,en;q=0.5\r\n" +
		"Accept-Encoding: gzip, deflate, br, zstd\r\n" +
		"Referer: https://shop.example.com/orders\r\n" +
		"Connection: keep-alive\r\n" +
		"Cookie: session=9f8e7d6c5b4a39281706f5e4d3c2b1a0; theme=dark; consent=yes\r\n" +
		"Sec-Fetch-Dest: document\r\n" +
		"X-Request-Id: 0c7b8f0e-5a33-4c1c-9f0b-1f2e3d4c5b6a\r\n\r\n"
	smallResponse = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\nserver: x\r\n\r\nHello, world!"
)

// echo answers each request at its end, as a stream would, without keeping anything.
type echo struct {
	quiet
	s    message.Sender
	head message.Head
	body []byte
}

func (e *echo) NewStream(s message.Sender, _ message.Version) message.Receiver {
	e.s = s
	return e
}
func (e *echo) Trailers(*message.Head)         {}
func (e *echo) Reset(message.Reason)           {}
func (e *echo) Drained()                       {}
func (e *echo) Data(_ []byte, end bool)        { e.answer(end) }
func (e *echo) Head(_ *message.Head, end bool) { e.answer(end) }
func (e *echo) answer(end bool) {
	if end {
		e.s.Head(&e.head, len(e.body) == 0)
		if len(e.body) > 0 {
			e.s.Data(e.body, true)
		}
	}
}

func newEcho(body string) (*ServerConn, *sink) {
	e := &echo{head: *head(":status", "200", "content-type", "text/plain", "server", "x"), body: []byte(body)}
	out := newSink()
	return NewServer(out, nil, e), out
}

func serverExchange(t testing.TB, c *ServerConn, out *sink, raw []byte) {
	if n, err := c.Feed(raw); n != len(raw) || err != nil {
		t.Fatal(n, err)
	}
	out.b.Consume(out.b.Len())
}

type nobody struct{}

func (nobody) Head(*message.Head, bool) {}
func (nobody) Data([]byte, bool)        {}
func (nobody) Trailers(*message.Head)   {}
func (nobody) Reset(message.Reason)     {}
func (nobody) Drained()                 {}

func clientExchange(t testing.TB, c *ClientConn, out *sink, h *message.Head, response []byte) {
	c.Open(nobody{}).Head(h, true)
	out.b.Consume(out.b.Len())
	if n, err := c.Feed(response); n != len(response) || err != nil || c.Capacity() != 1 {
		t.Fatal(n, err)
	}
}

var postChunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" +
	strings.Repeat("400\r\n"+strings.Repeat("x", 1024)+"\r\n", 8) + "0\r\n\r\n"

func TestAnExchangeAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("sync.Pool drops values at random under the race detector")
	}
	for name, raw := range map[string]string{"wrk": wrkRequest, "browser": browserRequest, "chunked": postChunked} {
		c, out := newEcho("Hello, world!")
		b := []byte(raw)
		if n := testing.AllocsPerRun(1000, func() { serverExchange(t, c, out, b) }); n != 0 {
			t.Errorf("server, %s: %v allocations", name, n)
		}
	}
	out := newSink()
	c := NewClient(out, nil, quiet{})
	h := head(":method", "GET", ":authority", "h", ":path", "/", "user-agent", "x", "x-custom", "y")
	for name, raw := range map[string]string{
		"length": smallResponse, "chunked": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	} {
		b := []byte(raw)
		if n := testing.AllocsPerRun(1000, func() { clientExchange(t, c, out, h, b) }); n != 0 {
			t.Errorf("client, %s: %v allocations", name, n)
		}
	}
}

func benchmarkRequest(b *testing.B, raw string) {
	p := []byte(raw)
	rules := requestRules{scheme: "http"}
	l := new(Options).limits()
	b.ReportAllocs()
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		d := newReader(request, l, AllowUnderscores)
		d.requestRules = rules
		if n, done, err := d.read(p); n != len(p) || !done || err != nil {
			b.Fatal(n, done, err)
		}
		if _, err := d.finishRequest(); err != nil {
			b.Fatal(err)
		}
		d.free()
	}
}

func BenchmarkParseWrkRequest(b *testing.B)     { benchmarkRequest(b, wrkRequest) }
func BenchmarkParseBrowserRequest(b *testing.B) { benchmarkRequest(b, browserRequest) }

func benchmarkServer(b *testing.B, raw string) {
	c, out := newEcho("Hello, world!")
	p := []byte(raw)
	b.ReportAllocs()
	for b.Loop() {
		serverExchange(b, c, out, p)
	}
}

func BenchmarkServerExchangeWrk(b *testing.B)     { benchmarkServer(b, wrkRequest) }
func BenchmarkServerExchangeBrowser(b *testing.B) { benchmarkServer(b, browserRequest) }
func BenchmarkServerExchangeChunked8K(b *testing.B) {
	b.SetBytes(8 << 10)
	benchmarkServer(b, postChunked)
}

func BenchmarkClientExchange(b *testing.B) {
	out := newSink()
	c := NewClient(out, nil, quiet{})
	h := head(":method", "GET", ":authority", "h", ":path", "/", "user-agent", "x", "x-custom", "y")
	p := []byte(smallResponse)
	b.ReportAllocs()
	for b.Loop() {
		clientExchange(b, c, out, h, p)
	}
}
