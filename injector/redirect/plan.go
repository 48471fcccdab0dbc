package redirect

import "net/netip"

// The hooks. Output stands just before the NAT of others, so that what they would send elsewhere (Docker's resolver at
// 127.0.0.11, say) is the sidecar's first; the sidecar's own packets then meet it. Prerouting stands just after, so that
// ports which this host publishes for containers stay theirs. TPROXY has to come before all NAT.
var (
	hookOutput     = Hook{Kind: "nat", At: "output", Priority: -101, Table: "nat", First: true}
	hookPrerouting = Hook{Kind: "nat", At: "prerouting", Priority: -99, Table: "nat"}
	hookTProxy     = Hook{Kind: "filter", At: "prerouting", Priority: -150, Table: "mangle"}
	hookReplies    = Hook{Kind: "route", At: "output", Priority: -150, Table: "mangle"}
	// The guards stand after all NAT, and in iptables before whatever accepts.
	hookGuardOut = Hook{Kind: "filter", At: "output", Priority: -90, Table: "filter", First: true}
	hookGuardIn  = Hook{Kind: "filter", At: "input", Priority: -90, Table: "filter", First: true}
)

var (
	loopback4  = netip.MustParsePrefix("127.0.0.0/8")
	loopback6  = netip.MustParsePrefix("::1/128")
	linkLocal6 = netip.MustParsePrefix("fe80::/10")
)

// Plan is the rules for a configuration. It reads nothing but that, and changes nothing.
func Plan(c Config) (*Ruleset, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	p := &planner{c: &c}
	if c.OutboundPort != 0 || c.DNSPort != 0 {
		p.hook("output", hookOutput)
		p.output()
		p.outbound()
		p.guard("out", hookGuardOut, func() { p.output(); p.outbound() })
	}
	switch c.InboundMode {
	case Redirect:
		p.hook("prerouting", hookPrerouting)
		p.inbound()
		p.redirect(Rule{Why: "inbound connections"}, c.InboundPort)
		p.guard("in", hookGuardIn, func() { p.inbound(); p.redirect(Rule{Why: "inbound connections"}, c.InboundPort) })
	case TProxy: // asked about every packet, so it needs no guard
		p.tproxy()
		p.replies()
	}
	p.owner()
	return &Ruleset{Config: c, Chains: p.chains, PolicyRoute: c.InboundMode == TProxy}, nil
}

// planner writes rules at the end of its last chain.
type planner struct {
	c      *Config
	chains []Chain
	// guarding says that the rules are those of a guard: the chains have names of their own, and what would be
	// redirected is dropped.
	guarding bool
}

func (p *planner) hook(name string, h Hook) { p.chains = append(p.chains, Chain{Name: name, Hook: &h}) }

func (p *planner) start(name string) { p.chains = append(p.chains, Chain{Name: name}) }

func (p *planner) add(rules ...Rule) {
	last := &p.chains[len(p.chains)-1]
	last.Rules = append(last.Rules, rules...)
}

// leave adds a rule that ends the matter: the packet goes where it was going.
func (p *planner) leave(r Rule) {
	r.Do = Verdict{Return: true}
	p.add(r)
}

// only goes on in a chain of the given name for what meets one of the rules.
func (p *planner) only(next string, rules ...Rule) {
	if p.guarding {
		next = "g-" + next
	}
	for _, r := range rules {
		r.Do = Verdict{Jump: next}
		p.add(r)
	}
	p.start(next)
}

// redirect sends the new connections of a rule to a port of this host.
func (p *planner) redirect(r Rule, to uint16) {
	r.TCP, r.SYN, r.Do = true, true, Verdict{Redirect: to}
	if p.guarding {
		r.Why, r.Do = "not redirected", Verdict{Drop: true}
	}
	p.add(r)
}

// guard drops the first packets of connections that should have been redirected and were not; decide adds the rules
// that have sent them there. NAT is decided once for a connection, on the first packet that conntrack sees of it. With
// nf_conntrack_tcp_loose (the default) that may be a lone ACK, which is no new connection to the NAT chains; so whoever
// sends one first, by a raw socket or from outside towards the port that an application will dial from, would have its
// SYN pass the sidecar by. Only a SYN is dropped: connections older than the rules stay as they are.
// (Dropping what is new and no SYN, before the NAT, would end those; tcp_loose is the host's and not ours to set.)
//
// DNS over UDP is not guarded: UDP to other ports passes anyway, so there is nothing to gain, and what a name server
// here answers to port 53 would be lost.
func (p *planner) guard(name string, h Hook, decide func()) {
	p.hook("guard-"+name, h)
	p.guarding = true
	defer func() { p.guarding = false }()
	p.only(name, Rule{Why: "new connections", TCP: true, SYN: true})
	// In the direction that was: as an answer it would go to where the other side came from.
	p.leave(Rule{Why: "redirected", DNAT: true, Original: true})
	decide()
}

// sidecar returns a rule for each thing by which the sidecar is known.
func (p *planner) sidecar() (out []Rule) {
	s := &p.c.Sidecar
	if len(s.UIDs) > 0 {
		out = append(out, Rule{UIDs: s.UIDs, Set: "sidecar-users"})
	}
	if len(s.GIDs) > 0 {
		out = append(out, Rule{GIDs: s.GIDs, Set: "sidecar-groups"})
	}
	if s.Mark != 0 {
		out = append(out, Rule{Mark: s.Mark})
	}
	if s.Cgroup != "" {
		out = append(out, Rule{Cgroup: s.Cgroup})
	}
	for i := range out {
		out[i].Why = "the sidecar's own"
	}
	return out
}

// output decides whose traffic it is. It comes first: whatever else is configured, the sidecar never meets itself.
func (p *planner) output() {
	for _, r := range p.sidecar() {
		p.leave(r)
	}
	if p.c.Cgroup != "" {
		p.only("outbound", Rule{Why: "the application", Cgroup: p.c.Cgroup})
	} else {
		p.only("outbound", Rule{Why: "everybody else"})
	}
}

// outbound decides about the destination.
func (p *planner) outbound() {
	c := p.c
	if len(c.ExcludeUIDs) > 0 {
		p.leave(Rule{Why: "excluded users", UIDs: c.ExcludeUIDs, Set: "excluded-users"})
	}
	if len(c.ExcludeInterfaces) > 0 {
		p.leave(Rule{Why: "excluded interfaces", Out: c.ExcludeInterfaces, Set: "excluded-interfaces"})
	}
	for _, r := range byFamily("excluded networks", c.ExcludeOutboundCIDRs) {
		p.leave(r)
	}
	// Of link scope, so without meaning behind a socket on the loopback interface.
	p.leave(Rule{Why: "the link itself", Nets: []netip.Prefix{linkLocal6}})
	if len(c.ExcludeOutboundPorts) > 0 {
		p.leave(Rule{Why: "excluded ports", TCP: true, Ports: c.ExcludeOutboundPorts})
	}
	if len(c.IncludeUIDs) > 0 {
		p.only("out-users", Rule{Why: "included users", UIDs: c.IncludeUIDs, Set: "included-users"})
	}
	// Before the loopback addresses, because a host's resolver is often there (127.0.0.53, 127.0.0.11).
	if c.DNSPort != 0 && !hasPort(c.ExcludeOutboundPorts, 53) {
		p.dns()
	}
	if c.OutboundPort == 0 {
		return
	}
	p.leave(Rule{Why: "itself", Nets: []netip.Prefix{loopback4}})
	p.leave(Rule{Why: "itself", Nets: []netip.Prefix{loopback6}})
	if c.Cgroup == "" {
		p.leave(Rule{Why: "itself", Local: true})
	} else if c.InboundMode != Off {
		// Other ports of this host's addresses are other services, and they have sidecars of their own.
		p.leave(Rule{Why: "itself", Local: true, TCP: true, Ports: c.IncludeInboundPorts})
	}
	if len(c.IncludeInterfaces) > 0 {
		p.only("out-links", Rule{Why: "included interfaces", Out: c.IncludeInterfaces, Set: "included-interfaces"})
	}
	if len(c.IncludeOutboundCIDRs) > 0 {
		p.only("out-nets", byFamily("included networks", c.IncludeOutboundCIDRs)...)
	}
	if len(c.IncludeOutboundPorts) > 0 {
		p.only("out-ports", Rule{Why: "included ports", TCP: true, Ports: c.IncludeOutboundPorts})
	}
	p.redirect(Rule{Why: "outbound connections"}, c.OutboundPort)
}

func (p *planner) dns() {
	r := Rule{Why: "DNS", Ports: []PortRange{Port(53)}, Local: p.c.DNSTo == DNSLocal}
	if !p.guarding {
		udp := r
		udp.UDP, udp.Do = true, Verdict{Redirect: p.c.DNSPort}
		p.add(udp)
	} else if p.c.DNSPort == 53 {
		// Redirected to where it was going already it has not been changed.
		p.leave(Rule{Why: "DNS", TCP: true, Ports: r.Ports, Nets: []netip.Prefix{loopback4}})
		p.leave(Rule{Why: "DNS", TCP: true, Ports: r.Ports, Nets: []netip.Prefix{loopback6}})
	}
	p.redirect(r, p.c.DNSPort)
}

// inbound decides about what comes from outside; the caller adds what is done with it.
func (p *planner) inbound() {
	c := p.c
	p.leave(Rule{Why: "from itself", In: []string{"lo"}})
	// What is not for this host is only routed through it.
	p.only("inbound", Rule{Why: "for this host", TCP: true, Local: true})
	if len(c.ExcludeInterfaces) > 0 {
		p.leave(Rule{Why: "excluded interfaces", In: c.ExcludeInterfaces, Set: "excluded-interfaces"})
	}
	own := []PortRange{Port(c.InboundPort)}
	if c.HealthPort != 0 {
		own = append(own, Port(c.HealthPort))
	}
	p.leave(Rule{Why: "the sidecar's own", TCP: true, Ports: joinPorts(own)})
	if len(c.ExcludeInboundPorts) > 0 {
		p.leave(Rule{Why: "excluded ports", TCP: true, Ports: c.ExcludeInboundPorts})
	}
	if len(c.IncludeInterfaces) > 0 {
		p.only("in-links", Rule{Why: "included interfaces", In: c.IncludeInterfaces, Set: "included-interfaces"})
	}
	if len(c.IncludeInboundPorts) > 0 {
		p.only("in-ports", Rule{Why: "included ports", TCP: true, Ports: c.IncludeInboundPorts})
	}
}

// tproxy assigns inbound packets to the sidecar's socket without touching them. Unlike NAT it is asked about every
// packet, so the first one leaves its mark on the connection. Where no socket takes a packet it is dropped: without
// the sidecar it would reach the application unprotected.
func (p *planner) tproxy() {
	p.hook("prerouting", hookTProxy)
	// With the ports, because the neighbor in another cgroup marks its connections so too.
	p.add(Rule{Why: "taken before", TCP: true, Ports: p.c.IncludeInboundPorts, ConnMark: takenMark, Original: true, Do: Verdict{Jump: "in-taken"}})
	p.inbound()
	p.only("in-first", Rule{Why: "inbound connections", TCP: true, SYN: true})
	p.add(Rule{Why: "remembered", Do: Verdict{SetConnMark: takenMark}},
		Rule{Why: "inbound connections", Do: Verdict{Jump: "in-taken"}})
	p.start("in-taken")
	p.add(Rule{Why: "to the sidecar", TCP: true, Do: Verdict{TProxy: p.c.InboundPort}},
		Rule{Why: "no sidecar listens", Do: Verdict{Drop: true}})
}

// replies leads the application's answers back to a sidecar that speaks to it from the client's address: their
// destination is elsewhere, but the socket is here.
func (p *planner) replies() {
	p.hook("replies", hookReplies)
	for _, r := range p.sidecar() {
		r.Why, r.TCP, r.Local, r.Original, r.Do = "sidecar to application", true, true, true, Verdict{SetConnMark: routeMark}
		p.add(r)
	}
	p.add(Rule{Why: "answers to it", TCP: true, ConnMark: routeMark, Reply: true, Do: Verdict{SetMark: routeMark}})
}

// ownerChain is called by nobody. Its comments say that the rules are ours, and from which Config they were made.
const ownerChain = "owner"

// maxComment is what nft takes as a comment when it reads back what it has listed.
const maxComment = 128

func (p *planner) owner() {
	p.start(ownerChain)
	for _, comment := range ownerComments(p.c) {
		p.leave(Rule{Why: comment})
	}
}

// byFamily is a rule for the networks of IPv4 and one for those of IPv6.
func byFamily(why string, nets []netip.Prefix) (out []Rule) {
	for _, v6 := range []bool{false, true} {
		if of := ofFamily(nets, v6); len(of) > 0 {
			out = append(out, Rule{Why: why, Nets: of})
		}
	}
	return out
}
