package catalog

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

const listPath = "/v1/catalog/services"

func TestAnswersWithoutALeaderAreRefused(t *testing.T) {
	f := newFake(t)
	f.set(func() { f.streaming = false; f.service("orders") })
	c, ch := f.source(t)
	until(t, ch, has("orders"), nil)
	f.set(func() { f.leader = false; f.clear() })
	f.await(t, listPath, 3)
	if s := c.Status(); s.Connected || s.Error == "" {
		t.Errorf("status without a leader: %+v", s)
	}
	f.set(func() { f.leader = true; f.service("orders"); f.service("payments") })
	until(t, ch, has("orders", "payments"), has("orders"))
	for s := c.Status(); s.Error != ""; s = c.Status() {
		f.await(t, listPath, 1) // the queries recover one by one
	}
	if s := c.Status(); !s.Connected || s.LastError == "" || s.LastIndex == 0 {
		t.Errorf("status after: %+v", s)
	}
}

func TestStreamedAnswersNeedNoLeader(t *testing.T) {
	f := newFake(t)
	f.set(func() { f.service("orders") })
	_, ch := f.source(t)
	until(t, ch, has("orders"), nil)
	f.set(func() { f.answers["/v1/health/service/orders"] = []any{} })
	s := receive(t, ch)
	if n := len(s.Service(Name{DefaultNamespace, "orders"}).Instances); n != 0 {
		t.Errorf("%d instances after deregistration", n)
	}
}

func TestLossesAfterAFailureMustBeConfirmed(t *testing.T) {
	steps := map[string]func(f *fakeConsul, t *testing.T){
		"500s, then an empty restart": func(f *fakeConsul, t *testing.T) {
			f.set(func() { f.status = http.StatusInternalServerError })
			f.await(t, listPath, 2)
			f.set(func() { f.status, f.index = 0, 5; f.clear() })
		},
		"an index that goes backwards": func(f *fakeConsul, t *testing.T) {
			f.set(func() { f.index = 5; f.clear() })
		},
		"checks that have not run yet": func(f *fakeConsul, t *testing.T) {
			f.set(func() {
				f.index = 5
				f.answers["/v1/health/service/orders"] = []object{entry(object{"ID": "orders-1", "Service": "orders", "Port": 80}, "critical")}
			})
		},
	}
	for name, lose := range steps {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.set(func() { f.service("orders") })
			_, ch := f.source(t)
			until(t, ch, has("orders"), nil)
			lose(f, t)
			f.await(t, "/v1/health/service/orders", 3) // asked again and again, and not believed
			f.set(func() { f.service("orders"); f.service("payments") })
			until(t, ch, has("orders", "payments"), has("orders"))
		})
	}
	t.Run("and are believed then", func(t *testing.T) {
		f := newFake(t)
		f.set(func() { f.service("orders") })
		_, ch := f.source(t, func(o *ConsulOptions) { o.Confirm = 5 * time.Millisecond })
		until(t, ch, has("orders"), nil)
		f.set(func() { f.index = 5; f.clear() })
		until(t, ch, lacks("orders"), nil)
	})
}

func TestLossesWithoutAFailureAreBelievedAtOnce(t *testing.T) {
	f := newFake(t)
	f.set(func() { f.service("orders") })
	_, ch := f.source(t)
	until(t, ch, has("orders"), nil)
	f.set(f.clear)
	until(t, ch, lacks("orders"), nil)
}

func TestManyServicesStayBelowTheLimitOfConnections(t *testing.T) {
	for _, n := range []int{20, 120, 300} {
		t.Run(fmt.Sprint(n, " services with sidecars"), func(t *testing.T) {
			f := newFake(t)
			f.set(func() {
				for i := range n {
					f.service(fmt.Sprint("s", i))
					f.sidecar(fmt.Sprint("s", i), fmt.Sprint("s", i, "-1"))
				}
			})
			c, ch := f.source(t)
			s := receive(t, ch)
			if len(s.Services) != n {
				t.Fatalf("%d services, want %d", len(s.Services), n)
			}
			for _, v := range s.Services {
				if len(v.Instances) != 1 || !v.Instances[0].InMesh() {
					t.Fatalf("%s: %+v", v.Name, v.Instances)
				}
			}
			// A change of a service that may be polled is seen, whether or not it has a watch.
			last := fmt.Sprint("s", n-1)
			f.set(func() {
				f.answers["/v1/health/service/"+last] = []object{entry(object{"ID": last + "-1", "Service": last, "Port": 80}, "critical")}
				f.answers["/v1/health/state/any"] = []object{{"Node": "n", "ServiceID": last + "-1", "ServiceName": last, "Status": "critical"}}
			})
			until(t, ch, func(s *Snapshot) bool { return !has(last)(s) }, nil)
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.most >= 190 {
				t.Errorf("%d queries at once", f.most)
			}
			if len(c.slots) > 150 {
				t.Errorf("%d watches", len(c.slots))
			}
		})
	}
}

func TestAReconnectionPublishesNothingThatIsTheSame(t *testing.T) {
	f := newFake(t)
	f.set(func() {
		for i := range 60 {
			f.service(fmt.Sprint("s", i))
		}
	})
	_, ch := f.source(t)
	receive(t, ch)
	f.set(func() { f.status = http.StatusInternalServerError })
	f.await(t, listPath, 2)
	f.set(func() { f.status = 0 })
	for i := range 60 {
		f.await(t, fmt.Sprint("/v1/health/service/s", i), 1)
	}
	f.set(func() { f.service("last") })
	n := 1
	for s := receive(t, ch); !has("last")(s); s = receive(t, ch) {
		n++
	}
	if n > 2 { // the name, then its instance
		t.Errorf("%d snapshots after an outage that changed nothing and one new service", n)
	}
}

func TestASidecarThatAppearsLaterIsFound(t *testing.T) {
	f := newFake(t)
	f.set(func() { f.service("orders"); f.service("payments") })
	_, ch := f.source(t)
	until(t, ch, has("orders", "payments"), nil)
	f.set(func() { f.sidecar("orders", "orders-1"); f.sidecar("payments", "") })
	mesh := func(name string, s *Snapshot) bool {
		return s.Services[Name{DefaultNamespace, name}].Instances[0].Sidecar == Endpoint{"127.0.0.1", 21000}
	}
	until(t, ch, func(s *Snapshot) bool { return mesh("orders", s) && mesh("payments", s) }, nil)
}

func TestProtocolAndHealth(t *testing.T) {
	f := newFake(t)
	f.set(func() {
		f.service("meta", func(s object) { s["Meta"] = object{"protocol": "grpc"} })
		f.service("both", func(s object) { s["Meta"] = object{"protocol": "grpc"} })
		f.service("none")
		f.service("typo", func(s object) { s["Meta"] = object{"protocol": "gprc"} })
		f.answers["/v1/config/service-defaults"] = []object{{"Kind": "service-defaults", "Name": "both", "Protocol": "tcp"}}
		f.answers["/v1/config/proxy-defaults"] = []object{{"Kind": "proxy-defaults", "Name": "global", "Config": object{"protocol": "http2"}}}
		f.answers["/v1/health/service/none"] = []object{entry(object{"ID": "none-1", "Service": "none", "Port": 80}, "unheard-of")}
	})
	_, ch := f.source(t)
	s := receive(t, ch)
	for name, want := range map[string]Protocol{"meta": GRPC, "both": TCP, "none": HTTP2, "typo": HTTP2} {
		if got := s.Service(Name{DefaultNamespace, name}).Protocol; got != want {
			t.Errorf("%s speaks %s, want %s", name, got, want)
		}
	}
	if s.Service(Name{DefaultNamespace, "none"}).Instances[0].Healthy {
		t.Error("an unknown check status counts as healthy")
	}
}

func TestDefaultIntention(t *testing.T) {
	for name, x := range map[string]struct {
		self any
		want Action
	}{
		"intentions count first": {object{"DebugConfig": object{"DefaultIntentionPolicy": "deny", "ACLResolverSettings": object{"ACLDefaultPolicy": "allow"}}}, Deny},
		"then ACLs":              {object{"DebugConfig": object{"DefaultIntentionPolicy": "", "ACLResolverSettings": object{"ACLDefaultPolicy": "allow"}}}, Allow},
		"an unknown word":        {object{"DebugConfig": object{"DefaultIntentionPolicy": "perhaps"}}, Deny},
		"not readable":           {[]any{}, Deny},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.set(func() { f.answers["/v1/agent/self"] = x.self })
			_, ch := f.source(t)
			if s := receive(t, ch); s.DefaultIntention != x.want {
				t.Errorf("%q, want %q", s.DefaultIntention, x.want)
			}
		})
	}
}
