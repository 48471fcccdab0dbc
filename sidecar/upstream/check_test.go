package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"sallyport/sidecar/panics"
	"sallyport/sidecar/route"
)

// pipes is a network in memory, for bubbles of synctest: connections to an
// address are accepted by the server that listens on it.
type pipes struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) connect(ctx context.Context, _, address string) (net.Conn, error) {
	p.mu.Lock()
	l := p.listeners[address]
	p.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) listen(t *testing.T, address string) *pipeListener {
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listeners == nil {
		p.listeners = map[string]*pipeListener{}
	}
	p.listeners[address] = l
	return l
}

func (p *pipes) serve(t *testing.T, address string, h http.Handler) {
	l := p.listen(t, address)
	s := &http.Server{Handler: h}
	go func() { _ = s.Serve(l) }() // ends with the test
	t.Cleanup(func() { s.Close() })
}

// bubble runs f in a bubble of synctest, with clusters that dial through pipes.
func bubble(t *testing.T, f func(t *testing.T, r *Registry, p *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		r, p := registry(t), &pipes{}
		r.connect = p.connect
		f(t, r, p)
	})
}

func checked(name string, hc HealthCheck, hosts ...Endpoint) *Config {
	cfg := config(name, hosts...)
	cfg.PanicThreshold = 0
	if hc.Interval == 0 {
		hc.Interval = time.Second
	}
	if hc.Timeout == 0 {
		hc.Timeout = 100 * time.Millisecond
	}
	cfg.HealthChecks = []HealthCheck{hc}
	return cfg
}

func TestThresholdsOfHealthChecks(t *testing.T) {
	bubble(t, func(t *testing.T, r *Registry, p *pipes) {
		var silent atomic.Bool
		var asked atomic.Int64
		p.serve(t, host(1), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if silent.Load() {
				panic(http.ErrAbortHandler)
			}
		}))
		r.Set(checked("c", HealthCheck{HTTP: true, Path: "/", UnhealthyThreshold: 3, HealthyThreshold: 2}, endpoints(1)...))
		c := r.Lookup("c")
		healthy := func() bool { return c.Host(&Pick{Hash: 1, HasHash: true}) != nil }
		c.turn = make([]turn, 1)
		wait := func(seconds int) {
			time.Sleep(time.Duration(seconds)*time.Second - 500*time.Millisecond)
			synctest.Wait()
			time.Sleep(500 * time.Millisecond)
			synctest.Wait()
		}
		wait(1)
		if !healthy() || asked.Load() == 0 {
			t.Fatalf("not healthy after %d good checks", asked.Load())
		}
		silent.Store(true)
		wait(2)
		if !healthy() {
			t.Fatal("unhealthy after two failures; the threshold is three")
		}
		wait(1)
		if healthy() {
			t.Fatal("healthy after three failures")
		}
		if got := c.Status()[0].Flags; !slices.Equal(got, []string{"failed_active_hc"}) {
			t.Fatalf("flags %v", got)
		}
		silent.Store(false)
		wait(1)
		if healthy() {
			t.Fatal("healthy after one success; the threshold is two")
		}
		wait(1)
		if !healthy() {
			t.Fatal("unhealthy after two successes")
		}
		if a, s, f := c.Stats.Value(StatHealthAttempt), c.Stats.Value(StatHealthSuccess), c.Stats.Value(StatHealthFailure); a != s+f || f != 3 {
			t.Errorf("attempts %d, success %d, failure %d", a, s, f)
		}
		r.Remove("c")
		synctest.Wait()
		before := asked.Load()
		time.Sleep(time.Minute)
		if asked.Load() != before {
			t.Error("a removed cluster is still checked")
		}
	})
}

func TestAnUnexpectedStatusCountsAtOnce(t *testing.T) {
	for _, x := range []struct {
		name      string
		hc        HealthCheck
		status    int
		unhealthy int // after how many checks; 0: never
	}{
		{"503", HealthCheck{}, 503, 1},
		{"a redirect is not followed", HealthCheck{}, 302, 1},
		{"201 is not 200", HealthCheck{}, 201, 1},
		{"expected range", HealthCheck{Expected: []StatusRange{{200, 300}}}, 204, 0},
		{"the range ends before its end", HealthCheck{Expected: []StatusRange{{200, 204}}}, 204, 1},
		{"retriable", HealthCheck{Retriable: []StatusRange{{429, 430}}}, 429, 3},
	} {
		t.Run(x.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *Registry, p *pipes) {
				var bad atomic.Bool
				p.serve(t, host(1), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if bad.Load() {
						w.Header().Set("Location", "http://elsewhere.example/")
						w.WriteHeader(x.status)
					} else if len(x.hc.Expected) > 0 {
						w.WriteHeader(x.hc.Expected[0].Start)
					}
				}))
				hc := x.hc
				hc.HTTP, hc.Path, hc.UnhealthyThreshold, hc.HealthyThreshold = true, "/", 3, 1
				r.Set(checked("c", hc, endpoints(1)...))
				c := r.Lookup("c")
				time.Sleep(500 * time.Millisecond)
				bad.Store(true)
				after := 0
				for n := 1; n <= 5 && after == 0; n++ {
					time.Sleep(time.Second)
					synctest.Wait()
					if len(c.Status()[0].Flags) > 0 {
						after = n
					}
				}
				if after != x.unhealthy {
					t.Errorf("unhealthy after %d checks, want %d", after, x.unhealthy)
				}
				r.Remove("c")
			})
		})
	}
}

func TestABodyThatNeverEndsFailsTheCheck(t *testing.T) {
	bubble(t, func(t *testing.T, r *Registry, p *pipes) {
		p.serve(t, host(1), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}))
		r.Set(checked("c", HealthCheck{HTTP: true, Path: "/", UnhealthyThreshold: 1}, endpoints(1)...))
		time.Sleep(time.Second)
		synctest.Wait()
		if len(r.Lookup("c").Status()[0].Flags) == 0 {
			t.Error("healthy")
		}
		r.Remove("c")
	})
}

func TestNewHostsMustPassACheckFirst(t *testing.T) {
	bubble(t, func(t *testing.T, r *Registry, p *pipes) {
		p.serve(t, host(1), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		cfg := checked("c", HealthCheck{HTTP: true, Path: "/", UnhealthyThreshold: 3, HealthyThreshold: 3}, endpoints(1)...)
		r.Set(cfg)
		c := r.Lookup("c")
		c.turn = make([]turn, 1)
		if c.Host(&Pick{}) == nil {
			t.Fatal("the first hosts of a cluster must serve before the first check, or nothing does")
		}
		time.Sleep(100 * time.Millisecond)
		gate := p.listen(t, host(2)) // accepts nobody yet
		c.update(endpoints(2), 0)
		synctest.Wait()
		if got := spread(c, 10, Pick{}); got[host(2)] != 0 {
			t.Fatalf("a host that was never checked, beside a good one, got %v", got)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
		defer s.Close()
		go func() { _ = s.Serve(gate) }()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := spread(c, 10, Pick{}); got[host(2)] == 0 {
			t.Fatal("its first good check does not make a new host healthy")
		}
		r.Remove("c")
	})
}

func TestIgnoredNewHostsDoNotCauseAPanic(t *testing.T) {
	cfg := checked("c", HealthCheck{HTTP: true, Path: "/", Interval: time.Hour}, endpoints(1)...)
	for ignore, want := range map[bool]bool{true: false, false: true} {
		c := newCluster(cfg, registry(t))
		copied := *cfg
		copied.PanicThreshold, copied.IgnoreNewHosts = 50, ignore
		c.Config = &copied
		c.mu.Lock()
		c.setHosts(endpoints(1))
		c.entries[0].host.set(flagPending, false)
		c.publish()
		c.setHosts(endpoints(9))
		panics := c.hosts.Load().choices[0].panics
		c.mu.Unlock()
		if panics != want {
			t.Errorf("ignore_new_hosts_until_first_hc %v: panic is %v", ignore, panics)
		}
	}
}

func TestUnusedClustersAreCheckedRarely(t *testing.T) {
	bubble(t, func(t *testing.T, r *Registry, p *pipes) {
		var asked atomic.Int64
		p.serve(t, host(1), http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
		r.Set(checked("c", HealthCheck{HTTP: true, Path: "/", NoTrafficInterval: time.Minute}, endpoints(1)...))
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if asked.Load() != 1 {
			t.Fatalf("%d checks of an unused cluster in 30 s", asked.Load())
		}
		r.Lookup("c").Stats.Shared().Inc(StatCxTotal)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := asked.Load(); n < 9 {
			t.Fatalf("%d checks in the 10 s after it was used", n)
		}
		r.Remove("c")
	})
}

func TestUnhealthyInterval(t *testing.T) {
	bubble(t, func(t *testing.T, r *Registry, p *pipes) {
		r.Set(checked("c", HealthCheck{Interval: time.Minute, UnhealthyInterval: time.Second, UnhealthyThreshold: 1}, endpoints(1)...))
		time.Sleep(10500 * time.Millisecond)
		synctest.Wait()
		if n := r.Lookup("c").Stats.Value(StatHealthAttempt); n != 11 {
			t.Errorf("%d checks in 10 s, of a host that fails, at 1 s", n)
		}
		r.Remove("c")
	})
}

func TestASuccessfulCheckEndsAnEjection(t *testing.T) {
	for _, unejects := range []bool{true, false} {
		bubble(t, func(t *testing.T, r *Registry, p *pipes) { // of a host that passed all its checks
			p.serve(t, host(1), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			cfg := checked("c", HealthCheck{HTTP: true, Path: "/", HealthyThreshold: 3, UnhealthyThreshold: 1}, endpoints(1)...)
			cfg.Outlier = outlier(func(o *Outlier) { o.BaseEjection, o.SuccessfulUneject = time.Hour, unejects })
			r.Set(cfg)
			h := r.Lookup("c").entries[0].host
			time.Sleep(10500 * time.Millisecond)
			report(h, 500, 500, 500, 500, 500)
			synctest.Wait()
			if !ejected(h) {
				t.Fatal("not ejected")
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if ejected(h) == unejects {
				t.Errorf("successful_active_health_check_uneject_host %v: ejected %v after a check", unejects, ejected(h))
			}
			r.Remove("c")
		})
		bubble(t, func(t *testing.T, r *Registry, p *pipes) {
			var down atomic.Bool
			p.serve(t, host(1), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if down.Load() {
					w.WriteHeader(503)
				}
			}))
			cfg := checked("c", HealthCheck{HTTP: true, Path: "/", HealthyThreshold: 1, UnhealthyThreshold: 1}, endpoints(1)...)
			cfg.Outlier = outlier(func(o *Outlier) { o.BaseEjection, o.SuccessfulUneject = time.Hour, unejects })
			r.Set(cfg)
			c := r.Lookup("c")
			time.Sleep(500 * time.Millisecond)
			h := c.entries[0].host
			report(h, 500, 500, 500, 500, 500)
			down.Store(true)
			time.Sleep(time.Second)
			down.Store(false)
			time.Sleep(time.Second)
			synctest.Wait()
			if ejected(h) == unejects {
				t.Errorf("successful_active_health_check_uneject_host %v: ejected %v", unejects, ejected(h))
			}
			r.Remove("c")
		})
	}
}

// TestACheckThatPanicsHasFailed, and the next one is made.
func TestACheckThatPanicsHasFailed(t *testing.T) {
	bubble(t, func(t *testing.T, r *Registry, p *pipes) {
		p.serve(t, host(1), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		var bad atomic.Bool
		r.connect = func(ctx context.Context, network, address string) (net.Conn, error) {
			if bad.Load() {
				panic("bad check")
			}
			return p.connect(ctx, network, address)
		}
		before := panics.Count()
		r.Set(checked("c", HealthCheck{UnhealthyThreshold: 1}, endpoints(1)...))
		h := r.Lookup("c").entries[0].host
		for _, is := range []bool{false, true, false} {
			bad.Store(is)
			time.Sleep(1500 * time.Millisecond)
			synctest.Wait()
			if h.Healthy() == is {
				t.Errorf("healthy: %v while checks panic: %v", h.Healthy(), is)
			}
		}
		if panics.Count() == before {
			t.Error("no panic was counted")
		}
		r.Remove("c")
	})
}

// probeOnce makes one check of a real server.
func probeOnce(t *testing.T, hc HealthCheck, protocol Protocol, secure ClientTLS, ep Endpoint) error {
	t.Helper()
	cfg := config("the.cluster", ep)
	cfg.Protocol, cfg.TLS = protocol, secure
	c := clusterOf(t, cfg)
	k := &checker{cluster: c}
	check, end := k.probe(c.entries[0].host, &hc)
	defer end()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return check(ctx)
}

type clientTLS struct{ cfg *tls.Config }

func (c clientTLS) ClientConfig(string) (*tls.Config, error) {
	if c.cfg == nil {
		return nil, errors.New("no SVID yet")
	}
	return c.cfg, nil
}

func TestWhatAnHTTPCheckSends(t *testing.T) {
	var got *http.Request
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r }))
	defer s.Close()
	if err := probeOnce(t, HealthCheck{HTTP: true, Path: "/healthz?deep=1", Headers: []route.HeaderValue{{Name: "x-probe", Value: "yes"}}}, HTTP1, nil, at(s.Listener.Addr().String())); err != nil {
		t.Fatal(err)
	}
	if got.Method != "GET" || got.RequestURI != "/healthz?deep=1" || got.Host != "the.cluster" || got.Header.Get("X-Probe") != "yes" || got.ProtoMajor != 1 {
		t.Errorf("%s %s, host %s, %v", got.Method, got.RequestURI, got.Host, got.Header)
	}
	// alt_port, and the endpoint's own health address, go elsewhere than requests.
	elsewhere := at("127.0.0.1:1")
	if err := probeOnce(t, HealthCheck{HTTP: true, Path: "/", Method: "HEAD", Host: "h.example", AltPort: at(s.Listener.Addr().String()).Address.Port()}, HTTP1, nil, elsewhere); err != nil {
		t.Error(err)
	}
	if got.Method != "HEAD" || got.Host != "h.example" {
		t.Errorf("%s, host %s", got.Method, got.Host)
	}
	elsewhere.HealthAddress = at(s.Listener.Addr().String()).Address
	if err := probeOnce(t, HealthCheck{HTTP: true, Path: "/"}, HTTP1, nil, elsewhere); err != nil {
		t.Error(err)
	}
}

func TestChecksOverTLSAndHTTP2(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Proto", r.Proto)
		if r.URL.Path == "/h2" && r.ProtoMajor != 2 || r.URL.Path == "/h1" && r.ProtoMajor != 1 {
			w.WriteHeader(505)
		}
	}))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = quietLog
	s.StartTLS()
	defer s.Close()
	good := clientTLS{&tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com", NextProtos: []string{"h2", "http/1.1"}}}
	ep := at(s.Listener.Addr().String())
	if err := probeOnce(t, HealthCheck{HTTP: true, Path: "/h1"}, HTTP1, good, ep); err != nil {
		t.Errorf("HTTP/1.1: %v", err)
	}
	if err := probeOnce(t, HealthCheck{HTTP: true, Path: "/h2"}, HTTP2, good, ep); err != nil {
		t.Errorf("cluster of HTTP/2: %v", err)
	}
	if err := probeOnce(t, HealthCheck{HTTP: true, HTTP2: true, Path: "/h2"}, HTTP1, good, ep); err != nil {
		t.Errorf("codec_client_type HTTP2: %v", err)
	}
	if err := probeOnce(t, HealthCheck{HTTP: true, Path: "/"}, HTTP1, clientTLS{&tls.Config{ServerName: "example.com"}}, ep); err == nil {
		t.Error("a server that cannot be verified is healthy")
	}
	if err := probeOnce(t, HealthCheck{HTTP: true, Path: "/"}, HTTP1, clientTLS{}, ep); err == nil || !strings.Contains(err.Error(), "no SVID yet") {
		t.Errorf("without a secret: %v", err)
	}
	if err := probeOnce(t, HealthCheck{}, HTTP1, good, ep); err != nil {
		t.Errorf("TCP check over TLS: %v", err)
	}
}

func TestGRPCChecks(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	h := health.NewServer()
	grpc_health_v1.RegisterHealthServer(s, h)
	go func() { _ = s.Serve(l) }() // ends by Stop
	defer s.Stop()
	h.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	h.SetServingStatus("up", grpc_health_v1.HealthCheckResponse_SERVING)
	ep := at(l.Addr().String())
	for service, want := range map[string]string{"": "", "up": "", "down": "NOT_SERVING", "unknown": `gRPC status "5"`} {
		err := probeOnce(t, HealthCheck{GRPC: true, GRPCService: service}, HTTP2, nil, ep)
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("service %q: %v, want %q", service, err, want)
		}
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	if err := probeOnce(t, HealthCheck{GRPC: true}, HTTP2, nil, at(plain.Listener.Addr().String())); err == nil {
		t.Error("a server that does not speak gRPC is healthy")
	}
}

func TestTCPChecks(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 4)
				if _, err := io.ReadFull(c, b); err == nil && string(b) == "PING" {
					_, _ = io.WriteString(c, "+PO") // the client may have gone
					_, _ = io.WriteString(c, "NG then more")
				}
			}()
		}
	}()
	ep := at(l.Addr().String())
	bytes := func(s ...string) (out [][]byte) {
		for _, p := range s {
			out = append(out, []byte(p))
		}
		return out
	}
	for _, x := range []struct {
		name string
		hc   HealthCheck
		ok   bool
	}{
		{"connect", HealthCheck{}, true},
		{"answer", HealthCheck{Send: []byte("PING"), Receive: bytes("+PONG")}, true},
		{"pieces in order", HealthCheck{Send: []byte("PING"), Receive: bytes("PON", "then", "more")}, true},
		{"pieces out of order", HealthCheck{Send: []byte("PING"), Receive: bytes("more", "then")}, false},
		{"another answer", HealthCheck{Send: []byte("PING"), Receive: bytes("-ERR")}, false},
	} {
		if err := probeOnce(t, x.hc, HTTP1, nil, ep); (err == nil) != x.ok {
			t.Errorf("%s: %v", x.name, err)
		}
	}
	l.Close()
	if err := probeOnce(t, HealthCheck{}, HTTP1, nil, ep); err == nil {
		t.Error("a closed port is healthy")
	}
}

func TestReceivedPieces(t *testing.T) {
	for _, x := range []struct {
		got    string
		pieces []string
		want   bool
	}{
		{"", nil, true}, {"abc", []string{"abc"}, true}, {"xabcx", []string{"abc"}, true}, {"ab", []string{"abc"}, false},
		{"abab", []string{"ab", "ab"}, true}, {"ab", []string{"ab", "ab"}, false}, {"a-b", []string{"a", "b"}, true}, {"b-a", []string{"a", "b"}, false},
	} {
		var pieces [][]byte
		for _, p := range x.pieces {
			pieces = append(pieces, []byte(p))
		}
		if received([]byte(x.got), pieces) != x.want {
			t.Errorf("%q in %q: want %v", x.pieces, x.got, x.want)
		}
	}
}

func TestKeptConnectionsOfARemovedHostAreClosed(t *testing.T) {
	closed := make(chan struct{})
	first := make(chan struct{}, 100)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { first <- struct{}{} }))
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateClosed {
			close(closed)
		}
	}
	s.Start()
	defer s.Close()
	r := registry(t)
	cfg := checked("c", HealthCheck{HTTP: true, Path: "/", ReuseConnection: true, Interval: time.Hour, Timeout: 5 * time.Second}, at(s.Listener.Addr().String()))
	r.Set(cfg)
	<-first
	r.Lookup("c").update(nil, 0)
	<-closed
}

func TestDialFromTheRegistry(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	r := registry(t)
	good := netip.MustParseAddrPort(s.Listener.Addr().String())
	bad := at("127.0.0.1:1")
	bad.Health = Unhealthy
	r.Set(config("c", bad, Endpoint{Address: good}))
	c, err := r.Dial(t.Context(), "c")
	if err != nil || c.RemoteAddr().String() != good.String() {
		t.Fatalf("%v, %v", c, err)
	}
	c.Close()
	r.Set(config("empty"))
	for name, want := range map[string]string{"missing": `cluster "missing" does not exist`, "empty": `cluster "empty" has no endpoints`} {
		if _, err := r.Dial(t.Context(), name); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	cfg := config("secure", Endpoint{Address: good})
	cfg.TLS = clientTLS{}
	r.Set(cfg)
	if _, err := r.Dial(t.Context(), "secure"); err == nil || !strings.Contains(err.Error(), "no SVID yet") {
		t.Errorf("without a secret: %v", err)
	}
}
