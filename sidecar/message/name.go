package message

// Name identifies a header field whose name the proxy knows. Codecs resolve
// names once, when a head is read; everything after that compares numbers.
type Name uint8

// The known names. Pseudo-header fields (RFC 9113 §8.3) come first: the
// HTTP/1 codec makes them from the request line, the Host field and the
// status line, so that both versions look the same to everything above.
const (
	Unknown Name = iota
	Method
	Path
	Authority
	Scheme
	Protocol
	Status

	Accept
	AcceptEncoding
	AccessControlAllowCredentials
	AccessControlAllowHeaders
	AccessControlAllowMethods
	AccessControlAllowOrigin
	AccessControlExposeHeaders
	AccessControlMaxAge
	AccessControlRequestHeaders
	AccessControlRequestMethod
	Age
	AltSvc
	Authorization
	B3
	CacheControl
	Connection
	ContentEncoding
	ContentLength
	ContentType
	Cookie
	Date
	Expect
	ForwardedClientCert
	GRPCMessage
	GRPCStatus
	GRPCTimeout
	Host
	HTTP2Settings
	KeepAlive
	Location
	Origin
	ProxyAuthenticate
	ProxyAuthorization
	ProxyConnection
	Referer
	RetryAfter
	SecWebSocketKey
	Server
	SetCookie
	TE
	Traceparent
	Tracestate
	Trailer
	TransferEncoding
	Upgrade
	UserAgent
	Vary
	Via
	WWWAuthenticate
	XB3Flags
	XB3ParentSpanID
	XB3Sampled
	XB3SpanID
	XB3TraceID
	XEnvoyAttemptCount
	XEnvoyDecoratorOperation
	XEnvoyExpectedRequestTimeout
	XEnvoyExternalAddress
	XEnvoyInternal
	XEnvoyMaxRetries
	XEnvoyOriginalPath
	XEnvoyOverloaded
	XEnvoyRetryGRPCOn
	XEnvoyRetryOn
	XEnvoyUpstreamRequestTimeout
	XEnvoyUpstreamServiceTime
	XForwardedFor
	XForwardedHost
	XForwardedPort
	XForwardedProto
	XRequestID

	nameCount
)

// names is indexed by Name. An array constant, so that a name missing here is
// an empty string that TestNamesAreComplete finds.
var names = [nameCount]string{
	Method: ":method", Path: ":path", Authority: ":authority", Scheme: ":scheme", Protocol: ":protocol", Status: ":status",
	Accept: "accept", AcceptEncoding: "accept-encoding",
	AccessControlAllowCredentials: "access-control-allow-credentials",
	AccessControlAllowHeaders:     "access-control-allow-headers",
	AccessControlAllowMethods:     "access-control-allow-methods",
	AccessControlAllowOrigin:      "access-control-allow-origin",
	AccessControlExposeHeaders:    "access-control-expose-headers",
	AccessControlMaxAge:           "access-control-max-age",
	AccessControlRequestHeaders:   "access-control-request-headers",
	AccessControlRequestMethod:    "access-control-request-method",
	Age:                           "age", AltSvc: "alt-svc", Authorization: "authorization", B3: "b3", CacheControl: "cache-control",
	Connection: "connection", ContentEncoding: "content-encoding", ContentLength: "content-length", ContentType: "content-type",
	Cookie: "cookie", Date: "date", Expect: "expect", ForwardedClientCert: "x-forwarded-client-cert",
	GRPCMessage: "grpc-message", GRPCStatus: "grpc-status", GRPCTimeout: "grpc-timeout",
	Host: "host", HTTP2Settings: "http2-settings", KeepAlive: "keep-alive", Location: "location", Origin: "origin",
	ProxyAuthenticate: "proxy-authenticate", ProxyAuthorization: "proxy-authorization", ProxyConnection: "proxy-connection",
	Referer: "referer", RetryAfter: "retry-after", SecWebSocketKey: "sec-websocket-key", Server: "server", SetCookie: "set-cookie", TE: "te",
	Traceparent: "traceparent", Tracestate: "tracestate", Trailer: "trailer", TransferEncoding: "transfer-encoding",
	Upgrade: "upgrade", UserAgent: "user-agent", Vary: "vary", Via: "via", WWWAuthenticate: "www-authenticate",
	XB3Flags: "x-b3-flags", XB3ParentSpanID: "x-b3-parentspanid", XB3Sampled: "x-b3-sampled", XB3SpanID: "x-b3-spanid", XB3TraceID: "x-b3-traceid",
	XEnvoyAttemptCount:           "x-envoy-attempt-count",
	XEnvoyDecoratorOperation:     "x-envoy-decorator-operation",
	XEnvoyExpectedRequestTimeout: "x-envoy-expected-rq-timeout-ms",
	XEnvoyExternalAddress:        "x-envoy-external-address",
	XEnvoyInternal:               "x-envoy-internal",
	XEnvoyMaxRetries:             "x-envoy-max-retries",
	XEnvoyOriginalPath:           "x-envoy-original-path",
	XEnvoyOverloaded:             "x-envoy-overloaded",
	XEnvoyRetryGRPCOn:            "x-envoy-retry-grpc-on",
	XEnvoyRetryOn:                "x-envoy-retry-on",
	XEnvoyUpstreamRequestTimeout: "x-envoy-upstream-rq-timeout-ms",
	XEnvoyUpstreamServiceTime:    "x-envoy-upstream-service-time",
	XForwardedFor:                "x-forwarded-for", XForwardedHost: "x-forwarded-host", XForwardedPort: "x-forwarded-port", XForwardedProto: "x-forwarded-proto",
	XRequestID: "x-request-id",
}

// String is the field name on the wire, in lower case.
func (n Name) String() string { return names[n] }

// byHash finds a known name by length, first, middle and last byte: nearly
// always one comparison. Collisions go to the next free slot.
var byHash = func() (t [256]Name) {
	for n := Unknown + 1; n < nameCount; n++ {
		i := hash(view(names[n]))
		for t[i] != Unknown {
			i++
		}
		t[i] = n
	}
	return t
}()

// hash needs at least one byte. The result wraps with the table.
func hash(b []byte) uint8 {
	n := len(b)
	h := uint32(b[0]) | uint32(b[n>>1])<<8 | uint32(b[n-1])<<16 | uint32(n)<<24
	return uint8(h * 0x9e3779b1 >> 24)
}

// NameOf returns the known name that equals lower, which must be in lower case, or Unknown.
func NameOf(lower []byte) Name {
	if len(lower) == 0 {
		return Unknown
	}
	for i := hash(lower); byHash[i] != Unknown; i++ {
		if n := byHash[i]; names[n] == string(lower) {
			return n
		}
	}
	return Unknown
}
