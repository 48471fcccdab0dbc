package conn

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Address is where a socket is bound or connected to: an IP address with a
// port, or the path of a Unix socket ("@name" is an abstract one). Comparable.
type Address struct {
	IP   netip.AddrPort
	Path string
}

// TCP is the Address of ap; Unix that of a path.
func TCP(ap netip.AddrPort) Address { return Address{IP: ap} }
func Unix(path string) Address      { return Address{Path: path} }

// IsUnix says that the address is a path.
func (a Address) IsUnix() bool { return a.Path != "" }

func (a Address) String() string {
	if a.Path != "" {
		return "unix:" + a.Path
	}
	return a.IP.String()
}

// Remove deletes the file of a Unix socket that nobody listens on any more.
func (a Address) Remove() error {
	if a.Path == "" || a.Path[0] == '@' {
		return nil
	}
	return os.Remove(a.Path)
}

// maxPath is what sun_path holds, with its final NUL.
const maxPath = 107

func (a Address) sockaddr() (family int, sa unix.Sockaddr, err error) {
	switch {
	case a.Path != "":
		if len(a.Path) > maxPath || strings.IndexByte(a.Path, 0) >= 0 {
			return 0, nil, fmt.Errorf("unix socket path %q is invalid: at most %d bytes, no NUL", a.Path, maxPath)
		}
		return unix.AF_UNIX, &unix.SockaddrUnix{Name: a.Path}, nil
	case a.IP.Addr().Is4() || a.IP.Addr().Is4In6():
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.IP.Port()), Addr: a.IP.Addr().As4()}, nil
	case a.IP.Addr().Is6():
		zone, err := zoneIndex(a.IP.Addr().Zone())
		return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.IP.Port()), Addr: a.IP.Addr().As16(), ZoneId: zone}, err
	}
	return 0, nil, fmt.Errorf("address %q is neither an IP address with a port nor the path of a Unix socket", a)
}

// addrPort reads a socket address of the kernel; a path gives the zero AddrPort.
func addrPort(sa *unix.RawSockaddrAny) netip.AddrPort {
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), networkPort(&in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		// A client of an IPv4 address on a socket for both is ::ffff:a.b.c.d.
		a := netip.AddrFrom16(in.Addr).Unmap()
		if a.Is6() && in.Scope_id != 0 {
			a = a.WithZone(zoneName(in.Scope_id))
		}
		return netip.AddrPortFrom(a, networkPort(&in.Port))
	}
	return netip.AddrPort{}
}

// networkPort reads a port, which stands in network byte order.
func networkPort(p *uint16) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:])
}

// localAddr asks the kernel for a socket's own address.
func localAddr(fd int) netip.AddrPort {
	var sa unix.RawSockaddrAny
	n := uint32(unix.SizeofSockaddrAny)
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	return addrPort(&sa)
}

// OriginalDst returns where a connection was going before netfilter's REDIRECT
// sent it here. It may be called on any goroutine.
func OriginalDst(fd int) (netip.AddrPort, error) {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	// IPv4 connections on a socket for both families are in IPv4's table:
	// that one is asked first, it refuses what is not its own.
	var sa unix.RawSockaddrAny
	errno := getOriginal(fd, unix.SOL_IP, &sa)
	if errno != 0 && family == unix.AF_INET6 {
		sa = unix.RawSockaddrAny{}
		errno = getOriginal(fd, unix.SOL_IPV6, &sa)
	}
	if errno != 0 {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", errno)
	}
	return addrPort(&sa), nil
}

// soOriginalDst is SO_ORIGINAL_DST, and IP6T_SO_ORIGINAL_DST of IPv6.
const soOriginalDst = 80

func getOriginal(fd, level int, sa *unix.RawSockaddrAny) unix.Errno {
	n := uint32(unix.SizeofSockaddrAny)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), soOriginalDst,
		uintptr(unsafe.Pointer(sa)), uintptr(unsafe.Pointer(&n)), 0)
	return errno
}

// Routable says whether this host has a way to an address: it connects a UDP socket, which sends nothing. It never
// blocks, and may be called on any goroutine.
func Routable(a netip.Addr) bool {
	family, sa, err := Address{IP: netip.AddrPortFrom(a.Unmap(), 9)}.sockaddr() // any port but 0
	if err != nil {
		return false
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer CloseFD(fd)
	return unix.Connect(fd, sa) == nil
}

// IsOwn says whether an address is one of this host's. It asks the kernel, by a
// UDP socket that sends nothing: the way to an own address begins at that
// address, or at another one of loopback. It never blocks, but is for rare cases:
// three system calls. On any goroutine.
func IsOwn(a netip.Addr) bool {
	a = a.Unmap()
	if a.IsLoopback() || a.IsUnspecified() {
		return true
	}
	family, sa, err := Address{IP: netip.AddrPortFrom(a, 9)}.sockaddr() // any port but 0
	if err != nil {
		return false
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer CloseFD(fd)
	if err := unix.Connect(fd, sa); err != nil {
		return false // no way leads there
	}
	return localAddr(fd).Addr().WithZone("") == a.WithZone("")
}
