package serve

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sallyport/xds/catalog"
	"sallyport/xds/document"
	"sallyport/xds/policy"
)

// Status is what a control plane knows of itself and of its proxies: the answer of /status.
type Status struct {
	Ready    bool           `json:"ready"`
	Catalog  catalog.Status `json:"catalog"`
	Policies policy.Status  `json:"policies"`
	// Conflicts are the policies that are in force and do not mean what they say.
	Conflicts []Conflict    `json:"conflicts,omitempty"`
	Proxies   []ProxyStatus `json:"proxies"`
}

// Conflict is a part of a policy that does not mean what it says at a service: see policy.Conflict.
type Conflict struct {
	*document.Problem
	Service string `json:"service"`
	Closed  bool   `json:"closed"` // nobody gets to the service until the conflict is gone
}

// Conflicts are those of now, in the order of their places.
func (s *Server) Conflicts() (out []Conflict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conflicts {
		out = append(out, Conflict{c.Problem, c.Service.String(), c.Closes})
	}
	return out
}

// ProxyStatus is one stream.
type ProxyStatus struct {
	ID        string                `json:"id"`
	Kind      string                `json:"kind"`
	Namespace string                `json:"namespace"`
	Service   string                `json:"service,omitempty"`
	Gateway   string                `json:"gateway,omitempty"`
	SPIFFEID  string                `json:"spiffe_id,omitempty"`
	Protocol  string                `json:"protocol"`
	Since     time.Time             `json:"since"`
	Problem   string                `json:"problem,omitempty"`
	Types     map[string]TypeStatus `json:"types"` // by CDS, EDS, LDS, RDS, SDS
}

// TypeStatus is what a proxy has of a type.
type TypeStatus struct {
	Sent  string `json:"sent,omitempty"`  // version
	Acked string `json:"acked,omitempty"` // version
	Nack  *Nack  `json:"nack,omitempty"`  // why the version sent is not in force
}

// Proxies are the streams, by id.
func (s *Server) Proxies() []ProxyStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []ProxyStatus{}
	for _, st := range s.streams {
		if !st.authorized {
			continue
		}
		p := ProxyStatus{ID: st.node, Kind: string(st.proxy.Kind), Namespace: st.proxy.Namespace, Service: st.proxy.Service, Gateway: st.proxy.Gateway,
			SPIFFEID: st.identity.String(), Protocol: st.protocol, Since: st.since, Problem: st.problem, Types: map[string]TypeStatus{}}
		for t, v := range st.types {
			ts := TypeStatus{Sent: v.sentVersion, Acked: v.ackedVersion}
			if v.nack != nil {
				n := *v.nack
				ts.Nack = &n
			}
			p.Types[shortType(t)] = ts
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b ProxyStatus) int { return cmp.Or(cmp.Compare(a.ID, b.ID), a.Since.Compare(b.Since)) })
	return out
}

// Handler answers /status, /ready and /metrics. It tells who is in the mesh and is for 127.0.0.1.
func (s *Server) Handler(c catalog.Source, p *policy.Folder) http.Handler {
	s.metrics.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sallyport_policy_problems", Help: "Documents or files that are refused now."},
		func() float64 { return float64(len(p.Status().Problems)) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sallyport_policy_conflicts", Help: "Parts of policies that do not mean what they say now."},
			func() float64 { return float64(len(s.Conflicts())) }))
	m := http.NewServeMux()
	m.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(Status{Ready: s.Loaded(), Catalog: c.Status(), Policies: p.Status(), Conflicts: s.Conflicts(), Proxies: s.Proxies()})
	})
	m.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if !s.Loaded() {
			http.Error(w, "catalog or policies have not been read yet", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	})
	m.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	return m
}

// metrics are the server's own.
type metrics struct {
	registry                     *prometheus.Registry
	pushes, buildErrors, refused prometheus.Counter
	pushTime                     prometheus.Histogram
	sent, nacks                  *prometheus.CounterVec
}

func newMetrics(s *Server) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	byType := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"type"})
	}
	m := &metrics{
		registry:    prometheus.NewRegistry(),
		pushes:      counter("sallyport_xds_pushes_total", "Changes handed out to all proxies."),
		buildErrors: counter("sallyport_xds_build_errors_total", "Configurations that could not be built."),
		refused:     counter("sallyport_xds_refused_total", "Streams of proxies that may not have what they asked for."),
		pushTime:    prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sallyport_xds_push_seconds", Help: "Time of a push.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8)}),
		sent:        byType("sallyport_xds_responses_total", "Responses sent."),
		nacks:       byType("sallyport_xds_nacks_total", "Responses that a proxy refused."),
	}
	m.registry.MustRegister(m.pushes, m.buildErrors, m.refused, m.pushTime, m.sent, m.nacks,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sallyport_xds_streams", Help: "Streams that are open."}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return float64(len(s.streams))
		}))
	return m
}
