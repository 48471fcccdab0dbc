package conn

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/loop"
)

// DialOptions are those of a connection that is made. The zero value is usual.
type DialOptions struct {
	// ConnectTimeout is for TCP and for TLS that follows at once, together, as Envoy's connect_timeout. 0 is
	// DefaultConnectTimeout; negative is none for TCP, and then DefaultHandshakeTimeout for TLS.
	ConnectTimeout time.Duration
	Source         netip.Addr    // the local address; the zero value lets the kernel choose
	SourcePort     uint16        // with Source; 0 lets the kernel choose
	Mark           uint32        // SO_MARK; needs CAP_NET_ADMIN
	Transparent    bool          // IP_TRANSPARENT: Source may be another host's; needs CAP_NET_ADMIN
	KeepAlive      time.Duration // idle time before the first probe; 0 is none
	Limit          int           // see Conn.SetLimit; 0 is DefaultLimit
}

// retryPath is how long a full backlog of a Unix socket is waited for at a
// time: connect(2) says EAGAIN and gives no event.
const retryPath = 5 * time.Millisecond

// Dial makes a connection. It always returns one; h learns by Connected or
// Closed, never within Dial, what became of it. For TLS call StartTLSClient at
// once, or in Connected.
func Dial(w *loop.Worker, addr Address, o DialOptions, h Handler) *Conn {
	c := newConn(w)
	c.h = h
	c.remote, c.path = addr.IP, addr.Path
	c.connecting = true
	c.SetLimit(o.Limit)
	family, sa, err := addr.sockaddr()
	if err == nil {
		c.fd, err = dialSocket(family, o)
	}
	if err != nil {
		c.close(fmt.Errorf("connect to %s: %w", addr, err))
		return c
	}
	d := o.ConnectTimeout
	if d == 0 {
		d = DefaultConnectTimeout
	}
	if d > 0 {
		w.Schedule(&c.timer, d)
	}
	c.connect(sa)
	return c
}

func (c *Conn) connect(sa unix.Sockaddr) {
	if c.closed {
		return
	}
	if c.e.accel != nil && c.path == "" {
		c.e.accel.Mark(c.fd)
	}
	err := unix.Connect(c.fd, sa)
	if errors.Is(err, unix.EAGAIN) && c.path != "" {
		var retry loop.Timer
		retry.Init(func() { c.connect(sa) })
		c.w.Schedule(&retry, retryPath)
		return
	}
	if err == nil || errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.EINTR) {
		// Registered after connect: a socket that is not connecting yet reports
		// a hang-up. One that is connected already reports that at once.
		c.token, err = c.w.Add(c.fd, (*source)(c), loop.Stream)
	}
	if err != nil {
		c.close(fmt.Errorf("connect to %s: %w", c.dialed(), err))
	}
}

func dialSocket(family int, o DialOptions) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := prepare(fd, family, o); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func prepare(fd, family int, o DialOptions) error {
	var opts []sockopt
	if o.Mark != 0 {
		opts = append(opts, sockopt{unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark), "SO_MARK (needs CAP_NET_ADMIN)"})
	}
	if family != unix.AF_UNIX {
		opts = append(opts, sockopt{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, "TCP_NODELAY"})
		opts = append(opts, keepAlive(o.KeepAlive)...)
		if o.Transparent {
			opts = append(opts, transparent(family))
		}
		if o.Source.IsValid() && o.SourcePort == 0 {
			// The port is chosen at connect, so that one can serve many destinations.
			opts = append(opts, sockopt{unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1, "IP_BIND_ADDRESS_NO_PORT"})
		}
		if o.SourcePort != 0 {
			opts = append(opts, sockopt{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR"})
		}
	}
	for _, opt := range opts {
		if err := unix.SetsockoptInt(fd, opt.level, opt.name, opt.value); err != nil {
			return fmt.Errorf("%s: %w", opt.what, err)
		}
	}
	if !o.Source.IsValid() || family == unix.AF_UNIX {
		return nil
	}
	source := netip.AddrPortFrom(o.Source, o.SourcePort)
	f, sa, err := Address{IP: source}.sockaddr()
	if err == nil && f != family {
		err = errors.New("not of the destination's address family")
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err != nil {
		return fmt.Errorf("source address %s: %w", source, err)
	}
	return nil
}

// dialed is where the connection was to go.
func (c *Conn) dialed() Address { return Address{IP: c.remote, Path: c.path} }

// finishConnect learns what became of connect.
func (c *Conn) finishConnect() {
	if err := socketError(c.fd); err != nil {
		c.close(fmt.Errorf("connect to %s: %w", c.dialed(), err))
		return
	}
	c.connecting = false
	c.patience = c.w.Left(&c.timer) // of which TLS has the rest
	c.timer.Stop()
	c.writable = true
	if c.path == "" {
		c.local = localAddr(c.fd)
		c.localHop()
	}
	if c.sec != nil {
		c.sec.shim.local = c.local
		if c.pending() > 0 {
			c.Flush()
		}
		c.sec.begin()
		return
	}
	c.established()
}
