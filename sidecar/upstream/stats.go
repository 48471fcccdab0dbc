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
	StatUpdateAttempt
	StatUpdateFailure
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
	statCount
)

// descs are the metrics of a cluster.
var descs = [statCount]metric.Desc{
	StatRqTotal:             {Name: "upstream_rq_total"},
	StatRqActive:            {Name: "upstream_rq_active", Kind: metric.Gauge},
	StatRqCompleted:         {Name: "upstream_rq_completed"},
	StatRq1xx:               {Name: "upstream_rq_1xx"},
	StatRq2xx:               {Name: "upstream_rq_2xx"},
	StatRq3xx:               {Name: "upstream_rq_3xx"},
	StatRq4xx:               {Name: "upstream_rq_4xx"},
	StatRq5xx:               {Name: "upstream_rq_5xx"},
	StatRqTimeout:           {Name: "upstream_rq_timeout"},
	StatRqPerTryTimeout:     {Name: "upstream_rq_per_try_timeout"},
	StatRqPerTryIdleTimeout: {Name: "upstream_rq_per_try_idle_timeout"},
	StatRqRetry:             {Name: "upstream_rq_retry"},
	StatRqRetrySuccess:      {Name: "upstream_rq_retry_success"},
	StatRqRetryLimit:        {Name: "upstream_rq_retry_limit_exceeded"},
	StatRqRetryOverflow:     {Name: "upstream_rq_retry_overflow"},
	StatRqRxReset:           {Name: "upstream_rq_rx_reset"},
	StatRqTxReset:           {Name: "upstream_rq_tx_reset"},
	StatRqCancelled:         {Name: "upstream_rq_cancelled"},
	StatRqPendingTotal:      {Name: "upstream_rq_pending_total"},
	StatRqPendingActive:     {Name: "upstream_rq_pending_active", Kind: metric.Gauge},
	StatRqPendingOverflow:   {Name: "upstream_rq_pending_overflow"},
	StatRqPendingFailure:    {Name: "upstream_rq_pending_failure_eject"},
	StatRqMaintenance:       {Name: "upstream_rq_maintenance_mode"},
	StatCxTotal:             {Name: "upstream_cx_total"},
	StatCxActive:            {Name: "upstream_cx_active", Kind: metric.Gauge},
	StatCxHTTP1:             {Name: "upstream_cx_http1_total"},
	StatCxHTTP2:             {Name: "upstream_cx_http2_total"},
	StatCxConnectFail:       {Name: "upstream_cx_connect_fail"},
	StatCxConnectTimeout:    {Name: "upstream_cx_connect_timeout"},
	StatCxOverflow:          {Name: "upstream_cx_overflow"},
	StatCxDestroy:           {Name: "upstream_cx_destroy"},
	StatCxNoneHealthy:       {Name: "upstream_cx_none_healthy"},
	StatCxRxBytes:           {Name: "upstream_cx_rx_bytes_total"},
	StatCxTxBytes:           {Name: "upstream_cx_tx_bytes_total"},
	StatCxIdleTimeout:       {Name: "upstream_cx_idle_timeout"},
	StatCxMaxRequests:       {Name: "upstream_cx_max_requests"},
	StatCxProtocolError:     {Name: "upstream_cx_protocol_error"},
	StatTLSHandshake:        {Name: "ssl.handshake"},
	StatTLSFail:             {Name: "ssl.connection_error"},
	StatLBHealthyPanic:      {Name: "lb_healthy_panic"},
	StatMembershipTotal:     {Name: "membership_total", Kind: metric.Gauge},
	StatMembershipHealthy:   {Name: "membership_healthy", Kind: metric.Gauge},
	StatMembershipChange:    {Name: "membership_change"},
	StatUpdates:             {Name: "update_success"},
	StatUpdateAttempt:       {Name: "update_attempt"},
	StatUpdateFailure:       {Name: "update_failure"},
	StatEjectionsActive:     {Name: "outlier_detection.ejections_active", Kind: metric.Gauge},
	StatEjectionsTotal:      {Name: "outlier_detection.ejections_enforced_total"},
	StatEjections5xx:        {Name: "outlier_detection.ejections_enforced_consecutive_5xx"},
	StatEjectionsGateway:    {Name: "outlier_detection.ejections_enforced_consecutive_gateway_failure"},
	StatEjectionsLocal:      {Name: "outlier_detection.ejections_enforced_consecutive_local_origin_failure"},
	StatEjectionsOverflow:   {Name: "outlier_detection.ejections_overflow"},
	StatHealthAttempt:       {Name: "health_check.attempt"},
	StatHealthSuccess:       {Name: "health_check.success"},
	StatHealthFailure:       {Name: "health_check.failure"},
	StatRqTime:              {Name: "upstream_rq_time", Kind: metric.Histogram},
	StatCxConnectMS:         {Name: "upstream_cx_connect_ms", Kind: metric.Histogram},
}

// Stats is the layout of a cluster's statistics.
var Stats = metric.NewLayout(descs[:]...)
