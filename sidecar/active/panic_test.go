package active

import (
	"testing"
	"testing/synctest"
	"time"

	"sallyport/sidecar/ads"
	"sallyport/sidecar/config"
	"sallyport/sidecar/listener"
	"sallyport/sidecar/panics"
	"sallyport/sidecar/upstream"
)

// fragile is an engine that panics at things of one name.
type fragile struct {
	engine
	name string
}

func (f *fragile) ApplyListeners(set []*listener.Config, remove []string) []error {
	for _, c := range set {
		if c.Name == f.name {
			panic("a mistake of ours")
		}
	}
	return f.engine.ApplyListeners(set, remove)
}

func (f *fragile) SetCluster(c *upstream.Config) {
	if c.Name == f.name {
		panic("a mistake of ours")
	}
	f.engine.SetCluster(c)
}

func TestAResourceThatMakesUsPanicIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fragile{name: "bad"}
		s := New(Options{Publisher: f})
		defer s.Close()
		b, err := config.LoadYAML(bootstrap)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(b); err != nil {
			t.Fatal(err)
		}
		f.take()
		before := panics.Count()
		refused := s.Apply(response(t, ads.ClusterType, true, `{name: bad}`, `{name: good}`))
		if len(refused) != 1 || refused[0].Name != "bad" || f.take() != "set cluster good" {
			t.Errorf("refused %v", refused)
		}
		refused = s.Apply(response(t, ads.ListenerType, true, tcp("bad", "1"), tcp("good", "2")))
		if len(refused) != 1 || refused[0].Name != "bad" || f.take() != "add listener good" {
			t.Errorf("refused %v", refused)
		}
		if n := panics.Count() - before; n != 3 { // both together, and then each alone
			t.Errorf("%d panics were counted", n)
		}
		// What waited and is put in force by a timer panics there.
		s.Apply(response(t, ads.ClusterType, true, `{name: bad, type: EDS, eds_cluster_config: {eds_config: {ads: {}, resource_api_version: V3}}}`))
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := panics.Count() - before; n < 4 {
			t.Errorf("%d panics were counted", n)
		}
		// And all goes on.
		accept(t, s, response(t, ads.ClusterType, true, `{name: other}`))
	})
}
