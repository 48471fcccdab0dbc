package streamtest

import (
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Upstream is a host that the test plays.
type Upstream struct {
	rig  *Rig
	path string
	fd   int
}

func listen(r *Rig) *Upstream {
	r.T.Helper()
	u := &Upstream{rig: r, path: filepath.Join(r.T.TempDir(), "s")}
	u.Up()
	r.T.Cleanup(u.Down)
	return u
}

// Up has the host accept connections.
func (u *Upstream) Up() {
	u.rig.T.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: u.path})
	}
	if err == nil {
		err = unix.Listen(fd, 64)
	}
	if err != nil {
		u.rig.T.Fatal(err)
	}
	u.fd = fd
}

// Down has it refuse them.
func (u *Upstream) Down() {
	if u.fd > 0 {
		unix.Close(u.fd)
		unix.Unlink(u.path)
		u.fd = 0
	}
}

// Link is a connection to a host, seen from the host.
type Link struct {
	rig  *Rig
	fd   int
	in   string
	eof  bool
	gone bool
}

// Accept waits for a connection.
func (u *Upstream) Accept() *Link {
	u.rig.T.Helper()
	var l *Link
	u.rig.Until("a connection to the upstream", func() bool { l = u.TryAccept(); return l != nil })
	return l
}

// TryAccept returns a connection that is there, or nil.
func (u *Upstream) TryAccept() *Link {
	fd, _, err := unix.Accept4(u.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return nil
	}
	l := &Link{rig: u.rig, fd: fd}
	u.rig.T.Cleanup(l.Close)
	return l
}

// fill reads what is there.
func (l *Link) fill() {
	var b [16 << 10]byte
	for !l.eof {
		n, err := unix.Read(l.fd, b[:])
		switch {
		case err == unix.EAGAIN:
			return
		case err != nil || n == 0:
			l.eof = true
			return
		}
		l.in += string(b[:n])
	}
}

// Received is what has come and was not taken yet.
func (l *Link) Received() string {
	l.fill()
	return l.in
}

// Take waits for n bytes and returns them.
func (l *Link) Take(n int) string {
	l.rig.T.Helper()
	l.rig.Until("bytes at the upstream", func() bool { l.fill(); return len(l.in) >= n })
	p := l.in[:n]
	l.in = l.in[n:]
	return p
}

// Head waits for a request head and returns it, without the empty line.
func (l *Link) Head() string {
	l.rig.T.Helper()
	l.rig.Until("a request head at the upstream", func() bool { l.fill(); return strings.Contains(l.in, "\r\n\r\n") || l.eof })
	head, rest, ok := strings.Cut(l.in, "\r\n\r\n")
	if !ok {
		l.rig.T.Fatalf("the connection ended in the middle of a head: %q", l.in)
	}
	l.in = rest
	return head
}

// Chunked waits for a chunked body and returns it.
func (l *Link) Chunked() string {
	l.rig.T.Helper()
	l.rig.Until("a chunked body at the upstream", func() bool { l.fill(); return strings.Contains(l.in, "0\r\n\r\n") || l.eof })
	var body strings.Builder
	for {
		size, rest, ok := strings.Cut(l.in, "\r\n")
		n := 0
		for _, c := range size {
			n = n*16 + strings.IndexRune("0123456789abcdef", c)
		}
		if !ok || len(rest) < n+2 {
			l.rig.T.Fatalf("the body is not whole: %q", l.in)
		}
		body.WriteString(rest[:n])
		if l.in = rest[n+2:]; n == 0 {
			return body.String()
		}
	}
}

// Send sends bytes.
func (l *Link) Send(s string) {
	l.rig.T.Helper()
	for len(s) > 0 {
		n, err := unix.Write(l.fd, []byte(s))
		if err == unix.EAGAIN {
			l.rig.Worker.Step(0)
			continue
		}
		if err != nil {
			l.rig.T.Fatalf("upstream: %v", err)
		}
		s = s[n:]
	}
}

// Answer sends a response with a body of known length, and field lines.
func (l *Link) Answer(status, body string, fields ...string) {
	l.rig.T.Helper()
	var b strings.Builder
	b.WriteString("HTTP/1.1 " + status + "\r\n")
	for i := 0; i+1 < len(fields); i += 2 {
		b.WriteString(fields[i] + ": " + fields[i+1] + "\r\n")
	}
	b.WriteString("content-length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
	l.Send(b.String())
}

// Close ends the connection.
func (l *Link) Close() {
	if !l.gone {
		l.gone = true
		unix.Close(l.fd)
	}
}

// Ended waits for the other side's end.
func (l *Link) Ended() {
	l.rig.T.Helper()
	l.rig.Until("the end of the connection at the upstream", func() bool { l.fill(); return l.eof })
}

// Try sends as much of s as the socket takes, and returns how much that was.
func (l *Link) Try(s string) int {
	n, err := unix.Write(l.fd, []byte(s))
	if err != nil {
		return 0
	}
	return n
}
