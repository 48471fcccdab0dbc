// Package streamtest runs streams in a test: a worker that is stepped by hand
// with a clock that the test moves, an upstream that is a script (package
// streamtest's Link), and a client that writes down what it gets. The sockets
// are Unix sockets, which deliver at once, so that nothing depends on timing.
package streamtest

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/upstream"
)

// Rig is a connection manager with one route, to one cluster of scripted hosts.
// What is exported is changed before the first request.
type Rig struct {
	T       testing.TB
	Worker  *loop.Worker
	Clock   time.Time
	Metrics *metric.Registry

	Manager *stream.Manager
	Conn    *stream.Connection
	Route   *route.Route
	Matcher *route.Matcher
	Cluster *upstream.Config

	Hosts    []*Upstream
	Clusters *upstream.Registry
	Factory  *stream.Factory
	// Panics are what streams have survived.
	Panics []any
	// Finished are the streams that are over, as the owner was told.
	Finished int
	// Broken counts the connections that were ended for a panic in their codec.
	Broken int

	ready bool
}

// New returns a rig with that many hosts.
func New(t testing.TB, hosts int) *Rig {
	t.Helper()
	r := &Rig{T: t, Clock: time.Unix(1_700_000_000, 0)}
	w, err := loop.NewWithClock(0, func() time.Time { return r.Clock })
	if err != nil {
		t.Fatal(err)
	}
	r.Worker = w
	t.Cleanup(w.Close)
	r.Metrics = metric.NewRegistry(1)
	r.Clusters = upstream.NewRegistry([]*loop.Worker{w}, r.Metrics, slog.New(slog.DiscardHandler))
	t.Cleanup(r.Clusters.Close)
	breakers := upstream.Breakers{Connections: 1024, Pending: 1024, Requests: 1024, Retries: 3}
	r.Cluster = &upstream.Config{Name: "backend", StatName: "backend", Hash: 1, ConnectTimeout: 5 * time.Second, BufferLimit: 1 << 20, IdleTimeout: time.Hour,
		Breakers: [2]upstream.Breakers{breakers, breakers}}
	for range hosts {
		u := listen(r)
		r.Hosts = append(r.Hosts, u)
		r.Cluster.Endpoints = append(r.Cluster.Endpoints, upstream.Endpoint{Path: u.path, Weight: 1})
	}
	r.Manager = &stream.Manager{StatPrefix: "test", Stats: r.Metrics.Set("http", "test", stream.Stats), ServerName: "sallyport"}
	peer := netip.MustParseAddrPort("192.0.2.1:4321")
	r.Conn = &stream.Connection{Worker: w, ID: 7, Remote: peer, Direct: peer, Local: netip.MustParseAddrPort("192.0.2.2:80")}
	r.Route = &route.Route{Name: "all", VirtualHost: "v", TraceSampling: -1, Forward: &route.Forward{IdleTimeout: -1, NotFoundStatus: 503, TotalWeight: 1,
		Clusters: []route.WeightedCluster{{Cluster: route.ClusterRef{Name: "backend", Ref: r.Clusters.Ref("backend")}, Weight: 1}}}}
	r.Factory = stream.NewFactory(w, r.Clusters)
	w.OnPanic(func(v any) { r.Panics = append(r.Panics, v) })
	return r
}

// Filters makes the manager's chain of the filters; their numbers, by which the
// route overrides them, are 0, 1, 2 and so on.
func (r *Rig) Filters(filters ...stream.Filter) *Rig {
	r.T.Helper()
	ids := make([]route.FilterID, len(filters))
	for i := range ids {
		ids[i] = route.FilterID(i)
	}
	c, err := stream.NewChain(filters, ids)
	if err != nil {
		r.T.Fatal(err)
	}
	r.Manager.Filters = c
	return r
}

// Publish puts the route and the cluster in force; the first request does it.
func (r *Rig) Publish() {
	r.T.Helper()
	r.ready = true
	m := route.NewPath(route.PathPrefix, "/", false)
	if r.Matcher != nil {
		m = *r.Matcher
	}
	table, err := route.NewTable([]*route.VirtualHost{{Name: "v", Domains: []string{"*"}, Entries: []route.Entry{{Matcher: m, Route: r.Route}}}}, route.TableOptions{})
	if err != nil {
		r.T.Fatal(err)
	}
	if r.Manager.Routes == nil {
		r.Manager.Routes = route.NewHandle("r", nil)
	}
	r.Manager.Routes.Publish(table)
	r.Clusters.Set(r.Cluster)
}

// Advance moves the clock and runs what is due.
func (r *Rig) Advance(d time.Duration) {
	// A turn takes the time once; two let what one has begun go on.
	r.Clock = r.Clock.Add(d)
	r.Worker.Step(0)
	r.Worker.Step(0)
}

// Settle runs the worker until nothing happens by itself any more.
func (r *Rig) Settle() {
	for range 8 {
		r.Worker.Step(0)
	}
}

// Until steps the worker until ok says so; what names it for the message.
func (r *Rig) Until(what string, ok func() bool) {
	r.T.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); r.Worker.Step(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.T.Fatalf("it never came to this: %s", what)
		}
	}
}

// Stat is a statistic of the manager, ClusterStat one of the cluster.
func (r *Rig) Stat(i int) int64 { return r.Manager.Stats.Value(i) }

// ClusterStat is a statistic of the cluster.
func (r *Rig) ClusterStat(i int) int64 {
	c := r.Clusters.Lookup("backend")
	if c == nil {
		return 0
	}
	return c.Stats.Value(i)
}

// owner is the rig as the connection that streams come on.
type owner struct{ rig *Rig }

func (o *owner) Manager() *stream.Manager  { return o.rig.Manager }
func (o *owner) StreamDone(*stream.Stream) { o.rig.Finished++ }
func (o *owner) Panicked(any)              { o.rig.Broken++ }

// Head makes a request head of a method, a path and header fields: name, value, name, value.
func Head(method, path string, fields ...string) *message.Head {
	h := &message.Head{}
	h.AddNameString(message.Method, method)
	if path != "" {
		h.AddNameString(message.Path, path)
	}
	h.AddNameString(message.Authority, "example.com")
	h.AddNameString(message.Scheme, "http")
	for i := 0; i+1 < len(fields); i += 2 {
		h.AddString(fields[i], fields[i+1])
	}
	return h
}
