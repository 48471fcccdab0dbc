// Package upstream is where requests go: clusters, their hosts, the pools of
// connections to them, the load balancers that choose, and what judges a
// host's health (active checks, outlier detection) or protects it (circuit
// breakers). Configuration (Config, Endpoint) is compiled by package config
// and immutable; a Cluster is shared by all workers; everything named Pool or
// worker-something belongs to one worker and is used on it alone.
package upstream

import (
	"crypto/tls"
	"net/netip"
	"time"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/route"
)

// Discovery says how a cluster learns its endpoints
// (envoy.config.cluster.v3.Cluster.type).
type Discovery uint8

const (
	Static Discovery = iota
	StrictDNS
	LogicalDNS
	EDS
	OriginalDst
)

// Protocol is what is spoken to a cluster's hosts: a codec.ID, or who chooses one
// (envoy.extensions.upstreams.http.v3.HttpProtocolOptions).
type Protocol uint8

const (
	HTTP1 = Protocol(codec.HTTP1)
	HTTP2 = Protocol(codec.HTTP2)
	// ALPN lets the handshake decide (auto_config); HTTP/1.1 where nothing was negotiated.
	ALPN = Protocol(codec.N)
	// SameAsDownstream is use_downstream_protocol_config.
	SameAsDownstream = Protocol(codec.N) + 1
)

// Policy is a load-balancing policy.
type Policy uint8

const (
	RoundRobin Policy = iota
	LeastRequest
	Random
	RingHash
	Maglev
	// ClusterProvided is the policy of OriginalDst clusters.
	ClusterProvided
)

// Config is a compiled envoy.config.cluster.v3.Cluster. Immutable.
type Config struct {
	Name     string
	StatName string // alt_stat_name, or Name
	// Hash identifies everything but the endpoints: a cluster whose Hash is
	// unchanged keeps its connections when it is sent again.
	Hash uint64

	Discovery  Discovery
	EDSName    string        // service_name, or Name
	Endpoints  []Endpoint    // Static and DNS: load_assignment; a DNS endpoint has Hostname and Port and no Address
	DNSRefresh time.Duration // default 5 s
	DNSFamily  DNSFamily     // dns_lookup_family
	// DNSFailure and DNSFailureMax are dns_failure_refresh_rate; 0: as DNSRefresh.
	DNSFailure, DNSFailureMax time.Duration
	DropPercent               uint32 // of the load assignment's policy, in 1/10,000

	ConnectTimeout time.Duration // default 5 s
	BufferLimit    int           // per_connection_buffer_limit_bytes, default 1 MiB
	IdleTimeout    time.Duration // of a pooled connection; default 1 h; 0 is never
	MaxRequests    uint32        // per connection; 0 is no limit
	KeepAlive      time.Duration // TCP keep-alive; 0 is the system's
	OriginalPort   uint16        // original_dst_lb_config.upstream_port_override; 0: as the client meant
	Source         netip.Addr    // upstream_bind_config

	Protocol Protocol
	codec.Options

	// TLS is nil for plaintext.
	TLS ClientTLS
	// AutoSNI is auto_sni: the server's name is that of the request, not of the endpoint.
	AutoSNI bool

	Policy           Policy
	Choices          uint32 // least request: how many hosts are compared, default 2
	MinRing, MaxRing uint64 // ring hash: 1,024 and 8 Mi
	TableSize        uint64 // maglev: 65,537
	HashByHostname   bool
	PanicThreshold   uint32 // percent; default 50; 0 is never
	// CloseOnHealthFailure is close_connections_on_host_health_failure.
	CloseOnHealthFailure bool
	// IgnoreNewHosts is ignore_new_hosts_until_first_hc: hosts that were not
	// checked yet do not count where the share of healthy ones is taken.
	IgnoreNewHosts bool

	Breakers     [2]Breakers // by Priority: default, high
	Outlier      *Outlier    // nil: no outlier detection
	HealthChecks []HealthCheck
}

// byName says that the endpoints are names, to be looked up.
func (c *Config) byName() bool { return c.Discovery == StrictDNS || c.Discovery == LogicalDNS }

// ClientTLS gives the TLS configuration of a new connection with the secrets
// of this moment; err says that there are none yet (or an expired SVID), and
// then no connection is made: there is no way to plaintext.
type ClientTLS interface {
	// ClientConfig is called for each new connection, on a worker, and
	// must not block. name is the server's, of the request (auto_sni) or of the
	// endpoint, or "": it counts where the configuration has none of its own.
	ClientConfig(name string) (*tls.Config, error)
}

// Health of an endpoint, as the control plane says it
// (envoy.config.core.v3.HealthStatus).
type Health uint8

const (
	Healthy   Health = iota // HEALTHY or UNKNOWN
	Unhealthy               // UNHEALTHY, TIMEOUT
	Draining                // DRAINING: no new requests, existing ones finish
	Degraded
)

// Endpoint is a compiled envoy.config.endpoint.v3.LbEndpoint. Immutable.
type Endpoint struct {
	Address  netip.AddrPort // zero for a Unix socket or a name still to be resolved
	Path     string         // of a Unix socket
	Hostname string
	Port     uint16 // with Hostname, of a DNS endpoint
	// HealthAddress is where active checks go, if it differs.
	HealthAddress netip.AddrPort
	Weight        uint32 // default 1
	Priority      uint32
	Region, Zone  string
	Health        Health
}

// Breakers are a cluster's circuit breakers for one priority.
type Breakers struct {
	Connections uint32 // default 1,024
	Pending     uint32 // default 1,024
	Requests    uint32 // default 1,024
	Retries     uint32 // default 3
	// BudgetPercent, if above 0, limits retries to this share of active
	// requests (in 1/100 percent) instead of Retries, but at least BudgetMin.
	BudgetPercent uint32
	BudgetMin     uint32
}

// Outlier is envoy.config.cluster.v3.OutlierDetection: what ejects a host for its answers.
type Outlier struct {
	Consecutive5xx     uint32 // default 5; 0 is off
	Enforcing5xx       uint32 // percent, default 100
	ConsecutiveGateway uint32 // default 5
	EnforcingGateway   uint32 // percent, default 0
	ConsecutiveLocal   uint32 // default 5, with SplitLocal
	EnforcingLocal     uint32 // percent, default 100, with SplitLocal
	SplitLocal         bool   // split_external_local_origin_errors
	Interval           time.Duration
	BaseEjection       time.Duration // default 30 s
	MaxEjection        time.Duration // default 300 s
	MaxEjectionPercent uint32        // default 10
	AlwaysEjectOne     bool          // always_eject_one_host: whatever MaxEjectionPercent is
	SuccessfulUneject  bool          // successful_active_health_check_uneject_host
}

// HealthCheck is envoy.config.core.v3.HealthCheck. Kind HTTP asks Path and
// expects a status in Expected; TCP sends Send and looks for Receive, or only connects.
//
// GRPC asks grpc.health.v1.Health/Check of GRPCService and wants SERVING.
type HealthCheck struct {
	HTTP          bool
	GRPC          bool
	GRPCService   string
	HTTP2         bool
	Path, Host    string
	Method        string
	Headers       []route.HeaderValue
	Expected      []StatusRange // empty: 200 alone
	Retriable     []StatusRange
	Send          []byte
	Receive       [][]byte
	Timeout       time.Duration
	Interval      time.Duration
	Jitter        time.Duration
	JitterPercent uint32
	// UnhealthyInterval and NoTrafficInterval default to Interval and 60 s
	// as Envoy's do; the latter is in force until the cluster's first connection.
	UnhealthyInterval, NoTrafficInterval time.Duration
	UnhealthyThreshold                   uint32
	HealthyThreshold                     uint32
	ReuseConnection                      bool
	AltPort                              uint16 // 0: the endpoint's own
}

// StatusRange is [Start, End).
type StatusRange struct{ Start, End int }
