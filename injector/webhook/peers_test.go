package webhook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections are in memory, for bubbles.
type pipes struct {
	calls chan net.Conn
	end   chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{calls: make(chan net.Conn), end: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.calls:
		return c, nil
	case <-p.end:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.end) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

type from struct {
	net.Conn
	addr net.Addr
}

func (c from) RemoteAddr() net.Addr { return c.addr }

// dial connects as host, of 10.0.0.0/24.
func (p *pipes) dial(host int) net.Conn {
	here, there := net.Pipe()
	p.calls <- from{there, &net.TCPAddr{IP: net.IPv4(10, 0, 0, byte(host)), Port: 1}}
	return here
}

// bubble serves h as reviews and status are served, but for TLS, while test runs.
func bubble(t *testing.T, h http.Handler, test func(t *testing.T, p *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		s, l := bounded(h, p, log.New(io.Discard, "", 0))
		ended := make(chan error)
		go func() { ended <- s.Serve(l) }()
		test(t, p)
		s.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		time.Sleep(time.Minute) // net/http lingers a little
		if l.n != 0 || len(l.byAddr) != 0 {
			t.Errorf("%d connections are counted at the end, of %d peers", l.n, len(l.byAddr))
		}
	})
}

// client sends all of its requests as one host.
func client(t *testing.T, p *pipes, host int) *http.Client {
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return p.dial(host), nil }}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// hasEnded is whether the other side has closed a connection.
func hasEnded(t *testing.T, c net.Conn) bool {
	t.Helper()
	synctest.Wait()
	c.SetReadDeadline(time.Now().Add(time.Nanosecond))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	return !errors.As(err, &timeout)
}

func ok(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }

// idle makes a connection that has had an answer, and is kept.
func idle(t *testing.T, p *pipes, host int) net.Conn {
	t.Helper()
	c := p.dial(host)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: injector\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	if n, err := c.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 200") {
		t.Fatalf("%q %v", buf[:n], err)
	}
	synctest.Wait()
	return c
}

func answers(t *testing.T, c *http.Client) {
	t.Helper()
	begin := time.Now()
	resp, err := c.Get("http://injector/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if waited := time.Since(begin); resp.StatusCode != 200 || waited != 0 {
		t.Errorf("%s after %v", resp.Status, waited)
	}
}

func TestPeersWithIdleConnectionsKeepNobodyOut(t *testing.T) {
	bubble(t, http.HandlerFunc(ok), func(t *testing.T, p *pipes) {
		first := idle(t, p, 1)
		time.Sleep(time.Second)
		second := idle(t, p, 1)
		for range maxPeerConns - 2 {
			idle(t, p, 1)
		}
		if hasEnded(t, first) {
			t.Error("a connection was dropped too early")
		}
		answers(t, client(t, p, 1)) // as if it were behind the same address
		if !hasEnded(t, first) || hasEnded(t, second) {
			t.Error("not the one that was idle for the longest time was dropped")
		}
		answers(t, client(t, p, 2))
	})
}

func TestWhoHasMostConnectionsGivesUpOne(t *testing.T) {
	bubble(t, http.HandlerFunc(ok), func(t *testing.T, p *pipes) {
		good := idle(t, p, 1)
		time.Sleep(time.Second)
		for host := 2; host < 12; host++ {
			for range maxConns / 10 {
				p.dial(host) // and never says anything
			}
		}
		synctest.Wait()
		for host := 12; host < 60; host++ {
			answers(t, client(t, p, host))
		}
		if hasEnded(t, good) {
			t.Error("who has one lost it")
		}
	})
}

// TestBusyConnectionsStay: where all are busy, a peer that has its part gets no more, and others wait.
func TestBusyConnectionsStay(t *testing.T) {
	goOn := make(chan struct{})
	block := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { <-goOn; ok(w, nil) })
	bubble(t, block, func(t *testing.T, p *pipes) {
		goOn = make(chan struct{}) // of the bubble
		var group sync.WaitGroup
		status := make(chan string, maxConns+10)
		ask := func(host int) {
			group.Go(func() {
				transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return p.dial(host), nil }, DisableKeepAlives: true}
				resp, err := (&http.Client{Transport: transport}).Get("http://injector/")
				if err != nil {
					status <- "error"
					return
				}
				resp.Body.Close()
				status <- resp.Status
			})
		}
		for range maxPeerConns {
			ask(1)
		}
		synctest.Wait()
		time.Sleep(newTime)
		ask(1)
		synctest.Wait()
		if len(status) != 1 || <-status != "error" {
			t.Error("a peer got more than its part")
		}
		for range maxConns - maxPeerConns {
			ask(2)
		}
		synctest.Wait()
		ask(3)
		synctest.Wait()
		if len(status) != 0 {
			t.Error("who came last did not wait")
		}
		close(goOn)
		group.Wait()
		for range maxConns + 1 {
			if got := <-status; got != "200 OK" {
				t.Error(got)
			}
		}
	})
}

func TestAcceptEndsWithTheListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		l := newPeers(p, 2, 1)
		var conns []net.Conn
		for host := range 2 {
			go p.dial(host)
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			peerConnOf(c).set(http.StateActive)
			conns = append(conns, c)
		}
		ended := make(chan error)
		go func() { _, err := l.Accept(); ended <- err }()
		go p.dial(3)
		synctest.Wait() // for room
		l.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		for range 2 { // the second time says nothing new
			conns[0].Close()
		}
		if l.n != 1 {
			t.Errorf("%d connections are counted", l.n)
		}
	})
}

func TestPeersAreAddresses(t *testing.T) {
	for text, want := range map[string]string{"10.0.0.1:80": "10.0.0.1", "[::ffff:10.0.0.1]:80": "10.0.0.1", "[fd00::1]:80": "fd00::1"} {
		a, err := net.ResolveTCPAddr("tcp", text)
		if err != nil {
			t.Fatal(err)
		}
		if got := addrOf(from{addr: a}); got.String() != want {
			t.Errorf("%s: %s", text, got)
		}
	}
	if got := fmt.Sprint(addrOf(from{addr: &net.UnixAddr{Name: "x"}})); got != "invalid IP" {
		t.Error(got)
	}
}
