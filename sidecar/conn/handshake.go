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
	co     *coroutine // nil before its first step and after it ended

	// Among the worker's handshakes: see places.
	origin       *origin // nil before it begins and after it ended
	in           *line   // nil while its step is taken
	next, prev   *handshake
	placed       bool
	began, since int64 // NowMono, since: of the last progress

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

// start takes the handshake among those of the worker.
func (h *handshake) start() {
	p := h.places()
	p.enter(h, h.s.c.remote.Addr())
	p.queue(h)
}

func (h *handshake) places() *places {
	side := 0
	if h.client {
		side = 1
	}
	return &h.s.c.e.places[side]
}

// takeStep is a step that places granted.
func (h *handshake) takeStep() {
	e := h.s.c.e
	defer e.w.Guard(h.s.c) // the turn is everybody's
	if h.co == nil {
		if n := len(e.coroutines); n > 0 {
			h.co = e.coroutines[n-1]
			e.coroutines[n-1] = nil
			e.coroutines = e.coroutines[:n-1]
		} else {
			h.co = newCoroutine()
		}
		h.co.h = h
	}
	h.run()
}

// run has the coroutine go on until it wants more input or has ended.
func (h *handshake) run() {
	co, s := h.co, h.s
	co.resume()
	if co.h != nil {
		h.places().rest(h)
		// What is left is less than a record.
		if s.stalled {
			s.stalled = false
			s.c.again()
		}
		return
	}
	h.co = nil
	e := s.c.e
	if len(e.coroutines) < keepCoroutines {
		e.coroutines = append(e.coroutines, co)
	} else {
		co.stop()
	}
	h.end()
	if !h.aborted {
		s.done(h)
	}
}

// end gives up what the handshake has among those of the worker.
func (h *handshake) end() {
	h.places().leave(h)
	h.origin = nil
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
	if h.origin == nil {
		h.start()
	} else {
		h.places().queue(h)
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
	if h.origin == nil {
		s.c.close(ErrSilent)
		return
	}
	h.places().queue(h)
}

// abort ends the handshake of a connection that closes, and unwinds its coroutine.
func (h *handshake) abort() {
	if h.aborted || h.origin == nil {
		return
	}
	h.aborted = true
	if h.co != nil {
		h.run()
	} else {
		h.end()
	}
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
