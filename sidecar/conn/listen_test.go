package conn

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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

// TestFullBacklogOfAUnixSocket: connect says EAGAIN there, and nothing tells when to try again.
func TestFullBacklogOfAUnixSocket(t *testing.T) {
	w := worker(t)
	fd, addr, err := ListenFD(Unix(filepath.Join(t.TempDir(), "s")), ListenOptions{Backlog: 1})
	if err != nil {
		t.Fatal(err)
	}
	const n = 6
	var scripts [n]*script
	up := make(chan struct{}, n)
	on(w, func() {
		for i := range scripts {
			s := newScript()
			scripts[i] = s
			s.connected = func() { up <- struct{}{}; s.c.CloseWrite() }
			s.c = Dial(w, addr, DialOptions{}, s)
		}
	})
	<-up
	on(w, func() {
		if len(up) == n-1 {
			t.Error("the backlog took everything")
		}
		if _, err := NewListener(w, fd, startEcho); err != nil {
			t.Error(err)
		}
	})
	for _, s := range scripts {
		if err := s.wait(t); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOwnAddresses(t *testing.T) {
	for a, want := range map[string]bool{"127.0.0.1": true, "127.1.2.3": true, "::1": true, "::ffff:127.0.0.1": true, "192.0.2.1": false, "2001:db8::1": false} {
		if got := IsOwn(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %t, want %t", a, got, want)
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() && !IsOwn(p.Addr()) {
			t.Errorf("%s is an interface's", p)
		}
	}
}
