package conn

import (
	"syscall"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/ring"
)

// fetchSize is what the batch reads of one connection. Not more than the least that is read at once, whatever the
// connection's limit: what its handler does not want any more when its turn comes is kept.
const fetchSize = 16 << 10

// worthIt is the least that is made by the ring. Beside a system call for each (BenchmarkRing, Linux 6.18, 1 KiB), two calls
// cost 1.12 by the ring, three 1.0, four 0.95, eight 0.8 and 32 0.7.
const worthIt = 4

// batch makes one system call of the reads of a turn, and one of the writes at its end (package ring). A few go by
// plain ones. Everything else is as without: a result that the ring has is used where the system call's would have been.
type batch struct {
	e     *engine
	ring  *ring.Ring
	least int // worthIt; tests have less

	slots   []byte // of fetchSize each: touched as far as they are used
	reading []reading
	writing []writing
	waiting bool // TurnEnd is registered
}

// reading is a connection whose input of this turn is read; c is nil when that was taken.
type reading struct {
	c      *Conn
	result int32
}

// writing is a connection with output of this turn.
type writing struct {
	c    *Conn
	size int // of what is sent; 0: nothing by the ring
	err  error
}

// Batch has the reads and writes of a worker's connections made in batches. It is called on the worker, whose thread has made r.
func Batch(w *loop.Worker, r *ring.Ring) {
	e := engineOf(w)
	e.batch = &batch{e: e, ring: r, least: worthIt}
	w.SetPrefetcher(e.batch)
}

// Offer takes note of a connection that its event would have read from.
func (b *batch) Offer(h loop.Handler, ev loop.Events) {
	s, ok := h.(*source)
	if !ok || ev&(loop.In|loop.RdHup|loop.Err|loop.Hup) != loop.In || len(b.reading) == ring.Size {
		return
	}
	if c := (*Conn)(s); c.open && c.takesInput() && !c.lingering && !c.fresh && !c.eof && !c.eofPending && c.kept.Len() == 0 &&
		c.splices().to == nil && (c.sec == nil || !c.sec.hasRecord()) {
		b.reading = append(b.reading, reading{c: c})
	}
}

// Fetch reads from them.
func (b *batch) Fetch() {
	if len(b.reading) < b.least || b.ring.Broken() {
		b.reading = b.reading[:0]
		return
	}
	if b.slots == nil {
		b.slots = make([]byte, ring.Size*fetchSize)
	}
	for i := range b.reading {
		c := b.reading[i].c
		c.fetched = uint8(i + 1)
		b.ring.Recv(c.fd, b.slot(i))
	}
	for i, result := range b.ring.Do() {
		b.reading[i].result = result
	}
}

func (b *batch) slot(i int) []byte { return b.slots[i*fetchSize : (i+1)*fetchSize] }

// take is the result of c's read.
func (b *batch) take(c *Conn) (p []byte, n int, errno syscall.Errno) {
	i := int(c.fetched) - 1
	c.fetched = 0
	b.reading[i].c = nil
	n, errno = outcome(b.reading[i].result)
	return b.slot(i), n, errno
}

func outcome(result int32) (int, syscall.Errno) {
	if result < 0 {
		return 0, syscall.Errno(-result)
	}
	return int(result), 0
}

// Settle keeps what the handlers did not want after all: another one's event has paused the connection, or made something
// else of it.
func (b *batch) Settle() {
	for i := range b.reading {
		c := b.reading[i].c
		if c == nil {
			continue
		}
		if p, ok := c.received(b.take(c)); ok && !c.closed {
			c.keepInput(p)
		}
		if c.sec != nil && !c.open && !c.closed {
			c.shakeEOF()
		}
		c.again()
	}
	b.reading = b.reading[:0]
}

// keepInput has p presented when the handler takes input again.
func (c *Conn) keepInput(p []byte) {
	switch {
	case c.lingering:
		c.heard(len(p))
	case c.sec == nil:
		c.read += uint64(len(p))
		c.kept.Append(p)
		c.fresh = true
	case c.open:
		c.sec.rest.Append(p)
	default:
		c.sec.feed(p)
	}
}

// add has c's output sent with that of others at the end of the turn. False where it is to be flushed by itself.
func (b *batch) add(c *Conn) bool {
	if !c.batchable() || b.ring.Broken() {
		return false
	}
	b.writing = append(b.writing, writing{c: c})
	if !b.waiting {
		b.waiting = true
		b.e.w.AtTurnEnd(b)
	}
	return true
}

// batchable says that one send is what c's output probably needs.
func (c *Conn) batchable() bool {
	if c.closed || c.connecting || c.werr != nil || c.shut || c.lingering || !c.writable || c.splices().from != nil {
		return false
	}
	if c.sec == nil {
		return c.out.Len() > 0
	}
	if !c.open || c.sec.notified {
		return false
	}
	// More than a record is sealed in pieces, each as the socket takes the one before.
	if n := c.out.Len(); n > 0 {
		return n <= maxPlain && c.sec.out.Len() == 0
	}
	return c.sec.out.Len() > 0
}

// TurnEnd sends what add has gathered.
func (b *batch) TurnEnd() {
	b.waiting = false
	for from := 0; from < len(b.writing); from += ring.Size {
		part := b.writing[from:min(len(b.writing), from+ring.Size)]
		if len(part) >= b.least {
			b.send(part)
		}
		for i := range part {
			part[i].c.flushing = false
		}
		// Not before all have their results: these call the handlers.
		for i := range part {
			b.end(&part[i])
		}
	}
	clear(b.writing)
	b.writing = b.writing[:0]
}

func (b *batch) send(part []writing) {
	for i := range part {
		p := &part[i]
		if !p.c.batchable() { // no longer: what came at the turn's end behind add
			continue
		}
		if out := p.c.sealed(&p.err); p.err == nil && len(out) > 0 {
			p.size = len(out)
			b.ring.Send(p.c.fd, out)
		}
	}
	results, done := b.ring.Do(), 0
	for i := range part {
		p := &part[i]
		if p.size == 0 {
			continue
		}
		n, errno := outcome(results[done])
		done++
		if n, p.err = p.c.sent(p.size, n, errno); p.c.sec != nil {
			p.c.sec.sent(n)
			continue
		}
		p.c.written += uint64(n)
		p.c.out.Consume(n)
	}
}

// sealed is the output as it goes to the socket.
func (c *Conn) sealed(err *error) []byte {
	if c.sec == nil {
		return c.out.Bytes()
	}
	if n := c.out.Len(); n > 0 {
		*err = c.sec.write(c.out.Bytes(), false)
		c.out.Consume(n)
	}
	return c.sec.out.Bytes()
}

// end is what flush does behind the send, and the send where the ring has made none.
func (b *batch) end(p *writing) {
	c := p.c
	defer c.w.Guard(c)
	switch {
	case p.err != nil:
		if !c.closed {
			c.writeFailed(p.err)
		}
	case p.size == 0 || c.pending() > 0 || c.wantShut || c.wasFull || c.lingering:
		c.flush()
	}
}
