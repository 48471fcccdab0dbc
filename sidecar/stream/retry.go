package stream

import (
	"bytes"
	"math/rand/v2"
	"strconv"
	"time"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/upstream"
)

// Defaults of envoy.config.route.v3.RetryPolicy.RetryBackOff.
const (
	backoffBase = 25 * time.Millisecond
	backoffMax  = 10 // times the base
)

// retryPolicy decides on what this request is retried: the route's policy,
// and the caller's x-envoy-retry-on where prepare left it.
func (s *Stream) retryPolicy() {
	r := s.forward.Retry
	if r != nil {
		s.retryOn, s.retries = r.On, r.Retries
	}
	h := &s.Request
	if v := h.Get(message.XEnvoyRetryOn); v != nil {
		s.retryOn |= parseRetryOn(v)
		s.retries = max(s.retries, 1)
		h.RemoveName(message.XEnvoyRetryOn)
	}
	if v := h.Get(message.XEnvoyRetryGRPCOn); v != nil {
		s.retryOn |= parseRetryOn(v)
		s.retries = max(s.retries, 1)
		h.RemoveName(message.XEnvoyRetryGRPCOn)
	}
	if v := h.Get(message.XEnvoyMaxRetries); v != nil {
		if n, err := strconv.ParseUint(string(v), 10, 8); err == nil && s.retryOn != 0 {
			s.retries = uint32(n)
		}
		h.RemoveName(message.XEnvoyMaxRetries)
	}
	if s.retryOn != 0 && s.retries > 0 && !h.Has(message.Upgrade) {
		s.body.Keep()
	}
	if r != nil && r.AvoidPrevious {
		s.pick.Attempts = max(r.HostAttempts, 1)
	}
}

// parseRetryOn reads the names of retry conditions; unknown ones are passed over, as in Envoy.
func parseRetryOn(v []byte) (on route.RetryOn) {
	for item := range bytes.SplitSeq(v, []byte(",")) {
		on |= route.RetryOnByName(string(bytes.TrimSpace(item)))
	}
	return on
}

// retryResponse says whether the response is to be retried, and has begun
// that; the response is then dropped.
func (s *Stream) retryResponse(h *message.Head, status int) bool {
	if s.retryOn == 0 || !s.wantsRetry(h, status) {
		return false
	}
	wait, ok := s.resetHeader(h)
	if !s.mayRetry() {
		return false
	}
	// The rest of the response is of no interest to anyone.
	s.try.Cancel()
	if ok {
		s.retryAfter(wait)
	} else {
		s.retryLater()
	}
	return true
}

func (s *Stream) wantsRetry(h *message.Head, status int) bool {
	on := s.retryOn
	switch {
	case on&route.On5xx != 0 && status >= 500,
		on&route.OnGatewayError != 0 && status >= 502 && status <= 504,
		on&route.OnRetriable4xx != 0 && status == 409:
		return true
	}
	if r := s.forward.Retry; r != nil {
		if on&route.OnRetriableStatuses != 0 {
			for _, c := range r.Statuses {
				if c == status {
					return true
				}
			}
		}
		if on&route.OnRetriableHeaders != 0 {
			for i := range r.RetriableHeader {
				if r.RetriableHeader[i].Match(h) {
					return true
				}
			}
		}
	}
	const grpc = route.OnGRPCCancelled | route.OnGRPCDeadline | route.OnGRPCInternal | route.OnGRPCExhausted | route.OnGRPCUnavailable
	if on&grpc == 0 {
		return false
	}
	switch string(h.Get(message.GRPCStatus)) {
	case "1":
		return on&route.OnGRPCCancelled != 0
	case "4":
		return on&route.OnGRPCDeadline != 0
	case "8":
		return on&route.OnGRPCExhausted != 0
	case "13":
		return on&route.OnGRPCInternal != 0
	case "14":
		return on&route.OnGRPCUnavailable != 0
	}
	return false
}

// resetHeader reads how long the host asks to wait (rate_limited_retry_back_off).
func (s *Stream) resetHeader(h *message.Head) (time.Duration, bool) {
	r := s.forward.Retry
	if r == nil {
		return 0, false
	}
	for _, name := range r.ResetHeaders {
		if n, err := strconv.ParseUint(string(h.Lookup(name)), 10, 31); err == nil {
			if d := time.Duration(n) * time.Second; d > 0 && d <= r.ResetMax {
				return d, true
			}
		}
	}
	return 0, false
}

// retryReset says whether an attempt that ended without a response is retried, and begins that.
func (s *Stream) retryReset(r message.Reason) bool {
	on := s.retryOn
	if on == 0 || r == message.Overflow || r == message.HeaderTooLarge {
		return false
	}
	unsent := r == message.ConnectFailure || r == message.ConnectTimeout || r == message.TLSFailure
	switch {
	case on&(route.On5xx|route.OnReset) != 0,
		on&route.OnGatewayError != 0,
		on&route.OnConnectFailure != 0 && unsent,
		on&route.OnResetBeforeRequest != 0 && (unsent || !s.try.Headed()),
		on&route.OnRefusedStream != 0 && r == message.Refused:
	default:
		return false
	}
	if !s.mayRetry() {
		return false
	}
	s.retryLater()
	return true
}

// retryTimeout says whether a try that took too long is retried, and begins that.
func (s *Stream) retryTimeout() bool {
	if s.retryOn&(route.On5xx|route.OnGatewayError|route.OnReset) == 0 || !s.mayRetry() {
		return false
	}
	s.retryLater()
	return true
}

// mayRetry asks the number of retries left, the body and the circuit breaker.
func (s *Stream) mayRetry() bool {
	st := s.cluster.Stats.At(s.worker.ID())
	if s.retries == 0 {
		st.Inc(upstream.StatRqRetryLimit)
		s.Flags |= failure.URX
		return false
	}
	if !s.body.Whole() {
		return false // part of it is gone
	}
	s.doneRetrying()
	if !s.cluster.Retry(s.forward.Priority) {
		st.Inc(upstream.StatRqRetryOverflow)
		return false
	}
	s.retrying = true
	s.retries--
	st.Inc(upstream.StatRqRetry)
	return true
}

func (s *Stream) doneRetrying() {
	if s.retrying {
		s.retrying = false
		s.cluster.RetryDone(s.forward.Priority)
	}
}

// retryLater waits a random time below a bound that doubles with each attempt.
func (s *Stream) retryLater() {
	base, top := backoffBase, backoffBase*backoffMax
	if r := s.forward.Retry; r != nil && r.BackoffBase > 0 {
		base, top = r.BackoffBase, max(r.BackoffMax, r.BackoffBase)
	}
	bound := min(base<<min(s.Attempts, 16)-base, top)
	s.retryAfter(time.Duration(rand.Int64N(int64(max(bound, 1)))))
}

func (s *Stream) retryAfter(d time.Duration) {
	for i := range s.avoid {
		if s.avoid[i] == nil {
			s.avoid[i] = s.Host
			s.pick.Avoid = s.avoid[:i+1]
			break
		}
	}
	s.worker.Schedule(&s.retryTimer, d)
}

func (s *Stream) retryNow() {
	defer s.guard()
	s.attempt()
}
