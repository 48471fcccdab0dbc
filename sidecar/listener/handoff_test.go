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
	settled := func() {
		done := make(chan struct{})
		e.worker.Post(func() { close(done) }) // behind what Apply and Remove have posted
		<-done
	}
	settled()
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
	settled()
	if got := get("240.0.0.1:80"); got != 201 {
		t.Errorf("after its removal the listener still answers %d", got)
	}
	if n := e.metrics.Set("listener", "any", stats).Value(statTotal); n != 1 {
		t.Errorf("the listener of any address counts %d connections, want 1", n)
	}
}
