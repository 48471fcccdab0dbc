package conn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	handshakeRead = 16 << 10
	// handshakeInput is what waits for the handshake's goroutine before the
	// worker stops reading, and handshakeTotal what it may consume in all: a
	// certificate message is 256 KiB at most in crypto/tls.
	handshakeInput = 16 << 10
	handshakeTotal = 512 << 10
	// handshakeOutput is what it may write in all.
	handshakeOutput = 1 << 20
)

// handshake runs a TLS handshake on a goroutine, which blocks in read until
// the worker has fed it. Fields below mu are shared; the others belong to the worker.
type handshake struct {
	s       *secure
	client  bool
	started bool // has, or waits for, a place among the worker's handshakes

	mu      sync.Mutex
	fed     sync.Cond
	in      []byte // arrived and not consumed yet
	out     []byte // written and not taken by the worker yet
	total   int    // consumed
	wrote   int
	stalled bool // the worker stopped reading
	taking  bool // a function that takes out is posted
	eof     bool
	aborted bool
}

func newHandshake(s *secure, client bool) *handshake {
	h := &handshake{s: s, client: client}
	h.fed.L = &h.mu
	return h
}

var (
	errAborted       = errors.New("connection closed during the handshake")
	errHandshakeSize = errors.New("handshake is too long")
)

// begin is called when there is a socket. A client speaks first; a server
// waits for a whole ClientHello, so that silent clients cost no goroutine.
func (h *handshake) begin() {
	if h.client {
		h.start()
	}
}

// start takes a place among the worker's handshakes, or waits for one.
func (h *handshake) start() {
	if h.started {
		return
	}
	h.started = true
	e := h.s.c.e
	if e.handshaking >= maxHandshakes {
		e.waiting = append(e.waiting, h.s.c)
		return
	}
	h.run()
}

func (h *handshake) run() {
	s := h.s
	s.c.e.handshaking++
	go func() {
		state, err := shake(s.tls)
		s.c.w.Post(func() { s.done(state, err) })
	}()
	s.c.w.Handoff()
}

// shake is what runs on the goroutine. A panic in a callback of the
// configuration costs the connection, not the process.
func shake(t *tls.Conn) (state *tls.ConnectionState, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic during the handshake: %v", p)
		}
	}()
	if err := t.Handshake(); err != nil {
		return nil, err
	}
	cs := t.ConnectionState()
	return &cs, nil
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

// feed takes input of the handshake, on the worker.
func (s *secure) feed(p []byte) {
	h := s.hs
	if len(p) == 0 || h == nil {
		return
	}
	h.mu.Lock()
	h.in = append(h.in, p...)
	start := !h.started && (wholeRecord(h.in) || h.in[0] != typeHandshake)
	if h.stalled = len(h.in) > handshakeInput && !start; h.stalled {
		s.stalled = true
	}
	h.fed.Signal()
	h.mu.Unlock()
	if start {
		h.start()
	} else if h.started {
		s.c.w.Handoff()
	}
}

// feedEOF says that the peer sends no more.
func (s *secure) feedEOF() {
	h := s.hs
	h.mu.Lock()
	h.eof = true
	h.fed.Signal()
	h.mu.Unlock()
	if !h.started {
		s.c.close(fmt.Errorf("TLS handshake: %w", io.EOF))
	}
}

// abort makes the goroutine end.
func (h *handshake) abort() {
	h.mu.Lock()
	h.aborted = true
	h.fed.Signal()
	h.mu.Unlock()
}

// read is called by crypto/tls on the goroutine.
func (h *handshake) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.in) == 0 && !h.eof && !h.aborted {
		h.fed.Wait()
	}
	switch {
	case h.aborted:
		return 0, errAborted
	case len(h.in) == 0:
		return 0, io.EOF
	}
	n := copy(p, h.in)
	h.in = h.in[n:]
	if h.total += n; h.total > handshakeTotal {
		return 0, errHandshakeSize
	}
	if h.stalled && len(h.in) == 0 {
		h.stalled = false
		h.s.c.w.Post(h.s.unstall)
	}
	return n, nil
}

// unstall goes on reading from the socket, on the worker.
func (s *secure) unstall() {
	s.stalled = false
	s.c.pump()
}

// write is called by crypto/tls on the goroutine; the worker sends.
func (h *handshake) write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.aborted {
		return 0, errAborted
	}
	if h.wrote += len(p); h.wrote > handshakeOutput {
		return 0, errHandshakeSize
	}
	h.out = append(h.out, p...)
	if !h.taking {
		h.taking = true
		h.s.c.w.Post(h.take)
	}
	return len(p), nil
}

// take moves the handshake's output to the socket, on the worker.
func (h *handshake) take() {
	h.mu.Lock()
	out := h.out
	h.out, h.taking = nil, false
	h.mu.Unlock()
	if s := h.s; !s.c.closed && len(out) > 0 {
		s.out.Append(out)
		s.c.Flush()
	}
}

// done is the handshake's end, on the worker. The goroutine is gone: what was
// shared is the worker's now.
func (s *secure) done(state *tls.ConnectionState, err error) {
	c, h := s.c, s.hs
	c.e.next()
	h.take()
	s.hs, s.shim.hs, s.stalled = nil, nil, false
	if c.closed {
		return
	}
	if err != nil {
		s.refuse(h, fmt.Errorf("TLS handshake: %w", err))
		return
	}
	s.state = state
	// Application data may have come along with the end of the handshake.
	if s.raw != nil {
		s.rest.Append(s.raw.Bytes())
		*s.raw = bytes.Buffer{}
	}
	s.rest.Append(h.in)
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
