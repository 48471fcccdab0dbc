package conn

import (
	"crypto/tls"
	"testing"
	"time"

	"sallyport/sidecar/loop"
)

// pingPong has a client and an echo server on one worker, stepped by hand:
// what is measured is reading, TLS, writing and the loop itself.
type pingPong struct {
	w      *loop.Worker
	c      *Conn
	ping   []byte
	got    int
	rounds int
	ready  bool
}

func (p *pingPong) Connected() { p.ready = true }
func (p *pingPong) Data(b []byte) int {
	if p.got += len(b); p.got == len(p.ping) {
		p.got = 0
		p.rounds++
	}
	return len(b)
}
func (p *pingPong) EOF()         {}
func (p *pingPong) Drained()     {}
func (p *pingPong) Closed(error) { p.rounds = -1 }

func newPingPong(t testing.TB, size int, server, client *tls.Config) *pingPong {
	w, err := loop.New(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	l, err := Listen(w, loopback, ListenOptions{}, func(c *Conn) {
		if server != nil {
			c.StartTLSServer(server)
		}
		startEcho(c)
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &pingPong{w: w, ping: pattern(size)}
	p.c = Dial(w, l.Addr(), DialOptions{}, p)
	if client != nil {
		p.c.StartTLSClient(client)
	}
	for !p.ready {
		w.Step(time.Second)
		if p.rounds < 0 {
			t.Fatal(p.c.err)
		}
	}
	for range 200 { // buffers and lists grow to their size
		p.round(t)
	}
	return p
}

func (p *pingPong) round(t testing.TB) {
	p.c.Write(p.ping)
	for n := p.rounds; p.rounds == n; {
		p.w.Step(time.Second)
	}
	if p.rounds < 0 {
		t.Fatal("closed: ", p.c.err)
	}
}

func tlsConfigs(t testing.TB) (server, client *tls.Config) {
	ca := newAuthority(t)
	return ca.server(t), ca.client()
}

// TestSteadyStateAllocatesNothing is the engine's promise, with and without TLS.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	server, client := tlsConfigs(t)
	for _, tc := range []struct {
		name           string
		size           int
		server, client *tls.Config
	}{
		{"plain, small", 200, nil, nil},
		{"plain, large", 200 << 10, nil, nil},
		{"TLS, small", 200, server, client},
		{"TLS, large", 200 << 10, server, client},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPingPong(t, tc.size, tc.server, tc.client)
			// Not zero to the digit: a garbage collection empties crypto/tls's sync.Pool.
			if n := testing.AllocsPerRun(500, func() { p.round(t) }); n > 0.5 && !raceDetector {
				t.Errorf("%.2f allocations per round", n)
			}
			for c := p.c.e.first; c != nil; c = c.next {
				if c.out.Len()+c.kept.Len() != 0 || c.sec != nil && (c.sec.out.Len()+c.sec.rest.Len() != 0 || c.sec.raw.Cap() != 0) {
					t.Error("a connection holds memory between rounds")
				}
			}
		})
	}
}

func benchmarkEcho(b *testing.B, size int, server, client *tls.Config) {
	p := newPingPong(b, size, server, client)
	b.SetBytes(int64(2 * size))
	b.ReportAllocs()
	for b.Loop() {
		p.round(b)
	}
}

func BenchmarkEcho(b *testing.B) {
	server, client := tlsConfigs(b)
	b.Run("plain/200B", func(b *testing.B) { benchmarkEcho(b, 200, nil, nil) })
	b.Run("plain/256KiB", func(b *testing.B) { benchmarkEcho(b, 256<<10, nil, nil) })
	b.Run("TLS/200B", func(b *testing.B) { benchmarkEcho(b, 200, server, client) })
	b.Run("TLS/256KiB", func(b *testing.B) { benchmarkEcho(b, 256<<10, server, client) })
	lendInput = false
	defer func() { lendInput = true }()
	b.Run("TLS-unlent/200B", func(b *testing.B) { benchmarkEcho(b, 200, server, client) })
	b.Run("TLS-unlent/256KiB", func(b *testing.B) { benchmarkEcho(b, 256<<10, server, client) })
}

// BenchmarkHandshake is a connection from connect to close, both sides here.
func BenchmarkHandshake(b *testing.B) {
	server, client := tlsConfigs(b)
	w := worker(b)
	addr := listen(b, w, tlsEcho(server))
	b.ReportAllocs()
	for b.Loop() {
		s := newScript()
		s.connected = func() { s.c.CloseWrite() }
		w.Post(func() {
			s.c = Dial(w, addr, DialOptions{}, s)
			s.c.StartTLSClient(client)
		})
		if err := s.wait(b); err != nil {
			b.Fatal(err)
		}
	}
}
