package conn

import (
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/loop"
)

// Accelerator passes bytes between sockets of this host past TCP (package
// accelerate). It changes what a socket says of itself: what waits at the
// receiver does not make the sender's socket full, and a short read need not
// mean that the socket is dry. Safe for concurrent use.
type Accelerator interface {
	// Mark makes it notice a socket that is about to connect, Listen those
	// that a listening socket will accept, until forget is called.
	Mark(fd int)
	Listen(fd int, port uint16) (forget func())
	// Full says that a connection with that slot must not be sent to before
	// Drained, Overlaps that after a short read there may be more.
	Full(slot uint16) bool
	Overlaps(slot uint16) bool
	Drained(local, remote netip.AddrPort) bool
}

const (
	// A connection whose peer does not read is looked at after the first
	// time, and less and less often up to the second: the kernel gives no event.
	firstLook = time.Millisecond
	lastLook  = 32 * time.Millisecond
)

// acceleration is what a worker's connections share of it.
type acceleration struct {
	Accelerator
	held  []*Conn // may not be sent to
	look  loop.Timer
	after time.Duration
}

// Accelerate has the sockets of a worker that are made from now on accelerated.
func Accelerate(w *loop.Worker, a Accelerator) {
	e := engineOf(w)
	e.accel = &acceleration{Accelerator: a}
	e.accel.look.Init(e.lookAtHeld)
}

// Accelerated says that the connection's bytes may pass TCP by: splice(2) does
// not see those that do, nor does what the kernel tells of a TCP connection.
func (c *Conn) Accelerated() bool { return c.spared }

// localHop is called when a connection is established: it finds out whether it
// is one that may be accelerated.
func (c *Conn) localHop() {
	l, r := c.local.Addr().Unmap(), c.remote.Addr().Unmap()
	if c.e.accel == nil || !l.IsValid() || l != r && !(l.IsLoopback() && r.IsLoopback()) {
		return
	}
	c.spared, c.slot = true, c.local.Port()^c.remote.Port()
	c.SetNoSplice()
}

// hold stops sending until the peer has read.
func (c *Conn) hold() {
	c.writable = false
	if c.held {
		return
	}
	c.held = true
	a := c.e.accel
	a.held = append(a.held, c)
	if a.after = firstLook; !a.look.Scheduled() {
		c.w.Schedule(&a.look, a.after)
	}
}

// lookAtHeld lets those send whose peers have read.
func (e *engine) lookAtHeld() {
	a := e.accel
	held := a.held
	a.held = nil
	a.after = min(2*a.after, lastLook)
	for _, c := range held {
		switch {
		case c.closed:
		case a.Drained(localAddr(c.fd), peerAddr(c.fd)):
			a.after = firstLook
			c.held, c.writable = false, true
			c.Flush()
		default:
			a.held = append(a.held, c)
		}
	}
	if len(a.held) > 0 {
		e.w.Schedule(&a.look, a.after)
	}
}

func peerAddr(fd int) netip.AddrPort {
	var sa unix.RawSockaddrAny
	n := uint32(unix.SizeofSockaddrAny)
	_, _, errno := unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	return addrPort(&sa)
}
