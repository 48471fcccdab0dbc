// Package sidecar is the data plane as a whole, the edge included: it starts
// workers, puts the configuration of a bootstrap and of a control plane in
// force, serves the admin page, and drains. main calls it; everything that
// runs for a request is in the packages below.
package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"sallyport/certs/source"
	"sallyport/sidecar/accelerate"
	"sallyport/sidecar/active"
	"sallyport/sidecar/admin"
	"sallyport/sidecar/ads"
	"sallyport/sidecar/config"
	"sallyport/sidecar/conn"
	"sallyport/sidecar/dns"
	"sallyport/sidecar/filter"
	"sallyport/sidecar/listener"
	"sallyport/sidecar/logging"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/panics"
	"sallyport/sidecar/probe"
	"sallyport/sidecar/ring"
	"sallyport/sidecar/route"
	"sallyport/sidecar/secret"
	"sallyport/sidecar/telemetry"
	"sallyport/sidecar/upstream"
)

// Version of the program, as the admin page and the control plane see it.
const Version = "0.1.0"

// Options of Run. Either Config or ConfigYAML or Mesh is required.
type Options struct {
	Config      string // bootstrap file (-c)
	ConfigYAML  string // merged onto it (--config-yaml)
	Mesh        *Mesh  // instead of a file: a part of a mesh
	Concurrency int    // workers; 0: as many as there are CPUs to use
	// Node, Cluster and Zone override the bootstrap's node (--service-node, …).
	Node, Cluster, Zone string
	// DrainTime is how long connections may take to end when the process
	// is told to (--drain-time-s); 0 is 5 s.
	DrainTime time.Duration
	// Identity is the process's own, for secrets of secret.IdentityCluster; nil without one.
	Identity source.Source
	// CacheDir keeps the last good configuration over a restart; "": nowhere.
	CacheDir string
	// Health is the address of the health port (package probe); "": none.
	Health string
	// Probes are made at the health port besides those of the environment.
	Probes map[string]probe.Probe
	// Held says that the ports of Mesh.Transparent and of Health are held by the process that started this one, by sockets
	// of the same user that do not listen.
	Held bool
	// Progress, where set, is told what the process still waits for whenever that changes, and "" once it is ready. It is
	// called on the goroutine of Run and must not block.
	Progress func(reason string)
	// Reopen has the files of access logs opened again, at each signal that comes; nil: never.
	Reopen <-chan os.Signal
	// IOUring has the workers make their system calls in batches.
	IOUring ring.Mode
	// Accelerate is for the hops between this process and applications of the same host.
	Accelerate accelerate.Options
	Log        *slog.Logger
	Level      *slog.LevelVar
	// DroppedLines counts lines of the log that were not written; nil: nobody counts them.
	DroppedLines func() uint64
}

// cacheAfter is how long the control plane may take to answer at a start before
// the configuration kept on disk is used.
const cacheAfter = 3 * time.Second

// DefaultDrainTime is how long a process waits for its connections to end.
const DefaultDrainTime = 5 * time.Second

// load reads the bootstrap.
func (o *Options) load() (*config.Bootstrap, error) {
	text := o.ConfigYAML
	if o.Mesh != nil {
		m, err := o.Mesh.Bootstrap()
		if err != nil {
			return nil, err
		}
		// As text, so that a mesh bootstrap goes the way of every other.
		b, err := protojson.Marshal(m)
		if err != nil {
			return nil, err
		}
		text = string(b)
	}
	b, err := config.Load(o.Config, text)
	if err != nil {
		return nil, err
	}
	if b.Node == nil {
		b.Node = &corev3.Node{}
	}
	if o.Node != "" {
		b.Node.Id = o.Node
	}
	if o.Cluster != "" {
		b.Node.Cluster = o.Cluster
	}
	if o.Zone != "" {
		if b.Node.Locality == nil {
			b.Node.Locality = &corev3.Locality{}
		}
		b.Node.Locality.Zone = o.Zone
	}
	return b, nil
}

// process is everything that runs.
type process struct {
	o        Options
	log      *slog.Logger
	boot     *config.Bootstrap
	workers  []*loop.Worker
	wait     sync.WaitGroup
	metrics  *metric.Registry
	clusters *upstream.Registry
	server   *listener.Server
	dns      *dns.Server
	secrets  *secret.Store
	logs     *telemetry.Logs
	tracers  *telemetry.Tracers
	state    *active.State
	client   atomic.Pointer[ads.Client] // nil without a control plane
	started  time.Time
	live     atomic.Bool // everything of the start is in force
	draining atomic.Bool
	quit     context.CancelFunc
	spare    *accelerate.Accelerator // nil without
}

// Run serves until ctx ends, then drains. It returns an error only where the
// process could not start.
func Run(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	boot, err := o.load()
	if err != nil {
		return err
	}
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	p := &process{o: o, log: o.Log, boot: boot, started: time.Now(), quit: quit}
	if err := p.start(); err != nil {
		p.stop()
		return err
	}
	defer p.stop()
	p.wait.Go(func() { p.reopen(ctx) })
	page, err := p.admin()
	if err != nil {
		return err
	}
	if page != nil {
		defer page.Close()
	}
	health, err := p.health()
	if err != nil {
		return err
	}
	if health != nil {
		defer health.Close()
	}
	if err := p.connect(ctx); err != nil {
		return err
	}
	if err := p.await(ctx); err != nil {
		return err
	}
	if p.live.Load() {
		p.log.Info("ready", "listeners", p.addresses(), "workers", len(p.workers))
		newMemory().run(ctx)
	}
	p.drain()
	return nil
}

// start makes the workers and puts the static resources in force.
func (p *process) start() error {
	n := p.o.Concurrency
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	p.metrics = metric.NewRegistry(n)
	p.metrics.Outside(panics.Counter, panics.Count)
	notes := panics.New(p.log)
	for i := range n {
		w, err := loop.New(i)
		if err != nil {
			return err
		}
		w.OnPanic(notes.Note)
		p.workers = append(p.workers, w)
		p.wait.Go(w.Run)
	}
	if p.o.DroppedLines != nil {
		p.metrics.Outside("server.dropped_log_lines", p.o.DroppedLines)
	}
	if err := p.batch(); err != nil {
		return err
	}
	if err := p.accelerate(); err != nil {
		return err
	}
	p.clusters = upstream.NewRegistry(p.workers, p.metrics, p.log)
	p.server = listener.NewServer(p.workers, p.clusters, p.metrics, p.log)
	p.dns = dns.NewServer(p.log)
	p.shareHeld()
	p.logs = telemetry.NewLogs(p.log)
	p.metrics.Outside("server.dropped_access_log_lines", p.logs.Dropped)
	p.tracers = telemetry.NewTracers(func(ctx context.Context, cluster string) (net.Conn, error) {
		return p.clusters.Dial(ctx, cluster)
	}, p.boot.GetNode().GetId(), p.boot.GetNode().GetCluster(), p.log)
	p.metrics.Outside("tracing.opentelemetry.spans_sent", p.tracers.Sent)
	p.metrics.Outside("tracing.opentelemetry.spans_dropped", p.tracers.Dropped)
	p.secrets = secret.NewStore(secret.Options{Identity: p.identity(), Log: p.log})
	var err error
	if p.state, err = p.newState(engine{p.clusters, p.server, p.dns}); err != nil {
		return err
	}
	return p.state.Start(p.boot)
}

// accelerate comes before listeners and clusters: sockets are accelerated that are made after it.
func (p *process) accelerate() (err error) {
	p.o.Accelerate.Log = p.log
	if p.spare, err = accelerate.Open(p.o.Accelerate); p.spare == nil {
		return err
	}
	for _, w := range p.workers {
		w.Post(func() { conn.Accelerate(w, p.spare) })
	}
	for name, value := range map[string]func(accelerate.Counts) uint64{
		"accelerate.connections":     func(c accelerate.Counts) uint64 { return c.Connections },
		"accelerate.messages":        func(c accelerate.Counts) uint64 { return c.Messages },
		"accelerate.bytes":           func(c accelerate.Counts) uint64 { return c.Bytes },
		"accelerate.listeners":       func(c accelerate.Counts) uint64 { return c.Listeners },
		"accelerate.slow_directions": func(c accelerate.Counts) uint64 { return c.Slow },
	} {
		p.metrics.Outside(name, func() uint64 { return value(p.spare.Counts()) })
	}
	return nil
}

func (p *process) identity() secret.Identity {
	if p.o.Identity == nil {
		return nil
	}
	return identity{p.o.Identity}
}

func (p *process) newState(publisher active.Publisher) (*active.State, error) {
	o := active.Options{Publisher: publisher, Secrets: p.secrets, RoutesChanged: p.server.RoutesChanged, Log: p.log, Env: config.Env{
		Cluster:      func(name string) any { return p.clusters.Ref(name) },
		Stats:        p.metrics.Set,
		AccessLog:    p.logs.Compile,
		Tracer:       p.tracers.Compile,
		HeaderFormat: telemetry.HeaderFormat,
		Metrics:      p.metrics,
		Memory:       filter.NewMemory(),
		Filters:      new(route.FilterNames),
	}}
	if p.o.CacheDir != "" {
		c, err := active.NewCache(p.o.CacheDir, cacheAfter, p.log)
		if err != nil {
			return nil, err
		}
		o.Cache = c
	}
	return active.New(o), nil
}

// engine puts compiled configuration in force (active.Publisher).
type engine struct {
	clusters *upstream.Registry
	server   *listener.Server
	dns      *dns.Server
}

// ApplyListeners gives each listener to its server. One that changed its protocol leaves the other.
func (e engine) ApplyListeners(set []*listener.Config, remove []string) []error {
	errs := make([]error, len(set))
	c := listener.Change{Remove: slices.Clone(remove)}
	var of []int // where in set those of c are
	for i, l := range set {
		if l.DNS != nil {
			c.Remove = append(c.Remove, l.Name)
			continue
		}
		e.dns.Remove(l.Name)
		c.Set, of = append(c.Set, l), append(of, i)
	}
	for k, err := range e.server.ApplyAll(c) {
		errs[of[k]] = err
	}
	for _, name := range remove {
		e.dns.Remove(name)
	}
	for i, l := range set {
		if l.DNS != nil {
			errs[i] = e.dns.Apply(l.DNS)
		}
	}
	return errs
}

func (e engine) SetCluster(c *upstream.Config) { e.clusters.Set(c) }
func (e engine) RemoveCluster(name string)     { e.clusters.Remove(name) }
func (e engine) SetEndpoints(cluster string, endpoints []upstream.Endpoint, drop uint32) {
	e.clusters.SetEndpoints(cluster, endpoints, drop)
}

// connect starts the xDS client, where the bootstrap names a control plane.
func (p *process) connect(ctx context.Context) error {
	if p.boot.Dynamic().Cluster == "" {
		return nil
	}
	client, conn, err := p.state.Connect(Version)
	if err != nil {
		return err
	}
	p.client.Store(client)
	p.wait.Go(func() {
		client.Run(ctx)
		conn.Close()
	})
	return nil
}

// reopen opens the files of access logs again when a signal asks for it, as Envoy does at SIGUSR1.
func (p *process) reopen(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-p.o.Reopen:
			p.log.Info("access logs are opened again; configuration and certificates are watched, and SIGTERM ends the process", "signal", s.String())
			p.logs.Reopen()
		}
	}
}

// drain stops accepting and waits for connections to end.
func (p *process) drain() {
	p.draining.Store(true)
	limit := p.o.DrainTime
	if limit == 0 {
		limit = DefaultDrainTime
	}
	p.log.Info("draining", "connections", p.server.Open(), "at_most", limit)
	p.server.Drain()
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for p.server.Open() > 0 {
		select {
		case <-tick.C:
		case <-deadline:
			p.log.Warn("drain time is over; the remaining connections are closed", "connections", p.server.Open())
			return
		}
	}
}

// stop ends everything; it is safe after a start that failed half-way.
func (p *process) stop() {
	if p.quit != nil {
		p.quit()
	}
	if p.state != nil {
		p.state.Close()
	}
	if p.dns != nil {
		p.dns.Close()
	}
	if p.clusters != nil {
		p.clusters.Close()
	}
	for _, w := range p.workers {
		w.Stop()
	}
	p.wait.Wait()
	if err := p.spare.Close(); err != nil {
		p.log.Warn("acceleration of local hops ended with an error", "error", err)
	}
	if p.tracers != nil {
		p.tracers.Close()
	}
	if p.logs != nil {
		p.logs.Close()
	}
	if p.secrets != nil {
		p.secrets.Close()
	}
}

func (p *process) addresses() map[string][]string {
	m := map[string][]string{}
	for name, list := range p.server.Addresses() {
		for _, a := range list {
			m[name] = append(m[name], a.String())
		}
	}
	return m
}

func (p *process) admin() (*admin.Server, error) {
	a := p.boot.GetAdmin().GetAddress()
	if a == nil {
		return nil, nil
	}
	address := "unix:" + a.GetPipe().GetPath()
	if s := a.GetSocketAddress(); s != nil {
		address = net.JoinHostPort(s.GetAddress(), strconv.Itoa(int(s.GetPortValue())))
	}
	return admin.Listen(address, admin.Source{
		Metrics:      p.metrics,
		Clusters:     p.clusters.Clusters,
		State:        p.status,
		Unready:      p.unready,
		ConfigDump:   p.state.Dump,
		Warnings:     p.warnings,
		Listeners:    p.addresses,
		Certificates: p.certificates,
		Drain:        p.server.Drain,
		Quit:         func() { p.quit() },
		SetLevel:     p.setLevel,
		Version:      Version,
		Node:         p.boot.GetNode().GetId(),
		Started:      p.started,
	}, p.log)
}

func (p *process) status() string {
	if p.draining.Load() {
		return "DRAINING"
	}
	if p.live.Load() {
		return "LIVE"
	}
	return "INITIALIZING"
}

func (p *process) warnings() []string {
	var out []string
	for _, w := range slices.Concat(p.boot.Warnings, p.state.Warnings()) {
		out = append(out, w.String())
	}
	return out
}

// certificate is what /certs shows of the process's own identity.
type certificate struct {
	ID        string    `json:"spiffe_id"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Renewals  uint64    `json:"renewals"`
	Failures  uint64    `json:"failures"`
	LastError string    `json:"last_error,omitempty"`
}

func (p *process) certificates() any {
	if p.o.Identity == nil {
		return []certificate{}
	}
	s := p.o.Identity.State()
	c := certificate{ID: s.ID.String(), NotBefore: s.NotBefore, NotAfter: s.NotAfter, Renewals: s.Renewals, Failures: s.Failures}
	if s.LastError != nil {
		c.LastError = s.LastError.Error()
	}
	return []certificate{c}
}

func (p *process) setLevel(name string) error {
	l, err := logging.ParseLevel(name)
	if err != nil {
		return err
	}
	if p.o.Level == nil {
		return errors.New("the log level cannot be changed in this process")
	}
	p.o.Level.Set(l)
	return nil
}

// Validate loads and compiles a configuration without serving it, and writes
// what is not implemented to w.
func Validate(o Options, w io.Writer) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	boot, err := o.load()
	if err != nil {
		return err
	}
	p := &process{o: o, log: o.Log, boot: boot, metrics: metric.NewRegistry(0)}
	p.clusters = upstream.NewRegistry(nil, p.metrics, p.log)
	p.server = listener.NewServer(nil, p.clusters, p.metrics, p.log)
	p.logs = telemetry.NewLogs(p.log)
	p.tracers = telemetry.NewTracers(nil, "", "", p.log)
	p.secrets = secret.NewStore(secret.Options{Identity: noIdentity{}, Log: p.log})
	defer p.stop()
	if p.state, err = p.newState(nowhere{map[string]*listener.Config{}}); err != nil {
		return err
	}
	if err := p.state.Start(boot); err != nil {
		return err
	}
	for _, line := range p.warnings() {
		fmt.Fprintln(w, "warning:", line)
	}
	fmt.Fprintln(w, "configuration OK")
	return nil
}

// nowhere is the publisher of Validate.
type nowhere struct{ listeners map[string]*listener.Config }

func (n nowhere) ApplyListeners(set []*listener.Config, _ []string) []error {
	errs := make([]error, len(set))
	for i, c := range set {
		for name, other := range n.listeners {
			if at, is := listener.Conflict(c, other); is && name != c.Name {
				errs[i] = &listener.DuplicateError{Listener: c.Name, Other: name, Address: at}
			}
		}
		n.listeners[c.Name] = c
	}
	return errs
}
func (nowhere) SetCluster(*upstream.Config)                      {}
func (nowhere) RemoveCluster(string)                             {}
func (nowhere) SetEndpoints(string, []upstream.Endpoint, uint32) {}
