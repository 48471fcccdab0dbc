package config

//lint:file-ignore SA1019 files in use have deprecated fields, which Envoy reads still, and so do we

import (
	"net/netip"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/secret"
	"sallyport/sidecar/upstream"
)

// Cluster is a compiled cluster and what it needs. Immutable.
type Cluster struct {
	Config   *upstream.Config
	Needs    Needs
	Warnings []Warning
}

var (
	clusterFields = fields.Of(&clusterv3.Cluster{}, "name", "alt_stat_name", "type", "cluster_type", "eds_cluster_config", "connect_timeout",
		"per_connection_buffer_limit_bytes", "lb_policy", "load_assignment", "health_checks", "max_requests_per_connection", "circuit_breakers",
		"upstream_http_protocol_options", "common_http_protocol_options", "http_protocol_options", "http2_protocol_options",
		"typed_extension_protocol_options", "dns_refresh_rate", "dns_failure_refresh_rate", "dns_lookup_family", "outlier_detection", "upstream_bind_config",
		"ring_hash_lb_config", "maglev_lb_config", "least_request_lb_config", "round_robin_lb_config", "common_lb_config", "original_dst_lb_config", "transport_socket",
		"protocol_selection", "upstream_connection_options", "close_connections_on_host_health_failure", "load_balancing_policy").
		Harmless(&clusterv3.Cluster{}, "metadata", "stats_matcher", "wait_for_warm_on_init", "cleanup_interval", "track_timeout_budgets",
			"track_cluster_stats", "lrs_report_endpoint_metrics", "dns_jitter").
		// These choose other hosts, other sockets, or do things to the bytes.
		Refuse(&clusterv3.Cluster{}, "transport_socket_matches", "transport_socket_matcher", "lb_subset_config", "filters", "upstream_config",
			"connection_pool_per_downstream_connection", "dns_resolvers", "dns_resolution_config", "queuing_policies")

	originalFields   = fields.Of(&clusterv3.Cluster_OriginalDstLbConfig{}, "upstream_port_override").Strict()
	edsFields        = fields.Of(&clusterv3.Cluster_EdsClusterConfig{}, "eds_config", "service_name")
	bindFields       = fields.Of(&corev3.BindConfig{}, "source_address").Refuse(&corev3.BindConfig{}, "additional_source_addresses", "extra_source_addresses", "local_address_selector", "freebind")
	connectionFields = fields.Of(&clusterv3.UpstreamConnectionOptions{}, "tcp_keepalive").
				Harmless(&clusterv3.UpstreamConnectionOptions{}, "set_local_interface_name_on_upstream_connections")
	tcpKeepaliveFields = fields.Of(&corev3.TcpKeepalive{}, "keepalive_time", "keepalive_interval")
	breakersFields     = fields.Of(&clusterv3.CircuitBreakers{}, "thresholds").Refuse(&clusterv3.CircuitBreakers{}, "per_host_thresholds")
	thresholdFields    = fields.Of(&clusterv3.CircuitBreakers_Thresholds{}, "priority", "max_connections", "max_pending_requests", "max_requests",
		"max_retries", "retry_budget").
		Harmless(&clusterv3.CircuitBreakers_Thresholds{}, "track_remaining")
	budgetFields  = fields.Of(&clusterv3.CircuitBreakers_Thresholds_RetryBudget{}, "budget_percent", "min_retry_concurrency")
	outlierFields = fields.Of(&clusterv3.OutlierDetection{}, "consecutive_5xx", "interval", "base_ejection_time", "max_ejection_percent",
		"enforcing_consecutive_5xx", "consecutive_gateway_failure", "enforcing_consecutive_gateway_failure", "split_external_local_origin_errors",
		"consecutive_local_origin_failure", "enforcing_consecutive_local_origin_failure", "max_ejection_time", "successful_active_health_check_uneject_host",
		"always_eject_one_host")
	dnsClusterFields = fields.Of(&dnsclusterv3.DnsCluster{}, "dns_refresh_rate", "dns_failure_refresh_rate", "dns_lookup_family", "all_addresses_in_single_endpoint").
				Harmless(&dnsclusterv3.DnsCluster{}, "dns_jitter")
	refreshFields    = fields.Of(&clusterv3.Cluster_RefreshRate{}, "base_interval", "max_interval")
	refreshFieldsDNS = fields.Of(&dnsclusterv3.DnsCluster_RefreshRate{}, "base_interval", "max_interval")

	dnsClusterURL = typeURL((*dnsclusterv3.DnsCluster)(nil))
)

const (
	defaultConnect    = 5 * time.Second
	defaultBuffer     = 1 << 20
	defaultIdle       = time.Hour
	defaultDNSRefresh = 5 * time.Second
)

// CompileCluster compiles a CDS resource.
func CompileCluster(m *clusterv3.Cluster, env Env) (*Cluster, error) {
	c := &compiler{report: fields.NewReport("cluster", m.GetName()), env: env}
	var out *upstream.Config
	if fields.Validate(c.report, "", m) {
		out = c.cluster(m)
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	return &Cluster{Config: out, Needs: c.Needs, Warnings: c.Warnings}, nil
}

func (c *compiler) cluster(m *clusterv3.Cluster) *upstream.Config {
	checkFields(c.report, "", m, clusterFields)
	if m.GetName() == "" {
		c.Errorf("name", "is required")
	}
	o := &upstream.Config{
		Name: m.GetName(), StatName: m.GetAltStatName(), Hash: fingerprint(m, "load_assignment"),
		ConnectTimeout:       c.duration("connect_timeout", m.GetConnectTimeout(), defaultConnect),
		BufferLimit:          int(number(m.GetPerConnectionBufferLimitBytes(), defaultBuffer)),
		IdleTimeout:          defaultIdle,
		MaxRequests:          m.GetMaxRequestsPerConnection().GetValue(),
		CloseOnHealthFailure: m.GetCloseConnectionsOnHostHealthFailure(),
	}
	if o.StatName == "" {
		o.StatName = o.Name
	}
	if m.GetConnectTimeout() != nil && o.ConnectTimeout == 0 {
		c.Errorf("connect_timeout", "must be above 0s")
	}
	c.discovery(m, o)
	c.breakers(m.GetCircuitBreakers(), o)
	c.outlier(m.GetOutlierDetection(), o)
	for i, h := range m.GetHealthChecks() {
		o.HealthChecks = append(o.HealthChecks, c.healthCheck(fields.Index("", "health_checks", i), h))
	}
	c.bind(m, o)
	tls := c.clusterHTTP(m, o)
	o.AutoSNI = tls.AutoSNI
	o.HTTP2.MaxHeaderBytes, o.HTTP2.MaxHeaderCount = o.HTTP1.MaxHeaderBytes, o.HTTP1.MaxHeaderCount
	o.TLS = c.clientTLS("transport_socket", m.GetTransportSocket(), tls)
	c.balancing(m, o)
	return o
}

// discovery reads where the endpoints come from.
func (c *compiler) discovery(m *clusterv3.Cluster, o *upstream.Config) {
	names := false
	switch t := m.GetClusterDiscoveryType().(type) {
	case *clusterv3.Cluster_ClusterType:
		names = c.dnsCluster(t.ClusterType, o)
	default:
		switch m.GetType() {
		case clusterv3.Cluster_STATIC:
			o.Discovery = upstream.Static
		case clusterv3.Cluster_STRICT_DNS:
			o.Discovery, names = upstream.StrictDNS, true
		case clusterv3.Cluster_LOGICAL_DNS:
			o.Discovery, names = upstream.LogicalDNS, true
		case clusterv3.Cluster_EDS:
			o.Discovery = upstream.EDS
		case clusterv3.Cluster_ORIGINAL_DST:
			o.Discovery = upstream.OriginalDst
			c.originalPort(m, o)
		}
		if names {
			o.DNSRefresh = c.duration("dns_refresh_rate", m.GetDnsRefreshRate(), defaultDNSRefresh)
			o.DNSFamily = dnsFamilies[m.GetDnsLookupFamily()]
			if f := m.GetDnsFailureRefreshRate(); f != nil {
				checkFields(c.report, "dns_failure_refresh_rate", f, refreshFields)
				c.dnsFailure("dns_failure_refresh_rate", f, o)
			}
		}
	}
	if o.Discovery == upstream.EDS {
		c.eds(m, o)
	} else if m.GetEdsClusterConfig() != nil {
		c.Errorf("eds_cluster_config", "is set, but the cluster is not of type EDS")
	}
	a := m.GetLoadAssignment()
	switch {
	case a == nil:
		if names {
			c.Errorf("load_assignment", "is required: it holds the names to look up")
		}
		return
	case o.Discovery == upstream.EDS || o.Discovery == upstream.OriginalDst:
		c.Errorf("load_assignment", "a cluster of this type cannot have one")
		return
	}
	e := c.endpoints("load_assignment", a, names)
	o.Endpoints, o.DropPercent = e.List, e.Drop
	if o.Discovery == upstream.LogicalDNS && len(e.List) != 1 {
		c.Errorf("load_assignment.endpoints", "a LOGICAL_DNS cluster has exactly one endpoint, not %d; use STRICT_DNS", len(e.List))
	}
}

func (c *compiler) eds(m *clusterv3.Cluster, o *upstream.Config) {
	e := m.GetEdsClusterConfig()
	if e == nil {
		c.Errorf("eds_cluster_config", "is required: the cluster is of type EDS")
		return
	}
	checkFields(c.report, "eds_cluster_config", e, edsFields)
	c.fromADS("eds_cluster_config.eds_config", e.GetEdsConfig())
	if o.EDSName = e.GetServiceName(); o.EDSName == "" {
		o.EDSName = o.Name
	}
	c.Needs.EDS = o.EDSName
}

// fromADS sees to it that a resource comes over the aggregated stream.
func (c *compiler) fromADS(path string, s *corev3.ConfigSource) {
	switch s.GetConfigSourceSpecifier().(type) {
	case *corev3.ConfigSource_Ads, *corev3.ConfigSource_Self:
	case nil:
		c.Errorf(path, `says nothing of where the configuration comes from; use "ads: {}"`)
	default:
		c.Errorf(path, `this source is not implemented for a single resource; use "ads: {}"`)
	}
	if t := s.GetInitialFetchTimeout(); t != nil {
		if c.Needs.Fetch = c.duration(fields.At(path, "initial_fetch_timeout"), t, 0); c.Needs.Fetch == 0 {
			c.Needs.Fetch = -1
		}
	}
	if v := s.GetResourceApiVersion(); s != nil && v == corev3.ApiVersion_V2 {
		c.Errorf(fields.At(path, "resource_api_version"), "V2 is not implemented; use V3")
	}
}

// dnsCluster reads cluster_type, of which only envoy.clusters.dns is known.
func (c *compiler) dnsCluster(m *clusterv3.Cluster_CustomClusterType, o *upstream.Config) bool {
	at := "cluster_type.typed_config"
	if url := m.GetTypedConfig().GetTypeUrl(); url != dnsClusterURL {
		c.Errorf(at, "%s (%s) is not implemented; use type, or %s", url, m.GetName(), dnsClusterURL)
		return false
	}
	var d dnsclusterv3.DnsCluster
	if !c.decode(at, m.GetTypedConfig(), &d) {
		return false
	}
	checkFields(c.report, at, &d, dnsClusterFields)
	o.Discovery = upstream.StrictDNS
	if d.GetAllAddressesInSingleEndpoint() {
		o.Discovery = upstream.LogicalDNS
	}
	o.DNSRefresh = c.duration(fields.At(at, "dns_refresh_rate"), d.GetDnsRefreshRate(), defaultDNSRefresh)
	if f := d.GetDnsLookupFamily(); f != dnsv3.DnsLookupFamily_UNSPECIFIED {
		o.DNSFamily = dnsFamilies[clusterv3.Cluster_DnsLookupFamily(f-dnsv3.DnsLookupFamily_AUTO)]
	}
	if f := d.GetDnsFailureRefreshRate(); f != nil {
		at := fields.At(at, "dns_failure_refresh_rate")
		checkFields(c.report, at, f, refreshFieldsDNS)
		c.dnsFailure(at, f, o)
	}
	return true
}

// dnsFailure reads a RefreshRate, of which there are two with the same fields.
func (c *compiler) dnsFailure(path string, f interface {
	GetBaseInterval() *durationpb.Duration
	GetMaxInterval() *durationpb.Duration
}, o *upstream.Config) {
	o.DNSFailure = c.duration(fields.At(path, "base_interval"), f.GetBaseInterval(), 0)
	if o.DNSFailure == 0 {
		c.Errorf(fields.At(path, "base_interval"), "must be above 0s")
	}
	o.DNSFailureMax = c.duration(fields.At(path, "max_interval"), f.GetMaxInterval(), 10*o.DNSFailure)
	if o.DNSFailureMax < o.DNSFailure {
		c.Errorf(fields.At(path, "max_interval"), "%v is less than base_interval, %v", o.DNSFailureMax, o.DNSFailure)
	}
}

// originalPort is where hosts of an ORIGINAL_DST cluster are reached whatever port the client meant.
func (c *compiler) originalPort(m *clusterv3.Cluster, o *upstream.Config) {
	l := m.GetOriginalDstLbConfig()
	if l == nil {
		return
	}
	checkFields(c.report, "original_dst_lb_config", l, originalFields)
	if p := l.GetUpstreamPortOverride(); p != nil {
		if p.GetValue() > 65535 {
			c.Errorf("original_dst_lb_config.upstream_port_override", "%d is not a port", p.GetValue())
		}
		o.OriginalPort = uint16(p.GetValue())
	}
}

// dnsFamilies is Cluster.DnsLookupFamily; the enum of DnsCluster is the same, with one for "not set" before it.
var dnsFamilies = map[clusterv3.Cluster_DnsLookupFamily]upstream.DNSFamily{
	clusterv3.Cluster_AUTO:         upstream.DNSAuto,
	clusterv3.Cluster_V4_ONLY:      upstream.DNSv4Only,
	clusterv3.Cluster_V6_ONLY:      upstream.DNSv6Only,
	clusterv3.Cluster_V4_PREFERRED: upstream.DNSv4Preferred,
	clusterv3.Cluster_ALL:          upstream.DNSAll,
}

func (c *compiler) breakers(m *clusterv3.CircuitBreakers, o *upstream.Config) {
	for i := range o.Breakers {
		o.Breakers[i] = upstream.Breakers{Connections: 1024, Pending: 1024, Requests: 1024, Retries: 3}
	}
	if m == nil {
		return
	}
	checkFields(c.report, "circuit_breakers", m, breakersFields)
	seen := [2]bool{}
	for i, t := range m.GetThresholds() {
		at := fields.Index("circuit_breakers", "thresholds", i)
		checkFields(c.report, at, t, thresholdFields)
		p := int(t.GetPriority())
		if p < 0 || p >= len(o.Breakers) || seen[p] {
			continue // as Envoy: the first of a priority counts
		}
		seen[p] = true
		b := &o.Breakers[p]
		b.Connections = number(t.GetMaxConnections(), b.Connections)
		b.Pending = number(t.GetMaxPendingRequests(), b.Pending)
		b.Requests = number(t.GetMaxRequests(), b.Requests)
		b.Retries = number(t.GetMaxRetries(), b.Retries)
		if r := t.GetRetryBudget(); r != nil {
			checkFields(c.report, fields.At(at, "retry_budget"), r, budgetFields)
			b.BudgetPercent = c.percent(fields.At(at, "retry_budget.budget_percent"), r.GetBudgetPercent(), 2000)
			b.BudgetMin = number(r.GetMinRetryConcurrency(), 3)
		}
	}
}

func (c *compiler) outlier(m *clusterv3.OutlierDetection, o *upstream.Config) {
	if m == nil {
		return
	}
	at := func(f string) string { return "outlier_detection." + f }
	checkFields(c.report, "outlier_detection", off(m), outlierFields)
	share := func(field string, v interface{ GetValue() uint32 }, set bool, absent uint32) uint32 {
		if !set {
			return absent
		}
		if v.GetValue() > 100 {
			c.Errorf(at(field), "%d is not a percentage", v.GetValue())
		}
		return v.GetValue()
	}
	positive := func(field string, d *durationpb.Duration, absent time.Duration) time.Duration {
		t := c.duration(at(field), d, absent)
		if t == 0 {
			c.Errorf(at(field), "must be above 0s")
		}
		return t
	}
	x := &upstream.Outlier{
		Consecutive5xx:     number(m.GetConsecutive_5Xx(), 5),
		Enforcing5xx:       share("enforcing_consecutive_5xx", m.GetEnforcingConsecutive_5Xx(), m.GetEnforcingConsecutive_5Xx() != nil, 100),
		ConsecutiveGateway: number(m.GetConsecutiveGatewayFailure(), 5),
		EnforcingGateway:   share("enforcing_consecutive_gateway_failure", m.GetEnforcingConsecutiveGatewayFailure(), m.GetEnforcingConsecutiveGatewayFailure() != nil, 0),
		ConsecutiveLocal:   number(m.GetConsecutiveLocalOriginFailure(), 5),
		EnforcingLocal:     share("enforcing_consecutive_local_origin_failure", m.GetEnforcingConsecutiveLocalOriginFailure(), m.GetEnforcingConsecutiveLocalOriginFailure() != nil, 100),
		SplitLocal:         m.GetSplitExternalLocalOriginErrors(),
		Interval:           positive("interval", m.GetInterval(), 10*time.Second),
		BaseEjection:       positive("base_ejection_time", m.GetBaseEjectionTime(), 30*time.Second),
		MaxEjectionPercent: share("max_ejection_percent", m.GetMaxEjectionPercent(), m.GetMaxEjectionPercent() != nil, 10),
		AlwaysEjectOne:     m.GetAlwaysEjectOneHost().GetValue(),
		SuccessfulUneject:  boolean(m.GetSuccessfulActiveHealthCheckUnejectHost(), true),
	}
	x.MaxEjection = max(positive("max_ejection_time", m.GetMaxEjectionTime(), 300*time.Second), x.BaseEjection)
	o.Outlier = x
}

// off is m without what it turns off that is not implemented anyhow.
func off(m *clusterv3.OutlierDetection) *clusterv3.OutlierDetection {
	m = proto.Clone(m).(*clusterv3.OutlierDetection)
	for _, share := range []**wrapperspb.UInt32Value{&m.EnforcingSuccessRate, &m.EnforcingLocalOriginSuccessRate, &m.EnforcingFailurePercentage,
		&m.EnforcingFailurePercentageLocalOrigin} {
		if *share != nil && (*share).GetValue() == 0 {
			*share = nil
		}
	}
	return m
}

// bind reads what concerns the sockets.
func (c *compiler) bind(m *clusterv3.Cluster, o *upstream.Config) {
	if b := m.GetUpstreamBindConfig(); b != nil {
		checkFields(c.report, "upstream_bind_config", b, bindFields)
		if s := b.GetSourceAddress(); s != nil {
			at := "upstream_bind_config.source_address"
			checkFields(c.report, at, s, socketFields)
			ip, err := netip.ParseAddr(s.GetAddress())
			if err != nil {
				c.Errorf(fields.At(at, "address"), "%q is not an IP address", s.GetAddress())
			}
			if s.GetPortValue() != 0 {
				c.Errorf(fields.At(at, "port_value"), "a fixed source port allows one connection alone; use 0")
			}
			o.Source = ip.Unmap()
		}
	}
	if u := m.GetUpstreamConnectionOptions(); u != nil {
		checkFields(c.report, "upstream_connection_options", u, connectionFields)
		if k := u.GetTcpKeepalive(); k != nil {
			at := "upstream_connection_options.tcp_keepalive"
			checkFields(c.report, at, k, tcpKeepaliveFields)
			o.KeepAlive = time.Duration(number(k.GetKeepaliveTime(), number(k.GetKeepaliveInterval(), 15))) * time.Second
		}
	}
}

// tlsOptions of a cluster with these options of HTTP.
func tlsOptions(u *corev3.UpstreamHttpProtocolOptions, alpn []string) secret.ClientOptions {
	return secret.ClientOptions{AutoSNI: u.GetAutoSni(), AutoSAN: u.GetAutoSanValidation(), ALPN: alpn}
}
