package conn

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/loop"
)

// relay passes what one connection gets on to the other, as the TCP proxy does.
type relay struct {
	c, other *Conn
	spliced  *atomic.Int64 // bursts
	moved    *atomic.Int64
	paused   bool
}

func (r *relay) Connected() {}
func (r *relay) Data(p []byte) int {
	if len(p) == ReadSize && r.c.CanSplice(r.other) {
		r.other.WriteThrough(p)
		if r.c.CanSplice(r.other) && r.c.SpliceTo(r.other, func() { r.moved.Add(1) }) {
			r.spliced.Add(1)
		}
		return len(p)
	}
	r.other.Write(p)
	if r.other.Full() && !r.paused {
		r.paused = true
		r.c.PauseRead()
	}
	return len(p)
}
func (r *relay) EOF() { r.other.CloseWrite() }
func (r *relay) Drained() {
	if o := r.other.Handler().(*relay); o.paused {
		o.paused = false
		r.other.ResumeRead()
	}
}
func (r *relay) Closed(error) { r.other.CloseAfterFlush(0) }

// relayed starts a relay to a listener of package net and returns both of its sides, and how often it spliced.
func relayed(t *testing.T, w *loop.Worker) (client, server *net.TCPConn, spliced *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	spliced = new(atomic.Int64)
	moved := new(atomic.Int64)
	to := mustAddr(t, l.Addr().String())
	addr := listen(t, w, func(c *Conn) {
		c.PauseRead() // until the other side is there
		a := &relay{c: c, spliced: spliced, moved: moved}
		c.Start(a)
		s := newScript()
		a.other = Dial(w, to, DialOptions{}, s)
		s.connected = func() {
			a.other.SetHandler(&relay{c: a.other, other: c, spliced: spliced, moved: moved})
			c.ResumeRead()
		}
	})
	client = dialNet(t, addr).(*net.TCPConn)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return client, conn.(*net.TCPConn), spliced
}

func mustAddr(t *testing.T, s string) Address {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", s)
	if err != nil {
		t.Fatal(err)
	}
	return TCP(a.AddrPort())
}

// stream writes n bytes that only this seed makes, in pieces of many sizes, and returns their hash.
func stream(w io.Writer, seed uint64, n int) ([32]byte, error) {
	r := rand.New(rand.NewPCG(seed, 1))
	block := make([]byte, 600<<10)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(block) // never fails
	h := sha256.New()
	for n > 0 {
		at := r.IntN(len(block) / 2)
		p := block[at:][:min(n, 1+r.IntN(len(block)/2))]
		h.Write(p)
		if _, err := w.Write(p); err != nil {
			return [32]byte{}, err
		}
		n -= len(p)
	}
	return [32]byte(h.Sum(nil)), nil
}

func TestSplicedBothWaysWithHalfCloses(t *testing.T) {
	w := worker(t)
	client, server, spliced := relayed(t, w)
	type result struct {
		sum [32]byte
		err error
	}
	const size = 24 << 20
	sent, got := make(chan result, 2), make(chan result, 2)
	for i, c := range []*net.TCPConn{client, server} {
		go func() {
			sum, err := stream(c, uint64(i), size)
			sent <- result{sum, errors.Join(err, c.CloseWrite())}
		}()
		go func() {
			h := sha256.New()
			_, err := io.Copy(h, c)
			got <- result{[32]byte(h.Sum(nil)), err}
		}()
	}
	sums := map[[32]byte]int{}
	for range 2 {
		for sign, ch := range map[int]chan result{1: sent, -1: got} {
			r := <-ch
			if r.err != nil {
				t.Fatal(r.err)
			}
			sums[r.sum] += sign
		}
	}
	for s, n := range sums {
		if n != 0 {
			t.Errorf("the bytes of hash %x were changed on their way", s[:4])
		}
	}
	if spliced.Load() == 0 {
		t.Error("nothing was spliced")
	}
	within(t, w, "the connections are gone, and their pipes are empty", func(e *engine) bool { return e.count == 0 && len(e.pipes) > 0 })
}

// within waits until it holds on the worker.
func within(t *testing.T, w *loop.Worker, what string, holds func(*engine) bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for ok := false; !ok; {
		on(w, func() { ok = holds(engineOf(w)) })
		if time.Now().After(deadline) {
			t.Fatalf("not true within 20 s: %s", what)
		}
	}
}

// TestSplicedToASlowReader: the sender is held back, the end reaches the reader
// behind the last byte though the sender is long gone.
func TestSplicedToASlowReader(t *testing.T) {
	w := worker(t)
	client, server, spliced := relayed(t, w)
	sum := make(chan [32]byte, 1)
	go func() {
		s, err := stream(client, 7, 32<<20)
		if err != nil {
			t.Error(err)
		}
		client.Close()
		sum <- s
	}()
	// Nothing is read until the relay is stuck, in a burst or between two: what it holds is bounded.
	within(t, w, "the relay waits for the reader", func(e *engine) bool {
		for c := e.first; c != nil; c = c.next {
			if n := c.pending(); n > 0 && !c.writable {
				return n <= 8*spliceSize
			}
		}
		return false
	})
	h := sha256.New()
	if _, err := io.Copy(h, server); err != nil {
		t.Fatal(err)
	}
	if s := <-sum; !bytes.Equal(h.Sum(nil), s[:]) || spliced.Load() == 0 {
		t.Errorf("other bytes arrived, or none was spliced (%d bursts)", spliced.Load())
	}
	server.Close()
	within(t, w, "the connections are gone", func(e *engine) bool { return e.count == 0 })
}

// TestAReaderThatGoesAwayTakesItsPipe: bytes that were for it reach nobody else.
func TestAReaderThatGoesAwayTakesItsPipe(t *testing.T) {
	w := worker(t)
	before := openFiles(t)
	for i := range 30 {
		client, server, _ := relayed(t, w)
		done := make(chan error, 1)
		go func() {
			_, err := stream(client, uint64(i), 64<<20)
			done <- err
		}()
		if _, err := io.ReadFull(server, make([]byte, 1<<20+i*1000)); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			_ = server.SetLinger(0) // RST
		}
		server.Close()
		if err := <-done; err == nil {
			t.Error("the sender did not learn of it")
		}
		client.Close()
	}
	within(t, w, "the connections are gone", func(e *engine) bool { return e.count == 0 })
	on(w, func() {
		for _, p := range engineOf(w).pipes {
			if n, err := unix.IoctlGetInt(p.r, unix.TIOCINQ); n != 0 || err != nil {
				t.Errorf("a free pipe holds %d bytes, %v", n, err)
			}
		}
	})
	if after := openFiles(t); after > before+2*keepPipes+4 {
		t.Errorf("%d files were open before, %d are now", before, after)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestBurstsAndSmallTalkAlternate: after a burst Data comes again, in order.
func TestBurstsAndSmallTalkAlternate(t *testing.T) {
	w := worker(t)
	client, server, spliced := relayed(t, w)
	for i := range 40 {
		burst := bytes.Repeat([]byte{byte(i)}, 5+i*370130%(2<<20))
		go func() { _, _ = client.Write(burst) }()
		got := make([]byte, len(burst))
		if _, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got, burst) {
			t.Fatalf("burst %d: %v", i, err)
		}
		for c, to := range map[*net.TCPConn]*net.TCPConn{client: server, server: client} {
			if _, err := c.Write([]byte("small")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(to, got[:5]); err != nil || string(got[:5]) != "small" {
				t.Fatalf("after burst %d: %q, %v", i, got[:5], err)
			}
		}
	}
	if spliced.Load() == 0 {
		t.Error("nothing was spliced")
	}
}

// TestSplicingNeedsPlainSockets of the right kind.
func TestSplicingNeedsPlainSockets(t *testing.T) {
	w := worker(t)
	client, server, spliced := relayed(t, w)
	on(w, func() {
		for c := engineOf(w).first; c != nil; c = c.next {
			c.SetNoSplice()
		}
	})
	go func() { _, _ = stream(client, 3, 8<<20); client.Close() }()
	if n, err := io.Copy(io.Discard, server); n != 8<<20 || err != nil || spliced.Load() != 0 {
		t.Errorf("%d bytes, %v, %d bursts", n, err, spliced.Load())
	}
}
