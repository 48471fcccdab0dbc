package redirect

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// reg is the one register that every expression loads and the next compares.
const reg = 1

// nftRule turns rules into expressions of nf_tables, and adds the sets that they look up to the batch. The expressions
// are those that nft makes of the printed form, so that "nft list ruleset" shows the latter.
type nftRule struct {
	conn  *nftables.Conn
	table *nftables.Table
	out   []expr.Any
	err   error
}

func (n *nftRule) add(e ...expr.Any) { n.out = append(n.out, e...) }

func (n *nftRule) equal(data []byte) { n.add(&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}) }

func (n *nftRule) lookup(s *nftables.Set, elements []nftables.SetElement) {
	s.Table, s.Anonymous, s.Constant = n.table, true, true
	if err := n.conn.AddSet(s, elements); err != nil && n.err == nil {
		n.err = err
	}
	n.add(&expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID})
}

// interval is a set's range: its first key, and the first that is not in it any more; nil where the range goes to the end.
type interval struct{ from, after []byte }

func (n *nftRule) inIntervals(kind nftables.SetDatatype, of []interval) {
	// What lies before the first range must be said to be no member.
	var elements []nftables.SetElement
	if zero := make([]byte, kind.Bytes); string(of[0].from) != string(zero) {
		elements = append(elements, nftables.SetElement{Key: zero, IntervalEnd: true})
	}
	for _, i := range of {
		elements = append(elements, nftables.SetElement{Key: i.from})
		if i.after != nil {
			elements = append(elements, nftables.SetElement{Key: i.after, IntervalEnd: true})
		}
	}
	n.lookup(&nftables.Set{KeyType: kind, Interval: true, KeyByteOrder: binaryutil.BigEndian}, elements)
}

// exprs are the conditions and the verdict of a rule; cgroups are those that it may name.
func (n *nftRule) exprs(r *Rule, cgroups map[string]cgroup) []expr.Any {
	meta := func(key expr.MetaKey) { n.add(&expr.Meta{Key: key, Register: reg}) }
	oneOf := func(key expr.MetaKey, keys [][]byte) {
		if len(keys) == 0 {
			return
		}
		meta(key)
		if len(keys) == 1 {
			n.equal(keys[0])
			return
		}
		n.add(&expr.Lookup{SourceRegister: reg, SetName: r.Set})
	}
	oneOf(expr.MetaKeySKUID, keysOf(r.UIDs, binaryutil.NativeEndian.PutUint32))
	oneOf(expr.MetaKeySKGID, keysOf(r.GIDs, binaryutil.NativeEndian.PutUint32))
	if r.Mark != 0 {
		meta(expr.MetaKeyMARK)
		n.equal(binaryutil.NativeEndian.PutUint32(r.Mark))
	}
	if r.Cgroup != "" {
		g := cgroups[r.Cgroup]
		n.add(&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: g.level, Register: reg})
		n.equal(binaryutil.NativeEndian.PutUint64(g.id))
	}
	oneOf(expr.MetaKeyIIFNAME, keysOf(r.In, interfaceKey))
	oneOf(expr.MetaKeyOIFNAME, keysOf(r.Out, interfaceKey))
	if len(r.Nets) > 0 {
		n.nets(r.Nets)
	}
	if r.Local {
		n.add(&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true})
		n.equal(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL))
	}
	if r.TCP || r.UDP {
		proto := byte(unix.IPPROTO_TCP)
		if r.UDP {
			proto = unix.IPPROTO_UDP
		}
		meta(expr.MetaKeyL4PROTO)
		n.equal([]byte{proto})
	}
	n.ports(r.Ports)
	if r.SYN {
		const flagsOffset, fin, syn, rst, ack = 13, 0x01, 0x02, 0x04, 0x10 // RFC 9293 section 3.1
		n.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1},
			&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}})
		n.equal([]byte{syn})
	}
	if r.DNAT {
		dnat := binaryutil.NativeEndian.PutUint32(1 << 5) // IPS_DST_NAT
		n.add(&expr.Ct{Key: expr.CtKeySTATUS, Register: reg},
			&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: dnat, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)})
	}
	if r.ConnMark != 0 {
		n.add(&expr.Ct{Key: expr.CtKeyMARK, Register: reg})
		n.equal(binaryutil.NativeEndian.PutUint32(r.ConnMark))
	}
	if r.Original || r.Reply {
		direction := byte(0) // IP_CT_DIR_ORIGINAL
		if r.Reply {
			direction = 1
		}
		n.add(&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg})
		n.equal([]byte{direction})
	}
	n.verdict(&r.Do)
	return n.out
}

func (n *nftRule) nets(nets []netip.Prefix) {
	family, offset, length, kind := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4), nftables.TypeIPAddr
	if nets[0].Addr().Is6() {
		family, offset, length, kind = unix.NFPROTO_IPV6, 24, 16, nftables.TypeIP6Addr
	}
	n.add(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg})
	n.equal([]byte{family})
	load := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
	n.add(load)
	if len(nets) == 1 {
		bits, key := nets[0].Bits(), nets[0].Addr().AsSlice()
		switch {
		case bits > 0 && bits%8 == 0: // nft loads no more than it compares
			load.Len = uint32(bits / 8)
			key = key[:load.Len]
		default:
			mask := make([]byte, length)
			for i := range bits {
				mask[i/8] |= 0x80 >> (i % 8)
			}
			n.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: length, Mask: mask, Xor: make([]byte, length)})
		}
		n.equal(key)
		return
	}
	of := make([]interval, len(nets))
	for i, p := range nets {
		of[i] = interval{from: p.Addr().AsSlice()}
		if next := lastOf(p).Next(); next.IsValid() {
			of[i].after = next.AsSlice()
		}
	}
	n.inIntervals(kind, joinIntervals(of))
}

// joinIntervals joins neighbors: the end of one must not be there again as the start of the next.
func joinIntervals(in []interval) (out []interval) {
	for _, i := range in {
		if last := len(out) - 1; last >= 0 && string(out[last].after) == string(i.from) {
			out[last].after = i.after
			continue
		}
		out = append(out, i)
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (n *nftRule) ports(ports []PortRange) {
	if len(ports) == 0 {
		return
	}
	n.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
	single, ranges := true, make([]interval, len(ports))
	keys := make([]nftables.SetElement, len(ports))
	for i, p := range ports {
		single = single && p.From == p.To
		keys[i].Key = big16(p.From)
		ranges[i] = interval{from: big16(p.From)}
		if p.To != 65535 {
			ranges[i].after = big16(p.To + 1)
		}
	}
	switch {
	case single && len(ports) == 1:
		n.equal(keys[0].Key)
	case single:
		n.lookup(&nftables.Set{KeyType: nftables.TypeInetService, KeyByteOrder: binaryutil.BigEndian}, keys)
	case len(ports) == 1:
		n.add(&expr.Range{Op: expr.CmpOpEq, Register: reg, FromData: big16(ports[0].From), ToData: big16(ports[0].To)})
	default:
		n.inIntervals(nftables.TypeInetService, ranges)
	}
}

func (n *nftRule) verdict(v *Verdict) {
	port := func(p uint16) { n.add(&expr.Immediate{Register: reg, Data: big16(p)}) }
	mark := func(m uint32) { n.add(&expr.Immediate{Register: reg, Data: binaryutil.NativeEndian.PutUint32(m)}) }
	switch {
	case v.Return:
		n.add(&expr.Verdict{Kind: expr.VerdictReturn})
	case v.Drop:
		n.add(&expr.Verdict{Kind: expr.VerdictDrop})
	case v.Jump != "":
		n.add(&expr.Verdict{Kind: expr.VerdictJump, Chain: v.Jump})
	case v.Redirect != 0:
		port(v.Redirect)
		n.add(&expr.Redir{RegisterProtoMin: reg})
	case v.TProxy != 0:
		port(v.TProxy)
		n.add(&expr.TProxy{Family: unix.NFPROTO_UNSPEC, TableFamily: unix.NFPROTO_INET, RegPort: reg})
		mark(routeMark)
		n.add(&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg}, &expr.Verdict{Kind: expr.VerdictAccept})
	case v.SetMark != 0:
		mark(v.SetMark)
		n.add(&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg})
	case v.SetConnMark != 0:
		mark(v.SetConnMark)
		n.add(&expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: reg})
	}
}

// interfaceKey is a name as the kernel has it in a register, filled up with zeros.
func interfaceKey(name string) []byte {
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

func big16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
