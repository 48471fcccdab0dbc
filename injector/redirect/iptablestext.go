package redirect

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// iptablesPrefix is the head of the chains' names, which may be 28 bytes long. Names that are too long or would be
// ambiguous are replaced by a digest; the comments of the owner chain hold the name.
func iptablesPrefix(name string) string {
	if name == "" {
		return "sallyport."
	}
	if len(name) > 10 || strings.Contains(name, ".") {
		sum := sha256.Sum256([]byte(name))
		name = "~" + hex.EncodeToString(sum[:])[:9]
	}
	return "sly." + name + "."
}

// IPTables is the ruleset in the language of iptables-restore(8), for IPv6 or IPv4. It is meant to be read with
// --noflush, and is complete where none of our chains are there yet.
func (r *Ruleset) IPTables(v6 bool) string {
	var b strings.Builder
	for _, table := range r.tables() {
		b.WriteString(r.restore(table, v6, nil, nil))
	}
	return b.String()
}

// tables are the tables of iptables that the rules need.
func (r *Ruleset) tables() (out []string) {
	for i := range r.Chains {
		if h := r.Chains[i].Hook; h != nil && !slices.Contains(out, h.Table) {
			out = append(out, h.Table)
		}
	}
	return out
}

// restore is the transaction that replaces what there is of ours in one table: jumps are the rules by which built-in
// chains call our old chains ("-D …" lines), old the names of those chains. Rules, chains and jumps change at once.
func (r *Ruleset) restore(table string, v6 bool, jumps, old []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", table)
	prefix := iptablesPrefix(r.Config.Name)
	chains := r.chainsOf(table)
	names := slices.Clone(old)
	for _, c := range chains {
		names = append(names, prefix+c.Name)
	}
	for _, name := range inOrder(names) {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name) // makes it, or empties it
	}
	for _, jump := range jumps {
		b.WriteString(jump + "\n")
	}
	for _, c := range chains {
		for i := range c.Rules {
			for _, line := range c.Rules[i].iptables(prefix, v6) {
				fmt.Fprintf(&b, "-A %s %s\n", prefix+c.Name, line)
			}
		}
		if h := c.Hook; h != nil {
			add := "-A"
			if h.First {
				add = "-I"
			}
			fmt.Fprintf(&b, "%s %s -m comment --comment %q -j %s\n", add, strings.ToUpper(h.At), "sallyport", prefix+c.Name)
		}
	}
	for _, name := range old {
		if !slices.ContainsFunc(chains, func(c *Chain) bool { return prefix+c.Name == name }) {
			fmt.Fprintf(&b, "-X %s\n", name)
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// chainsOf are the chains that a table's hooks reach, and that of the owner.
func (r *Ruleset) chainsOf(table string) (out []*Chain) {
	reached := map[string]bool{ownerChain: true}
	var follow func(*Chain)
	follow = func(c *Chain) {
		if reached[c.Name] {
			return
		}
		reached[c.Name] = true
		for i := range c.Rules {
			if next := c.Rules[i].Do.Jump; next != "" {
				follow(r.chain(next))
			}
		}
	}
	for i := range r.Chains {
		if h := r.Chains[i].Hook; h != nil && h.Table == table {
			follow(&r.Chains[i])
		}
	}
	for i := range r.Chains {
		if reached[r.Chains[i].Name] {
			out = append(out, &r.Chains[i])
		}
	}
	return out
}

// iptables is the rule as one or more rules of iptables, which knows no lists; none where it is of the other family.
func (r *Rule) iptables(prefix string, v6 bool) (out []string) {
	if len(r.Nets) > 0 && r.Nets[0].Addr().Is6() != v6 {
		return nil
	}
	out = []string{""}
	if p := r.proto(); p != "" {
		out = each(out, []string{p}, "-p %s")
	}
	out = each(out, r.UIDs, "-m owner --uid-owner %d")
	out = each(out, r.GIDs, "-m owner --gid-owner %d")
	if r.Mark != 0 {
		out = each(out, []uint32{r.Mark}, "-m mark --mark %#x")
	}
	if r.Cgroup != "" {
		out = each(out, []string{cgroupRelative(r.Cgroup)}, "-m cgroup --path %q")
	}
	out = each(out, r.In, "-i %s")
	out = each(out, r.Out, "-o %s")
	out = each(out, r.Nets, "-d %s")
	if r.Local {
		out = each(out, []string{"LOCAL"}, "-m addrtype --dst-type %s")
	}
	out = each(out, iptablesPorts(r.Ports), "--dport %s")
	if r.SYN {
		out = each(out, []string{"--syn"}, "%s")
	}
	if r.DNAT {
		out = each(out, []string{"DNAT"}, "-m conntrack --ctstate %s")
	}
	if r.ConnMark != 0 {
		out = each(out, []uint32{r.ConnMark}, "-m connmark --mark %#x")
	}
	if r.Original {
		out = each(out, []string{"ORIGINAL"}, "-m conntrack --ctdir %s")
	}
	if r.Reply {
		out = each(out, []string{"REPLY"}, "-m conntrack --ctdir %s")
	}
	for i := range out {
		out[i] += fmt.Sprintf("-m comment --comment %q -j %s", r.Why, r.Do.iptables(prefix, v6))
	}
	return out
}

func (v *Verdict) iptables(prefix string, v6 bool) string {
	switch {
	case v.Return:
		return "RETURN"
	case v.Drop:
		return "DROP"
	case v.Jump != "":
		return prefix + v.Jump
	case v.Redirect != 0:
		return fmt.Sprintf("REDIRECT --to-ports %d", v.Redirect)
	case v.TProxy != 0:
		any := netip.IPv4Unspecified()
		if v6 {
			any = netip.IPv6Unspecified()
		}
		return fmt.Sprintf("TPROXY --on-port %d --on-ip %s --tproxy-mark %#x/0xffffffff", v.TProxy, any, routeMark)
	case v.SetMark != 0:
		return fmt.Sprintf("MARK --set-xmark %#x/0xffffffff", v.SetMark)
	default:
		return fmt.Sprintf("CONNMARK --set-xmark %#x/0xffffffff", v.SetConnMark)
	}
}

func iptablesPorts(ports []PortRange) (out []string) {
	for _, p := range ports {
		out = append(out, strings.ReplaceAll(p.String(), "-", ":"))
	}
	return out
}

// each is every beginning with every entry of a list; an empty list is no condition.
func each[T any](beginnings []string, of []T, format string) (out []string) {
	if len(of) == 0 {
		return beginnings
	}
	for _, b := range beginnings {
		for _, v := range of {
			out = append(out, b+fmt.Sprintf(format, v)+" ")
		}
	}
	return out
}
