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
		o.run5xx.Store(0)
		o.runGateway.Store(0)
		o.runLocal.Store(0)
		return
	}
	if n := o.run5xx.Add(1); cfg.Consecutive5xx > 0 && n == cfg.Consecutive5xx {
		o.run5xx.Store(0)
		h.ejectWith(cfg.Enforcing5xx, StatEjections5xx)
	}
	if status < 502 || status > 504 {
		o.runGateway.Store(0)
	} else if n := o.runGateway.Add(1); cfg.ConsecutiveGateway > 0 && n == cfg.ConsecutiveGateway {
		o.runGateway.Store(0)
		h.ejectWith(cfg.EnforcingGateway, StatEjectionsGateway)
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
		h.outlier.runLocal.Store(0)
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
	c, cfg := h.cluster, h.cluster.Config.Outlier
	c.mu.Lock()
	// One host may always go; beyond that the share of ejected hosts is bounded.
	over := c.ejected > 0 && (c.ejected+1)*100 > int(cfg.MaxEjectionPercent)*len(c.entries)
	if c.closed || over || !h.set(flagEjected, true) {
		c.mu.Unlock()
		if over {
			c.Stats.Shared().Inc(StatEjectionsOverflow)
		}
		return
	}
	c.ejected++
	c.publish()
	c.mu.Unlock()

	st := c.Stats.Shared()
	st.Inc(stat)
	st.Inc(StatEjectionsTotal)
	st.Add(StatEjectionsActive, 1)
	o := &h.outlier
	o.mu.Lock()
	// Each interval that went well takes one ejection back.
	if cfg.Interval > 0 && !o.returned.IsZero() {
		well := uint32(min(time.Since(o.returned)/cfg.Interval, 1<<20))
		o.ejections -= min(o.ejections, well)
	}
	o.ejections++
	d := min(cfg.BaseEjection*time.Duration(o.ejections), max(cfg.MaxEjection, cfg.BaseEjection))
	o.until = time.Now().Add(d)
	o.mu.Unlock()
	c.registry.log.Warn("host ejected by outlier detection", "cluster", c.Config.Name, "host", h.text, "for", d)
	time.AfterFunc(d, h.uneject)
}

// uneject gives the host back to balancing, if it is still ejected.
func (h *Host) uneject() {
	c := h.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if !h.set(flagEjected, false) {
		return
	}
	c.ejected--
	c.Stats.Shared().Add(StatEjectionsActive, -1)
	h.outlier.run5xx.Store(0)
	h.outlier.runGateway.Store(0)
	h.outlier.runLocal.Store(0)
	h.outlier.mu.Lock()
	h.outlier.returned = time.Now()
	h.outlier.mu.Unlock()
	if !c.closed {
		c.publish()
	}
}
