package listener

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/route"
)

// inspected serves with both inspectors: HTTP by the engine's manager, everything else as TCP. change, where given, is
// made to the configuration before.
func (e *engine) inspected(wait time.Duration, change ...func(*Config)) string {
	e.t.Helper()
	e.serve()
	tcp := &Chain{Name: "tcp", Key: "tcp", TCP: &TCPProxy{StatPrefix: "t", Stats: e.metrics.Set("tcp", "t", TCPStats), TotalWeight: 1,
		Clusters: []route.WeightedCluster{{Cluster: route.ClusterRef{Name: "backend", Ref: e.clusters.Ref("backend")}, Weight: 1}}}}
	cfg := &Config{Name: "inspected", StatPrefix: "inspected", Hash: 2, Bind: true, BufferLimit: 1 << 20, Inspect: true, HTTPInspect: true, FilterTime: wait, ContinueTime: true,
		Addresses: []conn.Address{conn.TCP(netip.MustParseAddrPort("127.0.0.1:0"))},
		Chains: []*Chain{{Name: "http", Key: "http", HTTP: e.manager,
			Match: Match{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.0", "http/1.1", "h2c"}}}},
		Default: tcp}
	e.change(cfg, change...)
	return e.server.AddrOf("inspected").String()
}

// change applies a configuration with changes to a copy of it.
func (e *engine) change(cfg *Config, change ...func(*Config)) {
	e.t.Helper()
	next := *cfg
	for _, f := range change {
		f(&next)
	}
	if err := e.server.Apply(&next); err != nil {
		e.t.Fatal(err)
	}
}

// inspectedOn is the listener's part on the engine's worker.
func (e *engine) inspectedOn() *workerListener { return e.server.active["inspected"].locals[0] }

// inspecting waits until n bytes of the one connection were looked at, and returns it.
func (e *engine) inspecting(n int) (k *connection) {
	e.t.Helper()
	l := e.inspectedOn()
	e.until("the connection is inspected", func() bool {
		if len(l.open) == 0 || l.open[0].conn.BytesRead() < uint64(n) {
			return false
		}
		k = l.open[0]
		return true
	})
	e.on(func() {
		if k.phase != inspecting {
			e.t.Errorf("the connection is not inspected any more: phase %d", k.phase)
		}
	})
	return k
}

// welcome is a server that speaks first, and says what it heard when its client has ended its sending.
func welcome(t testing.TB) string {
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
				_, _ = io.WriteString(c, "220 welcome\n")
				b, _ := io.ReadAll(c)
				_, _ = c.Write(b)
			}()
		}
	}()
	return l.Addr().String()
}

func TestPlaintextThatWasInspectedIsServed(t *testing.T) {
	e := newEngine(t).to(backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) }))
	at := e.inspected(20 * time.Second)
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	// In two pieces, so that there is something to wait for.
	for _, piece := range []string{"GET /first HT", "TP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"} {
		if _, err := io.WriteString(c, piece); err != nil {
			t.Fatal(err)
		}
	}
	b, err := io.ReadAll(c)
	if err != nil || len(b) < 20 || string(b[:15]) != "HTTP/1.1 200 OK" || string(b[len(b)-6:]) != "/first" {
		t.Fatalf("%q, %v", b, err)
	}
}

// TestAServerThatSpeaksFirstIsNotWaitedForLong: and what the client said meanwhile is not lost.
func TestAServerThatSpeaksFirstIsNotWaitedForLong(t *testing.T) {
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
				_, _ = io.WriteString(c, "220 welcome\n")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	e := newEngine(t).to(l.Addr().String())
	at := e.inspected(30 * time.Millisecond)
	for name, first := range map[string]string{"silent client": "", "half a request line": "GET"} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.WriteString(c, first); err != nil {
				t.Fatal(err)
			}
			want := "220 welcome\n" + first
			b := make([]byte, len(want))
			if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
				t.Fatalf("%q, %v", b, err)
			}
		})
	}
}

// TestAClientThatEndsItsSendingIsServed: before the first bytes have decided anything.
func TestAClientThatEndsItsSendingIsServed(t *testing.T) {
	e := newEngine(t).to(welcome(t))
	at := e.inspected(time.Hour)
	for name, first := range map[string]string{"nothing": "", "half a request line": "GET /" + strings.Repeat("a", 95), "half a ClientHello": "\x16\x03\x01\x02\x00\x01", "half a preface": "PRI *"} {
		t.Run(name, func(t *testing.T) {
			c := dialTCP(t, at)
			if _, err := io.WriteString(c, first); err != nil {
				t.Fatal(err)
			}
			k := e.inspecting(len(first))
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(c); err != nil || string(b) != "220 welcome\n"+first {
				t.Errorf("%q, %v", b, err)
			}
			e.until("the connection is gone", func() bool { return len(e.inspectedOn().open) == 0 })
			e.on(func() {
				if k.timer.Scheduled() {
					t.Error("the timer of the listener filters runs on")
				}
			})
		})
	}
}

// TestAClientThatEndsItsSendingIsRefused: where no answer can be for it.
func TestAClientThatEndsItsSendingIsRefused(t *testing.T) {
	tls := func(c *Config) {
		c.Default = &Chain{Name: "tls", Key: "tls", TLS: selfSigned(t), HTTP: c.Chains[0].HTTP}
	}
	proxy := func(c *Config) { c.ProxyHeader = true }
	optional := func(c *Config) { c.ProxyHeader, c.ProxyOption = true, true }
	for name, c := range map[string]struct {
		change func(*Config)
		first  string
	}{
		"no TLS handshake without an answer":     {tls, "\x16\x03\x01"},
		"no TLS handshake without a beginning":   {tls, ""},
		"a PROXY header is required":             {proxy, ""},
		"half a PROXY header":                    {proxy, "PROXY TCP4 192.0.2.1"},
		"half a PROXY header, where it may miss": {optional, "PROXY TCP4 192.0.2.1"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t).to(welcome(t))
			at := e.inspected(time.Hour, c.change)
			client := dialTCP(t, at)
			if _, err := io.WriteString(client, c.first); err != nil {
				t.Fatal(err)
			}
			k := e.inspecting(len(c.first))
			if err := client.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(client); err != nil || len(b) > 0 {
				t.Errorf("%q, %v", b, err)
			}
			e.until("the connection is gone", func() bool { return len(e.inspectedOn().open) == 0 })
			e.on(func() {
				if k.timer.Scheduled() || k.handler != nil {
					t.Errorf("timer %t, handler %v", k.timer.Scheduled(), k.handler)
				}
			})
		})
	}
	t.Run("but not where the header may miss", func(t *testing.T) {
		e := newEngine(t).to(welcome(t))
		c := dialTCP(t, e.inspected(time.Hour, optional))
		e.inspecting(0)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != "220 welcome\n" {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// TestAnInspectedConnectionLeavesNothing: whoever ends it.
func TestAnInspectedConnectionLeavesNothing(t *testing.T) {
	for name, end := range map[string]func(*engine, *net.TCPConn){
		"the client resets it":        func(_ *engine, c *net.TCPConn) { _ = c.SetLinger(0); c.Close() },
		"the listener goes":           func(e *engine, _ *net.TCPConn) { e.server.Remove("inspected") },
		"its time is over":            func(e *engine, _ *net.TCPConn) { e.on(func() { e.inspectedOn().open[0].inspectTimeout() }) },
		"its bytes are not the right": func(_ *engine, c *net.TCPConn) { _, _ = io.WriteString(c, "no PROXY header") },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t).to(welcome(t))
			c := dialTCP(t, e.inspected(time.Hour, func(c *Config) { c.ContinueTime, c.ProxyHeader = false, true }))
			k := e.inspecting(0)
			l := k.local
			end(e, c)
			e.until("the connection is gone", func() bool { return len(l.open) == 0 })
			e.on(func() {
				if n := e.server.Open(); n != 0 || k.timer.Scheduled() || k.phase != closed {
					t.Errorf("%d connections are counted, timer %t, phase %d", n, k.timer.Scheduled(), k.phase)
				}
			})
		})
	}
}

// TestAnUpdateWhileTheFirstBytesAreInspected: the connection's chain is one of the new configuration.
func TestAnUpdateWhileTheFirstBytesAreInspected(t *testing.T) {
	noHTTP := func(c *Config) { c.Chains = nil }
	noFilters := func(c *Config) { c.Chains, c.Inspect, c.HTTPInspect, c.ContinueTime = nil, false, false, false }
	nothing := func(c *Config) { c.Chains, c.Default = nil, nil }
	for name, c := range map[string]struct {
		change      func(*Config)
		first, rest string
		want        string
	}{
		"the chain is gone":              {noHTTP, "GET / HT", "TP/1.1\r\n\r\n", "220 welcome\nGET / HTTP/1.1\r\n\r\n"},
		"the filters are gone":           {noFilters, "", "", "220 welcome\n"},
		"so that the rest is waited for": {noFilters, "GET", "!", "220 welcome\nGET!"},
		"all chains are gone":            {nothing, "GET / HT", "TP/1.1\r\n\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t).to(welcome(t))
			client := dialTCP(t, e.inspected(time.Hour))
			if _, err := io.WriteString(client, c.first); err != nil {
				t.Fatal(err)
			}
			e.inspecting(len(c.first))
			e.change(e.server.active["inspected"].cfg.Load(), c.change)
			e.on(func() {})
			if banner := "220 welcome\n"; c.rest == "" { // by the update alone
				if _, err := io.ReadFull(client, make([]byte, len(banner))); err != nil {
					t.Fatal(err)
				}
				return
			}
			if _, err := io.WriteString(client, c.rest); err != nil {
				t.Fatal(err)
			}
			_ = client.CloseWrite()
			b, err := io.ReadAll(client)
			if c.want == "" && len(b) == 0 {
				return // closed, or reset with what came too late
			}
			if err != nil || string(b) != c.want {
				t.Errorf("%q, %v; want %q", b, err, c.want)
			}
		})
	}
}

// TestTheFirstBytesMayBeMoreThanTheBufferLimit: which is for what the connection is for.
func TestTheFirstBytesMayBeMoreThanTheBufferLimit(t *testing.T) {
	e := newEngine(t).to(backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) }))
	c := dialTCP(t, e.inspected(time.Hour, func(c *Config) { c.BufferLimit = 1 << 10 }))
	path := "/" + strings.Repeat("a", 4<<10)
	if _, err := io.WriteString(c, "GET "+path); err != nil {
		t.Fatal(err)
	}
	e.inspecting(len("GET " + path))
	if _, err := io.WriteString(c, " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != path {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
}
