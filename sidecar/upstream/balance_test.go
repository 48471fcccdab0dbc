package upstream

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// near says whether got is want, give or take a share of it.
func near(got, want int, tolerance float64) bool {
	return math.Abs(float64(got-want)) <= tolerance*float64(want)
}

func TestRoundRobinGivesEachHostItsWeight(t *testing.T) {
	for _, weights := range [][]uint32{{1}, {1, 1, 1}, {1, 2, 3}, {100, 100}, {7, 1}, {1000000, 1}, {5, 10, 15}} {
		t.Run(fmt.Sprint(weights), func(t *testing.T) {
			eps := endpoints(len(weights))
			total := 0
			for i, w := range weights {
				eps[i].Weight = w
				total += int(w)
			}
			c := clusterOf(t, config("c", eps...))
			rounds := 20 * len(c.hosts.Load().choices[0].balancer.(*roundRobin).schedule)
			got := spread(c, rounds, Pick{})
			for i, w := range weights {
				if want := rounds * int(w) / total; !near(got[host(i+1)], want, 0.01) && want > rounds/1000 {
					t.Errorf("host %d of weight %d got %d of %d requests, want %d", i+1, w, got[host(i+1)], rounds, want)
				}
				if got[host(i+1)] == 0 {
					t.Errorf("host %d got nothing", i+1)
				}
			}
		})
	}
}

func TestRoundRobinSpreadsTheTurnsOfAHeavyHost(t *testing.T) {
	eps := endpoints(2)
	eps[0].Weight = 5
	c := clusterOf(t, config("c", append(eps, endpoints(6)[2:]...)...))
	run, last := 0, ""
	for range 100 {
		h := c.Host(&Pick{}).String()
		if h == last {
			run++
		} else {
			run = 1
		}
		last = h
		if run > 2 {
			t.Fatalf("%s was chosen %d times in a row", h, run)
		}
	}
}

func TestRandomIsSpreadByWeight(t *testing.T) {
	eps := endpoints(2)
	eps[1].Weight = 3
	cfg := config("c", eps...)
	cfg.Policy = Random
	got := spread(clusterOf(t, cfg), 20000, Pick{})
	if !near(got[host(1)], 5000, 0.1) || !near(got[host(2)], 15000, 0.1) {
		t.Fatal(got)
	}
}

func TestWeightedScheduleIsBounded(t *testing.T) {
	eps := endpoints(300)
	for i := range eps {
		eps[i].Weight = uint32(1 + i*7919)
	}
	c := clusterOf(t, config("c", eps...))
	if n := len(c.hosts.Load().choices[0].balancer.(*roundRobin).schedule); n > maxSchedule+len(eps) {
		t.Fatalf("a schedule of %d turns", n)
	}
}

func TestLeastRequestPrefersIdleHosts(t *testing.T) {
	cfg := config("c", endpoints(4)...)
	cfg.Policy, cfg.Choices = LeastRequest, 2
	c := clusterOf(t, cfg)
	for i := range 3 {
		c.entries[i].host.active.Store(100)
	}
	got := spread(c, 10000, Pick{})
	// The idle host wins whenever it is drawn: 1 - (3/4)^2.
	if !near(got[host(4)], 4375, 0.1) {
		t.Fatalf("the idle host got %d of 10000", got[host(4)])
	}
	more := *cfg
	more.Choices, more.Hash = 10, 2
	c.registry.Set(&more)
	c = c.registry.Lookup("c")
	c.turn = make([]turn, 1)
	for i := range 3 {
		c.entries[i].host.active.Store(100)
	}
	if got := spread(c, 10000, Pick{}); got[host(4)] < 9000 {
		t.Fatalf("with ten choices the idle host got %d of 10000", got[host(4)])
	}
}

func TestLeastRequestSharesByWeightWhenIdle(t *testing.T) {
	eps := endpoints(2)
	eps[1].Weight = 9
	cfg := config("c", eps...)
	cfg.Policy = LeastRequest
	c := clusterOf(t, cfg)
	if got := spread(c, 20000, Pick{}); !near(got[host(1)], 2000, 0.15) {
		t.Fatalf("idle hosts of weight 1 and 9: %v", got)
	}
	// At nine times the load the heavy host is as busy as the other one.
	c.entries[0].host.active.Store(1)
	c.entries[1].host.active.Store(9)
	if got := spread(c, 20000, Pick{}); !near(got[host(1)], 2000, 0.15) {
		t.Fatalf("hosts busy in proportion: %v", got)
	}
	c.entries[1].host.active.Store(100)
	if got := spread(c, 20000, Pick{}); got[host(1)] < 3000 {
		t.Fatalf("the heavy host is overloaded: %v", got)
	}
}

// mapping says which host each of n keys goes to.
func mapping(c *Cluster, n int) []string {
	out := make([]string, n)
	for k := range n {
		out[k] = c.Host(&Pick{Hash: xxhash.Sum64String(strconv.Itoa(k)), HasHash: true}).String()
	}
	return out
}

func TestConsistentHashingMovesFewKeys(t *testing.T) {
	const hosts, keys = 10, 20000
	// Not only the keys of the host that left move: the ring's minimum size
	// gives the others a point more each, and Maglev trades a few moves for
	// an even table (§3.5 of the paper).
	for policy, needless := range map[Policy]float64{RingHash: 0.08, Maglev: 0.06} {
		t.Run(map[Policy]string{RingHash: "ring", Maglev: "maglev"}[policy], func(t *testing.T) {
			cfg := config("c", endpoints(hosts)...)
			cfg.Policy = policy
			c := clusterOf(t, cfg)
			before := mapping(c, keys)
			load := map[string]int{}
			for _, h := range before {
				load[h]++
			}
			for i := range hosts {
				if !near(load[host(i+1)], keys/hosts, 0.35) {
					t.Errorf("%s has %d of %d keys", host(i+1), load[host(i+1)], keys)
				}
			}
			if again := mapping(c, keys); !slices.Equal(before, again) {
				t.Fatal("the same keys go to other hosts")
			}
			// Another order of the same hosts changes nothing: sidecars agree.
			shuffled := slices.Clone(cfg.Endpoints)
			slices.Reverse(shuffled)
			turned := *cfg
			turned.Endpoints, turned.Hash = shuffled, 2
			c.registry.Set(&turned)
			if !slices.Equal(before, mapping(c.registry.Lookup("c"), keys)) {
				t.Error("the order of the endpoints changes the mapping")
			}
			less := *cfg
			less.Endpoints, less.Hash = cfg.Endpoints[1:], 3
			c.registry.Set(&less)
			moved := 0
			for k, h := range mapping(c.registry.Lookup("c"), keys) {
				if before[k] != host(1) && h != before[k] {
					moved++
				}
			}
			if float64(moved) > needless*keys {
				t.Errorf("removing one of %d hosts moved %d of %d keys that were not its own", hosts, moved, keys)
			}
		})
	}
}

func TestConsistentHashingFollowsWeights(t *testing.T) {
	for policy, name := range map[Policy]string{RingHash: "ring", Maglev: "maglev"} {
		eps := endpoints(3)
		eps[2].Weight = 8
		cfg := config("c", eps...)
		cfg.Policy, cfg.MinRing = policy, 8192
		load := map[string]int{}
		for _, h := range mapping(clusterOf(t, cfg), 20000) {
			load[h]++
		}
		if !near(load[host(3)], 16000, 0.05) {
			t.Errorf("%s: the host with 8 of 10 of the weight has %d of 20000 keys", name, load[host(3)])
		}
	}
}

// TestRingIsEnvoys builds the ring as Envoy's documentation describes it, for
// equal weights, and compares.
func TestRingIsEnvoys(t *testing.T) {
	cfg := config("c", endpoints(3)...)
	cfg.Policy, cfg.MinRing = RingHash, 1000
	c := clusterOf(t, cfg)
	type point struct {
		at   uint64
		host string
	}
	var want []point
	for h := range 3 {
		for i := range 334 { // 1000/3, rounded up
			want = append(want, point{xxhash.Sum64String(fmt.Sprintf("%s_%d", host(h+1), i)), host(h + 1)})
		}
	}
	sort.Slice(want, func(i, j int) bool { return want[i].at < want[j].at })
	got := c.hosts.Load().choices[0].balancer.(*ring).points
	if len(got) != len(want) {
		t.Fatalf("%d points, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i].at != want[i].at || got[i].host.String() != want[i].host {
			t.Fatalf("point %d is %v, want %v", i, got[i], want[i])
		}
	}
	for _, h := range []uint64{0, want[0].at, want[0].at + 1, want[500].at, want[len(want)-1].at, math.MaxUint64} {
		i := sort.Search(len(want), func(i int) bool { return want[i].at >= h }) % len(want)
		if got := c.Host(&Pick{Hash: h, HasHash: true}).String(); got != want[i].host {
			t.Errorf("hash %d goes to %s, want %s", h, got, want[i].host)
		}
	}
}

func TestRingSizeStaysInItsBounds(t *testing.T) {
	for _, x := range []struct {
		min, max uint64
		weights  []uint32
		points   int
	}{
		{1024, 0, []uint32{1, 1}, 1024},
		{1, 8, []uint32{1, 1, 1, 1}, 4},
		{1024, 16, []uint32{1, 1}, 16},
		{3, 0, []uint32{1, 9}, 10},
	} {
		eps := endpoints(len(x.weights))
		for i, w := range x.weights {
			eps[i].Weight = w
		}
		cfg := config("c", eps...)
		cfg.Policy, cfg.MinRing, cfg.MaxRing = RingHash, x.min, x.max
		c := clusterOf(t, cfg)
		if n := len(c.hosts.Load().choices[0].balancer.(*ring).points); n != x.points {
			t.Errorf("minimum %d, maximum %d, weights %v: %d points, want %d", x.min, x.max, x.weights, n, x.points)
		}
	}
}

func TestHashByHostname(t *testing.T) {
	eps := endpoints(4)
	for i := range eps {
		eps[i].Hostname = fmt.Sprintf("pod-%d", i)
	}
	for _, policy := range []Policy{RingHash, Maglev} {
		cfg := config("c", eps...)
		cfg.Policy, cfg.HashByHostname = policy, true
		c := clusterOf(t, cfg)
		names := func(c *Cluster) (out []string) {
			for k := range 1000 {
				out = append(out, c.Host(&Pick{Hash: xxhash.Sum64String(strconv.Itoa(k)), HasHash: true}).Hostname())
			}
			return out
		}
		before := names(c)
		moved := *cfg
		moved.Hash, moved.Endpoints = 2, slices.Clone(eps)
		for i := range moved.Endpoints { // the pods come back at other addresses
			moved.Endpoints[i].Address = at(fmt.Sprintf("10.9.0.%d:80", i+1)).Address
		}
		c.registry.Set(&moved)
		if !slices.Equal(before, names(c.registry.Lookup("c"))) {
			t.Errorf("policy %d: a new address moves keys, though hosts are told apart by name", policy)
		}
	}
}

func TestAvoidPassesOverHostsTriedBefore(t *testing.T) {
	for _, policy := range []Policy{RoundRobin, LeastRequest, RingHash, Maglev, Random} {
		cfg := config("c", endpoints(3)...)
		cfg.Policy = policy
		c := clusterOf(t, cfg)
		first := c.Host(&Pick{Hash: 42, HasHash: true})
		same := 0
		for range 100 {
			if c.Host(&Pick{Hash: 42, HasHash: true, Avoid: []*Host{first}, Attempts: 20}) == first {
				same++
			}
		}
		if same > 5 {
			t.Errorf("policy %d: the host tried before was chosen %d times of 100", policy, same)
		}
		// Where there is no other host, the same one is better than none.
		one := config("one", endpoints(1)...)
		one.Policy = policy
		c = clusterOf(t, one)
		h := c.Host(&Pick{})
		if c.Host(&Pick{Avoid: []*Host{h}, Attempts: 5}) != h {
			t.Errorf("policy %d: the only host was not chosen again", policy)
		}
	}
}

func TestPickingDoesNotAllocate(t *testing.T) {
	for _, policy := range []Policy{RoundRobin, LeastRequest, Random, RingHash, Maglev} {
		eps := endpoints(10)
		for i := range eps {
			eps[i].Weight, eps[i].Priority = uint32(1+i), uint32(i%2)
		}
		cfg := config("c", eps...)
		cfg.Policy = policy
		c := clusterOf(t, cfg)
		p := Pick{Hash: 7, HasHash: true}
		if n := testing.AllocsPerRun(100, func() { c.Host(&p) }); n != 0 {
			t.Errorf("policy %d: %v allocations", policy, n)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for policy, name := range map[Policy]string{RoundRobin: "round_robin", LeastRequest: "least_request", Random: "random", RingHash: "ring_hash", Maglev: "maglev"} {
		b.Run(name, func(b *testing.B) {
			cfg := config("c", endpoints(100)...)
			cfg.Policy = policy
			c := clusterOf(b, cfg)
			b.ReportAllocs()
			p := Pick{HasHash: true}
			for b.Loop() {
				p.Hash += 0x9e3779b97f4a7c15
				c.Host(&p)
			}
		})
	}
}

func BenchmarkHostSet(b *testing.B) {
	for policy, name := range map[Policy]string{RoundRobin: "round_robin", RingHash: "ring_hash", Maglev: "maglev"} {
		b.Run(name, func(b *testing.B) {
			cfg := config("c", endpoints(250)...)
			cfg.Policy = policy
			c := clusterOf(b, cfg)
			b.ReportAllocs()
			for b.Loop() {
				newHostSet(cfg, c.entries)
			}
		})
	}
}
