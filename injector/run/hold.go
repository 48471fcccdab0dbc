package run

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"sallyport/injector/redirect"
)

// held are the sidecar's ports, from before its start until after its end. Redirection leads to them: whoever else got one
// of them while the sidecar is down would be sent the application's plaintext. Each is held by a socket that is bound and
// neither listens nor receives, so that connections are refused while there is no sidecar. The socket belongs to the
// sidecar's user and has SO_REUSEPORT, which is what lets a process of that user, and no other, bind the address besides
// (socket(7)).
type held struct {
	uid int
	fds []int
}

func (h *held) close() {
	for _, fd := range h.fds {
		unix.Close(fd)
	}
	h.fds = nil
}

// bind holds an address. An address of a family that the host lacks needs no holding.
func (h *held) bind(kind int, a netip.AddrPort) error {
	var family int
	var sa unix.Sockaddr
	if ip := a.Addr().Unmap(); ip.Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: ip.As16()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		if err = h.own(fd, kind, sa, family); err != nil {
			unix.Close(fd)
		}
	}
	switch {
	case err == nil:
		h.fds = append(h.fds, fd)
		return nil
	case family == unix.AF_INET6 && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) && (a.Addr().IsLoopback() || a.Addr().IsUnspecified()):
		return nil
	}
	return err
}

// own binds a socket for us alone first, so that a port which another sidecar of the same user has is not taken for free.
func (h *held) own(fd, kind int, sa unix.Sockaddr, family int) error {
	set := func(level, name, value int) func() error {
		return func() error { return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, name, value)) }
	}
	reuse := func(value int) func() error { return set(unix.SOL_SOCKET, unix.SO_REUSEADDR, value) }
	none := func() error { return nil }
	v6only, before, after := none, none, none
	if family == unix.AF_INET6 {
		v6only = set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if kind == unix.SOCK_STREAM {
		// Past what is left of connections of an earlier sidecar (TIME_WAIT); kept, it would let others bind the port, too.
		before, after = reuse(1), reuse(0)
	} else {
		// Connected to itself it receives from nobody.
		after = func() error { return os.NewSyscallError("connect", unix.Connect(fd, sa)) }
	}
	for _, step := range []func() error{v6only, before, func() error { return os.NewSyscallError("bind", unix.Bind(fd, sa)) }, after,
		func() error { return os.NewSyscallError("fchown", unix.Fchown(fd, h.uid, h.uid)) }, set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

var (
	loopbacks = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	everyAddr = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
)

// use is one of the sidecar's ports.
type use struct {
	flag  string
	port  *uint16
	usual uint16
	kinds []int
	at    []netip.Addr
}

func (o *Options) uses() []use {
	r := &o.Redirect
	tcp := []int{unix.SOCK_STREAM}
	health := everyAddr
	if o.here {
		health = []netip.Addr{o.Address}
	}
	return []use{
		{"--outbound-port", &r.OutboundPort, redirect.DefaultOutboundPort, tcp, loopbacks},
		{"--inbound-port", &r.InboundPort, redirect.DefaultInboundPort, tcp, everyAddr},
		{"--dns-port", &r.DNSPort, redirect.DefaultDNSPort, []int{unix.SOCK_STREAM, unix.SOCK_DGRAM}, loopbacks},
		{"--health-port", &r.HealthPort, redirect.DefaultHealthPort, tcp, health},
	}
}

// hold chooses the ports that are 0, and holds all of them.
func (o *Options) hold() (h *held, err error) {
	o.here = isHere(o.Address)
	h = &held{uid: int(o.SidecarUID)}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	uses := o.uses()
	taken := []uint16{uint16(o.Port)}
	for _, u := range uses {
		if *u.port == 0 && o.Capture != Cgroup {
			*u.port = u.usual
		}
		if *u.port != 0 && *u.port == uint16(o.Port) {
			return h, usage("--port %d is the sidecar's %s too: give one of them another", o.Port, u.flag)
		}
		if *u.port != 0 && slices.Contains(taken, *u.port) {
			return h, usage("%s %d: another port of the sidecar is the same; they must differ", u.flag, *u.port)
		}
		taken = append(taken, *u.port)
	}
	for _, u := range uses {
		if *u.port != 0 {
			err = h.use(u, *u.port)
		} else {
			err = h.choose(u, taken)
			taken = append(taken, *u.port)
		}
		if err != nil {
			return h, err
		}
	}
	return h, nil
}

// isHere says that an address is one of this host's; behind NAT the one under which others reach it is not.
func isHere(a netip.Addr) bool {
	probe := &held{uid: os.Geteuid()}
	defer probe.close()
	return probe.bind(unix.SOCK_STREAM, netip.AddrPortFrom(a, 0)) == nil
}

// use holds a port for all that it is for, or not at all.
func (h *held) use(u use, port uint16) error {
	before := len(h.fds)
	for _, kind := range u.kinds {
		for _, a := range u.at {
			err := h.bind(kind, netip.AddrPortFrom(a, port))
			if err == nil {
				continue
			}
			part := held{fds: h.fds[before:]}
			part.close()
			h.fds = h.fds[:before]
			if errors.Is(err, syscall.EADDRINUSE) {
				return fmt.Errorf("%s %d is in use by %s: end that, or choose another port: %w", u.flag, port, whoHas(port), err)
			}
			return fmt.Errorf("%s %d cannot be had at %s: %w", u.flag, port, a, err)
		}
	}
	return nil
}

// choose takes a port that nobody has. Not one of those that the kernel gives away by itself: an application's connection
// could have it after a restart.
func (h *held) choose(u use, taken []uint16) (err error) {
	low, high := ephemeral()
	for range 200 {
		port := uint16(20000 + rand.IntN(10000)) // below those that Linux and Kubernetes give away
		if high-low < 40000 && port >= low && port <= high || slices.Contains(taken, port) {
			continue
		}
		if err = h.use(u, port); err == nil {
			*u.port = port
			return nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
	}
	return fmt.Errorf("no free port for the sidecar: choose it by %s: %w", u.flag, err)
}

// ephemeral are the ports that the kernel gives away (ip_local_port_range).
func ephemeral() (low, high uint16) {
	low, high = 32768, 60999
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(text), &low, &high)
	}
	return low, high
}
