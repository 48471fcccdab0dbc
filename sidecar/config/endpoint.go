package config

import (
	"net/netip"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/upstream"
)

// Endpoints is a compiled load assignment. Immutable.
type Endpoints struct {
	Cluster  string
	List     []upstream.Endpoint
	Drop     uint32 // in 1/10,000
	Warnings []Warning
}

var (
	assignmentFields = fields.Of(&endpointv3.ClusterLoadAssignment{}, "cluster_name", "endpoints", "policy").
				Refuse(&endpointv3.ClusterLoadAssignment{}, "named_endpoints")
	policyFields   = fields.Of(&endpointv3.ClusterLoadAssignment_Policy{}, "drop_overloads")
	localityFields = fields.Of(&endpointv3.LocalityLbEndpoints{}, "locality", "lb_endpoints", "priority").
		// The weight of a locality counts only where a policy asks for it, and that is reported there.
		Harmless(&endpointv3.LocalityLbEndpoints{}, "metadata", "load_balancing_weight").
		Refuse(&endpointv3.LocalityLbEndpoints{}, "load_balancer_endpoints", "leds_cluster_locality_config")
	// Metadata chooses subsets and transport sockets, which are refused at the cluster.
	lbEndpointFields = fields.Of(&endpointv3.LbEndpoint{}, "endpoint", "health_status", "load_balancing_weight").
				Harmless(&endpointv3.LbEndpoint{}, "metadata").
				Refuse(&endpointv3.LbEndpoint{}, "endpoint_name")
	endpointFields = fields.Of(&endpointv3.Endpoint{}, "address", "hostname", "health_check_config").
			Harmless(&endpointv3.Endpoint{}, "observability_name")
	checkConfigFields = fields.Of(&endpointv3.Endpoint_HealthCheckConfig{}, "port_value", "address")
)

// CompileEndpoints compiles an EDS resource.
func CompileEndpoints(m *endpointv3.ClusterLoadAssignment) (*Endpoints, error) {
	c := &compiler{report: fields.NewReport("endpoints of", m.GetClusterName())}
	var e *Endpoints
	if fields.Validate(c.report, "", m) {
		e = c.endpoints("", m, false)
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	e.Warnings = c.Warnings
	return e, nil
}

// endpoints compiles a load assignment that was validated; names says that
// addresses are names still to be resolved (DNS clusters).
func (c *compiler) endpoints(path string, m *endpointv3.ClusterLoadAssignment, names bool) *Endpoints {
	e := &Endpoints{Cluster: m.GetClusterName()}
	checkFields(c.report, path, m, assignmentFields)
	if p := m.GetPolicy(); p != nil {
		at := fields.At(path, "policy")
		checkFields(c.report, at, p, policyFields)
		e.Drop = c.drop(at, p.GetDropOverloads())
	}
	total := 0
	for _, l := range m.GetEndpoints() {
		total += len(l.GetLbEndpoints())
	}
	e.List = make([]upstream.Endpoint, 0, total)
	for i, l := range m.GetEndpoints() {
		at := fields.Index(path, "endpoints", i)
		checkFields(c.report, at, l, localityFields)
		common := upstream.Endpoint{Priority: l.GetPriority(), Region: l.GetLocality().GetRegion(), Zone: l.GetLocality().GetZone()}
		if l.GetPriority() > 128 {
			c.Errorf(fields.At(at, "priority"), "%d is above 128", l.GetPriority())
		}
		for j, h := range l.GetLbEndpoints() {
			e.List = append(e.List, common)
			c.endpoint(at, j, h, names, &e.List[len(e.List)-1])
		}
	}
	return e
}

// endpoint compiles one host. There may be very many of them: what is usual
// is looked at with no reflection, and paths are made only for errors.
func (c *compiler) endpoint(path string, i int, m *endpointv3.LbEndpoint, names bool, out *upstream.Endpoint) {
	h := m.GetEndpoint()
	s := h.GetAddress().GetSocketAddress()
	if h == nil || s == nil || h.HealthCheckConfig != nil || len(h.AdditionalAddresses) > 0 || h.ObservabilityName != "" ||
		s.Protocol != corev3.SocketAddress_TCP || s.ResolverName != "" || s.NetworkNamespaceFilepath != "" || m.Metadata != nil {
		c.unusual(fields.Index(path, "lb_endpoints", i), m, out)
	}
	out.Hostname = h.GetHostname()
	out.Weight = max(m.GetLoadBalancingWeight().GetValue(), 1)
	switch m.GetHealthStatus() {
	case corev3.HealthStatus_UNHEALTHY, corev3.HealthStatus_TIMEOUT:
		out.Health = upstream.Unhealthy
	case corev3.HealthStatus_DRAINING:
		out.Health = upstream.Draining
	case corev3.HealthStatus_DEGRADED:
		out.Health = upstream.Degraded
	}
	if s == nil {
		return
	}
	at := func(field string) string {
		return fields.At(fields.Index(path, "lb_endpoints", i), "endpoint.address.socket_address."+field)
	}
	if s.GetPortValue() > 65535 || s.GetPortValue() == 0 {
		c.Errorf(at("port_value"), "%d is not a port", s.GetPortValue())
		return
	}
	port := uint16(s.GetPortValue())
	if names {
		if s.GetAddress() == "" {
			c.Errorf(at("address"), "is required")
		}
		out.Hostname, out.Port = s.GetAddress(), port
		return
	}
	ip, err := netip.ParseAddr(s.GetAddress())
	if err != nil {
		c.Errorf(at("address"), "%q is not an IP address; a cluster with names is of type STRICT_DNS or LOGICAL_DNS", s.GetAddress())
		return
	}
	out.Address = netip.AddrPortFrom(ip.Unmap(), port)
	c.checkAddress(h, out)
}

// checkAddress is where active health checks go, if they go elsewhere.
func (c *compiler) checkAddress(h *endpointv3.Endpoint, out *upstream.Endpoint) {
	k := h.GetHealthCheckConfig()
	if k == nil {
		return
	}
	a := out.Address
	if ip, err := netip.ParseAddr(k.GetAddress().GetSocketAddress().GetAddress()); err == nil {
		a = netip.AddrPortFrom(ip.Unmap(), uint16(k.GetAddress().GetSocketAddress().GetPortValue()))
	}
	if p := k.GetPortValue(); p != 0 {
		a = netip.AddrPortFrom(a.Addr(), uint16(p))
	}
	if a != out.Address {
		out.HealthAddress = a
	}
}

// unusual checks what most endpoints do not have.
func (c *compiler) unusual(path string, m *endpointv3.LbEndpoint, out *upstream.Endpoint) {
	checkFields(c.report, path, m, lbEndpointFields)
	h := m.GetEndpoint()
	at := fields.At(path, "endpoint")
	if h == nil {
		c.Errorf(at, "is required")
		return
	}
	checkFields(c.report, at, h, endpointFields)
	if k := h.GetHealthCheckConfig(); k != nil {
		checkFields(c.report, fields.At(at, "health_check_config"), k, checkConfigFields)
		if k.GetAddress() != nil {
			c.address(fields.At(at, "health_check_config.address"), k.GetAddress())
		}
		if k.GetPortValue() > 65535 {
			c.Errorf(fields.At(at, "health_check_config.port_value"), "%s is not a port", strconv.Itoa(int(k.GetPortValue())))
		}
	}
	at = fields.At(at, "address")
	switch t := h.GetAddress().GetAddress().(type) {
	case *corev3.Address_SocketAddress:
		at = fields.At(at, "socket_address")
		checkFields(c.report, at, t.SocketAddress, socketFields)
		if t.SocketAddress.GetProtocol() != corev3.SocketAddress_TCP {
			c.Errorf(fields.At(at, "protocol"), "%s is not implemented; only TCP is", t.SocketAddress.GetProtocol())
		}
	case *corev3.Address_Pipe:
		checkFields(c.report, fields.At(at, "pipe"), t.Pipe, pipeFields)
		out.Path = t.Pipe.GetPath()
	case nil:
		c.Errorf(at, "is required")
	default:
		c.Errorf(at, "this kind of address is not implemented; use socket_address or pipe")
	}
}

// drop is the share of requests to turn away. Several categories apply one
// after the other, each to what the ones before let through.
func (c *compiler) drop(path string, list []*endpointv3.ClusterLoadAssignment_Policy_DropOverload) uint32 {
	keep := 1.0
	for i, d := range list {
		p := d.GetDropPercentage()
		whole := 100.0
		switch p.GetDenominator() {
		case typev3.FractionalPercent_TEN_THOUSAND:
			whole = 10_000
		case typev3.FractionalPercent_MILLION:
			whole = 1_000_000
		}
		share := float64(p.GetNumerator()) / whole
		if share > 1 {
			c.Errorf(fields.At(fields.Index(path, "drop_overloads", i), "drop_percentage"), "%d is more than all", p.GetNumerator())
			return 0
		}
		keep *= 1 - share
	}
	return uint32((1-keep)*10_000 + 0.5)
}
