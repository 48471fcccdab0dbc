// Package ring makes many non-blocking system calls in one. It is io_uring (io_uring_enter(2)) used for nothing else: what is
// queued is a recv or send that must not wait, so that each has its result when Do returns, nothing is under way between two
// calls, and the memory of a Ring's user is the kernel's during Do only. epoll stays what says that a socket is ready.
// docs/decisions/0010-io-uring.md has the figures, and why it is not the whole loop.
//
// A Ring belongs to one thread, the one that made it: the worker's, in package conn.
package ring

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mode says what is wanted. The zero value is Auto.
type Mode uint8

// Modes of --io-uring.
const (
	Auto Mode = iota // where the system has it and allows it
	On               // or New's error
	Off
)

// ParseMode reads the flag.
func ParseMode(s string) (Mode, error) {
	switch s {
	case "auto":
		return Auto, nil
	case "on":
		return On, nil
	case "off":
		return Off, nil
	}
	return Off, fmt.Errorf("--io-uring %q: must be auto, on or off", s)
}

// Size is how many calls a Ring makes at once.
const Size = 64

// Of <linux/io_uring.h>.
const (
	opSend = 26
	opRecv = 27

	// setup is what a kernel of 6.1 and later has. SUBMIT_ALL: a call that is refused does not keep those behind it
	// back. SINGLE_ISSUER and DEFER_TASKRUN: no locks, and no interrupts for work that belongs to a ring.
	setup          = 1<<7 | 1<<12 | 1<<13
	enterGetEvents = 1
	offsetEntries  = 0x10000000
)

// entry is struct io_uring_sqe, completion struct io_uring_cqe.
type entry struct {
	op       uint8
	_        [3]byte // flags, ioprio
	fd       int32
	_        uint64 // off
	addr     uint64
	len      uint32
	msgFlags uint32
	user     uint64
	_        [24]byte
}

type completion struct {
	user  uint64
	res   int32
	flags uint32
}

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wq uint32
	_                                                    [3]uint32
	sq                                                   struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// Ring is a queue of calls. All but Calls is for the thread that made it.
type Ring struct {
	fd       int
	rings    []byte // mapped: heads, tails and completions
	memory   []byte // mapped: entries
	entries  *[Size]entry
	done     []completion
	sq, cq   struct{ head, tail *uint32 }
	mask     uint32 // of done
	tail     uint32 // of what is queued, which the kernel sees in Do
	queued   int
	broken   bool
	results  [Size]int32
	enters   atomic.Uint64
	finished atomic.Uint64
}

// New makes a Ring for the calling thread, to which its goroutine must be locked. It fails where the system has no io_uring as
// it is needed here (Linux 6.1), or forbids it, as seccomp profiles of containers and the sysctl kernel.io_uring_disabled do.
func New() (*Ring, error) {
	p := params{flags: setup}
	fd, _, errno := syscall.Syscall(unix.SYS_IO_URING_SETUP, Size, uintptr(unsafe.Pointer(&p)), 0)
	switch errno {
	case 0:
	case unix.EINVAL:
		return nil, errors.New("io_uring_setup: the kernel is older than Linux 6.1")
	case unix.EPERM:
		return nil, fmt.Errorf("io_uring_setup: %w: a seccomp profile or the sysctl kernel.io_uring_disabled forbids it", errno)
	default:
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &Ring{fd: int(fd)}
	if err := r.open(&p); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Ring) open(p *params) (err error) {
	const access, shared = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if p.sqEntries != Size {
		return fmt.Errorf("io_uring_setup: %d entries instead of %d", p.sqEntries, Size)
	}
	size := max(p.sq.array+4*p.sqEntries, p.cq.cqes+uint32(unsafe.Sizeof(completion{}))*p.cqEntries)
	if r.rings, err = unix.Mmap(r.fd, 0, int(size), access, shared); err != nil {
		return fmt.Errorf("io_uring: mmap: %w", err)
	}
	if r.memory, err = unix.Mmap(r.fd, offsetEntries, Size*int(unsafe.Sizeof(entry{})), access, shared); err != nil {
		return fmt.Errorf("io_uring: mmap: %w", err)
	}
	at := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[offset])) }
	r.sq.head, r.sq.tail = at(p.sq.head), at(p.sq.tail)
	r.cq.head, r.cq.tail = at(p.cq.head), at(p.cq.tail)
	r.mask = *at(p.cq.mask)
	r.entries = (*[Size]entry)(unsafe.Pointer(&r.memory[0]))
	r.done = unsafe.Slice((*completion)(unsafe.Pointer(&r.rings[p.cq.cqes])), p.cqEntries)
	// Entry i is always in place i.
	for i, order := 0, unsafe.Slice(at(p.sq.array), Size); i < Size; i++ {
		order[i] = uint32(i)
	}
	return r.try()
}

// try finds out whether the calls that are made here do what they must: at once, whatever the socket has.
func (r *Ring) try() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("io_uring: %w", err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	b := make([]byte, 2)
	r.Recv(pair[0], b[:1])
	r.Send(pair[0], b)
	r.Recv(pair[1], b)
	if got := r.Do(); got[0] != -int32(unix.EAGAIN) || got[1] != 2 || got[2] != 2 || r.broken {
		return fmt.Errorf("io_uring: recv, send and recv answer %d instead of %v", got, []int32{-int32(unix.EAGAIN), 2, 2})
	}
	return nil
}

// Recv queues a recv(2) into p, Send a send(2) of p. The socket is taken for a non-blocking one. p must be memory of the heap
// that the caller keeps until Do has returned. Not more than Size calls may be queued.
func (r *Ring) Recv(fd int, p []byte) { r.add(opRecv, fd, p) }
func (r *Ring) Send(fd int, p []byte) { r.add(opSend, fd, p) }

func (r *Ring) add(op uint8, fd int, p []byte) {
	e := &r.entries[r.tail%Size]
	*e = entry{op: op, fd: int32(fd), addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))), len: uint32(len(p)),
		msgFlags: unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL, user: uint64(r.queued)}
	r.results[r.queued] = -int32(unix.EINTR)
	r.tail++
	r.queued++
}

// Do makes the calls that are queued and returns their results in that order, valid until the next is queued: what the system
// call returns, or the error number, negative. A call that could not be made has EINTR.
func (r *Ring) Do() []int32 {
	results := r.results[:r.queued]
	if r.queued == 0 {
		return results
	}
	atomic.StoreUint32(r.sq.tail, r.tail)
	// Each of them ends within the call: to wait for all costs nothing, and nothing stays under way.
	for left := r.queued; left > 0; {
		submit := r.tail - atomic.LoadUint32(r.sq.head)
		_, _, errno := syscall.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(submit), uintptr(left), enterGetEvents, 0, 0)
		left -= r.collect()
		if errno == 0 || errno == unix.EINTR {
			continue
		}
		// No memory for a request, or a filter for system calls that came later: it fails before it takes anything. What
		// the kernel has not taken is taken back.
		r.broken = true
		r.tail = atomic.LoadUint32(r.sq.head)
		atomic.StoreUint32(r.sq.tail, r.tail)
		break
	}
	r.enters.Store(r.enters.Load() + 1)
	r.finished.Store(r.finished.Load() + uint64(r.queued))
	r.queued = 0
	return results
}

// collect takes the completions that are there.
func (r *Ring) collect() int {
	head, tail := *r.cq.head, atomic.LoadUint32(r.cq.tail)
	n := int(tail - head)
	for ; head != tail; head++ {
		d := &r.done[head&r.mask]
		r.results[d.user] = d.res
	}
	atomic.StoreUint32(r.cq.head, head)
	return n
}

// Broken says that the kernel refused a call of Do itself: the Ring should be given up.
func (r *Ring) Broken() bool { return r.broken }

// Calls is how many system calls were made, and how many they stood for. Safe for concurrent use.
func (r *Ring) Calls() (enters, calls uint64) { return r.enters.Load(), r.finished.Load() }

// Close gives the kernel's part back.
func (r *Ring) Close() {
	for _, m := range [][]byte{r.rings, r.memory} {
		if m != nil {
			// It was mapped, and is unmapped once.
			_ = unix.Munmap(m)
		}
	}
	r.rings, r.memory = nil, nil
	unix.Close(r.fd)
}
