package catalog

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	// pollInterval is how often a query is polled that would have a watch if there were one left.
	pollInterval = time.Second
	// idleInterval is how often a query is polled whose answer does not matter at present, such as the sidecars of a
	// service that has none. The list of services, which Consul tells at once when anything was registered, comes before it.
	idleInterval = 10 * time.Second
	// perPoll is the time that a polled query has in a round: 200 polls a second, if all are well.
	perPoll = 5 * time.Millisecond
	// perHint is the same where something was registered, and nobody knows of what service.
	perHint = time.Millisecond
	// scanInterval is how often it is looked at what is due.
	scanInterval = 20 * time.Millisecond
)

// poller hands queries that have no watch to its workers, each when it is due. It owns a query from add until next.
// Safe for concurrent use.
type poller struct {
	mu      sync.Mutex
	some    *sync.Cond // there is something in queue, or it is over
	polled  map[*query]bool
	waiting []*query
}

// turn is what the poller knows of a query, under the poller's lock.
type turn struct {
	due     time.Time
	asked   time.Time
	idle    bool
	queued  bool
	running bool
	hint    bool // something has changed while it was running
}

func newPoller() *poller {
	p := &poller{polled: map[*query]bool{}}
	p.some = sync.NewCond(&p.mu)
	return p
}

// add takes a query in, due after d.
func (p *poller) add(q *query, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.polled[q] = true
	q.turn = turn{due: time.Now().Add(d)}
	if d == 0 {
		p.push(q)
	}
}

func (p *poller) push(q *query) {
	q.turn.queued = true
	p.waiting = append(p.waiting, q)
	p.some.Signal()
}

// schedule queues what is due, until ctx ends.
func (p *poller) schedule(ctx context.Context) {
	defer context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.some.Broadcast()
	})()
	tick := time.NewTicker(scanInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			p.mu.Lock()
			p.some.Broadcast()
			p.mu.Unlock()
			return
		case now := <-tick.C:
			p.mu.Lock()
			for q := range p.polled {
				switch {
				case q.turn.queued || q.turn.running:
				case q.ctx.Err() != nil:
					delete(p.polled, q)
				case !q.turn.due.After(now):
					p.push(q)
				}
			}
			p.mu.Unlock()
		}
	}
}

// next waits for a query to be asked; nil when ctx has ended.
func (p *poller) next(ctx context.Context) *query {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if ctx.Err() != nil {
			return nil
		}
		if len(p.waiting) == 0 {
			p.some.Wait()
			continue
		}
		q := p.waiting[0]
		p.waiting = p.waiting[1:]
		q.turn.queued = false
		if q.ctx.Err() != nil {
			delete(p.polled, q)
			continue
		}
		q.turn.running, q.turn.asked = true, time.Now()
		return q
	}
}

// done gives back a query that was asked: after wait, or where that is 0 when its round comes.
func (p *poller) done(q *query, wait time.Duration, active bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q.turn.running, q.turn.idle = false, !active
	if wait == 0 {
		wait = idleInterval
		if active {
			wait = pollInterval
		}
		wait = max(wait, time.Duration(len(p.polled))*perPoll)
	}
	q.turn.due = time.Now().Add(wait)
	if q.turn.hint {
		q.turn.hint = false
		p.sooner(q, p.gap())
	}
}

// remove forgets a query, which a watch has taken over.
func (p *poller) remove(q *query) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.polled, q)
}

// gap is how far apart two polls of one query are that follow hints.
func (p *poller) gap() time.Duration { return time.Duration(len(p.polled)) * perHint }

// hint makes the queries that match be asked soon: something may have changed.
func (p *poller) hint(gap bool, match func(*query) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for q := range p.polled {
		if match != nil && !match(q) {
			continue
		}
		d := time.Duration(0)
		if gap {
			d = p.gap()
		}
		p.sooner(q, d)
	}
}

func (p *poller) sooner(q *query, gap time.Duration) {
	if q.turn.running {
		q.turn.hint = true
		return
	}
	if at := q.turn.asked.Add(gap); at.Before(q.turn.due) {
		q.turn.due = at
	}
	if !q.turn.queued && !q.turn.due.After(time.Now()) {
		p.push(q)
	}
}

// pollWorker asks what the poller hands out, until Run's context ends. A query whose answer matters gets a watch of
// its own, as long as there are any.
func (c *Consul) pollWorker() {
	for {
		q := c.poll.next(c.ctx)
		if q == nil {
			return
		}
		wait := c.step(q, false)
		active := c.isActive(q)
		if wait == 0 && active && q.ctx.Err() == nil {
			select {
			case c.slots <- struct{}{}:
				c.poll.remove(q)
				c.wg.Go(func() { c.watch(q) })
				continue
			default:
				c.checks.Do(c.followChecks)
			}
		}
		c.poll.done(q, wait, active)
	}
}

// watch repeats a blocking query for as long as its answer matters, then gives it back to the poller.
func (c *Consul) watch(q *query) {
	defer func() { <-c.slots }()
	for q.ctx.Err() == nil {
		wait := c.step(q, true)
		if q.failures == 0 && q.lost == nil && !c.isActive(q) {
			c.poll.add(q, idleInterval)
			return
		}
		pause(q.ctx, wait)
	}
}

func (c *Consul) isActive(q *query) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return q.active == nil || q.active()
}

// followChecks watches the state of all checks, which tells at once of what service something must be polled.
func (c *Consul) followChecks() {
	seed := maphash.MakeSeed()
	c.follow("checks", needServices, func(o *api.QueryOptions) (*api.QueryMeta, answer, error) {
		list, meta, err := c.client.Health().State(api.HealthAny, o)
		return meta, answer{take: func() {
			now := map[string]uint64{}
			for _, k := range list {
				// The order of the checks must not matter.
				now[k.ServiceName] += maphash.Comparable(seed, [4]string{k.Node, k.ServiceID, k.CheckID, k.Status})
			}
			before := c.checked
			c.checked = now
			c.poll.hint(false, func(q *query) bool {
				// Checks of nodes have no service, and count for all on the node.
				return now[""] != before[""] || now[q.service] != before[q.service]
			})
		}}, err
	})
}
