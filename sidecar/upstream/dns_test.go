package upstream

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// names is a resolver for tests.
type names struct {
	mu    sync.Mutex
	addrs map[string][]string
	asked int
}

func (n *names) lookup(_ context.Context, network, name string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	list, ok := n.addrs[network+" "+name]
	if !ok {
		return nil, errors.New("no such host")
	}
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

func (n *names) set(name string, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.addrs == nil {
		n.addrs = map[string][]string{}
	}
	delete(n.addrs, name)
	if addrs != nil {
		n.addrs[name] = addrs
	}
}

func dnsConfig(d Discovery, list ...string) *Config {
	cfg := config("d")
	cfg.Discovery, cfg.DNSRefresh, cfg.DNSFamily = d, 5*time.Second, "ip"
	for _, name := range list {
		cfg.Endpoints = append(cfg.Endpoints, Endpoint{Hostname: name, Port: 80, Weight: 1})
	}
	return cfg
}

func hosts(c *Cluster) []string { return slices.Sorted(maps.Keys(identities(c))) }

func TestStrictDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, n := registry(t), &names{}
		r.lookup = n.lookup
		n.set("ip a", "10.0.0.2", "10.0.0.1", "::ffff:10.0.0.1")
		n.set("ip b", "fd00::1")
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
		n.set("ip a", "10.0.0.1", "10.0.0.3")
		n.set("ip b")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := hosts(c); !slices.Equal(got, []string{"10.0.0.1:80", "10.0.0.3:80", "[fd00::1]:80"}) {
			t.Fatalf("hosts are %v; b could not be resolved and should keep its address", got)
		}
		if identities(c)["10.0.0.1:80"] != kept {
			t.Error("a host that stayed is another one")
		}

		// Other names with the same hash: looked up at once, not in five seconds.
		n.set("ip e", "10.0.0.9")
		r.Set(dnsConfig(StrictDNS, "a", "e"))
		synctest.Wait()
		if r.Lookup("d") != c {
			t.Error("the cluster was made anew")
		}
		if got := hosts(c); !slices.Equal(got, []string{"10.0.0.1:80", "10.0.0.3:80", "10.0.0.9:80"}) {
			t.Fatalf("hosts are %v", got)
		}

		// A new configuration begins with what is known, even in an outage.
		n.set("ip a")
		n.set("ip e")
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

func TestLogicalDNSIsOneHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, n := registry(t), &names{}
		r.lookup = n.lookup
		n.set("ip4 a", "10.0.0.2", "10.0.0.1")
		cfg := dnsConfig(LogicalDNS, "a")
		cfg.DNSFamily = "ip4"
		r.Set(cfg)
		synctest.Wait()
		h := identities(r.Lookup("d"))
		n.set("ip4 a", "10.0.0.1", "10.0.0.2") // the resolver turns its answers round
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if again := identities(r.Lookup("d")); len(h) != 1 || !maps.Equal(h, again) {
			t.Errorf("%v, then %v", h, again)
		}
		r.Remove("d")
	})
}

func TestNamesAndAddressesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, n := registry(t), &names{}
		r.lookup = n.lookup
		n.set("ip a", "10.0.0.1")
		cfg := dnsConfig(StrictDNS, "a", "a")
		cfg.Endpoints[1].Port = 81
		cfg.Endpoints = append(cfg.Endpoints, at("10.0.0.7:80"))
		r.Set(cfg)
		if got := hosts(r.Lookup("d")); !slices.Equal(got, []string{"10.0.0.7:80"}) {
			t.Errorf("before the look-up: %v", got)
		}
		synctest.Wait()
		if got := hosts(r.Lookup("d")); !slices.Equal(got, []string{"10.0.0.1:80", "10.0.0.1:81", "10.0.0.7:80"}) || n.asked != 1 {
			t.Errorf("%v, %d look-ups", got, n.asked)
		}
		r.Remove("d")
	})
}
