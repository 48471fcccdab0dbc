package conn

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/loop"
)

// held is the memory that a connection holds. On the worker.
func held(c *Conn) int {
	n := c.out.Cap() + c.kept.Cap()
	if c.sec != nil {
		n += c.sec.rest.Cap() + c.sec.out.Cap()
	}
	return n
}

// mostHeld is the bound of held: what a connection with that limit may hold, whatever its peer does, under a handler
// that takes nothing, or one that writes as much as it was given and pauses when the output is full.
func mostHeld(limit int, secure bool) int {
	read := min(ReadSize, max(2*limit, minRead))
	if secure {
		read = min(secureSize, max(2*limit, minRead))
	}
	// Input that the handler does not take is the limit and one read; so is output that the peer does not take.
	in, out := limit+read, limit+read
	if secure {
		in += read + maxRecord                       // ciphertext of the same read
		out += sealChunk + sealChunk/64 + maxAnswers // ciphertext that was made before the socket was full
	}
	// A buffer grows by doubling, from 4 KiB.
	return 2*(in+out) + 4*4096
}

// high is the most that was held in any turn.
type high struct {
	w     *loop.Worker
	c     *Conn
	most  int
	turns int
	ended bool
}

func (h *high) Turn() {
	if h.turns++; h.c != nil {
		h.most = max(h.most, held(h.c))
	}
	if !h.ended {
		h.w.Again(h)
	}
}

// TestAConnectionHoldsNoMoreThanItsLimitsSay drives the worst cases against the bound: peers that send and do not read,
// or run ahead in the handshake, and handlers that take nothing.
func TestAConnectionHoldsNoMoreThanItsLimitsSay(t *testing.T) {
	ca := newAuthority(t)
	hello := clientHelloBytes(t, ca.client())
	takesNothing := func(c *Conn) Handler {
		s := &script{c: c}
		s.data = func([]byte) int {
			if c.paused == 0 {
				c.PauseRead()
			}
			return 0
		}
		return s
	}
	answers := func(c *Conn) Handler { return &echo{c: c} }
	for name, x := range map[string]struct {
		secure, ahead bool
		handler       func(*Conn) Handler
		stopped       func(*Conn) bool // nothing more is taken from the peer
	}{
		"plain, nothing is taken":   {false, false, takesNothing, func(c *Conn) bool { return c.paused > 0 }},
		"plain, nothing is read":    {false, false, answers, func(c *Conn) bool { return c.paused > 0 && !c.writable }},
		"TLS, nothing is taken":     {true, false, takesNothing, func(c *Conn) bool { return c.paused > 0 }},
		"TLS, nothing is read":      {true, false, answers, func(c *Conn) bool { return c.paused > 0 && !c.writable }},
		"TLS, ahead of a handshake": {true, true, answers, func(c *Conn) bool { return c.Closing() || c.sec != nil && c.sec.stalled }},
	} {
		for _, limit := range []int{1 << 10, 32 << 10, DefaultLimit} {
			t.Run(fmt.Sprintf("%s, limit %d KiB", name, limit>>10), func(t *testing.T) {
				w := worker(t)
				h := &high{w: w}
				addr := listen(t, w, func(c *Conn) {
					// So that the kernel does not hold what we should be asked to.
					_ = unix.SetsockoptInt(c.FD(), unix.SOL_SOCKET, unix.SO_SNDBUF, 16<<10)
					c.SetLimit(limit)
					h.c = c
					if x.secure {
						c.StartTLSServer(ca.server(t))
					}
					c.Start(x.handler(c))
				})
				on(w, h.Turn)
				d := net.Dialer{Control: smallReceiveBuffer}
				raw, err := d.Dial("tcp", addr.IP.String())
				if err != nil {
					t.Fatal(err)
				}
				defer raw.Close()
				var c io.Writer = raw
				if x.secure && !x.ahead {
					t := tls.Client(raw, ca.client())
					c = t
				} else if x.ahead {
					// A whole first flight, and what can be no second one, as long as it is taken.
					_, _ = raw.Write(hello[:len(hello)-1])
				}
				go func() {
					piece := make([]byte, 64<<10)
					for err == nil {
						_, err = c.Write(piece)
					}
				}()
				deadline := time.Now().Add(20 * time.Second)
				for done, since := false, 0; !done; {
					on(w, func() {
						if h.c == nil || !x.stopped(h.c) {
							since = h.turns
						}
						done = h.turns-since > 200 // it stays like this
						if time.Now().After(deadline) {
							done = true
							t.Errorf("the peer is read on and on; %d bytes are held", h.most)
						}
					})
				}
				on(w, func() {
					h.ended = true
					if most := mostHeld(limit, x.secure); h.most > most {
						t.Errorf("%d bytes were held, the limits say %d", h.most, most)
					} else {
						t.Logf("%d KiB of %d KiB", h.most>>10, most>>10)
					}
					h.c.Reset()
				})
			})
		}
	}
}

// TestWhatAHandshakeCostsWhileItWaits: maxHandshakes places are as many times this.
func TestWhatAHandshakeCostsWhileItWaits(t *testing.T) {
	const n, most = 300, 64 << 10 // measured: about 24 KiB, of which 8 KiB are stack
	k := newCrowded(t, n)
	k.half("127.0.0.1") // what is made once
	in := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := in()
	for i := range n - 1 {
		k.half(fmt.Sprintf("127.0.1.%d", i%250+1))
	}
	if each := (int64(in()) - int64(before)) / (n - 1); each > most {
		t.Errorf("a handshake costs %d bytes, want %d at most", each, most)
	} else {
		t.Logf("%d bytes each", each)
	}
}
