package run

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sallyport/injector/redirect"
)

// place is what a name owns besides rules and processes.
type place struct {
	dir    string // /run/sallyport/NAME
	lock   *os.File
	cgroup string // folder; "": none
}

// take makes the folder and locks it. Who holds the lock has the name; it goes with the process, however that ends.
func take(o *Options) (*place, error) {
	p := &place{dir: filepath.Join(o.StateDir, o.Name)}
	if err := os.MkdirAll(o.StateDir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	// The folder is the sidecar's, which keeps its key there; the lock is ours, and beside it.
	lock, err := os.OpenFile(p.dir+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("%q is running already on this machine: end it, or give this one another --name", o.Name)
	}
	p.lock = lock
	if err := os.Lchown(p.dir, int(o.SidecarUID), int(o.SidecarUID)); err != nil {
		p.leave()
		return nil, err
	}
	return p, nil
}

// leave gives the name free. The folder stays: with the identity in it the next start needs no new token.
func (p *place) leave() { p.lock.Close() }

// makeCgroup makes an empty cgroup below our own. Processes of an earlier run that were left in it are killed: they
// would talk past the new sidecar, or keep its port.
func (p *place) makeCgroup(o *Options) error {
	own, err := redirect.OwnCgroup()
	if err != nil {
		return fmt.Errorf("--capture cgroup: %w", err)
	}
	dir := filepath.Join(own, "sallyport-"+o.Name)
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
		if n := endCgroup(dir); n > 0 {
			o.Log.Warn("processes that an earlier run of this name left behind were killed", "processes", n)
		}
		if err := waitEmpty(dir); err != nil {
			return err
		}
	} else if err != nil {
		return fmt.Errorf("cannot make the cgroup %s: %w; --capture namespace does without", dir, err)
	}
	p.cgroup = dir
	return nil
}

// endCgroup kills what is in a cgroup and says how many processes there were.
func endCgroup(dir string) int {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return 0
	}
	pids := strings.Fields(string(data))
	if len(pids) == 0 {
		return 0
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err == nil { // Linux 5.14
		return len(pids)
	}
	for _, s := range pids {
		var pid int
		if _, err := fmt.Sscan(s, &pid); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return len(pids)
}

// waitEmpty waits for killed processes to be gone: they leave a cgroup only when they have been reaped.
func waitEmpty(dir string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil || len(strings.TrimSpace(string(data))) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of an earlier run do not end: %s (in %s)", strings.Join(strings.Fields(string(data)), ", "), dir)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// removeCgroup ends what the application has left in its cgroup, and removes it.
func (p *place) removeCgroup(o *Options) {
	if p.cgroup == "" {
		return
	}
	if n := endCgroup(p.cgroup); n > 0 {
		o.Log.Warn("processes that the command left behind were killed", "processes", n)
	}
	if err := waitEmpty(p.cgroup); err != nil {
		o.Log.Warn("the cgroup stays until the next start", "error", err)
		return
	}
	if err := os.Remove(p.cgroup); err != nil {
		o.Log.Warn("the cgroup stays until the next start", "error", err)
	}
}
