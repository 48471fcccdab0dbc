package upstream

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/sidecar/message"
)

// outlierState is what outlier detection remembers of a host. The runs of
// failures are counted by workers; the rest changes only when a host is
// ejected or comes back, under mu.
type outlierState struct {
	run5xx, runGateway, runLocal atomic.Uint32

	// Of the ejection in force, or the last one; under the cluster's lock.
	which uint64
	timer *time.Timer

	mu        sync.Mutex
	ejections uint32 // how often in a row, which lengthens the next ejection
	until     time.Time
	returned  time.Time
}

func (o *outlierState) seen() (uint32, time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ejections, o.until
}

// Report tells outlier detection the status of a response. It runs on a
// worker; an ejection itself is carried out on a goroutine.
func (h *Host) Report(status int) {
	if status >= 500 {
		h.errors.Add(1)
	}
	cfg := h.cluster.Config.Outlier
	if cfg == nil {
		return
	}
	o := &h.outlier
	if status < 500 {
		reset(&o.run5xx)
		reset(&o.runGateway)
		reset(&o.runLocal)
		return
	}
	if n := o.run5xx.Add(1); cfg.Consecutive5xx > 0 && n == cfg.Consecutive5xx {
		o.run5xx.Store(0)
		h.ejectWith(cfg.Enforcing5xx, StatEjections5xx)
	}
	if status < 502 || status > 504 {
		reset(&o.runGateway)
	} else if n := o.runGateway.Add(1); cfg.ConsecutiveGateway > 0 && n == cfg.ConsecutiveGateway {
		o.runGateway.Store(0)
		h.ejectWith(cfg.EnforcingGateway, StatEjectionsGateway)
	}
}

// reset writes only where there is something to reset: the usual response must
// not take the cache line away from other workers.
func reset(n *atomic.Uint32) {
	if n.Load() != 0 {
		n.Store(0)
	}
}

// ReportLocal tells outlier detection that the host could not be reached, or,
// with reason 0, that a connection went well. Without
// split_external_local_origin_errors a failure counts as a 503.
func (h *Host) ReportLocal(r message.Reason) {
	cfg := h.cluster.Config.Outlier
	if cfg == nil {
		return
	}
	switch {
	case !cfg.SplitLocal && r == 0:
		h.Report(200)
	case !cfg.SplitLocal:
		h.Report(503)
	case r == 0:
		reset(&h.outlier.runLocal)
	default:
		if n := h.outlier.runLocal.Add(1); cfg.ConsecutiveLocal > 0 && n == cfg.ConsecutiveLocal {
			h.outlier.runLocal.Store(0)
			h.ejectWith(cfg.EnforcingLocal, StatEjectionsLocal)
		}
	}
}

func (h *Host) ejectWith(percent uint32, stat int) {
	if percent < 100 && rand.Uint32N(100) >= percent {
		return
	}
	go h.eject(stat)
}

// eject takes the host out of balancing for a time that grows with each ejection in a row.
func (h *Host) eject(stat int) {
	c, cfg, st := h.cluster, h.cluster.Config.Outlier, h.cluster.Stats.Shared()
	defer c.registry.panics.Recover("ejection of a host")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || h.flags.Load()&(flagGone|flagEjected) != 0 {
		return
	}
	// As Envoy 1.40 was seen to do: with 10 % no host of fewer than ten goes,
	// unless always_eject_one_host says so.
	if !(cfg.AlwaysEjectOne && c.ejected == 0) && (c.ejected+1)*100 > int(cfg.MaxEjectionPercent)*len(c.entries) {
		st.Inc(StatEjectionsOverflow)
		return
	}
	h.set(flagEjected, true)
	c.ejected++
	st.Inc(stat)
	st.Inc(StatEjectionsTotal)
	st.Add(StatEjectionsActive, 1)

	now, o := time.Now(), &h.outlier
	o.mu.Lock()
	// Each interval that went well takes one ejection back.
	if cfg.Interval > 0 && !o.returned.IsZero() {
		well := uint32(min(now.Sub(o.returned)/cfg.Interval, 1<<20))
		o.ejections -= min(o.ejections, well)
	}
	o.ejections++
	d := min(cfg.BaseEjection*time.Duration(o.ejections), max(cfg.MaxEjection, cfg.BaseEjection))
	o.until = now.Add(d)
	o.mu.Unlock()

	o.which++
	which := o.which
	o.timer = time.AfterFunc(d, func() { h.uneject(which) })
	c.publish()
	// Other connections to the host may do better, as those to a host that fails its checks.
	c.drainHosts([]*Host{h}, false)
	c.registry.log.Warn("host ejected by outlier detection", "cluster", c.Config.Name, "host", h, "for", d)
}

// anyEjection makes uneject end whichever ejection is in force.
const anyEjection = 0

// uneject gives the host back to balancing, if that ejection is still in force.
func (h *Host) uneject(which uint64) {
	c := h.cluster
	defer c.registry.panics.Recover("return of an ejected host")
	c.mu.Lock()
	defer c.mu.Unlock()
	if which != anyEjection && which != h.outlier.which {
		return // a timer that was late: the host came back, and was ejected again
	}
	if h.endEjection() && !c.closed {
		c.publish()
	}
}

// endEjection forgets an ejection, also of a host that leaves the cluster,
// whose place among the ejected is free then. Called with the cluster's lock held.
func (h *Host) endEjection() bool {
	if !h.set(flagEjected, false) {
		return false
	}
	h.cluster.ejected--
	h.cluster.Stats.Shared().Add(StatEjectionsActive, -1)
	o := &h.outlier
	o.timer.Stop()
	o.run5xx.Store(0)
	o.runGateway.Store(0)
	o.runLocal.Store(0)
	o.mu.Lock()
	o.returned = time.Now()
	o.mu.Unlock()
	return true
}

// GRPCStatus is the status that a gRPC code counts as for Report, as Envoy's Grpc::Utility::grpcToHttpStatus has it. Envoy
// asks for it where the request is gRPC by its content-type and grpc-status is in the response's head, that is in
// an answer without a message; a status in trailers does not count there.
func GRPCStatus(code int) int {
	if code < 0 || code >= len(grpcStatuses) {
		return 500 // a code that nobody knows
	}
	return grpcStatuses[code]
}

// grpcStatuses by code, https://grpc.github.io/grpc/core/md_doc_statuscodes.html.
var grpcStatuses = [...]int{
	0:  200, // OK
	1:  499, // CANCELLED
	2:  500, // UNKNOWN
	3:  400, // INVALID_ARGUMENT
	4:  504, // DEADLINE_EXCEEDED
	5:  404, // NOT_FOUND
	6:  409, // ALREADY_EXISTS
	7:  403, // PERMISSION_DENIED
	8:  429, // RESOURCE_EXHAUSTED
	9:  400, // FAILED_PRECONDITION
	10: 409, // ABORTED
	11: 400, // OUT_OF_RANGE
	12: 501, // UNIMPLEMENTED
	13: 500, // INTERNAL
	14: 503, // UNAVAILABLE
	15: 500, // DATA_LOSS
	16: 401, // UNAUTHENTICATED
}
