package telemetry

import (
	"net/http/httptest"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"sallyport/sidecar/metric"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/upstream"
)

// scrape reads the Prometheus page with Prometheus's own parser.
func scrape(t *testing.T, r *metric.Registry) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	Prometheus(r).ServeHTTP(w, httptest.NewRequest("GET", "/stats/prometheus", nil))
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	m, err := p.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// value finds the series of that name with those labels, "k=v,k=v" in order.
func value(m map[string]*dto.MetricFamily, name, labels string) *dto.Metric {
	for _, s := range m[name].GetMetric() {
		var l []string
		for _, p := range s.GetLabel() {
			l = append(l, p.GetName()+"="+p.GetValue())
		}
		if strings.Join(l, ",") == labels {
			return s
		}
	}
	return nil
}

func registry() *metric.Registry {
	r := metric.NewRegistry(1)
	c := r.Set("cluster", "orders", upstream.Stats).At(0)
	c.Inc(upstream.StatRqTotal)
	c.Inc(upstream.StatRq2xx)
	c.Inc(upstream.StatRq5xx)
	c.Inc(upstream.StatTLSHandshake)
	c.Add(upstream.StatMembershipHealthy, 3)
	c.Observe(upstream.StatRqTime, 7)
	c.Observe(upstream.StatRqTime, 99999999)
	r.Set("cluster", "idle", upstream.Stats)
	r.Set("http", "ingress", stream.Stats).At(0).Inc(stream.StatNoCluster)
	for _, n := range []string{"http.ingress.rbac.allowed", "api.http_local_rate_limit.enforced", "plain.counter"} {
		r.Single(n).Inc()
	}
	return r
}

func TestPrometheusNamesAreEnvoys(t *testing.T) {
	m := scrape(t, registry())
	for _, x := range []struct {
		name, labels string
		want         float64
	}{
		{"envoy_cluster_upstream_rq_total", "envoy_cluster_name=orders", 1},
		{"envoy_cluster_upstream_rq_xx", "envoy_cluster_name=orders,envoy_response_code_class=2", 1},
		{"envoy_cluster_upstream_rq_xx", "envoy_cluster_name=orders,envoy_response_code_class=5", 1},
		{"envoy_cluster_ssl_handshake", "envoy_cluster_name=orders", 1},
		{"envoy_http_rbac_allowed", "envoy_http_conn_manager_prefix=ingress", 1},
		{"envoy_http_local_rate_limit_enforced", "envoy_local_http_ratelimit_prefix=api", 1},
		{"envoy_plain_counter", "", 1},
	} {
		if s := value(m, x.name, x.labels); s == nil || s.GetCounter().GetValue() != x.want {
			t.Errorf("%s{%s} is %v", x.name, x.labels, s)
		}
	}
	if s := value(m, "envoy_cluster_membership_healthy", "envoy_cluster_name=orders"); s.GetGauge().GetValue() != 3 {
		t.Errorf("%v", s)
	}
	if s := value(m, "envoy_cluster_membership_healthy", "envoy_cluster_name=idle"); s == nil {
		t.Error("a gauge of zero is not shown")
	}
	if s := value(m, "envoy_cluster_upstream_rq_total", "envoy_cluster_name=idle"); s != nil {
		t.Error("a counter that never counted makes a series")
	}
	h := value(m, "envoy_cluster_upstream_rq_time", "envoy_cluster_name=orders").GetHistogram()
	if h.GetSampleCount() != 2 || h.GetSampleSum() != 100000006 {
		t.Errorf("%v", h)
	}
	last := uint64(0)
	for _, b := range h.GetBucket() {
		if b.GetCumulativeCount() < last || b.GetUpperBound() >= 10 && b.GetCumulativeCount() == 0 {
			t.Errorf("bucket %v", b)
		}
		last = b.GetCumulativeCount()
	}
	if m["go_goroutines"] == nil {
		t.Error("nothing of the runtime")
	}
}

func TestOneBadNameDoesNotTakeThePageAway(t *testing.T) {
	r := registry()
	r.Set("cluster", "no\xff utf-8", upstream.Stats).At(0).Inc(upstream.StatRqTotal)
	r.Set("cluster", "quote\" and\nline", upstream.Stats).At(0).Inc(upstream.StatRqTotal)
	r.Single("a.b").Inc()
	r.Single("a_b").Inc()
	r.Single("cluster.upstream_rq_total").Inc()
	m := scrape(t, r)
	if value(m, "envoy_cluster_upstream_rq_total", "envoy_cluster_name=orders") == nil || value(m, "envoy_cluster_upstream_rq_total", "envoy_cluster_name=quote\" and\nline") == nil || m["envoy_a_b"] == nil {
		t.Error("good series are missing")
	}
}

func TestStatsPage(t *testing.T) {
	var all, used strings.Builder
	WriteStats(&all, registry(), false)
	WriteStats(&used, registry(), true)
	for line, always := range map[string]bool{
		"cluster.orders.upstream_rq_total: 1\n": true, "cluster.orders.upstream_rq_2xx: 1\n": true, "cluster.idle.upstream_rq_total: 0\n": false,
		"cluster.orders.membership_healthy: 3\n": true, "http.ingress.rbac.allowed: 1\n": true,
		"cluster.orders.upstream_rq_time: count 2 mean 50000003.000 ms\n": true, "cluster.idle.upstream_rq_time: No recorded values\n": false,
	} {
		if !strings.Contains(all.String(), line) || strings.Contains(used.String(), line) != always {
			t.Errorf("%q: in all %v, in used %v", line, strings.Contains(all.String(), line), strings.Contains(used.String(), line))
		}
	}
	last := ""
	for line := range strings.Lines(all.String()) {
		if line <= last {
			t.Fatalf("%q comes after %q", line, last)
		}
		last = line
	}
}
