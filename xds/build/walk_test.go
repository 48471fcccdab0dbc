package build

import (
	"path/filepath"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// chains are the filter chains of a listener.
func chains(l *listenerv3.Listener) []*listenerv3.FilterChain {
	out := l.GetFilterChains()
	if d := l.GetDefaultFilterChain(); d != nil {
		out = append(out[:len(out):len(out)], d)
	}
	return out
}

// managers calls each for every connection manager of a proxy.
func managers(t *testing.T, r *Resources, each func(l *listenerv3.Listener, c *listenerv3.FilterChain, m *hcmv3.HttpConnectionManager)) {
	t.Helper()
	for _, l := range r.Listeners {
		for _, c := range chains(l) {
			for _, f := range c.GetFilters() {
				if f.GetName() != managerFilter {
					continue
				}
				m := &hcmv3.HttpConnectionManager{}
				if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
					t.Fatal(err)
				}
				each(l, c, m)
			}
		}
	}
}

// overridesOf calls each for everything that routes and virtual hosts say to filters.
func overridesOf(r *Resources, each func(where, filter string, a *anypb.Any)) {
	for _, rc := range r.Routes {
		for _, v := range rc.GetVirtualHosts() {
			for filter, a := range v.GetTypedPerFilterConfig() {
				each(v.GetName(), filter, a)
			}
			for _, route := range v.GetRoutes() {
				for filter, a := range route.GetTypedPerFilterConfig() {
					each(route.GetName(), filter, a)
				}
			}
		}
	}
}

// forEachCase builds every case of the golden tests.
func forEachCase(t *testing.T, each func(t *testing.T, p Proxy, r *Resources)) {
	t.Helper()
	folders, err := filepath.Glob("testdata/*")
	if err != nil || len(folders) == 0 {
		t.Fatal("no cases", err)
	}
	for _, dir := range folders {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			in, p := readCase(t, dir)
			r, err := Build(in, p)
			if err != nil {
				t.Fatal(err)
			}
			each(t, p, r)
		})
	}
}
