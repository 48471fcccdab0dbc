package redirect

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// plans are the configurations of the golden files, in their text form.
var plans = map[string]string{
	"everything":    "outbound-port=15001 inbound-port=15006 inbound-mode=redirect dns-port=15053 health-port=15021 sidecar-uid=1337",
	"tproxy":        "outbound-port=15001 inbound-port=15006 inbound-mode=tproxy dns-port=15053 health-port=15021 sidecar-uid=1337 sidecar-mark=1337",
	"outbound-only": "outbound-port=15001 sidecar-gid=1337,2000",
	"inbound-only":  "inbound-port=15006 inbound-mode=redirect",
	"dns-only":      "dns-port=15053 sidecar-mark=0x539",
	"dns-local":     "outbound-port=15001 dns-port=15053 dns-to=local sidecar-uid=1337",
	"one-cgroup": "name=orders cgroup=/system.slice/orders.service outbound-port=15001 inbound-port=15006 inbound-mode=redirect dns-port=15053 " +
		"sidecar-cgroup=/system.slice/orders-sidecar.service include-inbound-ports=8080,8443",
	"one-cgroup-tproxy": "name=orders-of-the-night-shift cgroup=/sys/fs/cgroup/unified/orders outbound-port=15001 inbound-port=15006 inbound-mode=tproxy " +
		"sidecar-mark=1337 include-inbound-ports=8080",
	"exclusions": "outbound-port=15001 inbound-port=15006 inbound-mode=redirect dns-port=15053 health-port=15021 sidecar-uid=1337 " +
		"exclude-outbound-ports=22,3306,8000-8100 exclude-inbound-ports=22,9000-9001 exclude-outbound-cidrs=10.0.0.0/8,192.0.2.7,fd00::/8 " +
		"exclude-uids=0,101 exclude-interfaces=docker0,eth1",
	"inclusions": "outbound-port=15001 inbound-port=15006 inbound-mode=redirect dns-port=15053 health-port=15021 sidecar-uid=1337 " +
		"include-outbound-ports=80,443 include-inbound-ports=8080-8090 include-outbound-cidrs=10.0.0.0/9,10.128.0.0/9,2001:db8::/32 " +
		"include-uids=1000,1001 include-interfaces=eth0,eth1",
	"dns-excluded": "outbound-port=15001 dns-port=15053 sidecar-uid=1337 exclude-outbound-ports=50-60",
}

func TestPlansAreAsInTheGoldenFiles(t *testing.T) {
	var files []string
	for name, text := range plans {
		r := plan(t, text)
		for suffix, printed := range map[string]string{".nft": r.NFT(), ".v4": r.IPTables(false), ".v6": r.IPTables(true)} {
			file := filepath.Join("testdata", name+suffix)
			files = append(files, file)
			golden(t, file, printed)
		}
	}
	there, _ := filepath.Glob("testdata/*")
	for _, file := range there {
		if !slices.Contains(files, file) {
			t.Errorf("%s belongs to no plan: remove it", file)
		}
	}
}

func golden(t *testing.T, file, printed string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(printed), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != printed {
		t.Errorf("%s (go test ./injector/redirect -update writes it): want\n%s\nhave\n%s", file, want, printed)
	}
}

func plan(t *testing.T, text string) *Ruleset {
	t.Helper()
	c, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Plan(c)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return r
}

// The sidecar's rules must be the first: whatever stands before them can send the sidecar to itself.
func TestTheSidecarIsLetThroughBeforeAnythingElse(t *testing.T) {
	for name, text := range plans {
		r := plan(t, text)
		c := r.chain("output")
		if c == nil {
			continue
		}
		last := c.Rules[len(c.Rules)-1]
		for i, rule := range c.Rules[:len(c.Rules)-1] {
			if rule.Why != "the sidecar's own" || !rule.Do.Return {
				t.Errorf("%s: rule %d of output is %q", name, i, rule.nft())
			}
		}
		if len(c.Rules) < 2 || last.Do.Jump != "outbound" {
			t.Errorf("%s: output ends in %q", name, last.nft())
		}
	}
}

// The guard asks what the NAT chains ask, in the same order, and lets nothing else through.
func TestTheGuardDecidesLikeTheRulesThatItGuards(t *testing.T) {
	for name, text := range plans {
		r := plan(t, text)
		for _, pair := range [][2]string{{"output", "g-out"}, {"prerouting", "g-in"}} {
			nat, guard := r.chain(pair[0]), r.chain(pair[1])
			if nat == nil || nat.Hook.Kind != "nat" {
				if guard != nil {
					t.Errorf("%s: %s guards no NAT", name, pair[1])
				}
				continue
			}
			if first := guard.Rules[0]; !first.DNAT || !first.Original || !first.Do.Return {
				t.Errorf("%s: %s begins with %q", name, pair[1], first.nft())
			}
			want, have := decisions(r, nat, nat.Rules), decisions(r, guard, guard.Rules[1:])
			if !slices.Equal(want, have) {
				t.Errorf("%s: %s decides\n%s\n%s decides\n%s", name, pair[0], strings.Join(want, "\n"), pair[1], strings.Join(have, "\n"))
			}
		}
	}
}

// decisions are the rules that the kernel goes through, with the redirection of TCP in the words of the guard.
func decisions(r *Ruleset, c *Chain, rules []Rule) (out []string) {
	for _, rule := range rules {
		if rule.UDP {
			continue
		}
		if rule.Do.Redirect != 0 {
			rule.Do = Verdict{Drop: true}
		}
		if next := rule.Do.Jump; next != "" {
			rule.Do.Jump = strings.TrimPrefix(next, "g-")
			out = append(out, rule.nft())
			out = append(out, decisions(r, c, r.chain(next).Rules)...)
			continue
		}
		out = append(out, rule.nft())
	}
	return out
}

func TestEveryJumpLeadsToAChainAndNoneBack(t *testing.T) {
	for name, text := range plans {
		r, names := plan(t, text), map[string]bool{}
		for _, c := range r.Chains {
			if names[c.Name] {
				t.Errorf("%s: two chains are called %s", name, c.Name)
			}
			names[c.Name] = true
			if c.Name == ownerChain {
				continue
			}
			seen := map[string]bool{c.Name: true}
			var walk func(*Chain)
			walk = func(c *Chain) {
				for i := range c.Rules {
					next := c.Rules[i].Do.Jump
					if next == "" {
						continue
					}
					if r.chain(next) == nil || next == ownerChain {
						t.Fatalf("%s: %s jumps to %s", name, c.Name, next)
					}
					if seen[next] && next == r.Chains[0].Name {
						t.Fatalf("%s: %s jumps back to %s", name, c.Name, next)
					}
					walk(r.chain(next))
				}
			}
			walk(&c)
			if len(iptablesPrefix(r.Config.Name)+c.Name) > 28 {
				t.Errorf("%s: %s is too long for iptables", name, iptablesPrefix(r.Config.Name)+c.Name)
			}
		}
	}
}

// The kernel's nft and iptables take the printed forms: without root this is as far as a unit test goes.
func TestNFTReadsThePlans(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("NOT RUN: needs nft(8) and root")
	}
	for name, text := range plans {
		if strings.Contains(text, "cgroup=") {
			continue // nft looks for the folder
		}
		c := exec.Command("unshare", "-n", nft, "-c", "-f", "-")
		c.Stdin = strings.NewReader(plan(t, text).NFT())
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, bytes.TrimSpace(out))
		}
	}
}

func TestOwnerCommentsGiveBackTheConfiguration(t *testing.T) {
	for name, text := range plans {
		r := plan(t, text)
		var comments []string
		for _, rule := range r.chain(ownerChain).Rules {
			if len(rule.Why) >= maxComment || strings.ContainsAny(rule.Why, "\"\\\n") {
				t.Errorf("%s: comment %q", name, rule.Why)
			}
			comments = append(comments, rule.Why)
		}
		back, ok := readOwner(append([]string{"something else"}, comments...))
		if !ok || back.config.String() != r.Config.String() || back.unknown != nil {
			t.Errorf("%s: %s came back as %s (%v)", name, r.Config.String(), back.config.String(), ok)
		}
		if len(comments) > 1 {
			if _, ok := readOwner(comments[:len(comments)-1]); ok {
				t.Errorf("%s: half of the comments were taken for all", name)
			}
		}
		if again := plan(t, back.config.String()); again.NFT() != r.NFT() {
			t.Errorf("%s: another plan from the same configuration", name)
		}
	}
	for _, foreign := range [][]string{nil, {"mine"}, {"sallyport ids: 1,2"}, {"sallyport 1/x: name=x"}, {"sallyport 2/2: name=x"}, {"sallyport 1/2: name=x"},
		{"sallyport 1/2: name=x", "sallyport 2/3: cgroup=x"}, {"sallyport 1/1: name=x", "sallyport 2/1: cgroup=x"}} {
		if _, ok := readOwner(foreign); ok {
			t.Errorf("%q was taken for ours", foreign)
		}
	}
}

// Another version of sallyport is still sallyport: its rules can be replaced and removed.
func TestWhatAnotherVersionWroteIsOurs(t *testing.T) {
	o, ok := readOwner([]string{"sallyport 1/2: name=orders|cgroup=/a|color=blue|outbound-port=http|dns-p", "sallyport 2/2: ort=15053|sidecar-uid=1337", "sallyport ids: 7,0"})
	if !ok || o.config.Name != "orders" || o.config.DNSPort != 15053 || o.ids != "7,0" {
		t.Errorf("%+v %v", o, ok)
	}
	if why := o.changed(); !strings.Contains(why, "does not know color, outbound-port") {
		t.Error(why)
	}
}
