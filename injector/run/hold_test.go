package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"sallyport/injector/redirect"
	"sallyport/sidecar/conn"
)

// TestAHeldPortIsForTheSidecarAlone: of several that ask for it only who shares it gets it, and only that one is reached.
// That it must be of the sidecar's user needs another user to show: integration has that.
func TestAHeldPortIsForTheSidecarAlone(t *testing.T) {
	o := valid()
	o.Address = netip.MustParseAddr("127.0.0.1")
	hold(t, &o)
	for _, u := range o.uses() {
		for _, a := range u.at {
			if a.Is6() && !isHere(netip.IPv6Loopback()) {
				continue
			}
			at := netip.AddrPortFrom(a, *u.port).String()
			if l, err := net.Listen("tcp", at); err == nil {
				l.Close()
				t.Errorf("%s %s: anybody can have it", u.flag, at)
			}
			if c, err := net.Dial("tcp", at); err == nil {
				c.Close()
				t.Errorf("%s %s: something accepts connections", u.flag, at)
			}
			l, err := (&net.ListenConfig{Control: conn.Share}).Listen(context.Background(), "tcp", at)
			if err != nil {
				t.Errorf("%s: %v", u.flag, err)
				continue
			}
			l.Close()
		}
	}
	questions, err := (&net.ListenConfig{Control: conn.Share}).ListenPacket(context.Background(), "udp", fmt.Sprintf("127.0.0.1:%d", o.Redirect.DNSPort))
	if err != nil {
		t.Fatal(err)
	}
	defer questions.Close()
	for range 20 { // each from another port, so that a socket beside ours would get some
		c, err := net.Dial("udp", questions.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		if n, _, err := questions.ReadFrom(make([]byte, 8)); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		c.Close()
	}
}

func TestPortsThatCannotBeHad(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	for want, r := range map[string]redirect.Config{
		"by process " + fmt.Sprint(os.Getpid()): {OutboundPort: port},
		"--port 8080 is the sidecar's":          {DNSPort: 8080},
		"they must differ":                      {DNSPort: 8081, HealthPort: 8081},
	} {
		o := valid()
		o.Redirect = r
		if err := o.check(); err != nil {
			t.Fatal(err)
		}
		h, err := o.hold()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if len(h.fds) > 0 {
			t.Errorf("%d sockets stay", len(h.fds))
		}
	}
	// Two runs of one user.
	a, b := valid(), valid()
	hold(t, &a)
	b.Redirect.InboundPort = a.Redirect.InboundPort
	if _, err := b.hold(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second run got the first's port: %v", err)
	}
}
