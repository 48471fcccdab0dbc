package load

import (
	"fmt"
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// loop is one epoll loop on one thread: everything of a process of raw traffic runs on it.
type loop struct {
	epoll   int
	socks   map[int32]*sock
	other   map[int32]func() // listening sockets and timers
	events  [256]unix.EpollEvent
	scratch []byte
	due     []pause
}

// pause is something to do later.
type pause struct {
	at time.Time
	do func()
}

// peer is the other half of a sock: what happens on the connection.
type peer interface {
	// data has arrived; it is valid until the method returns.
	data(s *sock, b []byte)
	// gone: the connection has ended and is closed. It may come from inside data, when that closes.
	gone(s *sock, why string)
}

// sock is one connection.
type sock struct {
	l       *loop
	fd      int
	peer    peer
	pending [][]byte // not yet written
	writing bool     // EPOLLOUT is asked for
	closed  bool
}

func newLoop() (*loop, error) {
	runtime.LockOSThread()
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	return &loop{epoll: fd, socks: map[int32]*sock{}, other: map[int32]func(){}, scratch: make([]byte, 256<<10)}, nil
}

// later does something after a while, when the loop runs.
func (l *loop) later(d time.Duration, do func()) {
	l.due = append(l.due, pause{time.Now().Add(d), do})
}

// run serves events until the time has come, or until stop says so.
func (l *loop) run(end time.Time, stop func() bool) error {
	for {
		now := time.Now()
		if !now.Before(end) || stop != nil && stop() {
			return nil
		}
		wait := min(end.Sub(now), 100*time.Millisecond)
		for i := 0; i < len(l.due); i++ {
			if d := l.due[i]; !d.at.After(now) {
				l.due = append(l.due[:i], l.due[i+1:]...)
				i--
				d.do()
			} else {
				wait = min(wait, d.at.Sub(now))
			}
		}
		n, err := unix.EpollWait(l.epoll, l.events[:], int((wait+time.Millisecond-1)/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		for _, e := range l.events[:n] {
			if s := l.socks[e.Fd]; s != nil {
				s.ready(e.Events)
			} else if f := l.other[e.Fd]; f != nil {
				f()
			}
		}
	}
}

func (l *loop) watch(fd int, f func()) error {
	l.other[int32(fd)] = f
	return unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// adopt makes a sock of a non-blocking file descriptor.
func (l *loop) adopt(fd int, p peer) (*sock, error) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // a matter of speed alone
	s := &sock{l: l, fd: fd, peer: p}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("epoll_ctl: %w", err)
	}
	l.socks[int32(fd)] = s
	return s, nil
}

// listen accepts on a free port of 127.0.0.1.
func (l *loop) listen(accept func() peer) (address string, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return "", fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return "", fmt.Errorf("listen: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", fmt.Errorf("getsockname: %w", err)
	}
	port := name.(*unix.SockaddrInet4).Port
	return fmt.Sprintf("127.0.0.1:%d", port), l.watch(fd, func() {
		for {
			c, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if err != nil {
				return // EAGAIN; of the others each is met again at the next turn
			}
			_, _ = l.adopt(c, accept()) // it is closed where that fails
		}
	})
}

// dial begins a connection. What is sent before it stands waits.
func (l *loop) dial(address string, p peer) (*sock, error) {
	a, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	to := &unix.SockaddrInet4{Port: a.Port}
	copy(to.Addr[:], a.IP.To4())
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, fmt.Errorf("connect: %w", err)
	}
	return l.adopt(fd, p)
}

func (s *sock) ready(events uint32) {
	if events&(unix.EPOLLIN|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		n, err := unix.Read(s.fd, s.l.scratch)
		switch {
		case n > 0:
			s.peer.data(s, s.l.scratch[:n])
		case err == unix.EAGAIN || err == unix.EINTR:
		case err != nil:
			s.end(err.Error())
		default:
			s.end("the connection was closed")
		}
	}
	if !s.closed && events&unix.EPOLLOUT != 0 {
		s.flush()
	}
}

// send writes b, which must not change until it is sent.
func (s *sock) send(b []byte) {
	if s.closed || len(b) == 0 {
		return
	}
	s.pending = append(s.pending, b)
	if !s.writing {
		s.flush()
	}
}

func (s *sock) flush() {
	for len(s.pending) > 0 {
		n, err := unix.Write(s.fd, s.pending[0])
		if err == unix.EAGAIN || err == unix.ENOTCONN || err == unix.EINTR {
			break
		}
		if err != nil {
			s.end(err.Error())
			return
		}
		if s.pending[0] = s.pending[0][n:]; len(s.pending[0]) == 0 {
			s.pending[0] = nil
			s.pending = s.pending[1:]
		}
	}
	if len(s.pending) == 0 {
		s.pending = nil
	}
	s.wants(len(s.pending) > 0)
}

func (s *sock) wants(writing bool) {
	if writing == s.writing {
		return
	}
	s.writing = writing
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s.fd)}
	if writing {
		e.Events |= unix.EPOLLOUT
	}
	if err := unix.EpollCtl(s.l.epoll, unix.EPOLL_CTL_MOD, s.fd, &e); err != nil {
		s.end("epoll_ctl: " + err.Error())
	}
}

// end closes and tells.
func (s *sock) end(why string) {
	if s.closed {
		return
	}
	s.close()
	s.peer.gone(s, why)
}

// reset closes with an RST, whatever is still to be sent.
func (s *sock) reset() {
	_ = unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // else it is a FIN
	s.close()
}

func (s *sock) close() {
	if !s.closed {
		s.closed = true
		delete(s.l.socks, int32(s.fd))
		unix.Close(s.fd)
	}
}
