package listener

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/route"
)

// stepped is an engine whose worker and clock are stepped by the test, so that
// what a connection holds can be looked at between any two turns.
type stepped struct {
	*engine
	now time.Time
}

func newStepped(t testing.TB) *stepped {
	t.Helper()
	s := &stepped{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	w, err := loop.NewWithClock(0, func() time.Time { return s.now })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	s.engine = newEngineOn(t, w)
	s.byHand = true
	return s
}

// until steps the worker until cond holds; the kernel may need a moment to deliver.
func (s *stepped) until(what string, cond func() bool) {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); {
		if time.Now().After(end) {
			s.t.Fatalf("%s: not after 20 s", what)
		}
		s.worker.Step(time.Millisecond)
	}
}

// pass lets time go by, a piece at a time, as many turns would.
func (s *stepped) pass(d time.Duration) {
	const pieces = 20
	for range pieces {
		s.now = s.now.Add(d / pieces)
		s.worker.Step(0)
	}
}

// only is the one connection that is open.
func (s *stepped) only() *connection {
	s.t.Helper()
	open := s.open()
	if len(open) != 1 {
		s.t.Fatalf("%d connections are open", len(open))
	}
	return open[0]
}

func (s *stepped) open() []*connection {
	var all []*connection
	for _, l := range s.server.active["l"].locals {
		all = append(all, l.open...)
	}
	return all
}

// direct has every request answered by the route.
func (s *stepped) direct(status int, body []byte) {
	s.t.Helper()
	answer := &route.Route{Name: "direct", TraceSampling: -1, Direct: &route.Direct{Status: status, Body: body}}
	table, err := route.NewTable([]*route.VirtualHost{{Name: "v", Domains: []string{"*"},
		Entries: []route.Entry{{Matcher: route.NewPath(route.PathPrefix, "/", false), Route: answer}}}}, route.TableOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.manager.Routes = route.NewHandle("r", table)
}

// socket is a client that never waits.
type socket struct {
	t    testing.TB
	fd   int
	got  []byte
	gone bool // the proxy ended the connection
	err  error

	heads, counted int // of responses in got, up to where they were counted
}

// dial connects; the kernel does so before the listener accepts.
func (s *stepped) dial(receive int) *socket {
	s.t.Helper()
	addr := s.server.AddrOf("l")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if receive > 0 && err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receive)
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	c := &socket{t: s.t, fd: fd}
	s.t.Cleanup(c.close)
	s.until("the connection is accepted", func() bool { return len(s.open()) > 0 })
	return c
}

func (c *socket) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// write sends what the kernel takes of p, and says how much.
func (c *socket) write(p string) int {
	n, err := unix.SendmsgN(c.fd, []byte(p), nil, nil, unix.MSG_NOSIGNAL)
	if err != nil {
		if err != unix.EAGAIN {
			c.gone, c.err = true, err
		}
		return 0
	}
	return n
}

// send has all of p on its way.
func (s *stepped) send(c *socket, p string) {
	s.t.Helper()
	s.until("the client could write", func() bool {
		p = p[c.write(p):]
		return p == "" || c.gone
	})
}

// read takes what is there.
func (c *socket) read() {
	var b [64 << 10]byte
	for !c.gone {
		n, err := unix.Read(c.fd, b[:])
		if err == unix.EAGAIN {
			return
		}
		if err != nil || n == 0 {
			c.gone, c.err = true, err
			return
		}
		c.got = append(c.got, b[:n]...)
	}
}

// answers counts the response heads that came.
func (c *socket) answers() int {
	c.read()
	mark := []byte("HTTP/1.1 ")
	for {
		i := bytes.Index(c.got[c.counted:], mark)
		if i < 0 {
			c.counted = max(c.counted, len(c.got)-len(mark)+1)
			return c.heads
		}
		c.heads++
		c.counted += i + len(mark)
	}
}
