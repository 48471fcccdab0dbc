package integration

import (
	"bufio"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/integration/harness"
	sidecardns "sallyport/sidecar/dns"
	"sallyport/sidecar/metric"
)

// dialer connects, as a user and with a mark of its choice, and prints the line that it is greeted with.
var dialer = harness.Program("dialer", func(args []string) int {
	fs := flag.NewFlagSet("dialer", flag.ExitOnError)
	uid, gid, mark := fs.Int("uid", 0, ""), fs.Int("gid", 0, ""), fs.Int("mark", 0, "")
	port, timeout := fs.Int("port", 0, "to dial from"), fs.Duration("timeout", 10*time.Second, "")
	_ = fs.Parse(args)
	d := net.Dialer{Timeout: *timeout, LocalAddr: &net.TCPAddr{Port: *port}, Control: func(_, _ string, c syscall.RawConn) (err error) {
		if *mark == 0 {
			return nil
		}
		_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, *mark) })
		return err
	}}
	if err := syscall.Setgid(*gid); err != nil {
		fmt.Println(err)
		return 1
	}
	if err := syscall.Setuid(*uid); err != nil {
		fmt.Println(err)
		return 1
	}
	c, err := d.Dial("tcp", fs.Arg(0))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	in := bufio.NewReader(c)
	line, err := in.ReadString('\n')
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Print(line)
	_, _ = io.Copy(io.Discard, in) // who greets closes first, and the port is free again here
	return 0
})

// holder locks its network namespace as a user without privilege, for as long as it is left alone.
var holder = harness.Program("holder", func(_ []string) int {
	err := syscall.Setuid(1000)
	f, errOpen := os.Open("/proc/self/ns/net")
	if err = errors.Join(err, errOpen); err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("held")
	select {}
})

// nameSidecar is a sidecar that does nothing but DNS.
var nameSidecar = harness.Program("name-sidecar", func(_ []string) int {
	if err := syscall.Setuid(1337); err != nil {
		fmt.Println(err)
		return 1
	}
	at := netip.MustParseAddrPort("127.0.0.1:15053")
	s := sidecardns.NewServer(slog.New(slog.NewTextHandler(os.Stdout, nil)))
	if err := s.Apply(&sidecardns.Config{Name: "dns", Addresses: []netip.AddrPort{at}, Stats: metric.NewSet(sidecardns.Stats, 1), Forward: true, Timeout: 20 * time.Second, Pending: 100}); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	select {}
})

// nameStub is a resolver at 127.0.0.53 that asks a server, as a user of its own.
var nameStub = harness.Program("name-stub", func(args []string) int {
	pc, err := net.ListenPacket("udp", "127.0.0.53:53")
	if err == nil {
		err = syscall.Setuid(101)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	_ = (&dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m, _, err := (&dns.Client{Timeout: 20 * time.Second}).Exchange(q.Copy(), net.JoinHostPort(args[0], "53"))
		if err != nil {
			m = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		}
		m.Id = q.Id
		_ = w.WriteMsg(m)
	})}).ActivateAndServe()
	return 1
})

// asker asks the resolver of the host for a name, and prints the answer's code and address.
var asker = harness.Program("asker", func(args []string) int {
	m, _, err := (&dns.Client{Timeout: 10 * time.Second}).Exchange(new(dns.Msg).SetQuestion(args[0], dns.TypeA), "127.0.0.53:53")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Print(dns.RcodeToString[m.Rcode])
	for _, r := range m.Answer {
		fmt.Print(" ", r.(*dns.A).A)
	}
	fmt.Println()
	return 0
})

// greet answers every connection of a listener with one line: who listens, where the client meant to go, and, where
// peer is set, who it is. As long as nobody has sent anything, SO_ORIGINAL_DST and the local address are all there is.
func greet(l net.Listener, name string, peer bool) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			line := name + " " + originalDst(c.(*net.TCPConn)).String()
			if peer {
				line += " from " + c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String()
			}
			fmt.Fprintln(c, line)
			c.Close()
		}
	}()
}

// originalDst is where the client meant to go, by netfilter, or by the socket itself.
func originalDst(c *net.TCPConn) netip.AddrPort {
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	raw, err := c.SyscallConn()
	if err != nil {
		return local
	}
	_ = raw.Control(func(fd uintptr) {
		if local.Addr().Is4() {
			if a, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, unix.SO_ORIGINAL_DST); err == nil { // 16 bytes of a sockaddr_in
				local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.Multiaddr[4:8])), uint16(a.Multiaddr[2])<<8|uint16(a.Multiaddr[3]))
			}
		} else if a, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, unix.SO_ORIGINAL_DST); err == nil {
			local = netip.AddrPortFrom(netip.AddrFrom16(a.Addr.Addr), a.Addr.Port<<8|a.Addr.Port>>8)
		}
	})
	return local
}

func transparent(_, _ string, c syscall.RawConn) (err error) {
	_ = c.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1); err == nil {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
		}
	})
	return err
}

// street is two hosts. On the first something listens on the sidecar's ports; the second serves on 8080 and 9090.
type street struct {
	t    *testing.T
	lan  *harness.Network
	a, b *harness.Host
	bin  string
}

func newStreet(t *testing.T) *street {
	t.Helper()
	lan := harness.NewNetwork(t)
	s := &street{t: t, lan: lan, a: lan.Host("a"), b: lan.Host("b"), bin: harness.Binary(t)}
	for _, port := range []string{"8080", "9090"} {
		greet(s.b.Listen("tcp", ":"+port, nil), "b", true)
		greet(s.a.Listen("tcp", ":"+port, nil), "a", true)
	}
	greet(s.a.Listen("tcp", ":15001", nil), "outbound", false)
	greet(s.a.Listen("tcp", ":15006", transparent), "inbound", true)
	return s
}

// dial returns what a host's connection is greeted with; the flags are dialer's.
func (s *street) dial(h *harness.Host, addr string, flags ...string) string {
	s.t.Helper()
	return s.dialIn(h, "", addr, flags...)
}

func (s *street) dialIn(h *harness.Host, cgroup, addr string, flags ...string) string {
	s.t.Helper()
	c := dialer(append(flags, addr)...)
	c.Cgroup = cgroup
	p := h.Start(c)
	p.WaitExit(20 * time.Second)
	return strings.TrimSpace(p.Log())
}

func (s *street) apply(flags ...string) {
	s.t.Helper()
	s.a.Must(s.bin, append([]string{"redirect", "apply"}, flags...)...)
}

// network is all that redirection changes on a host: rules, those that nft does not show included, and routes.
func network(t *testing.T, h *harness.Host) string {
	t.Helper()
	for _, tool := range []string{"nft", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			harness.NotRun(t, tool+" is not installed (Debian: nftables iproute2)")
		}
	}
	var all strings.Builder
	for _, c := range [][]string{{"nft", "list", "ruleset"}, {"ip", "-4", "rule"}, {"ip", "-6", "rule"}, {"ip", "-4", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"}} {
		for line := range strings.Lines(h.Must(c[0], c[1:]...)) {
			// The kernel adds the link-local address when it finds the time.
			if !strings.Contains(line, "local fe80::") {
				all.WriteString(line)
			}
		}
	}
	for _, v := range []string{"", "6"} {
		// Asking makes the tables.
		if _, err := exec.LookPath("ip" + v + "tables-legacy-save"); err != nil || h.Run("cat", "/proc/net/ip"+v+"_tables_names").Stdout == "" {
			continue
		}
		table := ""
		for line := range strings.Lines(h.Must("ip" + v + "tables-legacy-save")) {
			if name, ok := strings.CutPrefix(line, "*"); ok {
				table = strings.TrimSpace(name)
			}
			// Tables stay where they have been used: what is in them counts.
			if words := strings.Fields(line); strings.HasPrefix(line, "-") || strings.HasPrefix(line, ":") && words[1] != "ACCEPT" {
				fmt.Fprintf(&all, "legacy ip%s %s %s\n", v, table, strings.Join(words[:max(2, len(words)-1)], " "))
			}
		}
	}
	return all.String()
}

// TestRedirection goes through who is redirected and what is not, and finds the host as it was after each.
func TestRedirection(t *testing.T) {
	s := newStreet(t)
	b4, b6 := s.b.IPv4.String(), s.b.IPv6.String()
	a4, a6 := s.a.IPv4.String(), s.a.IPv6.String()
	to := func(h, port string) string { return net.JoinHostPort(h, port) }
	type call struct {
		from  string // "a" or "b"
		addr  string
		flags []string
		want  string
	}
	outbound := func(addr string) call { return call{"a", addr, nil, "outbound " + addr} }
	direct := func(addr string, flags ...string) call {
		from := a4
		if strings.HasPrefix(addr, "[") {
			from = a6
		}
		return call{"a", addr, flags, "b " + addr + " from " + from}
	}
	for _, c := range []struct {
		name  string
		flags []string
		calls []call
	}{
		{"outbound", nil, []call{
			outbound(to(b4, "8080")), outbound(to(b6, "8080")), outbound("240.1.2.3:80"), outbound("[fd53:616c:6c79::1]:80"),
			direct(to(b4, "8080"), "-uid", "1337"), direct(to(b6, "8080"), "-uid", "1337"),
			{"a", "127.0.0.1:8080", nil, "a 127.0.0.1:8080 from 127.0.0.1"}, {"a", to(a4, "8080"), nil, "a " + to(a4, "8080") + " from " + a4},
		}},
		{"inbound", nil, []call{
			{"b", to(a4, "8080"), nil, "inbound " + to(a4, "8080") + " from " + b4}, {"b", to(a6, "8080"), nil, "inbound " + to(a6, "8080") + " from " + b6},
			{"b", to(a4, "15006"), nil, "inbound " + to(a4, "15006") + " from " + b4},
		}},
		{"TPROXY", []string{"--inbound-mode", "tproxy"}, []call{
			{"b", to(a4, "8080"), nil, "inbound " + to(a4, "8080") + " from " + b4}, {"b", to(a6, "8080"), nil, "inbound " + to(a6, "8080") + " from " + b6},
			outbound(to(b4, "8080")),
		}},
		{"inbound off", []string{"--inbound-mode", "off"}, []call{
			{"b", to(a4, "8080"), nil, "a " + to(a4, "8080") + " from " + b4}, outbound(to(b4, "8080")),
		}},
		{"outbound off", []string{"--outbound-port", "0", "--dns-port", "0"}, []call{
			direct(to(b4, "8080")), {"b", to(a4, "8080"), nil, "inbound " + to(a4, "8080") + " from " + b4},
		}},
		{"the sidecar by its group", []string{"--sidecar-gid", "4711"}, []call{
			outbound(to(b4, "8080")), direct(to(b4, "8080"), "-gid", "4711"), {"a", to(b4, "8080"), []string{"-uid", "1337"}, "outbound " + to(b4, "8080")},
		}},
		{"the sidecar by its mark", []string{"--sidecar-mark", "1337"}, []call{
			outbound(to(b4, "8080")), direct(to(b4, "8080"), "-mark", "1337"), direct(to(b6, "8080"), "-mark", "1337"),
		}},
		{"excluded outbound ports", []string{"--exclude-outbound-ports", "9000-9100"}, []call{outbound(to(b4, "8080")), direct(to(b4, "9090"))}},
		{"included outbound ports", []string{"--include-outbound-ports", "9090"}, []call{direct(to(b4, "8080")), outbound(to(b4, "9090"))}},
		{"excluded networks", []string{"--exclude-outbound-cidrs", "10.99.0.0/24"}, []call{direct(to(b4, "8080")), outbound(to(b6, "8080"))}},
		{"included networks", []string{"--include-outbound-cidrs", "10.99.0.0/24"}, []call{outbound(to(b4, "8080")), direct(to(b6, "8080"))}},
		{"excluded users", []string{"--exclude-uids", "1000"}, []call{outbound(to(b4, "8080")), direct(to(b4, "8080"), "-uid", "1000")}},
		{"included users", []string{"--include-uids", "1000,1001", "--include-interfaces", "eth0,eth7"}, []call{direct(to(b4, "8080")), {"a", to(b4, "8080"), []string{"-uid", "1000"}, "outbound " + to(b4, "8080")}}},
		{"excluded interfaces", []string{"--exclude-interfaces", "eth0,eth7"}, []call{direct(to(b4, "8080")), {"b", to(a4, "8080"), nil, "a " + to(a4, "8080") + " from " + b4}}},
		{"excluded inbound ports", []string{"--exclude-inbound-ports", "9090"}, []call{
			{"b", to(a4, "8080"), nil, "inbound " + to(a4, "8080") + " from " + b4}, {"b", to(a4, "9090"), nil, "a " + to(a4, "9090") + " from " + b4}}},
		{"included inbound ports", []string{"--include-inbound-ports", "9090"}, []call{
			{"b", to(a4, "8080"), nil, "a " + to(a4, "8080") + " from " + b4}, {"b", to(a4, "9090"), nil, "inbound " + to(a4, "9090") + " from " + b4}}},
	} {
		backends := []string{"nftables"}
		if slices.Contains([]string{"outbound", "inbound", "TPROXY", "excluded networks"}, c.name) {
			backends = append(backends, "iptables-nft", "iptables-legacy") // of the same plan: some rules of each kind will do
		}
		for _, backend := range backends {
			t.Run(c.name+" by "+backend, func(t *testing.T) {
				s := *s
				s.t = t
				needBackend(t, backend)
				before := network(t, s.a)
				s.apply(append(c.flags, "--backend", backend)...)
				once := network(t, s.a)
				s.apply(append(c.flags, "--backend", backend)...)
				if again := network(t, s.a); plain(again) != plain(once) {
					t.Errorf("applied twice:\n%s\nonce:\n%s", again, once)
				}
				for _, call := range c.calls {
					host := s.a
					if call.from == "b" {
						host = s.b
					}
					if got := s.dial(host, call.addr, call.flags...); got != call.want {
						t.Errorf("%s to %s %v: %q, want %q", call.from, call.addr, call.flags, got, call.want)
					}
				}
				if out := s.a.Must(s.bin, "redirect", "show"); !strings.Contains(out, " by "+backend) {
					t.Errorf("show says %q", out)
				}
				s.a.Must(s.bin, "redirect", "cleanup")
				if after := network(t, s.a); after != before {
					t.Errorf("before:\n%s\nafter:\n%s", before, after)
				}
				if out := s.a.Must(s.bin, "redirect", "show"); !strings.Contains(out, "nothing is redirected") {
					t.Errorf("after cleanup show says %q", out)
				}
			})
		}
	}
}

// TestRedirectionOfAConnectionSeenBefore: NAT is decided on the first packet that conntrack sees of a connection. A
// lone ACK is taken for the middle of one, and no NAT chain minds it; the SYN that comes after it must not reach past
// the sidecar. The ACK has an MD5 option, for which it is dropped without the RST that would end the matter.
func TestRedirectionOfAConnectionSeenBefore(t *testing.T) {
	s := newStreet(t)
	port, app := uint16(40000), harness.Cgroup(t, "app")
	for _, c := range []struct{ backend, cgroup string }{
		{"nftables", ""}, {"iptables-nft", ""}, {"iptables-legacy", ""}, {"nftables", app}, {"iptables-legacy", app},
	} {
		name, flags := c.backend, []string{"--backend", c.backend}
		if c.cgroup != "" {
			name, flags = name+", one cgroup", append(flags, "--name", "app", "--cgroup", c.cgroup, "--include-inbound-ports", "8080")
		}
		t.Run(name, func(t *testing.T) {
			s := *s
			s.t = t
			needBackend(t, c.backend)
			s.apply(flags...)
			defer s.a.Must(s.bin, "redirect", "cleanup", "--all")
			for _, addr := range []struct{ a, b netip.Addr }{{s.a.IPv4, s.b.IPv4}, {s.a.IPv6, s.b.IPv6}} {
				port++ // what was tried before has left its own entry
				server, client := netip.AddrPortFrom(addr.a, 8080), netip.AddrPortFrom(addr.b, port)
				sendTCP(t, s.b, ack, client, server)
				seen(t, s.a, client, server)
				if got := s.dial(s.b, server.String(), "-port", fmt.Sprint(port), "-timeout", "600ms"); !strings.Contains(got, "i/o timeout") {
					t.Errorf("inbound, after an ACK: %q", got)
				}
				if got, want := s.dial(s.b, server.String()), fmt.Sprintf("inbound %s from %s", server, addr.b); got != want {
					t.Errorf("inbound, from another port: %q, want %q", got, want)
				}
				// The application's accomplice on the other host opens its way out.
				server, client = netip.AddrPortFrom(addr.b, 8080), netip.AddrPortFrom(addr.a, port)
				sendTCP(t, s.b, ack, server, client)
				seen(t, s.a, server, client)
				if got := s.dialIn(s.a, c.cgroup, server.String(), "-port", fmt.Sprint(port), "-timeout", "600ms"); !strings.Contains(got, "i/o timeout") {
					t.Errorf("outbound, after an ACK from there: %q", got)
				}
				if got, want := s.dialIn(s.a, c.cgroup, server.String()), "outbound "+server.String(); got != want {
					t.Errorf("outbound, from another port: %q, want %q", got, want)
				}
			}
		})
	}
}

// TestRedirectionOfAnAnswer: what an accomplice opens is redirected to the sidecar's port. Where no sidecar has that, an
// application that dials from it would answer, and pass for redirected.
func TestRedirectionOfAnAnswer(t *testing.T) {
	s := newStreet(t)
	const nobody = 25006 // listens there
	accomplice := netip.AddrPortFrom(s.b.IPv4, 7070)
	wire := s.lan.Capture()
	dialed := func(from uint16) bool {
		return slices.ContainsFunc(wire.Frames(), func(f []byte) bool {
			const tcp = 14 + 20 // Ethernet, and IPv4 without options
			return len(f) > tcp+13 && f[12] == 8 && f[13] == 0 && binary.BigEndian.Uint16(f[tcp:]) == from && f[tcp+13]&(syn|ack) == syn
		})
	}
	for i, backend := range []string{"nftables", "iptables-nft", "iptables-legacy"} {
		needBackend(t, backend)
		s.apply("--backend", backend, "--inbound-port", fmt.Sprint(nobody))
		port := 42000 + uint16(i)
		sendTCP(t, s.b, syn, accomplice, netip.AddrPortFrom(s.a.IPv4, port))
		seen(t, s.a, accomplice, netip.AddrPortFrom(s.a.IPv4, port))
		got := s.dial(s.a, accomplice.String(), "-port", fmt.Sprint(nobody), "-timeout", "600ms")
		// What is seen of the sidecar comes after whatever came of that.
		marker := 43000 + uint16(i)
		s.dial(s.a, accomplice.String(), "-port", fmt.Sprint(marker), "-uid", "1337")
		harness.Eventually(t, 5*time.Second, "the sidecar's SYN", func() error {
			if !dialed(marker) {
				return errors.New("not on the wire")
			}
			return nil
		})
		if dialed(port) || !strings.Contains(got, "i/o timeout") {
			t.Errorf("%s: a SYN from port %d went out: %q", backend, port, got)
		}
		s.a.Must(s.bin, "redirect", "cleanup")
	}
}

// TestRedirectionOfAPortUsedBefore: a connection that had ended when the rules came does not stand in the way of the
// next one from its port, though it is still tracked.
func TestRedirectionOfAPortUsedBefore(t *testing.T) {
	s := newStreet(t)
	a, b := netip.AddrPortFrom(s.a.IPv4, 8080).String(), netip.AddrPortFrom(s.b.IPv4, 8080).String()
	s.apply("--exclude-outbound-ports", "8080", "--exclude-inbound-ports", "8080") // connections are tracked, these without NAT
	for _, rules := range []struct{ in, out string }{{"a " + a + " from " + s.b.IPv4.String(), "b " + b + " from " + s.a.IPv4.String()}, {"inbound " + a + " from " + s.b.IPv4.String(), "outbound " + b}} {
		for _, c := range []struct {
			from     *harness.Host
			to, want string
		}{{s.b, a, rules.in}, {s.a, b, rules.out}} {
			harness.Eventually(t, 10*time.Second, c.want, func() error {
				if got := s.dial(c.from, c.to, "-port", "41001"); got != c.want { // in use until the end of the one before has been acknowledged
					return errors.New(got)
				}
				return nil
			})
		}
		s.apply()
	}
}

// TestRedirectionLeavesConnectionsAlone: what is connected when the rules come stays connected, in both directions.
func TestRedirectionLeavesConnectionsAlone(t *testing.T) {
	s := newStreet(t)
	for _, backend := range []string{"nftables", "iptables-nft", "iptables-legacy"} {
		t.Run(backend, func(t *testing.T) {
			s := *s
			s.t = t
			needBackend(t, backend)
			var ends []net.Conn
			for _, way := range [][2]*harness.Host{{s.a, s.b}, {s.b, s.a}} {
				for _, ip := range []netip.Addr{way[1].IPv4, way[1].IPv6} {
					l := way[1].Listen("tcp", net.JoinHostPort(ip.String(), "0"), nil)
					c, err := way[0].Dial("tcp", l.Addr().String())
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { c.Close() })
					other, err := l.Accept()
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { other.Close() })
					ends = append(ends, c, other)
				}
			}
			s.apply("--backend", backend)
			defer s.a.Must(s.bin, "redirect", "cleanup")
			for i, c := range ends {
				other := ends[i^1]
				line := fmt.Sprintf("line %d", i)
				fmt.Fprint(c, line)
				_ = other.SetReadDeadline(time.Now().Add(5 * time.Second))
				got := make([]byte, len(line))
				if _, err := io.ReadFull(other, got); err != nil || string(got) != line {
					t.Errorf("%s to %s: %q %v", c.LocalAddr(), c.RemoteAddr(), got, err)
				}
			}
		})
	}
}

// needBackend ends a test for which a program is not installed.
func needBackend(t *testing.T, backend string) {
	t.Helper()
	if backend == "nftables" {
		return
	}
	if _, err := exec.LookPath(backend + "-restore"); err != nil {
		harness.NotRun(t, backend+"-restore is not installed (Debian: iptables)")
	}
}

const syn, ack = 0x02, 0x10 // RFC 9293 section 3.1

// sendTCP sends a TCP segment without a connection, with an MD5 option (RFC 2385).
func sendTCP(t *testing.T, h *harness.Host, flags byte, from, to netip.AddrPort) {
	t.Helper()
	segment := make([]byte, 40)
	binary.BigEndian.PutUint16(segment[0:], from.Port())
	binary.BigEndian.PutUint16(segment[2:], to.Port())
	binary.BigEndian.PutUint32(segment[4:], 1000)
	binary.BigEndian.PutUint32(segment[8:], 2000)
	segment[12], segment[13] = 10<<4, flags // ten words
	binary.BigEndian.PutUint16(segment[14:], 512)
	segment[20], segment[21], segment[38], segment[39] = 19, 18, 1, 1
	binary.BigEndian.PutUint16(segment[16:], tcpChecksum(from.Addr(), to.Addr(), segment))
	h.Do(func() error {
		family, at := unix.AF_INET, func(a netip.Addr) unix.Sockaddr { return &unix.SockaddrInet4{Addr: a.As4()} }
		if from.Addr().Is6() {
			family, at = unix.AF_INET6, func(a netip.Addr) unix.Sockaddr { return &unix.SockaddrInet6{Addr: a.As16()} }
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, at(from.Addr())); err != nil {
			return err
		}
		return unix.Sendto(fd, segment, 0, at(to.Addr()))
	})
}

// tcpChecksum is that of RFC 9293 section 3.1, with the pseudo-header of either IP.
func tcpChecksum(from, to netip.Addr, segment []byte) uint16 {
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, 0, 0, byte(len(segment)), 0, 0, 0, unix.IPPROTO_TCP}, segment)
	sum := uint32(0)
	for i := 0; i+1 < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// seen waits until a host tracks a connection, so that a test knows that what it does is what it is meant to be.
func seen(t *testing.T, h *harness.Host, from, to netip.AddrPort) {
	t.Helper()
	family := netlink.InetFamily(unix.AF_INET)
	if from.Addr().Is6() {
		family = unix.AF_INET6
	}
	harness.Eventually(t, 5*time.Second, "the connection is tracked", func() (err error) {
		var flows []*netlink.ConntrackFlow
		h.Do(func() error { flows, err = netlink.ConntrackTableList(netlink.ConntrackTable, family); return nil })
		for _, f := range flows {
			if f.Forward.SrcIP.String() == from.Addr().String() && f.Forward.SrcPort == from.Port() && f.Forward.DstPort == to.Port() {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("%s to %s is not among %d", from, to, len(flows)))
	})
}

// plain is a list of rules without the numbers that the kernel counts in them.
func plain(rules string) string {
	var kept []string
	for line := range strings.Lines(rules) {
		words := strings.Fields(line)
		for i, w := range words {
			if i+3 < len(words) && w == "counter" && words[i+1] == "packets" {
				words[i+2] = "0"
			}
			if i > 0 && words[i-1] == "bytes" {
				words[i] = "0"
			}
		}
		kept = append(kept, strings.Join(words, " "))
	}
	return strings.Join(kept, "\n")
}

// TestRedirectionOfOneCgroup: two process trees of one host, each with ports of its own, and a third that nobody redirects.
func TestRedirectionOfOneCgroup(t *testing.T) {
	s := newStreet(t)
	before := network(t, s.a)
	addr := net.JoinHostPort(s.b.IPv4.String(), "8080")
	one, two, three := harness.Cgroup(t, "one"), harness.Cgroup(t, "two"), harness.Cgroup(t, "three")
	for i, dir := range []string{one, two} {
		port := strconv.Itoa(16001 + i)
		greet(s.a.Listen("tcp", ":"+port, nil), "outbound-"+strconv.Itoa(i+1), false)
		s.apply("--name", "s"+strconv.Itoa(i+1), "--cgroup", dir, "--outbound-port", port, "--dns-port", "0",
			"--inbound-port", strconv.Itoa(16101+i), "--include-inbound-ports", strconv.Itoa(8080+1010*i), "--sidecar-uid", "1337")
		greet(s.a.Listen("tcp", ":"+strconv.Itoa(16101+i), nil), "inbound-"+strconv.Itoa(i+1), false)
	}
	for dir, want := range map[string]string{one: "outbound-1 " + addr, two: "outbound-2 " + addr, three: "b " + addr + " from " + s.a.IPv4.String()} {
		if got := s.dialIn(s.a, dir, addr); got != want {
			t.Errorf("%s: %q, want %q", dir, got, want)
		}
	}
	if got, want := s.dialIn(s.a, one, addr, "-uid", "1337"), "b "+addr+" from "+s.a.IPv4.String(); got != want {
		t.Errorf("the sidecar in its application's cgroup: %q, want %q", got, want)
	}
	for port, want := range map[string]string{"8080": "inbound-1 ", "9090": "inbound-2 "} {
		to := net.JoinHostPort(s.a.IPv4.String(), port)
		if got := s.dial(s.b, to); got != want+to {
			t.Errorf("inbound: %q, want %q", got, want+to)
		}
	}
	s.a.Must(s.bin, "redirect", "cleanup", "--name", "s1")
	if got, want := s.dialIn(s.a, two, addr), "outbound-2 "+addr; got != want {
		t.Errorf("after the other's cleanup: %q, want %q", got, want)
	}
	s.a.Must(s.bin, "redirect", "cleanup", "--all")
	if after := network(t, s.a); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestRedirectionWithoutARoute: virtual addresses are reached on a host whose network leads nowhere else.
func TestRedirectionWithoutARoute(t *testing.T) {
	s := newStreet(t)
	for _, family := range []string{"-4", "-6"} {
		s.a.Must("ip", family, "route", "del", "default")
	}
	before := network(t, s.a)
	s.apply()
	for _, addr := range []string{"240.1.2.3:80", "247.255.0.1:80", "[fd53:616c:6c79:1::1]:80"} {
		if got, want := s.dial(s.a, addr), "outbound "+addr; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := s.dial(s.a, "192.0.2.1:80"); !strings.Contains(got, "unreachable") {
		t.Errorf("an address that is not virtual: %q", got)
	}
	s.a.Must(s.bin, "redirect", "cleanup")
	if after := network(t, s.a); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestRedirectionWithoutAnAddress: so they are on a host that has the loopback interface alone.
func TestRedirectionWithoutAnAddress(t *testing.T) {
	s := newStreet(t)
	s.a.Must("ip", "addr", "flush", "dev", "eth0")
	s.a.Must("ip", "link", "set", "eth0", "down")
	before := network(t, s.a)
	s.apply()
	for _, addr := range []string{"240.1.2.3:80", "[fd53:616c:6c79:1::1]:80"} {
		if got, want := s.dial(s.a, addr, "-timeout", "5s"), "outbound "+addr; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	s.a.Must(s.bin, "redirect", "cleanup")
	if after := network(t, s.a); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestRedirectionWithoutIPv6: where it is disabled, IPv4 is redirected; what was added before that is removed.
func TestRedirectionWithoutIPv6(t *testing.T) {
	s := newStreet(t)
	ipv6 := func(off string) {
		s.a.Must("sh", "-c", "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo "+off+" > $f; done")
	}
	addr := net.JoinHostPort(s.b.IPv4.String(), "8080")
	ipv6("1")
	for _, mode := range []string{"redirect", "tproxy"} {
		before := network(t, s.a)
		s.apply("--inbound-mode", mode)
		if got, want := s.dial(s.a, addr), "outbound "+addr; got != want {
			t.Errorf("%s: %q, want %q", mode, got, want)
		}
		s.a.Must(s.bin, "redirect", "cleanup")
		if after := network(t, s.a); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
	before := network(t, s.a)
	ipv6("0")
	s.apply("--inbound-mode", "tproxy")
	ipv6("1")
	s.a.Must(s.bin, "redirect", "cleanup")
	if after := network(t, s.a); after != before {
		t.Errorf("disabled in between: before:\n%s\nafter:\n%s", before, after)
	}
}

// TestRedirectionNeedsBothIptables: half of the traffic would pass without ip6tables.
func TestRedirectionNeedsBothIptables(t *testing.T) {
	s := newStreet(t)
	for _, backend := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(backend, func(t *testing.T) {
			s := *s
			s.t = t
			needBackend(t, backend)
			dir := t.TempDir()
			for _, what := range []string{"-restore", "-save"} {
				program, err := exec.LookPath(backend + what)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(program, dir+"/"+backend+what); err != nil {
					t.Fatal(err)
				}
			}
			before := network(t, s.a)
			apply := []string{"PATH=" + dir, s.bin, "redirect", "apply", "--backend", backend}
			if out := s.a.Run("env", apply...); out.Code == 0 || !strings.Contains(out.Stderr, "install ip6tables, or disable IPv6") {
				t.Errorf("exit code %d: %s", out.Code, out.Stderr)
			}
			if after := network(t, s.a); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			alone := harness.NewNetwork(t).Host("alone")
			alone.Must("sh", "-c", "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $f; done")
			alone.Must("env", apply...)
			alone.Must("env", "PATH="+dir, s.bin, "redirect", "cleanup")
		})
	}
}

// TestRedirectionByLongLists: the lists are as long as they may be, and more than the kernel's answers to each of their
// entries would fit into a socket.
func TestRedirectionByLongLists(t *testing.T) {
	s := newStreet(t)
	users, groups, links, ports := make([]string, 256), make([]string, 256), make([]string, 100), make([]string, 100)
	for i := range users {
		users[i], groups[i] = strconv.Itoa(3000+i), strconv.Itoa(500+2*i)
	}
	for i := range links {
		links[i], ports[i] = fmt.Sprintf("eth%d", 100+i), strconv.Itoa(20000+2*i)
	}
	flags := []string{"--exclude-uids", strings.Join(users, ","), "--sidecar-gid", strings.Join(groups, ","), "--exclude-interfaces", strings.Join(links, ","),
		"--exclude-outbound-ports", strings.Join(ports, ",")}
	to := net.JoinHostPort(s.b.IPv4.String(), "8080")
	direct, redirected := "b "+to+" from "+s.a.IPv4.String(), "outbound "+to
	for _, backend := range []string{"nftables", "iptables-nft", "iptables-legacy"} {
		t.Run(backend, func(t *testing.T) {
			s := *s
			s.t = t
			needBackend(t, backend)
			before := network(t, s.a)
			s.apply(append(flags, "--backend", backend)...)
			for _, c := range []struct{ flag, id, want string }{
				{"-uid", "3000", direct}, {"-uid", "3255", direct}, {"-uid", "3256", redirected}, {"-uid", "1337", redirected},
				{"-gid", "1010", direct}, {"-gid", "1011", redirected},
			} {
				if got := s.dial(s.a, to, c.flag, c.id); got != c.want {
					t.Errorf("%s %s: %q, want %q", c.flag, c.id, got, c.want)
				}
			}
			if out := s.a.Must(s.bin, "redirect", "show"); strings.Contains(out, "CHANGED") {
				t.Errorf("show says %q", out)
			}
			s.a.Must(s.bin, "redirect", "cleanup")
			if after := network(t, s.a); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
	s.apply(flags...)
	s.a.Must("nft", "delete", "element", "inet", "sallyport", "excluded-users", "{ 3000 }")
	if out := s.a.Must(s.bin, "redirect", "show"); !strings.Contains(out, "set excluded-users has 255 entries in place of 256") {
		t.Errorf("with an element less show says %q", out)
	}
}

// TestRedirectionOfACgroupMadeAnew: rules are of the cgroup and not of its path, and show says when they have lost it.
func TestRedirectionOfACgroupMadeAnew(t *testing.T) {
	s := newStreet(t)
	dir := harness.Cgroup(t, "parent") + "/app"
	t.Cleanup(func() { os.Remove(dir) })
	addr := net.JoinHostPort(s.b.IPv4.String(), "8080")
	for _, backend := range []string{"nftables", "iptables-nft"} {
		t.Run(backend, func(t *testing.T) {
			s := *s
			s.t = t
			needBackend(t, backend)
			says := func(want string) {
				t.Helper()
				if out := s.a.Must(s.bin, "redirect", "show"); want == "" && strings.Contains(out, "CHANGED") || !strings.Contains(out, want) {
					t.Errorf("show says %q, want %q", out, want)
				}
			}
			apply := func() {
				t.Helper()
				s.apply("--name", "app", "--cgroup", dir, "--inbound-mode", "off", "--backend", backend)
				says("")
				if got, want := s.dialIn(s.a, dir, addr), "outbound "+addr; got != want {
					t.Errorf("%q, want %q", got, want)
				}
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(os.Mkdir(dir, 0o755))
			apply()
			harness.Eventually(t, 10*time.Second, "the cgroup is removed", func() error { return syscall.Rmdir(dir) })
			says(dir + " is gone")
			must(os.Mkdir(dir, 0o755))
			says(dir + " was made anew")
			apply()
			s.a.Must(s.bin, "redirect", "cleanup", "--all")
			harness.Eventually(t, 10*time.Second, "the cgroup is removed", func() error { return syscall.Rmdir(dir) })
		})
	}
}

// TestRedirectionByAnotherVersion: its rules can be seen, replaced and removed.
func TestRedirectionByAnotherVersion(t *testing.T) {
	s := newStreet(t)
	before := network(t, s.a)
	theirs := []string{
		"add table inet sallyport", "add chain inet sallyport later", "add chain inet sallyport owner",
		`add rule inet sallyport owner return comment "sallyport 1/1: outbound-port=15001|color=blue|sidecar-uid=1337"`,
	}
	for _, remedy := range [][]string{{"apply"}, {"cleanup"}, {"cleanup", "--all"}} {
		for _, line := range theirs {
			s.a.Must("nft", line)
		}
		if out := s.a.Must(s.bin, "redirect", "show"); !strings.Contains(out, "made by another version of sallyport: this one does not know color") {
			t.Errorf("show says %q", out)
		}
		s.a.Must(s.bin, append([]string{"redirect"}, remedy...)...)
		s.a.Must(s.bin, "redirect", "cleanup")
		if after := network(t, s.a); after != before {
			t.Errorf("%s: before:\n%s\nafter:\n%s", remedy, before, after)
		}
	}
}

// TestRedirectionOfCgroupsThatAreGone: with them in a legacy table the kernel refuses every change of it. Whatever
// sallyport does next puts an end to that.
func TestRedirectionOfCgroupsThatAreGone(t *testing.T) {
	s := newStreet(t)
	needBackend(t, "iptables-legacy")
	parent := harness.Cgroup(t, "parent")
	before := network(t, s.a)
	apply := []string{"--inbound-mode", "off", "--backend", "iptables-legacy"}
	change := func() harness.Output {
		return s.a.Run("iptables-legacy", "-w", "-t", "nat", "-A", "OUTPUT", "-d", "192.0.2.1", "-j", "ACCEPT")
	}
	for _, remedy := range [][]string{
		{"cleanup", "--all"}, {"cleanup", "--name", "one"}, append([]string{"apply"}, apply...), append([]string{"apply", "--name", "one", "--cgroup", parent}, apply...),
	} {
		for _, name := range []string{"one", "two"} {
			dir := parent + "/" + name
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(dir) })
			s.apply(append([]string{"--name", name, "--cgroup", dir}, apply...)...)
		}
		for _, name := range []string{"one", "two"} {
			harness.Eventually(t, 10*time.Second, "the cgroup is removed", func() error { return syscall.Rmdir(parent + "/" + name) })
		}
		if out := change(); out.Code == 0 {
			t.Fatal("the table takes changes: there is nothing to put right")
		}
		s.a.Must(s.bin, append([]string{"redirect"}, remedy...)...)
		if out := change(); out.Code != 0 {
			t.Errorf("after %q: %s", remedy, out.Stderr)
		}
		s.a.Must("iptables-legacy", "-w", "-t", "nat", "-D", "OUTPUT", "-d", "192.0.2.1", "-j", "ACCEPT")
		s.a.Must(s.bin, "redirect", "cleanup", "--all")
		if after := network(t, s.a); after != before {
			t.Errorf("after %q: before:\n%s\nafter:\n%s", remedy, before, after)
		}
	}
}

// TestRedirectionByTwoNamesOfIptables: the tables that iptables-nft has made go with the last of our rule sets, whichever
// that is; what is in one of them keeps that one only.
func TestRedirectionByTwoNamesOfIptables(t *testing.T) {
	s := newStreet(t)
	needBackend(t, "iptables-nft")
	before := network(t, s.a)
	cgroup := harness.Cgroup(t, "both")
	apply := func() {
		t.Helper()
		for _, name := range []string{"one", "two"} {
			s.apply("--name", name, "--cgroup", cgroup, "--inbound-mode", "tproxy", "--include-inbound-ports", "80", "--backend", "iptables-nft")
		}
	}
	for _, order := range [][]string{{"one", "two"}, {"two", "one"}} {
		apply()
		for _, name := range order {
			s.a.Must(s.bin, "redirect", "cleanup", "--name", name)
		}
		if after := network(t, s.a); after != before {
			t.Errorf("%s: before:\n%s\nafter:\n%s", order, before, after)
		}
	}
	apply()
	s.a.Must("iptables-nft", "-t", "nat", "-A", "OUTPUT", "-d", "192.0.2.1", "-j", "ACCEPT")
	s.a.Must(s.bin, "redirect", "cleanup", "--all")
	if tables := s.a.Must("nft", "list", "tables"); tables != "table ip nat\n" {
		t.Errorf("beside a rule of somebody else's stay %q", tables)
	}
}

// TestRedirectionLeavesQuestionsOfOthersAlone: of the DNS flows that are tracked only this host's are forgotten, and
// only when its rules change.
func TestRedirectionLeavesQuestionsOfOthersAlone(t *testing.T) {
	if _, err := exec.LookPath("conntrack"); err != nil {
		harness.NotRun(t, "conntrack is not installed (Debian: conntrack)")
	}
	s := newStreet(t)
	tracked := func() (out string) {
		s.a.Do(func() error {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
			for _, f := range flows {
				if f.Forward.DstPort == 53 {
					out += f.Forward.SrcIP.String() + " "
				}
			}
			return err
		})
		return out
	}
	track := func(from string) {
		s.a.Must("conntrack", "-I", "-p", "udp", "-s", from, "-d", "192.0.2.53", "--sport", "5353", "--dport", "53", "-t", "600")
	}
	for _, c := range []struct{ args, own, others string }{
		{"cleanup", "stay", "stay"}, {"apply", "go", "stay"}, {"apply", "stay", "stay"}, {"apply --inbound-mode tproxy", "go", "stay"}, {"cleanup --all", "go", "stay"}, {"cleanup --all", "stay", "stay"},
	} {
		s.a.Run("conntrack", "-F")
		track(s.a.IPv4.String())
		track("172.17.0.2")
		s.a.Must(s.bin, append([]string{"redirect"}, strings.Fields(c.args)...)...)
		there := tracked()
		if got := strings.Contains(there, s.a.IPv4.String()+" "); got != (c.own == "stay") {
			t.Errorf("%s: its own should %s: %s", c.args, c.own, there)
		}
		if !strings.Contains(there, "172.17.0.2 ") {
			t.Errorf("%s: another's is gone: %s", c.args, there)
		}
	}
}

// TestRedirectionOfAStubResolver: the resolver of the host asks as a user of its own, which is redirected like all
// others. Where the sidecar knows its servers, or its user is excluded, names are found; otherwise that is said at once.
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
		{"nobody knows its servers", "", nil, "SERVFAIL"},
		{"its servers are known", "nameserver " + server, nil, "NOERROR 192.0.2.7"},
		{"its user is excluded", "", []string{"--exclude-uids", "101"}, "NOERROR 192.0.2.7"},
		{"its servers are excluded", "", []string{"--exclude-outbound-cidrs", server}, "NOERROR 192.0.2.7"},
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

// TestRedirectionIsHeldUpByNobody: what users may lock is not what we wait for.
func TestRedirectionIsHeldUpByNobody(t *testing.T) {
	s := newStreet(t)
	s.a.Start(holder()).WaitLog("held")
	start := time.Now()
	s.apply()
	s.a.Must(s.bin, "redirect", "cleanup")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("apply and cleanup took %s", took)
	}
}

// TestRedirectionStandsBehindPublishedPorts: where others add to PREROUTING since, show says so, and apply moves it.
func TestRedirectionStandsBehindPublishedPorts(t *testing.T) {
	s := newStreet(t)
	for _, backend := range []string{"iptables-nft", "iptables-legacy"} {
		needBackend(t, backend)
		rule := []string{"-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "7070", "-j", "REDIRECT", "--to-ports", "8080"}
		to := net.JoinHostPort(s.a.IPv4.String(), "7070")
		apply := func(want string) {
			t.Helper()
			s.apply("--backend", backend)
			if got := s.dial(s.b, to); got != want+" "+to+" from "+s.b.IPv4.String() {
				t.Errorf("%s: %q, want %s", backend, got, want)
			}
			if out := s.a.Must(s.bin, "redirect", "show"); strings.Contains(out, "CHANGED") {
				t.Errorf("%s: show says %q", backend, out)
			}
		}
		apply("inbound")
		s.a.Must(backend, rule...)
		if out := s.a.Must(s.bin, "redirect", "show"); !strings.Contains(out, "behind ours, which so takes what is meant for it: -A PREROUTING") {
			t.Errorf("%s: show says %q", backend, out)
		}
		apply("a")
		rule[2] = "-D"
		s.a.Must(backend, rule...)
		s.a.Must(s.bin, "redirect", "cleanup")
	}
}

// TestRedirectionRefused: one line that says what to do, and the network as it was.
func TestRedirectionRefused(t *testing.T) {
	s := newStreet(t)
	s.a.Must("nft", "add", "table", "inet", "sallyport-theirs")
	s.a.Must("nft", "add", "table", "inet", "other")
	s.a.Must("nft", "add chain inet other c { type nat hook output priority -100; }")
	needBackend(t, "iptables-legacy")
	s.a.Must("iptables-legacy", "-t", "nat", "-N", "sly.legacy.output")
	before := network(t, s.a)
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"chains of somebody else in another backend", []string{s.bin, "redirect", "apply", "--name", "legacy", "--cgroup", harness.Cgroup(t, "legacy"), "--inbound-mode", "off"}, "sly.legacy.output"},
		{"not root", []string{"setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", s.bin, "redirect", "apply"}, "CAP_NET_ADMIN"},
		{"not root, cleaning", []string{"setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", s.bin, "redirect", "cleanup"}, ""},
		{"a table of somebody else", []string{s.bin, "redirect", "apply", "--name", "theirs", "--cgroup", harness.Cgroup(t, "theirs"), "--inbound-mode", "off", "--backend", "nftables"}, "sallyport-theirs"},
		{"a cgroup that is not there", []string{s.bin, "redirect", "apply", "--name", "x", "--cgroup", "/no/such/group", "--inbound-mode", "off"}, "/no/such/group"},
		{"a port that is none", []string{s.bin, "redirect", "apply", "--outbound-port", "70000"}, "70000"},
		{"a network that is none", []string{s.bin, "redirect", "apply", "--exclude-outbound-cidrs", "10.0.0.0/40"}, "10.0.0.0/40"},
		{"a mode that is none", []string{s.bin, "redirect", "apply", "--inbound-mode", "ebpf"}, "must be redirect, tproxy or off"},
		{"two ports the same", []string{s.bin, "redirect", "apply", "--inbound-port", "15001"}, "must differ"},
	} {
		out := s.a.Run(c.args[0], c.args[1:]...)
		if c.want == "" {
			continue // whether there is something to clean can be known or not
		}
		if out.Code == 0 || !strings.Contains(out.Stderr, c.want) || strings.Count(strings.TrimSpace(out.Stderr), "\n") > 0 {
			t.Errorf("%s: exit code %d\n%s%s", c.name, out.Code, out.Stdout, out.Stderr)
		}
	}
	if after := network(t, s.a); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	s.apply()
	s.a.Must(s.bin, "redirect", "cleanup", "--all")
	if after := network(t, s.a); after != before {
		t.Errorf("cleanup beside tables of others: before:\n%s\nafter:\n%s", before, after)
	}
}

// TestRedirectionIsWhatDryRunPrints, rule by rule.
func TestRedirectionIsWhatDryRunPrints(t *testing.T) {
	s := newStreet(t)
	for _, flags := range [][]string{
		nil,
		{"--inbound-mode", "tproxy"},
		{"--exclude-uids", "0,101,70000", "--sidecar-gid", "5,6,7", "--exclude-interfaces", "docker0,eth1,a", "--exclude-outbound-cidrs", "192.0.2.0/24,198.51.100.7"},
		{"--include-uids", "1000,2000", "--include-interfaces", "eth0,eth1", "--include-inbound-ports", "80,443"},
	} {
		script := s.a.Must(s.bin, append([]string{"redirect", "apply", "--dry-run"}, flags...)...)
		file := t.TempDir() + "/rules.nft"
		if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
			t.Fatal(err)
		}
		s.a.Must("nft", "-f", file)
		printed := s.a.Must("nft", "list", "ruleset")
		s.a.Must("nft", "delete", "table", "inet", "sallyport")
		s.apply(flags...)
		if applied := s.a.Must("nft", "list", "ruleset"); applied != printed {
			t.Errorf("%s: --dry-run says:\n%s\napply does:\n%s", flags, printed, applied)
		}
		s.a.Must(s.bin, "redirect", "cleanup")
	}
}
