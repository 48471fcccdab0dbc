package conn

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/loop"
)

// ListenOptions are a listening socket's. The zero value is usual.
type ListenOptions struct {
	ReusePort   bool          // several sockets share the address, one per worker
	Backlog     int           // 0 is 4096; the kernel caps it at net.core.somaxconn
	Transparent bool          // IP_TRANSPARENT: accept what TPROXY redirects; needs CAP_NET_ADMIN
	FreeBind    bool          // IP_FREEBIND: the address need not exist yet
	V6Only      bool          // an IPv6 socket takes no IPv4 clients
	Mode        os.FileMode   // permissions of a Unix socket, 0 leaves the umask's
	KeepAlive   time.Duration // of accepted connections; 0 is none
}

const (
	defaultBacklog = 4096
	acceptsPerTurn = 64
	// acceptPause is how long a listener rests when the process is out of
	// file descriptors or memory: clients wait in the backlog.
	acceptPause = 100 * time.Millisecond
)

// ListenFD makes a listening socket on any goroutine, before there is a
// worker, so that an error comes at once. The address it returns has the port
// that the kernel chose for port 0; with ReusePort the sockets of further
// workers are made for that address. The caller owns fd until NewListener takes it.
func ListenFD(addr Address, o ListenOptions) (fd int, actual Address, err error) {
	family, sa, err := addr.sockaddr()
	if err != nil {
		return -1, addr, fmt.Errorf("listen: %w", err)
	}
	fail := func(what string, err error) (int, Address, error) {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, addr, fmt.Errorf("listen on %s: %s: %w", addr, what, err)
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail("socket", err)
	}
	for _, opt := range listenSockopts(family, o) {
		if err := unix.SetsockoptInt(fd, opt.level, opt.name, opt.value); err != nil {
			return fail(opt.what, err)
		}
	}
	err = unix.Bind(fd, sa)
	if errors.Is(err, unix.EADDRINUSE) && family == unix.AF_UNIX && removeStale(addr) {
		err = unix.Bind(fd, sa)
	}
	if err != nil {
		return fail("bind", err)
	}
	if addr.IsUnix() && o.Mode != 0 && addr.Path[0] != '@' {
		if err := os.Chmod(addr.Path, o.Mode.Perm()); err != nil {
			return fail("permissions", err)
		}
	}
	backlog := o.Backlog
	if backlog <= 0 {
		backlog = defaultBacklog
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return fail("listen", err)
	}
	actual = addr
	if !addr.IsUnix() {
		actual.IP = localAddr(fd)
	}
	return fd, actual, nil
}

// Share is the Control of a net.ListenConfig for an address that somebody of the same user holds for us by a socket which
// neither listens nor receives.
func Share(_, _ string, c syscall.RawConn) error {
	var err error
	if failed := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); failed != nil {
		return failed
	}
	return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
}

type sockopt struct {
	level, name, value int
	what               string
}

// listenSockopts are what is set before bind. Accepted connections inherit
// TCP_NODELAY and keep-alive on Linux, which saves a system call for each.
func listenSockopts(family int, o ListenOptions) []sockopt {
	if family == unix.AF_UNIX {
		return nil
	}
	opts := []sockopt{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR"},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, "TCP_NODELAY"},
	}
	if family == unix.AF_INET6 {
		v := 0
		if o.V6Only {
			v = 1
		}
		opts = append(opts, sockopt{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v, "IPV6_V6ONLY"})
	}
	if o.ReusePort {
		opts = append(opts, sockopt{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT"})
	}
	if o.FreeBind {
		opts = append(opts, sockopt{unix.SOL_IP, unix.IP_FREEBIND, 1, "IP_FREEBIND"})
	}
	if o.Transparent {
		opts = append(opts, transparent(family))
	}
	return append(opts, keepAlive(o.KeepAlive)...)
}

func transparent(family int) sockopt {
	if family == unix.AF_INET6 {
		return sockopt{unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1, "IPV6_TRANSPARENT (needs CAP_NET_ADMIN)"}
	}
	return sockopt{unix.SOL_IP, unix.IP_TRANSPARENT, 1, "IP_TRANSPARENT (needs CAP_NET_ADMIN)"}
}

func keepAlive(d time.Duration) []sockopt {
	if d <= 0 {
		return nil
	}
	s := max(1, int(d/time.Second))
	return []sockopt{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, "SO_KEEPALIVE"},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, s, "TCP_KEEPIDLE"},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, s, "TCP_KEEPINTVL"},
	}
}

// removeStale deletes the socket file of a process that is gone. Nothing else
// is ever deleted: a file that is no socket, or that answers, stays.
func removeStale(a Address) bool {
	st, err := os.Lstat(a.Path)
	if err != nil || st.Mode()&os.ModeSocket == 0 {
		return false
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: a.Path}); !errors.Is(err, unix.ECONNREFUSED) {
		return false
	}
	return os.Remove(a.Path) == nil
}

// Listener accepts connections on one worker.
type Listener struct {
	// Failed, where set, is told why accepting rests: EMFILE, for example.
	Failed func(error)

	w      *loop.Worker
	fd     int
	token  loop.Token
	addr   Address
	remove bool
	local  netip.AddrPort // of every connection; the zero value where it must be asked for
	unix   bool
	accept func(*Conn)
	pause  loop.Timer
	forget func() // by the Accelerator; nil without
}

// Listen is ListenFD and NewListener for one worker alone; Close deletes the socket's file.
func Listen(w *loop.Worker, addr Address, o ListenOptions, accept func(*Conn)) (*Listener, error) {
	fd, actual, err := ListenFD(addr, o)
	if err != nil {
		return nil, err
	}
	l, err := NewListener(w, fd, accept)
	if err != nil {
		return nil, err
	}
	l.addr, l.remove = actual, true
	return l, nil
}

// NewListener takes a socket of ListenFD, or of another process, and owns it
// from now on. accept is called with each connection and must Start, or
// StartTLSServer and Start, or Close it sooner or later.
func NewListener(w *loop.Worker, fd int, accept func(*Conn)) (*Listener, error) {
	l := &Listener{w: w, fd: fd, accept: accept}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, fmt.Errorf("listener: %w", err)
	}
	l.unix = domain == unix.AF_UNIX
	if !l.unix {
		l.addr = Address{IP: localAddr(fd)}
		if !l.addr.IP.Addr().IsUnspecified() && !isTransparent(fd, domain) {
			l.local = l.addr.IP
		}
	}
	if a := engineOf(w).accel; a != nil && !l.unix {
		l.forget = a.Listen(fd, l.addr.IP.Port())
	}
	l.pause.Init(l.resume)
	if err := l.watch(); err != nil {
		l.unlisten()
		unix.Close(fd)
		return nil, fmt.Errorf("listener %s: %w", l.addr, err)
	}
	return l, nil
}

func isTransparent(fd, domain int) bool {
	level, name := unix.SOL_IP, unix.IP_TRANSPARENT
	if domain == unix.AF_INET6 {
		level, name = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	v, err := unix.GetsockoptInt(fd, level, name)
	return err != nil || v != 0
}

// watch registers level-triggered: what a capped batch leaves comes again.
// Exclusive, because several workers may share the socket.
func (l *Listener) watch() (err error) {
	l.token, err = l.w.Add(l.fd, (*acceptor)(l), loop.In|loop.Exclusive)
	return err
}

// Addr is the address; Close stops accepting. Open connections stay.
func (l *Listener) Addr() Address { return l.addr }

// Accept replaces what is called with each connection: the socket is another one's now, and none of its clients was lost.
func (l *Listener) Accept(f func(*Conn)) { l.accept = f }

// SetBacklog changes how many connections may wait to be accepted; 0 is the default.
func (l *Listener) SetBacklog(n int) {
	if n <= 0 {
		n = defaultBacklog
	}
	// It cannot fail on a socket that listens (listen(2)), and the old length would do.
	_ = unix.Listen(l.fd, n)
}

// Close closes the socket; a second call has no effect.
func (l *Listener) Close() {
	if l.fd < 0 {
		return
	}
	l.pause.Stop()
	// Del, not Forget: the socket may live on in another worker's descriptor.
	_ = l.w.Del(l.fd, l.token)
	unix.Close(l.fd)
	l.fd = -1
	l.unlisten()
	if l.remove {
		// It may be gone already.
		_ = l.addr.Remove()
	}
}

func (l *Listener) unlisten() {
	if l.forget != nil {
		l.forget()
		l.forget = nil
	}
}

type acceptor Listener

// Event accepts a batch.
func (a *acceptor) Event(loop.Events) {
	l := (*Listener)(a)
	for i := 0; i < acceptsPerTurn && l.fd >= 0; i++ {
		var sa unix.RawSockaddrAny
		n := uint32(unix.SizeofSockaddrAny)
		fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(l.fd), uintptr(unsafe.Pointer(&sa)),
			uintptr(unsafe.Pointer(&n)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
			l.accepted(int(fd), &sa)
		case unix.EAGAIN:
			return
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			l.rest(errno)
			return
		case unix.EBADF, unix.EINVAL, unix.ENOTSOCK, unix.EOPNOTSUPP, unix.EFAULT:
			// Not a listening socket any more; without this the loop would spin.
			l.rest(errno)
			return
		default:
			// EINTR, ECONNABORTED and the network errors of accept(2) belong
			// to one connection, the next one may be good.
		}
	}
}

func (l *Listener) accepted(fd int, sa *unix.RawSockaddrAny) {
	c := newConn(l.w)
	defer l.w.Guard(c) // not the listener, whose event this is
	c.fd = fd
	c.open, c.writable = true, true
	if !l.unix {
		c.remote = addrPort(sa)
		if c.local = l.local; !c.local.IsValid() {
			c.local = localAddr(fd)
		}
		c.localHop()
	}
	token, err := l.w.Add(fd, (*source)(c), loop.Stream)
	if err != nil {
		c.close(err)
		l.rest(err)
		return
	}
	c.token = token
	l.accept(c)
}

// rest stops accepting for a moment: the condition lasts, and the readiness
// of the socket would wake the loop at once.
func (l *Listener) rest(err error) {
	_ = l.w.Del(l.fd, l.token)
	l.w.Schedule(&l.pause, acceptPause)
	if l.Failed != nil {
		l.Failed(fmt.Errorf("accept on %s rests for %v: %w", l.addr, acceptPause, err))
	}
}

func (l *Listener) resume() {
	if err := l.watch(); err != nil {
		l.w.Schedule(&l.pause, acceptPause)
	}
}

// CloseFD closes a socket of ListenFD that no Listener was made of.
func CloseFD(fd int) {
	// Nothing is owed on an error: the descriptor is gone either way.
	_ = unix.Close(fd)
}
