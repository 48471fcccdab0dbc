package telemetry

import (
	"fmt"
	"io"
	"net/http"
	"sort"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sallyport/sidecar/metric"
)

// tagNames are Envoy's label names for the name part of a family, so that
// dashboards made for Envoy show us.
var tagNames = map[string]string{
	"cluster":  "envoy_cluster_name",
	"http":     "envoy_http_conn_manager_prefix",
	"listener": "envoy_listener_address",
	"tcp":      "envoy_tcp_prefix",
}

// collector gives the registry's values to Prometheus at each scrape.
type collector struct{ r *metric.Registry }

// Describe sends nothing: the set of series changes with the configuration
// (an "unchecked" collector).
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends every value that is not zero, and gauges always: a mesh of a
// thousand idle clusters makes no series.
func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, f := range c.r.Families() {
		tag := tagNames[f.Prefix]
		for i, d := range f.Set.Layout().Descs {
			desc := func() *prometheus.Desc {
				labels := prometheus.Labels{}
				if tag != "" {
					labels[tag] = f.Name
				}
				short, class := statusClass(d.Name)
				if class != "" {
					labels["envoy_response_code_class"] = class
				}
				return prometheus.NewDesc("envoy_"+f.Prefix+"_"+sanitize(short), short, nil, labels)
			}
			switch d.Kind {
			case metric.Histogram:
				dist := f.Set.Distribution(i)
				if dist.Total == 0 {
					continue
				}
				buckets := map[float64]uint64{}
				sum := uint64(0)
				for b, bound := range metric.Buckets {
					sum += dist.Counts[b]
					buckets[bound] = sum
				}
				send(out, func() (prometheus.Metric, error) {
					return prometheus.NewConstHistogram(desc(), dist.Total, dist.Sum, buckets)
				})
			default:
				v := f.Set.Value(i)
				if v == 0 && d.Kind == metric.Counter {
					continue
				}
				kind := prometheus.CounterValue
				if d.Kind == metric.Gauge {
					kind = prometheus.GaugeValue
				}
				send(out, func() (prometheus.Metric, error) {
					return prometheus.NewConstMetric(desc(), kind, float64(v))
				})
			}
		}
	}
	singles := c.r.Singles()
	for _, n := range sortedKeys(singles) {
		send(out, func() (prometheus.Metric, error) {
			name, labels := single(n)
			return prometheus.NewConstMetric(prometheus.NewDesc("envoy_"+sanitize(name), name, nil, labels), prometheus.CounterValue, float64(singles[n]))
		})
	}
}

// statusClass takes upstream_rq_5xx apart, which Envoy shows as
// upstream_rq_xx{envoy_response_code_class="5"}.
func statusClass(name string) (short, class string) {
	n := len(name)
	if n < 8 || name[n-7:n-3] != "_rq_" || name[n-3] < '1' || name[n-3] > '5' || name[n-2:] != "xx" {
		return name, ""
	}
	return name[:n-3] + "xx", name[n-3 : n-2]
}

// rateLimit stands behind the configured prefix in the counters of the local rate limit filter.
const rateLimit = ".http_local_rate_limit."

// single takes the configured part out of a filter's counter, as Envoy's tag
// rules do: http.<prefix>.rbac.allowed is envoy_http_rbac_allowed with a label.
func single(name string) (string, prometheus.Labels) {
	if rest, ok := strings.CutPrefix(name, "http."); ok {
		if prefix, what, ok := strings.Cut(rest, "."); ok {
			return "http." + what, prometheus.Labels{tagNames["http"]: prefix}
		}
	}
	if prefix, what, ok := strings.Cut(name, rateLimit); ok {
		return rateLimit[1:] + what, prometheus.Labels{"envoy_local_http_ratelimit_prefix": prefix}
	}
	return name, nil
}

func send(out chan<- prometheus.Metric, f func() (prometheus.Metric, error)) {
	m, err := f()
	if err != nil {
		m = prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(err), err)
	}
	out <- m
}

func sanitize(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, s)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// Prometheus returns the handler of /stats/prometheus: our statistics and the Go runtime's.
func Prometheus(r *metric.Registry) http.Handler {
	p := prometheus.NewRegistry()
	p.MustRegister(collector{r}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// One name that clashes, or is no UTF-8, must not take the whole page away.
	return promhttp.HandlerFor(p, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// WriteStats writes all statistics as Envoy's /stats does, "name: value" per line, in order.
func WriteStats(w io.Writer, r *metric.Registry, used bool) {
	lines := map[string]string{}
	for _, f := range r.Families() {
		prefix := f.Prefix + "." + f.Name + "."
		for i, d := range f.Set.Layout().Descs {
			switch {
			case d.Kind == metric.Histogram:
				if dist := f.Set.Distribution(i); dist.Total > 0 {
					lines[prefix+d.Name] = fmt.Sprintf("count %d mean %.3f ms", dist.Total, dist.Sum/float64(dist.Total))
				} else if !used {
					lines[prefix+d.Name] = "No recorded values"
				}
			default:
				if v := f.Set.Value(i); v != 0 || !used {
					lines[prefix+d.Name] = fmt.Sprint(v)
				}
			}
		}
	}
	for n, v := range r.Singles() {
		if v != 0 || !used {
			lines[n] = fmt.Sprint(v)
		}
	}
	for _, n := range sortedKeys(lines) {
		fmt.Fprintf(w, "%s: %s\n", n, lines[n])
	}
}
