// Package config is the one place that knows Envoy's protos: it reads the
// bootstrap, and compiles listeners, clusters, endpoints and routes into the
// immutable tables that the data plane runs on. It owns nothing at run time.
// Packages active and ads call it, on ordinary goroutines, never on a worker.
//
// Nothing is ignored in silence: what is not implemented is an error where
// ignoring it would weaken security or change where requests go, otherwise a
// Warning.
package config

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"sallyport/sidecar/filter"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/route"
	"sallyport/sidecar/secret"
	"sallyport/sidecar/stream"
)

// Env is what the compilers need of the running process. Every function is
// optional: without it names stay unresolved and what needs it is refused, or
// (validate mode) checked and left out. All are safe for concurrent use.
type Env struct {
	// Cluster interns a cluster's name into what ClusterRef.Ref holds (*upstream.Ref).
	Cluster func(name string) any
	// Routes returns the handle that an RDS resource is published to.
	Routes func(name string) *route.Handle
	// Stats returns the statistics of a kind ("http", "tcp", …) and name.
	Stats func(kind, name string, l *metric.Layout) *metric.Set
	// AccessLog, Tracer and HeaderFormat are package telemetry's compilers.
	AccessLog    func(*accesslogv3.AccessLog) (stream.AccessLog, error)
	Tracer       func(*hcmv3.HttpConnectionManager_Tracing) (stream.Tracer, error)
	HeaderFormat func(format string) (route.Formatter, error)
	// Secrets compiles TLS contexts and holds what they need.
	Secrets *secret.Store
	// Filters numbers the names of filters, for routes and filter chains
	// alike; without it those of one resource alone agree.
	Filters *route.FilterNames
	// Metrics is for filters that count by themselves; nil where nothing counts.
	Metrics *metric.Registry
	// Memory keeps what filters must not lose at an update; nil where nothing is kept.
	Memory *filter.Memory
}

// complete returns e with what a compiler cannot do without.
func (e Env) complete() Env {
	if e.Filters == nil {
		e.Filters = new(route.FilterNames)
	}
	return e
}
