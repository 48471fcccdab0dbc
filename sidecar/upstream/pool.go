package upstream

import (
	"math"
	"slices"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/metric"
)

// Requester is who asks a pool for a stream: one attempt of a request. It
// also receives the response.
type Requester interface {
	message.Receiver
	// Ready gives the stream to send the request on.
	Ready(s message.Sender, c *Client)
	// Failed says that no stream could be had; text is for logs.
	Failed(r message.Reason, text string)
}

// Waiter is an attempt as the pool sees it, embedded in the Requester so that
// waiting allocates nothing. It belongs to the pool's worker.
type Waiter struct {
	Requester Requester
	// Fresh asks for a connection that no request was made on before: the
	// retry after a kept connection turned out to be closed.
	Fresh    bool
	Priority int

	pool       *Pool
	in         *queue // where it waits, nil where it does not
	next, prev *Waiter
	counted    bool
}

// queue is a list of waiters, oldest first.
type queue struct {
	first, last *Waiter
	n           int
}

func (q *queue) push(w *Waiter) {
	w.in, w.prev, w.next = q, q.last, nil
	if q.last != nil {
		q.last.next = w
	} else {
		q.first = w
	}
	q.last = w
	q.n++
}

func (q *queue) remove(w *Waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.last = w.prev
	}
	w.in, w.prev, w.next = nil, nil, nil
	q.n--
}

// Pool is one worker's connections to one host. Owned by the worker.
type Pool struct {
	cluster *Cluster
	host    *Host
	worker  *loop.Worker
	stats   *metric.Block
	proto   Protocol

	idle    []*Client // of a protocol with one stream at a time: without one, the last used on top
	shared  []*Client // multiplexed ones that take streams
	all     []*Client // every connection, also dialing and draining ones
	dialing int
	waiting queue // who waits for a stream
	streams int64 // that a connection of the host takes, as it said last; 0: it did not say

	source *Source // where its connections come from; nil: this host
	sni    string  // the server's name that was asked for, "" where that does not matter
	narrow bool    // one of many of its host: see poolKey
}

// Pool returns the worker's pool for the host, for the protocol where the
// cluster follows the downstream.
func (h *Host) Pool(w *loop.Worker, downstream message.Version, from *Source) *Pool {
	proto := h.protocol(downstream)
	if from.fits(h) {
		return h.poolFrom(w, proto, from, nil)
	}
	p := &h.poolsOf(w.ID())[proto]
	if *p == nil {
		*p = &Pool{cluster: h.cluster, host: h, worker: w, stats: h.cluster.Stats.At(w.ID()), proto: proto}
	}
	return *p
}

// protocol is what is spoken for a request that came in that version; it is never SameAsDownstream.
func (h *Host) protocol(downstream message.Version) Protocol {
	if p := h.cluster.Config.Protocol; p != SameAsDownstream {
		return p
	}
	return Protocol(codec.Of(downstream))
}

// poolsOf are a worker's pools that are for everybody, by Protocol.
func (h *Host) poolsOf(worker int) []*Pool {
	const each = int(SameAsDownstream)
	return h.pools[each*worker : each*(worker+1)]
}

// drain lets the connections of a host that was removed, or fails its health
// check, finish what they carry. Those that are being dialed have somebody who
// waits for them: they serve, and those of a removed host end after that (see Client.rest).
func (h *Host) drain(worker int) {
	for _, p := range h.poolsOf(worker) {
		p.drain()
	}
	for _, p := range h.sourced[worker] {
		p.drain()
	}
}

func (p *Pool) drain() {
	if p == nil {
		return
	}
	for _, c := range slices.Clone(p.all) {
		if c.connected {
			c.retire()
		}
	}
}

// closeRaw ends the TCP proxy's connections to a host.
func (h *Host) closeRaw(worker int) {
	for r := range h.raw[worker] {
		r.Conn.Close() // Closed comes later, so that the map does not change here
	}
}

// Acquire finds a stream for the attempt: Ready is called at once where a
// connection is at hand, later where one must be made. A Reason other than 0
// says that it is refused now, and no callback follows. Every Acquire that
// was not refused is ended by Finish.
func (p *Pool) Acquire(w *Waiter) message.Reason {
	b, limits := &p.cluster.breakers[w.Priority], &p.cluster.Config.Breakers[w.Priority]
	if b.requests.Load() >= int64(limits.Requests) {
		p.stats.Inc(StatRqPendingOverflow)
		return message.Overflow
	}
	if c := p.available(w); c != nil {
		p.begin(w)
		c.attach(w)
		return 0
	}
	if b.pending.Load() >= int64(limits.Pending) || p.full(w.Priority) {
		p.stats.Inc(StatRqPendingOverflow)
		return message.Overflow
	}
	p.begin(w)
	p.enqueue(w)
	if !p.grow() {
		p.stats.Inc(StatCxOverflow)
	}
	return 0
}

// begin counts an attempt; Finish takes it back.
func (p *Pool) begin(w *Waiter) {
	w.pool, w.counted = p, true
	p.cluster.breakers[w.Priority].requests.Add(1)
	p.host.active.Add(1)
	p.host.requests.Add(1)
	p.stats.Inc(StatRqTotal)
	p.stats.Add(StatRqActive, 1)
}

// Finish ends an attempt, whether it waits still, failed, or had its response.
// It may be called more than once.
func (w *Waiter) Finish() {
	p := w.pool
	if p == nil {
		return
	}
	switch w.in {
	case nil:
	case &p.waiting:
		p.dequeue(w)
		p.stats.Inc(StatRqCancelled)
	default:
		w.in.remove(w) // of those that fail is about to tell
	}
	if w.counted {
		w.counted = false
		p.cluster.breakers[w.Priority].requests.Add(-1)
		p.host.active.Add(-1)
		p.stats.Add(StatRqActive, -1)
	}
	w.pool = nil
}

func (p *Pool) enqueue(w *Waiter) {
	p.waiting.push(w)
	p.cluster.breakers[w.Priority].pending.Add(1)
	p.stats.Inc(StatRqPendingTotal)
	p.stats.Add(StatRqPendingActive, 1)
}

func (p *Pool) dequeue(w *Waiter) {
	p.waiting.remove(w)
	p.cluster.breakers[w.Priority].pending.Add(-1)
	p.stats.Add(StatRqPendingActive, -1)
}

// available returns an open connection that can take a stream now.
func (p *Pool) available(w *Waiter) *Client {
	if w.Fresh {
		return nil
	}
	for len(p.idle) > 0 {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		c.idle = false
		if c.usable() && c.room() {
			return c
		}
	}
	var starved *Client
	n := 0
	for _, c := range p.shared {
		if !c.usable() || !c.room() {
			continue
		}
		if !c.starved() {
			return c
		}
		starved = c
		n++
	}
	if starved != nil && n < maxStarved && (p.dialing > 0 || p.mayDial(w.Priority)) {
		return nil // the request may have content, too: it gets another connection
	}
	return starved
}

// spare returns any shared connection that can take a stream.
func (p *Pool) spare(w *Waiter) *Client {
	for _, c := range p.shared {
		if c.usable() && c.room() && !w.Fresh {
			return c
		}
	}
	return nil
}

const (
	// assumedStreams is how many waiting requests a connection is trusted to carry, before the peer's SETTINGS are known.
	assumedStreams = 100
	// maxStarved is how many connections that are starved make another one be dialed.
	maxStarved = 8
)

// learn takes what a host said of its concurrent streams. A host that takes none says so for a while.
func (p *Pool) learn(n int, known bool) {
	if known {
		p.streams = max(1, int64(n))
	}
}

// first is how many streams are opened on a connection before the host's SETTINGS are here.
func (p *Pool) first() int { return int(max(1, p.streams)) }

// coming is how many streams are to be had on connections that are dialed, or whose SETTINGS are not here yet.
func (p *Pool) coming() int64 {
	carries := int64(1)
	if p.proto < ALPN && codec.Protocols[p.proto].Multiplexed {
		carries = assumedStreams
		if p.streams > 0 {
			carries = p.streams
		}
		if n := int64(p.cluster.Config.HTTP2.MaxConcurrentStreams); n > 0 {
			carries = min(carries, n)
		}
	}
	n := int64(p.dialing) * carries
	for _, c := range p.shared {
		limit, known := c.codec.Limit()
		switch {
		case !c.usable():
		case !known:
			n += max(0, carries-int64(c.active()))
		case limit == 0:
			return math.MaxInt64 // it takes none for a while, and would on another connection neither
		}
	}
	return n
}

// mayDial asks the circuit breaker for one more connection.
func (p *Pool) mayDial(priority int) bool {
	return p.cluster.breakers[priority].connections.Load() < int64(p.cluster.Config.Breakers[priority].Connections)
}

// grow sees to it that connections are on their way for all who wait. It
// answers false where the circuit breaker forbids another one; those who wait
// then wait for a place on the ones that are there. Where there is none, one is
// dialed in spite of the breaker, as in Envoy: they would wait for ever.
func (p *Pool) grow() bool {
	for p.waiting.n > 0 && int64(p.waiting.n) > p.coming() {
		priority := p.waiting.first.Priority
		if !p.mayDial(priority) && p.serving() {
			return false
		}
		p.dial(priority)
	}
	return true
}

// serving says that there is, or will be, a connection that takes streams.
func (p *Pool) serving() bool {
	return p.dialing > 0 || slices.ContainsFunc(p.all, (*Client).usable)
}

// serve hands c to whoever waits, as far as it can carry; it is called when c
// was opened or a stream on it ended.
func (p *Pool) serve(c *Client) {
	for p.waiting.first != nil && c.usable() && c.room() && !c.starved() {
		w := p.waiting.first
		if w.Fresh && c.served > 0 && p.dialing > 0 {
			break
		}
		p.dequeue(w)
		c.attach(w)
	}
	p.grow()
}

// fail ends the wait of everyone in the queue: the host cannot be reached. A
// requester that is told may come back to this very pool, or end the wait of
// another one that was not told yet: hence the second queue.
func (p *Pool) fail(r message.Reason, text string) {
	var failing queue
	for w := p.waiting.first; w != nil; w = p.waiting.first {
		p.dequeue(w)
		if c := p.spare(w); c != nil {
			c.attach(w) // starved, which is better than none
			continue
		}
		p.stats.Inc(StatRqPendingFailure)
		failing.push(w)
	}
	for w := failing.first; w != nil; w = failing.first {
		failing.remove(w)
		w.Requester.Failed(r, text)
	}
}

func (p *Pool) dial(priority int) {
	c := &Client{pool: p, priority: priority}
	c.idleTimer.Init(c.idleFor)
	p.all = append(p.all, c)
	p.dialing++
	c.dial()
}

func (p *Pool) forget(c *Client) {
	p.all = remove(p.all, c)
	p.idle, c.idle = remove(p.idle, c), false
	p.shared = remove(p.shared, c)
}

func remove(list []*Client, c *Client) []*Client {
	for i, o := range list {
		if o == c {
			last := len(list) - 1
			list[i] = list[last]
			list[last] = nil
			return list[:last]
		}
	}
	return list
}

// DialTCP opens a connection for the TCP proxy, under the cluster's circuit
// breakers, TLS and timeouts. The handler's Connected or Closed follows. nil: the breaker is open.
func (h *Host) DialTCP(w *loop.Worker, handler conn.Handler, from *Source) *RawClient {
	b := &h.cluster.breakers[0]
	st := h.cluster.Stats.At(w.ID())
	if b.connections.Load() >= int64(h.cluster.Config.Breakers[0].Connections) {
		st.Inc(StatCxOverflow)
		return nil
	}
	r := &RawClient{host: h, stats: st, next: handler, started: w.Now()}
	b.connections.Add(1)
	st.Inc(StatCxTotal)
	st.Add(StatCxActive, 1)
	h.connects.Add(1)
	h.active.Add(1)
	if h.raw[w.ID()] == nil {
		h.raw[w.ID()] = map[*RawClient]struct{}{}
	}
	h.raw[w.ID()][r] = struct{}{}
	r.Conn = conn.Dial(w, h.where.Load().Address, from.options(h), r)
	return r
}
