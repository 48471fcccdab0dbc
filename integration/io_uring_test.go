package integration

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sallyport/integration/harness"
)

// forbidden runs a program as the seccomp profile of a container runtime does: io_uring_setup answers EPERM.
var forbidden = harness.Program("forbidden", func(args []string) int {
	runtime.LockOSThread() // the filter is the thread's, and execve keeps this one
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_IO_URING_SETUP, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x00050000 | uint32(unix.EPERM)}, // SECCOMP_RET_ERRNO
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x7fff0000},                      // SECCOMP_RET_ALLOW
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err == nil {
		err = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
	}
	if err == nil {
		err = unix.Exec(args[0], args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	return 99
})

// crowd sends requests of many connections at a time.
func crowd(t *testing.T, addr string) {
	t.Helper()
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 20 {
				if m := harness.Get(t, addr, "/"); m.Status() != 200 {
					t.Errorf("%s", m.String())
				}
			}
		})
	}
	all.Wait()
}

func TestSystemCallsInBatches(t *testing.T) {
	one := harness.NewBackend(t, "one").HTTP1()
	start := func(mode string) *harness.ProxyBuilder {
		return harness.NewSidecar(t).Bootstrap(small(t)).Backend("one", one).Args("--concurrency", "1", "--io-uring", mode)
	}
	t.Run("on", func(t *testing.T) {
		p := start("on").Run()
		harness.Eventually(t, 30*time.Second, "batches", func() error {
			crowd(t, p.Addr("http"))
			enters, calls := p.Stat("io_uring.enters"), p.Stat("io_uring.calls")
			if enters < 10 || calls < 4*enters-1 { // a ring tries itself with three; a batch is four and more
				return fmt.Errorf("%d system calls for %d", enters, calls)
			}
			return nil
		})
		if code := p.Stop(20 * time.Second); code != 0 {
			t.Errorf("exit %d", code)
		}
	})
	t.Run("off", func(t *testing.T) {
		p := start("off").Run()
		crowd(t, p.Addr("http"))
		if page := p.Admin("/stats"); strings.Contains(page, "io_uring") {
			t.Error("there are statistics of it")
		}
	})
	t.Run("auto where it is forbidden", func(t *testing.T) {
		p := start("auto").Through(forbidden).Run()
		crowd(t, p.Addr("http"))
		p.WaitLog(`msg="each read and write is a system call of its own" reason="io_uring_setup: operation not permitted: a seccomp profile`)
		if n := p.Stat("io_uring.calls"); n != 0 {
			t.Errorf("%d calls by a ring", n)
		}
	})
	t.Run("on where it is forbidden", func(t *testing.T) {
		p := start("on").Through(forbidden).Start()
		if code := p.WaitExit(30 * time.Second); code == 0 || !strings.Contains(p.Log(), "--io-uring on: io_uring_setup: operation not permitted") {
			t.Errorf("exit %d", code)
		}
	})
	t.Run("a mode that there is not", func(t *testing.T) {
		p := start("of").Start()
		if code := p.WaitExit(30 * time.Second); code == 0 || !strings.Contains(p.Log(), `--io-uring "of": must be auto, on or off`) {
			t.Errorf("exit %d", code)
		}
	})
}
