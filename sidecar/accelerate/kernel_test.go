package accelerate

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func at(words *[2]uint32) unsafe.Pointer { return unsafe.Pointer(words) }

func logTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// loaded needs root and a kernel that can; a program that the verifier refuses is a failure.
func loaded(t *testing.T) *Accelerator {
	t.Helper()
	a, err := Open(Options{Mode: On, Log: slog.New(slog.DiscardHandler)})
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		t.Fatalf("%+v", refused)
	}
	if err != nil {
		t.Skip("NOT RUN: ", err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// pair is a connection of which the listening side is marked.
func pair(t *testing.T, a *Accelerator) (client, server int) {
	t.Helper()
	l, sa := listener(t)
	t.Cleanup(a.Listen(l, uint16(sa.(*unix.SockaddrInet4).Port)))
	client = socket(t)
	if err := unix.Connect(client, sa); err != nil {
		t.Fatal(err)
	}
	return client, accept(t, l)
}

func socket(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func address(t *testing.T, sa unix.Sockaddr, err error) netip.AddrPort {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	v4 := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port))
}

func send(t *testing.T, fd int, p []byte) {
	t.Helper()
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
}

// TestSlowReaderOfTheSidecarIsSeen follows the sidecar's direction from redirected to full, drained, and TCP for good.
func TestSlowReaderOfTheSidecarIsSeen(t *testing.T) {
	a := loaded(t)
	client, server := pair(t, a)
	sa, err := unix.Getsockname(server)
	local := address(t, sa, err)
	sa, err = unix.Getpeername(server)
	remote := address(t, sa, err)
	slot := Slot(local.Port(), remote.Port())
	piece := make([]byte, 64<<10)

	send(t, server, piece)
	if a.Full(slot) || a.Drained(local, remote) {
		t.Errorf("after 64 KiB that nobody read: full %v, drained %v", a.Full(slot), a.Drained(local, remote))
	}
	for range 4 {
		send(t, server, piece)
	}
	if !a.Full(slot) || a.Overlaps(slot) {
		t.Errorf("after 320 KiB: full %v, overlaps %v", a.Full(slot), a.Overlaps(slot))
	}
	for left := 5 * len(piece); left > 0; {
		n, err := unix.Read(client, piece)
		if err != nil {
			t.Fatal(err)
		}
		left -= n
	}
	if !a.Drained(local, remote) {
		t.Error("all was read and it is not drained")
	}
	before := a.Counts()
	send(t, server, piece)
	if after := a.Counts(); after.Messages != before.Messages || after.Slow != 1 || a.Full(slot) {
		t.Errorf("the next piece is to go by TCP: %+v, before %+v, full %v", after, before, a.Full(slot))
	}
}

// TestSlowSidecarLeavesTheApplicationToTCP follows the other direction.
func TestSlowSidecarLeavesTheApplicationToTCP(t *testing.T) {
	a := loaded(t)
	client, server := pair(t, a)
	sa, err := unix.Getsockname(server)
	local := address(t, sa, err)
	sa, err = unix.Getpeername(server)
	slot := Slot(local.Port(), address(t, sa, err).Port())
	piece := make([]byte, 64<<10)
	for i := range 6 {
		for j := range piece {
			piece[j] = byte(i)
		}
		send(t, client, piece)
	}
	if !a.Overlaps(slot) || a.Full(slot) {
		t.Errorf("overlaps %v, full %v", a.Overlaps(slot), a.Full(slot))
	}
	if c := a.Counts(); c.Bytes > 256<<10 || c.Bytes < 128<<10 {
		t.Errorf("%d bytes were redirected", c.Bytes)
	}
	for at := 0; at < 6*len(piece); {
		n, err := unix.Read(server, piece)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range piece[:n] {
			if b != byte(at>>16) {
				t.Fatalf("byte %d is of piece %d", at, b)
			}
			at++
		}
	}
}

// TestDrainedOfASocketThatIsNot says yes: nobody must wait for it.
func TestDrainedOfASocketThatIsNot(t *testing.T) {
	a := loaded(t)
	if !a.Drained(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")) {
		t.Error("not drained")
	}
}

// TestOrderOverTheChangeFromTCP has a message wait at the receiver that came by TCP: what follows it must not overtake
// it. With TCP_DEFER_ACCEPT the receiver's socket does not exist before the first message.
func TestOrderOverTheChangeFromTCP(t *testing.T) {
	a := loaded(t)
	l, to := listener(t)
	if err := unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 10); err != nil {
		t.Fatal(err)
	}
	client := socket(t)
	a.Mark(client)
	if err := unix.Connect(client, to); err != nil {
		t.Fatal(err)
	}
	send(t, client, []byte("first"))
	server := accept(t, l)
	send(t, client, []byte("second"))
	if c := a.Counts(); c.Connections != 1 || c.Messages != 0 {
		t.Errorf("both ends are known, and the second must stay behind the first: %+v", c)
	}
	var got []byte
	buf := make([]byte, 64)
	for len(got) < len("firstsecond") {
		n, err := unix.Read(server, buf)
		if err != nil || n == 0 {
			t.Fatalf("%q, then %v", got, err)
		}
		got = append(got, buf[:n]...)
	}
	if string(got) != "firstsecond" {
		t.Errorf("%q", got)
	}
	send(t, client, []byte("third"))
	if c := a.Counts(); c.Messages != 1 {
		t.Errorf("nothing is before the third, it may pass TCP by: %+v", c)
	}
	if n, err := unix.Read(server, buf); string(buf[:max(n, 0)]) != "third" {
		t.Errorf("%q, %v", buf[:max(n, 0)], err)
	}
}

func listener(t *testing.T) (fd int, at unix.Sockaddr) {
	t.Helper()
	fd = socket(t)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, at
}

func accept(t *testing.T, l int) int {
	t.Helper()
	fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}
