package catalog

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
)

// ConsulOptions say how Consul is read.
type ConsulOptions struct {
	Address string // URL or HOST:PORT; empty: CONSUL_HTTP_ADDR, else 127.0.0.1:8500
	Token   string // ACL token; empty: CONSUL_HTTP_TOKEN
	// Retry is the first pause after an error, doubled up to 30 times it; default 200ms.
	Retry time.Duration
	// Confirm is how long an answer that has lost something must stand before it is believed, after Consul failed or was
	// restarted; default 3s.
	Confirm time.Duration
	// Watches is how many blocking queries about single services stand at a time; what is above is polled. Default 150:
	// with what else is asked that stays below the 200 connections that an agent takes from an address
	// (limits.http_max_conns_per_client).
	Watches int
	Logger  *slog.Logger
}

// Consul is the catalog of a Consul cluster. Blocking queries follow the list of services, the intentions, the config
// entries and, of each service, its instances and its sidecars; what does not fit into the connections is polled.
// Safe for concurrent use; Run is called once.
type Consul struct {
	opt    ConsulOptions
	client *api.Client
	log    *slog.Logger
	poll   *poller
	wg     sync.WaitGroup
	slots  chan struct{}   // one for each watch of a service
	checks sync.Once       // starts the watch of all checks
	change chan struct{}   // something was taken in
	ctx    context.Context // of Run; queries of services derive from it

	hasToken bool        // we were given one; the agent may have another for those who have none
	named    atomic.Bool // requests without a token of ours were found to have the agent's

	mu         sync.Mutex
	services   map[string]*consulService
	loaded     [fixedQueries]bool
	protocol   map[string]Protocol // service-defaults
	fallback   Protocol            // proxy-defaults
	intents    []Intention
	byDefault  Action                // what applies without an intention
	checked    map[string]uint64     // a digest of the checks of each service
	errs       map[string]queryError // by query
	distrusted time.Time             // when Consul failed last
	status     Status
	told       map[string]bool // what was complained about
}

// The queries that are not of one service, all of which must be read before the first snapshot.
const (
	queryServices = iota
	queryIntentions
	queryServiceDefaults
	queryProxyDefaults
	queryAgent
	fixedQueries
)

const (
	// debounce gathers what changes at about the same time into one snapshot.
	debounce = 10 * time.Millisecond
	// maxConnections is a second bound, of the transport: below what an agent takes.
	maxConnections = 190
	// pollWorkers is how many polls are under way at a time.
	pollWorkers    = 12
	defaultWatches = 150
	defaultConfirm = 3 * time.Second
	// agentInterval is how often the agent's configuration is read, which has no blocking query.
	agentInterval = 30 * time.Second
	// maxReasons bounds the reasons that a status tells.
	maxReasons = 5
	// maxTold bounds the complaints that are remembered in order not to be repeated.
	maxTold = 10_000
)

// NewConsul makes a source of a Consul.
func NewConsul(o ConsulOptions) (*Consul, error) {
	if o.Retry <= 0 {
		o.Retry = 200 * time.Millisecond
	}
	if o.Confirm <= 0 {
		o.Confirm = defaultConfirm
	}
	if o.Watches <= 0 {
		o.Watches = defaultWatches
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
	// Watches come back at once, on the connections that they had.
	config.Transport.MaxIdleConns, config.Transport.MaxIdleConnsPerHost = maxConnections, maxConnections
	config.Transport.MaxConnsPerHost = maxConnections
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("consul %s: %w", config.Address, err)
	}
	return &Consul{opt: o, client: client, log: o.Logger, poll: newPoller(), slots: make(chan struct{}, o.Watches),
		change: make(chan struct{}, 1), services: map[string]*consulService{}, errs: map[string]queryError{},
		hasToken: config.Token != "", told: map[string]bool{}, protocol: map[string]Protocol{}, status: Status{Source: "consul " + config.Address}}, nil
}

// Status implements Source.
func (c *Consul) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Error = c.problem()
	for _, e := range c.errs {
		if e.down {
			s.Connected = false
		}
	}
	return s
}

// problem says why queries fail: each reason once, with the first query of it, and the ACL rules that are missing. The
// caller holds the lock.
func (c *Consul) problem() string {
	type reason struct {
		first string
		n     int
	}
	reasons := map[string]*reason{}
	var order []*reason
	var needs []string
	for _, query := range slices.Sorted(maps.Keys(c.errs)) {
		e := c.errs[query]
		key := e.text
		if e.down {
			key = "" // the text names the URL
		}
		r := reasons[key]
		if r == nil {
			r = &reason{first: query + ": " + e.text}
			reasons[key] = r
			order = append(order, r)
		}
		r.n++
		if e.need != "" && !slices.Contains(needs, e.need) {
			needs = append(needs, e.need)
		}
	}
	var parts []string
	for i, r := range order {
		if i == maxReasons {
			parts = append(parts, fmt.Sprintf("and %d more reasons", len(order)-i))
			break
		}
		if r.n > 1 {
			r.first += fmt.Sprintf(" (and %d more queries)", r.n-1)
		}
		parts = append(parts, r.first)
	}
	if len(needs) > 0 {
		parts = append(parts, "the ACL token lacks: "+strings.Join(needs, ", "))
	}
	return strings.Join(parts, "; ")
}

// Run implements Source.
func (c *Consul) Run(ctx context.Context, publish func(*Snapshot)) error {
	c.ctx = ctx
	c.follow("services", needServices, func(o *api.QueryOptions) (*api.QueryMeta, answer, error) {
		list, meta, err := c.client.Catalog().Services(o)
		delete(list, "consul") // the servers themselves
		return meta, answer{slices.Collect(maps.Keys(list)), func() { c.list(list, meta.LastIndex) }}, err
	})
	c.follow("service-intentions", needIntentions, c.askIntentions)
	c.follow("service-defaults", needDefaults, func(o *api.QueryOptions) (*api.QueryMeta, answer, error) {
		list, meta, err := c.client.ConfigEntries().List(api.ServiceDefaults, o)
		return meta, answer{namesOf(list), func() { c.serviceDefaults(list) }}, err
	})
	c.follow("proxy-defaults", needProxy, func(o *api.QueryOptions) (*api.QueryMeta, answer, error) {
		list, meta, err := c.client.ConfigEntries().List(api.ProxyDefaults, o)
		return meta, answer{namesOf(list), func() { c.proxyDefaults(list) }}, err
	})
	c.wg.Go(c.followAgent)
	c.wg.Go(func() { c.poll.schedule(ctx) })
	for range pollWorkers {
		c.wg.Go(c.pollWorker)
	}
	c.publisher(publish)
	c.wg.Wait()
	return nil
}

// publisher publishes what has changed, one snapshot at a time, until Run's context ends.
func (c *Consul) publisher(publish func(*Snapshot)) {
	var last *Snapshot
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.change:
		}
		pause(c.ctx, debounce)
		if c.ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		if !c.complete() {
			c.mu.Unlock()
			continue
		}
		s := c.snapshot()
		if last != nil && reflect.DeepEqual(last, s) {
			c.mu.Unlock()
			continue
		}
		c.status.Loaded, c.status.Changed = true, time.Now()
		c.mu.Unlock()
		last = s
		publish(s)
	}
}

// complete says that everything was read once. A service that appears later does not hold up the others.
func (c *Consul) complete() bool {
	if c.status.Loaded {
		return true
	}
	for _, ok := range c.loaded {
		if !ok {
			return false
		}
	}
	for _, v := range c.services {
		if !v.complete() {
			return false
		}
	}
	return true
}

// changed asks for a snapshot.
func (c *Consul) changed() {
	select {
	case c.change <- struct{}{}:
	default: // one is asked for already
	}
}

// complain logs what is wrong in the catalog once. The caller holds the lock.
func (c *Consul) complain(text string, args ...any) {
	key := fmt.Sprint(text, args)
	if c.told[key] || len(c.told) >= maxTold {
		return
	}
	c.told[key] = true
	c.log.Warn(text, args...)
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
