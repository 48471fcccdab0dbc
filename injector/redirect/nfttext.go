package redirect

import (
	"fmt"
	"net/netip"
	"strings"
)

// tableName is the table's, and the head of the chains' names in iptables.
func tableName(name string) string {
	if name == "" {
		return "sallyport"
	}
	return "sallyport-" + name
}

// NFT is the ruleset in the language of nft(8), which can read it.
func (r *Ruleset) NFT() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", tableName(r.Config.Name))
	for i := range r.Chains {
		c := &r.Chains[i]
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if h := c.Hook; h != nil {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", h.Kind, h.At, h.Priority)
		}
		for j := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s comment %q\n", c.Rules[j].nft(), c.Rules[j].Why)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	b.WriteString(r.policyRouteText())
	return b.String()
}

func (r *Ruleset) policyRouteText() string {
	if !r.PolicyRoute {
		return ""
	}
	return fmt.Sprintf("# ip rule add priority %d fwmark %#x lookup %d; ip route add local default dev lo table %d (IPv4 and IPv6)\n",
		rulePriority, routeMark, routeTable, routeTable)
}

// nft is the rule without its comment. Conditions stand in the order in which nftExprs makes them.
func (r *Rule) nft() string {
	var w []string
	add := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	if r.UID != nil {
		add("meta skuid %d", *r.UID)
	}
	if r.GID != nil {
		add("meta skgid %d", *r.GID)
	}
	if r.Mark != 0 {
		add("meta mark %#08x", r.Mark)
	}
	if r.Cgroup != "" {
		path := cgroupRelative(r.Cgroup)
		add("socket cgroupv2 level %d %q", strings.Count(path, "/")+1, path)
	}
	if r.In != "" {
		add("iifname %q", r.In)
	}
	if r.Out != "" {
		add("oifname %q", r.Out)
	}
	if len(r.Nets) > 0 {
		add("%s daddr %s", r.familyName(), nftSet(netNames(r.Nets)))
	}
	if r.Local {
		add("fib daddr type local")
	}
	switch {
	case len(r.Ports) > 0:
		add("%s dport %s", r.proto(), nftSet(r.Ports))
	case r.proto() != "" && !r.SYN: // the flags imply it
		add("meta l4proto %s", r.proto())
	}
	if r.SYN {
		add("tcp flags syn / fin,syn,rst,ack")
	}
	if r.DNAT {
		add("ct status dnat")
	}
	if r.ConnMark != 0 {
		add("ct mark %#08x", r.ConnMark)
	}
	if r.Original {
		add("ct direction original")
	}
	if r.Reply {
		add("ct direction reply")
	}
	return strings.Join(append(w, r.Do.nft()), " ")
}

func (v *Verdict) nft() string {
	switch {
	case v.Return:
		return "return"
	case v.Drop:
		return "drop"
	case v.Jump != "":
		return "jump " + v.Jump
	case v.Redirect != 0:
		return fmt.Sprintf("redirect to :%d", v.Redirect)
	case v.TProxy != 0:
		return fmt.Sprintf("tproxy to :%d meta mark set %#08x accept", v.TProxy, routeMark)
	case v.SetMark != 0:
		return fmt.Sprintf("meta mark set %#08x", v.SetMark)
	default:
		return fmt.Sprintf("ct mark set %#08x", v.SetConnMark)
	}
}

func (r *Rule) proto() string {
	switch {
	case r.TCP:
		return "tcp"
	case r.UDP:
		return "udp"
	}
	return ""
}

func (r *Rule) familyName() string {
	if r.Nets[0].Addr().Is6() {
		return "ip6"
	}
	return "ip"
}

func nftSet[T any](of []T) string {
	if len(of) == 1 {
		return fmt.Sprint(of[0])
	}
	return "{ " + strings.ReplaceAll(list(of), ",", ", ") + " }"
}

// netNames leaves out the length of single addresses, like nft.
func netNames(nets []netip.Prefix) (out []string) {
	for _, p := range nets {
		if p.IsSingleIP() {
			out = append(out, p.Addr().String())
		} else {
			out = append(out, p.String())
		}
	}
	return out
}
