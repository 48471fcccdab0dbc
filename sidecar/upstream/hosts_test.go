package upstream

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// level describes the hosts of one priority for a test.
type level struct{ healthy, degraded, unhealthy, draining int }

func levels(list ...level) (out []Endpoint) {
	next := 0
	all := endpoints(1000)
	for p, l := range list {
		for health, n := range map[Health]int{Healthy: l.healthy, Degraded: l.degraded, Unhealthy: l.unhealthy, Draining: l.draining} {
			for range n {
				ep := all[next]
				ep.Priority, ep.Health = uint32(p), health
				out = append(out, ep)
				next++
			}
		}
	}
	return out
}

// kinds sums up who was chosen, as "p0 healthy", "p1 degraded", ….
func kinds(c *Cluster, n int) map[string]int {
	names := map[string]string{}
	for i := range c.endpoints {
		ep := &c.endpoints[i]
		names[ep.Address.String()] = fmt.Sprintf("p%d %s", ep.Priority, [...]string{"healthy", "unhealthy", "draining", "degraded"}[ep.Health])
	}
	out := map[string]int{}
	for addr, k := range spread(c, n, Pick{}) {
		name := names[addr]
		if addr == "none" {
			name = "none"
		}
		out[name] += k
	}
	return out
}

// TestPriorities holds the distribution to Envoy's documentation of priority
// levels, overprovisioning, degraded hosts and the panic threshold.
func TestPriorities(t *testing.T) {
	const n = 20000
	for _, x := range []struct {
		name   string
		levels []level
		panic  uint32
		want   map[string]int // percent
	}{
		{"one level, all healthy", []level{{healthy: 4}}, 50, map[string]int{"p0 healthy": 100}},
		{"the second level stands by", []level{{healthy: 4}, {healthy: 4}}, 50, map[string]int{"p0 healthy": 100}},
		{"72% healthy carry everything", []level{{healthy: 18, unhealthy: 7}, {healthy: 4}}, 50, map[string]int{"p0 healthy": 100}},
		{"71% do not quite", []level{{healthy: 71, unhealthy: 29}, {healthy: 4}}, 50, map[string]int{"p0 healthy": 99, "p1 healthy": 1}},
		{"half healthy: 70% stay", []level{{healthy: 2, unhealthy: 2}, {healthy: 4}}, 50, map[string]int{"p0 healthy": 70, "p1 healthy": 30}},
		{"a quarter healthy: 35%", []level{{healthy: 1, unhealthy: 3}, {healthy: 4}}, 50, map[string]int{"p0 healthy": 35, "p1 healthy": 65}},
		{"none healthy", []level{{unhealthy: 4}, {healthy: 4}}, 50, map[string]int{"p1 healthy": 100}},
		{"three levels", []level{{healthy: 1, unhealthy: 3}, {healthy: 1, unhealthy: 3}, {healthy: 4}}, 50,
			map[string]int{"p0 healthy": 35, "p1 healthy": 35, "p2 healthy": 30}},
		{"panic in one level", []level{{healthy: 3, unhealthy: 7}}, 50, map[string]int{"p0 healthy": 30, "p0 unhealthy": 70}},
		{"no panic at the threshold", []level{{healthy: 5, unhealthy: 5}}, 50, map[string]int{"p0 healthy": 100}},
		{"no panic where the threshold is zero", []level{{healthy: 1, unhealthy: 99}}, 0, map[string]int{"p0 healthy": 100}},
		{"nobody, and no panic", []level{{unhealthy: 4}}, 0, map[string]int{"none": 100}},
		{"nobody, and panic", []level{{unhealthy: 4}}, 50, map[string]int{"p0 unhealthy": 100}},
		{"total panic goes by hosts", []level{{unhealthy: 1}, {unhealthy: 3}}, 50, map[string]int{"p0 unhealthy": 25, "p1 unhealthy": 75}},
		{"levels share what they can; the one below the threshold panics", []level{{healthy: 1, unhealthy: 4}, {healthy: 2, unhealthy: 3}}, 30,
			map[string]int{"p0 healthy": 7, "p0 unhealthy": 27, "p1 healthy": 66}}, // 28:56 of 84
		{"rounding goes to a level that can", []level{{unhealthy: 3}, {healthy: 1, unhealthy: 5}, {healthy: 1, unhealthy: 5}, {healthy: 1, unhealthy: 5}}, 0,
			map[string]int{"p1 healthy": 34, "p2 healthy": 33, "p3 healthy": 33}},
		{"degraded hosts serve when nobody is healthy", []level{{degraded: 4}}, 50, map[string]int{"p0 degraded": 100}},
		{"degraded hosts wait for healthy ones further down", []level{{degraded: 4}, {healthy: 4}}, 50, map[string]int{"p1 healthy": 100}},
		{"degraded hosts take what healthy ones cannot", []level{{healthy: 2, degraded: 2}}, 50, map[string]int{"p0 healthy": 70, "p0 degraded": 30}},
		{"draining hosts take nothing, also in panic", []level{{unhealthy: 2, draining: 2}}, 50, map[string]int{"p0 unhealthy": 100}},
		{"only draining hosts", []level{{draining: 2}}, 50, map[string]int{"none": 100}},
		{"no hosts", nil, 50, map[string]int{"none": 100}},
	} {
		t.Run(x.name, func(t *testing.T) {
			cfg := config("c", levels(x.levels...)...)
			cfg.PanicThreshold = x.panic
			got := kinds(clusterOf(t, cfg), n)
			for kind, want := range x.want {
				if d := got[kind]*100 - want*n; d > 3*n || d < -3*n {
					t.Errorf("%s got %.1f%%, want %d%%", kind, float64(got[kind])*100/n, want)
				}
			}
			for kind := range got {
				if _, ok := x.want[kind]; !ok {
					t.Errorf("%s got %d requests", kind, got[kind])
				}
			}
		})
	}
}

func TestPanicIsCounted(t *testing.T) {
	c := clusterOf(t, config("c", levels(level{unhealthy: 2})...))
	spread(c, 10, Pick{})
	if n := c.Stats.Value(StatLBHealthyPanic); n != 10 {
		t.Fatalf("lb_healthy_panic is %d", n)
	}
}

func TestHostSetSharesAddUp(t *testing.T) {
	for a := range 6 {
		for b := range 6 {
			for d := range 3 {
				for _, threshold := range []uint32{0, 50, 100} {
					cfg := config("c", levels(level{healthy: a, unhealthy: b, degraded: d}, level{healthy: b, unhealthy: a})...)
					cfg.PanicThreshold = threshold
					c := clusterOf(t, cfg)
					last := uint32(0)
					for _, x := range c.hosts.Load().choices {
						if x.upto <= last {
							t.Fatalf("%d %d %d: a choice that takes nothing", a, b, d)
						}
						if _, empty := x.balancer.(none); empty {
							t.Fatalf("%d %d %d: a share of the traffic goes nowhere", a, b, d)
						}
						last = x.upto
					}
					if last != 100 && (last != 0 || a+b+d > 0 && threshold > 0) {
						t.Fatalf("%d %d %d, threshold %d: the shares add up to %d%%", a, b, d, threshold, last)
					}
				}
			}
		}
	}
}

func identities(c *Cluster) map[string]*Host {
	out := map[string]*Host{}
	for _, e := range c.hosts.Load().entries {
		out[e.host.String()] = e.host
	}
	return out
}

func TestUpdatesKeepHosts(t *testing.T) {
	r := registry(t)
	cfg := config("c", endpoints(3)...)
	r.Set(cfg)
	c := r.Lookup("c")
	before := identities(c)

	// The same configuration with other endpoints: hosts that stay are the same.
	next := *cfg
	next.Endpoints = slices.Clone(endpoints(4)[1:])
	next.Endpoints[0].Weight, next.Endpoints[1].Priority = 7, 1
	r.Set(&next)
	if r.Lookup("c") != c {
		t.Fatal("the cluster was made anew, though only its endpoints changed")
	}
	after := identities(c)
	if len(after) != 3 || after[host(2)] != before[host(2)] || after[host(3)] != before[host(3)] || after[host(4)] == nil {
		t.Fatalf("%v became %v", before, after)
	}
	if !before[host(1)].gone() || after[host(2)].gone() {
		t.Error("the host that left is not marked, or one that stayed is")
	}
	if c.Stats.Value(StatMembershipTotal) != 3 || c.Stats.Value(StatMembershipHealthy) != 3 || c.Stats.Value(StatMembershipChange) != 2 {
		t.Errorf("membership: total %d, healthy %d, changes %d", c.Stats.Value(StatMembershipTotal), c.Stats.Value(StatMembershipHealthy), c.Stats.Value(StatMembershipChange))
	}
	set := c.hosts.Load()
	r.Set(&next)
	if c.hosts.Load() != set {
		t.Error("an update that changes nothing made a new host set")
	}

	// Another configuration: another cluster, and gauges that are not doubled.
	other := next
	other.Hash = 2
	r.Set(&other)
	if r.Lookup("c") == c || r.Ref("c").Cluster() == c {
		t.Fatal("the cluster is still the old one")
	}
	if n := c.Stats.Value(StatMembershipTotal); n != 3 {
		t.Errorf("membership_total is %d after the cluster was replaced", n)
	}
	if !after[host(2)].gone() {
		t.Error("hosts of the old cluster are not marked")
	}
	ref := r.Ref("c")
	r.Remove("c")
	if ref.Cluster() != nil || r.Lookup("c") != nil || len(r.Clusters()) != 0 {
		t.Error("the cluster is still there")
	}
	if n := other.Hash; n != 2 || len(r.metrics.Families()) != 0 {
		t.Error("the removed cluster's statistics stay")
	}
}

func TestAnotherStatNameDropsTheOldSeries(t *testing.T) {
	r := registry(t)
	cfg := config("c", endpoints(1)...)
	r.Set(cfg)
	next := *cfg
	next.Hash, next.StatName = 2, "renamed"
	r.Set(&next)
	if f := r.metrics.Families(); len(f) != 1 || f[0].Name != "renamed" {
		t.Fatalf("%v", f)
	}
}

func TestSetEndpointsOfEDS(t *testing.T) {
	r := registry(t)
	cfg := config("c")
	cfg.Discovery, cfg.EDSName = EDS, "service"
	r.SetEndpoints("c", endpoints(1), 0) // of a cluster that is not there
	r.Set(cfg)
	if n := len(r.Lookup("c").Status()); n != 0 {
		t.Fatalf("%d hosts before EDS spoke", n)
	}
	r.SetEndpoints("c", append(endpoints(2), endpoints(1)...), 10000)
	c := r.Lookup("c")
	if n := len(c.Status()); n != 2 {
		t.Fatalf("%d hosts; one endpoint was named twice", n)
	}
	if !c.DropOverload() {
		t.Error("drop_overload of 100% dropped nothing")
	}
	r.SetEndpoints("c", endpoints(2), 0)
	if c.DropOverload() {
		t.Error("drop_overload that was taken back drops")
	}
	// The cluster changes: what EDS said is in force until it says more.
	next := *cfg
	next.Hash = 2
	r.Set(&next)
	if n := len(r.Lookup("c").Status()); n != 2 {
		t.Fatalf("%d hosts after an update of the cluster", n)
	}
	other := next
	other.Hash, other.EDSName = 3, "another"
	r.Set(&other)
	if n := len(r.Lookup("c").Status()); n != 0 {
		t.Fatalf("%d hosts of another EDS service", n)
	}
}

func TestHealthOfEndpointsTurns(t *testing.T) {
	c := clusterOf(t, config("c", endpoints(2)...))
	eps := endpoints(2)
	for _, x := range []struct {
		health Health
		flags  []string
	}{
		{Unhealthy, []string{"failed_eds_health"}}, {Draining, []string{"eds_status_draining"}}, {Degraded, []string{"degraded_eds_health"}}, {Healthy, nil},
	} {
		eps[0].Health = x.health
		c.update(slices.Clone(eps), 0)
		if got := c.Status()[0].Flags; !slices.Equal(got, x.flags) {
			t.Errorf("flags are %v, want %v", got, x.flags)
		}
		if got := spread(c, 100, Pick{}); (got[host(1)] > 0) != (x.health == Healthy || x.health == Degraded) {
			t.Errorf("health %d: %v", x.health, got)
		}
	}
}

func TestRetriesAreBounded(t *testing.T) {
	cfg := config("c", endpoints(1)...)
	cfg.Breakers[0].Retries = 2
	cfg.Breakers[1] = Breakers{BudgetPercent: 2000, BudgetMin: 1}
	c := clusterOf(t, cfg)
	if first, second := c.Retry(0), c.Retry(0); !first || !second || c.Retry(0) {
		t.Fatal("max_retries of 2 is not kept")
	}
	c.RetryDone(0)
	if !c.Retry(0) {
		t.Fatal("a retry that was given back is lost")
	}
	// A budget of 20% of 10 requests, at least 1.
	if !c.Retry(1) || c.Retry(1) {
		t.Fatal("min_retry_concurrency is not kept")
	}
	c.breakers[1].requests.Store(10)
	if !c.Retry(1) || c.Retry(1) {
		t.Fatal("the budget is not kept")
	}
	c.RetryDone(0)
	c.RetryDone(0)
	c.RetryDone(1)
	c.RetryDone(1)
	c.breakers[1].requests.Store(0)
	for p := range 2 {
		if cx, pending, rq, retries := c.BreakerState(p); cx+pending+rq+retries != 0 {
			t.Errorf("priority %d: %d %d %d %d", p, cx, pending, rq, retries)
		}
	}
}

func TestOriginalDst(t *testing.T) {
	workers := newWorkers(t, 1)
	r := registryWith(t, workers)
	cfg := config("o")
	cfg.Discovery, cfg.Policy = OriginalDst, ClusterProvided
	r.Set(cfg)
	c := r.Lookup("o")
	a, b := netip.MustParseAddrPort("10.1.1.1:80"), netip.MustParseAddrPort("[fd00::1]:81")
	var first, second *Host
	on(workers[0], func() {
		if c.Host(&Pick{}) != nil {
			t.Error("a host, though nobody knows where the client meant to go")
		}
		first, second = c.Host(&Pick{Original: a}), c.Host(&Pick{Original: b})
		if first.Address() != a || second.Address() != b || c.Host(&Pick{Original: a}) != first {
			t.Errorf("%v, %v", first, second)
		}
		second.active.Add(1)
		c.sweep(0) // both were used since
		if len(c.originals[0].hosts) != 2 {
			t.Error("a host in use was forgotten")
		}
		c.sweep(0)
		if len(c.originals[0].hosts) != 1 || !first.gone() || second.gone() {
			t.Error("after two sweeps only the host with a request under way stays")
		}
		second.active.Add(-1)
	})
	r.Remove("o")
	on(workers[0], func() {
		if c.originals[0].hosts != nil || c.originals[0].timer.Scheduled() || !second.gone() {
			t.Error("the removed cluster keeps hosts")
		}
		if h := c.Host(&Pick{Original: a}); h == nil || !h.gone() || len(c.originals[0].hosts) != 0 {
			t.Error("a late retry gets a host that is not kept")
		}
	})
}

func TestConfigurationWhileWorkersChoose(t *testing.T) {
	r := registry(t)
	stop := make(chan struct{})
	done := make(chan struct{})
	cfg := config("c", endpoints(3)...)
	cfg.Outlier = &Outlier{Consecutive5xx: 3, Enforcing5xx: 100, BaseEjection: time.Millisecond, MaxEjectionPercent: 100, Interval: time.Millisecond}
	r.Set(cfg)
	ref := r.Ref("c")
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if c := ref.Cluster(); c != nil && len(c.turn) == 0 {
				set := c.hosts.Load()
				for i := range set.entries {
					set.entries[i].host.Report(500 + n%4)
				}
			}
		}
	}()
	for n := range 200 {
		next := *cfg
		next.Endpoints, next.Hash = endpoints(1+n%5), uint64(n/10)
		r.Set(&next)
		if n%50 == 49 {
			r.Remove("c")
		}
		r.Clusters()
	}
	close(stop)
	<-done
	for _, c := range r.Clusters() {
		if n := c.Stats.Value(StatMembershipTotal); n != int64(len(c.Status())) {
			t.Errorf("membership_total is %d of %d hosts", n, len(c.Status()))
		}
	}
}

// TestALookUpNeitherWaitsNorAllocates: it is made on workers, while another goroutine changes clusters.
func TestALookUpNeitherWaitsNorAllocates(t *testing.T) {
	r := registry(t)
	r.Set(config("c", endpoints(1)...))
	name := []byte("c")
	r.mu.Lock() // a change is under way
	defer r.mu.Unlock()
	if n := testing.AllocsPerRun(100, func() {
		if r.Lookup(string(name)) == nil || r.Lookup("d") != nil {
			t.Error("not found, or found what is not there")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	first, again := r.Ref("new"), r.Ref("new")
	if r.Ref("c").Cluster() == nil || first != again || len(r.Clusters()) != 1 {
		t.Error("references are not the same each time")
	}
}
