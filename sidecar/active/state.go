// Package active holds the configuration that is in force: every listener,
// cluster, load assignment, route configuration and secret by name, from the
// bootstrap and from the control plane. It compiles what comes, lets new
// things warm up (a cluster waits for its endpoints, a listener for its routes,
// both for their secrets) while the old ones serve, publishes them to the
// engine, and knows what to ask the control plane for. A resource that cannot
// be used changes nothing: the last good one stays.
//
// State is an ads.Sink. All methods are safe for concurrent use; the work is
// done under one lock, on the caller's goroutine, never on a worker.
package active

import (
	"log/slog"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/ads"
	"sallyport/sidecar/config"
	"sallyport/sidecar/listener"
	"sallyport/sidecar/panics"
	"sallyport/sidecar/route"
	"sallyport/sidecar/secret"
	"sallyport/sidecar/upstream"
)

// Publisher puts compiled configuration in force: the engine. It is called
// with State's lock held and must not call State.
type Publisher interface {
	// ApplyListeners puts a change of the listeners in force as a whole: see listener.Server.ApplyAll. It returns an error
	// for each of set that cannot be, whose version before serves on, nil for the others.
	ApplyListeners(set []*listener.Config, remove []string) []error
	SetCluster(*upstream.Config)
	RemoveCluster(name string)
	SetEndpoints(cluster string, endpoints []upstream.Endpoint, drop uint32)
}

// Options of a State.
type Options struct {
	Publisher Publisher
	// Env is what the compilers get; Routes and Secrets are filled in by New.
	Env     config.Env
	Secrets *secret.Store // nil: one without an identity
	Log     *slog.Logger
	// FetchTimeout is how long a resource waits for what it refers to where
	// its config source says nothing (initial_fetch_timeout); 0 is 15 s.
	FetchTimeout time.Duration
	// Subscribe tells the ADS client which resources of a type are wanted.
	Subscribe func(typeURL string, names []string)
	// RoutesChanged, if set, is told when other routes are in force: requests under way may not be allowed any more.
	RoutesChanged func()
	// Cache, if set, keeps the last good configuration on disk.
	Cache *Cache
}

// State is the configuration in force.
type State struct {
	publisher     Publisher
	routesChanged func()
	env           config.Env
	secrets       *secret.Store
	log           *slog.Logger
	timeout       time.Duration
	subscribe     func(string, []string)
	cache         *Cache

	mu        sync.Mutex
	closed    bool
	boot      *config.Bootstrap
	started   time.Time
	clusters  map[string]*cluster
	listeners map[string]*listening
	endpoints map[string]*endpoints
	routes    map[string]*routes
	secret    map[string]*resource
	users     map[string]map[string]bool // clusters by the name that their endpoints come under
	warming   map[*warm]func() bool      // what waits; the function publishes it if it can
	versions  map[string]string          // last accepted, by type
	failures  map[string]map[string]*failure
	batch     *batch                      // of the response that is being applied, if it is of listeners
	leaving   map[string]*listener.Config // listeners that are removed, and serve until the one comes that has their address
	unbound   map[string]*unbound         // listeners whose last version has no sockets
	accepted  map[string]bool             // types of which a response was accepted, or read from disk
	withheld  map[string][]string         // by type, what was not kept on disk, of a process that began from there; none once the control plane has answered

	// The first listeners wait until the clusters that they send to are there.
	awaitCDS, awaitLDS bool
	gate               *time.Timer
	ready              chan struct{}
	isReady            bool
	asked              map[string][]string
	wants              bool // what is asked for may have changed
}

// resource is what every kind has in common.
type resource struct {
	body    *anypb.Any // nil for static ones
	sum     uint64
	version string
	updated time.Time
	static  bool
	index   int // in the bootstrap's list, of static ones
}

type cluster struct {
	resource
	active   *config.Cluster // nil: never became active
	next     *config.Cluster // warming, nil where none is
	wait     *warm
	warnings []config.Warning
}

type listening struct {
	resource
	active   *config.Listener
	next     *config.Listener
	wait     *warm
	warnings []config.Warning
}

type endpoints struct {
	resource
	compiled *config.Endpoints // nil: not there yet
}

type routes struct {
	resource
	handle   *route.Handle
	warnings []config.Warning
}

// failure is a version that was refused.
type failure struct {
	body    *anypb.Any
	version string
	err     string
	at      time.Time
}

// warm is something that waits for others, but not for ever.
type warm struct {
	what  string
	timer *time.Timer
	late  bool // the time is over: it goes into force without them
}

const defaultFetch = 15 * time.Second

// New returns a State in which nothing is in force.
func New(o Options) *State {
	s := &State{publisher: o.Publisher, routesChanged: o.RoutesChanged, env: o.Env, secrets: o.Secrets, log: o.Log, timeout: o.FetchTimeout, subscribe: o.Subscribe, cache: o.Cache,
		clusters: map[string]*cluster{}, listeners: map[string]*listening{}, endpoints: map[string]*endpoints{}, routes: map[string]*routes{},
		secret: map[string]*resource{}, users: map[string]map[string]bool{}, warming: map[*warm]func() bool{}, versions: map[string]string{},
		failures: map[string]map[string]*failure{}, unbound: map[string]*unbound{}, leaving: map[string]*listener.Config{}, accepted: map[string]bool{}, withheld: map[string][]string{}, asked: map[string][]string{}, ready: make(chan struct{}), started: time.Now()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.timeout == 0 {
		s.timeout = defaultFetch
	}
	if s.subscribe == nil {
		s.subscribe = func(string, []string) {}
	}
	if s.secrets == nil {
		s.secrets = secret.NewStore(secret.Options{Log: s.log})
	}
	s.cache.Attach(s)
	s.env.Secrets = s.secrets
	s.env.Routes = s.handle
	s.secrets.OnChange(s.poke)
	return s
}

// OnSubscribe sets Options.Subscribe for a client that is made after the
// state, and tells it at once what is wanted.
func (s *State) OnSubscribe(f func(typeURL string, names []string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribe = f
	for _, t := range ads.Types {
		if names, ok := s.asked[t]; ok {
			f(t, names)
		}
	}
}

// Ready is closed when everything of the start is in force: what is static,
// and the first answers of the control plane, or the time for them is over.
func (s *State) Ready() <-chan struct{} { return s.ready }

// Close ends timers. What is in force stays.
func (s *State) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for w := range s.warming {
		w.stop()
	}
	for _, u := range s.unbound {
		u.timer.Stop()
	}
	if s.gate != nil {
		s.gate.Stop()
	}
}

func (w *warm) stop() {
	if w != nil && w.timer != nil {
		w.timer.Stop()
	}
}

// handle is the place that a route configuration is published to. It is
// called by the compilers, within our own calls: the lock is held.
func (s *State) handle(name string) *route.Handle {
	r := s.routes[name]
	if r == nil {
		r = &routes{handle: route.NewHandle(name, nil)}
		s.routes[name] = r
	}
	return r.handle
}

// poke looks again at what waits: a secret has arrived. It comes on another
// goroutine, for a secret may arrive while the lock is held.
func (s *State) poke() {
	go func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.settle()
	}()
}

// hold puts something among what waits. try says whether it could be
// published; it is called again when anything changes.
func (s *State) hold(what string, patience time.Duration, try func(late bool) bool) *warm {
	w := &warm{what: what}
	s.warming[w] = func() bool { return try(w.late) }
	if patience == 0 {
		patience = s.timeout
	}
	if patience > 0 {
		w.timer = time.AfterFunc(patience, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if _, waits := s.warming[w]; waits && !s.closed {
				w.late = true
				s.settle()
				if _, still := s.warming[w]; still {
					s.log.Warn("what it refers to did not arrive in time; it waits, for that was not kept on disk", "resource", w.what, "after", patience)
				} else {
					s.log.Warn("what it refers to did not arrive in time; it goes into force without", "resource", w.what, "after", patience)
				}
			}
		})
	}
	return w
}

func (s *State) release(w *warm) {
	if w != nil {
		w.stop()
		delete(s.warming, w)
	}
}

// settle publishes what need not wait any more, clusters before listeners,
// and asks for what is wanted now. The lock is held.
func (s *State) settle() {
	if s.closed {
		return
	}
	for _, kind := range []string{"cluster", "listener"} {
		if kind == "listener" && !s.clustersReady() {
			break
		}
		for _, w := range s.waiting(kind) {
			try, done := s.warming[w], false
			if try == nil {
				continue
			}
			if p := panics.Guard(s.log, "putting "+w.what+" in force", func() { done = try() }); p != nil || done {
				s.release(w) // one that panics would do so again and again
			}
		}
	}
	s.leave()
	if s.wants {
		s.wants = false
		s.ask()
	}
	if !s.isReady && s.boot != nil && s.clustersReady() && !s.awaitLDS && len(s.waiting("listener")) == 0 {
		s.isReady = true
		if s.gate != nil {
			s.gate.Stop()
		}
		close(s.ready)
	}
}

// waiting lists what waits of a kind, in order of name so that the same
// configuration always comes up the same way.
func (s *State) waiting(kind string) (out []*warm) {
	for w := range s.warming {
		if strings.HasPrefix(w.what, kind) {
			out = append(out, w)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].what < out[j].what })
	return out
}

// clustersReady says that listeners may start: before, their routes would lead nowhere.
func (s *State) clustersReady() bool {
	return s.isReady || !s.awaitCDS && len(s.waiting("cluster")) == 0
}

// ask computes what is wanted of each type and tells the client what changed.
func (s *State) ask() {
	eds := make([]string, 0, len(s.users))
	for name := range s.users {
		eds = append(eds, name)
	}
	var rds, sds []string
	add := func(n *config.Needs) {
		rds = append(rds, n.Routes...)
		sds = append(sds, n.Secrets...)
	}
	for _, c := range s.clusters {
		for _, v := range []*config.Cluster{c.active, c.next} {
			if v != nil {
				add(&v.Needs)
			}
		}
	}
	for _, l := range s.listeners {
		for _, v := range []*config.Listener{l.active, l.next} {
			if v != nil {
				add(&v.Needs)
			}
		}
	}
	for _, u := range s.unbound {
		add(&u.compiled.Needs)
	}
	for _, t := range []struct {
		url   string
		names []string
	}{{ads.EndpointType, eds}, {ads.RouteType, rds}, {ads.SecretType, sds}} {
		slices.Sort(t.names)
		names := slices.Compact(t.names)
		if old, ok := s.asked[t.url]; ok && slices.Equal(old, names) || !ok && len(names) == 0 {
			continue
		}
		s.asked[t.url] = names
		s.forget(t.url, names)
		s.subscribe(t.url, names)
	}
}

// forget drops what nothing refers to any more.
func (s *State) forget(typeURL string, names []string) {
	gone := func(name string) bool {
		_, found := slices.BinarySearch(names, name)
		return !found
	}
	switch typeURL {
	case ads.EndpointType:
		for name := range s.endpoints {
			if gone(name) {
				delete(s.endpoints, name)
			}
		}
	case ads.RouteType:
		for name := range s.routes {
			if gone(name) {
				delete(s.routes, name)
			}
		}
	case ads.SecretType:
		for name := range s.secret {
			if gone(name) {
				delete(s.secret, name)
			}
		}
		s.secrets.Retain(names)
	}
	for name := range s.failures[typeURL] {
		if gone(name) {
			delete(s.failures[typeURL], name)
		}
	}
}

// sum identifies the bytes of a resource.
func sum(body *anypb.Any) uint64 { return xxhash.Sum64(body.GetValue()) }

// Warnings are those of everything in force, a line each, sorted.
func (s *State) Warnings() []config.Warning {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []config.Warning
	if s.boot != nil {
		out = append(out, s.boot.Warnings...)
	}
	for _, c := range s.clusters {
		out = append(out, c.warnings...)
	}
	for _, l := range s.listeners {
		out = append(out, l.warnings...)
	}
	for _, r := range s.routes {
		out = append(out, r.warnings...)
	}
	for _, e := range s.endpoints {
		if e.compiled != nil {
			out = append(out, e.compiled.Warnings...)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].String() < out[j].String() })
	return slices.CompactFunc(out, func(a, b config.Warning) bool { return a == b })
}

// warn logs what is new in warnings.
func (s *State) warn(old, now []config.Warning) {
	for _, w := range now {
		if !slices.Contains(old, w) {
			s.log.Warn("configuration field not implemented", "field", w.String())
		}
	}
}

// fail notes a version that was refused.
func (s *State) fail(typeURL, name, version string, body *anypb.Any, err error) {
	m := s.failures[typeURL]
	if m == nil {
		m = map[string]*failure{}
		s.failures[typeURL] = m
	}
	if len(m) >= maxFailures && m[name] == nil {
		return
	}
	f := &failure{version: version, err: err.Error(), at: time.Now()}
	if len(f.err) > maxFailureText {
		f.err = strings.Clone(f.err[:maxFailureText]) + "…"
	}
	if len(body.GetValue()) <= maxFailureBody {
		f.body = body
	}
	m[name] = f
}

// Bounds of what is kept of the refused resources of one type, for the operator to see: how many, the text of each, and
// the resource itself, which a larger one is left without.
const (
	maxFailures    = 1000
	maxFailureText = 4 << 10
	maxFailureBody = 64 << 10
)

func (s *State) succeed(typeURL, name string) { delete(s.failures[typeURL], name) }

// Failure is a resource that was refused, or a listener that cannot be opened.
type Failure struct {
	Type, Name, Version, Error string
	At                         time.Time
}

// Failures are those of the last versions, sorted by type and name.
func (s *State) Failures() (out []Failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t, m := range s.failures {
		for n, f := range m {
			out = append(out, Failure{t, n, f.version, f.err, f.at})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Type+out[i].Name < out[j].Type+out[j].Name })
	return out
}
