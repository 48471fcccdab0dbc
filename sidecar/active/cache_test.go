package active

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/sidecar/ads"
)

// withFilter is a listener on routes of its own, or of a name, with one filter before the router.
func withFilter(name, routes, filter string) string {
	return `
name: ` + name + `
address: {pipe: {path: "/run/` + name + `.sock"}}
filter_chains:
- filters:
  - name: http
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: in
      ` + routes + `
      http_filters: [` + filter + `{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
`
}

const (
	overRDS  = `rds: {route_config_name: r, config_source: {ads: {}, resource_api_version: V3}}`
	noSecret = `route_config: {name: own, virtual_hosts: []}`
	hs256    = `{name: jwt, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication,
        providers: {p: {issuer: i, local_jwks: {inline_string: '{"keys":[{"kty":"oct","alg":"HS256","k":"QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE"}]}'}}},
        rules: [{match: {prefix: /}, requires: {provider_name: p}}]}}, `
	credential = `{name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: xds},
        request_headers_to_add: [{header: {key: authorization, value: "Basic QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"}}]}]}]}`
	planted = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"
)

// keep runs a process with that configuration until it is on disk, and returns the folder.
func keep(t *testing.T, responses ...ads.Response) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "cache")
	c, err := NewCache(dir, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, _, _ := start(t, Options{Cache: c}, bootstrap)
	for _, r := range responses {
		accept(t, s, r)
	}
	c.Flush()
	s.Close()
	return dir
}

func TestNoSecretIsOnDisk(t *testing.T) {
	dir := keep(t, response(t, ads.ClusterType, true), response(t, ads.ListenerType, true, withFilter("in", overRDS, hs256), withFilter("open", noSecret, "")),
		response(t, ads.RouteType, true, credential))
	kept := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		if i.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, i.Mode())
		}
		if d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), planted) {
			t.Errorf("a secret is in %s", path)
		}
		if strings.Contains(string(b), "open") {
			kept++
		}
		return err
	})
	if err != nil || kept != 1 {
		t.Errorf("the listener without a secret is in %d files, %v", kept, err)
	}
}

func TestWhatWasNotKeptWaitsForTheControlPlane(t *testing.T) {
	dir := keep(t, response(t, ads.ClusterType, true), response(t, ads.ListenerType, true, withFilter("jwt", noSecret, hs256), withFilter("open", noSecret, ""), withFilter("routed", overRDS, "")),
		response(t, ads.RouteType, true, credential))
	synctest.Test(t, func(t *testing.T) {
		c, err := NewCache(dir, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		s, e, _ := start(t, Options{Cache: c}, bootstrap)
		e.take()
		time.Sleep(time.Hour) // whatever patience there is
		synctest.Wait()
		// Without its keys one is not opened, without its routes another is not: it would answer 404 to everybody.
		if got := e.take(); got != "add listener open" {
			t.Error(got)
		}
		lacks(t, s, "waiting for the control plane: what may hold a secret was not kept on disk: jwt", "")
		accept(t, s, response(t, ads.ClusterType, true))
		accept(t, s, response(t, ads.ListenerType, true, withFilter("jwt", noSecret, hs256), withFilter("open", noSecret, ""), withFilter("routed", overRDS, "")))
		if got := e.take(); got != "add listener jwt" {
			t.Error(got)
		}
		lacks(t, s, "waiting for the control plane: what may hold a secret was not kept on disk: r", "")
		accept(t, s, response(t, ads.RouteType, true, credential))
		if got := e.take(); got != "add listener routed" {
			t.Error(got)
		}
		lacks(t, s, "", "")
		s.Close()
	})
}

func TestNoSecretIsInADump(t *testing.T) {
	s, _, _ := start(t, Options{}, bootstrap)
	accept(t, s, response(t, ads.ClusterType, true))
	accept(t, s, response(t, ads.ListenerType, true, withFilter("in", overRDS, hs256)))
	accept(t, s, response(t, ads.RouteType, true, credential))
	// And what was refused.
	bad := strings.Replace(credential, `virtual_hosts: [`, `virtual_hosts: [{name: v, domains: ["*.a.*"]}, `, 1)
	if refused := s.Apply(response(t, ads.RouteType, true, bad)); len(refused) != 1 {
		t.Fatalf("%v", refused)
	}
	dump := s.Dump().String()
	if strings.Contains(dump, planted) {
		t.Error("a secret is in the dump")
	}
	for _, part := range []string{"authorization", "local_jwks", "providers", "*.a.*", "[redacted]", "NACKED"} {
		if !strings.Contains(dump, part) {
			t.Errorf("the dump does not show %s", part)
		}
	}
}
