package listener

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/ring/ringtest"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/upstream"
)

// ground is a server whose listeners answer with a status that says which of them it was.
type ground struct {
	t       testing.TB
	server  *Server
	metrics *metric.Registry
	port    uint16 // that is free at all addresses of loopback but 127.0.0.1
	net     byte   // addresses are in 127.x
}

func newGround(t testing.TB, workers int) *ground {
	t.Helper()
	g := &ground{t: t, metrics: metric.NewRegistry(workers), net: byte(1 + rand.N(250))}
	var list []*loop.Worker
	for i := range workers {
		w, err := loop.New(i)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { w.Run(); close(done) }()
		t.Cleanup(func() { w.Stop(); <-done })
		ringtest.Use(t, w, conn.Batch)
		list = append(list, w)
	}
	log := slog.New(slog.DiscardHandler)
	g.server = NewServer(list, upstream.NewRegistry(list, g.metrics, log), g.metrics, log)
	holder, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { holder.Close() })
	g.port = netip.MustParseAddrPort(holder.Addr().String()).Port()
	return g
}

// at is one of the addresses that listeners can have.
func (g *ground) at(i int) conn.Address {
	return conn.TCP(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, g.net, 7, byte(i)}), g.port))
}

// listener answers with the status.
func (g *ground) listener(name string, status int, addrs ...conn.Address) *Config {
	table, err := route.NewTable([]*route.VirtualHost{{Name: "v", Domains: []string{"*"}, Entries: []route.Entry{{Matcher: route.NewPath(route.PathPrefix, "/", false),
		Route: &route.Route{Name: "r", TraceSampling: -1, Direct: &route.Direct{Status: status}}}}}}, route.TableOptions{})
	if err != nil {
		g.t.Fatal(err)
	}
	m := &stream.Manager{StatPrefix: "test", Codec: codec.Auto, Stats: g.metrics.Set("http", "test", stream.Stats), StreamIdle: time.Minute, ConnectionIdle: time.Hour,
		Drain: time.Second, DelayedClose: time.Second, Routes: route.NewHandle(name, table)}
	c := &Config{Name: name, StatPrefix: name, Bind: true, BufferLimit: 1 << 20, Addresses: addrs, Chains: []*Chain{{Name: "c", Key: "c", HTTP: m}}}
	for _, a := range addrs { // as config compiles it
		c.Hash = c.Hash*31 + uint64(a.IP.Addr().As4()[3])<<16 + uint64(a.IP.Port())
	}
	return c
}

// ask says which listener answers at an address, 0 where none does.
func (g *ground) ask(a conn.Address) int {
	g.t.Helper()
	c, err := net.Dial("tcp", a.IP.String())
	if errors.Is(err, syscall.ECONNREFUSED) {
		return 0
	}
	if err != nil {
		g.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	status, err := request(c)
	if err != nil {
		g.t.Fatalf("at %s: %v", a, err)
	}
	return status
}

func request(c net.Conn) (status int, err error) {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, err
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscanf(string(b), "HTTP/1.1 %d ", &status)
	return status, err
}

func (g *ground) apply(c Change, want ...string) {
	g.t.Helper()
	for i, err := range g.server.ApplyAll(c) {
		switch text := fmt.Sprint(err); {
		case want[i] == "" && err != nil:
			g.t.Fatalf("%s is refused: %v", c.Set[i].Name, err)
		case want[i] != "" && !strings.Contains(text, want[i]):
			g.t.Fatalf("%s: %s, want an error with %q", c.Set[i].Name, text, want[i])
		}
	}
}

func (g *ground) answers(want map[int]int) {
	g.t.Helper()
	for i, status := range want {
		if got := g.ask(g.at(i)); got != status {
			g.t.Errorf("at %s listener %d answers, want %d", g.at(i), got, status)
		}
	}
}

// TestTwoListenersOfOneAddress are refused as Envoy refuses them (listener_manager_impl.cc, hasDuplicatedAddress).
func TestTwoListenersOfOneAddress(t *testing.T) {
	tcp := func(s string) conn.Address { return conn.TCP(netip.MustParseAddrPort(s)) }
	virtual := func(c *Config) *Config { c.Bind = false; return c }
	g := newGround(t, 1)
	for name, c := range map[string]struct {
		a, b    *Config
		refused bool
	}{
		"the same address":             {g.listener("a", 201, tcp("127.0.0.5:80")), g.listener("b", 202, tcp("127.0.0.5:80")), true},
		"written in another way":       {g.listener("a", 201, tcp("127.0.0.5:80")), &Config{Name: "b", Bind: true, Addresses: []conn.Address{tcp("[::ffff:127.0.0.5]:80")}}, true},
		"neither of which binds":       {virtual(g.listener("a", 201, tcp("127.0.0.5:80"))), virtual(g.listener("b", 202, tcp("127.0.0.5:80"))), true},
		"one of which binds":           {g.listener("a", 201, tcp("127.0.0.5:80")), virtual(g.listener("b", 202, tcp("127.0.0.5:80"))), true},
		"an additional address":        {g.listener("a", 201, tcp("127.0.0.5:80")), g.listener("b", 202, tcp("127.0.0.5:81"), tcp("127.0.0.5:80")), true},
		"a path":                       {&Config{Name: "a", Bind: true, Addresses: []conn.Address{conn.Unix("/a")}}, &Config{Name: "b", Bind: true, Addresses: []conn.Address{conn.Unix("/a")}}, true},
		"port 0 of both, unbound":      {virtual(g.listener("a", 201, tcp("127.0.0.5:0"))), virtual(g.listener("b", 202, tcp("127.0.0.5:0"))), true},
		"port 0 of both":               {g.listener("a", 201, tcp("127.0.0.5:0")), g.listener("b", 202, tcp("127.0.0.5:0")), false},
		"an address and the wildcard":  {g.listener("a", 201, tcp("0.0.0.0:80")), g.listener("b", 202, tcp("127.0.0.5:80")), false},
		"another port":                 {g.listener("a", 201, tcp("127.0.0.5:80")), g.listener("b", 202, tcp("127.0.0.5:81")), false},
		"the same address of one name": {g.listener("a", 201, tcp("127.0.0.5:80")), g.listener("a", 202, tcp("127.0.0.5:80")), true}, // Conflict is not asked then
	} {
		t.Run(name, func(t *testing.T) {
			if at, refused := Conflict(c.a, c.b); refused != c.refused {
				t.Errorf("conflict: %v at %v, want %v", refused, at, c.refused)
			}
		})
	}
	t.Run("the error names both", func(t *testing.T) {
		g.apply(Change{Set: []*Config{g.listener("first", 201, g.at(1))}}, "")
		err := g.server.Apply(g.listener("second", 202, g.at(1)))
		var duplicate *DuplicateError
		if !errors.As(err, &duplicate) || !strings.Contains(err.Error(), `"second"`) || !strings.Contains(err.Error(), `"first"`) {
			t.Errorf("%v", err)
		}
		g.answers(map[int]int{1: 201})
	})
	t.Run("the wildcard's sockets and the address's", func(t *testing.T) {
		port := g.port
		any := conn.TCP(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
		// The port is held at 127.0.0.1, so that the wildcard cannot be had: another process.
		var bind *BindError
		if err := g.server.Apply(g.listener("any", 203, any)); !errors.As(err, &bind) || !strings.Contains(err.Error(), "another process") {
			t.Errorf("%v, want the other process", err)
		}
		// With a port that is free everywhere both can be.
		if err := g.server.Apply(g.listener("any", 203, conn.TCP(netip.MustParseAddrPort("0.0.0.0:0")))); err != nil {
			t.Fatal(err)
		}
		free := g.server.AddrOf("any").Port()
		one := conn.TCP(netip.AddrPortFrom(g.at(9).IP.Addr(), free))
		if err := g.server.Apply(g.listener("one", 204, one)); err != nil {
			t.Fatal(err)
		}
		if got := g.ask(one); got != 204 {
			t.Errorf("%d answers at the address, want 204", got)
		}
		if got := g.ask(conn.TCP(netip.AddrPortFrom(g.at(8).IP.Addr(), free))); got != 203 {
			t.Errorf("%d answers at another address, want 203", got)
		}
	})
}

// TestAListenerThatIsRenamedLosesNoConnection: clients connect all the time while its sockets go from one to the next.
func TestAListenerThatIsRenamedLosesNoConnection(t *testing.T) {
	for _, workers := range []int{1, 2} {
		g := newGround(t, workers)
		g.apply(Change{Set: []*Config{g.listener("l0", 200, g.at(1))}}, "")
		stop, failed := make(chan struct{}), make(chan error, 2)
		for range 2 {
			go func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						failed <- nil
						return
					default:
					}
					c, err := net.Dial("tcp", g.at(1).IP.String())
					if err == nil {
						_ = c.SetDeadline(time.Now().Add(20 * time.Second))
						_, err = request(c)
						c.Close()
					}
					if err != nil {
						failed <- fmt.Errorf("request %d: %w", n, err)
						return
					}
				}
			}()
		}
		for i := range 100 {
			g.apply(Change{Remove: []string{fmt.Sprintf("l%d", i)}, Set: []*Config{g.listener(fmt.Sprintf("l%d", i+1), 200, g.at(1))}}, "")
		}
		close(stop)
		for range 2 {
			if err := <-failed; err != nil {
				t.Errorf("with %d workers: %v", workers, err)
			}
		}
		if got := g.server.Names(); !slices.Equal(got, []string{"l100"}) {
			t.Errorf("there are %v", got)
		}
	}
}

// TestAnAddressIsFreeWhenItsListenerIsRemoved, in the update before.
func TestAnAddressIsFreeWhenItsListenerIsRemoved(t *testing.T) {
	g := newGround(t, 2)
	for i := range 100 {
		name := fmt.Sprintf("l%d", i)
		if err := g.server.Apply(g.listener(name, 201, g.at(1))); err != nil {
			t.Fatal(err)
		}
		g.server.Remove(name)
	}
	g.answers(map[int]int{1: 0})
}

func TestListenersSwapTheirAddresses(t *testing.T) {
	g := newGround(t, 2)
	g.apply(Change{Set: []*Config{g.listener("a", 201, g.at(1)), g.listener("b", 202, g.at(2))}}, "", "")
	g.answers(map[int]int{1: 201, 2: 202})
	g.apply(Change{Set: []*Config{g.listener("a", 201, g.at(2)), g.listener("b", 202, g.at(1))}}, "", "")
	g.answers(map[int]int{1: 202, 2: 201})
	// A ring, with a newcomer and one that goes.
	g.apply(Change{Remove: []string{"a"}, Set: []*Config{g.listener("c", 203, g.at(1)), g.listener("b", 202, g.at(3), g.at(2))}}, "", "")
	g.answers(map[int]int{1: 203, 2: 202, 3: 202})
}

// TestWhatIsRefusedChangesNothing: neither for itself nor for those that counted on its address.
func TestWhatIsRefusedChangesNothing(t *testing.T) {
	g := newGround(t, 2)
	taken := conn.TCP(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), g.port)) // by the test's own listener
	g.apply(Change{Set: []*Config{g.listener("a", 201, g.at(1)), g.listener("b", 202, g.at(2))}}, "", "")
	errs := g.server.ApplyAll(Change{Set: []*Config{
		g.listener("c", 203, g.at(1)),          // counts on a's going
		g.listener("b", 204, g.at(2), g.at(3)), // goes well
		g.listener("a", 205, g.at(4), taken),   // cannot go
		g.listener("d", 206, g.at(4)),          // wants what a was to have
	}})
	var duplicate *DuplicateError
	var bind *BindError
	if !errors.As(errs[0], &duplicate) || duplicate.Other != "a" || errs[1] != nil || !errors.As(errs[2], &bind) || errs[3] == nil {
		t.Errorf("%v", errs)
	}
	g.answers(map[int]int{1: 201, 2: 204, 3: 204, 4: 0})
	// Nobody is left with a socket of what was tried.
	g.apply(Change{Set: []*Config{g.listener("d", 206, g.at(4))}}, "")
	g.answers(map[int]int{4: 206})
}

// TestRandomChangesAgainstAModel: after each, every listener that is said to be there answers at its addresses, and at
// no other does anybody.
func TestRandomChangesAgainstAModel(t *testing.T) {
	const names, addresses = 5, 4
	for seed := range uint64(4) {
		g := newGround(t, 2)
		r := rand.New(rand.NewPCG(seed, 1))
		force := map[string]*Config{}
		status := map[string]int{}
		for step := range 25 {
			var c Change
			for _, n := range r.Perm(names)[:r.IntN(names)] {
				name := fmt.Sprintf("l%d", n)
				if r.IntN(3) == 0 {
					c.Remove = append(c.Remove, name)
					continue
				}
				var at []conn.Address
				for _, i := range r.Perm(addresses)[:1+r.IntN(2)] {
					at = append(at, g.at(i))
				}
				c.Set = append(c.Set, g.listener(name, 200+n*20+step%20, at...))
			}
			errs := g.server.ApplyAll(c)
			for _, name := range c.Remove {
				delete(force, name)
			}
			for i, cfg := range c.Set {
				if errs[i] == nil {
					force[cfg.Name] = cfg
					status[cfg.Name] = cfg.Chains[0].HTTP.Routes.Table().VirtualHosts()[0].Entries[0].Route.Direct.Status
				}
			}
			// Those that are there do not conflict, and those that were refused do: with them, or with one that was asked for too.
			for i, cfg := range c.Set {
				there, asked := false, false
				for _, other := range append(slices.Collect(maps.Values(force)), c.Set...) {
					if _, is := Conflict(cfg, other); is && other.Name != cfg.Name {
						asked = true
						there = there || force[other.Name] == other
					}
				}
				if errs[i] == nil && there || errs[i] != nil && !asked {
					t.Fatalf("seed %d, step %d: %s has error %v; a conflict with one that is there: %v, that was asked for: %v", seed, step, cfg.Name, errs[i], there, asked)
				}
			}
			want := map[int]int{0: 0, 1: 0, 2: 0, 3: 0}
			for name, cfg := range force {
				for i := range want {
					if slices.Contains(cfg.Addresses, g.at(i)) {
						want[i] = status[name]
					}
				}
			}
			if got := g.server.Names(); !slices.Equal(got, slices.Sorted(maps.Keys(force))) {
				t.Fatalf("seed %d, step %d: there are %v, want %v", seed, step, got, slices.Sorted(maps.Keys(force)))
			}
			if g.answers(want); t.Failed() {
				t.Fatalf("seed %d, step %d: %d set, %v removed, %v", seed, step, len(c.Set), c.Remove, errs)
			}
		}
	}
}
