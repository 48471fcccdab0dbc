package build

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

const (
	httpOptions    = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	connectTimeout = 2 * time.Second
	// retryBudget is the share of active requests, in percent, that may be retries, and minRetries what is always allowed.
	retryBudget, minRetries = 50, 32
	// unlimited is for the hop to the application itself: limits belong to who calls, who can go elsewhere.
	unlimited = 1 << 30
	// keepaliveTime and keepaliveInterval, in seconds, find out that the other end of a quiet connection is gone.
	keepaliveTime, keepaliveInterval = 30, 5
)

// http2 has the proxy speak HTTP/2, and nothing else, to a cluster. responses are the limits of what it answers; nil: Envoy's.
func (b *builder) http2(responses *headLimits) map[string]*anypb.Any {
	o := &httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{AllowConnect: true}}}}}
	if responses != nil {
		o.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{MaxHeadersCount: number(responses.fields), MaxResponseHeadersKb: number(responses.size)}
	}
	return map[string]*anypb.Any{httpOptions: b.pack(o)}
}

// mesh adds the cluster of a backend, reached under mutual TLS through the sidecars of its instances, and returns its name.
func (b *builder) mesh(back policy.Backend) string {
	service := b.Catalog.Service(catalog.Name{Namespace: back.Service.Namespace, Name: back.Service.Name})
	name := service.Name.String()
	if back.Subset != nil {
		name += "~" + back.Subset.Name
	}
	if b.clusters[name] {
		return name
	}
	b.clusters[name] = true
	c := &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		ConnectTimeout:       durationpb.New(connectTimeout),
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveTime: number(keepaliveTime), KeepaliveInterval: number(keepaliveInterval)}},
	}
	if service.Protocol.IsHTTP() {
		c.TransportSocket = b.outboundTLS(b.spiffe(service.Name), "h2")
		c.TypedExtensionProtocolOptions = b.http2(&meshHead)
	} else {
		c.TransportSocket = b.outboundTLS(b.spiffe(service.Name))
	}
	b.policies(c, policy.ServiceTarget(service.Namespace, service.Name.Name), service.Protocol.IsHTTP())
	b.out.Clusters = append(b.out.Clusters, c)
	b.endpoints(name, service, func(i *catalog.Instance) (catalog.Endpoint, bool) {
		return i.Sidecar, i.InMesh() && inSubset(i, back.Subset)
	})
	return name
}

// inSubset says that the instance has all the tags and metadata of the subset.
func inSubset(i *catalog.Instance, s *policy.Object[policy.ServiceSubset]) bool {
	if s == nil {
		return true
	}
	for _, t := range s.Spec.Tags {
		if !slices.Contains(i.Tags, t) {
			return false
		}
	}
	for k, v := range s.Spec.Meta {
		if got, ok := i.Meta[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// endpoints adds the load assignment of a cluster. What the catalog calls critical is there, as unhealthy: a proxy then
// also keeps no connection that an active check of its own would call healthy.
func (b *builder) endpoints(cluster string, service *catalog.Service, at func(*catalog.Instance) (catalog.Endpoint, bool)) {
	a := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	groups := map[[2]string]*endpointv3.LocalityLbEndpoints{}
	for i := range service.Instances {
		v := &service.Instances[i]
		e, ok := at(v)
		if !ok {
			continue
		}
		key := [2]string{v.Region, v.Zone}
		g := groups[key]
		if g == nil {
			g = &endpointv3.LocalityLbEndpoints{}
			if key != [2]string{} {
				g.Locality = &corev3.Locality{Region: v.Region, Zone: v.Zone}
			}
			groups[key] = g
			a.Endpoints = append(a.Endpoints, g)
		}
		lb := &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(e.Address, e.Port)}},
			HealthStatus:   corev3.HealthStatus_HEALTHY, LoadBalancingWeight: number(max(v.Weight, 1)),
		}
		if !v.Healthy {
			lb.HealthStatus = corev3.HealthStatus_UNHEALTHY
		}
		g.LbEndpoints = append(g.LbEndpoints, lb)
	}
	slices.SortFunc(a.Endpoints, func(x, y *endpointv3.LocalityLbEndpoints) int {
		return cmp.Or(cmp.Compare(x.GetLocality().GetRegion(), y.GetLocality().GetRegion()), cmp.Compare(x.GetLocality().GetZone(), y.GetLocality().GetZone()))
	})
	b.out.Endpoints = append(b.out.Endpoints, a)
}

// policies applies what is attached to the service.
func (b *builder) policies(c *clusterv3.Cluster, t policy.Target, isHTTP bool) {
	// An instance that is known to be ill gets nothing, also where all are: no panic threshold.
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 0}}
	if l := b.Policy.LoadBalancer.Find(t); l != nil {
		switch l.Type {
		case "LEAST_REQUEST":
			c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		case "RING_HASH":
			c.LbPolicy = clusterv3.Cluster_RING_HASH
		}
	}
	if h := b.Policy.HealthCheck.Find(t); h != nil {
		c.HealthChecks = []*corev3.HealthCheck{healthCheck(h, isHTTP, t.Key.Name)}
	}
	if o := b.Policy.Outlier.Find(t); o != nil {
		c.OutlierDetection = outlier(o)
	}
	if o := b.Policy.Timeout.Find(t); o != nil && o.Connect != nil {
		c.ConnectTimeout = seconds(*o.Connect)
	}
	breaker, retry := b.Policy.CircuitBreaker.Find(t), b.Policy.Retry.Find(t)
	limits := &clusterv3.CircuitBreakers_Thresholds{}
	if breaker != nil {
		limits.MaxConnections, limits.MaxPendingRequests = numberOf(breaker.MaxConnections), numberOf(breaker.MaxPendingRequests)
		limits.MaxRequests, limits.MaxRetries = numberOf(breaker.MaxRequests), numberOf(breaker.MaxRetries)
	}
	if limits.MaxRetries == nil {
		// Envoy's three retries at a time are used up at once when an instance
		// dies with requests under way (envoyproxy/envoy#10869): a budget
		// grows with the traffic, and still keeps retries from becoming a storm.
		percent := float64(retryBudget)
		if retry != nil && retry.BudgetPercent != nil {
			percent = *retry.BudgetPercent
		}
		limits.RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{BudgetPercent: &typev3.Percent{Value: percent}, MinRetryConcurrency: number(minRetries)}
	}
	c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{limits}}
}

func healthCheck(h *policy.HealthCheck, isHTTP bool, service string) *corev3.HealthCheck {
	out := &corev3.HealthCheck{
		Timeout: seconds(h.Timeout), Interval: seconds(h.Interval), NoTrafficInterval: seconds(h.Interval),
		HealthyThreshold: number(max(h.HealthyThreshold, 1)), UnhealthyThreshold: number(cmp.Or(h.UnhealthyThreshold, 2)),
	}
	if h.Path == "" || !isHTTP {
		out.HealthChecker = &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{}}
		return out
	}
	// Without a host it would be the name of the cluster, which is none: it has a slash in it.
	check := &corev3.HealthCheck_HttpHealthCheck{Path: h.Path, Host: cmp.Or(h.Host, service), CodecClientType: typev3.CodecClientType_HTTP2}
	statuses := slices.Clone(h.Statuses)
	if len(statuses) == 0 {
		statuses = []uint32{200}
	}
	// 403 is what a sidecar answers to a caller that may not call: the instance lives, and the caller shall see 403, not 503.
	statuses = append(statuses, 403)
	slices.Sort(statuses)
	for _, s := range slices.Compact(statuses) {
		check.ExpectedStatuses = append(check.ExpectedStatuses, &typev3.Int64Range{Start: int64(s), End: int64(s) + 1})
	}
	out.HealthChecker = &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: check}
	return out
}

func outlier(o *policy.Outlier) *clusterv3.OutlierDetection {
	out := &clusterv3.OutlierDetection{
		Consecutive_5Xx: numberOf(o.Consecutive5xx), ConsecutiveGatewayFailure: numberOf(o.ConsecutiveGatewayFailure),
		Interval: durationOf(o.Interval), BaseEjectionTime: durationOf(o.BaseEjectionTime), MaxEjectionPercent: numberOf(o.MaxEjectionPercent),
	}
	if o.ConsecutiveGatewayFailure != nil {
		out.EnforcingConsecutiveGatewayFailure = number(100) // Envoy only counts by default
	}
	return out
}

// local is the cluster of the application itself.
func (b *builder) local(protocol catalog.Protocol) string {
	const name = "local_app"
	c := fixed(name, "127.0.0.1", b.proxy.Port)
	if t := b.proxy.Transparent; t != nil && t.TProxy {
		// In the client's name no connection can be made to 127.0.0.1: its answers would not be routed. So it is made to
		// the address that the client was going to, at the application's port.
		c = &clusterv3.Cluster{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}, LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED,
			LbConfig: &clusterv3.Cluster_OriginalDstLbConfig_{OriginalDstLbConfig: &clusterv3.Cluster_OriginalDstLbConfig{UpstreamPortOverride: number(b.proxy.Port)}}}
	}
	c.ConnectTimeout = durationpb.New(time.Second)
	c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections: number(unlimited), MaxPendingRequests: number(unlimited), MaxRequests: number(unlimited), MaxRetries: number(unlimited)}}}
	if protocol.IsHTTP2() {
		c.TypedExtensionProtocolOptions = b.http2(nil)
	}
	b.out.Clusters = append(b.out.Clusters, c)
	return name
}

// fixed is a cluster of one address or name.
func fixed(name, host string, port uint32) *clusterv3.Cluster {
	kind := clusterv3.Cluster_STRICT_DNS
	if _, err := netip.ParseAddr(host); err == nil {
		kind = clusterv3.Cluster_STATIC
	}
	return &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: kind}, ConnectTimeout: durationpb.New(connectTimeout),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
				Endpoint: &endpointv3.Endpoint{Address: address(host, port)}}}}}}},
	}
}

func splitHostPort(s string) (host string, port uint32) {
	h, p, err := net.SplitHostPort(s)
	if err != nil {
		return s, 0
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return h, 0
	}
	return h, uint32(n)
}
