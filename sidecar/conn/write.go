package conn

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// send is one send(2) of p. It returns how much the socket took; less than all
// of p means that it is full, or, with err, broken.
func (c *Conn) send(p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
		if errno != unix.EINTR {
			return c.sent(len(p), int(n), errno)
		}
	}
}

// sent is what a send of size bytes has brought.
func (c *Conn) sent(size, n int, errno syscall.Errno) (int, error) {
	switch errno {
	case 0:
		if c.spared && c.e.accel.Full(c.slot) {
			c.hold()
		} else if n < size {
			c.writable = false
		}
		return n, nil
	case unix.EAGAIN:
		c.writable = false
		return 0, nil
	case unix.EINTR:
		return 0, nil
	default:
		c.writable = false
		return 0, errno
	}
}

// flusher is a Conn at the end of a turn in which it was written to.
type flusher Conn

func (f *flusher) TurnEnd() {
	c := (*Conn)(f)
	if b := c.e.batch; b != nil && b.add(c) {
		return
	}
	c.flushing = false
	c.flush()
}

// flush sends what one turn, or several while the socket was full, has gathered.
func (c *Conn) flush() {
	if c.closed || c.werr != nil || c.shut || c.sec != nil && c.sec.notified {
		c.out.Release() // written after the end
	}
	if c.closed || c.connecting || c.werr != nil {
		return
	}
	before := c.pending()
	if c.lingering {
		c.kept.Release()
	}
	if c.writable {
		var err error
		if c.sec != nil {
			err = c.sec.flush()
		} else if c.out.Len() > 0 {
			var n int
			n, err = c.send(c.out.Bytes())
			c.written += uint64(n)
			c.out.Consume(n)
		}
		if err == nil && c.out.Len() == 0 {
			err = c.drainPipe()
		}
		if err != nil {
			c.writeFailed(err)
			return
		}
	}
	if c.lingering && c.pending() < before {
		// A slow reader gets the last response whole as long as it reads.
		c.waitOn()
	}
	if c.wantShut && !c.shut && (c.open || c.lingering) && c.pending() == 0 {
		c.shutdown()
	}
	if c.closed || c.lingering {
		return
	}
	waiting := c.pending()
	if waiting > 0 {
		if h, ok := c.h.(Waiter); ok {
			h.Waiting()
		}
	}
	if c.wasFull && waiting <= int(c.low) {
		c.drained()
	}
}

func (c *Conn) drained() {
	c.wasFull = false
	if c.h != nil {
		c.h.Drained()
	}
}

// shutdown is the FIN behind the last byte.
func (c *Conn) shutdown() {
	c.shut = true
	// It fails only where the connection is broken, which the reading side reports.
	_ = unix.Shutdown(c.fd, unix.SHUT_WR)
	if c.eof {
		c.close(c.err)
	}
}

// writeFailed drops the output. The peer may have answered before it went
// (a server that refuses a body closes early): what it sent is read first, and
// the end of that closes the connection.
func (c *Conn) writeFailed(err error) {
	err = fmt.Errorf("write: %w", err)
	if c.lingering {
		c.close(c.err)
		return
	}
	if !brokenPipe(err) || c.eof || c.endOnReset {
		c.close(err)
		return
	}
	c.werr = err
	c.out.Release()
	c.unspliceOutput()
	if c.sec != nil {
		c.sec.out.Release()
	}
	c.readable, c.hup = true, true
	c.probe()
	c.again()
	if c.wasFull && !c.closed {
		// Whoever waits for room may go on: it is dropped too.
		c.drained()
	}
}

// WriteThrough is Write for bulk data: where nothing waits, p goes to the
// socket at once, without being copied first.
func (c *Conn) WriteThrough(p []byte) {
	c.w.Owned()
	if c.closed || c.wantShut || c.werr != nil || len(p) == 0 {
		return
	}
	if !c.open || !c.writable || c.pending() > 0 {
		c.Write(p)
		return
	}
	if c.sec != nil {
		whole := c.sec.wholeRecords || len(p) <= smallRecord || c.written > dynamicBytes
		if err := c.sec.write(p, whole); err != nil {
			// Not here: the caller may not expect a callback.
			c.Flush()
		}
		return
	}
	n, err := c.send(p)
	c.written += uint64(n)
	if n < len(p) {
		c.out.Append(p[n:])
	}
	if err != nil {
		c.writable = true // let the flush meet the error again, outside this call
		c.Flush()
	}
}
