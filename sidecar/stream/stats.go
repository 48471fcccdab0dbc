package stream

import "sallyport/sidecar/metric"

// Indexes into the statistics of a connection manager; the names are Envoy's.
const (
	StatRqTotal = iota
	StatRqActive
	StatRqCompleted
	StatRqHTTP1
	StatRqHTTP2
	StatRq1xx
	StatRq2xx
	StatRq3xx
	StatRq4xx
	StatRq5xx
	StatRqRxReset
	StatRqTxReset
	StatRqIdleTimeout
	StatRqTimeout
	StatRqMaxDuration
	StatRqTooLarge
	StatRqInvalid
	StatRqUpgrades
	StatNoRoute
	StatNoCluster
	StatDirectResponse
	StatRedirect
	StatRqRevoked
	StatCxTotal
	StatCxActive
	StatCxHTTP1
	StatCxHTTP2
	StatCxTLS
	StatCxDestroy
	StatCxIdleTimeout
	StatCxMaxDuration
	StatCxDrainClose
	StatCxProtocolError
	StatCxRxBytes
	StatCxTxBytes
	StatRqTime
	statCount
)

// descs are the metrics of a connection manager.
var descs = [statCount]metric.Desc{
	StatRqTotal:         {Name: "downstream_rq_total"},
	StatRqActive:        {Name: "downstream_rq_active", Kind: metric.Gauge},
	StatRqCompleted:     {Name: "downstream_rq_completed"},
	StatRqHTTP1:         {Name: "downstream_rq_http1_total"},
	StatRqHTTP2:         {Name: "downstream_rq_http2_total"},
	StatRq1xx:           {Name: "downstream_rq_1xx"},
	StatRq2xx:           {Name: "downstream_rq_2xx"},
	StatRq3xx:           {Name: "downstream_rq_3xx"},
	StatRq4xx:           {Name: "downstream_rq_4xx"},
	StatRq5xx:           {Name: "downstream_rq_5xx"},
	StatRqRxReset:       {Name: "downstream_rq_rx_reset"},
	StatRqTxReset:       {Name: "downstream_rq_tx_reset"},
	StatRqIdleTimeout:   {Name: "downstream_rq_idle_timeout"},
	StatRqTimeout:       {Name: "downstream_rq_timeout"},
	StatRqMaxDuration:   {Name: "downstream_rq_max_duration_reached"},
	StatRqTooLarge:      {Name: "downstream_rq_too_large"},
	StatRqInvalid:       {Name: "downstream_rq_invalid"},
	StatRqUpgrades:      {Name: "downstream_cx_upgrades_total"},
	StatNoRoute:         {Name: "no_route"},
	StatNoCluster:       {Name: "no_cluster"},
	StatDirectResponse:  {Name: "rq_direct_response"},
	StatRedirect:        {Name: "rq_redirect"},
	StatRqRevoked:       {Name: "downstream_rq_revoked"},
	StatCxTotal:         {Name: "downstream_cx_total"},
	StatCxActive:        {Name: "downstream_cx_active", Kind: metric.Gauge},
	StatCxHTTP1:         {Name: "downstream_cx_http1_total"},
	StatCxHTTP2:         {Name: "downstream_cx_http2_total"},
	StatCxTLS:           {Name: "downstream_cx_ssl_total"},
	StatCxDestroy:       {Name: "downstream_cx_destroy"},
	StatCxIdleTimeout:   {Name: "downstream_cx_idle_timeout"},
	StatCxMaxDuration:   {Name: "downstream_cx_max_duration_reached"},
	StatCxDrainClose:    {Name: "downstream_cx_drain_close"},
	StatCxProtocolError: {Name: "downstream_cx_protocol_error"},
	StatCxRxBytes:       {Name: "downstream_cx_rx_bytes_total"},
	StatCxTxBytes:       {Name: "downstream_cx_tx_bytes_total"},
	StatRqTime:          {Name: "downstream_rq_time", Kind: metric.Histogram},
}

// Stats is the layout of a connection manager's statistics.
var Stats = metric.NewLayout(descs[:]...)
