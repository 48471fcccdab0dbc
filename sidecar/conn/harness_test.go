package conn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/ring/ringtest"
)

// worker runs a Worker for one test.
func worker(t testing.TB) *loop.Worker {
	t.Helper()
	w, err := loop.New(1)
	if err != nil {
		t.Fatal(err)
	}
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
	return w
}

// on runs f on the worker and waits for it.
func on(w *loop.Worker, f func()) {
	done := make(chan struct{})
	w.Post(func() {
		defer close(done)
		f()
	})
	<-done
}

var loopback = TCP(netip.MustParseAddrPort("127.0.0.1:0"))

// listen accepts on a free port.
func listen(t testing.TB, w *loop.Worker, accept func(*Conn)) Address {
	t.Helper()
	var l *Listener
	var err error
	on(w, func() { l, err = Listen(w, loopback, ListenOptions{}, accept) })
	if err != nil {
		t.Fatal(err)
	}
	return l.Addr()
}

// script is a Handler made of functions; those that are nil do nothing.
type script struct {
	c         *Conn
	connected func()
	data      func(p []byte) int
	eof       func()
	drained   func()
	closed    func(error)

	mu       sync.Mutex
	done     chan struct{} // closed by Closed, where made
	err      error
	ended    bool
	problems []string
}

func newScript() *script { return &script{done: make(chan struct{})} }

func (s *script) check(what string) {
	if s.ended {
		s.mu.Lock()
		s.problems = append(s.problems, what+" after Closed")
		s.mu.Unlock()
	}
}

func (s *script) Connected() {
	s.check("Connected")
	if s.connected != nil {
		s.connected()
	}
}

func (s *script) Data(p []byte) int {
	s.check("Data")
	if s.data != nil {
		return s.data(p)
	}
	return len(p)
}

func (s *script) EOF() {
	s.check("EOF")
	if s.eof != nil {
		s.eof()
	}
}

func (s *script) Drained() {
	s.check("Drained")
	if s.drained != nil {
		s.drained()
	}
}

func (s *script) Closed(err error) {
	s.check("Closed")
	s.ended, s.err = true, err
	if s.closed != nil {
		s.closed(err)
	}
	if s.done != nil {
		close(s.done)
	}
}

// wait waits for Closed and returns its error.
func (s *script) wait(t testing.TB) error {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(20 * time.Second):
		t.Fatal("the connection was not closed")
	}
	for _, p := range s.problems {
		t.Error(p)
	}
	return s.err
}

// echo answers with what it gets, with back-pressure, and closes after EOF.
type echo struct {
	c      *Conn
	paused bool
}

func (e *echo) Connected() {}
func (e *echo) Data(p []byte) int {
	e.c.Write(p)
	if e.c.Full() && !e.paused {
		e.paused = true
		e.c.PauseRead()
	}
	return len(p)
}
func (e *echo) EOF() { e.c.CloseWrite() }
func (e *echo) Drained() {
	if e.paused {
		e.paused = false
		e.c.ResumeRead()
	}
}
func (e *echo) Closed(error) {}

func startEcho(c *Conn) { c.Start(&echo{c: c}) }

// dialNet is the other side, by package net.
func dialNet(t testing.TB, a Address) net.Conn {
	t.Helper()
	network, address := "tcp", a.IP.String()
	if a.IsUnix() {
		network, address = "unix", a.Path
	}
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	// No test takes as long; a hang becomes a message.
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// authority is a CA that a test trusts.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{key: newKey(t), pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) server(t testing.TB) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{a.issue(t, "server.test")}, NextProtos: []string{"echo"},
		ClientCAs: a.pool, DynamicRecordSizingDisabled: true,
	}
}

func (a *authority) client() *tls.Config {
	return &tls.Config{RootCAs: a.pool, ServerName: "server.test", NextProtos: []string{"echo"}, DynamicRecordSizingDisabled: true}
}

// bothInputs runs f with crypto/tls's input buffer lent and not lent.
func bothInputs(t *testing.T, f func(t *testing.T)) {
	t.Run("input lent to crypto/tls", func(t *testing.T) {
		if rawInput == 0 {
			t.Fatal("crypto/tls's Conn has no field rawInput of type bytes.Buffer any more: see secure.raw")
		}
		f(t)
	})
	t.Run("input read by crypto/tls", func(t *testing.T) {
		lendInput = false
		t.Cleanup(func() { lendInput = true }) // after the worker, which f starts, has stopped
		f(t)
	})
}
