package stream

import (
	"net/netip"
	"time"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/route"
)

// ForwardCert is forward_client_cert_details: what becomes of x-forwarded-client-cert.
type ForwardCert uint8

const (
	CertSanitize ForwardCert = iota
	CertForwardOnly
	CertAppendForward
	CertSanitizeSet
	CertAlwaysForwardOnly
)

// CertDetails is set_current_client_cert_details. Hash and By are always set.
type CertDetails struct{ Subject, Cert, Chain, DNS, URI bool }

// SlashAction is path_with_escaped_slashes_action.
type SlashAction uint8

const (
	SlashKeep SlashAction = iota
	SlashReject
	SlashRedirect
	SlashUnescapeForward
)

// UnderscoreAction is common_http_protocol_options.headers_with_underscores_action.
type UnderscoreAction uint8

const (
	UnderscoreAllow UnderscoreAction = iota
	UnderscoreReject
	UnderscoreDrop
)

// ServerHeader is server_header_transformation.
type ServerHeader uint8

const (
	ServerOverwrite ServerHeader = iota
	ServerAppendIfAbsent
	ServerPassThrough
)

// Manager is a compiled HttpConnectionManager. Immutable: an update makes a
// new one, which open connections use from their next request on.
type Manager struct {
	StatPrefix string
	Stats      *metric.Set // of StatPrefix
	// Codec is the protocol of every connection (codec_type); or codec.Auto.
	Codec codec.ID
	codec.Options
	Routes  *route.Handle
	Filters *Chain // nil: none but the router, which is always last and no part of it
	// SuppressEnvoyHeaders is the router's suppress_envoy_headers.
	SuppressEnvoyHeaders bool

	// Timeouts; 0 is none.
	StreamIdle     time.Duration // stream_idle_timeout, default 5 min
	RequestTime    time.Duration // request_timeout
	RequestHeaders time.Duration // request_headers_timeout
	ConnectionIdle time.Duration // common_http_protocol_options.idle_timeout, default 1 h
	MaxConnection  time.Duration // max_connection_duration
	MaxStream      time.Duration // max_stream_duration
	Drain          time.Duration // drain_timeout, default 5 s
	DelayedClose   time.Duration // delayed_close_timeout, default 1 s
	MaxRequests    uint32        // per connection

	// Who the client is.
	UseRemoteAddress bool
	TrustedHops      uint32 // xff_num_trusted_hops
	SkipXFF          bool   // skip_xff_append
	ForwardCert      ForwardCert
	CertDetails      CertDetails
	InternalCIDRs    []netip.Prefix // internal_address_config; nil: RFC 1918 and loopback are not internal unless set

	// Names.
	ServerName   string // default "envoy" in Envoy, "sallyport" here
	ServerHeader ServerHeader
	Via          string

	// Paths.
	NormalizePath bool
	MergeSlashes  bool
	Slashes       SlashAction
	Underscores   UnderscoreAction
	StripPort     StripPort

	// Request ids.
	GenerateRequestID bool // default true
	PreserveRequestID bool // preserve_external_request_id
	RequestIDResponse bool // always_set_request_id_in_response

	Upgrades   []route.Upgrade // upgrade_configs
	AccessLogs []AccessLog
	Tracer     Tracer // nil: no tracing
	Proxy100   bool   // proxy_100_continue
}

// StripPort is strip_matching_host_port and strip_any_host_port.
type StripPort uint8

const (
	KeepPort StripPort = iota
	StripMatchingPort
	StripAnyPort
)

// AccessLog takes a finished stream. Log is called on the worker and must not
// block: it formats what it needs and hands the bytes over. Implementations
// live in telemetry.
type AccessLog interface {
	Log(s *Stream)
}

// Tracer makes a span for a request (package telemetry implements it). Start
// is called on the worker when the head of a request has arrived, before the
// filters; it reads the propagated context from the request. A nil Span means
// not sampled and nothing to propagate.
type Tracer interface {
	Start(s *Stream) Span
}

// Span is one request's span. All calls come on the stream's worker.
type Span interface {
	// Inject writes the context to the request that goes upstream.
	Inject(s *Stream)
	// Finish ends the span; it reads what the stream knows then.
	Finish(s *Stream)
}
