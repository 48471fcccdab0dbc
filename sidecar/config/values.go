package config

import (
	"net/netip"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cespare/xxhash/v2"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/conn"
)

// compiler is what the compile of one listener or cluster has at hand.
type compiler struct {
	*report
	env Env
	Needs
}

// Needs is what a compiled resource waits for, and keeps subscribed.
type Needs struct {
	Routes  []string // RDS
	EDS     string   // the name that the endpoints come under, "" for none
	Secrets []string // SDS over ADS
	// Fetch is how long to wait for them at first (initial_fetch_timeout): 0
	// where nothing was said, negative for ever.
	Fetch time.Duration
	// TLS are its contexts: the resource is usable when all are Ready.
	TLS []interface{ Ready() bool }
}

// Ready says that all secrets have arrived.
func (n *Needs) Ready() bool {
	for _, t := range n.TLS {
		if !t.Ready() {
			return false
		}
	}
	return true
}

func (n *Needs) tls(t interface {
	Ready() bool
	Secrets() []string
}) {
	n.TLS = append(n.TLS, t)
	n.Secrets = append(n.Secrets, t.Secrets()...)
}

// message is a proto with the rules that its file declares.
type message interface {
	proto.Message
	ValidateAll() error
}

// decode unpacks an extension's configuration, whose type was looked at
// already, and checks the rules of its proto file.
func (c *compiler) decode(path string, a *anypb.Any, m message) bool {
	if err := a.UnmarshalTo(m); err != nil {
		c.Errorf(path, "cannot be read as %s: %v", m.ProtoReflect().Descriptor().FullName(), err)
		return false
	}
	return fields.Validate(c.report, path, m)
}

// typeURL is the type URL of m, as an Any has it.
func typeURL(m proto.Message) string {
	return "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
}

// duration reads a duration, which must not be negative.
func (c *compiler) duration(path string, d *durationpb.Duration, absent time.Duration) time.Duration {
	if d == nil {
		return absent
	}
	if err := d.CheckValid(); err != nil {
		c.Errorf(path, "%v", err)
		return absent
	}
	t := d.AsDuration()
	if t < 0 {
		c.Errorf(path, "%s is negative", t)
		return absent
	}
	return t
}

func number(w *wrapperspb.UInt32Value, absent uint32) uint32 {
	if w == nil {
		return absent
	}
	return w.GetValue()
}

func boolean(w *wrapperspb.BoolValue, absent bool) bool {
	if w == nil {
		return absent
	}
	return w.GetValue()
}

var (
	socketFields = fields.Of(&corev3.SocketAddress{}, "protocol", "address", "port_value", "ipv4_compat").
			Refuse(&corev3.SocketAddress{}, "named_port", "resolver_name", "network_namespace_filepath")
	pipeFields = fields.Of(&corev3.Pipe{}, "path").Refuse(&corev3.Pipe{}, "mode")
)

// address reads an IP address or the path of a Unix socket.
func (c *compiler) address(path string, a *corev3.Address) (out conn.Address) {
	switch t := a.GetAddress().(type) {
	case *corev3.Address_SocketAddress:
		if ap, ok := c.socketAddress(path, a, corev3.SocketAddress_TCP); ok {
			return conn.TCP(ap)
		}
		return out
	case *corev3.Address_Pipe:
		at := fields.At(path, "pipe")
		checkFields(c.report, at, t.Pipe, pipeFields)
		return conn.Unix(t.Pipe.GetPath())
	case nil:
		c.Errorf(path, "is required")
	default:
		c.Errorf(path, "this kind of address is not implemented; use socket_address or pipe")
	}
	return out
}

// socketAddress is an address of that protocol.
func (c *compiler) socketAddress(path string, a *corev3.Address, want corev3.SocketAddress_Protocol) (out netip.AddrPort, ok bool) {
	s := a.GetSocketAddress()
	at := fields.At(path, "socket_address")
	if s == nil {
		c.Errorf(at, "is required")
		return out, false
	}
	checkFields(c.report, at, s, socketFields)
	if s.GetProtocol() != want {
		c.Errorf(fields.At(at, "protocol"), "%s is not implemented here; only %s is", s.GetProtocol(), want)
	}
	ip, err := netip.ParseAddr(s.GetAddress())
	if err != nil {
		c.Errorf(fields.At(at, "address"), "%q is not an IP address", s.GetAddress())
		return out, false
	}
	return netip.AddrPortFrom(ip, c.port(fields.At(at, "port_value"), s.GetPortValue())), true
}

func (c *compiler) port(path string, v uint32) uint16 {
	if v > 65535 {
		c.Errorf(path, "%d is not a port", v)
		return 0
	}
	return uint16(v)
}

// prefixes reads CIDR ranges.
func (c *compiler) prefixes(path, field string, list []*corev3.CidrRange) (out []netip.Prefix) {
	for i, r := range list {
		at := fields.Index(path, field, i)
		ip, err := netip.ParseAddr(r.GetAddressPrefix())
		if err != nil {
			c.Errorf(fields.At(at, "address_prefix"), "%q is not an IP address", r.GetAddressPrefix())
			continue
		}
		p := netip.PrefixFrom(ip.Unmap(), int(r.GetPrefixLen().GetValue()))
		if !p.IsValid() {
			c.Errorf(fields.At(at, "prefix_len"), "%d is longer than the address", r.GetPrefixLen().GetValue())
			continue
		}
		out = append(out, p.Masked())
	}
	return out
}

// percent is a percentage in hundredths of one percent.
func (c *compiler) percent(path string, p *typev3.Percent, absent uint32) uint32 {
	if p == nil {
		return absent
	}
	if v := p.GetValue(); !(v >= 0 && v <= 100) {
		c.Errorf(path, "%v is not a percentage from 0 to 100", v)
		return absent
	}
	return uint32(p.GetValue()*100 + 0.5)
}

// fingerprint hashes m without the named fields. Nothing is copied deeply.
func fingerprint(m proto.Message, except ...protoreflect.Name) uint64 {
	pm := m.ProtoReflect()
	if len(except) > 0 {
		shallow := pm.New()
		pm.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			for _, n := range except {
				if fd.Name() == n {
					return true
				}
			}
			shallow.Set(fd, v)
			return true
		})
		shallow.SetUnknown(pm.GetUnknown())
		pm = shallow
	}
	b, err := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(pm.Interface())
	if err != nil {
		return 0 // invalid UTF-8 alone does that; validation has refused it
	}
	return xxhash.Sum64(b)
}
