package loop

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pollNow fetches what is ready without a word to the scheduler: under load
// there nearly always is something, and the notice would cost more than the call.
func pollNow(epfd int, events []unix.EpollEvent) (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
		uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// pollWait sleeps up to ms milliseconds, for ever where ms is negative; the
// scheduler knows, so that other goroutines get this thread's processor.
func pollWait(epfd int, events []unix.EpollEvent, ms int) (int, error) {
	n, _, errno := syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
		uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(ms), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
