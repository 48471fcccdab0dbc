package dns

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"sallyport/sidecar/metric"
)

var ownAddress = netip.MustParseAddrPort("127.0.0.1:0")

// resolver starts a listener with the table and resolvers.
func resolver(t *testing.T, c Config) (*Server, string) {
	t.Helper()
	s := NewServer(slog.New(slog.DiscardHandler))
	t.Cleanup(s.Close)
	c.Name, c.Stats = "dns", metric.NewSet(Stats, 1)
	if c.Addresses == nil {
		c.Addresses = []netip.AddrPort{ownAddress}
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	// The TCP port of a free UDP port may be taken: another one then.
	var err error
	for range 10 {
		if err = s.Apply(&c); err == nil {
			return s, s.Addresses("dns")[0].String()
		}
	}
	t.Fatal(err)
	return nil, ""
}

func ask(t *testing.T, network, at, name string, kind uint16) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 20 * time.Second}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, kind), at)
	if err != nil {
		t.Fatalf("%s %s over %s: %v", name, dns.TypeToString[kind], network, err)
	}
	return m
}

// texts are the addresses of an answer, or its code.
func texts(m *dns.Msg) string {
	if m.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[m.Rcode]
	}
	var out []string
	for _, r := range m.Answer {
		switch r := r.(type) {
		case *dns.A:
			out = append(out, r.A.String())
		case *dns.AAAA:
			out = append(out, r.AAAA.String())
		}
	}
	return strings.Join(out, " ")
}

var table = Table{
	"orders.mesh.":     {Addresses: []netip.Addr{netip.MustParseAddr("240.1.2.3"), netip.MustParseAddr("fd00::3")}, TTL: 30 * time.Second},
	"four.mesh.":       {Addresses: []netip.Addr{netip.MustParseAddr("240.1.2.4")}},
	"*.any.mesh.":      {Addresses: []netip.Addr{netip.MustParseAddr("240.1.2.5")}},
	"*.deep.any.mesh.": {Addresses: []netip.Addr{netip.MustParseAddr("240.1.2.6")}},
}

func TestNamesOfTheMeshAreAnswered(t *testing.T) {
	_, at := resolver(t, Config{Table: table})
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"orders.mesh.", dns.TypeA, "240.1.2.3"},
		{"ORDERS.Mesh.", dns.TypeA, "240.1.2.3"},
		{"orders.mesh.", dns.TypeAAAA, "fd00::3"},
		{"four.mesh.", dns.TypeAAAA, ""}, // known, and without one: not NXDOMAIN
		{"four.mesh.", dns.TypeMX, ""},
		{"x.any.mesh.", dns.TypeA, "240.1.2.5"},
		{"x.y.any.mesh.", dns.TypeA, "240.1.2.5"},
		{"x.deep.any.mesh.", dns.TypeA, "240.1.2.6"},
		{"any.mesh.", dns.TypeA, "REFUSED"},
		{"other.example.", dns.TypeA, "REFUSED"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if m := ask(t, network, at, c.name, c.kind); texts(m) != c.want {
				t.Errorf("%s %s over %s: %q, want %q", c.name, dns.TypeToString[c.kind], network, texts(m), c.want)
			}
		}
	}
	if m := ask(t, "udp", at, "orders.mesh.", dns.TypeA); m.Answer[0].Header().Ttl != 30 || m.Answer[0].Header().Name != "orders.mesh." {
		t.Errorf("answered %v", m.Answer[0])
	}
}

// upstream is a resolver of the host, which answers everything with its address, or with a code.
func upstream(t *testing.T, rcode int, address string) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Skip("the TCP port of a free UDP port is taken")
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetRcode(q, rcode)
		if rcode == dns.RcodeSuccess {
			n := 1
			if q.Question[0].Name == "large." {
				n = 200
			}
			for range n {
				m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.ParseIP(address)})
			}
		}
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			m.Truncate(udpSize)
		}
		_ = w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		done := make(chan struct{})
		go func() { defer close(done); _ = s.ActivateAndServe() }()
		t.Cleanup(func() { pc.Close(); l.Close(); <-done })
	}
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestOtherNamesArePassedOn(t *testing.T) {
	good, ill := upstream(t, dns.RcodeSuccess, "192.0.2.1"), upstream(t, dns.RcodeServerFailure, "")
	missing := upstream(t, dns.RcodeNameError, "")
	for name, c := range map[string]struct {
		resolvers []netip.AddrPort
		want      string
	}{
		"one":                       {[]netip.AddrPort{good}, "192.0.2.1"},
		"the first is ill":          {[]netip.AddrPort{ill, good}, "192.0.2.1"},
		"all are ill":               {[]netip.AddrPort{ill, ill}, "SERVFAIL"},
		"no such name is an answer": {[]netip.AddrPort{missing, good}, "NXDOMAIN"},
	} {
		t.Run(name, func(t *testing.T) {
			_, at := resolver(t, Config{Table: table, Forward: true, Resolvers: c.resolvers, Pending: 10})
			for _, network := range []string{"udp", "tcp"} {
				if m := ask(t, network, at, "www.example.", dns.TypeA); texts(m) != c.want {
					t.Errorf("over %s: %q, want %q", network, texts(m), c.want)
				}
			}
			if m := ask(t, "udp", at, "orders.mesh.", dns.TypeA); texts(m) != "240.1.2.3" {
				t.Errorf("a name of the mesh was passed on: %q", texts(m))
			}
		})
	}
	_, at := resolver(t, Config{Forward: true, Resolvers: []netip.AddrPort{good}, Pending: 10})
	if m := ask(t, "udp", at, "large.", dns.TypeA); !m.Truncated {
		t.Error("an answer that is too long for UDP is not marked")
	}
	if m := ask(t, "tcp", at, "large.", dns.TypeA); len(m.Answer) != 200 {
		t.Errorf("%d addresses over TCP, want 200", len(m.Answer))
	}
}

func TestQuestionsOnTheirWayAreBounded(t *testing.T) {
	s, at := resolver(t, Config{Forward: true, Resolvers: []netip.AddrPort{upstream(t, dns.RcodeSuccess, "192.0.2.1")}})
	if m := ask(t, "udp", at, "www.example.", dns.TypeA); texts(m) != "SERVFAIL" {
		t.Errorf("with no place: %q", texts(m))
	}
	if n := s.open["dns"].cfg.Load().Stats.Value(statOverflow); n != 1 {
		t.Errorf("%d are counted", n)
	}
}

func TestATableIsReplacedInPlace(t *testing.T) {
	s, at := resolver(t, Config{Table: table})
	c := *s.open["dns"].cfg.Load()
	c.Table = Table{"orders.mesh.": {Addresses: []netip.Addr{netip.MustParseAddr("240.9.9.9")}}}
	if err := s.Apply(&c); err != nil {
		t.Fatal(err)
	}
	if m := ask(t, "udp", at, "orders.mesh.", dns.TypeA); texts(m) != "240.9.9.9" {
		t.Errorf("%q after the change", texts(m))
	}
	busy := c
	busy.Addresses = []netip.AddrPort{upstream(t, dns.RcodeSuccess, "192.0.2.1")}
	if err := s.Apply(&busy); err == nil || !strings.Contains(err.Error(), "cannot listen on") {
		t.Errorf("an address in use: %v", err)
	}
	if m := ask(t, "udp", at, "orders.mesh.", dns.TypeA); texts(m) != "240.9.9.9" {
		t.Error("a change that failed has ended the listener")
	}
	s.Remove("dns")
	if s.Addresses("dns") != nil {
		t.Error("the listener is still there")
	}
}

// caller is a client with an address of its choice.
type caller struct {
	dns.ResponseWriter
	from   string
	answer chan *dns.Msg
}

func (c caller) RemoteAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(c.from))
}
func (c caller) WriteMsg(m *dns.Msg) error { c.answer <- m; return nil }

// A stub resolver of the host whose own questions are redirected here must not be asked them again.
func TestAStubResolverIsNotAskedItsOwnQuestions(t *testing.T) {
	const own = "10.0.0.5:40000"
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, _ := resolver(t, Config{Forward: true, Pending: 10, Timeout: 20 * time.Second, Resolvers: []netip.AddrPort{pc.LocalAddr().(*net.UDPAddr).AddrPort()}})
	l := s.open["dns"]
	asks := func(from, name string) *dns.Msg {
		c := caller{from: from, answer: make(chan *dns.Msg, 1)}
		l.serve(c, new(dns.Msg).SetQuestion(name, dns.TypeA))
		return <-c.answer
	}
	// It asks by way of the sidecar what it is asked itself, from an address of an interface.
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := asks(own, strings.ToUpper(q.Question[0].Name))
		m.Id = q.Id
		_ = w.WriteMsg(m)
	})
	done := make(chan struct{})
	var log strings.Builder
	l.stub.log = slog.New(slog.NewTextHandler(&log, nil))
	l.stub.upstreams = t.TempDir() + "/none"
	go func() { defer close(done); _ = (&dns.Server{PacketConn: pc, Handler: handler}).ActivateAndServe() }()
	t.Cleanup(func() { pc.Close(); <-done })
	start := time.Now()
	for range 3 {
		if m := asks("127.0.0.1:40000", "www.example."); texts(m) != "SERVFAIL" {
			t.Errorf("in a circle: %q", texts(m))
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s to see the circle", took)
	}
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "--exclude-uids") {
		t.Errorf("logged %q", log.String())
	}
	if len(l.asked.of) != 0 {
		t.Errorf("not forgotten: %v", l.asked.of)
	}
	// Where its servers are known they are asked what it asks.
	l.stub.upstreams = t.TempDir() + "/resolv.conf"
	if err := os.WriteFile(l.stub.upstreams, []byte("nameserver 127.0.0.53\nnameserver 192.0.2.7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{own: "192.0.2.7:53", "[fd00::5]:40000": "192.0.2.7:53", "127.0.0.1:1": pc.LocalAddr().String(), "[::ffff:127.0.0.1]:1": pc.LocalAddr().String()} {
		to, forget, err := l.resolvers(l.cfg.Load(), caller{from: from}.RemoteAddr(), new(dns.Msg).SetQuestion("www.example.", dns.TypeA))
		forget()
		if err != nil || len(to) != 1 || to[0].String() != want {
			t.Errorf("from %s: %v %v, want %s", from, to, err, want)
		}
	}
}
