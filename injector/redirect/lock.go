package redirect

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// lockTime is how long another sallyport at work in this network namespace is waited for.
	lockTime = 10 * time.Second
	// lockFolder is where only root can make files, and with them hold us up.
	lockFolder = "/run/sallyport"
)

// lock keeps two of us in one network namespace apart, because the routes are shared: one could remove what the other
// has just found there. It is a file of root's, which is gone again afterwards; where there can be none (/run is
// read-only, or somebody else's) it is the namespace's own inode, which anybody in the namespace could hold. So after
// lockTime the work goes on without, as it does between containers that share the namespace and not /run: the rules
// themselves are transactions.
func lock(folder string) (unlock func()) {
	const namespace = "/proc/thread-self/ns/net"
	var st syscall.Stat_t
	if err := syscall.Stat(namespace, &st); err != nil {
		return func() {}
	}
	deadline := time.Now().Add(lockTime)
	// No name of package run begins so, which has its locks in the same folder.
	for file := filepath.Join(folder, fmt.Sprintf(".redirect-%d.lock", st.Ino)); private(folder); {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			break
		}
		if !flock(f, deadline) {
			return func() { f.Close() }
		}
		if is(f, file) {
			return func() { os.Remove(file); f.Close() }
		}
		f.Close() // who held it has removed it since: it is nobody's lock any more
	}
	f, err := os.Open(namespace)
	if err != nil {
		return func() {}
	}
	flock(f, deadline)
	return func() { f.Close() }
}

// private says whether a folder is this user's alone to write; it is made where it is missing.
func private(folder string) bool {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return false
	}
	var st syscall.Stat_t
	return syscall.Lstat(folder, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR && st.Mode&0o022 == 0 && int(st.Uid) == os.Geteuid()
}

// flock waits for the lock until deadline, and says whether it has it.
func flock(f *os.File, deadline time.Time) bool {
	for syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
	return true
}

// is says whether an open file is what its name stands for now.
func is(f *os.File, name string) bool {
	a, errA := f.Stat()
	b, errB := os.Lstat(name)
	return errA == nil && errB == nil && os.SameFile(a, b)
}
