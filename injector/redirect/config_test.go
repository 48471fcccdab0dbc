package redirect

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestBadConfigurationsAreToldByTheirFlags(t *testing.T) {
	const good = "outbound-port=15001 inbound-port=15006 inbound-mode=redirect dns-port=15053 sidecar-uid=1337"
	for _, c := range []struct{ text, want string }{
		{"", "nothing is to be redirected"},
		{"outbound-port=15001", "--sidecar-uid"},
		{"inbound-mode=redirect", "--inbound-port 0"},
		{good + " inbound-mode=maybe", `--inbound-mode "maybe"`},
		{good + " dns-to=nobody", `--dns-to "nobody"`},
		{good + " backend=ebpf", `--backend "ebpf"`},
		{good + " inbound-port=15001", "--outbound-port and --inbound-port are both 15001"},
		{good + " dns-port=15006", "--inbound-port and --dns-port are both 15006"},
		{good + " name=orders", "--cgroup and --name go together"},
		{good + " cgroup=orders include-inbound-ports=80", "--cgroup and --name go together"},
		{good + " cgroup=orders name=orders", "--include-inbound-ports"},
		{good + " cgroup=/ name=orders include-inbound-ports=80", "every process"},
		{good + " cgroup=a/../b name=orders include-inbound-ports=80", "not a cgroup"},
		{good + " cgroup=a name=a include-inbound-ports=80 sidecar-cgroup=a", "the same as --cgroup"},
		{good + " name=-x cgroup=a include-inbound-ports=80", `--name "-x"`},
		{good + " name=" + strings.Repeat("x", 49) + " cgroup=a include-inbound-ports=80", "1 to 48"},
		{good + " sidecar-mark=1338", "are used for TPROXY"},
		{good + " include-uids=1337", "the sidecar's own"},
		{good + " exclude-interfaces=a%20b", "not the name of an interface"},
		{good + " exclude-interfaces=abcdefghijklmnop", "not the name of an interface"},
		{good + " exclude-uids=" + strings.TrimSuffix(strings.Repeat("1,", 3)+manyIDs(300), ","), "at most 256"},
	} {
		cfg, err := Parse(c.text)
		if err != nil {
			t.Fatalf("%q: %v", c.text, err)
		}
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
}

func manyIDs(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(list([]int{i}) + ",")
	}
	return b.String()
}

func TestBadValuesAreTold(t *testing.T) {
	for flag, values := range map[string][]string{
		"outbound-port":          {"", "-1", "65536", "http"},
		"sidecar-mark":           {"0", "x", "0x100000000"},
		"sidecar-uid":            {"no-such-user-here", "-1", "4294967296"},
		"sidecar-gid":            {"no-such-group-here"},
		"exclude-outbound-ports": {"0", "80-", "90-80", "http", "65536"},
		"exclude-outbound-cidrs": {"10.0.0.0/33", "10.0.0", "fe80::1%eth0", "::ffff:10.0.0.1", "::ffff:10.0.0.0/104"},
	} {
		for _, v := range values {
			var c Config
			if err := field(flag).Set(&c, v); err == nil {
				t.Errorf("--%s %q was taken: %s", flag, v, c.String())
			} else if v != "" && !strings.Contains(err.Error(), v) {
				t.Errorf("--%s %q: %v does not say what was seen", flag, v, err)
			}
		}
	}
}

func TestListsAreJoined(t *testing.T) {
	ports, err := ParsePorts("90-100, 80,81,95-110,65535,1")
	if err != nil {
		t.Fatal(err)
	}
	if got := list(joinPorts(ports)); got != "1,80-81,90-110,65535" {
		t.Error(got)
	}
	nets, err := ParseCIDRs("fd00::/8,10.1.2.3,10.0.0.0/8,192.0.2.1,0.0.0.0/32,fd12::1")
	if err != nil {
		t.Fatal(err)
	}
	if got := list(joinPrefixes(nets)); got != "0.0.0.0/32,10.0.0.0/8,192.0.2.1/32,fd00::/8" {
		t.Error(got)
	}
}

// Whatever a list says, the intervals given to the kernel are in order, do not overlap or touch, and hold the same.
func FuzzIntervals(f *testing.F) {
	f.Add("10.0.0.0/8,11.0.0.0/8,255.255.255.255,0.0.0.0/1")
	f.Add("::/0,fd00::1")
	f.Add("128.0.0.0/1,0.0.0.0/1")
	f.Fuzz(func(t *testing.T, list string) {
		all, err := ParseCIDRs(list)
		if err != nil {
			t.Skip()
		}
		for _, v6 := range []bool{false, true} {
			nets := ofFamily(joinPrefixes(all), v6)
			var raw []interval
			for _, p := range nets {
				i := interval{from: p.Addr().AsSlice()}
				if next := lastOf(p).Next(); next.IsValid() {
					i.after = next.AsSlice()
				}
				raw = append(raw, i)
			}
			joined := joinIntervals(raw)
			for k, i := range joined {
				if i.after != nil && string(i.after) <= string(i.from) || i.after == nil && k != len(joined)-1 {
					t.Fatalf("%s: interval %d is empty or not last: %x to %x", list, k, i.from, i.after)
				}
				if k > 0 && string(joined[k-1].after) >= string(i.from) {
					t.Fatalf("%s: intervals %d and %d touch", list, k-1, k)
				}
			}
			for _, p := range nets {
				for _, a := range []netip.Addr{p.Addr(), lastOf(p), p.Addr().Prev(), lastOf(p).Next()} {
					if !a.IsValid() {
						continue
					}
					want := slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
					key := string(a.AsSlice())
					if got := slices.ContainsFunc(joined, func(i interval) bool {
						return string(i.from) <= key && (i.after == nil || key < string(i.after))
					}); got != want {
						t.Fatalf("%s: %s in the set: %v, want %v", list, a, got, want)
					}
				}
			}
		}
	})
}

func TestCgroupsAreFoundByTheMounts(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/a b/c", 0o755); err != nil {
		t.Fatal(err)
	}
	info := "25 30 0:23 / /sys rw - sysfs sysfs rw\n" +
		"31 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"41 31 0:38 / " + dir + " rw,relatime shared:9 - cgroup2 cgroup2 rw\n" +
		"42 31 0:38 /a\\040b " + dir + "/a\\040b rw - cgroup2 cgroup2 rw\n"
	mounts, err := cgroupMounts(strings.NewReader(info))
	if err != nil || len(mounts) != 2 || mounts[0].point != dir || mounts[1].root != "/a b" {
		t.Fatalf("%v %v", mounts, err)
	}
	for _, path := range []string{dir + "/a b/c", "/a b/c", "a b/c/"} {
		g, err := findCgroup(mounts, path)
		if err != nil || g.level != 2 || g.path != "a b/c" || g.dir != dir+"/a b/c" || g.id == 0 {
			t.Errorf("%s: %+v %v", path, g, err)
		}
	}
	if g, err := findCgroup(mounts[1:], "/a b/c"); err != nil || g.dir != dir+"/a b/c" || g.level != 2 {
		t.Errorf("by a mount of a part: %+v %v", g, err)
	}
	for path, want := range map[string]string{dir: "every process", "/": "every process", "/x": "make it first"} {
		if _, err := findCgroup(mounts, path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if _, err := findCgroup(mounts[1:], "/elsewhere"); err == nil || !strings.Contains(err.Error(), "not below") {
		t.Errorf("outside of the mount: %v", err)
	}
}

// A mount that lies outside of this cgroup namespace does not show how deep a cgroup is.
func TestCgroupsOutsideOfTheNamespaceAreRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/host/a", 0o755); err != nil {
		t.Fatal(err)
	}
	above := cgroupMount{root: "/../..", point: dir + "/host"}
	own := cgroupMount{root: "/", point: dir}
	for _, c := range []struct {
		mounts []cgroupMount
		path   string
		ok     bool
	}{
		{[]cgroupMount{above}, dir + "/host/a", false}, {[]cgroupMount{above}, "/a", false}, {[]cgroupMount{above, own}, dir + "/host/a", false},
		{[]cgroupMount{above, own}, "/host/a", true}, {[]cgroupMount{{root: "/..a", point: dir}}, dir + "/host/a", true},
	} {
		if _, err := findCgroup(c.mounts, c.path); (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "apply from the host's cgroup namespace") {
			t.Errorf("%v: %s: %v", c.mounts, c.path, err)
		}
	}
}

// What iptables-save prints is read back: which chains are ours, who calls them, whose they are.
func TestWhatIptablesSavePrintsIsRead(t *testing.T) {
	all := parseSave(`# Generated
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:sallyport.output - [0:0]
:sallyport.owner - [0:0]
:sallyport.prerouting - [0:0]
:sly.orders.prerouting - [0:0]
:sly.orders.output - [0:0]
-A PREROUTING -m comment --comment sallyport -j sallyport.prerouting
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -m comment --comment sallyport -j sly.orders.prerouting
-A OUTPUT -m comment --comment sallyport -j sallyport.output
-A OUTPUT -m comment --comment sallyport -j sly.orders.output
-A sallyport.output -m owner --uid-owner 1337 -m comment --comment "the sidecar\'s own" -j RETURN
-A sallyport.owner -m comment --comment "sallyport 1/1: outbound-port=15001|sidecar-uid=1337" -j RETURN
-A sallyport.owner -m comment --comment "sallyport fresh: ip|nat,ip6|nat" -j RETURN
COMMIT
`, false, "nat")
	s := all.of("sallyport.")
	if got := strings.Join(s.chains, " "); got != "sallyport.output sallyport.owner sallyport.prerouting" {
		t.Error("chains:", got)
	}
	if got := strings.Join(deletions(s.jumps), ";"); got != "-D PREROUTING -m comment --comment sallyport -j sallyport.prerouting;-D OUTPUT -m comment --comment sallyport -j sallyport.output" {
		t.Error("jumps:", got)
	}
	if got := s.behind["sallyport.prerouting"]; !strings.HasSuffix(got, "-j DOCKER") {
		t.Error("behind ours:", got)
	}
	if others := all.of("sly.orders."); len(others.behind) > 0 {
		t.Error("behind the last:", others.behind)
	}
	if o, ok := readOwner(s.comments("sallyport.")); !ok || o.config.OutboundPort != 15001 {
		t.Errorf("owner: %+v %v", o, ok)
	}
	if got := notes([]saved{s}); !slices.Equal(got, []string{"ip6|nat", "ip|nat"}) {
		t.Error("note:", got)
	}
}

// What iptables-restore says of a failure is shortened to its reason, with the line that it is about.
func TestErrorsOfIptablesSayWhichRule(t *testing.T) {
	input := "*nat\n:x - [0:0]\n-A x -m cgroup --path \"no/such\" -j RETURN\nCOMMIT\n"
	for said, want := range map[string]string{
		"iptables-nft-restore v1.8.9 (nf_tables): \nline 3: RULE_APPEND failed (Invalid argument): rule in chain x\n": `line 3: RULE_APPEND failed (Invalid argument): rule in chain x (-A x -m cgroup --path "no/such" -j RETURN, in table nat)`,
		"iptables-restore: line 4 failed\n": "iptables-restore: line 4 failed (COMMIT, in table nat)",
		"iptables-restore v1.8.9 (legacy): Couldn't load match `cgroup':No such file or directory\n\nError occurred at line: 3\nTry `iptables-restore -h'\n": "Couldn't load match `cgroup':No such file or directory (-A x -m cgroup --path \"no/such\" -j RETURN, in table nat)",
		"# Warning: iptables-legacy tables present\nAnother app is currently holding the xtables lock.\n":                                                    "Another app is currently holding the xtables lock.",
		"line 99 failed": "line 99 failed",
		"":               "it said nothing",
	} {
		if got := reason(said, input); got != want {
			t.Errorf("%q: %q, want %q", said, got, want)
		}
	}
}

func TestAHostThatAsksItself(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	for text, want := range map[string]bool{
		"nameserver 127.0.0.53\n":                          true,
		"nameserver 127.0.0.11\nnameserver ::1\n":          true,
		"nameserver 127.0.0.1\nnameserver 192.0.2.1\n":     false,
		"nameserver 192.0.2.1\n":                           false,
		"search example.org\n":                             false,
		"nameserver fe80::1%lo\nnameserver 203.0.113.77\n": false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := onlyLocal(file); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
	if onlyLocal(file + ".none") {
		t.Error("a file that is not there")
	}
}
