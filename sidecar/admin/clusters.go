package admin

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/sidecar/upstream"
)

// clusterStatus is a cluster as /clusters?format=json shows it, in Envoy's
// form (envoy.admin.v3.Clusters), so that tools made for Envoy read it.
func clusterStatus(c *upstream.Cluster) *adminv3.ClusterStatus {
	out := &adminv3.ClusterStatus{Name: c.Config.Name, EdsServiceName: c.Config.EDSName, AddedViaApi: c.Config.Discovery == upstream.EDS,
		CircuitBreakers: &clusterv3.CircuitBreakers{}}
	for p, b := range c.Config.Breakers {
		out.CircuitBreakers.Thresholds = append(out.CircuitBreakers.Thresholds, &clusterv3.CircuitBreakers_Thresholds{Priority: corev3.RoutingPriority(p),
			MaxConnections: wrapperspb.UInt32(b.Connections), MaxPendingRequests: wrapperspb.UInt32(b.Pending), MaxRequests: wrapperspb.UInt32(b.Requests), MaxRetries: wrapperspb.UInt32(b.Retries)})
	}
	for _, h := range c.Status() {
		out.HostStatuses = append(out.HostStatuses, hostStatus(&h))
	}
	return out
}

func hostStatus(h *upstream.HostStatus) *adminv3.HostStatus {
	flag := func(name string) bool { return slices.Contains(h.Flags, name) }
	health := &adminv3.HostHealthStatus{FailedActiveHealthCheck: flag("failed_active_hc"), FailedOutlierCheck: flag("failed_outlier_check"),
		PendingActiveHc: flag("pending_active_hc"), PendingDynamicRemoval: flag("pending_dynamic_removal"), EdsHealthStatus: corev3.HealthStatus_HEALTHY}
	switch {
	case flag("failed_eds_health"):
		health.EdsHealthStatus = corev3.HealthStatus_UNHEALTHY
	case flag("eds_status_draining"):
		health.EdsHealthStatus = corev3.HealthStatus_DRAINING
	case flag("degraded_eds_health"):
		health.EdsHealthStatus = corev3.HealthStatus_DEGRADED
	}
	metric := func(name string, kind adminv3.SimpleMetric_Type, v uint64) *adminv3.SimpleMetric {
		return &adminv3.SimpleMetric{Name: name, Type: kind, Value: v}
	}
	const counter, gauge = adminv3.SimpleMetric_COUNTER, adminv3.SimpleMetric_GAUGE
	return &adminv3.HostStatus{
		Address: address(h.Address), Hostname: h.Hostname, Weight: h.Weight, Priority: h.Priority, HealthStatus: health,
		Locality: &corev3.Locality{Region: h.Region, Zone: h.Zone},
		Stats: []*adminv3.SimpleMetric{
			metric("cx_connect_fail", counter, h.Fails), metric("cx_total", counter, h.Connects), metric("rq_active", gauge, uint64(max(h.Active, 0))),
			metric("rq_error", counter, h.Errors), metric("rq_total", counter, h.Requests),
		},
	}
}

func address(text string) *corev3.Address {
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: text}}}
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: a.Addr().String(),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())}}}}
}

// writeClusters writes clusters as Envoy's /clusters does, a value per line.
func writeClusters(w io.Writer, all []*upstream.Cluster) {
	for _, c := range all {
		line := func(format string, args ...any) {
			fmt.Fprintf(w, "%s::"+format+"\n", append([]any{c.Config.Name}, args...)...)
		}
		for p, name := range []string{"default", "high"} {
			b := c.Config.Breakers[p]
			line("%s_priority::max_connections::%d", name, b.Connections)
			line("%s_priority::max_pending_requests::%d", name, b.Pending)
			line("%s_priority::max_requests::%d", name, b.Requests)
			line("%s_priority::max_retries::%d", name, b.Retries)
		}
		for _, h := range c.Status() {
			health := "healthy"
			if len(h.Flags) > 0 {
				health = "/" + strings.Join(h.Flags, "/")
			}
			for _, v := range []struct {
				name  string
				value any
			}{
				{"health_flags", health}, {"rq_active", h.Active}, {"rq_total", h.Requests}, {"rq_error", h.Errors}, {"cx_total", h.Connects},
				{"cx_connect_fail", h.Fails}, {"weight", h.Weight}, {"priority", h.Priority}, {"hostname", h.Hostname}, {"region", h.Region}, {"zone", h.Zone},
			} {
				line("%s::%s::%v", h.Address, v.name, v.value)
			}
		}
	}
}
