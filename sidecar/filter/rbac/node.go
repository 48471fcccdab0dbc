package rbac

import (
	"net/netip"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/route/regex"
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

func anyOf(nodes []node, f *facts) regex.Answer {
	any := regex.No
	for i := range nodes {
		switch nodes[i].match(f) {
		case regex.Yes:
			return regex.Yes
		case regex.Unknown:
			any = regex.Unknown
		}
	}
	return any
}

// match says whether the node matches, or that this would take too long to
// find out, which the node above it may still make up for.
func (n *node) match(f *facts) regex.Answer {
	switch n.op {
	case opAnd:
		all := regex.Yes
		for i := range n.kids {
			switch n.kids[i].match(f) {
			case regex.No:
				return regex.No
			case regex.Unknown:
				all = regex.Unknown
			}
		}
		return all
	case opOr:
		return anyOf(n.kids, f)
	case opNot:
		return n.kids[0].match(f).Not()
	case opHeader:
		if f.head == nil {
			return regex.No
		}
		return n.header.Try(f.head, &f.work)
	case opPath:
		if f.head == nil || !f.head.Has(message.Path) {
			return regex.No
		}
		// Neither a query nor a fragment hides a path from a rule.
		return n.text.Try(route.BarePath(f.head.Get(message.Path)), &f.work)
	case opServerName:
		return n.text.TryString(f.conn.SNI, &f.work)
	case opPrincipal:
		return n.matchPrincipal(f)
	}
	return regex.Of(n.holds(f))
}

// holds is match for what is about the connection and costs nothing.
func (n *node) holds(f *facts) bool {
	switch n.op {
	case opAny:
		return true
	case opDestinationIP:
		return n.prefix.Contains(f.destination().Addr().Unmap())
	case opDestinationPort:
		p := uint32(f.destination().Port())
		return n.low <= p && p < n.high
	case opAuthenticated:
		return f.conn.Peer != nil
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
func (n *node) matchPrincipal(f *facts) regex.Answer {
	p := f.conn.Peer
	if p == nil {
		return regex.No
	}
	uri := n.anyName(p.URI, f)
	if uri == regex.Yes {
		return uri
	}
	return uri.Or(n.anyName(p.DNS, f)).Or(n.text.TryString(p.Subject, &f.work))
}

func (n *node) anyName(names []string, f *facts) regex.Answer {
	any := regex.No
	for _, name := range names {
		if any = any.Or(n.text.TryString(name, &f.work)); any == regex.Yes {
			break
		}
	}
	return any
}
