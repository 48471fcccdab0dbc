// Package stream is the life of one request: from the head that a codec read,
// through the filters and the router to an upstream, and back. It owns the
// order of everything a request meets (see lifecycle.go), the router with its
// retries and timeouts, and the one place where failures become responses.
// Package listener makes streams, on the worker of the downstream connection;
// nothing here blocks, locks, or allocates in the steady state.
package stream

import (
	"net/netip"
	"time"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/upstream"
)

// Info is what is known of a stream: access logs, tracing and filters read it.
type Info struct {
	Conn *Connection
	// Remote is the client: Conn's peer, or who x-forwarded-for says where it is to be believed.
	Remote   netip.AddrPort
	Manager  *Manager
	Route    *route.Route // nil before routing and where none matched
	Protocol message.Version

	// Heads as they are now: the request as filters left it, the response
	// as it went to the client. Trailers are empty where there were none.
	Request          message.Head
	Response         message.Head
	ResponseTrailers message.Head

	// OriginalPath is :path before a rewrite, for logs ("" where unchanged).
	OriginalPath []byte

	Start     time.Time     // wall clock of the head's arrival
	Timings   Timings       // since Start; negative: did not happen
	Received  uint64        // body bytes from the client
	Sent      uint64        // body bytes to the client
	HeadBytes [2]uint64     // request and response head bytes, as far as the codec tells
	Duration  time.Duration // set when the stream is over

	Status  int // of the response; 0 where there was none
	Flags   failure.Flags
	Details string // response code details, e.g. "via_upstream", "route_not_found"

	Cluster         string // name of the chosen cluster
	Host            *upstream.Host
	UpstreamLocal   netip.AddrPort
	UpstreamFailure string // transport failure reason
	Attempts        uint32
	UpstreamProto   message.Version
	UpstreamTLS     bool

	// Metadata is what filters tell each other and the logs.
	Metadata []Metadatum
	Span     Span
	// TraceID is set by the tracer, in hex, for logs.
	TraceID string
}

// Metadatum is dynamic metadata: what one filter tells others and the access log.
type Metadatum struct {
	Namespace, Key string
	Value          any
}

// Timings of a stream, since its start.
type Timings struct {
	RequestEnd    time.Duration // last byte of the request received
	UpstreamStart time.Duration // head sent upstream
	UpstreamEnd   time.Duration // last byte sent upstream
	ResponseStart time.Duration // head received from upstream
	ResponseEnd   time.Duration // last byte received from upstream
}
