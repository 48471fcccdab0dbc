package config

import (
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/upstream"
)

// cluster compiles one, given as YAML in flow style without its braces.
func cluster(t *testing.T, fields string) (*upstream.Config, error) {
	t.Helper()
	b, err := Load("", "static_resources: {clusters: [{name: c, "+fields+"}]}")
	if err != nil {
		t.Fatal(err)
	}
	s, err := CompileStatic(b, testEnv(t))
	if err != nil {
		return nil, err
	}
	if w := append(b.Warnings, s.Warnings()...); len(w) > 0 {
		t.Errorf("warnings: %v", w)
	}
	return s.Clusters[0].Config, nil
}

const oneName = `load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: x.test, port_value: 80}}}}]}]}`

func TestDNSOfClusters(t *testing.T) {
	extension := func(fields string) string {
		return `cluster_type: {name: envoy.clusters.dns, typed_config: {"@type": type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster` + fields + `}}`
	}
	type want struct {
		kind             upstream.Discovery
		family           upstream.DNSFamily
		refresh          time.Duration
		failure, failMax time.Duration
	}
	usual := want{kind: upstream.StrictDNS, refresh: 5 * time.Second}
	with := func(f func(*want)) want { w := usual; f(&w); return w }
	for fields, want := range map[string]want{
		"type: STRICT_DNS":                                  usual,
		"type: LOGICAL_DNS":                                 with(func(w *want) { w.kind = upstream.LogicalDNS }),
		"type: STRICT_DNS, dns_lookup_family: V4_ONLY":      with(func(w *want) { w.family = upstream.DNSv4Only }),
		"type: STRICT_DNS, dns_lookup_family: V6_ONLY":      with(func(w *want) { w.family = upstream.DNSv6Only }),
		"type: STRICT_DNS, dns_lookup_family: V4_PREFERRED": with(func(w *want) { w.family = upstream.DNSv4Preferred }),
		"type: STRICT_DNS, dns_lookup_family: ALL":          with(func(w *want) { w.family = upstream.DNSAll }),
		"type: STRICT_DNS, dns_lookup_family: AUTO":         usual,
		"type: STRICT_DNS, dns_refresh_rate: 3s":            with(func(w *want) { w.refresh = 3 * time.Second }),
		"type: STRICT_DNS, dns_failure_refresh_rate: {base_interval: 2s, max_interval: 9s}": with(func(w *want) {
			w.failure, w.failMax = 2*time.Second, 9*time.Second
		}),
		"type: STRICT_DNS, dns_failure_refresh_rate: {base_interval: 2s}": with(func(w *want) { w.failure, w.failMax = 2*time.Second, 20*time.Second }),
		extension(""): usual,
		extension(", all_addresses_in_single_endpoint: true"): with(func(w *want) { w.kind = upstream.LogicalDNS }),
		extension(", dns_lookup_family: AUTO"):                usual,
		extension(", dns_lookup_family: V4_PREFERRED"):        with(func(w *want) { w.family = upstream.DNSv4Preferred }),
		extension(", dns_lookup_family: ALL"):                 with(func(w *want) { w.family = upstream.DNSAll }),
		extension(", dns_failure_refresh_rate: {base_interval: 2s, max_interval: 9s}"): with(func(w *want) {
			w.failure, w.failMax = 2*time.Second, 9*time.Second
		}),
	} {
		t.Run(fields, func(t *testing.T) {
			o, err := cluster(t, fields+", "+oneName)
			if err != nil {
				t.Fatal(err)
			}
			got := want
			got.kind, got.family, got.refresh, got.failure, got.failMax = o.Discovery, o.DNSFamily, o.DNSRefresh, o.DNSFailure, o.DNSFailureMax
			if got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
	for fields, text := range map[string]string{
		"type: STRICT_DNS, dns_failure_refresh_rate: {base_interval: 9s, max_interval: 2s}": "max_interval",
	} {
		t.Run(fields, func(t *testing.T) {
			if _, err := cluster(t, fields+", "+oneName); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%v, want an error with %q", err, text)
			}
		})
	}
}

// TestAGoodCheckEndsAnEjectionUnlessItIsTurnedOff: Envoy's default.
func TestAGoodCheckEndsAnEjectionUnlessItIsTurnedOff(t *testing.T) {
	for fields, want := range map[string]bool{
		"":                   true,
		"consecutive_5xx: 3": true,
		"successful_active_health_check_uneject_host: true":  true,
		"successful_active_health_check_uneject_host: false": false,
	} {
		o, err := cluster(t, "outlier_detection: {"+fields+"}")
		if err != nil {
			t.Fatal(err)
		}
		if o.Outlier.SuccessfulUneject != want {
			t.Errorf("{%s}: %v, want %v", fields, o.Outlier.SuccessfulUneject, want)
		}
	}
}

func TestAutoSNIIsTheRequests(t *testing.T) {
	for fields, want := range map[string]bool{
		"": false,
		"upstream_http_protocol_options: {auto_sni: true}": true,
		`typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
			upstream_http_protocol_options: {auto_sni: true}, explicit_http_config: {http_protocol_options: {}}}}`: true,
	} {
		o, err := cluster(t, fields)
		if err != nil {
			t.Fatal(err)
		}
		if o.AutoSNI != want {
			t.Errorf("{%s}: %v, want %v", fields, o.AutoSNI, want)
		}
	}
}
