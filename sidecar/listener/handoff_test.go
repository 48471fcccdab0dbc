package listener

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/route"
	"sallyport/sidecar/upstream"
)

// TestAConnectionGoesToTheListenerOfItsDestination: use_original_dst hands over to
// listeners without sockets, by address, then by port, and serves the rest itself.
func TestAConnectionGoesToTheListenerOfItsDestination(t *testing.T) {
	e := newEngine(t).to(backend(t, func(http.ResponseWriter, *http.Request) {}))
	e.clusters.Set(e.cluster)
	var next atomic.Value // netip.AddrPort, where the next connection was going; the zero value: not redirected
	e.server.origin = func(*conn.Conn) (netip.AddrPort, error) {
		origin := next.Load().(netip.AddrPort)
		if !origin.IsValid() {
			return origin, errors.New("not redirected")
		}
		return origin, nil
	}
	// Each listener answers with its own status.
	apply := func(name, address string, bind bool, status int) {
		t.Helper()
		m := *e.manager
		table, err := route.NewTable([]*route.VirtualHost{{Name: "v", Domains: []string{"*"}, Entries: []route.Entry{{Matcher: route.NewPath(route.PathPrefix, "/", false),
			Route: &route.Route{Name: "r", TraceSampling: -1, Direct: &route.Direct{Status: status}}}}}}, route.TableOptions{})
		if err != nil {
			t.Fatal(err)
		}
		m.Routes = route.NewHandle(name, table)
		cfg := &Config{Name: name, StatPrefix: name, Hash: 1, Bind: bind, BufferLimit: 1 << 20, Addresses: []conn.Address{conn.TCP(netip.MustParseAddrPort(address))},
			OriginalDst: bind, HandOff: bind, Chains: []*Chain{{Name: "c", Key: "c", HTTP: &m}}}
		if err := e.server.Apply(cfg); err != nil {
			t.Fatal(err)
		}
	}
	apply("outbound", "127.0.0.1:0", true, 201)
	apply("orders", "240.0.0.1:80", false, 202)
	apply("any", "0.0.0.0:9000", false, 203)
	apply("six", "[fd00::1]:80", false, 204)
	e.on(func() {}) // behind what Apply and Remove have posted
	get := func(to string) int {
		t.Helper()
		next.Store(netip.AddrPort{})
		if to != "" {
			next.Store(netip.MustParseAddrPort(to))
		}
		c, err := net.Dial("tcp", e.server.AddrOf("outbound").String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c)
		if err != nil || len(b) < 12 {
			t.Fatalf("%q, %v", b, err)
		}
		return int(b[9]-'0')*100 + int(b[10]-'0')*10 + int(b[11]-'0')
	}
	for to, want := range map[string]int{
		"":                      201,
		"240.0.0.1:80":          202,
		"[::ffff:240.0.0.1]:80": 202,
		"240.0.0.1:81":          201,
		"10.1.2.3:9000":         203,
		"[fd00::1]:80":          204,
		"[fd00::2]:9000":        201, // 0.0.0.0 is for IPv4 alone
	} {
		if got := get(to); got != want {
			t.Errorf("to %q: %d, want %d", to, got, want)
		}
	}
	e.server.Remove("orders")
	e.on(func() {})
	if got := get("240.0.0.1:80"); got != 201 {
		t.Errorf("after its removal the listener still answers %d", got)
	}
	if n := e.metrics.Set("listener", "any", stats).Value(statTotal); n != 1 {
		t.Errorf("the listener of any address counts %d connections, want 1", n)
	}
}

// circle is a listener like a sidecar's virtual one, without its trap: what is not for a listener without a socket goes
// on to where it was going. Too many connections end the test, not the process.
func (e *engine) circle(name, address string, hash uint64) *Config {
	stats := e.metrics.Set("tcp", name, TCPStats)
	return &Config{Name: name, StatPrefix: name, Hash: hash, Bind: true, BufferLimit: 1 << 20, OriginalDst: true, HandOff: true, Connections: 16,
		Addresses: []conn.Address{conn.TCP(netip.MustParseAddrPort(address))},
		Default: &Chain{Name: "unknown", Key: "unknown", TCP: &TCPProxy{StatPrefix: name, Stats: stats, TotalWeight: 1, Idle: time.Hour,
			Clusters: []route.WeightedCluster{{Cluster: route.ClusterRef{Name: "backend", Ref: e.clusters.Ref("backend")}, Weight: 1}}}}}
}

// originalDst makes the cluster one of where connections were going; port, where it is not 0, is put in the place of theirs.
func (e *engine) originalDst(port uint16) {
	e.cluster.Discovery, e.cluster.Policy, e.cluster.OriginalPort = upstream.OriginalDst, upstream.ClusterProvided, port
	e.clusters.Set(e.cluster)
}

// direct are the ways in which the kernel speaks of a connection that was not redirected.
var direct = map[string]struct {
	transparent bool
	origin      func(*conn.Conn) (netip.AddrPort, error)
}{
	"netfilter knows it":         {false, func(c *conn.Conn) (netip.AddrPort, error) { return c.LocalAddr(), nil }},
	"netfilter knows it, TPROXY": {true, func(c *conn.Conn) (netip.AddrPort, error) { return c.LocalAddr(), nil }},
	"netfilter calls it IPv6": {false, func(c *conn.Conn) (netip.AddrPort, error) {
		a := c.LocalAddr()
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port()), nil
	}},
	"TPROXY": {true, func(*conn.Conn) (netip.AddrPort, error) { return netip.AddrPort{}, errors.New("not redirected") }},
}

// applyAs applies a configuration in two steps, since no socket of a test is transparent: the second is an update, which keeps it.
func (e *engine) applyAs(transparent bool, cfg *Config) netip.AddrPort {
	e.t.Helper()
	e.change(cfg)
	e.change(cfg, func(c *Config) { c.Transparent = transparent })
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), e.server.AddrOf(cfg.Name).Port())
}

// TestNobodyIsLedInACircle: a connection to the listener's own address stays with it, though a listener without a socket
// has the port, and no ORIGINAL_DST cluster leads it back to the listener.
func TestNobodyIsLedInACircle(t *testing.T) {
	for name, d := range direct {
		for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
			t.Run(name+", at "+address, func(t *testing.T) {
				e := newEngine(t)
				e.originalDst(0)
				e.server.origin = d.origin
				at := e.applyAs(d.transparent, e.circle("outbound", address, 1))
				e.change(e.circle("any", netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()).String(), 2), func(c *Config) { c.Bind, c.OriginalDst, c.HandOff = false, false, false })
				e.on(func() {})
				if b, err := io.ReadAll(dialTCP(t, at.String())); err != nil || len(b) != 0 {
					t.Errorf("%q, %v; the listener should have ended the connection", b, err)
				}
				for name, want := range map[string]int64{"outbound": 1, "any": 0} {
					if n := e.metrics.Set("listener", name, stats).Value(statTotal); n != want {
						t.Errorf("listener %q has had %d connections, want %d", name, n, want)
					}
				}
			})
		}
	}
}

// TestNoRequestIsLedInACircle: nor one of HTTP.
func TestNoRequestIsLedInACircle(t *testing.T) {
	e := newEngine(t)
	e.serve() // for its routes
	e.originalDst(0)
	e.server.origin = direct["netfilter knows it"].origin
	cfg := e.circle("outbound", "127.0.0.1:0", 1)
	cfg.Default = &Chain{Name: "c", Key: "c", HTTP: e.manager}
	if code, body := get(t, "http://"+e.applyAs(false, cfg).String()); code != 503 {
		t.Errorf("%d %q", code, body)
	}
	if n := e.metrics.Set("listener", "outbound", stats).Value(statTotal); n != 1 {
		t.Errorf("the listener has had %d connections, want 1", n)
	}
}

// TestAnotherPortIsNoCircle: a cluster leads who connects to the listener itself to the application's port at that address.
func TestAnotherPortIsNoCircle(t *testing.T) {
	app := netip.MustParseAddrPort(welcome(t))
	for name, d := range direct {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t)
			e.originalDst(app.Port())
			e.server.origin = d.origin
			c := dialTCP(t, e.applyAs(d.transparent, e.circle("inbound", "0.0.0.0:0", 1)).String())
			_ = c.CloseWrite()
			if b, err := io.ReadAll(c); err != nil || string(b) != "220 welcome\n" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// TestAnotherPortIsNoCircleForRequests: under TPROXY, where peers of the mesh connect to the listener itself.
func TestAnotherPortIsNoCircleForRequests(t *testing.T) {
	for _, name := range []string{"TPROXY", "netfilter knows it, TPROXY"} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t)
			e.serve() // for its routes
			e.originalDst(netip.MustParseAddrPort(backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "application") })).Port())
			e.server.origin = direct[name].origin
			cfg := e.circle("inbound", "0.0.0.0:0", 1)
			cfg.Default = &Chain{Name: "c", Key: "c", HTTP: e.manager}
			if code, body := get(t, "http://"+e.applyAs(true, cfg).String()); code != 200 || body != "application" {
				t.Errorf("%d %q", code, body)
			}
		})
	}
}

// TestWhatTPROXYLeadsIn: a connection in a circle is known for sure, or let pass.
func TestWhatTPROXYLeadsIn(t *testing.T) {
	e := newEngine(t)
	e.originalDst(0)
	for _, c := range []struct {
		name, listens string
		meant, to     string // where the client was going, where the cluster leads
		own, circle   bool
	}{
		{"its own address", "127.0.0.1:15006", "127.0.0.1:15006", "127.0.0.1:15006", true, true},
		{"one of its addresses", "0.0.0.0:15006", "127.0.0.1:15006", "127.0.0.1:15006", true, true},
		{"one of its addresses, which takes both families", "[::]:15006", "127.0.0.1:15006", "127.0.0.1:15006", true, true},
		{"IPv6", "[::]:15006", "[::1]:15006", "[::1]:15006", true, true},
		{"the application's port", "0.0.0.0:15006", "127.0.0.1:15006", "127.0.0.1:8080", true, false},
		{"another host's address", "0.0.0.0:15006", "192.0.2.1:15006", "192.0.2.1:15006", true, false},
		{"another port", "0.0.0.0:15006", "127.0.0.1:8080", "127.0.0.1:8080", false, false},
		{"another address", "127.0.0.1:15006", "127.0.0.2:15006", "127.0.0.2:15006", false, false},
		{"another family", "0.0.0.0:15006", "[::1]:15006", "[::1]:15006", false, false},
	} {
		a := &active{addresses: []conn.Address{conn.TCP(netip.MustParseAddrPort(c.listens))}}
		meant := netip.MustParseAddrPort(c.meant)
		if got := a.listensAt(meant); got != c.own {
			t.Errorf("%s: the listener's own: %t, want %t", c.name, got, c.own)
		}
		s := &tcpSession{k: &connection{ownDst: c.own}, cluster: e.clusters.Ref("backend").Cluster()}
		s.k.OriginalDst = meant
		if got := s.toItself(netip.MustParseAddrPort(c.to)); got != c.circle {
			t.Errorf("%s: a circle: %t, want %t", c.name, got, c.circle)
		}
	}
}
