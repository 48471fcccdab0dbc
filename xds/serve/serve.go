// Package serve gives proxies their configuration over xDS v3 (go-control-plane's server: aggregated and one service per
// type, state-of-the-world and delta). It owns the streams, decides who may have what by the SPIFFE ID that a stream's peer
// proved, calls build when catalog or policies change, and remembers what proxies refused. Its methods are safe for
// concurrent use; Run's goroutine pushes, gRPC's goroutines answer.
package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"sync"
	"time"

	clusterservice "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservice "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	listenerservice "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	routeservice "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"sallyport/xds/build"
	"sallyport/xds/catalog"
	"sallyport/xds/document"
	"sallyport/xds/policy"
)

// Identity says which SPIFFE ID the peer of a call proved. An error refuses the call.
type Identity func(context.Context) (spiffeid.ID, error)

// Options of New.
type Options struct {
	TrustDomain spiffeid.TrustDomain
	DefaultDeny bool
	// Identity of the callers. Nil: nobody is checked, and any proxy is given what it says it is.
	Identity   Identity
	MaxStreams int // default 10,000
	// Quiet is how long after a change others are waited for, MostQuiet the longest; 50 ms and 500 ms. Changes of endpoints
	// alone do not wait.
	Quiet, MostQuiet time.Duration
	// Linger is how long a removed cluster stays; default 3 s.
	Linger time.Duration
	Logger *slog.Logger
}

// Server serves xDS.
type Server struct {
	opt   Options
	log   *slog.Logger
	feeds feeds
	wake  chan struct{} // one token: there is something to push

	mu         sync.Mutex
	input      build.Input // Catalog and Policy are nil until they were read
	generation uint64
	urgent     bool
	conflicts  []policy.Conflict // of this generation
	streams    map[string]*stream
	built      map[string]*built // of this generation, by Proxy.Key
	metrics    *metrics
}

// built is the outcome of one build.
type built struct {
	once sync.Once
	set  set
	err  error
}

// New makes a server.
func New(o Options) *Server {
	if o.MaxStreams <= 0 {
		o.MaxStreams = 10_000
	}
	if o.Quiet <= 0 {
		o.Quiet = 50 * time.Millisecond
	}
	if o.MostQuiet <= 0 {
		o.MostQuiet = 500 * time.Millisecond
	}
	if o.Linger <= 0 {
		o.Linger = 3 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	s := &Server{opt: o, log: o.Logger, feeds: feeds{list: map[string]*feed{}}, wake: make(chan struct{}, 1), streams: map[string]*stream{},
		built: map[string]*built{}, input: build.Input{TrustDomain: o.TrustDomain, DefaultDeny: o.DefaultDeny}}
	s.metrics = newMetrics(s)
	return s
}

// Register adds the xDS services to a gRPC server. Streams end with ctx.
func (s *Server) Register(ctx context.Context, r grpc.ServiceRegistrar) {
	x := serverv3.NewServer(ctx, &s.feeds, &callbacks{s}, sotw.WithOrderedADS())
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, x)
	clusterservice.RegisterClusterDiscoveryServiceServer(r, x)
	endpointservice.RegisterEndpointDiscoveryServiceServer(r, x)
	listenerservice.RegisterListenerDiscoveryServiceServer(r, x)
	routeservice.RegisterRouteDiscoveryServiceServer(r, x)
	secretservice.RegisterSecretDiscoveryServiceServer(r, x)
}

// SetCatalog takes a new catalog.
func (s *Server) SetCatalog(c *catalog.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.input.Catalog
	if old != nil && reflect.DeepEqual(old, c) {
		return
	}
	endpoints := old != nil && onlyEndpoints(old, c)
	s.change(endpoints)
	s.input.Catalog = c
	if !endpoints {
		s.look()
	}
}

// SetPolicy takes new policies.
func (s *Server) SetPolicy(p *policy.Set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(false)
	s.input.Policy = p
	s.look()
}

// look finds the policies that do not mean what they say at present, and logs what is new. The lock is held.
func (s *Server) look() {
	if !s.loaded() {
		return
	}
	known := map[document.Problem]bool{}
	for _, c := range s.conflicts {
		known[*c.Problem] = true
	}
	s.conflicts = build.Conflicts(s.input.Catalog, s.input.Policy)
	for _, c := range s.conflicts {
		if known[*c.Problem] {
			continue
		}
		s.log.Error("policy in conflict", "service", c.Service.String(), "closed", c.Closes,
			"file", c.Problem.File, "line", c.Problem.Line, "field", c.Problem.Field, "reason", c.Problem.Text)
	}
}

// change wakes the pusher. The lock is held.
func (s *Server) change(urgent bool) {
	s.generation++
	s.urgent = s.urgent || urgent
	clear(s.built)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// onlyEndpoints says that two catalogs differ in instances alone.
func onlyEndpoints(a, b *catalog.Snapshot) bool {
	if len(a.Services) != len(b.Services) || a.DefaultIntention != b.DefaultIntention || !reflect.DeepEqual(a.Intentions, b.Intentions) {
		return false
	}
	for n, v := range a.Services {
		w := b.Services[n]
		if w == nil || v.Protocol != w.Protocol {
			return false
		}
	}
	return true
}

// Loaded says that catalog and policies were read: before, nothing is served.
func (s *Server) Loaded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loaded()
}

func (s *Server) loaded() bool { return s.input.Catalog != nil && s.input.Policy != nil }

// Run pushes changes until ctx ends. While a push is under way, changes gather for the next one.
func (s *Server) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		if s.settle(ctx); ctx.Err() != nil {
			return
		}
		s.push()
	}
}

// settle waits for changes that come along.
func (s *Server) settle(ctx context.Context) {
	most := time.NewTimer(s.opt.MostQuiet)
	defer most.Stop()
	quiet := time.NewTimer(s.opt.Quiet)
	defer quiet.Stop()
	for {
		s.mu.Lock()
		urgent := s.urgent
		s.mu.Unlock()
		if urgent {
			return
		}
		select {
		case <-s.wake:
			quiet.Reset(s.opt.Quiet)
		case <-quiet.C:
			return
		case <-most.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// push builds for every proxy that is connected, once for those that are alike, and hands out the result.
func (s *Server) push() {
	begin := time.Now()
	s.mu.Lock()
	s.urgent = false
	if !s.loaded() {
		s.mu.Unlock()
		return
	}
	list := make([]*stream, 0, len(s.streams))
	for _, st := range s.streams {
		if st.authorized {
			list = append(list, st)
		}
	}
	s.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, st := range list {
		g.Go(func() error { s.configure(st); return nil })
	}
	_ = g.Wait()
	s.metrics.pushes.Inc()
	s.metrics.pushTime.Observe(time.Since(begin).Seconds())
}

// configure puts the newest configuration into a stream's feed.
func (s *Server) configure(st *stream) {
	s.mu.Lock()
	if !s.loaded() {
		s.mu.Unlock()
		return
	}
	key := st.proxy.Key()
	b := s.built[key]
	if b == nil {
		b = &built{}
		s.built[key] = b
	}
	input, generation := s.input, s.generation
	s.mu.Unlock()
	b.once.Do(func() { b.set, b.err = construct(input, st.proxy) })
	s.mu.Lock()
	st.problem = cmp.Or(unknown(input, st.proxy), closed(input, st.proxy))
	if b.err != nil {
		st.problem = b.err.Error()
	}
	s.mu.Unlock()
	switch {
	case errors.Is(b.err, build.ErrNoGateway) && st.served.Load():
		st.feed.publish(emptySet, generation) // the Gateway was removed
	case b.err != nil:
		s.metrics.buildErrors.Inc()
		s.log.Warn("no new configuration for a proxy", "proxy", st.node, "reason", b.err)
	default:
		st.served.Store(true)
		st.feed.publish(b.set, generation)
	}
}

// unknown says that nobody finds what a sidecar stands before: its service is in no catalog, by a slip of the pen often.
// What only calls need not be there, and what registers itself is there in a moment.
func unknown(in build.Input, p build.Proxy) string {
	n := catalog.Name{Namespace: p.Namespace, Name: p.Service}
	if p.Kind != build.Sidecar || p.Port == 0 || in.Catalog.Services[n] != nil {
		return ""
	}
	return fmt.Sprintf("the catalog has no service %s: nobody finds it until it is registered", n)
}

// closed says that nobody gets to the service of a sidecar, because of a policy that cannot be enforced there.
func closed(in build.Input, p build.Proxy) string {
	n := catalog.Name{Namespace: p.Namespace, Name: p.Service}
	if p.Kind != build.Sidecar || in.Catalog.Service(n).Protocol.IsHTTP() {
		return ""
	}
	for _, c := range in.Policy.ConflictsOf(policy.Key{Namespace: p.Namespace, Name: p.Service}) {
		if c.Closes {
			return "closed: " + c.Problem.Error()
		}
	}
	return ""
}

// construct builds. A mistake in build must not take the control plane down with it.
func construct(in build.Input, p build.Proxy) (s set, err error) {
	defer func() {
		if r := recover(); r != nil {
			s, err = nil, fmt.Errorf("the configuration of the %s could not be built: %v", p, r)
		}
	}()
	r, err := build.Build(in, p)
	if err != nil {
		return nil, err
	}
	return newSet(r)
}
