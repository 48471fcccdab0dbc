// Package route holds the compiled match tables: which route a request takes
// and what that route says. Tables are compiled off the workers by package
// config and immutable; a Handle is swapped by pointer, so that a change is in
// force at the next request, also on connections already open.
package route

import (
	"sync/atomic"
	"time"
)

// Handle is a place that a route configuration is published to: an RDS
// resource, or the inline one of a listener. Safe for concurrent use.
type Handle struct {
	// Name of the route configuration.
	Name  string
	table atomic.Pointer[Table]
}

// NewHandle returns a handle that holds t, which may be nil: not yet received.
func NewHandle(name string, t *Table) *Handle {
	h := &Handle{Name: name}
	h.table.Store(t)
	return h
}

// Table is the table in force, nil where none was received yet.
func (h *Handle) Table() *Table { return h.table.Load() }

// Publish puts t in force.
func (h *Handle) Publish(t *Table) { h.table.Store(t) }

// Route is one compiled envoy.config.route.v3.Route together with what its
// virtual host and route configuration add. Immutable.
type Route struct {
	Name        string
	VirtualHost string
	// Exactly one of the three is set.
	Forward  *Forward
	Redirect *Redirect
	Direct   *Direct

	// Mutations in the order in which they are applied: route, virtual
	// host, route configuration (Envoy's order unless
	// most_specific_header_mutations_wins turns it round, which the
	// compiler has done already).
	RequestHeaders  []HeaderMutation
	ResponseHeaders []HeaderMutation

	// Overrides are typed_per_filter_config, compiled by the filters, one at
	// most of each: the most specific one. Mostly empty or of length one.
	Overrides []Override

	// matched is what Match looked at, kept for the path rewrite: the
	// length of the literal prefix or exact path, and the expression.
	Matched Matched

	IncludeAttemptCount         bool // include_request_attempt_count
	IncludeAttemptCountResponse bool
	// Tracing: overall percentage in 1/10,000 or -1 where the route says nothing.
	TraceSampling int32
}

// Override is one filter's configuration for a route.
type Override struct {
	Filter   FilterID
	Disabled bool
	Config   any // what the filter's compile function returned
}

// Forward sends a request to a cluster (envoy.config.route.v3.RouteAction).
type Forward struct {
	// Clusters has one entry for `cluster`, several for weighted_clusters.
	Clusters    []WeightedCluster
	TotalWeight uint32
	// ClusterHeader names, in lower case, the field that holds the cluster's name, if not "".
	ClusterHeader string
	// NotFoundStatus is cluster_not_found_response_code: 503 unless set.
	NotFoundStatus int

	Rewrite      PathRewrite
	HostRewrite  string // host_rewrite_literal
	HostHeader   string // host_rewrite_header
	AutoHost     bool   // auto_host_rewrite
	AppendXFHost bool   // append_x_forwarded_host

	Timeout     time.Duration // default 15 s; 0 is none
	IdleTimeout time.Duration // of the stream; negative: the listener's
	// MaxGRPCTimeout: grpc-timeout is honored up to it where HonorGRPCTimeout.
	HonorGRPCTimeout bool
	MaxGRPCTimeout   time.Duration
	Retry            *Retry // nil: none (the request's own x-envoy-retry-on is only honored inside)
	Hash             []HashPolicy
	Priority         int // 0 default, 1 high: the index of the circuit breakers
	// Upgrades are the protocols, in lower case, that this route allows (or, with
	// a false, forbids) beside the listener's.
	Upgrades []Upgrade
}

// Upgrade allows or forbids an upgrade, "connect" for the CONNECT method.
type Upgrade struct {
	Protocol string
	Enabled  bool
}

// WeightedCluster is one destination.
type WeightedCluster struct {
	// Cluster is resolved when the table is published (see ClusterRef).
	Cluster         ClusterRef
	Weight          uint32
	HostRewrite     string
	RequestHeaders  []HeaderMutation
	ResponseHeaders []HeaderMutation
	// Overrides are the cluster's own and, of other filters, the route's.
	Overrides []Override
}

// ClusterRef is a cluster by name and, so that no request looks a name up,
// the place where its current state is found: an *upstream.Ref, which this
// package may not know.
type ClusterRef struct {
	Name string
	Ref  any
}

// PathRewrite changes :path before the request is sent on.
type PathRewrite struct {
	// Prefix replaces what Matched took, where HasPrefix.
	Prefix    string
	HasPrefix bool
	// Regex, if set, is replaced by Substitution (RE2 with \1 references).
	Regex        Replacer
	Substitution string
}

// Matched is what a route's path matcher takes of a path.
type Matched struct {
	PrefixLen int // of prefix, path and path_separated_prefix matches
}

// Redirect answers with a redirection (envoy.config.route.v3.RedirectAction).
type Redirect struct {
	Status     int
	HTTPS      bool
	Scheme     string
	Host       string
	Port       uint16 // 0: unchanged
	Path       string // path_redirect; may hold a query
	Rewrite    PathRewrite
	StripQuery bool
}

// Direct answers by itself (direct_response).
type Direct struct {
	Status int
	Body   []byte
}

// Retry is envoy.config.route.v3.RetryPolicy.
type Retry struct {
	On            RetryOn
	Statuses      []int // retriable_status_codes
	Retries       uint32
	PerTry        time.Duration
	PerTryIdle    time.Duration
	BackoffBase   time.Duration // default 25 ms
	BackoffMax    time.Duration // default 10 × base
	AvoidPrevious bool          // retry_host_predicate previous_hosts
	HostAttempts  int           // host_selection_retry_max_attempts
	// RateLimited back-off: headers with seconds to wait, e.g. retry-after.
	ResetHeaders    []string
	ResetMax        time.Duration
	RetriableHeader []HeaderMatcher // retriable_headers
}

// RetryOn is a set of the conditions of x-envoy-retry-on and x-envoy-retry-grpc-on.
type RetryOn uint32

const (
	On5xx RetryOn = 1 << iota
	OnGatewayError
	OnReset
	OnResetBeforeRequest
	OnConnectFailure
	OnRetriable4xx
	OnRefusedStream
	OnRetriableStatuses
	OnRetriableHeaders
	OnGRPCCancelled
	OnGRPCDeadline
	OnGRPCInternal
	OnGRPCExhausted
	OnGRPCUnavailable
)

// HashPolicy is one envoy.config.route.v3.RouteAction.HashPolicy.
type HashPolicy struct {
	Kind     HashKind
	Name     string        // of the header, cookie or query parameter, in lower case for headers
	TTL      time.Duration // of a generated cookie; negative: none is generated; 0: a session cookie
	Path     string
	Attrs    string // more attributes of a generated cookie, "; Secure; SameSite=Lax"
	Terminal bool
}

// HashKind says what is hashed.
type HashKind uint8

const (
	HashHeader HashKind = iota
	HashCookie
	HashSourceIP
	HashQuery
)

// HeaderValue is a name in lower case and a value.
type HeaderValue struct{ Name, Value string }

// HeaderAction is envoy.config.core.v3.HeaderValueOption.append_action.
type HeaderAction uint8

const (
	Append HeaderAction = iota
	AddIfAbsent
	Overwrite
	OverwriteIfExists
	RemoveHeader
)

// HeaderMutation adds, sets or removes a header field.
type HeaderMutation struct {
	Action HeaderAction
	Name   string // lower case
	// Value is a constant; Format, if set, is used instead: the value is
	// made for each request (%DOWNSTREAM_REMOTE_ADDRESS% and so on).
	Value     string
	Format    Formatter
	KeepEmpty bool
}

// Formatter appends a value made of the state of a stream, *stream.Stream,
// which this package may not know. Implementations live in telemetry.
type Formatter interface {
	AppendValue(dst []byte, stream any) []byte
}
