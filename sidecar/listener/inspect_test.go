package listener

import (
	"bufio"
	"errors"
	"fmt"
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
	return serveTCP(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "220 welcome\n")
		b, _ := io.ReadAll(c)
		_, _ = c.Write(b)
	})
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
	addr := serveTCP(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "220 welcome\n")
		_, _ = io.Copy(c, c)
	})
	e := newEngine(t).to(addr)
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

// TestARequestLineIsKnownByItsFirstImpossibleByte: however the bytes come.
func TestARequestLineIsKnownByItsFirstImpossibleByte(t *testing.T) {
	long := strings.Repeat("M", maxMethod)
	for _, c := range []struct {
		line string // the last byte decides
		is   lineIs
		// redirected is what it is on a connection that was redirected, where that differs, and the byte that decides.
		redirected lineIs
		at         int
	}{
		{line: "GET / HTTP/1.1\r\n", is: lineHTTP11},
		{line: "GET / HTTP/1.0\r\n", is: lineHTTP10},
		{line: "M-SEARCH /a?b=c#d HTTP/1.1\r\n", is: lineHTTP11},
		{line: "OPTIONS * HTTP/1.1\r\n", is: lineHTTP11},
		{line: "GET  / HTTP/1.1\r\n", is: lineHTTP11},
		{line: long + " / HTTP/1.1\r\n", is: lineHTTP11},
		{line: "GET /" + strings.Repeat("a", 9000), is: lineGoesOn},
		{line: "GET", is: lineGoesOn},
		{line: "", is: lineGoesOn},
		{line: "CONNECT a.example:443 HTTP/1.1\r\n", is: lineHTTP11, redirected: lineNotHTTP, at: len("CONNECT ")},
		{line: "CONNECT [::1]:443 HTTP/1.1\r\n", is: lineHTTP11, redirected: lineNotHTTP, at: len("CONNECT ")},
		{line: "GET http://a.example/ HTTP/1.1\r\n", is: lineHTTP11, redirected: lineNotHTTP, at: len("GET ")},
		{line: "GET coap+tcp-1.0://a HTTP/1.0\r\n", is: lineHTTP10, redirected: lineNotHTTP, at: len("GET ")},

		{line: "\x00", is: lineNotHTTP}, // PostgreSQL, Kafka
		{line: "\x10", is: lineNotHTTP}, // MQTT
		{line: "\x80", is: lineNotHTTP},
		{line: "\x7f", is: lineNotHTTP},
		{line: " ", is: lineNotHTTP},
		{line: "\r", is: lineNotHTTP},
		{line: "{", is: lineNotHTTP},
		{line: "*1\r", is: lineNotHTTP},                  // Redis
		{line: "PING\r", is: lineNotHTTP},                // Redis, typed
		{line: "SSH-2.0-OpenSSH_9.6\r", is: lineNotHTTP}, //
		{line: "SSH-2.0-OpenSSH_9.6 Debian-1\r", is: lineNotHTTP, redirected: lineNotHTTP, at: len("SSH-2.0-OpenSSH_9.6 ")},
		{line: "get key\r", is: lineNotHTTP, redirected: lineNotHTTP, at: len("get ")}, // memcached
		{line: "set key ", is: lineNotHTTP, redirected: lineNotHTTP, at: len("set ")},
		{line: "set 1", is: lineNotHTTP},
		{line: long + "M", is: lineNotHTTP},
		{line: "GET /a b", is: lineNotHTTP},
		{line: "GET /\t", is: lineNotHTTP},
		{line: "GET /\x7f", is: lineNotHTTP},
		{line: "GET /\xc3", is: lineNotHTTP},
		{line: "GET /\r", is: lineNotHTTP}, // HTTP/0.9
		{line: "GET / h", is: lineNotHTTP},
		{line: "GET / HTTP/2", is: lineNotHTTP},
		{line: "GET / HTTP/1.2", is: lineNotHTTP},
		{line: "GET / HTTP/1.x", is: lineNotHTTP},
		{line: "GET / HTTP/1.1\n", is: lineNotHTTP},
		{line: "GET / HTTP/1.1 ", is: lineNotHTTP},
		{line: "GET / HTTP/1.1\rx", is: lineNotHTTP},
		{line: "GET http:/x", is: lineNotHTTP, redirected: lineNotHTTP, at: len("GET ")},
		{line: "CONNECT \r", is: lineNotHTTP},
		{line: "CONNECTS a:4", is: lineNotHTTP, redirected: lineNotHTTP, at: len("CONNECTS ")},
	} {
		for _, originOnly := range []bool{false, true} {
			want, at := c.is, len(c.line)-1
			if originOnly && c.redirected != 0 {
				want, at = c.redirected, c.at
			}
			var whole, piecewise requestLine
			if got := whole.scan([]byte(c.line), originOnly); got != want {
				t.Errorf("%q, redirected %t: %d, want %d", c.line, originOnly, got, want)
			}
			got, n := lineGoesOn, 0
			for ; n < len(c.line) && got == lineGoesOn; n++ {
				got = piecewise.scan([]byte(c.line[:n+1]), originOnly)
			}
			if got != want || want != lineGoesOn && n-1 != at {
				t.Errorf("%q, redirected %t, in pieces: %d after %d bytes, want %d after %d", c.line, originOnly, got, n, want, at+1)
			}
		}
	}
}

// TestWhatCannotBeHTTPIsNotWaitedFor: the time of the listener filters is over for no client of a test.
func TestWhatCannotBeHTTPIsNotWaitedFor(t *testing.T) {
	e := newEngine(t).to(welcome(t))
	at := e.inspected(time.Hour)
	for name, first := range map[string]string{"PostgreSQL": "\x00\x00\x00\x08\x04\xd2\x16\x2f", "Redis": "*1\r\n$4\r\nPING\r\n", "memcached": "get key\r\n", "not quite HTTP/2": "PRI * HTTP/2.0\r\n\r\nHM"} {
		t.Run(name, func(t *testing.T) {
			c := dialTCP(t, at)
			_ = c.SetNoDelay(true)
			for i := range first { // one by one
				if _, err := io.WriteString(c, first[i:i+1]); err != nil {
					t.Fatal(err)
				}
			}
			want := "220 welcome\n"
			b := make([]byte, len(want))
			if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
				t.Fatalf("%q, %v", b, err)
			}
			_ = c.CloseWrite()
			if b, err := io.ReadAll(c); err != nil || string(b) != first {
				t.Fatalf("the server heard %q, %v", b, err)
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

// TestARequestToAForwardProxyIsLeftAsItIs: on a connection that was redirected, whose client knows nothing of the listener.
func TestARequestToAForwardProxyIsLeftAsItIs(t *testing.T) {
	proxy := serveTCP(t, func(c net.Conn) {
		line, _ := bufio.NewReader(c).ReadString('\n')
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(line), line)
	})
	for _, c := range []struct {
		line       string
		redirected bool
		want       string // what the server hears; "": the connection manager answers itself
	}{
		{"GET /x HTTP/1.1", true, "GET /x HTTP/1.1"},
		{"GET http://a.example/x HTTP/1.1", true, "GET http://a.example/x HTTP/1.1"},
		{"CONNECT a.example:443 HTTP/1.1", true, "CONNECT a.example:443 HTTP/1.1"},
		{"GET http://a.example/x HTTP/1.1", false, "GET /x HTTP/1.1"},
		{"CONNECT a.example:443 HTTP/1.1", false, ""},
	} {
		t.Run(fmt.Sprintf("%s, redirected %t", c.line, c.redirected), func(t *testing.T) {
			e := newEngine(t).to(proxy)
			e.server.origin = func(*conn.Conn) (netip.AddrPort, error) {
				if !c.redirected {
					return netip.AddrPort{}, errors.New("not redirected")
				}
				return netip.MustParseAddrPort("192.0.2.1:3128"), nil
			}
			client := dialTCP(t, e.inspected(time.Hour, func(c *Config) { c.OriginalDst = true }))
			if _, err := fmt.Fprintf(client, "%s\r\nHost: a.example:443\r\nX: y\r\n\r\n", c.line); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(client), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			tcp := e.metrics.Set("tcp", "t", TCPStats).Value(tcpTotal) == 1
			if byTCP := c.redirected && c.line != "GET /x HTTP/1.1"; strings.TrimSpace(string(b)) != c.want || tcp != byTCP {
				t.Errorf("%d, the server heard %q; as TCP: %t", resp.StatusCode, b, tcp)
			}
		})
	}
}
