package upstream

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"sallyport/sidecar/message"
)

// frames is a host whose connections a test plays frame by frame.
type frames struct {
	t        testing.TB
	l        net.Listener
	accepted chan *peer
}

// peer is its side of one connection.
type peer struct {
	*http2.Framer
	c      net.Conn
	mu     sync.Mutex // of writing
	opened chan uint32
	resets chan uint32
}

// newFrames starts a host; greet, where it is not nil, is called with each new connection before anything is read.
func newFrames(t testing.TB, greet func(*peer)) *frames {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &frames{t: t, l: l, accepted: make(chan *peer, 1000)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p := &peer{Framer: http2.NewFramer(c, c), c: c, opened: make(chan uint32, 10000), resets: make(chan uint32, 10000)}
			wg.Go(func() { p.read(greet) })
			h.accepted <- p
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return h
}

func (p *peer) read(greet func(*peer)) {
	defer p.c.Close()
	if greet != nil {
		greet(p)
	}
	if _, err := io.ReadFull(p.c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	for {
		f, err := p.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			p.opened <- f.StreamID
		case *http2.RSTStreamFrame:
			p.resets <- f.StreamID
		}
	}
}

func (p *peer) settings(s ...http2.Setting) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.WriteSettings(s...)
}

func (p *peer) answer(id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// :status 200 of the static table.
	_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x88}, EndHeaders: true, EndStream: true})
}

func maxStreams(n uint32) http2.Setting {
	return http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: n}
}

func (h *frames) config() *Config {
	cfg := config("c", at(h.l.Addr().String()))
	cfg.Protocol, cfg.BufferLimit = HTTP2, 1<<20
	return cfg
}

func paths(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("/%d", i))
	}
	return out
}

// TestABurstOnAColdHost: no more streams are opened than the host takes, which it says a round trip later.
func TestABurstOnAColdHost(t *testing.T) {
	gt := newGate()
	cfg := config("c", h2Server(t, gt.handle, 10))
	cfg.Protocol = HTTP2
	g := newRig(t, cfg, 1)
	calls := g.begin(paths(60)...)
	for range calls {
		<-gt.arrived
	}
	close(gt.open)
	for _, k := range calls {
		if <-k.done; k.body != k.path {
			t.Errorf("%s: %q %v", k.path, k.body, k.reason)
		}
	}
	if n := g.cluster.Stats.Value(StatCxTotal); n != 6 {
		t.Errorf("%d connections for 60 calls to a host that takes 10 on each", n)
	}
	g.balanced()
	g.gone()
}

// TestTheFirstCallDoesNotWaitForSettings, and those that came with it do.
func TestTheFirstCallDoesNotWaitForSettings(t *testing.T) {
	h := newFrames(t, nil)
	g := newRig(t, h.config(), 1)
	calls := g.begin(paths(5)...)
	p := <-h.accepted
	if id := <-p.opened; id != 1 {
		t.Fatal(id)
	}
	g.settled("four calls wait", func(p *Pool) bool { return p.waiting.n == 4 && p.dialing == 0 && len(p.all) == 1 })
	p.settings(maxStreams(3))
	for range 2 {
		<-p.opened
	}
	// The host said what it takes: the next connection carries as much at once, before it says so again.
	q := <-h.accepted
	for range 2 {
		<-q.opened
	}
	q.settings(maxStreams(3))
	for id := range uint32(3) {
		p.answer(2*id + 1)
	}
	for id := range uint32(2) {
		q.answer(2*id + 1)
	}
	for _, k := range calls {
		if <-k.done; k.status != 200 {
			t.Errorf("%s: %d %v", k.path, k.status, k.reason)
		}
	}
	g.gone()
}

// TestAHostThatTakesNoStreams for a while is not dialed again and again.
func TestAHostThatTakesNoStreams(t *testing.T) {
	h := newFrames(t, nil)
	g := newRig(t, h.config(), 1)
	calls := g.begin(paths(5)...)
	p := <-h.accepted
	<-p.opened
	p.settings(maxStreams(0))
	p.answer(1)
	<-calls[0].done
	calls = append(calls, g.begin("/more")...)
	g.settled("the calls wait", func(p *Pool) bool { return p.waiting.n == 5 && p.dialing == 0 && len(p.all) == 1 })
	p.settings(maxStreams(10))
	for range 5 {
		p.answer(<-p.opened)
	}
	for _, k := range calls {
		if <-k.done; k.status != 200 {
			t.Errorf("%s: %d %v", k.path, k.status, k.reason)
		}
	}
	g.gone()
}

// TestABurstOfCancelledCallsHarmsNoOther on the same connection: a host sees few of them there, and new calls get another.
func TestABurstOfCancelledCallsHarmsNoOther(t *testing.T) {
	h := newFrames(t, func(p *peer) { p.settings(maxStreams(1000)) })
	g := newRig(t, h.config(), 1)
	victim := g.begin("/victim")[0]
	p := <-h.accepted
	<-p.opened
	g.settled("SETTINGS are here", func(p *Pool) bool { return p.streams == 1000 })
	cancelled := g.begin(paths(400)...)
	g.on(func(*Pool) {
		for _, k := range cancelled {
			k.sender.Reset(message.LocalReset)
			k.finish(message.LocalReset, "gave up")
		}
		if n := victim.client.active(); n != 1+300 || !victim.client.retired {
			t.Errorf("%d streams are open of 400 that were cancelled, of which a host should see 100; retired: %v", n, victim.client.retired)
		}
	})
	for range cancelled {
		<-p.opened
	}
	// What comes after that is carried by another connection.
	after := g.begin("/after")[0]
	q := <-h.accepted
	q.answer(<-q.opened)
	if <-after.done; after.status != 200 {
		t.Error(after.status, after.reason)
	}
	p.answer(1)
	if <-victim.done; victim.status != 200 {
		t.Error(victim.status, victim.reason)
	}
	g.balanced()
	// The rest is cancelled later, and the connection ends.
	for range 400 {
		<-p.resets
	}
	g.settled("the worn connection ended", func(p *Pool) bool { return len(p.all) == 1 })
	g.gone()
}

// upload is a call with content.
type upload struct {
	*call
	content int
}

func (k upload) Ready(s message.Sender, c *Client) {
	k.sender, k.client = s, c
	var h message.Head
	h.AddString(":method", "POST")
	h.AddString(":scheme", "http")
	h.AddString(":authority", "test")
	h.AddString(":path", k.path)
	s.Head(&h, false)
	s.Data(make([]byte, k.content), false)
	close(k.ready)
}

// TestAConnectionThatGivesNoWindow to uploads is left to those that it has.
func TestAConnectionThatGivesNoWindow(t *testing.T) {
	h := newFrames(t, func(p *peer) {
		p.settings(maxStreams(1000), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	})
	g := newRig(t, h.config(), 1)
	begin := func() (k *call) {
		g.on(func(p *Pool) {
			k = newCall(p, "/upload")
			k.w.Requester = upload{k, 100_000}
			k.start()
		})
		<-k.ready
		return k
	}
	stuck := begin()
	<-h.accepted
	g.settled("the connection is starved", func(p *Pool) bool { return len(p.shared) == 1 && p.shared[0].starved() })
	begin()
	q := <-h.accepted
	if id := <-q.opened; id != 1 {
		t.Errorf("the second upload is stream %d of the second connection", id)
	}
	g.settled("both are starved", func(p *Pool) bool {
		return !slices.ContainsFunc(p.shared, func(c *Client) bool { return !c.starved() })
	})

	// Without another connection to be had, one that is starved is better than none.
	h.l.Close()
	last := g.begin("/last")[0]
	<-last.ready
	if last.client != stuck.client {
		t.Error("not on a connection that is there")
	}
	g.on(func(p *Pool) {
		for _, c := range p.all {
			c.conn.Close()
		}
	})
	<-last.done
	<-stuck.done
	g.settled("all closed", func(p *Pool) bool { return len(p.all) == 0 })
}
