package webhook

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// What became of a review.
const (
	outcomeInjected = "injected"
	outcomeSkipped  = "skipped"      // not to be injected, or already
	outcomeFailed   = "not injected" // could not be; let in with a warning
	outcomeRefused  = "refused"      // could not be, and may not run without
	outcomeBad      = "bad request"
)

type metrics struct {
	registry *prometheus.Registry
	reviews  *prometheus.CounterVec
	seconds  prometheus.Histogram
	patch    prometheus.Histogram
	syncs    *prometheus.CounterVec
	patched  prometheus.Counter
	leafEnd  prometheus.Gauge
	caEnd    prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sallyport_injector_reviews_total",
			Help: "Admission reviews by what became of them."}, []string{"outcome"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sallyport_injector_review_seconds",
			Help: "Time to answer an admission review.", Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1}}),
		patch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sallyport_injector_patch_bytes",
			Help: "Size of the patches sent.", Buckets: prometheus.ExponentialBuckets(512, 2, 8)}),
		syncs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sallyport_injector_syncs_total",
			Help: "Looks at the secret and the webhook configuration."}, []string{"result"}),
		patched: prometheus.NewCounter(prometheus.CounterOpts{Name: "sallyport_injector_ca_bundle_writes_total",
			Help: "Changes of the webhook configuration's caBundle by this process."}),
		leafEnd: prometheus.NewGauge(prometheus.GaugeOpts{Name: "sallyport_injector_certificate_not_after_seconds",
			Help: "End of the serving certificate, seconds since 1970."}),
		caEnd: prometheus.NewGauge(prometheus.GaugeOpts{Name: "sallyport_injector_ca_not_after_seconds",
			Help: "End of the authority that signs, seconds since 1970."}),
	}
	m.registry.MustRegister(m.reviews, m.seconds, m.patch, m.syncs, m.patched, m.leafEnd, m.caEnd)
	for _, outcome := range []string{outcomeInjected, outcomeSkipped, outcomeFailed, outcomeRefused, outcomeBad} {
		m.reviews.WithLabelValues(outcome)
	}
	return m
}

func (m *metrics) done(outcome string, start time.Time, patch int) {
	m.reviews.WithLabelValues(outcome).Inc()
	m.seconds.Observe(time.Since(start).Seconds())
	if patch > 0 {
		m.patch.Observe(float64(patch))
	}
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
