// Package policy reads the documents of a folder (Gateway API's Gateway and HTTPRoute, and the policies attached to them
// by targetRefs) into one model. Each document is validated by itself and against the others; one that is wrong is refused
// with file, line and field, while its last good version stays in force, also over a restart (keep.go). A Set is immutable
// once published. The control plane runs one Folder on a goroutine of its own.
package policy

import (
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"sallyport/xds/document"
)

// API groups and versions of the kinds.
const (
	Group          = "policy.sallyport.io"
	GroupVersion   = Group + "/v1"
	GatewayGroup   = "gateway.networking.k8s.io"
	GatewayVersion = GatewayGroup + "/v1"
	coreVersion    = "v1"
)

// Kinds of documents.
const (
	KindGateway        = "Gateway"
	KindHTTPRoute      = "HTTPRoute"
	KindService        = "Service" // a target and a backend, never a document: services come from the catalog
	KindSecret         = "Secret"
	KindMesh           = "Mesh"
	KindServiceSubset  = "ServiceSubset"
	KindJWT            = "JWTPolicy"
	KindRateLimit      = "RateLimitPolicy"
	KindLoadBalancer   = "LoadBalancerPolicy"
	KindHealthCheck    = "HealthCheckPolicy"
	KindCORS           = "CORSPolicy"
	KindRetry          = "RetryPolicy"
	KindTimeout        = "TimeoutPolicy"
	KindAuthorization  = "AuthorizationPolicy"
	KindOutlier        = "OutlierPolicy"
	KindCircuitBreaker = "CircuitBreakerPolicy"
	KindMutualTLS      = "MutualTLSPolicy"
)

// Duration is written as in Go: 1s, 250ms, 1h30m.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration; write 250ms, 10s or 1h30m", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// header is what every document begins with.
type header struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
}

// TargetRef is what a policy is attached to (GEP-713), in the policy's own namespace.
type TargetRef struct {
	Group       string `json:"group"`
	Kind        string `json:"kind"`
	Name        string `json:"name"`
	SectionName string `json:"sectionName"` // a rule of an HTTPRoute
}

// targets is the part that attached policies share.
type targets struct {
	TargetRefs []TargetRef `json:"targetRefs"`
}

// JWT asks for a JSON Web Token. Targets: Gateway, HTTPRoute, Service.
type JWT struct {
	targets         `json:",inline"`
	Issuer          string        `json:"issuer"`
	Audiences       []string      `json:"audiences"`
	JWKS            JWKS          `json:"jwks"`
	ClaimsToHeaders []ClaimHeader `json:"claimsToHeaders"`
	// Required false lets requests without a token pass; a token that is wrong never does. Default true.
	Required *bool `json:"required"`
	// Forward leaves the token in the request.
	Forward     bool           `json:"forward"`
	FromHeaders []HeaderSource `json:"fromHeaders"` // default: Authorization, "Bearer "
	FromCookies []string       `json:"fromCookies"`
	FromParams  []string       `json:"fromParams"`
	ClockSkew   *Duration      `json:"clockSkew"`
	keys        string         // the key set, as text
}

// Keys is the JSON Web Key Set.
func (j *JWT) Keys() string { return j.keys }

// IsRequired says that a request without a token is turned away.
func (j *JWT) IsRequired() bool { return j.Required == nil || *j.Required }

// JWKS is a key set: one of both.
type JWKS struct {
	Inline string `json:"inline"`
	File   string `json:"file"` // relative to the document
}

// ClaimHeader copies a claim into a header of the request.
type ClaimHeader struct {
	Claim  string `json:"claim"`
	Header string `json:"header"`
}

// HeaderSource is a header with a token in it.
type HeaderSource struct {
	Name   string `json:"name"`
	Prefix string `json:"prefix"`
}

// RateLimit is a token bucket in each proxy. Targets: Gateway, HTTPRoute, Service.
type RateLimit struct {
	targets       `json:",inline"`
	Requests      uint32 `json:"requests"`
	Unit          string `json:"unit"` // Second, Minute, Hour
	Burst         uint32 `json:"burst"`
	PerConnection bool   `json:"perConnection"`
}

// MutualTLS says what a transparent sidecar does with connections that are not under the mesh's mutual TLS. Strict, the
// default, refuses them. Target: Service.
type MutualTLS struct {
	targets `json:",inline"`
	Mode    string              `json:"mode"` // STRICT, PERMISSIVE: of the application's own port
	Ports   []MutualTLSPortMode `json:"ports"`
}

// MutualTLSPortMode is the mode of another port, or of the own one.
type MutualTLSPortMode struct {
	Port uint32 `json:"port"`
	Mode string `json:"mode"`
}

// Permits says that the application's port takes plaintext. The policy may be nil.
func (m *MutualTLS) Permits(port uint32) bool {
	if m == nil {
		return false
	}
	for _, p := range m.Ports {
		if p.Port == port {
			return p.Mode == permissive
		}
	}
	return m.Mode == permissive
}

// PermittedPorts are the ports that take plaintext by name, in order.
func (m *MutualTLS) PermittedPorts() (out []uint32) {
	if m == nil {
		return nil
	}
	for _, p := range m.Ports {
		if p.Mode == permissive {
			out = append(out, p.Port)
		}
	}
	slices.Sort(out)
	return out
}

const permissive = "PERMISSIVE"

// LoadBalancer chooses instances. Target: Service.
type LoadBalancer struct {
	targets            `json:",inline"`
	Type               string              `json:"type"` // ROUND_ROBIN, LEAST_REQUEST, RING_HASH
	SessionPersistence *SessionPersistence `json:"sessionPersistence"`
	HashHeader         string              `json:"hashHeader"` // of RING_HASH
	HashSourceIP       bool                `json:"hashSourceIP"`
}

// SessionPersistence keeps a client on one instance by a cookie that the proxy makes.
type SessionPersistence struct {
	Cookie Cookie `json:"cookie"`
}

// Cookie is made where it is not there.
type Cookie struct {
	Name string   `json:"name"`
	TTL  Duration `json:"ttl"` // 0: until the browser is closed
	Path string   `json:"path"`
}

// HealthCheck asks each instance from each proxy. Target: Service.
type HealthCheck struct {
	targets            `json:",inline"`
	Path               string   `json:"path"`
	Host               string   `json:"host"`
	Interval           Duration `json:"interval"`
	Timeout            Duration `json:"timeout"`
	HealthyThreshold   uint32   `json:"healthyThreshold"`
	UnhealthyThreshold uint32   `json:"unhealthyThreshold"`
	Statuses           []uint32 `json:"statuses"` // default 200
}

// CORS answers browsers. Targets: Gateway, HTTPRoute.
type CORS struct {
	targets          `json:",inline"`
	AllowOrigins     []string `json:"allowOrigins"`
	AllowMethods     []string `json:"allowMethods"`
	AllowHeaders     []string `json:"allowHeaders"`
	ExposeHeaders    []string `json:"exposeHeaders"`
	MaxAge           Duration `json:"maxAge"`
	AllowCredentials bool     `json:"allowCredentials"`
}

// Retry repeats requests. Targets: HTTPRoute, Service.
type Retry struct {
	targets       `json:",inline"`
	Attempts      uint32    `json:"attempts"` // besides the first
	On            []string  `json:"on"`
	Statuses      []uint32  `json:"statuses"`
	PerTryTimeout *Duration `json:"perTryTimeout"`
	BackOff       *BackOff  `json:"backOff"`
	// BudgetPercent bounds the retries of a service to that share of its active requests. Only where the target is a Service.
	BudgetPercent *float64 `json:"budgetPercent"`
}

// BackOff is exponential.
type BackOff struct {
	Base Duration `json:"base"`
	Max  Duration `json:"max"`
}

// Timeout bounds requests. Targets: HTTPRoute, Service.
type Timeout struct {
	targets `json:",inline"`
	Request *Duration `json:"request"` // 0s: none
	Idle    *Duration `json:"idle"`    // of a stream, 0s: none
	Connect *Duration `json:"connect"` // to an instance. Only where the target is a Service.
}

// Authorization allows or denies. Target: Service.
type Authorization struct {
	targets `json:",inline"`
	Action  string              `json:"action"` // ALLOW, DENY
	Rules   []AuthorizationRule `json:"rules"`
}

// AuthorizationRule holds where one of From and one of To does; an empty list is anything.
type AuthorizationRule struct {
	From []Caller  `json:"from"`
	To   []Request `json:"to"`
}

// Caller is a peer: one of them.
type Caller struct {
	Service  string `json:"service"`  // NAME, NAMESPACE/NAME, NAMESPACE/* or *, which is everybody, gateways too
	Gateway  string `json:"gateway"`  // NAME or NAMESPACE/NAME: the edges of a Gateway
	SPIFFEID string `json:"spiffeID"` // exact, or a prefix that ends in /*
}

// Request is a set of requests: each part that is given must hold.
type Request struct {
	Paths    []string          `json:"paths"` // exact, or a prefix that ends in *
	Methods  []string          `json:"methods"`
	Headers  map[string]string `json:"headers"` // exact
	NotPaths []string          `json:"notPaths"`
}

// Outlier ejects instances that fail. Target: Service.
type Outlier struct {
	targets                   `json:",inline"`
	Consecutive5xx            *uint32   `json:"consecutive5xx"`
	ConsecutiveGatewayFailure *uint32   `json:"consecutiveGatewayFailure"`
	Interval                  *Duration `json:"interval"`
	BaseEjectionTime          *Duration `json:"baseEjectionTime"`
	MaxEjectionPercent        *uint32   `json:"maxEjectionPercent"`
}

// CircuitBreaker bounds what is under way at a service. Target: Service.
type CircuitBreaker struct {
	targets            `json:",inline"`
	MaxConnections     *uint32 `json:"maxConnections"`
	MaxPendingRequests *uint32 `json:"maxPendingRequests"`
	MaxRequests        *uint32 `json:"maxRequests"`
	MaxRetries         *uint32 `json:"maxRetries"`
}

// ServiceSubset is the part of a service's instances that has a tag or metadata; a backendRef may name it.
type ServiceSubset struct {
	Service string            `json:"service"`
	Tags    []string          `json:"tags"`
	Meta    map[string]string `json:"meta"`
}

// Mesh is what holds for all proxies; there is one such document at most.
type Mesh struct {
	TrustDomain          string     `json:"trustDomain"`
	DefaultAuthorization string     `json:"defaultAuthorization"` // allow, deny
	OutboundTraffic      string     `json:"outboundTraffic"`      // allow (default), block: what transparent sidecars do with unknown destinations
	Tracing              *Tracing   `json:"tracing"`
	AccessLog            *AccessLog `json:"accessLog"`
}

// Tracing sends spans to an OTLP collector over gRPC.
type Tracing struct {
	Endpoint string   `json:"endpoint"` // HOST:PORT
	Sampling *float64 `json:"sampling"` // percent, default 100
}

// AccessLog writes a JSON line per request: one of both.
type AccessLog struct {
	Stdout bool   `json:"stdout"`
	File   string `json:"file"`
}

// Secret is a certificate of a Gateway's listener: PEM in stringData or data (tls.crt, tls.key), as in Kubernetes, or files.
type Secret struct {
	Type       string            `json:"type"`
	Data       map[string][]byte `json:"data"`
	StringData map[string]string `json:"stringData"`
	Files      *SecretFiles      `json:"files"`

	Certificate, Key []byte `json:"-"` // PEM, read and found to belong together
}

// SecretFiles are paths, relative to the document.
type SecretFiles struct {
	Certificate string `json:"tls.crt"`
	Key         string `json:"tls.key"`
}

// Object is a document that was read.
type Object[T any] struct {
	Kind            string
	Namespace, Name string
	Spec            T
	doc             *document.Document
}

// ID is KIND NAMESPACE/NAME.
func (o *Object[T]) ID() string { return o.Kind + " " + o.Namespace + "/" + o.Name }

// Problemf is a problem of a field of the document.
func (o *Object[T]) Problemf(field, format string, args ...any) *document.Problem {
	return o.doc.Problemf(field, format, args...)
}

// Documents of the Gateway API; their specs are its own types.
type (
	Gateway   = Object[gatewayv1.GatewaySpec]
	HTTPRoute = Object[gatewayv1.HTTPRouteSpec]
)
