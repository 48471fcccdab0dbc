package listener

import (
	"log/slog"
	"net/netip"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/upstream"
)

// Indexes into the statistics of a listener; the names are Envoy's.
const (
	statTotal = iota
	statActive
	statDestroy
	statOverflow
	statNoChain
	statFilterTimeout
	statProxyError
	statHandshake
	statTLSFail
	statDenied
	statCount
)

// descs are the metrics of a listener.
var descs = [statCount]metric.Desc{
	statTotal:         {Name: "downstream_cx_total"},
	statActive:        {Name: "downstream_cx_active", Kind: metric.Gauge},
	statDestroy:       {Name: "downstream_cx_destroy"},
	statOverflow:      {Name: "downstream_cx_overflow"},
	statNoChain:       {Name: "no_filter_chain_match"},
	statFilterTimeout: {Name: "downstream_pre_cx_timeout"},
	statProxyError:    {Name: "proxy_proto_error"},
	statHandshake:     {Name: "ssl.handshake"},
	statTLSFail:       {Name: "ssl.connection_error"},
	statDenied:        {Name: "network_filter_denied"},
}

var stats = metric.NewLayout(descs[:]...)

// Server holds all listeners of a process. Its methods are safe for concurrent use, and not for a worker: those
// that change something wait for the workers.
type Server struct {
	workers   []*loop.Worker
	factories []*stream.Factory
	metrics   *metric.Registry
	log       *slog.Logger
	lastLog   atomic.Int64 // unix nanoseconds of the last rate-limited line
	dropped   atomic.Int64

	// Held are ports that the process which started this one holds for it: they are shared with that.
	Held map[uint16]bool

	virtual  []virtual  // one per worker
	rechecks []*recheck // likewise
	// origin asks the socket where the client meant to go; tests have no netfilter.
	origin func(*conn.Conn) (netip.AddrPort, error)

	mu     sync.Mutex
	active map[string]*active
}

// virtual are the listeners without a socket, by address: connections come to
// them from a listener with use_original_dst. Owned by a worker.
type virtual map[netip.AddrPort]*workerListener

// find returns the listener of that address, or else of any address with that port, as Envoy does.
func (v virtual) find(a netip.AddrPort) *workerListener {
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	if l := v[a]; l != nil {
		return l
	}
	any := netip.IPv4Unspecified()
	if a.Addr().Is6() {
		any = netip.IPv6Unspecified()
	}
	return v[netip.AddrPortFrom(any, a.Port())]
}

// active is a listener with its sockets.
type active struct {
	server      *Server
	cfg         atomic.Pointer[Config]
	stats       *metric.Set
	connections atomic.Int64
	sockets     []bound        // by address; none where it does not bind
	addresses   []conn.Address // as bound
	locals      []*workerListener
}

// workerListener is one worker's part of a listener. Owned by the worker.
type workerListener struct {
	parent  *active
	worker  *loop.Worker
	factory *stream.Factory
	virtual virtual
	sockets []*conn.Listener // by address; nil where another worker accepts, or another listener has it now
	open    []*connection
	recheck *recheck // the worker's
}

// NewServer returns a server without listeners.
func NewServer(workers []*loop.Worker, clusters *upstream.Registry, metrics *metric.Registry, log *slog.Logger) *Server {
	s := &Server{workers: workers, metrics: metrics, log: log, active: map[string]*active{}, origin: (*conn.Conn).OriginalDst}
	for _, w := range workers {
		s.factories = append(s.factories, stream.NewFactory(w, clusters))
		s.virtual = append(s.virtual, virtual{})
		s.rechecks = append(s.rechecks, &recheck{worker: w})
	}
	return s
}

// Apply adds a listener or updates one: see ApplyAll. An error means that nothing changed.
func (s *Server) Apply(cfg *Config) error { return s.ApplyAll(Change{Set: []*Config{cfg}})[0] }

// Remove takes a listener away: its sockets close, its connections drain.
func (s *Server) Remove(name string) { s.ApplyAll(Change{Remove: []string{name}}) }

// listensAt says whether a connection to that address is one to this listener.
func (a *active) listensAt(dst netip.AddrPort) bool {
	for _, b := range a.addresses {
		if sameAddr(b.IP, dst) {
			return true
		}
		// [::] may take IPv4 too, and 0.0.0.0 nothing else.
		if any := b.IP.Addr(); any.IsUnspecified() && b.IP.Port() == dst.Port() && (any.Is6() || dst.Addr().Unmap().Is4()) {
			return true
		}
	}
	return false
}

func (l *workerListener) count(i int) { l.parent.stats.At(l.worker.ID()).Inc(i) }

func (l *workerListener) remove(k *connection) {
	last := len(l.open) - 1
	l.open[last].index = k.index
	l.open[k.index] = l.open[last]
	l.open[last] = nil
	l.open = l.open[:last]
}

// Drain stops accepting on all listeners and lets connections end.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, a := range s.active {
		delete(s.active, name)
		for _, l := range a.locals {
			l.worker.Post(l.close)
		}
	}
}

// Addresses lists what a listener is bound to, by name, for the admin page and for port 0.
func (s *Server) Addresses() map[string][]conn.Address {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[string][]conn.Address, len(s.active))
	for n, a := range s.active {
		m[n] = a.addresses
	}
	return m
}

// Names lists the listeners.
func (s *Server) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for n := range s.active {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Open is the number of open connections.
func (s *Server) Open() int64 {
	n := int64(0)
	for _, f := range s.metrics.Families() {
		if f.Prefix == "listener" {
			n += f.Set.Value(statActive)
		}
	}
	return n
}

// limitedLog writes at most ten lines a second: what a peer can cause must not fill the log.
func (s *Server) limitedLog(msg string, args ...any) {
	now := time.Now().UnixNano()
	last := s.lastLog.Load()
	if now-last < int64(100*time.Millisecond) || !s.lastLog.CompareAndSwap(last, now) {
		s.dropped.Add(1)
		return
	}
	if d := s.dropped.Swap(0); d > 0 {
		args = append(args, "left_out", d)
	}
	s.log.Warn(msg, args...)
}

// AddrOf is the first bound TCP address of a listener, for tests and messages.
func (s *Server) AddrOf(name string) netip.AddrPort {
	if a := s.Addresses()[name]; len(a) > 0 {
		return a[0].IP
	}
	return netip.AddrPort{}
}
