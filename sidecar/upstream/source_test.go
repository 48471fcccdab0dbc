package upstream

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/message"
)

func from(s string) *Source { return &Source{Addr: netip.AddrPortFrom(netip.MustParseAddr(s), 0)} }

// TestPoolsBySource: connections in the name of one client are for that client alone.
func TestPoolsBySource(t *testing.T) {
	g := newRig(t, config("c", at("127.0.0.1:9")), 2)
	on(g.workers[0], func() {
		pool := func(s *Source) *Pool { return g.host.Pool(g.workers[0], message.HTTP11, s) }
		plain, one, two := pool(nil), pool(from("10.0.0.1")), pool(from("10.0.0.2"))
		if plain == one || one == two || one != pool(from("10.0.0.1")) {
			t.Error("pools are not one for each client")
		}
		if pool(from("fd00::1")) != plain {
			t.Error("an IPv6 client's address is borrowed towards an IPv4 host")
		}
		if g.host.Pool(g.workers[0], message.HTTP2, from("10.0.0.1")) != one {
			t.Error("the cluster says which protocol is spoken, and there are two pools")
		}
		if d := one.idleTimeout(); d <= 0 || d > poolIdle {
			t.Errorf("idle for %v", d)
		}
		if o := one.source.options(g.host); !o.Transparent || o.Source != netip.MustParseAddr("10.0.0.1") {
			t.Errorf("%+v", o)
		}
		if o := plain.source.options(g.host); o.Transparent || o.Source.IsValid() {
			t.Errorf("%+v", o)
		}
		for i := range 1000 {
			pool(&Source{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 0)})
		}
		if n := len(g.host.sourced[0]); n > maxIdlePools {
			t.Errorf("%d pools without a connection are kept", n)
		}
	})
	if g.host.sourced[1] != nil {
		t.Error("the other worker has pools, too")
	}
}

// TestConnectionsInAClientsName: the application sees the client's address, and a connection is used again.
func TestConnectionsInAClientsName(t *testing.T) {
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err != nil {
		t.Fatal(err)
	} else if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		unix.Close(fd)
		t.Skip("IP_TRANSPARENT needs CAP_NET_ADMIN; integration tests need it too: ", os.NewSyscallError("setsockopt", err))
	} else {
		unix.Close(fd)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(r.RemoteAddr)) }))
	defer s.Close()
	g := newRig(t, config("c", at(s.Listener.Addr().String())), 1)
	get := func(source *Source) string {
		var k *call
		on(g.workers[0], func() { k = newCall(g.host.Pool(g.workers[0], message.HTTP11, source), "/").start() })
		<-k.done
		if k.reason != 0 {
			t.Errorf("%v %s", k.reason, k.text)
		}
		return k.body
	}
	first := get(from("127.0.0.7"))
	a, err := netip.ParseAddrPort(first)
	if err != nil || a.Addr() != netip.MustParseAddr("127.0.0.7") {
		t.Errorf("the application saw %q, %v", first, err)
	}
	if second := get(from("127.0.0.7")); second != first {
		t.Errorf("connections %q and %q, want one", first, second)
	}
	if other := get(from("127.0.0.8")); other == first {
		t.Errorf("two clients on the connection %q", other)
	}
}

func TestServerNamesOfAuthorities(t *testing.T) {
	for authority, want := range map[string]string{
		"a.example": "a.example", "a.example:8443": "a.example", "a.example.": "a.example", "localhost": "localhost", "": "", ":80": "",
		"127.0.0.1": "", "127.0.0.1:80": "", "[::1]": "", "[::1]:80": "", "10.1": "", strings.Repeat("a", 300): "", "x1.2a": "x1.2a",
	} {
		if got := string(serverName([]byte(authority))); got != want {
			t.Errorf("%q: %q, want %q", authority, got, want)
		}
	}
}

// sniTLS is the TLS of a cluster with auto_sni: the server's name is what it is told.
type sniTLS struct{}

func (sniTLS) ClientConfig(name string) (*tls.Config, error) {
	return &tls.Config{InsecureSkipVerify: true, ServerName: name}, nil
}

// TestAutoSNIAsksForTheNameOfTheRequest, on connections that only requests for that name use.
func TestAutoSNIAsksForTheNameOfTheRequest(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.TLS.ServerName) }))
	s.Config.ErrorLog = quietLog
	s.StartTLS()
	defer s.Close()
	for _, auto := range []bool{true, false} {
		ep := at(s.Listener.Addr().String())
		ep.Hostname = "endpoint.test"
		cfg := config("c", ep)
		cfg.TLS, cfg.AutoSNI = sniTLS{}, auto
		cfg.Breakers[0].Connections = 3
		g := newRig(t, cfg, 1)
		ask := func(authority string) *call {
			var k *call
			g.on(func(*Pool) {
				k = newCall(g.host.PoolFor(g.workers[0], message.HTTP11, nil, []byte(authority)), "/")
				k.start()
			})
			<-k.done
			return k
		}
		for _, c := range []struct {
			authority, want string
			reused          bool
		}{
			{"a.test", "a.test", false}, {"b.test:443", "b.test", false}, {"a.test", "a.test", true}, {"b.test", "b.test", true},
			{"192.0.2.1", "endpoint.test", false}, // an address is no server name
		} {
			if !auto {
				c.want, c.reused = "endpoint.test", g.cluster.Stats.Value(StatCxTotal) > 0
			}
			if k := ask(c.authority); k.body != c.want || k.reused != c.reused {
				t.Errorf("auto_sni %v, %s: the server was asked for %q, on a connection that was used before: %v; %v %q", auto, c.authority, k.body, k.reused, k.reason, k.text)
			}
		}
		// No client makes more connections by asking for more names.
		if k := ask("c.test"); auto != (k.reason == message.Overflow) {
			t.Errorf("auto_sni %v: a name more than max_connections: %v", auto, k.reason)
		}
		g.r.Remove("c")
	}
}
