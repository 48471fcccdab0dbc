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
			if d.Name == "" {
				continue
			}
			name := "envoy_" + f.Prefix + "_" + sanitize(d.Name)
			desc := func() *prometheus.Desc {
				if tag == "" {
					return prometheus.NewDesc(name, d.Name, nil, nil)
				}
				return prometheus.NewDesc(name, d.Name, nil, prometheus.Labels{tag: f.Name})
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
			return prometheus.NewConstMetric(prometheus.NewDesc("envoy_"+sanitize(n), n, nil, nil), prometheus.CounterValue, float64(singles[n]))
		})
	}
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
	return promhttp.HandlerFor(p, promhttp.HandlerOpts{})
}

// WriteStats writes all statistics as Envoy's /stats does, "name: value" per line, in order.
func WriteStats(w io.Writer, r *metric.Registry, used bool) {
	lines := map[string]string{}
	for _, f := range r.Families() {
		prefix := f.Prefix + "." + f.Name + "."
		for i, d := range f.Set.Layout().Descs {
			switch {
			case d.Name == "":
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
