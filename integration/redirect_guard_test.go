package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/integration/harness"
)

// TestRedirectionOfAConnectionSeenBefore: NAT is decided on the first packet that conntrack sees of a connection. A
// lone ACK is taken for the middle of one, and no NAT chain minds it; the SYN that comes after it must not reach past
// the sidecar. The ACK has an MD5 option, for which it is dropped without the RST that would end the matter.
func TestRedirectionOfAConnectionSeenBefore(t *testing.T) {
	s := newStreet(t)
	port, app := uint16(40000), harness.Cgroup(t, "app")
	for _, c := range []struct{ backend, cgroup string }{
		{"nftables", ""}, {"iptables-nft", ""}, {"iptables-legacy", ""}, {"nftables", app}, {"iptables-legacy", app},
	} {
		name, flags := c.backend, []string{"--backend", c.backend}
		if c.cgroup != "" {
			name, flags = name+", one cgroup", append(flags, "--name", "app", "--cgroup", c.cgroup, "--include-inbound-ports", "8080")
		}
		t.Run(name, func(t *testing.T) {
			s := *s
			s.t = t
			needBackend(t, c.backend)
			s.apply(flags...)
			defer s.a.Must(s.bin, "redirect", "cleanup", "--all")
			for _, addr := range []struct{ a, b netip.Addr }{{s.a.IPv4, s.b.IPv4}, {s.a.IPv6, s.b.IPv6}} {
				port++ // what was tried before has left its own entry
				server, client := netip.AddrPortFrom(addr.a, 8080), netip.AddrPortFrom(addr.b, port)
				sendTCP(t, s.b, ack, client, server)
				seen(t, s.a, client, server)
				if got := s.dial(s.b, server.String(), "-port", fmt.Sprint(port), "-timeout", "600ms"); !strings.Contains(got, "i/o timeout") {
					t.Errorf("inbound, after an ACK: %q", got)
				}
				if got, want := s.dial(s.b, server.String()), fmt.Sprintf("inbound %s from %s", server, addr.b); got != want {
					t.Errorf("inbound, from another port: %q, want %q", got, want)
				}
				// The application's accomplice on the other host opens its way out.
				server, client = netip.AddrPortFrom(addr.b, 8080), netip.AddrPortFrom(addr.a, port)
				sendTCP(t, s.b, ack, server, client)
				seen(t, s.a, server, client)
				if got := s.dialIn(s.a, c.cgroup, server.String(), "-port", fmt.Sprint(port), "-timeout", "600ms"); !strings.Contains(got, "i/o timeout") {
					t.Errorf("outbound, after an ACK from there: %q", got)
				}
				if got, want := s.dialIn(s.a, c.cgroup, server.String()), "outbound "+server.String(); got != want {
					t.Errorf("outbound, from another port: %q, want %q", got, want)
				}
			}
		})
	}
}

// TestRedirectionOfAnAnswer: what an accomplice opens is redirected to the sidecar's port. Where no sidecar has that, an
// application that dials from it would answer, and pass for redirected.
func TestRedirectionOfAnAnswer(t *testing.T) {
	s := newStreet(t)
	const nobody = 25006 // listens there
	accomplice := netip.AddrPortFrom(s.b.IPv4, 7070)
	wire := s.lan.Capture()
	dialed := func(from uint16) bool {
		return slices.ContainsFunc(wire.Frames(), func(f []byte) bool {
			const tcp = 14 + 20 // Ethernet, and IPv4 without options
			return len(f) > tcp+13 && f[12] == 8 && f[13] == 0 && binary.BigEndian.Uint16(f[tcp:]) == from && f[tcp+13]&(syn|ack) == syn
		})
	}
	for i, backend := range []string{"nftables", "iptables-nft", "iptables-legacy"} {
		needBackend(t, backend)
		s.apply("--backend", backend, "--inbound-port", fmt.Sprint(nobody))
		port := 42000 + uint16(i)
		sendTCP(t, s.b, syn, accomplice, netip.AddrPortFrom(s.a.IPv4, port))
		seen(t, s.a, accomplice, netip.AddrPortFrom(s.a.IPv4, port))
		got := s.dial(s.a, accomplice.String(), "-port", fmt.Sprint(nobody), "-timeout", "600ms")
		// What is seen of the sidecar comes after whatever came of that.
		marker := 43000 + uint16(i)
		s.dial(s.a, accomplice.String(), "-port", fmt.Sprint(marker), "-uid", "1337")
		harness.Eventually(t, 5*time.Second, "the sidecar's SYN", func() error {
			if !dialed(marker) {
				return errors.New("not on the wire")
			}
			return nil
		})
		if dialed(port) || !strings.Contains(got, "i/o timeout") {
			t.Errorf("%s: a SYN from port %d went out: %q", backend, port, got)
		}
		s.a.Must(s.bin, "redirect", "cleanup")
	}
}

// TestRedirectionOfAPortUsedBefore: a connection that had ended when the rules came does not stand in the way of the
// next one from its port, though it is still tracked.
func TestRedirectionOfAPortUsedBefore(t *testing.T) {
	s := newStreet(t)
	a, b := netip.AddrPortFrom(s.a.IPv4, 8080).String(), netip.AddrPortFrom(s.b.IPv4, 8080).String()
	s.apply("--exclude-outbound-ports", "8080", "--exclude-inbound-ports", "8080") // connections are tracked, these without NAT
	for _, rules := range []struct{ in, out string }{{"a " + a + " from " + s.b.IPv4.String(), "b " + b + " from " + s.a.IPv4.String()}, {"inbound " + a + " from " + s.b.IPv4.String(), "outbound " + b}} {
		for _, c := range []struct {
			from     *harness.Host
			to, want string
		}{{s.b, a, rules.in}, {s.a, b, rules.out}} {
			harness.Eventually(t, 10*time.Second, c.want, func() error {
				if got := s.dial(c.from, c.to, "-port", "41001"); got != c.want { // in use until the end of the one before has been acknowledged
					return errors.New(got)
				}
				return nil
			})
		}
		s.apply()
	}
}

// TestRedirectionLeavesConnectionsAlone: what is connected when the rules come stays connected, in both directions.
func TestRedirectionLeavesConnectionsAlone(t *testing.T) {
	s := newStreet(t)
	for _, backend := range []string{"nftables", "iptables-nft", "iptables-legacy"} {
		t.Run(backend, func(t *testing.T) {
			s := *s
			s.t = t
			needBackend(t, backend)
			var ends []net.Conn
			for _, way := range [][2]*harness.Host{{s.a, s.b}, {s.b, s.a}} {
				for _, ip := range []netip.Addr{way[1].IPv4, way[1].IPv6} {
					l := way[1].Listen("tcp", net.JoinHostPort(ip.String(), "0"), nil)
					c, err := way[0].Dial("tcp", l.Addr().String())
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { c.Close() })
					other, err := l.Accept()
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { other.Close() })
					ends = append(ends, c, other)
				}
			}
			s.apply("--backend", backend)
			defer s.a.Must(s.bin, "redirect", "cleanup")
			for i, c := range ends {
				other := ends[i^1]
				line := fmt.Sprintf("line %d", i)
				fmt.Fprint(c, line)
				_ = other.SetReadDeadline(time.Now().Add(5 * time.Second))
				got := make([]byte, len(line))
				if _, err := io.ReadFull(other, got); err != nil || string(got) != line {
					t.Errorf("%s to %s: %q %v", c.LocalAddr(), c.RemoteAddr(), got, err)
				}
			}
		})
	}
}

// needBackend ends a test for which a program is not installed.
func needBackend(t *testing.T, backend string) {
	t.Helper()
	if backend == "nftables" {
		return
	}
	if _, err := exec.LookPath(backend + "-restore"); err != nil {
		harness.NotRun(t, backend+"-restore is not installed (Debian: iptables)")
	}
}

const syn, ack = 0x02, 0x10 // RFC 9293 section 3.1

// sendTCP sends a TCP segment without a connection, with an MD5 option (RFC 2385).
func sendTCP(t *testing.T, h *harness.Host, flags byte, from, to netip.AddrPort) {
	t.Helper()
	segment := make([]byte, 40)
	binary.BigEndian.PutUint16(segment[0:], from.Port())
	binary.BigEndian.PutUint16(segment[2:], to.Port())
	binary.BigEndian.PutUint32(segment[4:], 1000)
	binary.BigEndian.PutUint32(segment[8:], 2000)
	segment[12], segment[13] = 10<<4, flags // ten words
	binary.BigEndian.PutUint16(segment[14:], 512)
	segment[20], segment[21], segment[38], segment[39] = 19, 18, 1, 1
	binary.BigEndian.PutUint16(segment[16:], tcpChecksum(from.Addr(), to.Addr(), segment))
	h.Do(func() error {
		family, at := unix.AF_INET, func(a netip.Addr) unix.Sockaddr { return &unix.SockaddrInet4{Addr: a.As4()} }
		if from.Addr().Is6() {
			family, at = unix.AF_INET6, func(a netip.Addr) unix.Sockaddr { return &unix.SockaddrInet6{Addr: a.As16()} }
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, at(from.Addr())); err != nil {
			return err
		}
		return unix.Sendto(fd, segment, 0, at(to.Addr()))
	})
}

// tcpChecksum is that of RFC 9293 section 3.1, with the pseudo-header of either IP.
func tcpChecksum(from, to netip.Addr, segment []byte) uint16 {
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, 0, 0, byte(len(segment)), 0, 0, 0, unix.IPPROTO_TCP}, segment)
	sum := uint32(0)
	for i := 0; i+1 < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// seen waits until a host tracks a connection, so that a test knows that what it does is what it is meant to be.
func seen(t *testing.T, h *harness.Host, from, to netip.AddrPort) {
	t.Helper()
	family := netlink.InetFamily(unix.AF_INET)
	if from.Addr().Is6() {
		family = unix.AF_INET6
	}
	harness.Eventually(t, 5*time.Second, "the connection is tracked", func() (err error) {
		var flows []*netlink.ConntrackFlow
		h.Do(func() error { flows, err = netlink.ConntrackTableList(netlink.ConntrackTable, family); return nil })
		for _, f := range flows {
			if f.Forward.SrcIP.String() == from.Addr().String() && f.Forward.SrcPort == from.Port() && f.Forward.DstPort == to.Port() {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("%s to %s is not among %d", from, to, len(flows)))
	})
}
