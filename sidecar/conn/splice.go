package conn

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// spliceSize is what one splice(2) asks for; the pipe takes less.
	spliceSize = 1 << 20
	// keepPipes is how many empty pipes wait on a worker for the next bulk transfer.
	keepPipes = 16
)

// pipe carries bytes from one plain connection to another within the kernel:
// splice(2) moves references to pages, where read and send copy them twice.
// It lives for one burst: while the source has more, or bytes of it wait for the
// destination. Owned by the worker of both.
type pipe struct {
	r, w  int
	n     int // bytes in it
	src   *Conn
	dst   *Conn
	moved func() // tells the owner of the connections that bytes went through
}

// splices are the pipes of a connection: to takes its input, from waits to be its output.
type splices struct{ to, from *pipe }

// CanSplice says that SpliceTo from c to dst may be called now: both are plain
// TCP, and all that was read from c before is with the kernel.
func (c *Conn) CanSplice(dst *Conn) bool {
	return !c.closed && !dst.closed && !c.lingering && !dst.lingering && c.sec == nil && dst.sec == nil && c.open && dst.open &&
		!dst.wantShut && dst.werr == nil && dst.pending() == 0 && c.kept.Len() == 0 && c.fetched == 0 &&
		c.splices().to == nil && dst.splices().from == nil && c.w == dst.w && !c.noSplice && !dst.noSplice
}

// SpliceTo passes the input of c to dst without Data, until c's socket is dry or
// at its end: then Data, EOF and the rest come as ever. A destination that takes
// nothing stops the reading; what is in the pipe counts as dst's output. moved is
// called each time that bytes were taken from c. CanSplice must hold, and within
// Data everything must have been consumed. False where the system has no pipe to spare.
func (c *Conn) SpliceTo(dst *Conn, moved func()) bool {
	c.w.Owned()
	p := c.e.pipe()
	if p == nil {
		return false
	}
	p.src, p.dst, p.moved = c, dst, moved
	c.own().to, dst.own().from = p, p
	return true
}

// SetNoSplice says that the connection's input does not pass the socket's
// receive queue, so that splice(2) would not see it: a BPF sockmap has it.
func (c *Conn) SetNoSplice() { c.noSplice = true }

// splices is never nil; own is what may be changed.
func (c *Conn) splices() *splices {
	if c.pipes == nil {
		return &noSplices
	}
	return c.pipes
}

func (c *Conn) own() *splices {
	if c.pipes == nil {
		c.pipes = new(splices)
	}
	return c.pipes
}

var noSplices splices // read only

// pipe is an empty one, nil where the process may not open more files.
func (e *engine) pipe() *pipe {
	if n := len(e.pipes); n > 0 {
		p := e.pipes[n-1]
		e.pipes[n-1] = nil
		e.pipes = e.pipes[:n-1]
		return p
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil
	}
	// The more goes at once, the fewer times the reader is woken: at the
	// default of 64 KiB half of the gain is lost. Where the system does not
	// allow it (fs.pipe-user-pages-soft), the default serves as well.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, spliceSize)
	return &pipe{r: fds[0], w: fds[1]}
}

// free ends the transfer. A pipe that still holds bytes is closed, so that they can never reach another connection.
func (p *pipe) free(e *engine) {
	if p.src != nil {
		p.src.pipes.to = nil
	}
	if p.dst != nil {
		p.dst.pipes.from = nil
	}
	p.src, p.dst, p.moved = nil, nil, nil
	if p.n == 0 && len(e.pipes) < keepPipes {
		e.pipes = append(e.pipes, p)
		return
	}
	p.n = 0
	p.close()
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// unspliceInput ends the transfer of what comes in; what is in the pipe is still delivered.
func (c *Conn) unspliceInput() {
	p := c.splices().to
	if p == nil {
		return
	}
	if c.pipes.to, p.src = nil, nil; p.n == 0 {
		p.free(c.e)
	}
}

// unspliceOutput ends the transfer to a connection that takes nothing any more.
func (c *Conn) unspliceOutput() {
	p := c.splices().from
	if p == nil {
		return
	}
	src := p.src
	if p.free(c.e); src != nil {
		src.again() // its handler gets the rest, and may drop it
	}
}

// blocked says that what was spliced from c waits for the destination.
func (s *splices) blocked() bool { return s.to != nil && s.to.n > 0 }

// spliceOnce takes input into the pipe and passes it on.
func (c *Conn) spliceOnce(p *pipe) {
	n, errno := splice(c.fd, p.w, spliceSize)
	switch {
	case errno == unix.EINTR:
		return
	case errno == unix.EAGAIN:
		// The pipe is empty, so it is the socket that has nothing.
		c.readable = false
		p.free(c.e)
		return
	case errno != 0 || n == 0:
		// The end, or an error: read says which, as on any connection.
		p.free(c.e)
		return
	}
	p.n = n
	c.read += uint64(n)
	p.moved()
	if err := p.dst.drainPipe(); err != nil {
		p.dst.Flush() // meets the error again, outside this call
	}
}

// drainPipe sends what is in the pipe to c, as far as the socket takes it.
func (c *Conn) drainPipe() error {
	p := c.splices().from
	if p == nil {
		return nil
	}
	for p.n > 0 && c.writable {
		n, errno := splice(p.r, c.fd, p.n)
		switch errno {
		case 0:
			p.n -= n
			c.written += uint64(n)
		case unix.EAGAIN:
			c.writable = false
		case unix.EINTR:
		default:
			return errno
		}
	}
	if p.n > 0 {
		return nil
	}
	if p.src == nil {
		p.free(c.e)
	} else if !p.src.pumping {
		p.src.again()
	}
	return nil
}

func splice(from, to, n int) (int, syscall.Errno) {
	r, _, errno := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(r), errno
}
