package conn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
)

const (
	handshakeRead = 16 << 10
	// handshakeTotal is what a handshake may consume in all: a certificate
	// message is 256 KiB at most in crypto/tls. handshakeOutput is what it may write.
	handshakeTotal  = 512 << 10
	handshakeOutput = 1 << 20

	// maxHandshakes bounds the handshakes that are under way on one worker,
	// each of which holds a stack; further connections wait for their turn,
	// under the same timeout.
	maxHandshakes = 2048
	// keepCoroutines is how many stacks wait for the next handshake: what a
	// burst had grown would otherwise be grown again for each one.
	keepCoroutines = 8
)

// handshake is a TLS handshake under way. crypto/tls wants to block in its
// Read, which a worker must not: the handshake therefore runs on a coroutine of
// the worker, which Read leaves when the input is used up and to which the
// worker comes back when there is more. There is no other thread and no lock;
// against goroutines this saves the futex calls of four hand-overs, 15 % of the
// CPU of a new connection (docs/decisions/0005-handshakes.md).
type handshake struct {
	s      *secure
	client bool
	co     *coroutine // nil before it started and after it ended

	begun   bool // has, or waits for, a place among the worker's handshakes
	queued  bool // has asked for a step
	entered bool // the coroutine is in it
	eof     bool
	aborted bool
	left    int // of the record that Read hands out
	total   int // consumed
	wrote   int

	state *tls.ConnectionState
	err   error
}

var (
	errAborted = errors.New("connection closed during the handshake")
	// ErrSilent is how a connection ends whose client closes it without a ClientHello, as a health check of TCP does.
	ErrSilent        = fmt.Errorf("TLS handshake: %w before the client said anything", io.EOF)
	errHandshakeSize = errors.New("handshake is too long")
)

// coroutine is a stack on which one handshake after another runs.
type coroutine struct {
	h      *handshake
	resume func() (struct{}, bool)
	stop   func()
	yield  func(struct{}) bool
}

func newCoroutine() *coroutine {
	co := &coroutine{}
	co.resume, co.stop = iter.Pull(func(yield func(struct{}) bool) {
		co.yield = yield
		for {
			h := co.h
			h.state, h.err = h.shake()
			co.h = nil
			if !yield(struct{}{}) {
				return
			}
		}
	})
	return co
}

// shake is what runs on the coroutine. A panic in a callback of the
// configuration costs the connection, not the process.
func (h *handshake) shake() (state *tls.ConnectionState, err error) {
	t := h.s.tls
	defer func() {
		if p := recover(); p != nil {
			h.s.c.w.NotePanic(p)
			err = fmt.Errorf("panic during the handshake: %v", p)
		}
	}()
	if err := t.Handshake(); err != nil {
		return nil, err
	}
	cs := t.ConnectionState()
	return &cs, nil
}

// begin is called when there is a socket. A client speaks first; a server
// waits for a whole ClientHello, so that silent clients cost no stack.
func (h *handshake) begin() {
	if h.client {
		h.start()
	}
}

// start takes a place among the worker's handshakes, or waits for one.
func (h *handshake) start() {
	if h.begun {
		return
	}
	h.begun = true
	e := h.s.c.e
	if e.handshaking >= maxHandshakes {
		e.waiting = append(e.waiting, h.s.c)
		return
	}
	h.run()
}

func (h *handshake) run() {
	e := h.s.c.e
	e.handshaking++
	if n := len(e.coroutines); n > 0 {
		h.co = e.coroutines[n-1]
		e.coroutines[n-1] = nil
		e.coroutines = e.coroutines[:n-1]
	} else {
		h.co = newCoroutine()
	}
	h.co.h = h
	h.queue()
}

// next gives the place of a handshake that ended to the first that waits.
func (e *engine) next() {
	e.handshaking--
	for len(e.waiting) > 0 {
		c := e.waiting[0]
		e.waiting[0] = nil
		if e.waiting = e.waiting[1:]; len(e.waiting) == 0 {
			e.waiting = nil
		}
		if !c.closed {
			c.sec.hs.run()
			return
		}
	}
}

// queue asks for a step. A step is the key operations of a flight, some
// hundred microseconds, so a turn of the loop does one: what is ready on open
// connections never waits behind a crowd of new ones.
func (h *handshake) queue() {
	if h.queued || h.co == nil {
		return
	}
	h.queued = true
	e := h.s.c.e
	if e.stepped > len(e.steps)/2 {
		n := copy(e.steps, e.steps[e.stepped:])
		clear(e.steps[n:])
		e.steps, e.stepped = e.steps[:n], 0
	}
	if e.steps = append(e.steps, h); len(e.steps)-e.stepped == 1 {
		e.w.Again((*stepper)(e))
	}
}

type stepper engine

// Turn takes the step that waits longest.
func (t *stepper) Turn() {
	e := (*engine)(t)
	h := e.steps[e.stepped]
	e.steps[e.stepped] = nil
	if e.stepped++; e.stepped == len(e.steps) {
		e.steps, e.stepped = e.steps[:0], 0
	} else {
		e.w.Again(t)
	}
	defer e.w.Guard(h.s.c) // of whoever's turn it is
	h.queued = false
	h.step()
}

// step runs the coroutine until it wants more input or has ended.
func (h *handshake) step() {
	co := h.co
	if co == nil {
		return // ended by abort
	}
	if h.aborted && !h.entered {
		co.h = nil // nothing to unwind
	} else {
		h.entered = true
		co.resume()
	}
	if co.h != nil {
		// What is left is less than a record.
		if s := h.s; s.stalled {
			s.stalled = false
			s.c.again()
		}
		return
	}
	h.co = nil
	e := h.s.c.e
	if len(e.coroutines) < keepCoroutines {
		e.coroutines = append(e.coroutines, co)
	} else {
		co.stop()
	}
	e.next()
	if !h.aborted {
		h.s.done(h)
	}
}

// feed takes input of the handshake.
func (s *secure) feed(p []byte) {
	h := s.hs
	if len(p) == 0 || h == nil {
		return
	}
	s.rest.Append(p)
	// Without this a peer that sends ahead would fill our memory.
	s.stalled = s.rest.Len() > maxRecord
	if !h.ready() {
		return
	}
	if !h.begun {
		h.start()
	} else {
		h.queue()
	}
}

// ready says that Read has something to return: a whole record, or what is no record at all.
func (h *handshake) ready() bool {
	b := h.s.rest.Bytes()
	return h.left > 0 || h.eof || wholeRecord(b) || len(b) > 0 && (b[0] < typeChangeCipherSpec || b[0] > typeApplicationData)
}

// feedEOF says that the peer sends no more.
func (s *secure) feedEOF() {
	h := s.hs
	h.eof = true
	if !h.begun {
		s.c.close(ErrSilent)
		return
	}
	h.queue()
}

// abort unwinds the coroutine of a connection that closes.
func (h *handshake) abort() {
	h.aborted = true
	h.step()
}

// read is called by crypto/tls on the coroutine. It never returns more than the
// rest of one record, so that when the handshake is done everything that was
// not part of it is still in secure.rest.
func (h *handshake) read(p []byte) (int, error) {
	for !h.aborted && !h.ready() {
		if !h.co.yield(struct{}{}) {
			h.aborted = true
		}
	}
	b := h.s.rest.Bytes()
	switch {
	case h.aborted:
		return 0, errAborted
	case len(b) == 0:
		return 0, io.EOF
	}
	if h.left == 0 {
		if h.left = len(b); wholeRecord(b) {
			h.left = min(h.left, recordHeader+recordLength(b))
		}
	}
	n := copy(p, b[:min(h.left, len(b))])
	h.s.rest.Consume(n)
	h.left -= n
	if h.total += n; h.total > handshakeTotal {
		return 0, errHandshakeSize
	}
	return n, nil
}

// write is called by crypto/tls on the coroutine; what it writes leaves at the end of the turn.
func (h *handshake) write(p []byte) (int, error) {
	if h.aborted {
		return 0, errAborted
	}
	if h.wrote += len(p); h.wrote > handshakeOutput {
		return 0, errHandshakeSize
	}
	h.s.out.Append(p)
	h.s.c.Flush()
	return len(p), nil
}

// done is the handshake's end.
func (s *secure) done(h *handshake) {
	c := s.c
	s.hs, s.shim.hs, s.stalled = nil, nil, false
	if h.err != nil {
		s.refuse(h, fmt.Errorf("TLS handshake: %w", h.err))
		return
	}
	s.state = h.state
	if s.raw != nil {
		*s.raw = bytes.Buffer{} // its memory; read has left nothing in it
	}
	// Application data may have come along with the end of the handshake.
	s.more = true
	if c.eof {
		c.eof, c.eofPending = false, true
	}
	c.established()
	c.pump()
}

// refuse ends a connection whose handshake failed. The alert that tells the
// peer why must not be lost to a RST because of input that nobody reads: a
// client of TLS 1.3 may already send data.
func (s *secure) refuse(h *handshake, err error) {
	c := s.c
	c.out.Release() // it would have been sent encrypted
	if !h.client {
		c.linger(err, 0)
		return
	}
	// Somebody waits for the news.
	if c.writable && s.out.Len() > 0 {
		_ = s.sendOut()
	}
	c.close(err)
}
