package route

var retryNames = map[string]RetryOn{
	"5xx":                    On5xx,
	"gateway-error":          OnGatewayError,
	"reset":                  OnReset,
	"reset-before-request":   OnResetBeforeRequest,
	"connect-failure":        OnConnectFailure,
	"retriable-4xx":          OnRetriable4xx,
	"refused-stream":         OnRefusedStream,
	"retriable-status-codes": OnRetriableStatuses,
	"retriable-headers":      OnRetriableHeaders,
	"cancelled":              OnGRPCCancelled,
	"deadline-exceeded":      OnGRPCDeadline,
	"internal":               OnGRPCInternal,
	"resource-exhausted":     OnGRPCExhausted,
	"unavailable":            OnGRPCUnavailable,
}

// RetryOnByName returns the condition of that name in retry_on and
// x-envoy-retry-on, 0 where there is no such condition.
func RetryOnByName(name string) RetryOn { return retryNames[name] }
