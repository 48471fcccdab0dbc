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

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/upstream"
)

// Protocol is the HTTP version of a message.
type Protocol uint8

const (
	ProtocolHTTP10 Protocol = iota
	ProtocolHTTP11
	ProtocolHTTP2
)

// String is the version as logs print it.
func (p Protocol) String() string { return [...]string{"HTTP/1.0", "HTTP/1.1", "HTTP/2"}[p] }

// Info is what is known of a stream: access logs, tracing and filters read it.
type Info struct {
	Conn *Connection
	// Remote is the client: Conn's peer, or who x-forwarded-for says where it is to be believed.
	Remote   netip.AddrPort
	Manager  *Manager
	Route    *route.Route // nil before routing and where none matched
	Protocol Protocol

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
	Flags   Flags
	Details string // response code details, e.g. "via_upstream", "route_not_found"

	Cluster         string // name of the chosen cluster
	Host            *upstream.Host
	UpstreamLocal   netip.AddrPort
	UpstreamFailure string // transport failure reason
	Attempts        uint32
	UpstreamProto   Protocol
	UpstreamTLS     bool

	// JWT, if set by jwt_authn, is the payload of the verified token.
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

// Flags are Envoy's response flags.
type Flags uint32

const (
	FlagUH    Flags = 1 << iota // no healthy upstream
	FlagUF                      // upstream connection failure
	FlagUO                      // upstream overflow (circuit breaker)
	FlagNR                      // no route found
	FlagURX                     // upstream retry limit exceeded
	FlagNC                      // no cluster found
	FlagDT                      // duration timeout
	FlagDC                      // downstream connection termination
	FlagLR                      // connection local reset
	FlagLH                      // local service failed health check
	FlagUT                      // upstream request timeout
	FlagUR                      // upstream remote reset
	FlagUC                      // upstream connection termination
	FlagUPE                     // upstream protocol error
	FlagDPE                     // downstream protocol error
	FlagRL                      // local rate limit
	FlagUAEX                    // denied by external or role-based authorization
	FlagSI                      // stream idle timeout
	FlagIH                      // invalid envoy headers
	FlagUMSDR                   // upstream max stream duration reached
	FlagOM                      // overload manager
	FlagDR                      // downstream remote reset
)

var flagNames = [...]string{"UH", "UF", "UO", "NR", "URX", "NC", "DT", "DC", "LR", "LH", "UT", "UR", "UC", "UPE", "DPE",
	"RL", "UAEX", "SI", "IH", "UMSDR", "OM", "DR"}

// Append writes the flags as access logs print them: "UF,URX", or "-".
func (f Flags) Append(dst []byte) []byte {
	if f == 0 {
		return append(dst, '-')
	}
	first := true
	for i, n := range flagNames {
		if f&(1<<i) != 0 {
			if !first {
				dst = append(dst, ',')
			}
			dst, first = append(dst, n...), false
		}
	}
	return dst
}

// Has says whether the flag with that short name ("UH") is set.
func (f Flags) Has(name string) bool {
	for i, n := range flagNames {
		if n == name {
			return f&(1<<i) != 0
		}
	}
	return false
}
