package conn

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"sallyport/sidecar/loop"
)

// tlsEcho accepts TLS.
func tlsEcho(cfg *tls.Config) func(*Conn) {
	return func(c *Conn) {
		c.StartTLSServer(cfg)
		startEcho(c)
	}
}

// halves cuts what crypto/tls writes at arbitrary points.
type halves struct {
	net.Conn
	rnd *rand.Rand
}

func (h *halves) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		n := 1 + h.rnd.IntN(len(p))
		if h.rnd.IntN(3) == 0 {
			n = min(n, 7)
		}
		m, err := h.Conn.Write(p[:n])
		total += m
		if err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

func tlsClient(t testing.TB, a Address, cfg *tls.Config) *tls.Conn {
	t.Helper()
	return tls.Client(&halves{Conn: dialNet(t, a), rnd: rand.New(rand.NewPCG(1, 2))}, cfg)
}

func TestTLSEcho(t *testing.T) {
	ca := newAuthority(t)
	bothInputs(t, func(t *testing.T) {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(tls.VersionName(version), func(t *testing.T) {
				w := worker(t)
				addr := listen(t, w, tlsEcho(ca.server(t)))
				cfg := ca.client()
				cfg.MinVersion, cfg.MaxVersion = version, version
				cfg.DynamicRecordSizingDisabled = false
				for _, size := range []int{0, 1, 1000, 16 << 10, 16<<10 + 1, 64 << 10, 3 << 20} {
					roundTrip(t, tlsClient(t, addr, cfg), pattern(size), func() int { return 1 + rand.IntN(64<<10) })
				}
			})
		}
	})
}

// TestTLSOursToOurs has both sides on one worker, with pauses all the time.
func TestTLSOursToOurs(t *testing.T) {
	ca := newAuthority(t)
	bothInputs(t, func(t *testing.T) {
		w := worker(t)
		addr := listen(t, w, tlsEcho(ca.server(t)))
		const total = 5 << 20
		s := newScript()
		sent, got := 0, 0
		want := pattern(total)
		produce := func() {
			for sent < total && !s.c.Full() {
				n := min(1+rand.IntN(40000), total-sent)
				s.c.Write(want[sent : sent+n])
				sent += n
			}
			if sent == total {
				s.c.CloseWrite()
			}
		}
		s.connected = func() {
			if st := s.c.TLS(); st == nil || st.Version != tls.VersionTLS13 || st.NegotiatedProtocol != "echo" {
				t.Errorf("state %+v", st)
			}
			produce()
		}
		s.drained = produce
		var resume loop.Timer
		resume.Init(func() { s.c.ResumeRead() })
		s.data = func(p []byte) int {
			n := 1 + rand.IntN(len(p))
			if got+n > total || string(p[:n]) != string(want[got:got+n]) {
				t.Errorf("wrong bytes at %d", got)
				s.c.Reset()
				return 0
			}
			got += n
			s.c.PauseRead()
			if rand.IntN(10) == 0 {
				w.Schedule(&resume, time.Millisecond)
			} else {
				s.c.ResumeRead()
			}
			return n
		}
		on(w, func() {
			s.c = Dial(w, addr, DialOptions{}, s)
			s.c.StartTLSClient(ca.client())
		})
		if err := s.wait(t); err != nil || got != total {
			t.Fatalf("closed with %v after %d of %d bytes", err, got, total)
		}
		if s.c.BytesRead() != total || s.c.BytesWritten() != total {
			t.Errorf("BytesRead %d, BytesWritten %d", s.c.BytesRead(), s.c.BytesWritten())
		}
	})
}

func TestTruncatedRecordIsAnError(t *testing.T) {
	ca := newAuthority(t)
	w := worker(t)
	s := newScript()
	s.eof = func() { t.Error("EOF") }
	addr := listen(t, w, func(c *Conn) { s.c = c; c.StartTLSServer(ca.server(t)); c.Start(s) })
	raw := dialNet(t, addr)
	if err := tls.Client(raw, ca.client()).Handshake(); err != nil {
		t.Fatal(err)
	}
	_, _ = raw.Write([]byte("\x17\x03\x03\x00\x20yyy"))
	raw.Close()
	if err := s.wait(t); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("closed with %v", err)
	}
}

// TestPostHandshakeMessages: session tickets on the client's side of a Conn,
// and a session that is resumed by one.
func TestPostHandshakeMessages(t *testing.T) {
	ca := newAuthority(t)
	bothInputs(t, func(t *testing.T) {
		w := worker(t)
		addr := listen(t, w, tlsEcho(ca.server(t)))
		cfg := ca.client()
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(10)
		for i := range 3 {
			s := newScript()
			s.connected = func() {
				if got := s.c.TLS().DidResume; got != (i > 0) {
					t.Errorf("connection %d: DidResume is %v", i, got)
				}
				s.c.Write([]byte("hello"))
				s.c.CloseWrite()
			}
			got := ""
			s.data = func(p []byte) int { got += string(p); return len(p) }
			on(w, func() {
				s.c = Dial(w, addr, DialOptions{}, s)
				s.c.StartTLSClient(cfg)
			})
			if err := s.wait(t); err != nil || got != "hello" {
				t.Fatalf("got %q, %v", got, err)
			}
		}
	})
}

// TestSniffThenTLS: a first handler looks at the ClientHello, after a PROXY
// header, consumes only the latter, and starts TLS with another handler.
func TestSniffThenTLS(t *testing.T) {
	ca := newAuthority(t)
	w := worker(t)
	cfg := ca.server(t)
	names := make(chan string, 1)
	addr := listen(t, w, func(c *Conn) {
		s := &script{c: c}
		header := true
		s.data = func(p []byte) int {
			used := 0
			if header {
				src, _, n, more, err := ParseProxyHeader(p)
				if more || err != nil {
					return 0
				}
				header, used = false, n
				c.SetRemoteAddr(src)
			}
			hello, more, err := ParseClientHello(p[used:])
			if err != nil {
				t.Error(err)
				c.Close()
				return used
			}
			if !more {
				names <- fmt.Sprint(c.RemoteAddr(), " ", hello.ServerName, " ", hello.ALPN)
				c.StartTLSServer(cfg)
				c.Start(&echo{c: c})
			}
			return used
		}
		c.Start(s)
	})
	raw := &halves{Conn: dialNet(t, addr), rnd: rand.New(rand.NewPCG(3, 4))}
	_, _ = io.WriteString(raw, "PROXY TCP4 192.0.2.7 192.0.2.8 1234 443\r\n")
	roundTrip(t, tls.Client(raw, ca.client()), pattern(100000), func() int { return 3000 })
	if got, want := <-names, "192.0.2.7:1234 server.test [echo]"; got != want {
		t.Fatalf("saw %q, want %q", got, want)
	}
}

// TestPlainBytesBeforeTLS: what a client writes before StartTLSClient stays plain.
func TestPlainBytesBeforeTLS(t *testing.T) {
	ca := newAuthority(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := worker(t)
	for _, where := range []string{"at once", "in Connected"} {
		t.Run(where, func(t *testing.T) {
			s := newScript()
			begin := func() {
				s.c.Write([]byte("plain"))
				s.c.StartTLSClient(ca.client())
			}
			calls := 0
			s.connected = func() {
				if calls++; where == "in Connected" && calls == 1 {
					begin()
					return
				}
				s.c.Write([]byte("secret"))
			}
			s.eof = func() { s.c.Close() }
			on(w, func() {
				s.c = Dial(w, TCP(l.Addr().(*net.TCPAddr).AddrPort()), DialOptions{}, s)
				if where == "at once" {
					begin()
				}
			})
			raw, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			p := make([]byte, 5)
			if _, err := io.ReadFull(raw, p); err != nil || string(p) != "plain" {
				t.Fatalf("read %q, %v", p, err)
			}
			c := tls.Server(raw, ca.server(t))
			p = make([]byte, 6)
			if _, err := io.ReadFull(c, p); err != nil || string(p) != "secret" {
				t.Fatalf("read %q, %v", p, err)
			}
			c.Close()
			if err := s.wait(t); err != nil {
				t.Fatalf("closed with %v", err)
			}
		})
	}
}

// TestCloseNotify: the peer sees a good end in each of our ways to close.
func TestCloseNotify(t *testing.T) {
	ca := newAuthority(t)
	w := worker(t)
	for name, end := range map[string]func(*Conn){
		"Close":           (*Conn).Close,
		"CloseWrite":      (*Conn).CloseWrite,
		"CloseAfterFlush": func(c *Conn) { c.CloseAfterFlush(0) },
	} {
		t.Run(name, func(t *testing.T) {
			addr := listen(t, w, func(c *Conn) {
				s := &script{c: c, connected: func() { end(c) }}
				c.StartTLSServer(ca.server(t))
				c.Start(s)
			})
			raw := dialNet(t, addr)
			seen := &lastByte{Conn: raw}
			c := tls.Client(seen, ca.client())
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("read %v", err)
			}
			if seen.eof {
				t.Fatal("the end came by FIN, without close_notify")
			}
		})
	}
}

// lastByte notes whether the transport's end was seen.
type lastByte struct {
	net.Conn
	eof bool
}

func (l *lastByte) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.eof = l.eof || err == io.EOF
	return n, err
}

// TestWritingAfterTheEndIsDropped: a codec may write after CloseWrite without harm.
func TestWritingAfterTheEndIsDropped(t *testing.T) {
	ca := newAuthority(t)
	w := worker(t)
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			s := newScript()
			s.connected = func() { s.c.Write([]byte("last")); s.c.CloseWrite() }
			s.data = func(p []byte) int { s.c.Write([]byte("late")); s.c.WriteThrough([]byte("late")); return len(p) }
			addr := listen(t, w, func(c *Conn) {
				s.c = c
				if secure {
					c.StartTLSServer(ca.server(t))
				}
				c.Start(s)
			})
			var c net.Conn = dialNet(t, addr)
			if secure {
				c = tls.Client(c, ca.client())
			}
			got, err := io.ReadAll(c)
			if err != nil || string(got) != "last" {
				t.Fatalf("got %q, %v", got, err)
			}
			if _, err := c.Write([]byte("question")); err != nil {
				t.Fatal(err)
			}
			c.Close()
			if err := s.wait(t); err != nil {
				t.Fatalf("closed with %v", err)
			}
		})
	}
}

// TestTheEndDoesNotOvertakeWhatTLSHolds: during a pause, records wait in crypto/tls where it reads by itself.
func TestTheEndDoesNotOvertakeWhatTLSHolds(t *testing.T) {
	ca := newAuthority(t)
	const records, size = 10, 100
	bothInputs(t, func(t *testing.T) {
		w := worker(t)
		on(w, func() { engineOf(w).plain = make([]byte, maxPlain+size) }) // two records are decrypted at once
		got, ended := 0, false
		s := newScript()
		s.data = func(p []byte) int {
			if got += len(p); ended {
				t.Error("Data after EOF")
			}
			s.c.PauseRead()
			return len(p)
		}
		s.eof = func() { ended = true; s.c.Close() }
		addr := listen(t, w, func(c *Conn) { s.c = c; c.StartTLSServer(ca.server(t)); c.Start(s) })
		raw := dialNet(t, addr).(*net.TCPConn)
		c := tls.Client(raw, ca.client())
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		// All of it is there when the worker reads.
		on(w, func() {
			for range records {
				if _, err := c.Write(make([]byte, size)); err != nil {
					t.Error(err)
					return
				}
			}
		})
		step := func(done func() bool) {
			t.Helper()
			deadline := time.Now().Add(20 * time.Second)
			for is := false; !is; {
				if on(w, func() { is = done() }); time.Now().After(deadline) {
					t.Fatalf("not in time: %d bytes arrived", got)
				}
			}
		}
		// The last records wait, in crypto/tls alone where it reads by itself.
		step(func() bool {
			if s.c.paused > 0 && got < (records-2)*size {
				s.c.ResumeRead()
			}
			return s.c.paused > 0 && got >= (records-2)*size
		})
		if err := raw.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		step(func() bool { return s.c.hup })
		step(func() bool {
			s.c.ResumeRead()
			return ended || s.c.closed
		})
		if err := s.wait(t); err != nil || got != records*size {
			t.Errorf("closed with %v after %d of %d bytes", err, got, records*size)
		}
	})
}
