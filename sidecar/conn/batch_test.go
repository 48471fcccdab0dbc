package conn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/ring"
)

// batching is a worker with a ring, whatever the other tests run with; it survives panics, whose number it returns.
func batching(t *testing.T) (*loop.Worker, *ring.Ring, *atomic.Int64) {
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
	var r *ring.Ring
	on(w, func() {
		if r, err = ring.New(); err == nil {
			Batch(w, r)
			engineOf(w).batch.least = 2
		}
	})
	if err != nil {
		t.Skipf("NOT RUN: %v", err)
	}
	return w, r, &panics
}

// whileHeld runs f while the worker does nothing, so that what f does to its sockets is one turn's.
func whileHeld(w *loop.Worker, f func()) {
	began, done := make(chan struct{}), make(chan struct{})
	w.Post(func() {
		close(began)
		<-done
	})
	<-began
	f()
	close(done)
}

// soon waits for ch.
func soon(t *testing.T, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
	}
}

// couple is two connections of a worker that have input in the same turn: the handler that is called first meets the
// other while the batch has its input.
type couple struct {
	w     *loop.Worker
	ends  [2]*script
	peers [2]net.Conn
	first int // that had its input first; -1 until then
	got   [2][]byte
}

// newCouple calls meet on the worker, with the other connection.
func newCouple(t *testing.T, cfg *tls.Config, client *tls.Config, meet func(other *Conn)) *couple {
	t.Helper()
	w, r, _ := batching(t)
	p := &couple{w: w, first: -1}
	accepted := make(chan struct{}, 2)
	n := 0
	addr := listen(t, w, func(c *Conn) {
		i, s := n, newScript()
		n++
		p.ends[i], s.c = s, c
		s.data = func(b []byte) int {
			if p.first < 0 {
				p.first = i
				meet(p.ends[1-i].c)
			}
			p.got[i] = append(p.got[i], b...)
			return len(b)
		}
		s.connected = func() { accepted <- struct{}{} }
		if cfg != nil {
			c.StartTLSServer(cfg)
		}
		c.Start(s)
	})
	for i := range p.peers {
		raw := dialNet(t, addr)
		if p.peers[i] = raw; client != nil {
			secured := tls.Client(raw, client)
			if err := secured.Handshake(); err != nil {
				t.Fatal(err)
			}
			p.peers[i] = secured
		}
		<-accepted
	}
	_, before := r.Calls()
	whileHeld(w, func() {
		for i, c := range p.peers {
			if _, err := fmt.Fprintf(c, "input of %d", i); err != nil {
				t.Fatal(err)
			}
		}
	})
	on(w, func() {})
	if _, after := r.Calls(); after != before+2 {
		t.Fatalf("%d calls by the ring, want 2", after-before)
	}
	return p
}

// second is what the connection has got that was not first.
func (p *couple) second() (got string) {
	on(p.w, func() { got = string(p.got[1-p.first]) })
	return got
}

func (p *couple) want() string { return fmt.Sprintf("input of %d", 1-p.first) }

// TestInputThatIsNotWantedAfterAll was read when another connection's handler made something else of its connection.
func TestInputThatIsNotWantedAfterAll(t *testing.T) {
	ca := newAuthority(t)
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		var cfg, client *tls.Config
		if secure {
			cfg, client = ca.server(t), ca.client()
		}
		t.Run(name+"/untouched", func(t *testing.T) {
			p := newCouple(t, cfg, client, func(*Conn) {})
			if got := p.second(); got != p.want() {
				t.Errorf("got %q", got)
			}
		})
		t.Run(name+"/paused", func(t *testing.T) {
			p := newCouple(t, cfg, client, (*Conn).PauseRead)
			if got := p.second(); got != "" {
				t.Errorf("got %q during the pause", got)
			}
			if _, err := io.WriteString(p.peers[1-p.first], " and more"); err != nil {
				t.Fatal(err)
			}
			on(p.w, func() { p.ends[1-p.first].c.ResumeRead() })
			p.peers[1-p.first].(interface{ CloseWrite() error }).CloseWrite()
			ended := make(chan struct{})
			on(p.w, func() {
				if s := p.ends[1-p.first]; s.c.eof {
					close(ended)
				} else {
					s.eof = func() { close(ended) }
				}
			})
			soon(t, ended)
			if got := p.second(); got != p.want()+" and more" {
				t.Errorf("got %q", got)
			}
		})
		for how, end := range map[string]func(*Conn){"closed": (*Conn).Close, "reset": (*Conn).Reset, "ended": func(c *Conn) { c.CloseAfterFlush(0) }} {
			t.Run(name+"/"+how, func(t *testing.T) {
				p := newCouple(t, cfg, client, end)
				p.peers[1-p.first].Close()
				if err := p.ends[1-p.first].wait(t); err != nil {
					t.Errorf("closed with %v", err)
				}
				if got := p.second(); got != "" {
					t.Errorf("got %q", got)
				}
			})
		}
		t.Run(name+"/another handler", func(t *testing.T) {
			other := newScript()
			var got []byte
			other.data = func(b []byte) int { got = append(got, b...); return len(b) }
			p := newCouple(t, cfg, client, func(c *Conn) { c.SetHandler(other) })
			on(p.w, func() {
				if string(got) != p.want() {
					t.Errorf("it has got %q", got)
				}
			})
			if got := p.second(); got != "" {
				t.Errorf("the handler before has got %q", got)
			}
		})
	}
	t.Run("plain/no splice", func(t *testing.T) {
		could := true
		newCouple(t, nil, nil, func(c *Conn) { could = c.CanSplice(c) })
		if could {
			t.Error("CanSplice while input is with the batch")
		}
	})
	t.Run("plain/TLS began", func(t *testing.T) {
		// Its input is no ClientHello, and TLS says so.
		p := newCouple(t, nil, nil, func(c *Conn) { c.StartTLSServer(ca.server(t)) })
		if err := p.ends[1-p.first].wait(t); err == nil || !strings.Contains(err.Error(), "TLS handshake") {
			t.Errorf("closed with %v", err)
		}
	})
}

// TestResultsThatNobodyTook are those of reads whose connection was paused meanwhile.
func TestResultsThatNobodyTook(t *testing.T) {
	for _, c := range []struct {
		name   string
		result int32
		eof    bool
		err    error
	}{
		{"nothing", -int32(unix.EAGAIN), false, nil},
		{"not made", -int32(unix.EINTR), false, nil},
		{"the end", 0, true, nil},
		{"an error", -int32(unix.ECONNRESET), false, unix.ECONNRESET},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, _, _ := batching(t)
			s := newScript()
			ended := make(chan struct{}, 1)
			got := make(chan string, 1)
			s.data = func(p []byte) int { got <- string(p); return len(p) }
			s.eof = func() { ended <- struct{}{} }
			accepted := make(chan struct{})
			addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s); close(accepted) })
			peer := dialNet(t, addr)
			<-accepted
			on(w, func() {
				s.c.PauseRead()
				b := s.c.e.batch
				b.slots = make([]byte, ring.Size*fetchSize)
				b.reading = append(b.reading, reading{c: s.c, result: c.result})
				s.c.fetched = 1
				b.Settle()
				if s.c.fetched != 0 || len(b.reading) != 0 {
					t.Error("not settled")
				}
				s.c.ResumeRead()
			})
			switch {
			case c.err != nil:
				if err := s.wait(t); !errors.Is(err, c.err) {
					t.Errorf("closed with %v, want %v", err, c.err)
				}
			case c.eof:
				soon(t, ended)
			default:
				if _, err := io.WriteString(peer, "later"); err != nil {
					t.Fatal(err)
				}
				if text := <-got; text != "later" {
					t.Errorf("got %q", text)
				}
			}
		})
	}
}

// TestManyWriteInOneTurn: more than a ring has places for, of all sizes, plain and TLS, some whose peers do not read.
func TestManyWriteInOneTurn(t *testing.T) {
	ca := newAuthority(t)
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "TLS"}[secure], func(t *testing.T) {
			w, r, _ := batching(t)
			cfg := ca.server(t)
			addr := listen(t, w, func(c *Conn) {
				if secure {
					c.StartTLSServer(cfg)
				}
				startEcho(c)
			})
			const n = ring.Size + 20
			peers := make([]net.Conn, n)
			for i := range peers {
				peers[i] = dialNet(t, addr)
				if secure {
					peers[i] = tls.Client(peers[i], ca.client())
				}
				talk(t, peers[i], []byte("hello"))
			}
			before, _ := r.Calls()
			for range 20 {
				texts := make([][]byte, n)
				whileHeld(w, func() {
					for i, c := range peers {
						texts[i] = pattern([]int{1, 100, 5000, 16 << 10, 16<<10 + 1, 40 << 10}[rand.IntN(6)])
						if _, err := c.Write(texts[i]); err != nil {
							t.Fatal(err)
						}
					}
				})
				for i, c := range peers {
					got := make([]byte, len(texts[i]))
					if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, texts[i]) {
						t.Fatalf("connection %d, %d bytes: %v, or not what was sent", i, len(got), err)
					}
				}
			}
			if after, _ := r.Calls(); after == before {
				t.Error("the ring was not used")
			}
		})
	}
}

func talk(t *testing.T, c net.Conn, text []byte) {
	t.Helper()
	if _, err := c.Write(text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, text) {
		t.Fatalf("%v, %q", err, got)
	}
}

// holding keeps what is written while it is armed.
type holding struct {
	net.Conn
	armed bool
	kept  []byte
}

func (h *holding) Write(p []byte) (int, error) {
	if h.armed {
		h.kept = append(h.kept, p...)
		return len(p), nil
	}
	return h.Conn.Write(p)
}

// TestRecordsInPiecesInABatch: what was read before of a record stands before what the batch reads.
func TestRecordsInPiecesInABatch(t *testing.T) {
	ca := newAuthority(t)
	w, r, _ := batching(t)
	cfg := ca.server(t)
	addr := listen(t, w, func(c *Conn) {
		c.StartTLSServer(cfg)
		startEcho(c)
	})
	const n = 4
	wires, peers := make([]*holding, n), make([]*tls.Conn, n)
	for i := range peers {
		wires[i] = &holding{Conn: dialNet(t, addr)}
		peers[i] = tls.Client(wires[i], ca.client())
		talk(t, peers[i], []byte("hello"))
	}
	text := pattern(3000)
	for i, c := range peers {
		wires[i].armed = true
		if _, err := c.Write(text); err != nil {
			t.Fatal(err)
		}
		wires[i].armed = false
	}
	_, before := r.Calls()
	for part := range 3 {
		whileHeld(w, func() {
			for _, c := range wires {
				third := len(c.kept) / (3 - part)
				if _, err := c.Write(c.kept[:third]); err != nil {
					t.Fatal(err)
				}
				c.kept = c.kept[third:]
			}
		})
		on(w, func() {})
	}
	for i, c := range peers {
		got := make([]byte, len(text))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, text) {
			t.Errorf("connection %d: %v, or not what was sent", i, err)
		}
	}
	if _, after := r.Calls(); after < before+3*n {
		t.Errorf("%d calls by the ring, want %d and more", after-before, 3*n)
	}
}

// TestSlowReadersInABatch: sockets that take a part, or nothing, are gone on with as they take more.
func TestSlowReadersInABatch(t *testing.T) {
	ca := newAuthority(t)
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "TLS"}[secure], func(t *testing.T) {
			w, _, _ := batching(t)
			cfg := ca.server(t)
			var all []*Conn
			accepted := make(chan struct{}, 4)
			addr := listen(t, w, func(c *Conn) {
				if secure {
					c.StartTLSServer(cfg)
				}
				c.Start(newScript())
				all = append(all, c)
				accepted <- struct{}{}
			})
			const n, rounds = 4, 600
			piece := pattern(15000)
			peers := make([]net.Conn, n)
			for i := range peers {
				if peers[i] = dialNet(t, addr); secure {
					secured := tls.Client(peers[i], ca.client())
					if err := secured.Handshake(); err != nil {
						t.Fatal(err)
					}
					peers[i] = secured
				}
			}
			for range n {
				<-accepted
			}
			for range rounds {
				on(w, func() {
					for _, c := range all {
						c.Write(piece)
					}
				})
			}
			full := 0
			on(w, func() {
				for _, c := range all {
					if c.Unsent() > 0 {
						full++
					}
					c.CloseWrite()
				}
			})
			if full != n {
				t.Errorf("%d of %d sockets are full", full, n)
			}
			for i, c := range peers {
				got, err := io.ReadAll(c)
				if err != nil || !bytes.Equal(got, bytes.Repeat(piece, rounds)) {
					t.Errorf("connection %d: %d bytes, %v, or not those that were sent", i, len(got), err)
				}
			}
		})
	}
}

// TestAPanicAmongManyWrites: one handler's panic at the end of a turn is no other's.
func TestAPanicAmongManyWrites(t *testing.T) {
	w, _, panics := batching(t)
	var all []*script
	accepted := make(chan struct{}, 5)
	addr := listen(t, w, func(c *Conn) {
		s := newScript()
		s.c = c
		c.SetLimit(1)
		c.Start(s)
		all = append(all, s)
		accepted <- struct{}{}
	})
	peers := make([]net.Conn, 5)
	for i := range peers {
		peers[i] = dialNet(t, addr)
	}
	for range peers {
		<-accepted
	}
	on(w, func() {
		for _, s := range all {
			s.c.Write([]byte("hello"))
			if !s.c.Full() {
				t.Error("not full")
			}
		}
		all[1].drained = func() { panic("bad handler") }
		all[0].drained = func() { all[3].c.Close(); all[4].c.Write([]byte(" again")) }
	})
	on(w, func() {
		for i, s := range all {
			if closed := s.c.closed; closed != (i == 1 || i == 3) {
				t.Errorf("connection %d: closed %v", i, closed)
			}
		}
	})
	if n := panics.Load(); n != 1 {
		t.Errorf("%d panics", n)
	}
	want := map[string]string{}
	on(w, func() {
		for i, s := range all {
			s.c.CloseWrite()
			want[s.c.RemoteAddr().String()] = []string{"hello", "", "hello", "hello", "hello again"}[i]
		}
	})
	for _, c := range peers {
		if got, _ := io.ReadAll(c); want[c.LocalAddr().String()] != "" && string(got) != want[c.LocalAddr().String()] {
			t.Errorf("got %q, want %q", got, want[c.LocalAddr().String()])
		}
	}
}

// TestARingThatBreaks has the worker go on with a system call for each.
func TestARingThatBreaks(t *testing.T) {
	w, r, _ := batching(t)
	addr := listen(t, w, startEcho)
	peers := make([]net.Conn, 8)
	for i := range peers {
		peers[i] = dialNet(t, addr)
	}
	round := func() {
		whileHeld(w, func() {
			for _, c := range peers {
				if _, err := io.WriteString(c, "hello"); err != nil {
					t.Fatal(err)
				}
			}
		})
		for i, c := range peers {
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Fatalf("connection %d: %v, %q", i, err, got)
			}
		}
	}
	round()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, fd := range ringsOf(t) {
		if err := unix.Dup3(int(null.Fd()), fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		round()
	}
	if !r.Broken() {
		t.Error("the ring is not broken")
	}
}

// ringsOf are the descriptors of the process that are rings: there is one at a time in these tests.
func ringsOf(t *testing.T) (fds []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if to, err := os.Readlink(path); err == nil && strings.Contains(to, "io_uring") {
			fd, err := strconv.Atoi(filepath.Base(path))
			if err != nil {
				t.Fatal(err)
			}
			fds = append(fds, fd)
		}
	}
	return fds
}

// TestAWorkerThatStopsLeavesNoRing behind.
func TestAWorkerThatStopsLeavesNoRing(t *testing.T) {
	t.Run("worker", func(t *testing.T) {
		w, _, _ := batching(t)
		addr := listen(t, w, startEcho)
		talk(t, dialNet(t, addr), []byte("hello"))
		if n := len(ringsOf(t)); n != 1 {
			t.Errorf("%d rings of a worker", n)
		}
	})
	if n := len(ringsOf(t)); n != 0 {
		t.Errorf("%d rings after it", n)
	}
}
