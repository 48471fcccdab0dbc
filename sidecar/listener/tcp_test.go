package listener

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/route"
)

// tcp is a listener that proxies TCP to the engine's cluster. Nothing is spliced, and whatever comes is taken, so that the
// proxy, and not a kernel, has what a side does not read.
func (e *engine) tcp() (*workerListener, string) {
	e.t.Helper()
	e.cluster.BufferLimit = 64 << 20
	e.clusters.Set(e.cluster)
	e.server.origin = func(c *conn.Conn) (netip.AddrPort, error) {
		c.SetNoSplice()
		return netip.AddrPort{}, errors.New("not redirected")
	}
	cfg := &Config{Name: "t", StatPrefix: "t", Hash: 1, Bind: true, BufferLimit: 64 << 20, OriginalDst: true, Addresses: []conn.Address{conn.TCP(netip.MustParseAddrPort("127.0.0.1:0"))},
		Default: &Chain{Name: "c", Key: "c", TCP: &TCPProxy{StatPrefix: "t", Stats: e.metrics.Set("tcp", "t", TCPStats), Idle: time.Hour, TotalWeight: 1,
			Clusters: []route.WeightedCluster{{Cluster: route.ClusterRef{Name: "backend", Ref: e.clusters.Ref("backend")}, Weight: 1}}}}}
	if err := e.server.Apply(cfg); err != nil {
		e.t.Fatal(err)
	}
	return e.server.active["t"].locals[0], e.server.AddrOf("t").String()
}

// on runs f on the worker and waits for it.
func (e *engine) on(f func()) {
	done := make(chan struct{})
	e.worker.Post(func() { f(); close(done) })
	<-done
}

// until asks the worker until the answer is yes.
func (e *engine) until(what string, yes func() bool) {
	e.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); runtime.Gosched() {
		var ok bool
		if e.on(func() { ok = yes() }); ok {
			return
		}
	}
	e.t.Fatalf("not in time: %s", what)
}

// listenTCP hands the connections of a port to the test.
func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serveTCP has a server do the same with each of its connections, which it then closes.
func serveTCP(t testing.TB, handle func(net.Conn)) (addr string) {
	t.Helper()
	l := listenTCP(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l.Addr().String()
}

func dialTCP(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // a hang becomes a message
	return c.(*net.TCPConn)
}

func acceptTCP(t testing.TB, l net.Listener) *net.TCPConn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// much is more than the kernel's buffers take.
var much = bytes.Repeat([]byte("0123456789abcdef"), 1<<20)

// TestAClientThatPausesGetsAllOfIt: what the proxy has for it when both sides have ended their sending is not given up
// before the idle timeout.
func TestAClientThatPausesGetsAllOfIt(t *testing.T) {
	backend := listenTCP(t)
	e := newEngine(t).to(backend.Addr().String())
	l, addr := e.tcp()
	c := dialTCP(t, addr)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b := acceptTCP(t, backend)
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the client's end of sending: %v", err)
	}
	if _, err := b.Write(much); err != nil {
		t.Fatal(err)
	}
	b.Close()
	e.until("both sides have ended their sending", func() bool { s := l.open[0].tcp; return s.kEOF && s.upEOF })
	e.on(func() {
		if c := l.open[0].conn; c.Closing() || c.Unsent() == 0 {
			t.Errorf("%d bytes wait for the client; its connection is being given up: %t", c.Unsent(), c.Closing())
		}
	})
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, much) {
		t.Errorf("%d of %d bytes, %v", len(got), len(much), err)
	}
	e.until("no connection is left", func() bool { return len(l.open) == 0 && conn.Count(e.worker) == 0 })
}

// TestAServerThatPausesGetsAllOfIt: though the client is gone.
func TestAServerThatPausesGetsAllOfIt(t *testing.T) {
	backend := listenTCP(t)
	e := newEngine(t).to(backend.Addr().String())
	l, addr := e.tcp()
	c := dialTCP(t, addr)
	if _, err := c.Write(much); err != nil {
		t.Fatal(err)
	}
	c.Close()
	b := acceptTCP(t, backend)
	e.until("the client has ended its sending", func() bool { return l.open[0].tcp.kEOF })
	if _, err := io.WriteString(b, "anybody there?"); err != nil {
		t.Fatal(err)
	}
	e.until("the proxy knows that nobody is there", func() bool { return len(l.open) == 0 })
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, much) {
		t.Errorf("%d of %d bytes, %v", len(got), len(much), err)
	}
	b.Close()
	e.until("no connection is left", func() bool { return conn.Count(e.worker) == 0 })
}

// TestASlowReaderIsNotIdle: the idle timeout is of what is received and of what is sent.
func TestASlowReaderIsNotIdle(t *testing.T) {
	backend := listenTCP(t)
	e := newEngine(t).to(backend.Addr().String())
	l, addr := e.tcp()
	c := dialTCP(t, addr)
	if _, err := io.WriteString(acceptTCP(t, backend), "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	e.on(func() {
		s := l.open[0].tcp
		s.active = s.active.Add(-2 * s.proxy.Idle) // nothing was received for so long
		if s.idleTimeout(); s.ended || !s.idle.Scheduled() {
			t.Error("bytes went to the client, and the session was idle")
		}
		if s.idleTimeout(); !s.ended {
			t.Error("no byte went anywhere, and the session was not idle")
		}
	})
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
}
