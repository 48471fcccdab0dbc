package listener

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"runtime"
	"testing"
	"time"

	"sallyport/sidecar/upstream"
)

// wire is a client and a backend that allocate nothing themselves, so that
// what is counted is the proxy's.
type wire struct {
	conn     net.Conn
	request  []byte
	response []byte
}

const rawRequest = "GET /bench HTTP/1.1\r\nHost: bench.local\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n"

// rawBackend answers every read of a whole request with one response.
func rawBackend(t testing.TB) string {
	t.Helper()
	answer := []byte("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello")
	return serveTCP(t, func(c net.Conn) {
		buf := make([]byte, 4096)
		for have := 0; ; {
			n, err := c.Read(buf[have:])
			if err != nil {
				return
			}
			if have += n; bytes.HasSuffix(buf[:have], []byte("\r\n\r\n")) {
				have = 0
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		}
	})
}

func dialWire(t testing.TB, addr string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &wire{conn: c, request: []byte(rawRequest), response: make([]byte, 4096)}
}

func (w *wire) ask(t testing.TB) {
	if _, err := w.conn.Write(w.request); err != nil {
		t.Fatal(err)
	}
	for have := 0; !bytes.HasSuffix(w.response[:have], []byte("hello")); {
		n, err := w.conn.Read(w.response[have:])
		if err != nil {
			t.Fatal(err)
		}
		have += n
	}
}

// allocations per request, after a warm-up, of the whole process.
func allocations(t testing.TB, addr string) float64 {
	w := dialWire(t, addr)
	for range 500 {
		w.ask(t)
	}
	const n = 3000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		w.ask(t)
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / n
}

// testTLS is both sides of a connection under one certificate.
type testTLS struct{ cfg *tls.Config }

func (c testTLS) ServerConfig() (*tls.Config, error)       { return c.cfg, nil }
func (c testTLS) ClientConfig(string) (*tls.Config, error) { return c.cfg, nil }

func selfSigned(t testing.TB) testTLS {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"test"},
		IsCA: true, BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return testTLS{&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: pool, ClientCAs: pool, ServerName: "test",
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, DynamicRecordSizingDisabled: true}}
}

// pair is two engines with HTTP/2 under mutual TLS between them, as two sidecars.
func pair(t testing.TB, backend string) string {
	t.Helper()
	secret := selfSigned(t)
	in := newEngine(t).to(backend)
	in.tls = secret
	out := newEngine(t).to(in.serve())
	out.cluster.Protocol = upstream.HTTP2
	out.cluster.TLS = secret
	return out.serve()
}

func TestAPlainRequestAllocatesNothing(t *testing.T) {
	skipUnderRace(t)
	if n := allocations(t, newEngine(t).to(rawBackend(t)).serve()); n > 0.05 {
		t.Errorf("%.2f allocations per request", n)
	}
}

func TestARequestThroughTwoSidecarsAllocatesNothing(t *testing.T) {
	skipUnderRace(t)
	if n := allocations(t, pair(t, rawBackend(t))); n > 0.05 {
		t.Errorf("%.2f allocations per request", n)
	}
}

func BenchmarkOneProxy(b *testing.B) {
	w := dialWire(b, newEngine(b).to(rawBackend(b)).serve())
	b.ReportAllocs()
	for b.Loop() {
		w.ask(b)
	}
}

func BenchmarkTwoSidecars(b *testing.B) {
	w := dialWire(b, pair(b, rawBackend(b)))
	b.ReportAllocs()
	for b.Loop() {
		w.ask(b)
	}
}
