package conn

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/loop"
)

// source is a Conn as the loop's Handler.
type source Conn

// Event notes what the socket can do; it is registered edge-triggered, so
// what is not noted here never comes again.
func (s *source) Event(ev loop.Events) {
	c := (*Conn)(s)
	if c.connecting {
		if ev&(loop.Out|loop.Err|loop.Hup) == 0 {
			return
		}
		if c.finishConnect(); c.closed {
			return
		}
	}
	if ev&(loop.Out|loop.Err|loop.Hup) != 0 && !c.writable && !c.held {
		c.writable = true
		if c.pending() > 0 || c.wantShut {
			c.Flush()
		}
	}
	if ev&(loop.In|loop.RdHup|loop.Err|loop.Hup) != 0 {
		c.readable = true
	}
	if ev&(loop.RdHup|loop.Err|loop.Hup) != 0 {
		c.hup = true
		if ev&loop.Err != 0 && c.endOnReset {
			c.failed()
		}
		c.probe()
	}
	c.pump()
}

// again has pump called in the next turn.
func (c *Conn) again() {
	if !c.turning && !c.closed {
		c.turning = true
		c.w.Again((*turner)(c))
	}
}

type turner Conn

func (t *turner) Turn() {
	c := (*Conn)(t)
	c.turning = false
	c.pump()
}

// yielder is a Conn whose handler yielded. It is not the turner, which may be due
// in the very turn that the handler had enough of.
type yielder Conn

func (y *yielder) Turn() {
	c := (*Conn)(y)
	c.yielded = false
	c.pump()
}

// takesInput says that bytes have somewhere to go.
func (c *Conn) takesInput() bool {
	switch {
	case c.closed || c.connecting:
		return false
	case c.lingering:
		return true
	case c.sec != nil && !c.open:
		return !c.sec.stalled
	case c.sec != nil && c.sec.clogged():
		return false
	}
	return c.paused == 0 && !c.yielded && c.open && c.h != nil && !c.splices().blocked()
}

// pump moves input to the handler: first what waits here, in the order in
// which it arrived, then what the socket has.
func (c *Conn) pump() {
	if c.pumping {
		return
	}
	c.pumping = true
	for reads := 0; c.takesInput(); {
		switch {
		case c.lingering && (c.eofPending || c.eof):
			// The peer is done; what waits here still has to reach it.
			c.eofPending, c.eof = false, true
			if c.shut {
				c.close(c.err)
			}
			goto done
		case c.lingering:
			if !c.readable {
				goto done
			}
			if reads++; reads > readsPerTurn {
				c.again()
				goto done
			}
			c.discard()
		case c.fresh && c.open:
			c.fresh = false
			if c.kept.Len() > 0 {
				c.presentKept()
			}
		case c.sec != nil && c.open && c.sec.hasRecord():
			c.sec.decryptRest()
		case c.eofPending && c.open:
			c.deliverEOF()
		case !c.readable || c.eofPending || c.eof:
			goto done
		case reads == readsPerTurn:
			c.again()
			goto done
		default:
			reads++
			c.readOnce()
		}
	}
done:
	c.pumping = false
}

// recv reads once and returns what there was, in p or where the batch has read it before; ok is false when there was nothing to
// hand on.
func (c *Conn) recv(p []byte) (got []byte, ok bool) {
	if c.fetched != 0 {
		return c.received(c.e.batch.take(c))
	}
	r, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return c.received(p, int(r), errno)
}

// received is what a read of p has brought.
func (c *Conn) received(p []byte, n int, errno syscall.Errno) (got []byte, ok bool) {
	switch {
	case errno == unix.EAGAIN:
		c.readable = false
		return nil, false
	case errno == unix.EINTR:
		return nil, false // still readable: the caller comes again
	case errno != 0:
		c.readFailed(errno)
		return nil, false
	case n == 0:
		c.readable = false
		c.eofPending = true
		return nil, false
	}
	if n < len(p) && !c.hup && !(c.spared && c.e.accel.Overlaps(c.slot)) {
		// All there was: more makes a new edge (epoll(7), question 9).
		c.readable = false
	}
	return p[:n], true
}

func (c *Conn) readFailed(errno syscall.Errno) {
	c.readable = false
	switch {
	case c.lingering:
		c.close(c.err)
	case c.werr != nil:
		c.close(c.werr)
	default:
		c.close(fmt.Errorf("read: %w", errno))
	}
}

// minRead is the least that is read at once: two records of TLS.
const minRead = 2 * maxRecord

// readSize bounds one read by the connection's limit. What was read has to be
// kept, here or at the other side, when the handler pauses: a connection with a
// small limit must not hold many times of it. Twice, since each read wakes both sides.
func (c *Conn) readSize(most int) int { return min(most, max(2*int(c.high), minRead)) }

func (c *Conn) readOnce() {
	if p := c.splices().to; p != nil {
		c.spliceOnce(p)
		return
	}
	p := c.e.scratch[:c.readSize(ReadSize)]
	if c.sec == nil {
		if got, ok := c.recv(p); ok {
			c.read += uint64(len(got))
			c.present(got)
		}
		return
	}
	if !c.open {
		if got, ok := c.recv(p[:handshakeRead]); ok {
			c.sec.feed(got)
		}
		c.shakeEOF()
		return
	}
	// Behind the piece of a record that was left over by the last read.
	fetched := c.fetched != 0
	m := copy(c.e.scratch, c.sec.rest.Bytes())
	got, ok := c.recv(c.e.scratch[m : m+c.readSize(secureSize)])
	if !ok {
		return
	}
	switch {
	case !fetched:
		got = c.e.scratch[:m+len(got)]
	case m > 0:
		got = c.e.scratch[:m+copy(c.e.scratch[m:], got)]
	}
	c.sec.rest.Release()
	c.sec.decrypt(got)
}

// shakeEOF tells a handshake that no more input comes, once that was read.
func (c *Conn) shakeEOF() {
	if c.eofPending {
		c.eofPending, c.eof = false, true
		c.sec.feedEOF()
	}
}

// discard is readOnce of a connection that lingers.
func (c *Conn) discard() {
	if got, ok := c.recv(c.e.scratch[:ReadSize]); ok {
		c.heard(len(got))
	}
}

// present hands p to the handler and keeps what it does not consume.
func (c *Conn) present(p []byte) {
	if c.kept.Len() > 0 {
		c.kept.Append(p)
		c.presentKept()
		return
	}
	for len(p) > 0 {
		h, sec := c.h, c.sec
		n := h.Data(p)
		p = p[n:]
		if c.closed || c.lingering {
			return
		}
		if c.sec != sec {
			// TLS began: the rest is its input.
			c.sec.feed(p)
			return
		}
		if n == 0 && c.overLimit(len(p)) {
			c.close(ErrReadLimit)
			return
		}
		// A new handler gets the rest at once; the old one has seen it.
		if c.h == h || c.paused > 0 || c.yielded {
			break
		}
		c.fresh = false
	}
	c.kept.Append(p)
}

// presentKept is present for what waits in kept, whose memory must not move
// while the handler looks at it: nothing else touches it during Data.
func (c *Conn) presentKept() {
	for c.kept.Len() > 0 {
		h, sec := c.h, c.sec
		n := h.Data(c.kept.Bytes())
		if c.closed || c.lingering {
			return
		}
		c.kept.Consume(n)
		if c.sec != sec {
			c.sec.feed(c.kept.Bytes())
			c.kept.Release()
			return
		}
		if n == 0 && c.overLimit(c.kept.Len()) {
			c.close(ErrReadLimit)
			return
		}
		if c.h == h || c.paused > 0 || c.yielded {
			return
		}
		c.fresh = false
	}
}

// overLimit says that n bytes, of which the handler took nothing, are more than it may leave.
func (c *Conn) overLimit(n int) bool {
	return n > int(max(c.high, c.keep)) && c.paused == 0 && !c.yielded
}

func (c *Conn) deliverEOF() {
	c.eofPending, c.eof = false, true
	if c.sec != nil && c.sec.truncated() {
		c.close(fmt.Errorf("TLS: %w in the middle of a record", io.ErrUnexpectedEOF))
		return
	}
	c.h.EOF()
	switch {
	case c.closed || c.lingering:
	case c.werr != nil:
		c.close(c.werr)
	case c.shut:
		c.close(nil)
	}
}

// probe looks whether a peer that is gone left anything to read. If not, a
// pause need not end for the handler to learn of it.
func (c *Conn) probe() {
	if c.closed || c.lingering || !c.open || c.h == nil {
		return
	}
	if c.eof {
		c.failed() // the reading half ended before; only an error is news
		return
	}
	if c.paused == 0 || c.pumping || c.fetched != 0 || c.kept.Len() > 0 || c.sec != nil && c.sec.waits() {
		return
	}
	// Not FIONREAD, which knows only what TCP delivered (see Accelerator).
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(c.e.scratch))), 1, unix.MSG_PEEK, 0, 0)
	switch {
	case errno == 0 && n > 0, errno == unix.EAGAIN, errno == unix.EINTR:
	case errno == 0:
		c.readable = false
		c.deliverEOF()
	default:
		c.readFailed(errno)
	}
}

// failed ends the connection if its socket has an error.
func (c *Conn) failed() {
	if c.closed || c.lingering || !c.open || c.h == nil {
		return
	}
	if err := socketError(c.fd); err != nil {
		c.close(fmt.Errorf("connection: %w", err))
	}
}

func socketError(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if n != 0 {
		return syscall.Errno(n)
	}
	return nil
}

// brokenPipe says that the peer does not take more; what it sent may still be there to read.
func brokenPipe(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}
