package harness

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait of a client.
const patience = 15 * time.Second

// Conn is a raw client connection: bytes out, HTTP/1 messages or bytes in.
type Conn struct {
	net.Conn
	t testing.TB
	r *reader
}

// Dial connects to addr, with TLS where config is not nil.
func Dial(t testing.TB, addr string, config *tls.Config) *Conn {
	t.Helper()
	c, err := dial(addr, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &Conn{Conn: c, t: t, r: newReader(c)}
}

func dial(addr string, config *tls.Config) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	if config == nil {
		return d.Dial("tcp", addr)
	}
	return tls.DialWithDialer(&d, "tcp", addr, config)
}

// Send writes text as it is. An error is no failure: a proxy may well close before it has read everything.
func (c *Conn) Send(text string) *Conn {
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c.Conn, text)
	return c
}

// Response reads a response to a request of the method.
func (c *Conn) Response(method string) (Message, error) {
	c.SetDeadline(time.Now().Add(patience))
	return c.r.response(method)
}

// Read reads exactly n bytes.
func (c *Conn) ReadBytes(n int) string {
	c.t.Helper()
	p := make([]byte, n)
	if got, err := io.ReadFull(c.r, p); err != nil {
		c.t.Fatalf("%d of %d bytes, then %v: %q", got, n, err, p[:got])
	}
	return string(p)
}

// WaitClosed waits until the other side has closed; limit bounds that.
func (c *Conn) WaitClosed(limit time.Duration) {
	c.t.Helper()
	c.SetDeadline(time.Now().Add(limit))
	n, err := io.Copy(io.Discard, c.r)
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		c.t.Fatalf("still open after %v (%d bytes came)", limit, n)
	}
}

// Exchanged is what came back on one connection.
type Exchanged struct {
	Responses []Message
	Open      bool // the connection takes another request
	Err       error
}

// Exchange sends text on a connection of its own and reads n final responses to it. Interim ones are among the result.
// Then it finds out without waiting whether the connection still takes requests, by sending the request again.
func Exchange(t testing.TB, addr, text string, n int, again string) Exchanged {
	t.Helper()
	c := Dial(t, addr, nil)
	defer c.Close()
	c.Send(text)
	var x Exchanged
	method, _, _ := strings.Cut(text, " ")
	read := func(want int) (got []Message, err error) {
		for want > 0 && err == nil {
			var m Message
			if m, err = c.Response(method); err == nil || len(m.Raw) > 0 {
				got = append(got, m)
			}
			if s := m.Status(); s >= 200 || s == 101 || m.Framing == Close {
				want--
			}
		}
		return got, err
	}
	if x.Responses, x.Err = read(n); x.Err != nil || again == "" {
		return x
	}
	c.Send(again)
	method, _, _ = strings.Cut(again, " ")
	_, err := read(1)
	x.Open = err == nil
	return x
}

// Get sends one GET over HTTP/1.1 on a connection of its own. Fields are whole lines, "name: value"; a host is added where none
// is given.
func Get(t testing.TB, addr, path string, fields ...string) Message {
	t.Helper()
	m, err := TryGet(addr, path, fields...)
	if err != nil {
		t.Fatalf("GET %s from %s: %v\n%s", path, addr, err, m.Raw)
	}
	return m
}

// TryGet is Get for a goroutine of a load, or where an error is an answer too.
func TryGet(addr, path string, fields ...string) (Message, error) {
	conn, err := dial(addr, nil)
	if err != nil {
		return Message{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, Request("GET", path, "", append(fields, "connection: close")...)); err != nil {
		return Message{}, err
	}
	return newReader(conn).response("GET")
}

// Request is a raw HTTP/1.1 request with a content-length where it has a body. Fields are whole lines.
func Request(method, target, body string, fields ...string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s %s HTTP/1.1\r\n", method, target)
	host := false
	for _, f := range fields {
		host = host || strings.HasPrefix(strings.ToLower(f), "host:")
	}
	if !host {
		s.WriteString("host: test.example\r\n")
	}
	for _, f := range fields {
		s.WriteString(f + "\r\n")
	}
	if body != "" {
		fmt.Fprintf(&s, "content-length: %d\r\n", len(body))
	}
	s.WriteString("\r\n" + body)
	return s.String()
}
