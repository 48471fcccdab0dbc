package conn

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/ring/ringtest"
)

// survivor is a worker that goes on after panics, and their number.
func survivor(t *testing.T) (*loop.Worker, *atomic.Int64) {
	t.Helper()
	w, err := loop.New(1)
	if err != nil {
		t.Fatal(err)
	}
	var panics atomic.Int64
	w.OnPanic(func(any) { panics.Add(1) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run()
	}()
	t.Cleanup(func() {
		w.Stop()
		<-done
	})
	ringtest.Use(t, w, Batch)
	return w, &panics
}

// TestAPanicCostsItsConnection: a handler may panic wherever it is called. Its connection is reset, Closed comes
// once, and another connection of the same worker does not notice.
func TestAPanicCostsItsConnection(t *testing.T) {
	ca := newAuthority(t)
	bad := func() { panic("bad handler") }
	for name, arm := range map[string]func(w *loop.Worker, s *script){
		"when it is connected": func(_ *loop.Worker, s *script) { s.connected = bad },
		"when data arrives":    func(_ *loop.Worker, s *script) { s.data = func([]byte) int { panic("bad handler") } },
		"at the peer's end":    func(_ *loop.Worker, s *script) { s.eof = bad },
		"when it is drained": func(_ *loop.Worker, s *script) {
			s.data = func(p []byte) int {
				s.c.SetLimit(1)
				s.c.Write(p)
				if !s.c.Full() {
					panic("not full")
				}
				return len(p)
			}
			s.drained = bad
		},
		"in a turn of its own": func(_ *loop.Worker, s *script) {
			s.data = func(p []byte) int {
				s.data = func([]byte) int { panic("bad handler") }
				s.c.PauseRead()
				s.c.ResumeRead()
				return 0
			}
		},
		"in the turn after it yielded": func(_ *loop.Worker, s *script) {
			s.data = func([]byte) int {
				s.data = func([]byte) int { panic("bad handler") }
				s.c.Yield()
				return 0
			}
		},
		"in a timer that is guarded": func(w *loop.Worker, s *script) {
			var timer loop.Timer
			timer.Init(func() { defer w.Guard(s.c); bad() })
			s.data = func(p []byte) int { w.Schedule(&timer, 0); return len(p) }
		},
	} {
		for _, secure := range []bool{false, true} {
			if name == "when it is connected" && !secure {
				continue // the client may learn of it in connect: TestAPanicWhenAConnectionIsAccepted
			}
			kind := map[bool]string{false: " over plaintext", true: " over TLS"}[secure]
			t.Run(name+kind, func(t *testing.T) {
				w, panics := survivor(t)
				accepted := 0
				s := newScript()
				addr := listen(t, w, func(c *Conn) {
					if secure {
						c.StartTLSServer(ca.server(t))
					}
					if accepted++; accepted > 1 {
						startEcho(c)
						return
					}
					s.c = c
					arm(w, s)
					c.Start(s)
				})
				dial := func() net.Conn {
					raw := dialNet(t, addr)
					if secure {
						return tls.Client(raw, ca.client())
					}
					return raw
				}
				first := dial()
				_, wrote := first.Write([]byte("hello"))
				if name == "at the peer's end" {
					_ = first.(interface{ CloseWrite() error }).CloseWrite()
				}
				if err := s.wait(t); err == nil || !strings.Contains(err.Error(), "bad handler") {
					t.Errorf("closed with %v, want the panic", err)
				}
				if n := panics.Load(); n != 1 {
					t.Errorf("%d panics were noted, want 1", n)
				}
				// A socket tells of it once, whoever asks first.
				if _, err := io.ReadAll(first); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(wrote, syscall.ECONNRESET) {
					t.Errorf("the peer sees %v when it writes and %v when it reads, want a reset", wrote, err)
				}
				second := dial()
				roundTrip(t, second, []byte("still here"), func() int { return 10 })
				second.Close()
			})
		}
	}
}

// TestAPanicInClosed: the last call of a handler may panic too; it is not made again, and the connection is gone.
func TestAPanicInClosed(t *testing.T) {
	w, panics := survivor(t)
	addr := listen(t, w, startEcho)
	closed := make(chan struct{}, 2)
	s := &script{closed: func(error) { closed <- struct{}{}; panic("bad handler") }}
	on(w, func() { s.c = Dial(w, addr, DialOptions{}, s); s.c.Close() })
	<-closed
	deadline := time.Now().Add(20 * time.Second)
	for left := 1; left > 0; {
		if on(w, func() { left = Count(w) }); time.Now().After(deadline) {
			t.Fatalf("%d connections are left", left)
		}
	}
	if len(closed) != 0 || panics.Load() != 1 {
		t.Errorf("%d more calls of Closed, %d panics", len(closed), panics.Load())
	}
}

// TestAPanicInAHandshake: the configuration's callbacks run in it.
func TestAPanicInAHandshake(t *testing.T) {
	ca := newAuthority(t)
	w, panics := survivor(t)
	s := newScript()
	addr := listen(t, w, func(c *Conn) {
		s.c = c
		cfg := ca.server(t)
		cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { panic("bad callback") }
		cfg.Certificates = nil
		c.StartTLSServer(cfg)
		c.Start(s)
	})
	if err := tls.Client(dialNet(t, addr), ca.client()).Handshake(); err == nil {
		t.Error("the handshake went well")
	}
	if err := s.wait(t); err == nil || !strings.Contains(err.Error(), "bad callback") {
		t.Errorf("closed with %v, want the panic", err)
	}
	if n := panics.Load(); n != 1 {
		t.Errorf("%d panics were noted, want 1", n)
	}
	for left := 1; left > 0; { // its place is free again
		on(w, func() { left = handshakes(w) })
	}
}

// TestAPanicWhenAConnectionIsAccepted costs that connection and not the listener.
func TestAPanicWhenAConnectionIsAccepted(t *testing.T) {
	w, panics := survivor(t)
	accepted := 0
	addr := listen(t, w, func(c *Conn) {
		if accepted++; accepted == 1 {
			panic("bad accept")
		}
		startEcho(c)
	})
	first, err := net.Dial("tcp", addr.IP.String())
	if err == nil { // which may be told of the reset itself
		_, err = io.ReadAll(first)
		first.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the first client sees %v, want a reset", err)
	}
	roundTrip(t, dialNet(t, addr), []byte("hello"), func() int { return 5 })
	if n := panics.Load(); n != 1 {
		t.Errorf("%d panics, want 1", n)
	}
}
