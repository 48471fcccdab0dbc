// Package offload runs work that takes too long for a worker, such as the
// verification of a signature, on an ordinary goroutine, one at a time for each
// worker. What waits is bounded, fair between clients, and forgotten when
// nobody waits for it any more: strangers who send more than can be done wait
// for each other, and not an honest client for them. A Queue and its Jobs
// belong to one worker; only the function of a Job runs elsewhere.
package offload

import (
	"fmt"
	"net/netip"
	"runtime/debug"

	"sallyport/sidecar/loop"
)

const (
	// MaxWaiting bounds the jobs of a queue, and MaxShare those of one client.
	MaxWaiting = 1024
	MaxShare   = 64
)

// Queue is a worker's jobs. Owned by the worker.
type Queue struct {
	worker  *loop.Worker
	clients map[netip.Addr]*client
	turn    *client // of the ring of clients with jobs: whose turn it is
	waiting int
	busy    bool
}

// client is one client's jobs, oldest first.
type client struct {
	key         netip.Addr
	next, prev  *client
	first, last *Job
	n           int
}

type queueKey struct{}

// Of returns the worker's queue.
func Of(w *loop.Worker) *Queue {
	return w.Local(queueKey{}, func() any { return &Queue{worker: w, clients: map[netip.Addr]*client{}} }).(*Queue)
}

// Job is one piece of work for a stream that waits: a chain.Work.
type Job struct {
	// Refused says, when the job is done, that it was not run: too much waits.
	// Failed is the panic that ended it, nil otherwise.
	Refused bool
	Failed  error

	q          *Queue
	key        netip.Addr
	run        func()
	done       func()
	in         *client // while it waits
	next, prev *Job
}

// New returns a job of the client at that address. run is called on a
// goroutine, once, and touches nothing that belongs to the worker.
func (q *Queue) New(client netip.Addr, run func()) *Job {
	return &Job{q: q, key: share(client), run: run}
}

// share is what one client has of addresses: of IPv6 a /64, which a single host usually has.
func share(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// Start puts the job in the queue. Where it is full, done is called at once,
// and Refused is true.
func (j *Job) Start(done func()) {
	q := j.q
	j.done = done
	if !q.busy {
		q.begin(j)
		return
	}
	c := q.clients[j.key]
	switch {
	case c != nil && c.n >= MaxShare:
		j.refuse()
		return
	case q.waiting >= MaxWaiting:
		// The newcomer takes a place from who has most, if that is more than its own.
		most := q.most()
		if c != nil && most.n <= c.n+1 || most.n <= 1 {
			j.refuse()
			return
		}
		last := most.last
		q.remove(last)
		defer last.refuse()
	}
	if c == nil {
		c = &client{key: j.key}
		q.clients[j.key] = c
		q.join(c)
	}
	c.push(j)
	j.in = c
	q.waiting++
}

// Cancel forgets the job. One that runs already ends by itself, and nobody hears of it.
func (j *Job) Cancel() {
	j.done = nil
	if j.in != nil {
		j.q.remove(j)
	}
}

func (j *Job) refuse() {
	if done := j.done; done != nil {
		j.done, j.Refused = nil, true
		done()
	}
}

func (q *Queue) begin(j *Job) {
	q.busy = true
	go func() {
		j.Failed = guarded(j.run)
		q.worker.Post(func() { q.ended(j) })
	}()
}

// guarded runs f. A panic costs the stream that waits, and not the process.
func guarded(f func()) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	f()
	return nil
}

// ended begins the next job, before whoever waited for this one goes on.
func (q *Queue) ended(j *Job) {
	q.busy = false
	if c := q.turn; c != nil {
		next := c.first
		q.turn = c.next
		q.remove(next)
		q.begin(next)
	}
	if done := j.done; done != nil {
		j.done = nil
		done()
	}
}

// remove takes a job out of the queue.
func (q *Queue) remove(j *Job) {
	c := j.in
	j.in = nil
	if j.prev != nil {
		j.prev.next = j.next
	} else {
		c.first = j.next
	}
	if j.next != nil {
		j.next.prev = j.prev
	} else {
		c.last = j.prev
	}
	j.next, j.prev = nil, nil
	q.waiting--
	if c.n--; c.n == 0 {
		delete(q.clients, c.key)
		q.leave(c)
	}
}

func (c *client) push(j *Job) {
	j.prev = c.last
	if c.last != nil {
		c.last.next = j
	} else {
		c.first = j
	}
	c.last = j
	c.n++
}

// join puts a client into the ring, behind all others.
func (q *Queue) join(c *client) {
	if q.turn == nil {
		c.next, c.prev = c, c
		q.turn = c
		return
	}
	c.next, c.prev = q.turn, q.turn.prev
	c.prev.next, c.next.prev = c, c
}

func (q *Queue) leave(c *client) {
	if c.next == c {
		q.turn = nil
		return
	}
	c.prev.next, c.next.prev = c.next, c.prev
	if q.turn == c {
		q.turn = c.next
	}
}

// most is the client that has the most jobs. It is asked only of a full queue,
// which has at most MaxWaiting clients.
func (q *Queue) most() *client {
	most := q.turn
	for c := q.turn.next; c != q.turn; c = c.next {
		if c.n > most.n {
			most = c
		}
	}
	return most
}

// Waiting is the number of jobs that wait.
func (q *Queue) Waiting() int { return q.waiting }
