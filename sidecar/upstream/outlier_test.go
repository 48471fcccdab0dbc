package upstream

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/sidecar/message"
)

func outlier(change func(*Outlier)) *Outlier {
	o := &Outlier{Consecutive5xx: 5, Enforcing5xx: 100, ConsecutiveGateway: 5, ConsecutiveLocal: 5, EnforcingLocal: 100,
		Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxEjection: 300 * time.Second, MaxEjectionPercent: 10, AlwaysEjectOne: true}
	if change != nil {
		change(o)
	}
	return o
}

// outliers is a cluster with outlier detection and n hosts.
func outliers(t *testing.T, n int, change func(*Outlier)) (*Cluster, []*Host) {
	cfg := config("c", endpoints(n)...)
	cfg.Outlier = outlier(change)
	cfg.PanicThreshold = 0
	c := clusterOf(t, cfg)
	var hosts []*Host
	for _, e := range c.entries {
		hosts = append(hosts, e.host)
	}
	return c, hosts
}

func report(h *Host, statuses ...int) {
	for _, s := range statuses {
		h.Report(s)
	}
	synctest.Wait()
}

func ejected(h *Host) bool { return h.flags.Load()&flagEjected != 0 }

func TestWhatEjects(t *testing.T) {
	for _, x := range []struct {
		name     string
		change   func(*Outlier)
		statuses []int
		stat     int
		want     bool
	}{
		{"five 5xx in a row", nil, []int{500, 501, 502, 503, 504}, StatEjections5xx, true},
		{"four are not enough", nil, []int{500, 500, 500, 500}, StatEjections5xx, false},
		{"a success between", nil, []int{500, 500, 500, 500, 200, 500, 500, 500, 500}, StatEjections5xx, false},
		{"a 404 is a success", nil, []int{500, 500, 500, 500, 404, 500}, StatEjections5xx, false},
		{"not enforced", func(o *Outlier) { o.Enforcing5xx = 0 }, []int{500, 500, 500, 500, 500}, StatEjections5xx, false},
		{"off", func(o *Outlier) { o.Consecutive5xx = 0 }, []int{500, 500, 500, 500, 500}, StatEjections5xx, false},
		{"three gateway failures in a row", func(o *Outlier) { o.ConsecutiveGateway, o.EnforcingGateway = 3, 100 }, []int{502, 503, 504}, StatEjectionsGateway, true},
		{"a 500 is no gateway failure", func(o *Outlier) { o.ConsecutiveGateway, o.EnforcingGateway = 3, 100 }, []int{502, 503, 500, 504}, StatEjectionsGateway, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, hosts := outliers(t, 2, x.change)
				report(hosts[0], x.statuses...)
				if ejected(hosts[0]) != x.want || (c.Stats.Value(x.stat) == 1) != x.want || (c.Stats.Value(StatEjectionsActive) == 1) != x.want {
					t.Errorf("ejected: %v, counted %d, active %d", ejected(hosts[0]), c.Stats.Value(x.stat), c.Stats.Value(StatEjectionsActive))
				}
				if got := spread(c, 10, Pick{}); (got[host(1)] == 0) != x.want {
					t.Errorf("requests go to %v", got)
				}
				if ejected(hosts[1]) {
					t.Error("the other host is ejected")
				}
			})
		})
	}
}

func TestConnectFailuresCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, hosts := outliers(t, 2, nil)
		for range 5 {
			hosts[0].ReportLocal(message.ConnectFailure) // as a 503
		}
		synctest.Wait()
		if !ejected(hosts[0]) {
			t.Error("five failed connections did not eject")
		}
		// A success by itself, after four failures: the count begins anew.
		for range 4 {
			hosts[1].ReportLocal(message.ConnectTimeout)
		}
		hosts[1].ReportLocal(0)
		hosts[1].ReportLocal(message.ConnectTimeout)
		synctest.Wait()
		if ejected(hosts[1]) {
			t.Error("ejected, though a connection went well between")
		}
	})
}

func TestLocalErrorsBySplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, hosts := outliers(t, 10, func(o *Outlier) { o.SplitLocal, o.ConsecutiveLocal = true, 2 })
		hosts[0].ReportLocal(message.ConnectFailure)
		hosts[0].ReportLocal(0)
		hosts[0].ReportLocal(message.ConnectFailure)
		synctest.Wait()
		if ejected(hosts[0]) {
			t.Error("ejected, though a connection went well between")
		}
		hosts[0].ReportLocal(message.TLSFailure)
		synctest.Wait()
		if !ejected(hosts[0]) || c.Stats.Value(StatEjectionsLocal) != 1 || c.Stats.Value(StatEjections5xx) != 0 {
			t.Error("two local failures in a row did not eject")
		}
	})
}

func TestEjectionsGrowLongerAndShrinkAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, hosts := outliers(t, 1, func(o *Outlier) { o.MaxEjection = 70 * time.Second })
		eject := func(want time.Duration) {
			t.Helper()
			report(hosts[0], 500, 500, 500, 500, 500)
			if !ejected(hosts[0]) {
				t.Fatal("not ejected")
			}
			if until := time.Until(c.Status()[0].EjectedUntil); until != want {
				t.Fatalf("ejected for %s, want %s", until, want)
			}
			time.Sleep(want - time.Second)
			synctest.Wait()
			if !ejected(hosts[0]) {
				t.Fatal("back too early")
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if ejected(hosts[0]) {
				t.Fatal("not back in time")
			}
			if c.Stats.Value(StatEjectionsActive) != 0 || c.ejected != 0 {
				t.Fatal("the ejection is still counted")
			}
		}
		eject(30 * time.Second)
		eject(60 * time.Second)
		eject(70 * time.Second) // the maximum
		eject(70 * time.Second)
		time.Sleep(30 * time.Second) // three intervals that went well
		eject(60 * time.Second)
	})
}

func TestMaxEjectionPercent(t *testing.T) {
	for _, x := range []struct {
		hosts, want int
		percent     uint32
		one         bool
	}{{10, 1, 10, false}, {20, 2, 10, false}, {9, 0, 10, false}, {9, 1, 10, true}, {2, 1, 50, false}, {4, 2, 50, false}, {3, 3, 100, false}, {5, 0, 0, false}, {5, 1, 0, true}} {
		synctest.Test(t, func(t *testing.T) {
			c, hosts := outliers(t, x.hosts, func(o *Outlier) { o.MaxEjectionPercent, o.AlwaysEjectOne = x.percent, x.one })
			n := 0
			for _, h := range hosts {
				report(h, 500, 500, 500, 500, 500)
				if ejected(h) {
					n++
				}
			}
			if n != x.want || c.ejected != x.want || c.Stats.Value(StatEjectionsOverflow) != int64(x.hosts-x.want) {
				t.Errorf("%d of %d hosts ejected at %d%%, want %d; overflow %d", n, x.hosts, x.percent, x.want, c.Stats.Value(StatEjectionsOverflow))
			}
		})
	}
}

func TestAnEjectedHostThatLeavesMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, hosts := outliers(t, 3, nil)
		report(hosts[0], 500, 500, 500, 500, 500)
		c.update(endpoints(3)[1:], 0)
		if c.ejected != 0 || c.Stats.Value(StatEjectionsActive) != 0 {
			t.Fatalf("%d ejected after the host left", c.ejected)
		}
		report(hosts[0], 500, 500, 500, 500, 500) // answers that were on their way
		if c.ejected != 0 {
			t.Fatal("a host that is not of the cluster was ejected")
		}
		report(hosts[1], 500, 500, 500, 500, 500)
		if !ejected(hosts[1]) {
			t.Fatal("the place among the ejected is still taken")
		}
		c.registry.Remove("c")
		if c.ejected != 0 || c.Stats.Value(StatEjectionsActive) != 0 {
			t.Fatal("the closed cluster counts an ejection")
		}
		time.Sleep(time.Hour) // no timer is left that would count it twice
		synctest.Wait()
		if c.ejected != 0 || c.Stats.Value(StatEjectionsActive) != 0 {
			t.Fatalf("%d ejected, active %d", c.ejected, c.Stats.Value(StatEjectionsActive))
		}
	})
}

func TestTheTimerOfAnEarlierEjectionDoesNotEndALaterOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, hosts := outliers(t, 1, nil)
		report(hosts[0], 500, 500, 500, 500, 500)
		time.Sleep(29 * time.Second)
		hosts[0].uneject(anyEjection) // as a successful health check does
		report(hosts[0], 500, 500, 500, 500, 500)
		hosts[0].uneject(1) // the first timer, had it been late
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !ejected(hosts[0]) {
			t.Fatal("the second ejection of 60 s ended with the first one")
		}
	})
}

func TestStatusShowsEjections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, hosts := outliers(t, 1, nil)
		report(hosts[0], 500, 500, 500, 500, 500)
		s := c.Status()[0]
		if !slices.Equal(s.Flags, []string{"failed_outlier_check"}) || s.Ejections != 1 || s.Errors != 5 {
			t.Fatalf("%+v", s)
		}
	})
}

// TestGRPCStatusesCountAsInEnvoy: which codes are failures of a host, and which gateway failures.
func TestGRPCStatusesCountAsInEnvoy(t *testing.T) {
	for code, want := range map[codes.Code]int{
		codes.OK: 200, codes.Canceled: 499, codes.Unknown: 500, codes.InvalidArgument: 400, codes.DeadlineExceeded: 504, codes.NotFound: 404,
		codes.AlreadyExists: 409, codes.PermissionDenied: 403, codes.ResourceExhausted: 429, codes.FailedPrecondition: 400, codes.Aborted: 409,
		codes.OutOfRange: 400, codes.Unimplemented: 501, codes.Internal: 500, codes.Unavailable: 503, codes.DataLoss: 500, codes.Unauthenticated: 401,
		17: 500, 1000: 500,
	} {
		if got := GRPCStatus(int(code)); got != want {
			t.Errorf("%v counts as %d, want %d", code, got, want)
		}
	}
	if got := GRPCStatus(-1); got != 500 {
		t.Errorf("a code that is no code counts as %d", got)
	}
}
