package integration

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestRedirectionOfAStubResolver: the resolver of the host asks as a user of its own. Where that is redirected like all
// others, and the sidecar knows its servers, or its user is excluded, names are found; otherwise that is said at once.
func TestRedirectionOfAStubResolver(t *testing.T) {
	s := newStreet(t)
	server := s.b.IPv4.String()
	var packets net.PacketConn
	s.b.Do(func() (err error) { packets, err = net.ListenPacket("udp4", server+":53"); return err })
	names := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, 7)}}
		_ = w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = names.ActivateAndServe() }()
	t.Cleanup(func() { packets.Close(); <-done })
	s.a.ResolvConf("nameserver 127.0.0.53\n")
	s.a.Start(nameStub(server)).WaitLog("ready")
	for _, c := range []struct {
		name    string
		servers string // in systemd's list of them
		flags   []string
		want    string
	}{
		{"only questions to it are redirected", "", nil, "NOERROR 192.0.2.7"},
		{"nobody knows its servers", "", []string{"--dns-to", "all"}, "SERVFAIL"},
		{"its servers are known", "nameserver " + server, []string{"--dns-to", "all"}, "NOERROR 192.0.2.7"},
		{"its user is excluded", "", []string{"--dns-to", "all", "--exclude-uids", "101"}, "NOERROR 192.0.2.7"},
		{"its servers are excluded", "", []string{"--dns-to", "all", "--exclude-outbound-cidrs", server}, "NOERROR 192.0.2.7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *s
			s.t = t
			// With a /run of its own.
			program := nameSidecar()
			script := `mount -t tmpfs none /run && mkdir -p /run/systemd/resolve && echo "$1" >/run/systemd/resolve/resolv.conf && shift && exec "$@"`
			program.Path, program.Args = "unshare", append([]string{"--mount", "--propagation", "private", "sh", "-c", script, "sh", c.servers, program.Path}, program.Args...)
			sidecar := s.a.Start(program)
			sidecar.WaitLog("ready")
			s.apply(c.flags...)
			start := time.Now()
			p := s.a.Start(asker("www.example."))
			p.WaitExit(20 * time.Second)
			if got := strings.TrimSpace(p.Log()); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
			if said := strings.Contains(sidecar.Log(), "--exclude-uids"); said != (c.want == "SERVFAIL") {
				t.Errorf("the sidecar says %q", sidecar.Log())
			}
			s.a.Must(s.bin, "redirect", "cleanup")
			sidecar.Kill()
		})
	}
}
