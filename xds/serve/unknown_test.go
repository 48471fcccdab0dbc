package serve

import (
	"strings"
	"testing"

	"sallyport/xds/build"
)

// TestAServiceThatNobodyFindsIsTold: at /status, whatever its sidecar may know.
func TestAServiceThatNobodyFindsIsTold(t *testing.T) {
	p := newPlane(t)
	p.load()
	for service, want := range map[string]string{"orders": "", "odrers": "the catalog has no service default/odrers"} {
		c := p.sotw(service)
		c.ask(build.ClusterType, nil, "")
		c.receive(build.ClusterType)
		found := false
		for _, s := range p.Proxies() {
			if s.Service != service {
				continue
			}
			found = true
			if s.Problem != want && (want == "" || !strings.HasPrefix(s.Problem, want)) {
				t.Errorf("%s: %q, want %q", service, s.Problem, want)
			}
		}
		if !found {
			t.Errorf("%s is not at /status", service)
		}
	}
}
