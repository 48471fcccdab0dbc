package integration

import (
	"bufio"
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

// asBefore fails the test where a host's network is not what it was.
func asBefore(t *testing.T, h *harness.Host, before string) {
	t.Helper()
	if after := network(t, h); after != before {
		t.Errorf("%s before:\n%s\nafter:\n%s", h.Name, before, after)
	}
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
				asBefore(t, s.a, before)
				if out := s.a.Must(s.bin, "redirect", "show"); !strings.Contains(out, "nothing is redirected") {
					t.Errorf("after cleanup show says %q", out)
				}
			})
		}
	}
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
	asBefore(t, s.a, before)
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
	asBefore(t, s.a, before)
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
