package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	waitTime       = time.Minute // of a blocking query; Consul adds up to a sixteenth
	blockTime      = waitTime + waitTime/16 + 10*time.Second
	askTime        = 15 * time.Second      // of a query that does not block
	minBetween     = 10 * time.Millisecond // of two queries of one kind: a catalog in uproar is read 100 times a second
	maxRetryFactor = 30
	// distrustFactor times Confirm is how long a failure of one query casts doubt on the others.
	distrustFactor = 10
	// patience times Confirm is how long a loss is doubted that is another one each time it is looked at.
	patience = 4
)

// query is one question to Consul, asked again and again. It is owned by whoever steps it: a goroutine of its own, or in
// turn a worker of the poller, whose lock hands it on.
type query struct {
	name string
	ctx  context.Context
	need string // the ACL rule without which it is refused, or answered in part
	// service is whose instances are asked for, "" where it is another question.
	service string
	ask     func(*api.QueryOptions) (*api.QueryMeta, answer, error)
	// active says, under the lock of Consul, that the answer matters enough for a watch. nil: it always does.
	active func() bool

	index    uint64
	failures int
	held     []string  // what the believed answer had, sorted
	doubted  bool      // it failed itself, or its index went back
	settled  time.Time // when the believed answer was asked for
	lost     []string  // what the answer that is doubted lacks
	lostAt   time.Time // since when it lacks just that
	doubtAt  time.Time // since when anything is lacking

	turn turn // of the poller
}

// answer is what a query was told.
type answer struct {
	entries []string // what an answer after a failure must not lack without being confirmed
	take    func()   // takes it in, under the lock of Consul
}

// queryError is what is wrong with a query.
type queryError struct {
	text string
	down bool   // it is Consul that fails, rather than this question
	need string // the ACL rule that is missing
}

// follow repeats a blocking query until Run's context ends.
func (c *Consul) follow(name, need string, ask func(*api.QueryOptions) (*api.QueryMeta, answer, error)) {
	q := &query{name: name, need: need, ctx: c.ctx, ask: ask}
	c.wg.Go(func() {
		for q.ctx.Err() == nil {
			pause(q.ctx, c.step(q, true))
		}
	})
}

// step asks once and takes the answer in. It returns how long to pause before the next step: 0 where all is well and
// the query does not block.
// (https://developer.hashicorp.com/consul/api-docs/features/blocking, "Implementation details")
func (c *Consul) step(q *query, block bool) time.Duration {
	begin := time.Now()
	o, limit := &api.QueryOptions{}, askTime
	if block && q.index > 0 && q.lost == nil {
		o.WaitIndex, o.WaitTime, limit = q.index, waitTime, blockTime
	}
	meta, a, err := c.answer(q, o, limit)
	if q.ctx.Err() != nil {
		return 0
	}
	if err != nil {
		// What was read stays in force. The index is forgotten: the next answer may come from another cluster state.
		q.index, q.doubted, q.lost = 0, true, nil
		q.failures++
		c.failed(q.name, q.need, err, q.failures)
		return backoff(c.opt.Retry, q.failures)
	}
	q.failures = 0
	c.recovered(q.name)
	between := time.Duration(0)
	if block {
		between = minBetween - time.Since(begin)
	}
	if meta.LastIndex < q.index { // restored from a snapshot, or another cluster
		q.doubted = true
		c.distrust()
	} else if meta.LastIndex == q.index && q.lost == nil {
		q.settled = begin
		return between
	}
	if wait := c.doubts(q, a.entries); wait > 0 {
		return wait
	}
	q.index = max(meta.LastIndex, 1) // an index of 0 would not block
	q.held, q.settled, q.doubted, q.lost = a.entries, begin, false, nil
	c.mu.Lock()
	defer c.mu.Unlock()
	if q.ctx.Err() == nil { // else the service went away meanwhile
		a.take()
		c.changed()
	}
	return between
}

// answer asks, and judges what comes. Its entries are sorted.
func (c *Consul) answer(q *query, o *api.QueryOptions, limit time.Duration) (*api.QueryMeta, answer, error) {
	once := func(o *api.QueryOptions, limit time.Duration) (*api.QueryMeta, answer, error) {
		ctx, cancel := context.WithTimeout(q.ctx, limit)
		defer cancel()
		named := c.named.Load()
		meta, a, err := q.ask(o.WithContext(ctx))
		if err != nil {
			return meta, a, err
		}
		slices.Sort(a.entries)
		return meta, a, c.judge(ctx, meta, named, missing(q.held, a.entries) != nil)
	}
	meta, a, err := once(o, limit)
	if errors.Is(err, errUnnamed) {
		meta, a, err = once(o, limit)
	}
	if errors.Is(err, errStreamed) && o.WaitIndex > 0 {
		// The same without the stream. The index stays the stream's: what has changed since is asked for next.
		index := meta.LastIndex
		if meta, a, err = once(&api.QueryOptions{}, askTime); err == nil {
			meta.LastIndex = index
		}
	}
	return meta, a, err
}

// doubts says how long to wait before an answer is asked for again, 0 where it is believed. Consul restarts with an
// empty catalog, or one in which checks have not run yet, and fills it within seconds: what is gone after a failure must
// stay gone for a while.
func (c *Consul) doubts(q *query, entries []string) time.Duration {
	c.mu.Lock()
	doubted := q.doubted || q.settled.Before(c.distrusted) && time.Since(c.distrusted) < distrustFactor*c.opt.Confirm
	c.mu.Unlock()
	lost := missing(q.held, entries)
	if !doubted || lost == nil {
		return 0
	}
	now := time.Now()
	if q.lost == nil {
		q.doubtAt = now
		level := slog.LevelInfo
		if q.service != "" {
			level = slog.LevelDebug // there are many of them
		}
		c.log.Log(q.ctx, level, "consul answers less than before it failed; this is believed when it stays so",
			"query", q.name, "missing", len(lost), "for", c.opt.Confirm)
	}
	if !slices.Equal(lost, q.lost) {
		q.lost, q.lostAt = lost, now
	}
	if now.Sub(q.lostAt) >= c.opt.Confirm || now.Sub(q.doubtAt) >= patience*c.opt.Confirm {
		return 0
	}
	return min(c.opt.Retry, c.opt.Confirm)
}

// missing is what held has and entries have not; both are sorted.
func missing(held, entries []string) (out []string) {
	for _, h := range held {
		if _, ok := slices.BinarySearch(entries, h); !ok {
			out = append(out, h)
		}
	}
	return out
}

// backoff grows and is jittered, so that the queries of many services do not come back in step.
func backoff(base time.Duration, failures int) time.Duration {
	factor := min(1<<min(failures-1, 10), maxRetryFactor)
	d := base * time.Duration(factor)
	return d/2 + rand.N(d)
}

// distrust makes every query doubt its next losses.
func (c *Consul) distrust() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.distrusted = time.Now()
}

func (c *Consul) failed(query, need string, err error, failures int) {
	e := queryError{text: err.Error(), down: isDown(err)}
	if errors.Is(err, errFiltered) {
		e.need = need
	}
	if s, ok := errors.AsType[api.StatusError](err); ok {
		e.text = fmt.Sprintf("answered %d: %s", s.Code, strings.TrimSpace(s.Body))
		if s.Code == http.StatusForbidden {
			e.need = need
		}
	}
	if len(e.text) > 500 {
		e.text = e.text[:500]
	}
	e.text = strings.ReplaceAll(e.text, "\n", " ")
	c.mu.Lock()
	_, known := c.errs[query]
	several := c.failing(e)
	c.errs[query] = e
	c.status.LastError = query + ": " + e.text
	if e.down && failures <= maxRetryFactor { // one that fails forever does not make the others slow forever
		c.distrusted = time.Now()
	}
	c.mu.Unlock()
	if !known && !several || failures == maxRetryFactor { // one line, not one per service
		args := []any{"query", query, "error", e.text}
		if e.need != "" {
			args = append(args, "missing_acl_rule", e.need)
		}
		c.log.Error("consul cannot be read, what was read last stays in force", args...)
	}
}

// isDown says that Consul, or the way to it, fails, rather than that it refuses this question.
func isDown(err error) bool {
	if s, ok := errors.AsType[api.StatusError](err); ok {
		return s.Code >= 500
	}
	_, transport := errors.AsType[*url.Error](err)
	return transport || errors.Is(err, errNoLeader) || errors.Is(err, errStale)
}

func (c *Consul) recovered(query string) {
	c.mu.Lock()
	e, failed := c.errs[query]
	c.forget(query)
	again := failed && !c.failing(e)
	c.status.Connected = true
	c.mu.Unlock()
	if again {
		c.log.Info("consul is read again", "query", query)
	}
}

// failing says that a query fails for the same reason: because Consul does, or for want of the same rule. The caller holds
// the lock.
func (c *Consul) failing(like queryError) bool {
	for _, e := range c.errs {
		if e.down == like.down && e.need == like.need {
			return true
		}
	}
	return false
}

// forget drops the error of a query. The caller holds the lock.
func (c *Consul) forget(query string) { delete(c.errs, query) }
