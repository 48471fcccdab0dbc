package build

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/types/known/structpb"

	"sallyport/certs"
	"sallyport/xds/catalog"
	"sallyport/xds/document"
)

// Kind is the part that a proxy plays.
type Kind string

// The kinds.
const (
	Sidecar Kind = "sidecar" // beside one instance of a service
	Edge    Kind = "edge"    // a Gateway
	L4      Kind = "l4"      // spreads TCP connections over the edges of a Gateway
)

// DefaultSidecarPort is where a sidecar listens for the mesh that neither says it nor is in the catalog.
const DefaultSidecarPort = 20000

// maxUpstreams bounds what one sidecar may ask for.
const maxUpstreams = 1024

// Proxy is what a proxy says of itself in its Node's metadata. Comparable by Key.
type Proxy struct {
	Kind      Kind
	Namespace string
	// Service of a sidecar. Of an L4 tier: the service in the catalog whose instances are the edges; default: Gateway.
	Service string
	Gateway string // of an edge or L4 tier
	Port    uint32 // of the application
	// Listen is where the mesh comes in (sidecar: HOST:PORT), or the address of the listeners (edge, L4: HOST or HOST:PORT; a
	// port takes the place of the Gateway's, where the Gateway has one listener only).
	Listen    string
	Listeners map[string]string // edge, L4: HOST:PORT by name of the Gateway's listener
	Upstreams []Upstream
	// Transparent is nil where the application itself knows its sidecar.
	Transparent *Transparent
	Region      string
	Zone        string
}

// Upstream is a service that the application reaches on a port of 127.0.0.1.
type Upstream struct {
	Service catalog.Name
	Port    uint32
}

// ParseNode reads a Node. Its metadata is what a stranger sent: it proves nothing, see Identity.
func ParseNode(n *corev3.Node) (Proxy, error) {
	m := n.GetMetadata().GetFields()
	r := nodeReader{fields: m}
	p := Proxy{
		Kind: Kind(r.text("kind")), Namespace: r.text("namespace"), Service: r.text("service"), Gateway: r.text("gateway"),
		Port: r.port("port", m["port"]), Listen: r.text("listen"), Region: n.GetLocality().GetRegion(), Zone: n.GetLocality().GetZone(),
	}
	if p.Namespace == "" {
		p.Namespace = catalog.DefaultNamespace
	}
	for name, v := range m["listeners"].GetStructValue().GetFields() {
		if p.Listeners == nil {
			p.Listeners = map[string]string{}
		}
		p.Listeners[name] = v.GetStringValue()
		r.address("listeners."+name, v.GetStringValue(), false)
	}
	for i, v := range m["upstreams"].GetListValue().GetValues() {
		if i == maxUpstreams {
			return p, fmt.Errorf("node metadata: more than %d upstreams", maxUpstreams)
		}
		f := v.GetStructValue().GetFields()
		at := fmt.Sprintf("upstreams[%d]", i)
		u := Upstream{catalog.ParseName(f["service"].GetStringValue(), p.Namespace), r.port(at+".port", f["port"])}
		r.segment(at+".service", u.Service.Name)
		r.segment(at+".service", u.Service.Namespace)
		if u.Port == 0 {
			r.fail(at+".port", "is required")
		}
		p.Upstreams = append(p.Upstreams, u)
	}
	slices.SortFunc(p.Upstreams, func(a, b Upstream) int { return int(a.Port) - int(b.Port) })
	for i := 1; i < len(p.Upstreams); i++ {
		if p.Upstreams[i].Port == p.Upstreams[i-1].Port {
			r.fail("upstreams", "port %d is used twice", p.Upstreams[i].Port)
		}
	}
	if v, ok := m["transparent"]; ok {
		p.Transparent = r.transparent(v.GetStructValue().GetFields())
		if p.Kind != Sidecar {
			r.fail("transparent", "is for sidecars, not for an %s", p.Kind)
		}
	}
	r.segment("namespace", p.Namespace)
	switch p.Kind {
	case Sidecar:
		r.segment("service", p.Service)
		r.address("listen", p.Listen, false)
		if p.Port == 0 && p.Transparent == nil {
			r.fail("port", "is required: where the application listens")
		}
	case Edge, L4:
		r.segment("gateway", p.Gateway)
		r.address("listen", p.Listen, true)
		if p.Service != "" {
			r.segment("service", p.Service)
		}
	default:
		kinds := []string{string(Sidecar), string(Edge), string(L4)}
		r.fail("kind", "%q is not known%s", p.Kind, document.DidYouMean(string(p.Kind), kinds))
	}
	return p, r.err
}

func (r *nodeReader) transparent(f map[string]*structpb.Value) *Transparent {
	t := &Transparent{Outbound: r.port("transparent.outbound", f["outbound"]), Inbound: r.port("transparent.inbound", f["inbound"]),
		DNS: r.port("transparent.dns", f["dns"]), TProxy: f["tproxy"].GetBoolValue(), IPv6: f["ipv6"].GetBoolValue()}
	if t.Outbound == 0 || t.Inbound == 0 {
		r.fail("transparent", "outbound and inbound are required: the ports that redirection leads to")
	}
	if t.Outbound == t.Inbound || t.DNS == t.Outbound || t.DNS == t.Inbound {
		r.fail("transparent", "the ports must differ")
	}
	return t
}

type nodeReader struct {
	fields map[string]*structpb.Value
	err    error
}

func (r *nodeReader) fail(field, format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("node metadata: %s: %s", field, fmt.Sprintf(format, args...))
	}
}

func (r *nodeReader) text(field string) string {
	v, ok := r.fields[field]
	if !ok {
		return ""
	}
	s, ok := v.GetKind().(*structpb.Value_StringValue)
	if !ok || len(s.StringValue) > 253 {
		r.fail(field, "must be a string of at most 253 bytes")
		return ""
	}
	return s.StringValue
}

func (r *nodeReader) port(field string, v *structpb.Value) uint32 {
	switch k := v.GetKind().(type) {
	case nil:
		return 0
	case *structpb.Value_NumberValue:
		if p := uint32(k.NumberValue); float64(p) == k.NumberValue && p > 0 && p < 65536 {
			return p
		}
	case *structpb.Value_StringValue:
		if p, err := strconv.ParseUint(k.StringValue, 10, 16); err == nil && p > 0 {
			return uint32(p)
		}
	}
	r.fail(field, "is not a port")
	return 0
}

func (r *nodeReader) segment(field, s string) {
	if s == "" {
		r.fail(field, "is required")
	} else if err := spiffeid.ValidatePathSegment(s); err != nil {
		r.fail(field, "%q: %v", s, err)
	}
}

func (r *nodeReader) address(field, s string, hostOnly bool) {
	if s == "" {
		return
	}
	if _, err := netip.ParseAddrPort(s); err == nil {
		return
	}
	if _, err := netip.ParseAddr(s); err == nil && hostOnly {
		return
	}
	r.fail(field, "%q is not an IP address with a port", s)
}

// Identity is the SPIFFE ID that a proxy must have to be what it says: that of the service, or that of the gateway.
func (p Proxy) Identity(td spiffeid.TrustDomain) (spiffeid.ID, error) {
	if p.Kind != Sidecar {
		return certs.GatewayID(td, p.Namespace, p.Gateway)
	}
	return certs.ServiceID(td, p.Namespace, p.Service)
}

// Key tells proxies apart that get different configurations.
func (p Proxy) Key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s|%s|%s|%s|%d|%s|%s|%s", p.Kind, p.Namespace, p.Service, p.Gateway, p.Port, p.Listen, p.Region, p.Zone)
	names := make([]string, 0, len(p.Listeners))
	for n, a := range p.Listeners {
		names = append(names, n+"="+a)
	}
	slices.Sort(names)
	fmt.Fprintf(&b, "|%q|%v", names, p.Upstreams)
	if p.Transparent != nil {
		fmt.Fprintf(&b, "|%+v", *p.Transparent)
	}
	return b.String()
}

func (p Proxy) String() string {
	switch p.Kind {
	case Sidecar:
		return "sidecar of " + p.Namespace + "/" + p.Service
	case Edge:
		return "edge of gateway " + p.Namespace + "/" + p.Gateway
	}
	return "L4 tier of gateway " + p.Namespace + "/" + p.Gateway
}
