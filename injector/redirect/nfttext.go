package redirect

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
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
	for _, s := range r.sets() {
		fmt.Fprintf(&b, "\tset %s {\n\t\ttype %s\n\t\telements = { %s }\n\t}\n\n", s.name, s.kind.Name, strings.Join(s.texts, ", "))
	}
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

// namedSet is a set of the table: of users, groups or interfaces. Unlike ports and networks these cannot be in a set of
// the rule's own, because the library says of such a set that its numbers are in network byte order.
type namedSet struct {
	name  string
	kind  nftables.SetDatatype
	texts []string
	keys  []nftables.SetElement
}

// sets are those that the rules look things up in, each of them once.
func (r *Ruleset) sets() (out []namedSet) {
	add := func(name string, kind nftables.SetDatatype, texts []string, keys [][]byte) {
		if len(keys) < 2 || slices.ContainsFunc(out, func(s namedSet) bool { return s.name == name }) {
			return
		}
		s := namedSet{name: name, kind: kind, texts: texts}
		for _, k := range keys {
			s.keys = append(s.keys, nftables.SetElement{Key: k})
		}
		out = append(out, s)
	}
	for i := range r.Chains {
		for j := range r.Chains[i].Rules {
			rule := &r.Chains[i].Rules[j]
			add(rule.Set, nftables.TypeUID, texts(rule.UIDs), keysOf(rule.UIDs, binaryutil.NativeEndian.PutUint32))
			add(rule.Set, nftables.TypeGID, texts(rule.GIDs), keysOf(rule.GIDs, binaryutil.NativeEndian.PutUint32))
			add(rule.Set, nftables.TypeIFName, quoted(rule.In), keysOf(rule.In, interfaceKey))
			add(rule.Set, nftables.TypeIFName, quoted(rule.Out), keysOf(rule.Out, interfaceKey))
		}
	}
	return out
}

func keysOf[T any](of []T, key func(T) []byte) (out [][]byte) {
	for _, v := range of {
		out = append(out, key(v))
	}
	return out
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
	oneOf := func(what string, of []string) {
		switch len(of) {
		case 0:
		case 1:
			add("%s %s", what, of[0])
		default:
			add("%s @%s", what, r.Set)
		}
	}
	oneOf("meta skuid", texts(r.UIDs))
	oneOf("meta skgid", texts(r.GIDs))
	if r.Mark != 0 {
		add("meta mark %#08x", r.Mark)
	}
	if r.Cgroup != "" {
		path := cgroupRelative(r.Cgroup)
		add("socket cgroupv2 level %d %q", strings.Count(path, "/")+1, path)
	}
	oneOf("iifname", quoted(r.In))
	oneOf("oifname", quoted(r.Out))
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

func texts(of []uint32) (out []string) {
	for _, v := range of {
		out = append(out, fmt.Sprint(v))
	}
	return out
}

func quoted(names []string) (out []string) {
	for _, name := range names {
		out = append(out, fmt.Sprintf("%q", name))
	}
	return out
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
