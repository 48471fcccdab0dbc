package conn

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/sidecar/loop"
)

// handshakes is how many are under way, or wait for a place. On the worker.
func handshakes(w *loop.Worker) (n int) {
	for side := range engineOf(w).places {
		p := &engineOf(w).places[side]
		taken := 0
		for _, o := range p.origins {
			n += o.count
			taken += o.taken
		}
		if taken != p.taken || len(p.origins) != len(p.byAddr) {
			panic(fmt.Sprintf("%d places are counted and %d taken, by %d addresses and %d", p.taken, taken, len(p.byAddr), len(p.origins)))
		}
	}
	return n
}

// crowded is a server of one worker with few places, and a clock that the test moves.
type crowded struct {
	t     *testing.T
	w     *loop.Worker
	ca    *authority
	addr  Address
	hello []byte
	ahead atomic.Int64 // of the real clock

	mu    sync.Mutex
	ended map[netip.AddrPort]error // by client
}

func newCrowded(t *testing.T, places int) *crowded {
	k := &crowded{t: t, ca: newAuthority(t), ended: map[netip.AddrPort]error{}}
	w, err := loop.NewWithClock(1, func() time.Time { return time.Now().Add(time.Duration(k.ahead.Load())) })
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
	k.w, k.hello = w, clientHelloBytes(t, k.ca.client())
	cfg := k.ca.server(t)
	k.addr = listen(t, w, func(c *Conn) {
		e := newScript()
		e.data = func(p []byte) int { c.Write(p); return len(p) }
		e.eof = func() { c.CloseWrite() }
		remote := c.RemoteAddr()
		e.closed = func(err error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.ended[remote] = err
		}
		c.SetHandshakeTimeout(time.Hour)
		c.StartTLSServer(cfg)
		c.Start(e)
	})
	on(w, func() {
		for side := range engineOf(w).places {
			engineOf(w).places[side].limit = places
		}
	})
	return k
}

// dial connects from an address of loopback.
func (k *crowded) dial(from string) net.Conn {
	k.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", k.addr.IP.String())
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		k.t.Fatal(err)
	}
	return c
}

// half makes a connection that stops after its ClientHello, once the server has answered it or has it wait.
func (k *crowded) half(from string) net.Conn {
	k.t.Helper()
	var before int
	on(k.w, func() { before = k.settled() })
	c := k.dial(from)
	if _, err := c.Write(k.hello); err != nil {
		k.t.Fatal(err)
	}
	k.until(func() bool { return k.settled() > before })
	return c
}

// settled counts the ClientHellos that were answered or have to wait for a place. On the worker.
func (k *crowded) settled() (n int) {
	p := &engineOf(k.w).places[0]
	for _, o := range p.origins {
		for h := o.idle.first; h != nil; h = h.next {
			n++
		}
		if p.blocked {
			for h := o.steps[firstStep].first; h != nil; h = h.next {
				n++
			}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return n + len(k.ended)
}

// until waits for a condition, which is asked on the worker.
func (k *crowded) until(ok func() bool) {
	k.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for is := false; !is; {
		if on(k.w, func() { is = ok() }); time.Now().After(deadline) {
			k.t.Fatal("it did not come to that")
		}
	}
}

// pass moves the clock.
func (k *crowded) pass(d time.Duration) {
	k.ahead.Add(int64(d))
	on(k.w, func() {}) // a turn that knows
}

// serves says that a whole handshake from there goes well.
func (k *crowded) serves(from string) {
	k.t.Helper()
	roundTrip(k.t, tls.Client(k.dial(from), k.ca.client()), []byte("hello"), func() int { return 5 })
}

// victims are those of the clients that lost their handshake to others.
func (k *crowded) victims(clients []net.Conn) (list []int) {
	on(k.w, func() {})
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, c := range clients {
		if err, ended := k.ended[netip.MustParseAddrPort(c.LocalAddr().String())]; ended {
			if !errors.Is(err, ErrHandshakeCrowded) {
				k.t.Errorf("client %d ended with %v", i, err)
			}
			list = append(list, i)
		}
	}
	return list
}

// TestHalfOpenHandshakesDoNotKeepOthersOut is issue 11's "handshakes": connections that stop after ClientHello.
func TestHalfOpenHandshakesDoNotKeepOthersOut(t *testing.T) {
	k := newCrowded(t, 32)
	var held []net.Conn
	for range 32 {
		held = append(held, k.half("127.0.0.1"))
	}
	k.pass(handshakePause)
	for range 8 {
		held = append(held, k.half("127.0.0.1"))
	}
	k.serves("127.0.0.1")
	k.serves("127.0.0.2")
	// The longest silent gave up, one for each of the eight and one for those that were served.
	if got, want := k.victims(held), []int{0, 1, 2, 3, 4, 5, 6, 7, 8}; !slices.Equal(got, want) {
		t.Errorf("%v gave up their places, want %v", got, want)
	}
}

// TestAHandshakeThatExchangesIsNeverTheVictim: who comes waits instead, until a peer is silent.
func TestAHandshakeThatExchangesIsNeverTheVictim(t *testing.T) {
	k := newCrowded(t, 4)
	var held []net.Conn
	for i := range 4 {
		held = append(held, k.half(fmt.Sprintf("127.0.0.%d", i+1)))
	}
	k.pass(handshakePause - 50*time.Millisecond)
	late := k.half("127.0.0.9")
	if got := k.victims(append(held, late)); got != nil {
		t.Fatalf("%v gave up though no time had passed", got)
	}
	// The first client goes on, with the part of its next flight that means nothing (RFC 8446 §5).
	if _, err := held[0].Write([]byte{typeChangeCipherSpec, 3, 3, 0, 1, 1}); err != nil {
		t.Fatal(err)
	}
	k.until(func() bool {
		h := engineOf(k.w).places[0].byAddr[netip.MustParseAddr("127.0.0.1")].idle.first
		return h != nil && h.total > len(k.hello)
	})
	if got := k.victims(held); got != nil {
		t.Fatalf("%v gave up before they were silent for long", got)
	}
	k.pass(100 * time.Millisecond)
	k.pass(handshakePause) // twice: the worker looks again when a pause is over
	k.until(func() bool { return handshakes(k.w) == 4 })
	if got, want := k.victims(held), []int{1}; !slices.Equal(got, want) {
		t.Errorf("%v gave up, want %v", got, want)
	}
}

// TestALittleNowAndThenKeepsNoPlace: what a peer sends is progress for a while only.
func TestALittleNowAndThenKeepsNoPlace(t *testing.T) {
	k := newCrowded(t, 2)
	held := []net.Conn{k.half("127.0.0.1"), k.half("127.0.0.2")}
	late := k.half("127.0.0.3")
	step := handshakePause - 100*time.Millisecond
	for sent := len(k.hello); len(k.victims(held)) == 0; sent += 6 {
		if sent > len(k.hello)+6*int((handshakeGoing+handshakePause)/step+1) {
			t.Fatal("the places were kept for longer than flights count")
		}
		for i, c := range held {
			if _, err := c.Write([]byte{typeChangeCipherSpec, 3, 3, 0, 1, 1}); err != nil {
				t.Fatal(err)
			}
			k.until(func() bool {
				o := engineOf(k.w).places[0].byAddr[netip.MustParseAddr(fmt.Sprintf("127.0.0.%d", i+1))]
				return o == nil || o.idle.first != nil && o.idle.first.total > sent
			})
		}
		k.pass(step)
	}
	if k.ahead.Load() < int64(handshakeGoing) {
		t.Errorf("the place was lost after %v of progress", time.Duration(k.ahead.Load()))
	}
	late.Close()
}

// TestAnAddressWithMoreThanHalfOfThePlacesGivesThemUpFirst, whoever is silent for longer.
func TestAnAddressWithMoreThanHalfOfThePlacesGivesThemUpFirst(t *testing.T) {
	k := newCrowded(t, 16)
	var friends, crowd []net.Conn
	for i := range 4 {
		friends = append(friends, k.half(fmt.Sprintf("127.0.1.%d", i+1)))
	}
	for range 12 {
		crowd = append(crowd, k.half("127.0.0.1"))
	}
	t.Run("at once for somebody else", func(t *testing.T) {
		k.serves("127.0.2.1")
		if got, want := k.victims(crowd), []int{0}; !slices.Equal(got, want) {
			t.Errorf("%v of the crowd gave up, want %v", got, want)
		}
	})
	t.Run("and when all are silent", func(t *testing.T) {
		crowd = append(crowd, k.half("127.0.0.1")) // all places are taken again
		k.pass(2 * handshakePause)
		for range 3 {
			crowd = append(crowd, k.half("127.0.0.1"))
		}
		k.serves("127.0.2.1")
		if got, want := k.victims(crowd), []int{0, 1, 2, 3, 4}; !slices.Equal(got, want) {
			t.Errorf("%v of the crowd gave up, want %v", got, want)
		}
		if got := k.victims(friends); got != nil {
			t.Errorf("%v of the others gave up", got)
		}
	})
}

// TestServersThatAreSilentTakeNoPlaceOfClients, nor the other way round.
func TestServersThatAreSilentTakeNoPlaceOfClients(t *testing.T) {
	k := newCrowded(t, 4)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	to := TCP(netip.MustParseAddrPort(silent.Addr().String()))
	var dialed []*script
	on(k.w, func() {
		for range 8 {
			s := newScript()
			dialed = append(dialed, s)
			s.c = Dial(k.w, to, DialOptions{ConnectTimeout: time.Hour}, s)
			s.c.StartTLSClient(k.ca.client())
		}
	})
	k.until(func() bool { return engineOf(k.w).places[1].taken == 4 })
	for range 4 {
		k.serves("127.0.0.1")
	}
	// One of the silent server's handshakes gives up for one with a server that answers.
	s := newScript()
	s.connected = func() { s.c.CloseWrite() }
	on(k.w, func() {
		s.c = Dial(k.w, k.addr, DialOptions{ConnectTimeout: time.Hour, Source: netip.MustParseAddr("127.0.0.1")}, s)
		s.c.StartTLSClient(k.ca.client())
	})
	k.pass(handshakePause)
	if err := s.wait(t); err != nil {
		t.Errorf("the handshake with the server that answers: %v", err)
	}
	on(k.w, func() {
		for _, s := range dialed {
			s.c.Close()
		}
	})
	k.until(func() bool { return handshakes(k.w) == 0 })
}

// TestStepsGoRoundByAddress: a crowd from one address is one caller among others.
func TestStepsGoRoundByAddress(t *testing.T) {
	w := worker(t)
	ca := newAuthority(t)
	hello := clientHelloBytes(t, ca.client())
	var order []string
	cfg := ca.server(t)
	cfg.GetConfigForClient = func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		order = append(order, netip.MustParseAddrPort(i.Conn.RemoteAddr().String()).Addr().String())
		return nil, nil
	}
	addr := listen(t, w, func(c *Conn) { c.StartTLSServer(cfg); startEcho(c) })
	k := &crowded{t: t, w: w, addr: addr, hello: hello, ended: map[netip.AddrPort]error{}}
	var clients []net.Conn
	for _, from := range append(slices.Repeat([]string{"127.0.0.1"}, 20), "127.0.0.2", "127.0.0.3", "127.0.0.3") {
		clients = append(clients, k.dial(from))
	}
	k.until(func() bool { return Count(w) == len(clients) })
	on(w, func() {
		for _, c := range clients {
			if _, err := c.Write(hello); err != nil {
				t.Error(err)
			}
		}
	})
	k.until(func() bool { return len(order) == len(clients) })
	on(w, func() {
		// The first few go in the order in which they came: the worker may not have met all of them at once.
		if i := slices.Index(order, "127.0.0.2"); i > 4 {
			t.Errorf("a single client was number %d: %v", i+1, order)
		}
		if i := slices.Index(order, "127.0.0.3"); i > 4 {
			t.Errorf("one of two clients was number %d: %v", i+1, order)
		}
	})
}

// TestTheConnectTimeoutIsForTLSToo: a server that accepts and is silent, or says a little and then is silent.
func TestTheConnectTimeoutIsForTLSToo(t *testing.T) {
	for name, says := range map[string]string{"a silent server": "", "a server that begins": "\x16\x03\x03\x00\x7a\x02"} {
		for when, begin := range map[string]func(c *Conn, cfg *tls.Config){
			"TLS is started at once":               func(c *Conn, cfg *tls.Config) { c.StartTLSClient(cfg) },
			"TLS is started when TCP is connected": nil,
		} {
			t.Run(name+", "+when, func(t *testing.T) {
				k := newCrowded(t, 8)
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				s := newScript()
				s.connected = func() {
					if begin != nil || s.c.TLS() != nil {
						t.Error("Connected")
						return
					}
					s.c.StartTLSClient(k.ca.client())
				}
				on(k.w, func() {
					s.c = Dial(k.w, TCP(netip.MustParseAddrPort(l.Addr().String())), DialOptions{ConnectTimeout: 30 * time.Second}, s)
					if begin != nil {
						begin(s.c, k.ca.client())
					}
				})
				server, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer server.Close()
				if _, err := server.Write([]byte(says)); err != nil {
					t.Fatal(err)
				}
				k.until(func() bool { return engineOf(k.w).places[1].taken == 1 })
				k.pass(15 * time.Second)
				select {
				case <-s.done:
					t.Fatalf("closed too early with %v", s.err)
				default:
				}
				k.pass(16 * time.Second)
				if err := s.wait(t); !errors.Is(err, ErrConnectTimeout) {
					t.Errorf("closed with %v", err)
				}
			})
		}
	}
}
