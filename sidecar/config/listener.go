package config

//lint:file-ignore SA1019 files in use have deprecated fields, which Envoy reads still, and so do we

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	originalsrcv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	inspectv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/listener"
)

// Listener is a compiled listener and what it needs. Immutable.
type Listener struct {
	Config   *listener.Config
	Needs    Needs
	Warnings []Warning
}

var (
	listenerFields = fields.Of(&listenerv3.Listener{}, "name", "address", "additional_addresses", "stat_prefix", "filter_chains",
		"use_original_dst", "default_filter_chain", "per_connection_buffer_limit_bytes", "deprecated_v1", "listener_filters",
		"listener_filters_timeout", "continue_on_listener_filters_timeout", "transparent", "freebind", "access_log", "tcp_backlog_size", "bind_to_port").
		// How connections are drained and spread over workers is the engine's own affair.
		Harmless(&listenerv3.Listener{}, "metadata", "drain_type", "traffic_direction", "reuse_port", "enable_reuse_port", "stats_matcher",
			"max_connections_to_accept_per_socket_event", "ignore_global_conn_limit", "bypass_overload_manager", "connection_balance_config").
		Refuse(&listenerv3.Listener{}, "udp_listener_config", "api_listener", "internal_listener", "filter_chain_matcher", "fcds_config")

	additionalFields = fields.Of(&listenerv3.AdditionalAddress{}, "address")
	chainFields      = fields.Of(&listenerv3.FilterChain{}, "name", "filter_chain_match", "filters", "use_proxy_proto", "transport_socket", "transport_socket_connect_timeout").
				Harmless(&listenerv3.FilterChain{}, "metadata")
	chainMatchFields = fields.Of(&listenerv3.FilterChainMatch{}, "destination_port", "prefix_ranges", "direct_source_prefix_ranges",
		"source_type", "source_prefix_ranges", "source_ports", "server_names", "transport_protocol", "application_protocols").Strict()
	originalSrcFields    = fields.Of(&originalsrcv3.OriginalSrc{}, "bind_port", "mark")
	listenerFilterFields = fields.Of(&listenerv3.ListenerFilter{}, "name", "typed_config").
				Refuse(&listenerv3.ListenerFilter{}, "config_discovery", "filter_disabled")

	inspectFields = fields.Of(&inspectv3.TlsInspector{}).Harmless(&inspectv3.TlsInspector{}, "initial_read_buffer_size", "max_client_hello_size", "enable_ja3_fingerprinting", "enable_ja4_fingerprinting")
	proxyFields   = fields.Of(&proxyv3.ProxyProtocol{}, "allow_requests_without_proxy_protocol").
			Harmless(&proxyv3.ProxyProtocol{}, "stat_prefix", "tlv_location").
			Refuse(&proxyv3.ProxyProtocol{}, "disallowed_versions")
)

const (
	defaultFilterTime = 15 * time.Second
	defaultHandshake  = 15 * time.Second
	defaultBacklog    = 4096
)

// CompileListener compiles an LDS resource.
func CompileListener(m *listenerv3.Listener, env Env) (*Listener, error) {
	c := &compiler{report: fields.NewReport("listener", m.GetName()), env: env.complete()}
	var out *listener.Config
	if fields.Validate(c.report, "", m) {
		if m.GetAddress().GetSocketAddress().GetProtocol() == corev3.SocketAddress_UDP {
			out = c.dnsListener(m)
		} else {
			out = c.listener(m)
		}
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	return &Listener{Config: out, Needs: c.Needs, Warnings: c.Warnings}, nil
}

func (c *compiler) listener(m *listenerv3.Listener) *listener.Config {
	checkFields(c.report, "", m, listenerFields)
	o := &listener.Config{
		Name: m.GetName(), StatPrefix: m.GetStatPrefix(),
		Bind:         boolean(m.GetBindToPort(), boolean(m.GetDeprecatedV1().GetBindToPort(), true)),
		Transparent:  m.GetTransparent().GetValue(),
		FreeBind:     m.GetFreebind().GetValue(),
		Backlog:      int(number(m.GetTcpBacklogSize(), defaultBacklog)),
		BufferLimit:  int(number(m.GetPerConnectionBufferLimitBytes(), defaultBuffer)),
		FilterTime:   c.duration("listener_filters_timeout", m.GetListenerFiltersTimeout(), defaultFilterTime),
		ContinueTime: m.GetContinueOnListenerFiltersTimeout(),
		OriginalDst:  m.GetUseOriginalDst().GetValue(),
		HandOff:      m.GetUseOriginalDst().GetValue(),
	}
	o.Addresses = append(o.Addresses, c.address("address", m.GetAddress()))
	o.IPv4Compat = m.GetAddress().GetSocketAddress().GetIpv4Compat()
	for i, a := range m.GetAdditionalAddresses() {
		at := fields.Index("", "additional_addresses", i)
		checkFields(c.report, at, a, additionalFields)
		o.Addresses = append(o.Addresses, c.address(fields.At(at, "address"), a.GetAddress()))
		o.IPv4Compat = o.IPv4Compat || a.GetAddress().GetSocketAddress().GetIpv4Compat()
	}
	if o.StatPrefix == "" {
		o.StatPrefix = o.Addresses[0].String()
	}
	for i, f := range m.GetListenerFilters() {
		c.listenerFilter(fields.Index("", "listener_filters", i), f, o)
	}
	o.AccessLogs = c.accessLogs("", m.GetAccessLog())
	known := map[string]int{}
	for i, f := range m.GetFilterChains() {
		at := fields.Index("", "filter_chains", i)
		chain := c.chain(at, f, o)
		if first, twice := known[matchKey(f.GetFilterChainMatch())]; twice {
			c.Errorf(fields.At(at, "filter_chain_match"), "is the same as that of filter_chains[%d]: a connection would match both", first)
		} else {
			known[matchKey(f.GetFilterChainMatch())] = i
		}
		o.Chains = append(o.Chains, chain)
	}
	if f := m.GetDefaultFilterChain(); f != nil {
		o.Default = c.chain("default_filter_chain", f, o)
	}
	if len(o.Chains) == 0 && o.Default == nil {
		c.Errorf("filter_chains", "is required: without one every connection would be closed")
	}
	o.Hash = socketHash(o)
	return o
}

// socketHash identifies the listening sockets.
func socketHash(o *listener.Config) uint64 {
	var b strings.Builder
	for _, a := range o.Addresses {
		b.WriteString(a.String())
		b.WriteByte(0)
	}
	for _, v := range []bool{o.Bind, o.Transparent, o.FreeBind, o.IPv4Compat} {
		b.WriteString(strconv.FormatBool(v))
	}
	b.WriteString(strconv.Itoa(o.Backlog))
	return xxhash.Sum64String(b.String())
}

func (c *compiler) listenerFilter(path string, f *listenerv3.ListenerFilter, o *listener.Config) {
	checkFields(c.report, path, f, listenerFilterFields)
	at := fields.At(path, "typed_config")
	a := f.GetTypedConfig()
	switch a.GetTypeUrl() {
	case typeURL((*inspectv3.TlsInspector)(nil)):
		var m inspectv3.TlsInspector
		if c.decode(at, a, &m) {
			checkFields(c.report, at, &m, inspectFields)
		}
		o.Inspect = true
	case typeURL((*httpinspectv3.HttpInspector)(nil)):
		o.HTTPInspect = true
	case typeURL((*originaldstv3.OriginalDst)(nil)):
		o.OriginalDst = true
	case typeURL((*originalsrcv3.OriginalSrc)(nil)):
		var m originalsrcv3.OriginalSrc
		if c.decode(at, a, &m) {
			checkFields(c.report, at, &m, originalSrcFields)
			o.OriginalSrc = &listener.OriginalSrc{BindPort: m.GetBindPort(), Mark: m.GetMark()}
		}
	case typeURL((*proxyv3.ProxyProtocol)(nil)):
		var m proxyv3.ProxyProtocol
		if c.decode(at, a, &m) {
			checkFields(c.report, at, &m, proxyFields)
		}
		o.ProxyHeader, o.ProxyOption = true, m.GetAllowRequestsWithoutProxyProtocol()
	case "":
		c.Errorf(at, "is required")
	default:
		c.Errorf(at, "%s is not implemented as a listener filter; tls_inspector, http_inspector, original_dst, original_src and proxy_protocol are", a.GetTypeUrl())
	}
}

// chain compiles a filter chain.
func (c *compiler) chain(path string, f *listenerv3.FilterChain, o *listener.Config) *listener.Chain {
	checkFields(c.report, path, f, chainFields)
	ch := &listener.Chain{
		Name:      f.GetName(),
		Match:     c.chainMatch(fields.At(path, "filter_chain_match"), f.GetFilterChainMatch()),
		Key:       f.GetName() + "\x00" + matchKey(f.GetFilterChainMatch()),
		Handshake: c.duration(fields.At(path, "transport_socket_connect_timeout"), f.GetTransportSocketConnectTimeout(), defaultHandshake),
	}
	if f.GetUseProxyProto().GetValue() {
		// The header comes before a chain is chosen: this concerns all of the listener.
		o.ProxyHeader = true
	}
	if (len(ch.Match.ServerNames) > 0 || ch.Match.TransportProtocol == "tls") && !o.Inspect {
		c.Warnf(fields.At(path, "filter_chain_match"), "looks at what only the listener filter tls_inspector finds out, and the listener has none: the chain will not match")
	}
	ch.TLS, ch.Secure = c.serverTLS(fields.At(path, "transport_socket"), f.GetTransportSocket())
	if len(f.GetFilters()) == 0 {
		c.Errorf(fields.At(path, "filters"), "is required: without one the connection would be closed")
	}
	for i, n := range f.GetFilters() {
		at := fields.Index(path, "filters", i)
		c.networkFilter(at, n, i == len(f.GetFilters())-1, ch)
	}
	if ch.TCP != nil {
		ch.Secure = ch.Secure*31 + 1 // TCP and HTTP are never versions of one another
	}
	return ch
}

// matchKey is a match in canonical form.
func matchKey(m *listenerv3.FilterChainMatch) string {
	if m == nil {
		return ""
	}
	m = proto.Clone(m).(*listenerv3.FilterChainMatch)
	for _, list := range []*[]string{&m.ServerNames, &m.ApplicationProtocols} {
		for i, s := range *list {
			(*list)[i] = strings.ToLower(s)
		}
		slices.Sort(*list)
	}
	slices.Sort(m.SourcePorts)
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "?"
	}
	return string(b)
}

func (c *compiler) chainMatch(path string, m *listenerv3.FilterChainMatch) (o listener.Match) {
	if m == nil {
		return o
	}
	checkFields(c.report, path, m, chainMatchFields)
	o = listener.Match{
		DestinationPort:      c.port(fields.At(path, "destination_port"), m.GetDestinationPort().GetValue()),
		DestinationPrefix:    c.prefixes(path, "prefix_ranges", m.GetPrefixRanges()),
		DirectSource:         c.prefixes(path, "direct_source_prefix_ranges", m.GetDirectSourcePrefixRanges()),
		SourceType:           uint8(m.GetSourceType()),
		SourcePrefix:         c.prefixes(path, "source_prefix_ranges", m.GetSourcePrefixRanges()),
		TransportProtocol:    m.GetTransportProtocol(),
		ApplicationProtocols: m.GetApplicationProtocols(),
	}
	if _, ok := listenerv3.FilterChainMatch_ConnectionSourceType_name[int32(m.GetSourceType())]; !ok {
		c.Errorf(fields.At(path, "source_type"), "%d is not a source type", m.GetSourceType())
	}
	for i, p := range m.GetSourcePorts() {
		o.SourcePorts = append(o.SourcePorts, c.port(fields.Index(path, "source_ports", i), p))
	}
	for i, n := range m.GetServerNames() {
		if rest := strings.TrimPrefix(n, "*."); strings.Contains(rest, "*") || rest == "" {
			c.Errorf(fields.Index(path, "server_names", i), "%q: a server name is a name, or *.suffix", n)
		}
		o.ServerNames = append(o.ServerNames, strings.ToLower(n))
	}
	switch o.TransportProtocol {
	case "", "tls", "raw_buffer":
	default:
		c.Errorf(fields.At(path, "transport_protocol"), "%q is not implemented; use tls or raw_buffer", o.TransportProtocol)
	}
	return o
}
