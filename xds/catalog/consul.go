package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// ConsulOptions say how Consul is read.
type ConsulOptions struct {
	Address string // URL or HOST:PORT; empty: CONSUL_HTTP_ADDR, else 127.0.0.1:8500
	Token   string // ACL token; empty: CONSUL_HTTP_TOKEN
	// Retry is the first pause after an error, doubled up to 30 times it; default 200ms.
	Retry  time.Duration
	Logger *slog.Logger
}

// Consul is the catalog of a Consul cluster, followed by blocking queries: the list of services, the intentions and the
// config entries, and two of each service, its instances and their sidecars.
type Consul struct {
	opt    ConsulOptions
	client *api.Client
	log    *slog.Logger

	mu       sync.Mutex
	services map[string]*consulService
	listed   bool
	loaded   [fixedQueries]bool
	protocol map[string]Protocol // service-defaults
	fallback Protocol            // proxy-defaults
	intents  []Intention
	errs     map[string]string // by query
	status   Status
	publish  func(*Snapshot)
	skipped  map[string]bool // instances complained about
}

// The queries that are not of one service, besides the list of services.
const (
	queryIntentions = iota
	queryServiceDefaults
	queryProxyDefaults
	fixedQueries
)

const (
	waitTime       = time.Minute // of a blocking query; Consul adds up to a sixteenth
	answerTime     = waitTime + waitTime/16 + 10*time.Second
	minBetween     = 10 * time.Millisecond // of two queries of one kind: a catalog in uproar is read 100 times a second
	maxRetryFactor = 30
	maxPerHost     = 1 << 16
)

// consulService is what is known of one service.
type consulService struct {
	stop      context.CancelFunc
	instances []*api.ServiceEntry
	sidecars  []*api.ServiceEntry
	read      [2]bool
}

// NewConsul makes a source of a Consul.
func NewConsul(o ConsulOptions) (*Consul, error) {
	if o.Retry <= 0 {
		o.Retry = 200 * time.Millisecond
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	config := api.DefaultConfig()
	if o.Address != "" {
		config.Address = o.Address
	}
	if o.Token != "" {
		config.Token, config.TokenFile = o.Token, ""
	}
	config.Transport.MaxIdleConnsPerHost = 64
	config.Transport.MaxConnsPerHost = maxPerHost
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("consul %s: %w", config.Address, err)
	}
	return &Consul{opt: o, client: client, log: o.Logger, services: map[string]*consulService{}, errs: map[string]string{}, skipped: map[string]bool{},
		protocol: map[string]Protocol{}, status: Status{Source: "consul " + config.Address}}, nil
}

// Status implements Source.
func (c *Consul) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	for _, query := range slices.Sorted(maps.Keys(c.errs)) {
		s.Error = query + ": " + c.errs[query]
		if n := len(c.errs) - 1; n > 0 {
			s.Error += fmt.Sprintf(" (and %d more)", n)
		}
		break
	}
	return s
}

// Run implements Source.
func (c *Consul) Run(ctx context.Context, publish func(*Snapshot)) error {
	c.publish = publish
	var wg sync.WaitGroup
	follow := func(ctx context.Context, name string, query func(*api.QueryOptions) (*api.QueryMeta, func(), error)) {
		wg.Go(func() { c.follow(ctx, name, query) })
	}
	follow(ctx, "intentions", func(q *api.QueryOptions) (*api.QueryMeta, func(), error) {
		list, meta, err := c.client.Connect().Intentions(q)
		return meta, func() { c.intents, c.loaded[queryIntentions] = c.intentions(list), true }, err
	})
	follow(ctx, "service-defaults", func(q *api.QueryOptions) (*api.QueryMeta, func(), error) {
		list, meta, err := c.client.ConfigEntries().List(api.ServiceDefaults, q)
		return meta, func() { c.serviceDefaults(list) }, err
	})
	follow(ctx, "proxy-defaults", func(q *api.QueryOptions) (*api.QueryMeta, func(), error) {
		list, meta, err := c.client.ConfigEntries().List(api.ProxyDefaults, q)
		return meta, func() { c.proxyDefaults(list) }, err
	})
	follow(ctx, "services", func(q *api.QueryOptions) (*api.QueryMeta, func(), error) {
		list, meta, err := c.client.Catalog().Services(q)
		return meta, func() { c.list(ctx, list, follow) }, err
	})
	wg.Wait()
	return nil
}

// follow repeats one blocking query until ctx ends. What it answers is taken in under the lock, and published.
// (https://developer.hashicorp.com/consul/api-docs/features/blocking, "Implementation details")
func (c *Consul) follow(ctx context.Context, name string, query func(*api.QueryOptions) (*api.QueryMeta, func(), error)) {
	var index uint64
	failures := 0
	for ctx.Err() == nil {
		begin := time.Now()
		once, cancel := context.WithTimeout(ctx, answerTime)
		meta, take, err := query((&api.QueryOptions{WaitIndex: index, WaitTime: waitTime, RequireConsistent: false}).WithContext(once))
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			// The snapshot stays as it is. The index is forgotten: the next answer may come from another cluster state.
			index = 0
			failures++
			c.failed(name, err, failures)
			pause(ctx, backoff(c.opt.Retry, failures))
			continue
		}
		failures = 0
		last := index
		switch index = meta.LastIndex; {
		case index < last: // restored from a snapshot, or another leader: start over
			index = 0
		case index == 0:
			index = 1 // an index of 0 would not block
		}
		if index != last || index == 0 {
			c.taken(ctx, name, take)
		} else {
			c.recovered(name)
		}
		if left := minBetween - time.Since(begin); left > 0 {
			pause(ctx, left)
		}
	}
}

// backoff grows and is jittered, so that the queries of many services do not come back in step.
func backoff(base time.Duration, failures int) time.Duration {
	factor := min(1<<min(failures-1, 10), maxRetryFactor)
	d := base * time.Duration(factor)
	return d/2 + rand.N(d)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (c *Consul) failed(query string, err error, failures int) {
	text := err.Error()
	if e, ok := errors.AsType[api.StatusError](err); ok {
		text = fmt.Sprintf("answered %d: %s", e.Code, strings.TrimSpace(e.Body))
		if e.Code == http.StatusForbidden {
			text += " (the ACL token needs service:read, node:read, intentions:read and operator:read or mesh:read)"
		}
	}
	if len(text) > 500 {
		text = text[:500]
	}
	c.mu.Lock()
	_, known := c.errs[query]
	c.errs[query] = text
	several := len(c.errs) > 1
	c.mu.Unlock()
	if !known && !several || failures == maxRetryFactor { // one line, not one per service
		c.log.Error("consul cannot be read, what was read last stays in force", "query", query, "error", text)
	}
}

func (c *Consul) recovered(query string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.errs, query)
}

// taken takes an answer in and publishes.
func (c *Consul) taken(ctx context.Context, query string, take func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		return // the service went away meanwhile
	}
	delete(c.errs, query)
	take()
	if !c.complete() {
		return
	}
	s := c.snapshot()
	c.status.Loaded, c.status.Changed = true, time.Now()
	c.publish(s) // under the lock, so that snapshots are published in order
}

// complete says that everything was read once. A service that appears later does not hold up the others.
func (c *Consul) complete() bool {
	if c.status.Loaded {
		return true
	}
	if !c.listed {
		return false
	}
	for _, ok := range c.loaded {
		if !ok {
			return false
		}
	}
	for _, v := range c.services {
		if !v.read[0] || !v.read[1] {
			return false
		}
	}
	return true
}

// list begins to follow new services and forgets those that are gone.
func (c *Consul) list(ctx context.Context, services map[string][]string,
	follow func(context.Context, string, func(*api.QueryOptions) (*api.QueryMeta, func(), error))) {
	c.listed = true
	for name, v := range c.services {
		if _, ok := services[name]; !ok {
			v.stop()
			delete(c.services, name)
			delete(c.errs, "service "+name)
			delete(c.errs, "sidecars of "+name)
		}
	}
	for name := range services {
		if name == "consul" || c.services[name] != nil {
			continue
		}
		if len(c.services) >= maxServices {
			c.log.Error("consul has more services than are followed", "limit", maxServices)
			return
		}
		v := &consulService{}
		ctx, cancel := context.WithCancel(ctx)
		v.stop = cancel
		c.services[name] = v
		follow(ctx, "service "+name, func(q *api.QueryOptions) (*api.QueryMeta, func(), error) {
			list, meta, err := c.client.Health().Service(name, "", false, q)
			return meta, func() { v.instances, v.read[0] = list, true }, err
		})
		follow(ctx, "sidecars of "+name, func(q *api.QueryOptions) (*api.QueryMeta, func(), error) {
			list, meta, err := c.client.Health().Connect(name, "", false, q)
			return meta, func() { v.sidecars, v.read[1] = list, true }, err
		})
	}
}

// snapshot makes a Snapshot of what was read.
func (c *Consul) snapshot() *Snapshot {
	s := &Snapshot{Services: map[Name]*Service{}, Intentions: slices.Clone(c.intents)}
	for name, v := range c.services {
		if !v.read[0] || !v.read[1] {
			continue // read in part: it would seem to have no sidecars
		}
		out := &Service{Name: Name{DefaultNamespace, name}, Protocol: cmp.Or(c.protocol[name], c.fallback, HTTP), Instances: c.instances(name, v)}
		if len(out.Instances) == 0 && len(v.instances) > 0 {
			continue // these are proxies and gateways themselves
		}
		s.Services[out.Name] = out
	}
	s.sort()
	return s
}

// instances joins a service's instances with their sidecars.
func (c *Consul) instances(service string, v *consulService) (out []Instance) {
	type key struct{ node, id string }
	sidecars := map[key]*api.ServiceEntry{}
	for _, e := range v.sidecars {
		if p := e.Service.Proxy; e.Service.Kind == api.ServiceKindConnectProxy && p != nil {
			id := cmp.Or(p.DestinationServiceID, p.DestinationServiceName)
			sidecars[key{e.Node.Node, id}] = e
		}
	}
	for _, e := range v.instances {
		if e.Service.Kind != api.ServiceKindTypical {
			continue
		}
		i := Instance{
			ID: e.Node.Node + "/" + e.Service.ID, Endpoint: endpointOf(e), Healthy: passing(e), Weight: weight(e),
			Tags: slices.Clone(e.Service.Tags), Meta: maps.Clone(e.Service.Meta),
		}
		if l := cmp.Or(e.Service.Locality, e.Node.Locality); l != nil {
			i.Region, i.Zone = l.Region, l.Zone
		}
		if p := sidecars[key{e.Node.Node, e.Service.ID}]; p != nil {
			i.Sidecar = endpointOf(p)
			// A sidecar may be well while what it stands before is not, and the other way round.
			i.Healthy = i.Healthy && passing(p)
		} else if e.Service.Connect != nil && e.Service.Connect.Native {
			i.Sidecar = i.Endpoint
		}
		if i.InMesh() && !addr(i.Sidecar.Address).IsValid() {
			if !c.skipped[i.ID] {
				c.skipped[i.ID] = true
				c.log.Warn("instance left out: its sidecar's address is not an IP address", "service", service, "instance", i.ID, "address", i.Sidecar.Address)
			}
			i.Sidecar = Endpoint{}
		}
		out = append(out, i)
	}
	return out
}

func endpointOf(e *api.ServiceEntry) Endpoint {
	return Endpoint{cmp.Or(e.Service.Address, e.Node.Address), uint32(max(e.Service.Port, 0))}
}

// passing is Consul's own rule for DNS: all but critical, which a maintenance mode is too.
func passing(e *api.ServiceEntry) bool {
	switch e.Checks.AggregatedStatus() {
	case api.HealthCritical, api.HealthMaint:
		return false
	}
	return true
}

func weight(e *api.ServiceEntry) uint32 {
	w := e.Service.Weights.Passing
	if e.Checks.AggregatedStatus() == api.HealthWarning {
		w = e.Service.Weights.Warning
	}
	return uint32(min(max(w, 1), maxWeight))
}
