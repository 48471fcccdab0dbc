// Package dns is the resolver of a transparent sidecar: it answers names of the
// mesh from a table that the control plane sends (Envoy's
// envoy.filters.udp.dns_filter), and passes other questions on to the resolvers
// of the host. It owns its sockets, UDP and TCP, and runs on goroutines of its own,
// away from the workers. Package sidecar hands it the listeners that package config
// compiles.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/metric"
)

// Config is a compiled DNS listener. Immutable.
type Config struct {
	Name      string
	Addresses []netip.AddrPort
	Stats     *metric.Set // of layout Stats
	Table     Table
	// Resolvers take what the table does not have; empty: those of /etc/resolv.conf.
	Resolvers []netip.AddrPort
	// Forward says that what the table does not have is passed on; otherwise it is refused.
	Forward bool
	Timeout time.Duration // of a question that is passed on
	Pending int           // how many may be on their way at once
}

// Table are the names that are answered: lower case, with the dot at their end; "*." begins one that stands for all below.
type Table map[string]Answer

// Answer is what a name is answered with.
type Answer struct {
	Addresses []netip.Addr
	TTL       time.Duration
}

// find returns the answer of a name, or of the longest wildcard above it.
func (t Table) find(name string) (Answer, bool) {
	if a, ok := t[name]; ok {
		return a, true
	}
	for rest := name; ; {
		_, after, ok := strings.Cut(rest, ".")
		if !ok || after == "" {
			return Answer{}, false
		}
		if a, ok := t["*."+after]; ok {
			return a, true
		}
		rest = after
	}
}

// Indexes into the statistics.
const (
	statQueries = iota
	statLocal
	statForwarded
	statFailed
	statOverflow
	statInvalid
	statCount
)

// descs are the metrics of a DNS listener; the names follow Envoy's dns_filter.
var descs = [statCount]metric.Desc{
	statQueries:   {Name: "downstream_rx_queries"},
	statLocal:     {Name: "known_domain_queries"},
	statForwarded: {Name: "external_query"},
	statFailed:    {Name: "external_query_failures"},
	statOverflow:  {Name: "external_query_overflow"},
	statInvalid:   {Name: "downstream_rx_invalid_queries"},
}

// Stats is the layout of a DNS listener's statistics; the names follow Envoy's dns_filter.
var Stats = metric.NewLayout(descs[:]...)

const (
	maxTTL = 24 * time.Hour
	// udpSize is what a client without EDNS takes (RFC 1035 §4.2.1), ednsSize what we announce to resolvers.
	udpSize  = 512
	ednsSize = 1232
	// tcpIdle ends a client's connection that asks nothing.
	tcpIdle = 10 * time.Second
)

// Server runs the DNS listeners of a process. Safe for concurrent use.
type Server struct {
	// Held says that the process which started this one holds the addresses for it; set before the first Apply.
	Held bool

	log       *slog.Logger
	mu        sync.Mutex
	open      map[string]*listener
	upstreams string // a file like resolvConf, with the servers of the stub resolver
}

// NewServer returns a server without listeners.
func NewServer(log *slog.Logger) *Server {
	return &Server{log: log, open: map[string]*listener{}, upstreams: stubUpstreams}
}

// listener is one with its sockets.
type listener struct {
	cfg     atomic.Pointer[Config]
	pending atomic.Int64
	asked   asked
	stub    stub
	servers []*dns.Server
	wait    sync.WaitGroup
}

// Apply adds a listener or changes one: its table takes effect with the next question. An error means that nothing changed.
func (s *Server) Apply(c *Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.open[c.Name]
	if old != nil && slices.Equal(old.cfg.Load().Addresses, c.Addresses) {
		old.cfg.Store(c)
		return nil
	}
	l := &listener{stub: stub{upstreams: s.upstreams, log: s.log}}
	l.cfg.Store(c)
	for _, a := range c.Addresses {
		if err := l.bind(a, s.Held); err != nil {
			l.close()
			return fmt.Errorf("listener %q: %w", c.Name, err)
		}
	}
	for _, srv := range l.servers {
		l.wait.Go(func() {
			if err := srv.ActivateAndServe(); err != nil && !errors.Is(err, net.ErrClosed) {
				s.log.Error("DNS listener ended", "listener", c.Name, "error", err)
			}
		})
	}
	s.open[c.Name] = l
	if old != nil {
		old.close()
	}
	return nil
}

func (l *listener) bind(a netip.AddrPort, held bool) error {
	var open net.ListenConfig
	if held {
		open.Control = conn.Share
	}
	udp, err := open.ListenPacket(context.Background(), "udp", a.String())
	if err != nil {
		return fmt.Errorf("cannot listen on %s (UDP): %w", a, err)
	}
	tcp, err := open.Listen(context.Background(), "tcp", netip.AddrPortFrom(a.Addr(), uint16(udp.LocalAddr().(*net.UDPAddr).Port)).String())
	if err != nil {
		udp.Close()
		return fmt.Errorf("cannot listen on %s (TCP): %w", a, err)
	}
	handler := dns.HandlerFunc(l.serve)
	l.servers = append(l.servers,
		&dns.Server{PacketConn: udp, Handler: handler, UDPSize: ednsSize},
		&dns.Server{Listener: tcp, Handler: handler, ReadTimeout: tcpIdle, WriteTimeout: tcpIdle, IdleTimeout: func() time.Duration { return tcpIdle }, MaxTCPQueries: 128})
	return nil
}

func (l *listener) close() {
	for _, s := range l.servers {
		// The socket first: one that was not served yet has nothing to shut down.
		if s.PacketConn != nil {
			s.PacketConn.Close()
		}
		if s.Listener != nil {
			s.Listener.Close()
		}
		_ = s.Shutdown() // an error says that it is not running
	}
	l.wait.Wait()
}

// Remove takes a listener away; one that is not there is no error.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.open[name]; l != nil {
		delete(s.open, name)
		l.close()
	}
}

// Close ends all listeners.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, l := range s.open {
		delete(s.open, name)
		l.close()
	}
}

// Addresses are those that a listener is bound to, UDP; for port 0 and the admin page.
func (s *Server) Addresses(name string) (out []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.open[name]; l != nil {
		for _, srv := range l.servers {
			if srv.PacketConn != nil {
				out = append(out, srv.PacketConn.LocalAddr().(*net.UDPAddr).AddrPort())
			}
		}
	}
	return out
}

// serve answers a question. On a goroutine of its own for each.
func (l *listener) serve(w dns.ResponseWriter, q *dns.Msg) {
	c := l.cfg.Load()
	count := func(i int) { c.Stats.Shared().Inc(i) }
	count(statQueries)
	var m *dns.Msg
	switch {
	case q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 || q.Response:
		count(statInvalid)
		m = new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented)
	default:
		if answer, ok := c.Table.find(strings.ToLower(dns.Fqdn(q.Question[0].Name))); ok && q.Question[0].Qclass == dns.ClassINET {
			count(statLocal)
			m = answer.reply(q)
			break
		}
		m = l.forward(c, w, q, count)
	}
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = udpSize
		if e := q.IsEdns0(); e != nil {
			size = max(size, int(e.UDPSize()))
		}
	}
	m.Truncate(size)
	// A client that is gone needs no answer.
	_ = w.WriteMsg(m)
}

// reply answers with the addresses of the kind that was asked for. A name that
// is known and has none of that kind is answered with nothing, not with NXDOMAIN:
// resolvers ask for both kinds and take NXDOMAIN for both (RFC 8020).
func (a Answer) reply(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	name := q.Question[0].Name
	header := dns.RR_Header{Name: name, Class: dns.ClassINET, Ttl: uint32(min(a.TTL, maxTTL) / time.Second)}
	for _, ip := range a.Addresses {
		switch kind := q.Question[0].Qtype; {
		case ip.Is4() && (kind == dns.TypeA || kind == dns.TypeANY):
			header.Rrtype = dns.TypeA
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: ip.AsSlice()})
		case ip.Is6() && (kind == dns.TypeAAAA || kind == dns.TypeANY):
			header.Rrtype = dns.TypeAAAA
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: ip.AsSlice()})
		}
	}
	return m
}

// forward asks the host's resolvers, one after another.
func (l *listener) forward(c *Config, w dns.ResponseWriter, q *dns.Msg, count func(int)) *dns.Msg {
	if !c.Forward {
		return new(dns.Msg).SetRcode(q, dns.RcodeRefused)
	}
	defer l.pending.Add(-1)
	if l.pending.Add(1) > int64(c.Pending) {
		count(statOverflow)
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	count(statForwarded)
	network := "udp"
	if _, tcp := w.RemoteAddr().(*net.TCPAddr); tcp {
		network = "tcp"
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	resolvers, forget, err := l.resolvers(c, w.RemoteAddr(), q)
	if err != nil {
		count(statFailed)
		l.stub.tell(err)
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	defer forget()
	each := c.Timeout / time.Duration(max(1, len(resolvers)))
	for _, r := range resolvers {
		client := &dns.Client{Net: network, Timeout: each, UDPSize: dns.MaxMsgSize}
		answer, _, err := client.ExchangeContext(ctx, q, r.String())
		if err == nil && answer.Rcode != dns.RcodeServerFailure && answer.Rcode != dns.RcodeRefused || err == nil && r == resolvers[len(resolvers)-1] {
			answer.Id = q.Id
			return answer
		}
	}
	count(statFailed)
	return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
}
