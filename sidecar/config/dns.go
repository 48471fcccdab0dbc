package config

//lint:file-ignore SA1019 files in use have deprecated fields, which Envoy reads still, and so do we

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/data/dns/v3"
	dnsfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/dns_filter/v3"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/dns"
	"sallyport/sidecar/listener"
)

var (
	udpListenerFields = fields.Of(&listenerv3.Listener{}, "name", "address", "additional_addresses", "stat_prefix", "listener_filters", "udp_listener_config").
				Harmless(&listenerv3.Listener{}, "metadata", "traffic_direction", "reuse_port", "enable_reuse_port", "drain_type").Strict()
	// How packets are read is the resolver's own affair.
	udpFields     = fields.Of(&listenerv3.UdpListenerConfig{}).Harmless(&listenerv3.UdpListenerConfig{}, "downstream_socket_config").Strict()
	dnsFields     = fields.Of(&dnsfilterv3.DnsFilterConfig{}, "stat_prefix", "server_config", "client_config").Strict()
	serverFields  = fields.Of(&dnsfilterv3.DnsFilterConfig_ServerContextConfig{}, "inline_dns_table").Strict()
	clientFields  = fields.Of(&dnsfilterv3.DnsFilterConfig_ClientContextConfig{}, "resolver_timeout", "max_pending_lookups", "upstream_resolvers").Strict()
	tableFields   = fields.Of(&dnsv3.DnsTable{}, "virtual_domains").Harmless(&dnsv3.DnsTable{}, "external_retry_count", "known_suffixes").Strict()
	virtualFields = fields.Of(&dnsv3.DnsTable_DnsVirtualDomain{}, "name", "endpoint", "answer_ttl").Strict()
	dnsEndpoint   = fields.Of(&dnsv3.DnsTable_DnsEndpoint{}, "address_list").Strict()
)

const (
	defaultDNSTTL     = 300 * time.Second
	defaultDNSTimeout = 2 * time.Second
	maxDNSAddresses   = 64 // of one name: what a reply holds
)

// dnsListener compiles a UDP listener, of which there is one kind: the DNS filter.
func (c *compiler) dnsListener(m *listenerv3.Listener) *listener.Config {
	checkFields(c.report, "", m, udpListenerFields)
	checkFields(c.report, "udp_listener_config", m.GetUdpListenerConfig(), udpFields)
	d := &dns.Config{Name: m.GetName()}
	add := func(path string, a *corev3.Address) {
		if ap, ok := c.socketAddress(path, a, corev3.SocketAddress_UDP); ok {
			d.Addresses = append(d.Addresses, ap)
		}
	}
	add("address", m.GetAddress())
	for i, a := range m.GetAdditionalAddresses() {
		at := fields.Index("", "additional_addresses", i)
		checkFields(c.report, at, a, additionalFields)
		add(fields.At(at, "address"), a.GetAddress())
	}
	if len(m.GetListenerFilters()) != 1 {
		c.Errorf("listener_filters", "a UDP listener has exactly one filter here, envoy.filters.udp.dns_filter, not %d", len(m.GetListenerFilters()))
		return nil
	}
	f := m.GetListenerFilters()[0]
	path := fields.Index("", "listener_filters", 0)
	checkFields(c.report, path, f, listenerFilterFields)
	at := fields.At(path, "typed_config")
	if got := f.GetTypedConfig().GetTypeUrl(); got != typeURL((*dnsfilterv3.DnsFilterConfig)(nil)) {
		c.Errorf(at, "%s is not implemented for UDP; envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig is", got)
		return nil
	}
	var filter dnsfilterv3.DnsFilterConfig
	if !c.decode(at, f.GetTypedConfig(), &filter) {
		return nil
	}
	checkFields(c.report, at, &filter, dnsFields)
	if c.env.Stats != nil { // nil where a configuration is only validated
		d.Stats = c.env.Stats("dns_filter", filter.GetStatPrefix(), dns.Stats)
	}
	c.dnsTable(fields.At(at, "server_config"), filter.GetServerConfig(), d)
	c.dnsClient(fields.At(at, "client_config"), filter.GetClientConfig(), d)
	return &listener.Config{Name: m.GetName(), DNS: d}
}

func (c *compiler) dnsTable(path string, s *dnsfilterv3.DnsFilterConfig_ServerContextConfig, d *dns.Config) {
	checkFields(c.report, path, s, serverFields)
	at := fields.At(path, "inline_dns_table")
	table := s.GetInlineDnsTable()
	checkFields(c.report, at, table, tableFields)
	d.Table = dns.Table{}
	for i, v := range table.GetVirtualDomains() {
		one := fields.Index(at, "virtual_domains", i)
		checkFields(c.report, one, v, virtualFields)
		checkFields(c.report, fields.At(one, "endpoint"), v.GetEndpoint(), dnsEndpoint)
		name := strings.ToLower(strings.TrimSuffix(v.GetName(), ".")) + "."
		if rest := strings.TrimPrefix(name, "*."); rest == "." || strings.Contains(rest, "*") {
			c.Errorf(fields.At(one, "name"), "%q: a domain is a name, or *.suffix", v.GetName())
		}
		if _, twice := d.Table[name]; twice {
			c.Errorf(fields.At(one, "name"), "%q is there twice", v.GetName())
		}
		a := dns.Answer{TTL: c.duration(fields.At(one, "answer_ttl"), v.GetAnswerTtl(), defaultDNSTTL)}
		list := v.GetEndpoint().GetAddressList().GetAddress()
		if len(list) == 0 || len(list) > maxDNSAddresses {
			c.Errorf(fields.At(one, "endpoint.address_list"), "has %d addresses; 1 to %d are possible, and clusters or services as endpoints are not implemented", len(list), maxDNSAddresses)
		}
		for k, s := range list {
			ip, err := netip.ParseAddr(s)
			if err != nil || ip.Zone() != "" {
				c.Errorf(fields.Index(fields.At(one, "endpoint.address_list"), "address", k), "%q is not an IP address", s)
				continue
			}
			a.Addresses = append(a.Addresses, ip.Unmap())
		}
		d.Table[name] = a
	}
}

func (c *compiler) dnsClient(path string, m *dnsfilterv3.DnsFilterConfig_ClientContextConfig, d *dns.Config) {
	if m == nil {
		return
	}
	checkFields(c.report, path, m, clientFields)
	d.Forward = true
	d.Timeout = c.duration(fields.At(path, "resolver_timeout"), m.GetResolverTimeout(), defaultDNSTimeout)
	d.Pending = int(m.GetMaxPendingLookups())
	for i, a := range m.GetUpstreamResolvers() {
		if ap, ok := c.socketAddress(fields.Index(path, "upstream_resolvers", i), a, a.GetSocketAddress().GetProtocol()); ok {
			d.Resolvers = append(d.Resolvers, ap)
		}
	}
	for _, own := range d.Addresses {
		if slices.Contains(d.Resolvers, own) {
			c.Errorf(fields.At(path, "upstream_resolvers"), "%s is this listener itself", own)
		}
	}
}
