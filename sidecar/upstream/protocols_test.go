package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/message"
)

// h2Server speaks HTTP/2 over plaintext.
func h2Server(t testing.TB, h http.HandlerFunc, streams int) Endpoint {
	s := httptest.NewUnstartedServer(h)
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	s.Config.Protocols = &p
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: streams}
	s.Start()
	t.Cleanup(s.Close)
	return at(s.Listener.Addr().String())
}

func TestHTTP2CallsShareAConnection(t *testing.T) {
	gt := newGate()
	cfg := config("c", h2Server(t, gt.handle, 100))
	cfg.Protocol = HTTP2
	cfg.HTTP2.MaxConcurrentStreams = 100
	g := newRig(t, cfg, 1)
	var paths []string
	for i := range 50 {
		paths = append(paths, fmt.Sprintf("/%d", i))
	}
	calls := g.begin(paths...)
	for range calls {
		<-gt.arrived
	}
	if n := g.cluster.Stats.Value(StatCxTotal); n != 1 {
		t.Errorf("%d connections for 50 calls at once", n)
	}
	close(gt.open)
	for _, k := range calls {
		if <-k.done; k.body != k.path || k.client.Version() != message.HTTP2 {
			t.Errorf("%s: %q %v", k.path, k.body, k.reason)
		}
	}
	g.balanced()
	g.gone()
}

func TestMoreHTTP2CallsThanAConnectionTakes(t *testing.T) {
	gt := newGate()
	cfg := config("c", h2Server(t, gt.handle, 250))
	cfg.Protocol = HTTP2
	cfg.HTTP2.MaxConcurrentStreams = 10
	g := newRig(t, cfg, 1)
	paths := make([]string, 95)
	for i := range paths {
		paths[i] = fmt.Sprintf("/%d", i)
	}
	calls := g.begin(paths...)
	for range calls {
		<-gt.arrived // all are on their way at once: ten connections
	}
	close(gt.open)
	for _, k := range calls {
		if <-k.done; k.body != k.path {
			t.Errorf("%s: %q %v", k.path, k.body, k.reason)
		}
	}
	if n := g.cluster.Stats.Value(StatCxTotal); n != 10 {
		t.Errorf("%d connections", n)
	}
	g.balanced()
	g.gone()
}

func TestTLSFailures(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(echoPath))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = quietLog
	s.StartTLS()
	defer s.Close()
	ep := at(s.Listener.Addr().String())
	roots := s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for _, x := range []struct {
		name   string
		cfg    *tls.Config
		proto  Protocol
		h2     bool
		reason message.Reason
		text   string
	}{
		{"verified", &tls.Config{RootCAs: roots, ServerName: "example.com"}, HTTP1, false, 0, ""},
		{"negotiated", &tls.Config{RootCAs: roots, ServerName: "example.com", NextProtos: []string{"h2"}}, ALPN, true, 0, ""},
		{"unknown authority", &tls.Config{ServerName: "example.com"}, HTTP1, false, message.TLSFailure, "unknown authority"},
		{"no secret", nil, HTTP1, false, message.TLSFailure, "no SVID yet"},
	} {
		t.Run(x.name, func(t *testing.T) {
			cfg := config("c", ep)
			cfg.TLS, cfg.Protocol = clientTLS{x.cfg}, x.proto
			cfg.HTTP2.MaxConcurrentStreams = 100
			g := newRig(t, cfg, 1)
			k := g.get("/x")
			if k.reason != x.reason || !strings.Contains(k.text, x.text) || x.reason == 0 && (k.body != "/x" || (k.client.Version() == message.HTTP2) != x.h2) {
				t.Errorf("%d %q, %v %q", k.status, k.body, k.reason, k.text)
			}
			g.gone()
		})
	}
}

// tcpEnd is a handler of the TCP proxy for tests.
type tcpEnd struct {
	up     chan struct{}
	closed chan error
}

func (e *tcpEnd) Connected()        { close(e.up) }
func (e *tcpEnd) Data(p []byte) int { return len(p) }
func (e *tcpEnd) EOF()              {}
func (e *tcpEnd) Drained()          {}
func (e *tcpEnd) Closed(err error)  { e.closed <- err }

func (g *rig) dial() (*RawClient, *tcpEnd) {
	e := &tcpEnd{make(chan struct{}), make(chan error, 1)}
	var r *RawClient
	on(g.workers[0], func() { r = g.host.DialTCP(g.workers[0], e, nil) })
	return r, e
}

func TestTCPConnectionsAreCounted(t *testing.T) {
	s, ep := serverAt(t, echoPath)
	cfg := config("c", ep)
	cfg.Breakers[0].Connections = 1
	cfg.CloseOnHealthFailure = true
	g := newRig(t, cfg, 1)
	r, e := g.dial()
	<-e.up
	if over, _ := g.dial(); over != nil || g.cluster.Stats.Value(StatCxOverflow) != 1 {
		t.Error("max_connections is not kept")
	}
	on(g.workers[0], func() { r.Conn.Close() })
	<-e.closed
	g.balanced()

	_, e = g.dial()
	<-e.up
	k := &checker{cluster: g.cluster}
	k.turn(g.host, true, errors.New("test")) // close_connections_on_host_health_failure
	<-e.closed
	g.balanced()

	s.Close()
	r, e = g.dial()
	<-e.closed
	if r.Reason != message.ConnectFailure || r.Text == "" {
		t.Errorf("%v %q", r.Reason, r.Text)
	}
	g.balanced()
}

// TestEverythingIsGivenBack puts all paths under load at once, from two
// workers, while the cluster changes under them.
func TestEverythingIsGivenBack(t *testing.T) {
	var n atomic.Int64
	handler := func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 7 {
		case 0:
			panic(http.ErrAbortHandler)
		case 1:
			w.Header().Set("Connection", "close")
		case 2:
			w.WriteHeader(503)
		}
		fmt.Fprint(w, r.URL.Path)
	}
	for _, proto := range []Protocol{HTTP1, HTTP2} {
		var ep Endpoint
		if proto == HTTP1 {
			_, ep = serverAt(t, handler)
		} else {
			ep = h2Server(t, handler, 10)
		}
		cfg := config("c", ep, refused)
		cfg.Protocol, cfg.MaxRequests, cfg.IdleTimeout = proto, 5, time.Millisecond
		cfg.HTTP2.MaxConcurrentStreams = 10
		cfg.Breakers[0] = Breakers{Connections: 4, Pending: 20, Requests: 30, Retries: 1}
		workers := newWorkers(t, 2)
		r := registryWith(t, workers)
		r.Set(cfg)
		ref := r.Ref("c")
		seen := sync.Map{}
		var calls sync.WaitGroup
		for i := range 60 {
			for _, w := range workers {
				calls.Add(10)
				w.Post(func() {
					c := ref.Cluster()
					seen.Store(c, true)
					for j := range 10 {
						k := newCall(c.Host(&Pick{Worker: w.ID()}).Pool(w, message.HTTP11, nil), fmt.Sprintf("/%d", j))
						k.start()
						if j%5 == 4 && !k.ended {
							if k.sender != nil {
								k.sender.Reset(message.LocalReset)
							}
							if !k.ended {
								k.finish(message.LocalReset, "gave up")
							}
						}
						go func() { <-k.done; calls.Done() }()
					}
				})
			}
			if i%10 == 9 {
				next := *cfg
				next.Hash = uint64(i)
				r.Set(&next)
			}
		}
		calls.Wait()
		r.Remove("c")
		seen.Range(func(key, _ any) bool {
			c := key.(*Cluster)
			deadline := time.Now().Add(10 * time.Second)
			for {
				for _, w := range workers {
					on(w, func() {})
				}
				cx, pending, rq, retries := c.BreakerState(0)
				if cx == 0 && pending == 0 && rq == 0 && retries == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("protocol %d: connections %d, pending %d, requests %d, retries %d are never given back", proto, cx, pending, rq, retries)
				}
			}
			for _, e := range c.entries {
				if n := e.host.active.Load(); n != 0 {
					t.Errorf("host %s has %d requests under way", e.host, n)
				}
			}
			return true
		})
	}
}

var _ conn.Handler = (*tcpEnd)(nil)
