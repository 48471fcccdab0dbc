package integration

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/integration/harness"
)

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
