package conn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pattern(n int) []byte {
	p := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(p)
	return p
}

// roundTrip sends p in pieces, closes the writing half, and wants p back.
func roundTrip(t *testing.T, c net.Conn, p []byte, piece func() int) {
	t.Helper()
	if c, ok := c.(*tls.Conn); ok {
		// CloseWrite needs it, and with no bytes nothing else would do it.
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		for rest := p; len(rest) > 0; {
			n := min(piece(), len(rest))
			if _, err := c.Write(rest[:n]); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			rest = rest[n:]
		}
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	if !bytes.Equal(got, p) {
		t.Fatalf("got %d bytes back, sent %d; equal is false", len(got), len(p))
	}
}

func TestEchoAndHalfClose(t *testing.T) {
	w := worker(t)
	addr := listen(t, w, startEcho)
	for _, n := range []int{0, 1, 100, 64 << 10, 64<<10 + 1, 8 << 20} {
		roundTrip(t, dialNet(t, addr), pattern(n), func() int { return 1 + rand.IntN(100000) })
	}
	on(w, func() {
		if n := Count(w); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

func TestUnixSocketEcho(t *testing.T) {
	w := worker(t)
	path := filepath.Join(t.TempDir(), "s")
	for range 2 { // the second time over the stale file of the first
		fd, addr, err := ListenFD(Unix(path), ListenOptions{Mode: 0o600})
		if err != nil {
			t.Fatal(err)
		}
		var l *Listener
		on(w, func() { l, err = NewListener(w, fd, startEcho) })
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := ListenFD(addr, ListenOptions{}); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a second listener on a live socket: %v, want EADDRINUSE", err)
		}
		roundTrip(t, dialNet(t, addr), pattern(300000), func() int { return 7000 })
		// And dialed by us.
		s := newScript()
		var got []byte
		s.connected = func() { s.c.Write([]byte("hello")); s.c.CloseWrite() }
		s.data = func(p []byte) int { got = append(got, p...); return len(p) }
		on(w, func() { s.c = Dial(w, addr, DialOptions{}, s) })
		if err := s.wait(t); err != nil || string(got) != "hello" {
			t.Fatalf("got %q, %v", got, err)
		}
		on(w, l.Close)
	}
}

func TestDialFailuresComeAsClosed(t *testing.T) {
	w := worker(t)
	// A port that nobody listens on: bound, and not listening.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	dead := localAddr(fd)
	for _, tc := range []struct {
		name string
		addr Address
		opts DialOptions
		want error
	}{
		{"nobody listens", TCP(dead), DialOptions{}, unix.ECONNREFUSED},
		{"no such socket file", Unix(filepath.Join(t.TempDir(), "none")), DialOptions{}, unix.ENOENT},
		{"source of another family", TCP(dead), DialOptions{Source: netip.MustParseAddr("::1")}, nil},
		{"source that is not ours", TCP(dead), DialOptions{Source: netip.MustParseAddr("192.0.2.1")}, unix.EADDRNOTAVAIL},
		{"no address", Address{}, DialOptions{}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScript()
			s.connected = func() { t.Error("Connected") }
			on(w, func() {
				s.c = Dial(w, tc.addr, tc.opts, s)
				if s.ended {
					t.Error("Closed within Dial")
				}
			})
			if err := s.wait(t); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("closed with %v, want %v", err, tc.want)
			}
		})
	}
}

// fullListener is a socket whose backlog is full: connecting hangs.
func fullListener(t *testing.T) Address {
	t.Helper()
	fd, addr, err := ListenFD(loopback, ListenOptions{Backlog: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for range 4 {
		c, err := net.DialTimeout("tcp", addr.IP.String(), 100*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Skip("the kernel completes connections over the backlog")
	return addr
}

func TestConnectTimeout(t *testing.T) {
	w := worker(t)
	addr := fullListener(t)
	s := newScript()
	on(w, func() { s.c = Dial(w, addr, DialOptions{ConnectTimeout: 30 * time.Millisecond}, s) })
	if err := s.wait(t); !errors.Is(err, ErrConnectTimeout) {
		t.Fatalf("closed with %v", err)
	}
}

func TestDialFromASource(t *testing.T) {
	w := worker(t)
	remote := make(chan netip.AddrPort, 1)
	addr := listen(t, w, func(c *Conn) { remote <- c.RemoteAddr(); c.Close() })
	s := newScript()
	s.eof = func() { s.c.Close() }
	on(w, func() { s.c = Dial(w, addr, DialOptions{Source: netip.MustParseAddr("127.0.0.9")}, s) })
	_ = s.wait(t)
	if got := <-remote; got.Addr() != netip.MustParseAddr("127.0.0.9") || got != s.c.LocalAddr() {
		t.Fatalf("the server saw %v, the client's address is %v", got, s.c.LocalAddr())
	}
}

func TestResetReachesTheHandlerAndThePeer(t *testing.T) {
	w := worker(t)
	t.Run("by the peer", func(t *testing.T) {
		s := newScript()
		addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
		c := dialNet(t, addr).(*net.TCPConn)
		_ = c.SetLinger(0)
		c.Close()
		if err := s.wait(t); !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("closed with %v", err)
		}
	})
	t.Run("by the peer, noticed though reading is paused", func(t *testing.T) {
		s := newScript()
		addr := listen(t, w, func(c *Conn) { s.c = c; c.PauseRead(); c.Start(s) })
		c := dialNet(t, addr).(*net.TCPConn)
		_ = c.SetLinger(0)
		c.Close()
		if err := s.wait(t); !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("closed with %v", err)
		}
	})
	t.Run("by us", func(t *testing.T) {
		s := newScript()
		s.data = func([]byte) int { s.c.Reset(); return 0 }
		addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
		c := dialNet(t, addr)
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("the peer read %v", err)
		}
		if err := s.wait(t); err != nil {
			t.Fatalf("closed with %v", err)
		}
	})
}

func TestEOFDuringAPauseIsNoticedAndDataBeforeItKept(t *testing.T) {
	w := worker(t)
	t.Run("nothing to read", func(t *testing.T) {
		s := newScript()
		s.eof = func() { s.c.Close() }
		addr := listen(t, w, func(c *Conn) { s.c = c; c.PauseRead(); c.Start(s) })
		dialNet(t, addr).Close()
		_ = s.wait(t)
	})
	t.Run("data first", func(t *testing.T) {
		s := newScript()
		got := ""
		s.data = func(p []byte) int { got += string(p); return len(p) }
		s.eof = func() { got += "|"; s.c.Close() }
		var accepted = make(chan struct{})
		addr := listen(t, w, func(c *Conn) { s.c = c; c.PauseRead(); c.Start(s); close(accepted) })
		c := dialNet(t, addr)
		_, _ = c.Write([]byte("hello"))
		c.Close()
		<-accepted
		on(w, func() {
			if got != "" {
				t.Errorf("got %q during the pause", got)
			}
			s.c.ResumeRead()
		})
		_ = s.wait(t)
		if got != "hello|" {
			t.Fatalf("got %q", got)
		}
	})
}

// TestUnconsumedInputIsPresentedAgain: lines, of which the handler takes whole ones only.
func TestUnconsumedInputIsPresentedAgain(t *testing.T) {
	w := worker(t)
	s := newScript()
	var lines []string
	s.data = func(p []byte) int {
		used := 0
		for {
			i := bytes.IndexByte(p[used:], '\n')
			if i < 0 {
				return used
			}
			lines = append(lines, string(p[used:used+i]))
			used += i + 1
		}
	}
	s.eof = func() { s.c.Close() }
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
	c := dialNet(t, addr)
	for _, part := range []string{"a", "lpha\nbe", "", "ta", "\n", "gamma\ndelta"} {
		_, _ = c.Write([]byte(part))
		on(w, func() {})
	}
	c.Close()
	_ = s.wait(t)
	if len(lines) != 3 || lines[0] != "alpha" || lines[1] != "beta" || lines[2] != "gamma" {
		t.Fatalf("got %q", lines)
	}
}

func TestInputOverTheLimitCloses(t *testing.T) {
	w := worker(t)
	s := newScript()
	s.data = func([]byte) int { return 0 }
	addr := listen(t, w, func(c *Conn) { s.c = c; c.SetLimit(100000); c.Start(s) })
	c := dialNet(t, addr)
	_, _ = c.Write(make([]byte, 200000))
	if err := s.wait(t); !errors.Is(err, ErrReadLimit) {
		t.Fatalf("closed with %v", err)
	}
}

func TestPauseStopsTheSenderAndResumeLosesNothing(t *testing.T) {
	w := worker(t)
	s := newScript()
	var got int
	accepted := make(chan struct{})
	s.data = func(p []byte) int {
		got += len(p)
		if got == 100 {
			s.c.PauseRead()
			s.c.PauseRead()
			return 1 // the rest comes after the second ResumeRead
		}
		return len(p)
	}
	s.eof = func() { s.c.Close() }
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s); close(accepted) })
	c := dialNet(t, addr).(*net.TCPConn)
	<-accepted
	_, _ = c.Write(make([]byte, 100))
	for seen := 0; seen == 0; {
		on(w, func() { seen = got })
	}
	// The kernel's buffers fill up, then the sender must stop.
	_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	sent, err := c.Write(make([]byte, 64<<20))
	if err == nil {
		t.Fatal("64 MiB went to a reader that does not read")
	}
	on(w, func() {
		if got != 100 {
			t.Errorf("%d bytes were presented during the pause", got-100)
		}
		s.c.ResumeRead()
	})
	on(w, func() {
		if got != 100 {
			t.Errorf("presented after the first of two ResumeRead")
		}
		s.c.ResumeRead()
	})
	c.Close()
	_ = s.wait(t)
	if want := 100 + 99 + sent; got != want {
		t.Fatalf("got %d bytes in all, want %d", got, want)
	}
}

// TestSlowReaderBoundsMemory: a source that honors Full never has more than
// the high mark and one piece waiting.
func TestSlowReaderBoundsMemory(t *testing.T) {
	w := worker(t)
	const piece, total, limit = 50000, 30 << 20, 256 << 10
	s := newScript()
	sent, most, drains := 0, 0, 0
	produce := func() {
		for sent < total && !s.c.Full() {
			s.c.Write(make([]byte, piece))
			sent += piece
			most = max(most, s.c.pending())
		}
		if sent >= total {
			s.c.CloseAfterFlush(10 * time.Second)
		}
	}
	s.connected = produce
	s.drained = func() { drains++; produce() }
	addr := listen(t, w, func(c *Conn) { s.c = c; c.SetLimit(limit); c.Start(s) })
	c := dialNet(t, addr)
	n := 0
	buf := make([]byte, 20000)
	for {
		m, err := c.Read(buf)
		n += m
		if n < 4<<20 {
			on(w, func() {})
		}
		if err != nil {
			break
		}
	}
	c.Close()
	if err := s.wait(t); err != nil || n != sent {
		t.Fatalf("closed with %v; %d of %d bytes arrived", err, n, sent)
	}
	if most > limit+piece || drains == 0 {
		t.Fatalf("at most %d bytes waited, Drained %d times", most, drains)
	}
}

// TestLastResponseSurvivesUnreadInput: without lingering the unread input
// makes the kernel send RST, which takes the response with it.
func TestLastResponseSurvivesUnreadInput(t *testing.T) {
	w := worker(t)
	response := pattern(300000)
	s := newScript()
	s.data = func(p []byte) int {
		s.c.Write(response)
		s.c.CloseAfterFlush(5 * time.Second)
		return 0
	}
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
	c := dialNet(t, addr)
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = c.Write(make([]byte, 3<<20))
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, response) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	<-wrote
	c.Close()
	if err := s.wait(t); err != nil {
		t.Fatalf("closed with %v", err)
	}
}

func TestLingeringIsBounded(t *testing.T) {
	w := worker(t)
	t.Run("in time", func(t *testing.T) {
		s := newScript()
		addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s); c.CloseAfterFlush(20 * time.Millisecond) })
		dialNet(t, addr)
		_ = s.wait(t) // the peer never closes
	})
	t.Run("in bytes", func(t *testing.T) {
		s := newScript()
		addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s); c.CloseAfterFlush(time.Hour) })
		c := dialNet(t, addr)
		n, err := c.Write(make([]byte, 64<<20))
		if err == nil {
			t.Fatalf("%d bytes were taken", n)
		}
		_ = s.wait(t)
	})
}

// TestEarlyAnswerIsReadThoughWritingFails: the server answers and closes while
// the client still sends.
func TestEarlyAnswerIsReadThoughWritingFails(t *testing.T) {
	w := worker(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newScript()
	var got []byte
	s.data = func(p []byte) int { got = append(got, p...); return len(p) }
	s.connected = func() { s.c.Write([]byte("request")) }
	on(w, func() {
		s.c = Dial(w, TCP(l.Addr().(*net.TCPAddr).AddrPort()), DialOptions{}, s)
	})
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	// Reading pauses, so that the answer is still unread when writing fails.
	on(w, func() { s.c.PauseRead() })
	_, _ = c.Write([]byte("answer"))
	c.Close() // with "request" unread: RST
	on(w, func() { s.c.Write([]byte("more")) })
	on(w, func() { s.c.Write([]byte("more")) })
	on(w, func() { s.c.ResumeRead() })
	if err := s.wait(t); err == nil {
		t.Error("closed without an error")
	}
	// The kernel may have thrown the answer away with the RST; what it kept must be there.
	if len(got) > 0 && string(got) != "answer" {
		t.Fatalf("got %q", got)
	}
}

// TestClosingInsideCallbacks: no call but Closed follows, once, and nothing breaks.
func TestClosingInsideCallbacks(t *testing.T) {
	for _, how := range []struct {
		name  string
		close func(*Conn)
	}{
		{"Close", (*Conn).Close},
		{"Reset", (*Conn).Reset},
		{"CloseAfterFlush", func(c *Conn) { c.CloseAfterFlush(50 * time.Millisecond) }},
		{"Close twice", func(c *Conn) { c.Close(); c.Close(); c.Reset(); c.CloseAfterFlush(0); c.CloseWrite() }},
	} {
		for _, where := range []string{"Connected", "Data", "EOF", "Drained"} {
			t.Run(how.name+" in "+where, func(t *testing.T) {
				w := worker(t)
				s := newScript()
				over := false
				end := func(at string) {
					if over {
						t.Errorf("%s after the end", at)
					}
					if at == where {
						over = true
						how.close(s.c)
						if s.ended {
							t.Error("Closed was called within the call")
						}
						// Writing to a closed connection does nothing.
						s.c.Write(make([]byte, 100))
						s.c.WriteThrough(make([]byte, 100))
						s.c.Buffer().Append([]byte("x"))
						s.c.Flush()
						s.c.PauseRead()
						s.c.ResumeRead()
					}
				}
				s.connected = func() {
					end("Connected")
					if where == "Drained" {
						s.c.Write(make([]byte, 8<<20))
						s.c.Full()
					}
				}
				s.data = func(p []byte) int { end("Data"); return len(p) / 2 }
				s.eof = func() { end("EOF") }
				s.drained = func() { end("Drained") }
				addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
				// A reset can be so early that dialing fails.
				if c, err := net.Dial("tcp", addr.IP.String()); err == nil {
					_, _ = c.Write([]byte("some data"))
					_ = c.(*net.TCPConn).CloseWrite()
					_, _ = io.Copy(io.Discard, c)
					c.Close()
				}
				if err := s.wait(t); err != nil {
					t.Fatalf("closed with %v", err)
				}
				on(w, func() {
					if n := Count(w); n != 0 {
						t.Errorf("%d connections are left", n)
					}
				})
			})
		}
	}
}

func TestThousandsOfConnections(t *testing.T) {
	w := worker(t)
	const n = 2000
	addr := listen(t, w, startEcho)
	scripts := make([]*script, n)
	answered := make(chan struct{}, n)
	on(w, func() {
		for i := range scripts {
			s := newScript()
			scripts[i] = s
			s.connected = func() { s.c.Write([]byte("ping")) }
			s.data = func(p []byte) int {
				answered <- struct{}{}
				return len(p)
			}
			s.c = Dial(w, addr, DialOptions{}, s)
		}
	})
	for range n {
		<-answered
	}
	on(w, func() {
		if got := Count(w); got != 2*n {
			t.Errorf("%d connections, want %d", got, 2*n)
		}
		for _, s := range scripts {
			if s.c.out.Len() != 0 || s.c.kept.Len() != 0 {
				t.Error("an idle connection holds a buffer")
			}
			s.c.Close()
		}
	})
	for _, s := range scripts {
		if err := s.wait(t); err != nil {
			t.Fatal(err)
		}
	}
	for left := 1; left > 0; {
		on(w, func() { left = Count(w) })
	}
}

func TestStoppingTheWorkerClosesEverything(t *testing.T) {
	w := worker(t)
	s := newScript()
	started := make(chan struct{})
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s); close(started) })
	dialNet(t, addr)
	<-started
	w.Stop()
	if err := s.wait(t); !errors.Is(err, ErrStopped) {
		t.Fatalf("closed with %v", err)
	}
}

func TestSeveralListenersShareAPort(t *testing.T) {
	w := worker(t)
	fd1, addr, err := ListenFD(loopback, ListenOptions{ReusePort: true})
	if err != nil {
		t.Fatal(err)
	}
	fd2, addr2, err := ListenFD(addr, ListenOptions{ReusePort: true})
	if err != nil || addr2 != addr {
		t.Fatalf("second socket: %v, %v", addr2, err)
	}
	on(w, func() {
		for _, fd := range []int{fd1, fd2} {
			l, err := NewListener(w, fd, startEcho)
			if err != nil || l.Addr() != addr {
				t.Errorf("listener %v: %v", l, err)
			}
		}
	})
	for range 20 {
		roundTrip(t, dialNet(t, addr), []byte("hello"), func() int { return 5 })
	}
	if _, _, err := ListenFD(addr, ListenOptions{}); !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("without ReusePort: %v", err)
	}
}

func TestAcceptedConnectionsInheritNoDelay(t *testing.T) {
	w := worker(t)
	value := make(chan int, 1)
	addr := listen(t, w, func(c *Conn) {
		v, err := unix.GetsockoptInt(c.FD(), unix.IPPROTO_TCP, unix.TCP_NODELAY)
		if err != nil {
			t.Error(err)
		}
		value <- v
		c.Close()
	})
	dialNet(t, addr)
	if v := <-value; v == 0 {
		t.Fatal("TCP_NODELAY is not set")
	}
}

// TestOutOfDescriptorsPausesAccepting lowers the limit of the process for a moment.
func TestOutOfDescriptorsPausesAccepting(t *testing.T) {
	w := worker(t)
	failed := make(chan error, 100)
	var l *Listener
	var err error
	on(w, func() {
		if l, err = Listen(w, loopback, ListenOptions{}, startEcho); err == nil {
			l.Failed = func(err error) { failed <- err }
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	var was, low unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	low = was
	low.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	sa := &unix.SockaddrInet4{Port: int(l.Addr().IP.Port()), Addr: [4]byte{127, 0, 0, 1}}
	errConnect := unix.Connect(c, sa)
	err = <-failed
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was)
	if errConnect != nil || !errors.Is(err, unix.EMFILE) {
		t.Fatalf("connect: %v; accept failed with %v", errConnect, err)
	}
	// It goes on by itself, and has not spun: one failure per pause.
	if _, err := unix.Write(c, []byte("x")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if n, err := unix.Read(c, b); n != 1 || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
	if n := len(failed); n > 3 {
		t.Fatalf("accept failed %d more times", n)
	}
}

func TestWriteThrough(t *testing.T) {
	w := worker(t)
	want := pattern(6 << 20)
	s := newScript()
	s.connected = func() {
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 100000)
			s.c.WriteThrough(rest[:n])
			rest = rest[n:]
		}
		s.c.CloseAfterFlush(5 * time.Second)
	}
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
	c := dialNet(t, addr)
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d of %d bytes, %v", len(got), len(want), err)
	}
	c.Close()
	_ = s.wait(t)
	if n := s.c.BytesWritten(); n != uint64(len(want)) {
		t.Fatalf("BytesWritten is %d", n)
	}
}

// TestSlowReaderGetsTheLastResponse: the timeout of CloseAfterFlush is for
// progress, not for the whole.
func TestSlowReaderGetsTheLastResponse(t *testing.T) {
	w := worker(t)
	response := pattern(24 << 20) // more than the kernel's buffers take
	s := newScript()
	s.connected = func() {
		s.c.Write(response)
		s.c.CloseAfterFlush(250 * time.Millisecond)
	}
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
	c := dialNet(t, addr)
	var got []byte
	buf := make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(c, buf)
		got = append(got, buf[:n]...)
		if err != nil {
			break
		}
		<-time.After(25 * time.Millisecond) // the reader's slowness, 600 ms in all
	}
	if !bytes.Equal(got, response) {
		t.Fatalf("got %d of %d bytes", len(got), len(response))
	}
	c.Close()
	_ = s.wait(t)
}

func TestOriginalDstWithoutARedirect(t *testing.T) {
	w := worker(t)
	result := make(chan error, 1)
	addr := listen(t, w, func(c *Conn) {
		_, err := c.OriginalDst()
		result <- err
		c.Close()
	})
	c := dialNet(t, addr)
	// With connection tracking the answer is the address itself, without an error.
	if err := <-result; err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOPROTOOPT) {
		t.Fatal(err)
	}
	c.Close()
	if _, err := OriginalDst(-1); err == nil {
		t.Fatal("no error for a bad descriptor")
	}
}
