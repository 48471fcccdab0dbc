package rbac

import (
	"net/netip"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
)

// op is what a node of a rule tests.
type op uint8

const (
	opNever op = iota // the zero node matches nothing
	opAny
	opAnd
	opOr
	opNot
	opHeader
	opPath
	opDestinationIP
	opDestinationPort
	opServerName
	opAuthenticated // any verified client certificate
	opPrincipal     // one with a name that matches
	opSourceIP
	opDirectIP
	opRemoteIP
)

// node is a compiled Permission or Principal. One type with a switch, rather
// than an interface, so that the facts need not escape to the heap.
type node struct {
	op     op
	kids   []node
	header *route.HeaderMatcher
	text   route.StringMatcher
	prefix netip.Prefix
	low    uint32 // ports, low <= port < high
	high   uint32
}

func anyOf(nodes []node, f *facts) bool {
	for i := range nodes {
		if nodes[i].match(f) {
			return true
		}
	}
	return false
}

func (n *node) match(f *facts) bool {
	switch n.op {
	case opAny:
		return true
	case opAnd:
		for i := range n.kids {
			if !n.kids[i].match(f) {
				return false
			}
		}
		return true
	case opOr:
		return anyOf(n.kids, f)
	case opNot:
		return !n.kids[0].match(f)
	case opHeader:
		return f.head != nil && n.header.Match(f.head)
	case opPath:
		if f.head == nil {
			return false
		}
		// Neither a query nor a fragment hides a path from a rule.
		p := f.head.Get(message.Path)
		return p != nil && n.text.Match(route.BarePath(p))
	case opDestinationIP:
		return n.prefix.Contains(f.destination().Addr().Unmap())
	case opDestinationPort:
		p := uint32(f.destination().Port())
		return n.low <= p && p < n.high
	case opServerName:
		return n.text.MatchString(f.conn.SNI)
	case opAuthenticated:
		return f.conn.Peer != nil
	case opPrincipal:
		return n.matchPrincipal(f)
	case opSourceIP:
		return n.prefix.Contains(f.conn.Remote.Addr().Unmap())
	case opDirectIP:
		return n.prefix.Contains(f.conn.Direct.Addr().Unmap())
	case opRemoteIP:
		return n.prefix.Contains(f.remote)
	}
	return false
}

// matchPrincipal compares the names of the client's certificate: URI names,
// then DNS names, then the subject. Without a verified certificate nothing
// matches, not even an expression that takes the empty string.
func (n *node) matchPrincipal(f *facts) bool {
	p := f.conn.Peer
	if p == nil {
		return false
	}
	for _, u := range p.URI {
		if n.text.MatchString(u) {
			return true
		}
	}
	for _, d := range p.DNS {
		if n.text.MatchString(d) {
			return true
		}
	}
	return n.text.MatchString(p.Subject)
}
