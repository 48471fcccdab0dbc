// Package failure is the one table of the ways in which a request or a
// connection can end without an upstream's answer: what the client sees of
// each, over HTTP and gRPC, which response flag it has, and which reason stands
// in the logs. Bodies are constants, so that nothing of an internal error ever
// reaches a client. It imports nothing of the data plane, whose packages name
// failures by their Kind; package stream makes responses of them.
package failure

import (
	"strings"

	"google.golang.org/grpc/codes"
)

// Kind names a failure.
type Kind uint8

const (
	None Kind = iota

	// What the client sent, and a codec did not take.

	BadRequest // of HTTP/1
	BadMajorVersion
	LowVersion
	InvalidTarget
	InvalidScheme
	InvalidHost
	InvalidConnection
	InvalidContentLength
	ContentLengthAndCoding
	UnknownCoding
	InvalidCoding
	CodingNotAllowed
	ConnectWithContent
	HeadTooLarge
	TooManyFields
	UnderscoreInHead
	HeadTimeout     // not whole in time
	MalformedStream // of HTTP/2
	StreamHeadTooLarge
	TooManyStreams

	// What the client did beside that.

	MissingHost
	PathNormalization
	PathFragment
	Underscore
	TooLongToMatch // by the regular expressions of routes and rewrites
	UpgradeRefused
	RequestTooLarge // above what a filter may collect
	HeaderTooLarge  // above what the upstream takes
	RequestTimeout
	Revoked // allowed when it began, and not any more

	// What the configuration says, or does not say.

	NoRoute
	NoCluster
	DropOverload

	// What the proxy decided.

	IdleTimeout
	MaxDuration         // before the request was complete
	MaxDurationResponse // after that
	RouteTimeout
	PerTryTimeout
	PerTryIdleTimeout
	ResponseTooLarge
	Panic
	LocalReset

	// What the upstream did, or kept from doing.

	NoHealthyUpstream
	Overflow
	RemoteReset
	RefusedStream
	ConnectionTermination
	ConnectFailure
	ConnectTimeout
	TLSFailure
	UpstreamProtocol

	kinds
)

// Failure is what becomes of a request that ends so.
type Failure struct {
	Status  int
	GRPC    codes.Code
	Flags   Flags
	Details string // response code details, in Envoy's wording where it has one
	Body    string
	// Headers are names and values that are added to the response.
	Headers [][2]string
}

const resetBody = "upstream connect error or disconnect/reset before headers. reset reason: "

var table = [kinds]Failure{
	BadRequest:             client(400, "http1.codec_error"),
	BadMajorVersion:        client(505, "http1.codec_error"),
	LowVersion:             client(426, "low_version"),
	InvalidTarget:          client(400, "http1.invalid_url"),
	InvalidScheme:          client(400, "http1.invalid_scheme"),
	InvalidHost:            client(400, "http1.invalid_host"),
	InvalidConnection:      client(400, "http1.connection_header_rejected"),
	InvalidContentLength:   client(400, "http1.invalid_content_length"),
	ContentLengthAndCoding: client(400, "http1.content_length_and_chunked_not_allowed"),
	UnknownCoding:          client(501, "http1.invalid_transfer_encoding"),
	InvalidCoding:          client(400, "http1.invalid_transfer_encoding"),
	CodingNotAllowed:       client(400, "http1.transfer_encoding_not_allowed"),
	ConnectWithContent:     client(400, "http1.body_disallowed"),
	HeadTooLarge:           client(431, "http1.headers_too_large"),
	TooManyFields:          client(431, "http1.too_many_headers"),
	UnderscoreInHead:       client(400, "http1.unexpected_underscore"),
	HeadTimeout:            {408, codes.DeadlineExceeded, 0, "request_header_timeout", "", nil},
	MalformedStream:        client(400, "http2.violation.of.messaging.rule"),
	StreamHeadTooLarge:     client(431, "http2.headers_too_large"),
	TooManyStreams:         {503, codes.Unavailable, 0, "http2.too_many_streams", "", nil},

	MissingHost:       {400, codes.Internal, DPE, "missing_host_header", "Bad Request", nil},
	PathNormalization: {400, codes.Internal, DPE, "path_normalization_failed", "Bad Request", nil},
	PathFragment:      {400, codes.Internal, DPE, "path_has_fragment", "Bad Request", nil},
	Underscore:        {400, codes.Internal, DPE, "unexpected_underscore", "Bad Request", nil},
	TooLongToMatch:    {414, codes.InvalidArgument, 0, "too_long_to_match", "URI Too Long", nil},
	UpgradeRefused:    {403, codes.PermissionDenied, 0, "upgrade_failed", "", nil},
	RequestTooLarge:   {413, codes.ResourceExhausted, 0, "request_payload_too_large", "Payload Too Large", nil},
	HeaderTooLarge:    {431, codes.ResourceExhausted, 0, "upstream_request_headers_too_large", "Request Header Fields Too Large", nil},
	RequestTimeout:    {408, codes.DeadlineExceeded, DT, "request_overall_timeout", "request timeout", nil},
	Revoked:           {403, codes.PermissionDenied, 0, "access_revoked", "RBAC: access denied", nil},

	NoRoute:      {404, codes.Unimplemented, NR, "route_not_found", "", nil},
	NoCluster:    {503, codes.Unavailable, NC, "cluster_not_found", "", nil},
	DropOverload: {503, codes.Unavailable, 0, "drop_overload", "drop overload", [][2]string{{"x-envoy-drop-overload", "true"}}},

	IdleTimeout:         {408, codes.DeadlineExceeded, SI, "stream_idle_timeout", "stream timeout", nil},
	MaxDuration:         {408, codes.DeadlineExceeded, DT, "max_duration_timeout", "downstream duration timeout", nil},
	MaxDurationResponse: {504, codes.DeadlineExceeded, DT, "max_duration_timeout", "downstream duration timeout", nil},
	RouteTimeout:        {504, codes.DeadlineExceeded, UT, "response_timeout", "upstream request timeout", nil},
	PerTryTimeout:       {504, codes.DeadlineExceeded, UT, "upstream_per_try_timeout", "upstream request timeout", nil},
	PerTryIdleTimeout:   {504, codes.DeadlineExceeded, SI, "upstream_per_try_idle_timeout", "upstream request timeout", nil},
	ResponseTooLarge:    {500, codes.Internal, 0, "response_payload_too_large", "Internal Server Error", nil},
	Panic:               {500, codes.Internal, 0, "internal_error", "Internal Server Error", nil},
	LocalReset:          reset(503, LR, "local_reset", "local reset"),

	NoHealthyUpstream: {503, codes.Unavailable, UH, "no_healthy_upstream", "no healthy upstream", nil},
	Overflow: {503, codes.Unavailable, UO, beforeHead + "{overflow}", resetBody + "overflow",
		[][2]string{{"x-envoy-overloaded", "true"}}},
	RemoteReset:           reset(503, UR, "remote_reset", "remote reset"),
	RefusedStream:         reset(503, UR, "remote_refused_stream_reset", "remote refused stream reset"),
	ConnectionTermination: reset(503, UC, "connection_termination", "connection termination"),
	ConnectFailure:        reset(503, UF, "remote_connection_failure", "remote connection failure"),
	ConnectTimeout:        reset(503, UF, "connection_timeout", "connection timeout"),
	TLSFailure:            reset(503, UF, "remote_connection_failure|TLS_error", "remote connection failure"),
	UpstreamProtocol:      reset(502, UPE, "protocol_error", "protocol error"),
}

// client is a request that a codec refused; its response is the codec's.
func client(status int, details string) Failure {
	return Failure{status, codes.Internal, DPE, details, "", nil}
}

const (
	beforeHead = "upstream_reset_before_response_started"
	afterHead  = "upstream_reset_after_response_started"
)

// reset is the failure of an attempt without a response.
func reset(status int, flags Flags, detail, text string) Failure {
	return Failure{status, codes.Unavailable, flags, beforeHead + "{" + detail + "}", resetBody + text, nil}
}

// AfterHead is the Details of an attempt that failed when its response had begun.
func (f *Failure) AfterHead() string { return strings.Replace(f.Details, beforeHead, afterHead, 1) }

// Of returns the entry of a kind, which nobody may change.
func Of(k Kind) *Failure { return &table[k] }

// GRPCStatus is the gRPC status for an HTTP status of a reply that is no
// failure of this table, a filter's
// (https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md).
func GRPCStatus(status int) codes.Code {
	switch status {
	case 400:
		return codes.Internal
	case 401:
		return codes.Unauthenticated
	case 403:
		return codes.PermissionDenied
	case 404:
		return codes.Unimplemented
	case 429, 502, 503, 504:
		return codes.Unavailable
	}
	return codes.Unknown
}
