package conn

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/loop"
)

func TestMutualTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	w := worker(t)
	cfg := ca.server(t)
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	var names = make(chan string, 1)
	addr := listen(t, w, func(c *Conn) {
		e := newScript()
		e.c = c
		e.connected = func() { names <- c.TLS().PeerCertificates[0].Subject.CommonName }
		e.data = func(p []byte) int { c.Write(p); return len(p) }
		e.eof = func() { c.CloseAfterFlush(0) }
		c.StartTLSServer(cfg)
		c.Start(e)
	})
	t.Run("accepted", func(t *testing.T) {
		client := ca.client()
		client.Certificates = []tls.Certificate{ca.issue(t, "caller")}
		roundTrip(t, tlsClient(t, addr, client), []byte("hello"), func() int { return 5 })
		if name := <-names; name != "caller" {
			t.Fatalf("the peer is %q", name)
		}
	})
	for name, certs := range map[string][]tls.Certificate{"without a certificate": nil, "of another authority": {other.issue(t, "caller")}} {
		t.Run(name, func(t *testing.T) {
			client := ca.client()
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if certs == nil {
					return new(tls.Certificate), nil
				}
				return &certs[0], nil
			}
			c := tlsClient(t, addr, client)
			// In TLS 1.3 the client learns of it at the first read; the
			// alert must arrive although its data is never read.
			_, err := c.Write(make([]byte, 100000))
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if err == nil || !strings.Contains(err.Error(), "tls:") {
				t.Fatalf("the client got %v, want an alert", err)
			}
		})
	}
}

func TestClientRefusesTheServer(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	w := worker(t)
	addr := listen(t, w, tlsEcho(ca.server(t)))
	s := newScript()
	s.connected = func() { t.Error("Connected") }
	on(w, func() {
		s.c = Dial(w, addr, DialOptions{}, s)
		s.c.StartTLSClient(other.client())
	})
	var unknown *tls.CertificateVerificationError
	if err := s.wait(t); !errors.As(err, &unknown) {
		t.Fatalf("closed with %v", err)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	ca := newAuthority(t)
	w := worker(t)
	hello := clientHelloBytes(t, ca.client())
	for name, first := range map[string][]byte{"silent": nil, "half a ClientHello": hello[:len(hello)/2], "ClientHello alone": hello} {
		t.Run(name, func(t *testing.T) {
			s := newScript()
			s.connected = func() { t.Error("Connected") }
			addr := listen(t, w, func(c *Conn) {
				s.c = c
				c.SetHandshakeTimeout(50 * time.Millisecond)
				c.StartTLSServer(ca.server(t))
				c.Start(s)
			})
			_, _ = dialNet(t, addr).Write(first)
			if err := s.wait(t); !errors.Is(err, ErrHandshakeTimeout) {
				t.Fatalf("closed with %v", err)
			}
			for left := 1; left > 0; { // its place is free again
				on(w, func() { left = handshakes(w) })
			}
		})
	}
}

// clientHelloBytes is what a client of crypto/tls sends first.
func clientHelloBytes(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		_ = tls.Client(a, cfg).Handshake()
		a.Close()
	}()
	p := make([]byte, 20000)
	n, err := b.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	return p[:n]
}

func TestGarbageInsteadOfTLS(t *testing.T) {
	ca := newAuthority(t)
	w := worker(t)
	for name, garbage := range map[string]string{
		"HTTP":             "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
		"oversized record": "\x16\x03\x01\xff\xff" + strings.Repeat("x", 70000),
		"zeros":            strings.Repeat("\x00", 100),
		"alert":            "\x15\x03\x01\x00\x02\x02\x28",
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript()
			s.connected = func() { t.Error("Connected") }
			addr := listen(t, w, func(c *Conn) { s.c = c; c.StartTLSServer(ca.server(t)); c.Start(s) })
			c := dialNet(t, addr)
			_, _ = io.WriteString(c, garbage)
			_, _ = io.Copy(io.Discard, c)
			c.Close()
			if err := s.wait(t); err == nil || !strings.Contains(err.Error(), "TLS handshake") {
				t.Fatalf("closed with %v", err)
			}
		})
	}
	t.Run("after the handshake", func(t *testing.T) {
		bothInputs(t, func(t *testing.T) {
			s := newScript()
			s.data = func([]byte) int { t.Error("Data"); return 0 }
			addr := listen(t, w, func(c *Conn) { s.c = c; c.StartTLSServer(ca.server(t)); c.Start(s) })
			raw := dialNet(t, addr)
			c := tls.Client(raw, ca.client())
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			_, _ = raw.Write([]byte("\x17\x03\x03\x00\x20" + strings.Repeat("y", 32)))
			if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "bad record MAC") {
				t.Errorf("the client got %v", err)
			}
			if err := s.wait(t); err == nil || !strings.Contains(err.Error(), "bad record MAC") {
				t.Fatalf("closed with %v", err)
			}
		})
	})
}

func TestManyHandshakesAtOnce(t *testing.T) {
	ca := newAuthority(t)
	w := worker(t)
	addr := listen(t, w, tlsEcho(ca.server(t)))
	const n = 100
	scripts := make([]*script, n)
	on(w, func() {
		for side := range engineOf(w).places {
			engineOf(w).places[side].limit = 10
		}
		for i := range scripts {
			s := newScript()
			scripts[i] = s
			s.connected = func() { s.c.CloseWrite() }
			s.c = Dial(w, addr, DialOptions{}, s)
			s.c.StartTLSClient(ca.client())
		}
		// Some give up while they wait for a place.
		for _, s := range scripts[50:60] {
			s.c.Close()
		}
	})
	for i, s := range scripts {
		if err := s.wait(t); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	for left := 1; left > 0; {
		on(w, func() { left = handshakes(w) })
	}
}

func TestCloseDuringAHandshake(t *testing.T) {
	ca := newAuthority(t)
	w := worker(t)
	addr := listen(t, w, tlsEcho(ca.server(t)))
	for i := range 40 {
		s := newScript()
		var timer loop.Timer
		timer.Init(func() { s.c.Close() })
		on(w, func() {
			s.c = Dial(w, addr, DialOptions{}, s)
			s.c.StartTLSClient(ca.client())
			w.Schedule(&timer, time.Duration(i%5)*time.Millisecond)
		})
		if err := s.wait(t); err != nil {
			t.Fatal(err)
		}
	}
	for left := 1; left > 0; {
		on(w, func() { left = handshakes(w) + Count(w) })
	}
}

func TestRenegotiationAndDoubleTLSAreRefused(t *testing.T) {
	ca := newAuthority(t)
	w := worker(t)
	addr := listen(t, w, tlsEcho(ca.server(t)))
	s := newScript()
	on(w, func() {
		s.c = Dial(w, addr, DialOptions{}, s)
		cfg := ca.client()
		cfg.Renegotiation = tls.RenegotiateFreelyAsClient
		s.c.StartTLSClient(cfg)
	})
	if err := s.wait(t); err == nil {
		t.Error("renegotiation is allowed")
	}
	s = newScript()
	on(w, func() {
		s.c = Dial(w, addr, DialOptions{}, s)
		s.c.StartTLSClient(ca.client())
		s.c.StartTLSClient(ca.client())
	})
	if err := s.wait(t); err == nil {
		t.Error("TLS in TLS is allowed")
	}
}

// TestFailedHandshakeEndsWithTheAlert: the server half-closes right behind
// the alert, so the client need not wait for a timeout.
func TestFailedHandshakeEndsWithTheAlert(t *testing.T) {
	ca := newAuthority(t)
	w := worker(t)
	s := newScript()
	addr := listen(t, w, func(c *Conn) { s.c = c; c.StartTLSServer(ca.server(t)); c.Start(s) })
	raw := dialNet(t, addr)
	_, _ = raw.Write(clientHelloBytes(t, &tls.Config{ServerName: "x", NextProtos: []string{"unknown"}}))
	p, err := io.ReadAll(raw)
	if err != nil || len(p) < 7 || p[0] != 21 {
		t.Fatalf("got %x, %v, want an alert and the end", p, err)
	}
	raw.Close()
	if err := s.wait(t); err == nil {
		t.Fatal("closed without an error")
	}
}
