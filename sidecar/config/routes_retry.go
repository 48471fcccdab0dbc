package config

import (
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/config/match"
	"sallyport/sidecar/route"
)

var (
	retryFields = fields.Of(&routev3.RetryPolicy{}, "retry_on", "num_retries", "per_try_timeout", "per_try_idle_timeout", "retry_host_predicate",
		"host_selection_retry_max_attempts", "retriable_status_codes", "retry_back_off", "rate_limited_retry_back_off", "retriable_headers")
	backoffFields     = fields.Of(&routev3.RetryPolicy_RetryBackOff{}, "base_interval", "max_interval")
	rateBackoffFields = fields.Of(&routev3.RetryPolicy_RateLimitedRetryBackOff{}, "reset_headers", "max_interval")
)

// Defaults of RetryPolicy.
const (
	retryBase        = 25 * time.Millisecond
	retryRateMax     = 300 * time.Second
	previousHosts    = "envoy.retry_host_predicates.previous_hosts"
	previousHostsURL = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
)

func (c *routeCompiler) retryPolicy(path string, p *routev3.RetryPolicy) *route.Retry {
	checkFields(c.report, path, p, retryFields)
	r := &route.Retry{Retries: 1, BackoffBase: retryBase, HostAttempts: int(min(max(p.GetHostSelectionRetryMaxAttempts(), 0), 100))}
	if n := p.GetNumRetries(); n != nil {
		r.Retries = n.GetValue()
	}
	for name := range strings.SplitSeq(p.GetRetryOn(), ",") {
		name = strings.TrimSpace(name)
		on := route.RetryOnByName(name)
		if on == 0 && name != "" {
			// Envoy passes over names that it does not know.
			c.Warnf(path+".retry_on", "%q is not implemented; the condition has no effect", name)
		}
		r.On |= on
	}
	for i, s := range p.GetRetriableStatusCodes() {
		if s < 100 || s > 599 {
			c.Errorf(fields.Index(path, "retriable_status_codes", i), "%d is not a status", s)
		}
		r.Statuses = append(r.Statuses, int(s))
	}
	if t := p.GetPerTryTimeout(); t != nil {
		r.PerTry = c.duration(path+".per_try_timeout", t)
	}
	if t := p.GetPerTryIdleTimeout(); t != nil {
		r.PerTryIdle = c.duration(path+".per_try_idle_timeout", t)
	}
	r.BackoffMax = 10 * r.BackoffBase
	if b := p.GetRetryBackOff(); b != nil {
		bp := path + ".retry_back_off"
		checkFields(c.report, bp, b, backoffFields)
		// Envoy counts in milliseconds and takes less than one as one.
		r.BackoffBase = max(c.duration(bp+".base_interval", b.GetBaseInterval()), time.Millisecond)
		r.BackoffMax = 10 * r.BackoffBase
		if m := b.GetMaxInterval(); m != nil {
			r.BackoffMax = c.duration(bp+".max_interval", m)
			if r.BackoffMax < r.BackoffBase {
				c.Errorf(bp+".max_interval", "%s is less than base_interval, %s", r.BackoffMax, r.BackoffBase)
			}
		}
	}
	if b := p.GetRateLimitedRetryBackOff(); b != nil {
		bp := path + ".rate_limited_retry_back_off"
		checkFields(c.report, bp, b, rateBackoffFields)
		r.ResetMax = retryRateMax
		if m := b.GetMaxInterval(); m != nil {
			r.ResetMax = c.duration(bp+".max_interval", m)
		}
		for i, h := range b.GetResetHeaders() {
			if h.GetFormat() != routev3.RetryPolicy_SECONDS {
				c.Warnf(fields.Index(bp, "reset_headers", i)+".format", "only SECONDS is implemented; the header has no effect")
				continue
			}
			r.ResetHeaders = append(r.ResetHeaders, strings.ToLower(h.GetName()))
		}
	}
	r.RetriableHeader = match.Headers(c.report, path, "retriable_headers", p.GetRetriableHeaders())
	for i, h := range p.GetRetryHostPredicate() {
		if h.GetName() == previousHosts || h.GetTypedConfig().GetTypeUrl() == previousHostsURL {
			r.AvoidPrevious = true
			continue
		}
		c.Errorf(fields.Index(path, "retry_host_predicate", i), "%q is not implemented; known: %s", h.GetName(), previousHosts)
	}
	return r
}
