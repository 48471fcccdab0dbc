package quickstart

import (
	"testing"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

func TestFilesAreGood(t *testing.T) {
	s, problems := catalog.LoadFile("catalog.yaml")
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	set, problems := policy.Load("policies")
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	if len(set.HTTPRoutes) == 0 || len(set.Gateways) == 0 {
		t.Fatal("there are no routes")
	}
	// What the policies speak of is in the catalog, and every instance has a port of its own.
	for _, r := range set.HTTPRoutes {
		for _, rule := range r.Spec.Rules {
			for _, b := range rule.BackendRefs {
				to := set.BackendOf(r, b.BackendObjectReference).Service
				if s.Services[catalog.Name{Namespace: to.Namespace, Name: to.Name}] == nil {
					t.Errorf("route %s goes to %s, which the catalog does not have", r.Name, to)
				}
			}
		}
	}
	used := map[uint32]string{}
	for _, name := range s.Names() {
		for _, in := range s.Service(name).Instances {
			for _, port := range []uint32{in.Port, in.Sidecar.Port} {
				if other := used[port]; other != "" && port != 0 {
					t.Errorf("port %d is of %s and of %s", port, other, in.ID)
				}
				used[port] = in.ID
			}
		}
	}
}
