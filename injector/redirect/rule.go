package redirect

import "net/netip"

// Ruleset is what is to be in the kernel, in words that both backends know.
type Ruleset struct {
	Config Config
	Chains []Chain
	// PolicyRoute says that packets with routeMark are routed to this host.
	PolicyRoute bool
}

// Chain is a list of rules. Those with a Hook are called by the kernel, the others by jumps.
type Chain struct {
	Name  string
	Hook  *Hook
	Rules []Rule
}

// Hook is where the kernel calls a chain.
type Hook struct {
	Kind     string // nat, filter or route
	At       string // output, prerouting or input
	Priority int32
	// Table and First are for iptables: the table of the built-in chain, and whether the jump stands at its head.
	Table string
	First bool
}

// Rule is conditions, all of which must be met, and one Verdict. A list is met by any of its entries; what is empty is
// no condition. There are no negations: they would be met by packets without the thing that is asked for (a socket, a
// user), and iptables has none for lists.
type Rule struct {
	Why string // printed, and kept as the rule's comment

	UIDs, GIDs []uint32 // of the socket's owner
	Mark       uint32
	Cgroup     string
	In, Out    []string       // interfaces
	Set        string         // of the table, in which several of UIDs, GIDs, In or Out are looked up
	Nets       []netip.Prefix // of the destination, all of one family
	Local      bool           // the destination is an address of this host
	TCP, UDP   bool
	Ports      []PortRange // of the destination; with TCP or UDP
	// SYN is the first packet of a TCP connection. Connections older than the rules are left alone by it: once NAT is
	// in use the kernel takes up running connections in their middle, and asks the NAT chains about them.
	SYN bool
	// DNAT says that the destination of the connection has been rewritten.
	DNAT bool
	// ConnMark is the mark of the connection; Reply and Original the direction of the packet in it.
	ConnMark        uint32
	Reply, Original bool

	Do Verdict
}

// Verdict is what a rule does. One of its fields is set.
type Verdict struct {
	Return      bool
	Drop        bool
	Jump        string
	Redirect    uint16 // to this port of this host
	TProxy      uint16 // likewise, with the destination kept; the packet gets routeMark
	SetMark     uint32
	SetConnMark uint32
}

// chain returns the chain of that name.
func (r *Ruleset) chain(name string) *Chain {
	for i := range r.Chains {
		if r.Chains[i].Name == name {
			return &r.Chains[i]
		}
	}
	return nil
}
