package harness

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// H2 is an HTTP/2 client connection that stays open and shows every field. It is safe for concurrent use.
type H2 struct {
	t      testing.TB
	conn   net.Conn
	framer *http2.Framer

	mu      sync.Mutex // guards writes and everything below
	encoder *hpack.Encoder
	block   bytes.Buffer
	next    uint32
	streams map[uint32]*h2Stream
	goAway  *http2.GoAwayFrame
	err     error
	done    chan struct{} // closed with the connection
}

type h2Stream struct {
	m    Message
	head bool
	done chan struct{}
}

// H2Request is a request in HTTP/2's own terms. The zero value is a GET of / at test.example.
type H2Request struct {
	Method, Path, Authority, Scheme string
	Fields                          []Field
	Body                            string // at most 65,535 bytes, HTTP/2's first window
	Trailers                        []Field
	NoEnd                           bool // leave the request open
}

// DialH2 opens an HTTP/2 connection to addr, with prior knowledge, or over TLS where config is not nil.
func DialH2(t testing.TB, addr string, config *tls.Config) *H2 {
	t.Helper()
	if config != nil {
		config = config.Clone()
		config.NextProtos = []string{"h2"}
	}
	conn, err := dial(addr, config)
	if err != nil {
		t.Fatal(err)
	}
	c := &H2{t: t, conn: conn, framer: http2.NewFramer(conn, conn), next: 1, streams: map[uint32]*h2Stream{}, done: make(chan struct{})}
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.encoder = hpack.NewEncoder(&c.block)
	conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	if err := c.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}); err != nil {
		t.Fatal(err)
	}
	go c.read()
	t.Cleanup(c.Close)
	return c
}

// Close closes the connection.
func (c *H2) Close() {
	c.conn.Close()
	<-c.done
}

// WaitClosed waits until the server has closed the connection.
func (c *H2) WaitClosed(limit time.Duration) {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(limit):
		c.t.Fatalf("HTTP/2 connection still open after %v", limit)
	}
}

// Do sends the request and waits for the whole response; a reset stream is a response with Reset set.
func (c *H2) Do(req H2Request) Message {
	c.t.Helper()
	m, err := c.Try(req)
	if err != nil {
		c.t.Fatalf("HTTP/2 %s %s: %v", req.Method, req.Path, err)
	}
	return m
}

// Get is Do of a GET.
func (c *H2) Get(path string, fields ...Field) Message {
	c.t.Helper()
	return c.Do(H2Request{Path: path, Fields: fields})
}

// Try is Do for a goroutine other than the test's.
func (c *H2) Try(req H2Request) (Message, error) {
	s, err := c.open(req)
	if err != nil {
		return Message{}, err
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-s.done:
		return s.m, nil
	case <-c.done:
		select {
		case <-s.done:
			return s.m, nil
		default:
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.goAway != nil {
			return s.m, fmt.Errorf("connection closed with GOAWAY %v", c.goAway.ErrCode)
		}
		return s.m, fmt.Errorf("connection closed: %w", c.err)
	case <-timeout.C:
		return s.m, fmt.Errorf("no whole response within %v", patience)
	}
}

func (c *H2) open(req H2Request) (*h2Stream, error) {
	if len(req.Body) > 65535 {
		return nil, errors.New("harness: a body over HTTP/2's first window; use a load for that")
	}
	or := func(v, otherwise string) string {
		if v == "" {
			return otherwise
		}
		return v
	}
	scheme := "http"
	if _, ok := c.conn.(*tls.Conn); ok {
		scheme = "https"
	}
	fields := append([]Field{
		{":method", or(req.Method, "GET")}, {":scheme", or(req.Scheme, scheme)},
		{":authority", or(req.Authority, "test.example")}, {":path", or(req.Path, "/")},
	}, req.Fields...)

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	s := &h2Stream{m: Message{Framing: Stream}, done: make(chan struct{})}
	id := c.next
	c.next += 2
	c.streams[id] = s
	end := req.Body == "" && len(req.Trailers) == 0 && !req.NoEnd
	c.conn.SetWriteDeadline(time.Now().Add(patience))
	if err := c.headers(id, fields, end); err != nil {
		return nil, err
	}
	for body := req.Body; body != ""; {
		piece := body[:min(len(body), 16384)]
		body = body[len(piece):]
		if err := c.framer.WriteData(id, body == "" && len(req.Trailers) == 0 && !req.NoEnd, []byte(piece)); err != nil {
			return nil, err
		}
	}
	if len(req.Trailers) > 0 {
		if err := c.headers(id, req.Trailers, true); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (c *H2) headers(id uint32, fields []Field, end bool) error {
	c.block.Reset()
	for _, f := range fields {
		c.encoder.WriteField(hpack.HeaderField{Name: f.Name, Value: f.Value})
	}
	block := c.block.Bytes()
	first := block[:min(len(block), 16384)]
	rest := block[len(first):]
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: end, EndHeaders: len(rest) == 0})
	for err == nil && len(rest) > 0 {
		piece := rest[:min(len(rest), 16384)]
		rest = rest[len(piece):]
		err = c.framer.WriteContinuation(id, len(rest) == 0, piece)
	}
	return err
}

// read is the connection's only reader; it ends with the connection.
func (c *H2) read() {
	defer close(c.done)
	defer c.conn.Close()
	for {
		f, err := c.framer.ReadFrame()
		c.mu.Lock()
		if err == nil {
			err = c.frame(f)
		}
		if err != nil {
			c.err = err
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
}

func (c *H2) frame(f http2.Frame) error {
	id := f.Header().StreamID
	s := c.streams[id]
	c.conn.SetWriteDeadline(time.Now().Add(patience))
	end := false
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		return c.framer.WriteSettingsAck()
	case *http2.PingFrame:
		if f.IsAck() {
			return nil
		}
		return c.framer.WritePing(true, f.Data)
	case *http2.GoAwayFrame:
		held := *f
		c.goAway = &held
	case *http2.MetaHeadersFrame:
		if s == nil {
			return nil
		}
		var fields []Field
		for _, h := range f.Fields {
			fields = append(fields, Field{h.Name, h.Value})
		}
		final := f.PseudoValue("status") != "" && !strings.HasPrefix(f.PseudoValue("status"), "1")
		if s.head {
			s.m.Trailers = fields
		} else {
			s.m.Fields = append(s.m.Fields, fields...)
		}
		s.head = s.head || final
		end = f.StreamEnded()
	case *http2.DataFrame:
		if n := uint32(f.Length); n > 0 {
			if err := c.framer.WriteWindowUpdate(0, n); err != nil {
				return err
			}
			if !f.StreamEnded() {
				if err := c.framer.WriteWindowUpdate(id, n); err != nil {
					return err
				}
			}
		}
		if s == nil {
			return nil
		}
		s.m.Body = append(s.m.Body, f.Data()...)
		end = f.StreamEnded()
	case *http2.RSTStreamFrame:
		if s == nil {
			return nil
		}
		s.m.Reset = f.ErrCode.String()
		end = true
	}
	if end && s != nil {
		delete(c.streams, id)
		close(s.done)
	}
	return nil
}
