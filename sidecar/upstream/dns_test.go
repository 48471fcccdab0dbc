package upstream

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"sallyport/sidecar/message"
)

// names is a resolver for tests: addresses by network and name. What it does not know does not exist.
type names struct {
	mu      sync.Mutex
	addrs   map[string][]string
	failing map[string]error
	holding map[string]chan struct{} // is asked, and does not answer until that is closed
	asked   int
	now     int // questions that are held
	most    int
}

var errServFail = &net.DNSError{Err: "server misbehaving", IsTemporary: true}

func (n *names) lookup(ctx context.Context, network, name string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	if hold := n.holding[name]; hold != nil {
		n.now++
		n.most = max(n.most, n.now)
		n.mu.Unlock()
		select {
		case <-hold:
		case <-ctx.Done():
		}
		n.mu.Lock()
		n.now--
	}
	if err := ctx.Err(); err != nil {
		return nil, &net.DNSError{Err: err.Error(), IsTimeout: true}
	}
	if err := n.failing[network+" "+name]; err != nil {
		return nil, err
	}
	list, ok := n.addrs[network+" "+name]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
	}
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

// set has a name have addresses, or none.
func (n *names) set(name string, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.addrs == nil {
		n.addrs, n.failing, n.holding = map[string][]string{}, map[string]error{}, map[string]chan struct{}{}
	}
	delete(n.failing, name)
	delete(n.addrs, name)
	if addrs != nil {
		n.addrs[name] = addrs
	}
}

// fail has the question be answered with an error.
func (n *names) fail(name string, err error) {
	n.set(name)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failing[name] = err
}

// hold has questions wait.
func (n *names) hold(name string) (release func()) {
	n.set("")
	n.mu.Lock()
	defer n.mu.Unlock()
	c := make(chan struct{})
	n.holding[name] = c
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.holding, name)
		close(c)
	}
}

// resolving is a registry that asks n.
func resolving(t testing.TB, n *names) *Registry {
	r := registry(t)
	r.lookup, r.routable = n.lookup, func(netip.Addr) bool { return true }
	return r
}

func dnsConfig(d Discovery, list ...string) *Config {
	cfg := config("d")
	cfg.Discovery, cfg.DNSRefresh, cfg.DNSFamily = d, 5*time.Second, DNSAll
	for _, name := range list {
		cfg.Endpoints = append(cfg.Endpoints, Endpoint{Hostname: name, Port: 80, Weight: 1})
	}
	return cfg
}

func hosts(c *Cluster) []string { return slices.Sorted(maps.Keys(identities(c))) }

func TestStrictDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &names{}
		r := resolving(t, n)
		n.set("ip4 a", "10.0.0.2", "10.0.0.1", "::ffff:10.0.0.1")
		n.set("ip6 b", "fd00::1")
		r.Set(dnsConfig(StrictDNS, "a", "b"))
		c := r.Lookup("d")
		synctest.Wait()
		if got := hosts(c); !slices.Equal(got, []string{"10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80"}) {
			t.Fatalf("hosts are %v", got)
		}
		kept, set := identities(c)["10.0.0.1:80"], c.hosts.Load()
		if kept.Hostname() != "a" {
			t.Errorf("the host's name is %q", kept.Hostname())
		}

		// The same answer makes nothing new; another one keeps what it can.
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if c.hosts.Load() != set {
			t.Error("the same answer made a new host set")
		}
		n.set("ip4 a", "10.0.0.1", "10.0.0.3")
		n.fail("ip6 b", errServFail)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := hosts(c); !slices.Equal(got, []string{"10.0.0.1:80", "10.0.0.3:80", "[fd00::1]:80"}) {
			t.Fatalf("hosts are %v; b could not be resolved and should keep its address", got)
		}
		if identities(c)["10.0.0.1:80"] != kept {
			t.Error("a host that stayed is another one")
		}

		// Other names with the same hash: looked up at once, not in five seconds.
		n.set("ip4 e", "10.0.0.9")
		r.Set(dnsConfig(StrictDNS, "a", "e"))
		synctest.Wait()
		if r.Lookup("d") != c {
			t.Error("the cluster was made anew")
		}
		if got := hosts(c); !slices.Equal(got, []string{"10.0.0.1:80", "10.0.0.3:80", "10.0.0.9:80"}) {
			t.Fatalf("hosts are %v", got)
		}

		// A new configuration begins with what is known, even in an outage.
		n.fail("ip4 a", errServFail)
		n.fail("ip4 e", errServFail)
		next := dnsConfig(StrictDNS, "a", "e")
		next.Hash = 2
		r.Set(next)
		if got := hosts(r.Lookup("d")); len(got) != 3 {
			t.Fatalf("hosts are %v right after the update", got)
		}
		synctest.Wait()
		if got := hosts(r.Lookup("d")); len(got) != 3 {
			t.Fatalf("hosts are %v after failed look-ups", got)
		}
		r.Remove("d")
		synctest.Wait()
		asked := n.asked
		time.Sleep(time.Minute)
		if n.asked != asked {
			t.Error("names of a removed cluster are still looked up")
		}
	})
}

// TestAnAnswerOfNoneAndAFailure: Envoy's strict_dns_cluster.cc and logical_dns_cluster.cc.
func TestAnAnswerOfNoneAndAFailure(t *testing.T) {
	timeout := &net.DNSError{Err: "i/o timeout", IsTimeout: true}
	for name, c := range map[string]struct {
		kind         Discovery
		four, six    error // nil: no such name
		want, failed int
	}{
		"STRICT_DNS, no such name":           {StrictDNS, nil, nil, 0, 0},
		"STRICT_DNS, SERVFAIL":               {StrictDNS, errServFail, errServFail, 2, 1},
		"STRICT_DNS, silence":                {StrictDNS, timeout, timeout, 2, 1},
		"STRICT_DNS, one family is not told": {StrictDNS, nil, errServFail, 2, 1},
		"LOGICAL_DNS, no such name":          {LogicalDNS, nil, nil, 1, 1},
		"LOGICAL_DNS, SERVFAIL":              {LogicalDNS, errServFail, nil, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &names{}
				r := resolving(t, n)
				n.set("ip4 a", "10.0.0.2", "10.0.0.1")
				r.Set(dnsConfig(c.kind, "a"))
				synctest.Wait()
				cluster := r.Lookup("d")
				before := cluster.Stats.Value(StatUpdateFailure)
				n.fail("ip4 a", c.four)
				n.fail("ip6 a", c.six)
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if got := hosts(cluster); len(got) != c.want {
					t.Errorf("hosts are %v, want %d", got, c.want)
				}
				if failed := cluster.Stats.Value(StatUpdateFailure) - before; failed != int64(c.failed) || cluster.Stats.Value(StatUpdateAttempt) != 2 {
					t.Errorf("%d failures, %d attempts", failed, cluster.Stats.Value(StatUpdateAttempt))
				}
				n.set("ip4 a", "10.0.0.3")
				n.set("ip6 a")
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if got := hosts(cluster); !slices.Equal(got, []string{"10.0.0.3:80"}) {
					t.Errorf("hosts are %v after the name is there again", got)
				}
				r.Remove("d")
			})
		})
	}
}

// TestFamiliesOfAddresses: Envoy's DnsLookupFamily.
func TestFamiliesOfAddresses(t *testing.T) {
	const four, six, away = "10.0.0.1", "fd00::1", "2001:db8::1" // there is no route to the last one
	for name, c := range map[string]struct {
		family    DNSFamily
		four, six []string
		want      []string
	}{
		"V4_ONLY":                             {DNSv4Only, []string{four}, []string{six}, []string{four}},
		"V4_ONLY, none":                       {DNSv4Only, nil, []string{six}, nil},
		"V6_ONLY":                             {DNSv6Only, []string{four}, []string{six}, []string{six}},
		"V6_ONLY, none":                       {DNSv6Only, []string{four}, nil, nil},
		"V4_PREFERRED":                        {DNSv4Preferred, []string{four}, []string{six}, []string{four}},
		"V4_PREFERRED, IPv6 alone":            {DNSv4Preferred, nil, []string{six}, []string{six}},
		"AUTO":                                {DNSAuto, []string{four}, []string{six}, []string{six}},
		"AUTO, IPv4 alone":                    {DNSAuto, []string{four}, nil, []string{four}},
		"AUTO, IPv6 that no route leads to":   {DNSAuto, []string{four}, []string{away}, []string{four}},
		"AUTO, one that a route leads to":     {DNSAuto, []string{four}, []string{away, six}, []string{six}},
		"V6_ONLY, one that no route leads to": {DNSv6Only, nil, []string{away}, []string{away}},
		"ALL":                                 {DNSAll, []string{four}, []string{six}, []string{four, six}},
		"ALL, IPv4 alone":                     {DNSAll, []string{four}, nil, []string{four}},
	} {
		t.Run(name, func(t *testing.T) {
			n := &names{}
			r := resolving(t, n)
			r.routable = func(a netip.Addr) bool { return a.String() != away }
			n.set("ip4 a", c.four...)
			n.set("ip6 a", c.six...)
			cfg := dnsConfig(StrictDNS, "a")
			cfg.DNSFamily = c.family
			cluster := newCluster(cfg, r)
			addrs, err := cluster.lookupName(t.Context(), "a")
			var got []string
			for _, a := range addrs {
				got = append(got, a.String())
			}
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v, %v, want %v", got, err, c.want)
			}
		})
	}
	t.Run("what one family has is used though the other fails", func(t *testing.T) {
		n := &names{}
		n.set("ip6 a", six)
		n.fail("ip4 a", errServFail)
		cluster := newCluster(dnsConfig(StrictDNS, "a"), resolving(t, n))
		for _, f := range []DNSFamily{DNSAll, DNSv4Preferred, DNSAuto} {
			cluster.Config.DNSFamily = f
			if addrs, err := cluster.lookupName(t.Context(), "a"); err != nil || len(addrs) != 1 {
				t.Errorf("family %d: %v, %v", f, addrs, err)
			}
		}
	})
}

// TestNamesDoNotWaitForEachOther: each is published when it is known.
func TestNamesDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &names{}
		r := resolving(t, n)
		n.set("ip4 fast", "10.0.0.1")
		n.set("ip4 slow", "10.0.0.2")
		release := n.hold("slow")
		r.Set(dnsConfig(StrictDNS, "slow", "fast"))
		c := r.Lookup("d")
		synctest.Wait()
		if got := hosts(c); !slices.Equal(got, []string{"10.0.0.1:80"}) {
			t.Errorf("hosts are %v while one name is slow", got)
		}
		n.set("ip4 fast", "10.0.0.3")
		time.Sleep(5 * time.Second) // the slow one has failed, and is asked again
		synctest.Wait()
		if got := hosts(c); !slices.Equal(got, []string{"10.0.0.3:80"}) {
			t.Errorf("hosts are %v at the next look-up", got)
		}
		release()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := hosts(c); !slices.Equal(got, []string{"10.0.0.2:80", "10.0.0.3:80"}) {
			t.Errorf("hosts are %v when the slow one has answered", got)
		}
		r.Remove("d")
	})
}

func TestLookUpsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &names{}
		r := resolving(t, n)
		var list []string
		var release []func()
		for i := range 3 * maxLookups {
			name := fmt.Sprintf("n%d", i)
			n.set("ip4 "+name, fmt.Sprintf("10.0.1.%d", i))
			release = append(release, n.hold(name))
			list = append(list, name)
		}
		r.Set(dnsConfig(StrictDNS, list...))
		synctest.Wait()
		if n.now != maxLookups {
			t.Errorf("%d look-ups are under way, want %d", n.now, maxLookups)
		}
		for _, f := range release {
			f()
		}
		synctest.Wait()
		if got := hosts(r.Lookup("d")); n.most != maxLookups || len(got) != len(list) {
			t.Errorf("%d look-ups at once, %d hosts", n.most, len(got))
		}
		r.Remove("d")
	})
}

// TestFailureRefresh: dns_failure_refresh_rate grows to its bound, and is dns_refresh_rate where it is not set.
func TestFailureRefresh(t *testing.T) {
	cfg := &Config{DNSRefresh: 5 * time.Second}
	if d := cfg.failureRefresh(7); d != cfg.DNSRefresh {
		t.Errorf("without it: %v", d)
	}
	cfg.DNSFailure, cfg.DNSFailureMax = time.Second, 3*time.Second
	for failures, most := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 3: 3 * time.Second, 100: 3 * time.Second} {
		longest := time.Duration(0)
		for range 1000 {
			longest = max(longest, cfg.failureRefresh(failures))
		}
		if longest > most || longest < most*9/10 {
			t.Errorf("after %d failures the longest of 1000 waits is %v, want nearly %v", failures, longest, most)
		}
	}
}

// TestALogicalHostMovesAndIsTheSame: the first address of the resolver's counts.
func TestALogicalHostMovesAndIsTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &names{}
		r := resolving(t, n)
		n.set("ip4 a", "10.0.0.2", "10.0.0.1")
		r.Set(dnsConfig(LogicalDNS, "a"))
		synctest.Wait()
		c := r.Lookup("d")
		set := c.hosts.Load()
		if len(set.entries) != 1 || set.entries[0].host.String() != "10.0.0.2:80" {
			t.Fatalf("hosts are %v, want the first address", hosts(c))
		}
		h := set.entries[0].host
		for _, first := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.9"} {
			n.set("ip4 a", first, "10.0.0.5")
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if now := c.hosts.Load().entries; len(now) != 1 || now[0].host != h || h.String() != first+":80" || h.gone() {
				t.Errorf("it is %v at %s, want the same host at %s", now[0].host == h, h, first)
			}
		}
		r.Remove("d")
	})
}

// TestConnectionsToTheOldPlaceOfALogicalHostStay, as in Envoy; new ones go to the new place.
func TestConnectionsToTheOldPlaceOfALogicalHostStay(t *testing.T) {
	_, ep := serverAt(t, echoPath)
	n := &names{}
	n.set("ip4 a", "127.0.0.1")
	workers := newWorkers(t, 1)
	r := registryWith(t, workers)
	r.lookup = n.lookup
	cfg := dnsConfig(LogicalDNS, "a")
	cfg.Endpoints[0].Port, cfg.DNSRefresh, cfg.ConnectTimeout = ep.Address.Port(), minRefresh, 5*time.Second
	r.Set(cfg)
	g := &rig{t: t, r: r, workers: workers, cluster: r.Lookup("d")}
	at := func(want string) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for set := g.cluster.hosts.Load(); len(set.entries) == 0 || set.entries[0].host.Address().Addr().String() != want; set = g.cluster.hosts.Load() {
			if time.Now().After(deadline) {
				t.Fatalf("the host is not at %s", want)
			}
			time.Sleep(time.Millisecond)
		}
	}
	at("127.0.0.1")
	g.host = g.cluster.hosts.Load().entries[0].host
	if k := g.get("/one"); k.body != "/one" {
		t.Fatalf("%v %q", k.reason, k.text)
	}
	n.set("ip4 a", "127.0.0.77") // where nobody listens
	at("127.0.0.77")
	if k := g.get("/two"); k.body != "/two" || !k.reused {
		t.Errorf("over the kept connection: %v %q", k.reason, k.text)
	}
	k := newCall(nil, "/three")
	k.w.Fresh = true
	g.on(func(p *Pool) { k.pool = p; k.start() })
	if <-k.done; k.reason != message.ConnectFailure || !strings.Contains(k.text, "127.0.0.77") {
		t.Errorf("a new connection: %v %q, want one to the new place", k.reason, k.text)
	}
}

// TestWhatIsAnAnswerAndWhatAFailure: net.Resolver's errors, with a name server that gives each code.
func TestWhatIsAnAnswerAndWhatAFailure(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		switch q.Question[0].Name {
		case "nxdomain.test.":
			m.Rcode = dns.RcodeNameError
		case "servfail.test.":
			m.Rcode = dns.RcodeServerFailure
		case "refused.test.":
			m.Rcode = dns.RcodeRefused
		case "silent.test.":
			return
		}
		_ = w.WriteMsg(m) // otherwise an answer without records
	})}
	go func() { _ = server.ActivateAndServe() }()
	defer func() { _ = server.Shutdown() }()
	r := registry(t)
	r.lookup = (&net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", pc.LocalAddr().String())
	}}).LookupNetIP
	for name, answered := range map[string]bool{"nxdomain.test.": true, "nodata.test.": true, "servfail.test.": false, "refused.test.": false, "silent.test.": false} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if name == "silent.test." {
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			cfg := dnsConfig(StrictDNS, name)
			if addrs, err := newCluster(cfg, r).lookupFamily(ctx, name); (err == nil) != answered || len(addrs) > 0 {
				t.Errorf("%v, %v", addrs, err)
			}
		})
	}
	t.Run("a line of /etc/hosts with the other family", func(t *testing.T) {
		if !noneExists(&net.AddrError{Err: "no suitable address found"}) {
			t.Error("is a failure")
		}
	})
}

func TestNamesAndAddressesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &names{}
		r := resolving(t, n)
		n.set("ip4 a", "10.0.0.1")
		cfg := dnsConfig(StrictDNS, "a", "a")
		cfg.Endpoints[1].Port = 81
		cfg.Endpoints = append(cfg.Endpoints, at("10.0.0.7:80"))
		r.Set(cfg)
		if got := hosts(r.Lookup("d")); !slices.Equal(got, []string{"10.0.0.7:80"}) {
			t.Errorf("before the look-up: %v", got)
		}
		synctest.Wait()
		if got := hosts(r.Lookup("d")); !slices.Equal(got, []string{"10.0.0.1:80", "10.0.0.1:81", "10.0.0.7:80"}) || n.asked != 2 { // one a family
			t.Errorf("%v, %d look-ups", got, n.asked)
		}
		r.Remove("d")
	})
}
