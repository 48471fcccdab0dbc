package ring

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// made is a Ring of the test's own thread.
func made(t testing.TB) *Ring {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r, err := New()
	if err != nil {
		t.Skipf("NOT RUN: %v", err)
	}
	t.Cleanup(r.Close)
	return r
}

func pair(t testing.TB) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	return fds[0], fds[1]
}

func TestEachCallHasItsResult(t *testing.T) {
	r := made(t)
	a, b := pair(t)
	gone, other := pair(t)
	unix.Close(other)
	again := -int32(unix.EAGAIN)
	in := make([]byte, 8)
	for _, round := range []struct {
		name string
		add  func()
		want []int32
	}{
		{"nothing", func() {}, []int32{}},
		{"nothing to read", func() { r.Recv(a, in); r.Recv(b, in) }, []int32{again, again}},
		{"in order", func() {
			r.Send(a, []byte("one"))
			r.Send(a, []byte("two"))
			r.Recv(b, in[:4])
			r.Recv(b, in[4:])
			r.Recv(b, in)
		}, []int32{3, 3, 4, 2, again}},
		{"a bad one keeps nobody back", func() {
			r.Recv(-1, in[:0])
			r.Send(a, []byte("x"))
			r.Send(gone, []byte("x"))
			r.Recv(gone, in[:1])
			r.Recv(b, in[7:])
		},
			[]int32{-int32(unix.EBADF), 1, -int32(unix.EPIPE), 0, 1}},
	} {
		round.add()
		if got := r.Do(); !slices.Equal(got, round.want) {
			t.Errorf("%s: %d, want %d", round.name, got, round.want)
		}
	}
	if got := string(in); got != "onetwo\x00x" {
		t.Errorf("read %q", got)
	}
	if enters, calls := r.Calls(); enters != 4 || calls != 3+2+5+5 { // with those of New
		t.Errorf("%d system calls for %d", enters, calls)
	}
}

func TestASocketTakesWhatItHasRoomFor(t *testing.T) {
	r := made(t)
	a, b := pair(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	r.Send(a, big)
	r.Send(a, big)
	got := r.Do()
	if n := got[0]; n <= 0 || int(n) >= len(big) || got[1] != -int32(unix.EAGAIN) {
		t.Fatalf("sent %d of %d", got, len(big))
	}
	sent, in := int(got[0]), make([]byte, len(big))
	for n := 0; n < sent; {
		r.Recv(b, in[n:])
		got := r.Do()[0]
		if got <= 0 {
			t.Fatalf("after %d of %d: %d", n, sent, got)
		}
		n += int(got)
	}
	if !bytes.Equal(in[:sent], big[:sent]) {
		t.Error("the bytes are not those that were sent")
	}
}

// TestManyRounds goes around the rings' ends, full and in part.
func TestManyRounds(t *testing.T) {
	r := made(t)
	a, b := pair(t)
	in, out := make([]byte, Size), make([]byte, Size)
	for round := range 1000 {
		n := 1 + round%Size
		for i := range n {
			out[i] = byte(round + i)
			r.Send(a, out[i:i+1])
		}
		for i, got := range r.Do() {
			if got != 1 {
				t.Fatalf("round %d, send %d: %d", round, i, got)
			}
		}
		for i := range n {
			r.Recv(b, in[i:i+1])
		}
		for i, got := range r.Do() {
			if got != 1 || in[i] != out[i] {
				t.Fatalf("round %d, recv %d: %d, byte %d, want %d", round, i, got, in[i], out[i])
			}
		}
	}
}

// TestABrokenRing: after the descriptor is gone, as after a filter that forbids the call, nothing is done and nothing is lost.
func TestABrokenRing(t *testing.T) {
	r := made(t)
	a, b := pair(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	// In its place a file that is no ring; the mappings keep the ring itself.
	if err := unix.Dup3(int(null.Fd()), r.fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	in := make([]byte, 1)
	for range 2 {
		r.Send(a, []byte("x"))
		r.Recv(b, in)
		if got, no := r.Do(), -int32(unix.EINTR); !slices.Equal(got, []int32{no, no}) || !r.Broken() {
			t.Errorf("%d, broken %v", got, r.Broken())
		}
	}
	if err := unix.SetNonblock(b, true); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(b, in); err != unix.EAGAIN {
		t.Errorf("something was sent: %d, %v", n, err)
	}
}

// BenchmarkRing is a send and a recv of 1 KiB on so many sockets, by the ring and by a system call for each: what a batch has to
// have before it is worth it.
func BenchmarkRing(b *testing.B) {
	var ends [32][2]int
	for i := range ends {
		ends[i][0], ends[i][1] = pair(b)
	}
	out, in := make([]byte, 1024), make([]byte, 4096)
	for _, n := range []int{1, 2, 3, 4, 8, 32} {
		per := func(b *testing.B) {
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(2*n), "ns/call")
		}
		b.Run(fmt.Sprintf("%d by the ring", n), func(b *testing.B) {
			r := made(b)
			for b.Loop() {
				for _, e := range ends[:n] {
					r.Send(e[0], out)
				}
				r.Do()
				for _, e := range ends[:n] {
					r.Recv(e[1], in)
				}
				r.Do()
			}
			per(b)
		})
		b.Run(fmt.Sprintf("%d by as many", n), func(b *testing.B) {
			call := func(number uintptr, fd int, p []byte) {
				if _, _, errno := syscall.RawSyscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0, 0, 0); errno != 0 {
					b.Fatal(errno)
				}
			}
			for b.Loop() {
				for _, e := range ends[:n] {
					call(unix.SYS_SENDTO, e[0], out)
				}
				for _, e := range ends[:n] {
					call(unix.SYS_READ, e[1], in)
				}
			}
			per(b)
		})
	}
}
