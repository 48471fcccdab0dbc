package harness

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Backend is a server in the test process that records what it gets before it answers. It is safe for concurrent use.
type Backend struct {
	Name string

	t        testing.TB
	listener net.Listener
	tls      *tls.Config

	mu       sync.Mutex
	requests []Message
	script   []string
	handle   func(*Message) string
	conns    map[net.Conn]bool
	accepted int
	received []byte // TCP
	greeting string // TCP
	closed   bool
	stop     func() // HTTP/2
	serving  sync.WaitGroup
}

// Replies with a meaning of their own, for Script and Handle.
const (
	// Silence leaves the request without an answer until the proxy goes away.
	Silence = "\x00silence"
	// Hangup closes the connection instead of answering.
	Hangup = "\x00hangup"
	// Ordinary is the answer without a script: 200 and the backend's name.
	Ordinary = "\x00ordinary"
)

// NewBackend returns a backend that is started by HTTP1, H2C or TCP.
func NewBackend(t testing.TB, name string) *Backend {
	return &Backend{Name: name, t: t, conns: map[net.Conn]bool{}}
}

// TLS makes the backend speak TLS; call it before starting.
func (b *Backend) TLS(config *tls.Config) *Backend {
	b.tls = config
	return b
}

// HTTP1 starts the backend as an HTTP/1.1 server. Its replies are raw bytes. It answers an Expect: 100-continue with a 100
// before it reads the content, and after a 101 it echoes what comes.
func (b *Backend) HTTP1() *Backend { return b.serve(b.http1) }

// TCP starts the backend as an echo server, which greets first where Greet was called.
func (b *Backend) TCP() *Backend { return b.serve(b.echo) }

// Greet makes a TCP backend speak first.
func (b *Backend) Greet(text string) *Backend {
	b.greeting = text
	return b
}

func (b *Backend) serve(handle func(net.Conn)) *Backend {
	b.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	b.listener = l
	b.serving.Add(1)
	go func() {
		defer b.serving.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if b.tls != nil {
				c = tls.Server(c, b.tls)
			}
			if !b.track(c) {
				c.Close()
				return
			}
			b.serving.Add(1)
			go func() {
				defer b.serving.Done()
				defer b.forget(c)
				handle(c)
			}()
		}
	}()
	b.t.Cleanup(b.Close)
	return b
}

func (b *Backend) track(c net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.conns[c] = true
	b.accepted++
	return true
}

func (b *Backend) forget(c net.Conn) {
	c.Close()
	b.mu.Lock()
	delete(b.conns, c)
	b.mu.Unlock()
}

// Close ends the backend at once: new connections are refused, open ones cut.
func (b *Backend) Close() {
	b.listener.Close()
	if b.stop != nil {
		b.stop()
	}
	b.mu.Lock()
	b.closed = true
	for c := range b.conns {
		c.Close()
	}
	b.mu.Unlock()
	b.serving.Wait()
}

// Addr is where the backend listens.
func (b *Backend) Addr() string { return b.listener.Addr().String() }

// Port is the port of Addr.
func (b *Backend) Port() int { return b.listener.Addr().(*net.TCPAddr).Port }

// Connections is how many connections were accepted so far.
func (b *Backend) Connections() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.accepted
}

// Script sets the answers to the next requests, in order, raw; after them the answer is the usual one.
func (b *Backend) Script(replies ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.script = slices.Clone(replies)
}

// Handle has every request without a script answered by what f returns, raw. It may be called from several goroutines.
func (b *Backend) Handle(f func(*Message) string) *Backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handle = f
	return b
}

// Requests returns the requests that came complete so far.
func (b *Backend) Requests() []Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.requests)
}

// Take is Requests, and forgets them and the rest of the script.
func (b *Backend) Take() []Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	got := b.requests
	b.requests, b.script = nil, nil
	return got
}

// Received returns the bytes that a TCP backend got, over all connections.
func (b *Backend) Received() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.received)
}

// record keeps the request and decides how it is answered. It comes before the answer, so that whoever has the answer
// also finds the request.
func (b *Backend) record(m Message) string {
	b.mu.Lock()
	b.requests = append(b.requests, m)
	reply, handle := Ordinary, b.handle
	if len(b.script) > 0 {
		reply, handle = b.script[0], nil
		b.script = b.script[1:]
	}
	b.mu.Unlock()
	if handle != nil {
		reply = handle(&m)
	}
	return reply
}

func (b *Backend) http1(c net.Conn) {
	r := newReader(c)
	for {
		c.SetDeadline(time.Now().Add(time.Minute))
		m, err := r.requestHead()
		if err != nil {
			return
		}
		if strings.EqualFold(m.Get("expect"), "100-continue") {
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		}
		if err := r.requestBody(&m); err != nil {
			return
		}
		reply := b.record(m)
		switch reply {
		case Hangup:
			return
		case Silence:
			io.Copy(io.Discard, r)
			return
		case Ordinary:
			reply = OK(b.Name)
			if m.Method() == "HEAD" {
				reply, _, _ = strings.Cut(reply, "\r\n\r\n")
				reply += "\r\n\r\n"
			}
		}
		if _, err := io.WriteString(c, reply); err != nil {
			return
		}
		head, _, _ := strings.Cut(reply, "\r\n\r\n")
		switch lower := strings.ToLower(head); {
		case strings.HasPrefix(head, "HTTP/1.1 101"):
			io.Copy(c, r)
			return
		case strings.Contains(lower, "\nconnection: close"), strings.HasPrefix(head, "HTTP/1.0"), m.Method() != "HEAD" && endsByClose(head, lower):
			return
		}
	}
}

// endsByClose says whether a response head announces no length, so that only the end of the connection ends it.
func endsByClose(head, lower string) bool {
	for _, bodyless := range []string{" 204", " 304", " 100"} {
		if strings.HasPrefix(head, "HTTP/1.1"+bodyless) {
			return false
		}
	}
	return !strings.Contains(lower, "\ncontent-length:") && !strings.Contains(lower, "\ntransfer-encoding:")
}

func (b *Backend) echo(c net.Conn) {
	if _, err := io.WriteString(c, b.greeting); err != nil {
		return
	}
	piece := make([]byte, 32<<10)
	for {
		c.SetDeadline(time.Now().Add(time.Minute))
		n, err := c.Read(piece)
		b.mu.Lock()
		b.received = append(b.received, piece[:n]...)
		b.mu.Unlock()
		if n > 0 {
			if _, err := c.Write(piece[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if half, ok := c.(interface{ CloseWrite() error }); ok && errors.Is(err, io.EOF) {
				half.CloseWrite()
			}
			return
		}
	}
}

// OK is a raw 200 with a text.
func OK(text string, fields ...string) string { return Response(200, text, fields...) }

// Response is a raw HTTP/1.1 response with a content-length. Fields are whole lines, "name: value".
func Response(code int, text string, fields ...string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "HTTP/1.1 %d %s\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n", code, reasonPhrase(code), len(text))
	for _, f := range fields {
		s.WriteString(f + "\r\n")
	}
	s.WriteString("\r\n" + text)
	return s.String()
}

// CloseListener refuses new connections and leaves the open ones.
func (b *Backend) CloseListener() { b.listener.Close() }
