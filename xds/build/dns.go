package build

import (
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/data/dns/v3"
	dnsfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/dns_filter/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"sallyport/xds/catalog"
)

const (
	// dnsTTL is the least that Envoy takes; the addresses are the services' for good.
	dnsTTL     = 30 * time.Second
	dnsTimeout = 5 * time.Second
	dnsPending = 1024
)

// nobody is a name that nobody asks for (RFC 6761 §6.4).
const nobody = "sallyport.invalid"

func virtualDomain(name string, addresses ...string) *dnsv3.DnsTable_DnsVirtualDomain {
	return &dnsv3.DnsTable_DnsVirtualDomain{Name: name, AnswerTtl: durationpb.New(dnsTTL),
		Endpoint: &dnsv3.DnsTable_DnsEndpoint{EndpointConfig: &dnsv3.DnsTable_DnsEndpoint_AddressList{AddressList: &dnsv3.DnsTable_AddressList{Address: addresses}}}}
}

// dns makes the resolver of a transparent sidecar: names of services are answered with their virtual addresses, the rest is
// passed on to the resolvers of the host.
func (b *builder) dns(names []catalog.Name, domains map[catalog.Name][]string, addresses map[catalog.Name]virtual) {
	// Envoy refuses an empty table, and a mesh may have no service yet.
	table := &dnsv3.DnsTable{VirtualDomains: []*dnsv3.DnsTable_DnsVirtualDomain{virtualDomain(nobody, "0.0.0.0")}}
	for _, n := range names {
		list := []string{addresses[n].v4.String()}
		if b.proxy.Transparent.IPv6 {
			list = append(list, addresses[n].v6.String())
		}
		for _, d := range domains[n] {
			table.VirtualDomains = append(table.VirtualDomains, virtualDomain(d, list...))
		}
	}
	slices.SortFunc(table.VirtualDomains, func(x, y *dnsv3.DnsTable_DnsVirtualDomain) int {
		switch {
		case x.Name < y.Name:
			return -1
		case x.Name > y.Name:
			return 1
		}
		return 0
	})
	at := func(host string) *corev3.Address {
		return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Protocol: corev3.SocketAddress_UDP, Address: host,
			PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: b.proxy.Transparent.DNS}}}}
	}
	l := &listenerv3.Listener{Name: "dns", Address: at("127.0.0.1"), UdpListenerConfig: &listenerv3.UdpListenerConfig{}}
	if b.proxy.Transparent.IPv6 {
		l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: at("::1")}}
	}
	l.ListenerFilters = []*listenerv3.ListenerFilter{{Name: "envoy.filters.udp.dns_filter", ConfigType: &listenerv3.ListenerFilter_TypedConfig{
		TypedConfig: b.pack(&dnsfilterv3.DnsFilterConfig{
			StatPrefix: "mesh",
			ServerConfig: &dnsfilterv3.DnsFilterConfig_ServerContextConfig{
				ConfigSource: &dnsfilterv3.DnsFilterConfig_ServerContextConfig_InlineDnsTable{InlineDnsTable: table}},
			ClientConfig: &dnsfilterv3.DnsFilterConfig_ClientContextConfig{ResolverTimeout: durationpb.New(dnsTimeout), MaxPendingLookups: dnsPending},
		})}}}
	b.out.Listeners = append(b.out.Listeners, l)
}
