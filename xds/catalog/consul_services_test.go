package catalog

import (
	"reflect"
	"testing"

	"github.com/hashicorp/consul/api"
)

func TestASidecarIsPairedWithTheInstanceBeforeWhichItStands(t *testing.T) {
	instance := func(id string) *api.ServiceEntry {
		return &api.ServiceEntry{Node: &api.Node{Node: "n", Address: "127.0.0.1"}, Service: &api.AgentService{ID: id, Service: "orders", Port: 80}}
	}
	sidecar := func(id string, port int, destination string) *api.ServiceEntry {
		return &api.ServiceEntry{Node: &api.Node{Node: "n", Address: "127.0.0.1"}, Service: &api.AgentService{ID: id, Service: "orders-proxy", Port: port,
			Kind: api.ServiceKindConnectProxy, Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "orders", DestinationServiceID: destination}}}
	}
	for name, x := range map[string]struct {
		instances, sidecars []*api.ServiceEntry
		want                map[string]uint32 // the port of the sidecar by the instance's ID
		complaints          int
	}{
		"by ID":                      {[]*api.ServiceEntry{instance("a"), instance("b")}, []*api.ServiceEntry{sidecar("pb", 2, "b"), sidecar("pa", 1, "a")}, map[string]uint32{"n/a": 1, "n/b": 2}, 0},
		"without ID, one instance":   {[]*api.ServiceEntry{instance("a")}, []*api.ServiceEntry{sidecar("p", 1, "")}, map[string]uint32{"n/a": 1}, 0},
		"without ID, the one left":   {[]*api.ServiceEntry{instance("a"), instance("b")}, []*api.ServiceEntry{sidecar("p", 1, ""), sidecar("pb", 2, "b")}, map[string]uint32{"n/a": 1, "n/b": 2}, 0},
		"without ID, the usual name": {[]*api.ServiceEntry{instance("a"), instance("orders")}, []*api.ServiceEntry{sidecar("p", 1, "")}, map[string]uint32{"n/a": 0, "n/orders": 1}, 0},
		"without ID, ambiguous":      {[]*api.ServiceEntry{instance("a"), instance("b")}, []*api.ServiceEntry{sidecar("p", 1, "")}, map[string]uint32{"n/a": 0, "n/b": 0}, 1},
		"two for one":                {[]*api.ServiceEntry{instance("a")}, []*api.ServiceEntry{sidecar("q", 2, "a"), sidecar("p", 1, "a")}, map[string]uint32{"n/a": 1}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := &Consul{log: quiet, told: map[string]bool{}}
			for _, i := range c.instances("orders", &consulService{instances: x.instances, sidecars: x.sidecars}) {
				if i.Sidecar.Port != x.want[i.ID] {
					t.Errorf("%s has the sidecar %d, want %d", i.ID, i.Sidecar.Port, x.want[i.ID])
				}
			}
			if len(c.told) != x.complaints {
				t.Errorf("complaints: %v", c.told)
			}
		})
	}
}

func TestInstancesOfTwoNamespacesAreTwoServices(t *testing.T) {
	entry := func(id, namespace string) *api.ServiceEntry {
		e := &api.ServiceEntry{Node: &api.Node{Node: "n", Address: "127.0.0.1"}, Service: &api.AgentService{ID: id, Service: "orders", Port: 80}}
		if namespace != "" {
			e.Service.Meta = map[string]string{metaNamespace: namespace}
		}
		return e
	}
	of := func(list ...*api.ServiceEntry) *consulService {
		return &consulService{instances: list, read: [2]bool{true, true}, typical: true}
	}
	c := &Consul{log: quiet, told: map[string]bool{}, services: map[string]*consulService{
		"orders":         of(entry("a", ""), entry("b", "shop"), entry("c", "shop"), entry("d", "not a name")),
		"gone":           of(),
		"billing report": of(entry("e", "")),
	}}
	got := map[string]int{}
	for n, s := range c.snapshot().Services {
		if n != s.Name {
			t.Errorf("%s is called %s", n, s.Name)
		}
		got[n.String()] = len(s.Instances)
	}
	if want := map[string]int{"default/orders": 1, "shop/orders": 2, "default/gone": 0}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if len(c.told) != 2 {
		t.Errorf("complaints: %v", c.told)
	}
}
