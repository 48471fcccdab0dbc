package upstream

import "sallyport/sidecar/metric"

// Indexes into the statistics of a cluster; the names are Envoy's.
const (
	StatRqTotal = iota
	StatRqActive
	StatRqCompleted
	StatRq1xx
	StatRq2xx
	StatRq3xx
	StatRq4xx
	StatRq5xx
	StatRqTimeout
	StatRqPerTryTimeout
	StatRqPerTryIdleTimeout
	StatRqRetry
	StatRqRetrySuccess
	StatRqRetryLimit
	StatRqRetryOverflow
	StatRqRxReset
	StatRqTxReset
	StatRqCancelled
	StatRqPendingTotal
	StatRqPendingActive
	StatRqPendingOverflow
	StatRqPendingFailure
	StatRqMaintenance
	StatCxTotal
	StatCxActive
	StatCxHTTP1
	StatCxHTTP2
	StatCxConnectFail
	StatCxConnectTimeout
	StatCxOverflow
	StatCxDestroy
	StatCxNoneHealthy
	StatCxRxBytes
	StatCxTxBytes
	StatCxIdleTimeout
	StatCxMaxRequests
	StatCxProtocolError
	StatTLSHandshake
	StatTLSFail
	StatLBHealthyPanic
	StatMembershipTotal
	StatMembershipHealthy
	StatMembershipChange
	StatUpdates
	StatEjectionsActive
	StatEjectionsTotal
	StatEjections5xx
	StatEjectionsGateway
	StatEjectionsLocal
	StatEjectionsOverflow
	StatHealthAttempt
	StatHealthSuccess
	StatHealthFailure
	StatRqTime
	StatCxConnectMS
)

// Stats is the layout of a cluster's statistics.
var Stats = metric.NewLayout(descs()...)

func descs() []metric.Desc {
	d := make([]metric.Desc, StatCxConnectMS+1)
	for i, n := range map[int]string{
		StatRqTotal: "upstream_rq_total", StatRqCompleted: "upstream_rq_completed",
		StatRq1xx: "upstream_rq_1xx", StatRq2xx: "upstream_rq_2xx", StatRq3xx: "upstream_rq_3xx", StatRq4xx: "upstream_rq_4xx", StatRq5xx: "upstream_rq_5xx",
		StatRqTimeout: "upstream_rq_timeout", StatRqPerTryTimeout: "upstream_rq_per_try_timeout", StatRqPerTryIdleTimeout: "upstream_rq_per_try_idle_timeout",
		StatRqRetry: "upstream_rq_retry", StatRqRetrySuccess: "upstream_rq_retry_success", StatRqRetryLimit: "upstream_rq_retry_limit_exceeded", StatRqRetryOverflow: "upstream_rq_retry_overflow",
		StatRqRxReset: "upstream_rq_rx_reset", StatRqTxReset: "upstream_rq_tx_reset", StatRqCancelled: "upstream_rq_cancelled",
		StatRqPendingTotal: "upstream_rq_pending_total", StatRqPendingOverflow: "upstream_rq_pending_overflow", StatRqPendingFailure: "upstream_rq_pending_failure_eject",
		StatRqMaintenance: "upstream_rq_maintenance_mode",
		StatCxTotal:       "upstream_cx_total", StatCxHTTP1: "upstream_cx_http1_total", StatCxHTTP2: "upstream_cx_http2_total",
		StatCxConnectFail: "upstream_cx_connect_fail", StatCxConnectTimeout: "upstream_cx_connect_timeout", StatCxOverflow: "upstream_cx_overflow", StatCxDestroy: "upstream_cx_destroy",
		StatCxNoneHealthy: "upstream_cx_none_healthy", StatCxRxBytes: "upstream_cx_rx_bytes_total", StatCxTxBytes: "upstream_cx_tx_bytes_total",
		StatCxIdleTimeout: "upstream_cx_idle_timeout", StatCxMaxRequests: "upstream_cx_max_requests", StatCxProtocolError: "upstream_cx_protocol_error",
		StatTLSHandshake: "ssl.handshake", StatTLSFail: "ssl.connection_error", StatLBHealthyPanic: "lb_healthy_panic",
		StatMembershipChange: "membership_change", StatUpdates: "update_success",
		StatEjectionsTotal: "outlier_detection.ejections_enforced_total", StatEjections5xx: "outlier_detection.ejections_enforced_consecutive_5xx",
		StatEjectionsGateway: "outlier_detection.ejections_enforced_consecutive_gateway_failure", StatEjectionsLocal: "outlier_detection.ejections_enforced_consecutive_local_origin_failure",
		StatEjectionsOverflow: "outlier_detection.ejections_overflow",
		StatHealthAttempt:     "health_check.attempt", StatHealthSuccess: "health_check.success", StatHealthFailure: "health_check.failure",
	} {
		d[i] = metric.Desc{Name: n}
	}
	for i, n := range map[int]string{
		StatRqActive: "upstream_rq_active", StatRqPendingActive: "upstream_rq_pending_active", StatCxActive: "upstream_cx_active",
		StatMembershipTotal: "membership_total", StatMembershipHealthy: "membership_healthy", StatEjectionsActive: "outlier_detection.ejections_active",
	} {
		d[i] = metric.Desc{Name: n, Kind: metric.Gauge}
	}
	d[StatRqTime] = metric.Desc{Name: "upstream_rq_time", Kind: metric.Histogram}
	d[StatCxConnectMS] = metric.Desc{Name: "upstream_cx_connect_ms", Kind: metric.Histogram}
	return d
}
