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
)

// cgroup is a folder of a cgroup of version 2 that one run has to itself: with a lock, because the same name may be
// started with two state folders.
type cgroup struct {
	dir  string
	lock *os.File
}

var errHeld = errors.New("another run has it")

// openCgroup locks one that is there. errHeld: somebody else has; fs.ErrNotExist: there is none.
func openCgroup(dir string) (*cgroup, error) {
	if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
		return nil, err
	}
	// Of its files the one that only root may open, so that nobody else can lock it; before Linux 5.14 the folder.
	f, err := os.OpenFile(filepath.Join(dir, "cgroup.kill"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(dir)
	}
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, errHeld
	}
	return &cgroup{dir, f}, nil
}

// newCgroup makes one that never was before: in a cgroup that has been killed once some kernels kill what is started in
// it later, too.
func newCgroup(dir string) (*cgroup, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	return openCgroup(dir)
}

func (g *cgroup) unlock() { g.lock.Close() }

// end kills everything in it and in those below, waits for that, and says how many processes there were.
func (g *cgroup) end() (processes int, err error) {
	processes = len(g.processes())
	deadline := time.Now().Add(5 * time.Second)
	for g.populated() {
		if err := os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0); err != nil { // before Linux 5.14
			for _, pid := range g.processes() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if time.Now().After(deadline) {
			return processes, fmt.Errorf("processes do not end: %v (in %s)", g.processes(), g.dir)
		}
		time.Sleep(5 * time.Millisecond) // they leave a cgroup only when they have been reaped
	}
	return processes, nil
}

// populated says that there are processes in it or below (cgroups(7), cgroup.events).
func (g *cgroup) populated() bool {
	data, err := os.ReadFile(filepath.Join(g.dir, "cgroup.events"))
	return err == nil && strings.Contains("\n"+string(data), "\npopulated 1\n")
}

// processes are those in it and below.
func (g *cgroup) processes() (pids []int) {
	_ = g.each(func(dir string) error {
		data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for s := range strings.FieldsSeq(string(data)) {
			var pid int
			if _, err := fmt.Sscan(s, &pid); err == nil && pid > 1 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// each visits the cgroups from the deepest up.
func (g *cgroup) each(visit func(dir string) error) error {
	var dirs []string
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			return nil
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		err = errors.Join(err, visit(dirs[i]))
	}
	return err
}

// remove removes it, empty as it is, with those below.
func (g *cgroup) remove() error {
	err := g.each(syscall.Rmdir)
	g.unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", g.dir, err)
	}
	return nil
}
