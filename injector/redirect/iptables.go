package redirect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// iptables is the backend that runs iptables-restore: each table is one transaction, so packets meet the old rules or
// the new ones. What changes one table and then fails at the next is taken back.
type iptables struct{ variant Backend }

func (t *iptables) name() Backend { return t.variant }

// commandTime bounds one run of a program; -w lets it wait for the lock of iptables for half of that.
const commandTime = 20 * time.Second

// command returns the program for a family ("restore" or "save"), and "" where it is not installed.
func (t *iptables) command(v6 bool, what string) string {
	stem := "iptables"
	if v6 {
		stem = "ip6tables"
	}
	kind := strings.TrimPrefix(string(t.variant), "iptables-")
	if path, err := exec.LookPath(stem + "-" + kind + "-" + what); err == nil {
		return path
	}
	// Where there is but one variant it has the plain name, and says in its version which it is.
	path, err := exec.LookPath(stem + "-" + what)
	if err != nil {
		return ""
	}
	version, err := run(nil, path, "--version")
	isNFT := strings.Contains(version, "nf_tables")
	if err != nil || isNFT != (t.variant == IPTablesNFT) {
		return ""
	}
	return path
}

func run(input []byte, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	c := exec.CommandContext(ctx, path, args...)
	var out, said bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(input), &out, &said
	if err := c.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		text := said.String()
		if strings.Contains(text, "Permission denied") || strings.Contains(text, "must be root") || strings.Contains(text, "Operation not permitted") {
			return "", errNoAdmin
		}
		return "", fmt.Errorf("%s: %w: %s", path, err, reason(text, string(input)))
	}
	return out.String(), nil
}

var (
	versionHead = regexp.MustCompile(`^\S+ v\S+ \((nf_tables|legacy)\):\s*`)
	lineNumber  = regexp.MustCompile(`\bline:? ([0-9]+)`)
)

// reason is the first line that says something, and the line of the input that it is about.
func reason(said, input string) string {
	why := "it said nothing"
	for line := range strings.Lines(said) {
		line = versionHead.ReplaceAllString(strings.TrimSpace(line), "")
		if line != "" && !strings.HasPrefix(line, "#") {
			why = line
			break
		}
	}
	lines, table := strings.Split(input, "\n"), ""
	m := lineNumber.FindStringSubmatch(said)
	if m == nil {
		return why
	}
	n, err := strconv.Atoi(m[1])
	if err != nil || n < 1 || n > len(lines) {
		return why
	}
	for _, line := range lines[:n] {
		if strings.HasPrefix(line, "*") {
			table = line[1:]
		}
	}
	return fmt.Sprintf("%s (%s, in table %s)", why, lines[n-1], table)
}

func (t *iptables) usable() error {
	path := t.command(false, "restore")
	if path == "" || t.command(false, "save") == "" {
		return &errMissing{fmt.Sprintf("%s-restore is not installed (Debian: apt-get install iptables)", t.variant)}
	}
	if ipv6On() && !t.hasIPv6() {
		return &errMissing{fmt.Sprintf("ip6%s-restore is not installed, and IPv6 would pass untouched: install ip6tables, or disable IPv6 "+
			"(sysctl net.ipv6.conf.all.disable_ipv6=1)", strings.TrimPrefix(string(t.variant), "ip"))}
	}
	if _, err := run([]byte("*nat\nCOMMIT\n"), path, "--noflush", "--test"); err != nil {
		if errors.Is(err, errNoAdmin) {
			return err
		}
		return &errMissing{err.Error()}
	}
	return nil
}

func (t *iptables) hasIPv6() bool {
	return t.command(true, "restore") != "" && t.command(true, "save") != ""
}

// families says for which there is work: IPv6 is left out where the host lacks it, or has it off and no program for it.
func (t *iptables) families() []bool {
	out := []bool{false}
	if slices.Contains(families(), unix.AF_INET6) && t.hasIPv6() {
		out = append(out, true)
	}
	return out
}

// iptablesTables are those that hold rules of ours, in the order in which they are changed: what the guard in the last
// of them drops has to be redirected by then.
var iptablesTables = []string{"nat", "mangle", "filter"}

// saved is what there is of ours in one table of one family.
type saved struct {
	v6     bool
	table  string
	chains []string            // by name of the kernel's
	rules  map[string][]string // "-A …" lines by chain
	jumps  []string            // "-A OUTPUT … -j OURS" lines of others' chains
	behind map[string]string   // by chain of ours that PREROUTING jumps to: the first rule of others after that
}

// present says cheaply, without starting a program or loading a module, whether the variant may have chains of ours.
func (t *iptables) present() bool {
	if t.variant == IPTablesLegacy {
		for _, file := range []string{"/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"} {
			if names, err := os.ReadFile(file); err == nil && len(names) > 0 {
				return true
			}
		}
		return false
	}
	conn, err := connect()
	if err != nil {
		return false
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		chains, err := conn.ListChainsOfTableFamily(family)
		if err != nil {
			return false
		}
		if slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return isChainOfOurs(c.Name) }) {
			return true
		}
	}
	return false
}

func isChainOfOurs(name string) bool {
	return strings.HasPrefix(name, "sallyport.") || strings.HasPrefix(name, "sly.")
}

// read is what there is in both tables, of all names.
func (t *iptables) read() (out []saved, err error) {
	if !t.present() {
		return nil, nil
	}
	for _, v6 := range t.families() {
		path := t.command(v6, "save")
		if path == "" {
			return nil, &errMissing{fmt.Sprintf("%s-save is not installed (Debian: apt-get install iptables)", t.variant)}
		}
		for _, table := range iptablesTables {
			if t.variant == IPTablesLegacy && !hasLegacyTable(v6, table) {
				continue // asking would make it
			}
			text, err := run(nil, path, "-t", table)
			if err != nil {
				return nil, err
			}
			out = append(out, parseSave(text, v6, table))
		}
	}
	return out, nil
}

func hasLegacyTable(v6 bool, table string) bool {
	file := "/proc/thread-self/net/ip_tables_names"
	if v6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(file)
	return err == nil && slices.Contains(strings.Fields(string(names)), table)
}

func parseSave(text string, v6 bool, table string) saved {
	s := saved{v6: v6, table: table, rules: map[string][]string{}, behind: map[string]string{}}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		f := strings.Fields(line)
		switch {
		case len(f) > 0 && strings.HasPrefix(f[0], ":") && isChainOfOurs(f[0][1:]):
			s.chains = append(s.chains, f[0][1:])
		case len(f) > 1 && f[0] == "-A" && isChainOfOurs(f[1]):
			s.rules[f[1]] = append(s.rules[f[1]], line)
		case len(f) > 1 && f[0] == "-A":
			if i := slices.Index(f, "-j"); i > 0 && i+1 < len(f) && isChainOfOurs(f[i+1]) {
				s.jumps = append(s.jumps, line)
			} else if f[1] == "PREROUTING" {
				s.pass(line)
			}
		}
	}
	return s
}

// pass notes a rule of others in PREROUTING that stands behind our jumps.
func (s *saved) pass(rule string) {
	for _, jump := range s.jumps {
		f := strings.Fields(jump)
		if to := f[slices.Index(f, "-j")+1]; f[1] == "PREROUTING" && s.behind[to] == "" {
			s.behind[to] = rule
		}
	}
}

// of narrows it to what begins with a prefix.
func (s *saved) of(prefix string) saved {
	out := saved{v6: s.v6, table: s.table, rules: map[string][]string{}, behind: map[string]string{}}
	for _, name := range s.chains {
		if strings.HasPrefix(name, prefix) {
			out.chains = append(out.chains, name)
			out.rules[name] = s.rules[name]
			if rule := s.behind[name]; rule != "" {
				out.behind[name] = rule
			}
		}
	}
	for _, jump := range s.jumps {
		if f := strings.Fields(jump); strings.HasPrefix(f[slices.Index(f, "-j")+1], prefix) {
			out.jumps = append(out.jumps, jump)
		}
	}
	return out
}

// comments are those of the chain that says whose it is.
func (s *saved) comments(prefix string) (out []string) {
	for _, line := range s.rules[prefix+ownerChain] {
		if _, after, ok := strings.Cut(line, `--comment "`); ok {
			comment, _, _ := strings.Cut(after, `"`)
			out = append(out, comment)
		} else if _, after, ok := strings.Cut(line, `--comment `); ok { // a word without spaces
			out = append(out, strings.Fields(after)[0])
		}
	}
	return out
}

// find returns the rule set of a name. It refuses chains that are not ours.
func (t *iptables) find(name string) (*Status, error) {
	all, err := t.read()
	if err != nil {
		return nil, err
	}
	if there, err := t.named(all, name); err != nil || len(there) == 0 {
		return nil, err
	}
	s := t.status(all, iptablesPrefix(name))
	return &s, nil
}

// named is what there is of a name, by table.
func (t *iptables) named(all []saved, name string) (out []saved, err error) {
	prefix := iptablesPrefix(name)
	for i := range all {
		s := all[i].of(prefix)
		if len(s.chains) == 0 {
			continue
		}
		if o, ok := readOwner(s.comments(prefix)); !ok || o.config.Name != name {
			return nil, &errNotOurs{fmt.Sprintf("chain %s of table %s (%s)", s.chains[0], s.table, t.variant)}
		}
		out = append(out, s)
	}
	return out, nil
}

// owners are those of all rule sets of ours.
func owners(all []saved) (out []owner) {
	for i := range all {
		for _, chain := range all[i].chains {
			prefix, ok := strings.CutSuffix(chain, ownerChain)
			if !ok {
				continue
			}
			o, ok := readOwner(all[i].comments(prefix))
			if ok && iptablesPrefix(o.config.Name) == prefix && !slices.ContainsFunc(out, func(p owner) bool { return p.config.Name == o.config.Name }) {
				out = append(out, o)
			}
		}
	}
	return out
}

// lost are the names of our rule sets whose cgroup is gone. The kernel looks up the cgroups of all rules of a legacy
// table at each change of any of them, and refuses it, whoever makes it, where one is not there; so they have to go with
// the next change of ours, all at once.
func (t *iptables) lost(all []saved) (names []string) {
	if t.variant != IPTablesLegacy {
		return nil
	}
	for _, o := range owners(all) {
		for _, path := range []string{o.config.Cgroup, o.config.Sidecar.Cgroup} {
			if path == "" {
				continue
			}
			if _, err := resolveCgroup(path); errors.Is(err, os.ErrNotExist) {
				names = append(names, o.config.Name)
			}
		}
	}
	return inOrder(names)
}

// pick is what the rule sets of the names have in one table.
func pick(all []saved, v6 bool, table string, names ...string) saved {
	out := saved{v6: v6, table: table, rules: map[string][]string{}, behind: map[string]string{}}
	for i := range all {
		if all[i].v6 != v6 || all[i].table != table {
			continue
		}
		for _, name := range names {
			s := all[i].of(iptablesPrefix(name))
			out.chains, out.jumps = append(out.chains, s.chains...), append(out.jumps, s.jumps...)
			maps.Copy(out.rules, s.rules)
			maps.Copy(out.behind, s.behind)
		}
	}
	return out
}

func (t *iptables) apply(r *Ruleset, cgroups map[string]cgroup) error {
	all, err := t.read()
	if err != nil {
		return err
	}
	name := r.Config.Name
	if _, err := t.named(all, name); err != nil {
		return err
	}
	r = withPaths(r, cgroups).noted(append(cgroupIDs(&r.Config, cgroups), t.freshTables(r, all)...)...)
	replaced := inOrder(append(t.lost(all), name))
	var steps, back []step
	for _, v6 := range t.families() {
		for _, table := range iptablesTables {
			old, was := pick(all, v6, table, replaced...), pick(all, v6, table, name)
			switch {
			case slices.Contains(r.tables(), table):
				steps = append(steps, step{v6, r.restore(table, v6, deletions(old.jumps), old.chains)})
			case len(old.chains) > 0:
				steps = append(steps, step{v6, removal(&old)})
			default:
				continue
			}
			back = append(back, step{v6, undo(r, table, &was)})
		}
	}
	for _, s := range steps { // first see whether all of it would be taken
		if err := t.restore(s, true); err != nil {
			return err
		}
	}
	for i, s := range steps {
		if err := t.restore(s, false); err != nil {
			for j := i - 1; j >= 0; j-- {
				err = errors.Join(err, t.restore(back[j], false))
			}
			return err
		}
	}
	return nil
}

// step is one transaction.
type step struct {
	v6   bool
	text string
}

func (t *iptables) restore(s step, test bool) error {
	path := t.command(s.v6, "restore")
	if path == "" {
		return &errMissing{fmt.Sprintf("%s-restore is not installed (Debian: apt-get install iptables)", t.variant)}
	}
	args := []string{"--noflush", "-w", "10"}
	if test {
		args = append(args, "--test")
	}
	_, err := run([]byte(s.text), path, args...)
	return err
}

// withPaths puts cgroups as the kernel knows them in place of folders.
func withPaths(r *Ruleset, cgroups map[string]cgroup) *Ruleset {
	out := *r
	out.Chains = slices.Clone(r.Chains)
	for i := range out.Chains {
		out.Chains[i].Rules = slices.Clone(out.Chains[i].Rules)
		for j := range out.Chains[i].Rules {
			if rule := &out.Chains[i].Rules[j]; rule.Cgroup != "" {
				rule.Cgroup = cgroups[rule.Cgroup].path
			}
		}
	}
	return &out
}

func deletions(jumps []string) (out []string) {
	for _, j := range jumps {
		out = append(out, "-D"+strings.TrimPrefix(j, "-A"))
	}
	return out
}

// removal is the transaction after which nothing of ours is left in a table.
func removal(s *saved) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", s.table)
	for _, name := range s.chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
	}
	for _, jump := range deletions(s.jumps) {
		b.WriteString(jump + "\n")
	}
	for _, name := range s.chains {
		fmt.Fprintf(&b, "-X %s\n", name)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// undo is the transaction that puts a table back after the ruleset was applied to it.
func undo(r *Ruleset, table string, was *saved) string {
	prefix := iptablesPrefix(r.Config.Name)
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", table)
	var now []string
	if slices.Contains(r.tables(), table) {
		for _, c := range r.chainsOf(table) {
			now = append(now, prefix+c.Name)
		}
	}
	for _, name := range inOrder(slices.Concat(now, was.chains)) {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
	}
	for _, name := range was.chains {
		b.WriteString(strings.Join(was.rules[name], "\n") + "\n")
	}
	for _, c := range r.Chains {
		if c.Hook != nil && c.Hook.Table == table {
			fmt.Fprintf(&b, "-D %s -m comment --comment %q -j %s\n", strings.ToUpper(c.Hook.At), "sallyport", prefix+c.Name)
		}
	}
	for _, jump := range was.jumps {
		if first(table, strings.Fields(jump)[1]) {
			jump = "-I" + strings.TrimPrefix(jump, "-A")
		}
		b.WriteString(jump + "\n")
	}
	for _, name := range now {
		if !slices.Contains(was.chains, name) {
			fmt.Fprintf(&b, "-X %s\n", name)
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// first says whether the jump from a built-in chain stands at its head.
func first(table, chain string) bool {
	return slices.ContainsFunc([]Hook{hookOutput, hookGuardOut, hookGuardIn}, func(h Hook) bool {
		return h.First && h.Table == table && strings.EqualFold(h.At, chain)
	})
}

// cleanup removes the rule sets of some names, and those whose cgroup is gone: one transaction for each table.
func (t *iptables) cleanup(names ...string) error {
	all, err := t.read()
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := t.named(all, name); err != nil {
			return err
		}
	}
	names = inOrder(append(t.lost(all), names...))
	for _, v6 := range t.families() {
		for _, table := range slices.Backward(iptablesTables) { // the guard first: without the rest it would drop everything
			old := pick(all, v6, table, names...)
			if len(old.chains) == 0 {
				continue
			}
			if err := t.restore(step{v6, removal(&old)}, false); err != nil {
				return err
			}
		}
	}
	return removeFresh(notes(all))
}

func (t *iptables) inForce() (out []Status, err error) {
	all, err := t.read()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for i := range all {
		for _, chain := range all[i].chains {
			prefix := chain[:strings.LastIndexByte(chain, '.')+1]
			if !seen[prefix] {
				seen[prefix] = true
				out = append(out, t.status(all, prefix))
			}
		}
	}
	return out, nil
}

// status is that of the rule set whose chains have a prefix.
func (t *iptables) status(all []saved, prefix string) Status {
	s := Status{Backend: t.variant, Place: "chains " + prefix + "*", Foreign: true}
	for _, o := range owners(all) {
		if iptablesPrefix(o.config.Name) == prefix {
			s.Config, s.Changed, s.Foreign = o.config, t.changed(&o, all, prefix), false
		}
	}
	return s
}

// changed says where the kernel's rules are not those that the configuration makes.
func (t *iptables) changed(o *owner, all []saved, prefix string) string {
	if why := o.changed(); why != "" {
		return why
	}
	r, err := Plan(o.config)
	if err != nil {
		return err.Error()
	}
	for _, v6 := range t.families() {
		for _, table := range r.tables() {
			own := pick(all, v6, table, o.config.Name)
			for _, rule := range own.behind {
				if table == "nat" { // where it stands last it takes no ports that are published for containers
					return fmt.Sprintf("a rule has been added behind ours, which so takes what is meant for it: %s", rule)
				}
			}
			for _, chain := range r.chainsOf(table) {
				if chain.Name == ownerChain {
					continue
				}
				want := 0
				for i := range chain.Rules {
					want += len(chain.Rules[i].iptables(prefix, v6))
				}
				if have := len(own.rules[prefix+chain.Name]); have != want {
					return fmt.Sprintf("chain %s of table %s has %d rules in place of %d", prefix+chain.Name, table, have, want)
				}
				if chain.Hook != nil && !slices.ContainsFunc(own.jumps, func(j string) bool { return strings.HasSuffix(j, "-j "+prefix+chain.Name) }) {
					return fmt.Sprintf("nothing leads to chain %s of table %s", prefix+chain.Name, table)
				}
			}
		}
	}
	return ""
}
