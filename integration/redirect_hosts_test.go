package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/integration/harness"
)

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
	asBefore(t, s.a, before)
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
	asBefore(t, s.a, before)
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
		asBefore(t, s.a, before)
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
			asBefore(t, s.a, before)
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
			asBefore(t, s.a, before)
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
