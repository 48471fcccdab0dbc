// Package listener accepts connections and decides what becomes of them: it
// owns listening sockets, the listener filters (TLS inspection, PROXY
// protocol, original destination), the choice of a filter chain, the network
// filters, the TCP proxy, and the connection manager's codecs. Configuration
// is compiled by package config and immutable; each worker has its own sockets
// and connections.
package listener

import (
	"crypto/tls"
	"net/netip"
	"time"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/dns"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

// Config is a compiled envoy.config.listener.v3.Listener. Immutable.
type Config struct {
	Name       string
	StatPrefix string
	Addresses  []conn.Address // address and additional_addresses
	// Hash identifies the sockets: addresses and socket options. A listener
	// whose Hash is unchanged keeps its sockets and its connections when
	// it is sent again.
	Hash uint64

	Bind         bool // bind_to_port
	Transparent  bool
	FreeBind     bool
	IPv4Compat   bool // ipv4_compat of the addresses: a socket of [::] takes IPv4 too
	Backlog      int
	BufferLimit  int // per_connection_buffer_limit_bytes, default 1 MiB
	Connections  uint32
	Inspect      bool          // envoy.filters.listener.tls_inspector
	HTTPInspect  bool          // envoy.filters.listener.http_inspector
	ProxyHeader  bool          // envoy.filters.listener.proxy_protocol
	ProxyOption  bool          // allow_requests_without_proxy_protocol
	OriginalDst  bool          // envoy.filters.listener.original_dst or use_original_dst
	OriginalSrc  *OriginalSrc  // envoy.filters.listener.original_src; nil without
	HandOff      bool          // use_original_dst: to the listener of that address
	FilterTime   time.Duration // listener_filters_timeout, default 15 s; 0 is none
	ContinueTime bool          // continue_on_listener_filters_timeout

	// DNS is set for a UDP listener, which has none of the rest: package dns serves it.
	DNS *dns.Config

	Chains  []*Chain
	Default *Chain
	// AccessLogs of the listener: one entry per connection.
	AccessLogs []stream.AccessLog
}

// OriginalSrc has hosts see the client's address as that of their peer.
type OriginalSrc struct {
	BindPort bool   // and its port
	Mark     uint32 // of the connection to the host
}

// Chain is a filter chain. Its Key says when two versions are the same chain
// for open connections: a connection goes on under the new version of its
// chain (new routes, filters and policies from its next request on) as long as
// one with the same Key, and the same Secure, is there; otherwise it drains.
type Chain struct {
	Name  string
	Match Match
	Key   string // canonical form of name and match
	// Secure identifies the transport socket and the kind of the chain;
	// secrets are not part of it.
	Secure uint64

	TLS       ServerTLS     // nil: plaintext
	Handshake time.Duration // transport_socket_connect_timeout; default 15 s

	// Network filters before the last one, in order.
	Network []NetworkFilter
	// Exactly one of the two is set.
	HTTP *stream.Manager
	TCP  *TCPProxy
}

// ServerTLS gives the TLS configuration of a new connection with the secrets
// of this moment; err says that there are none yet, or an expired SVID, and
// then the connection is closed.
type ServerTLS interface {
	ServerConfig() (*tls.Config, error)
}

// Match is envoy.config.listener.v3.FilterChainMatch. Empty fields match everything.
type Match struct {
	DestinationPort      uint16
	DestinationPrefix    []netip.Prefix
	DirectSource         []netip.Prefix
	SourceType           uint8 // 0 any, 1 same IP or loopback, 2 external
	SourcePrefix         []netip.Prefix
	SourcePorts          []uint16
	ServerNames          []string // lower case; "*.example.com" matches below
	TransportProtocol    string   // "", "raw_buffer" or "tls"
	ApplicationProtocols []string
}

// NetworkFilter judges a connection: when it is ready, and again whenever the
// configuration changed, so that an open connection that a new policy
// forbids is closed. Immutable, shared by all workers.
type NetworkFilter interface {
	// Allow says whether the connection may be, or go on, and the reason for the log if not.
	Allow(c *stream.Connection) (ok bool, detail string)
}

// TCPProxy is a compiled envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.
type TCPProxy struct {
	StatPrefix  string
	Stats       *metric.Set // of StatPrefix, with layout TCPStats
	Clusters    []route.WeightedCluster
	TotalWeight uint32
	Idle        time.Duration // default 1 h; 0 is none
	MaxDuration time.Duration
	Attempts    uint32 // max_connect_attempts, default 1
	HashSource  bool   // hash_policy source_ip
	AccessLogs  []stream.AccessLog
}
