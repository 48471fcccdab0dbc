package run

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminal is the one that the application has from us.
type terminal struct{ fd int }

// foreground gives the application, in its process group, the terminal, where there is one and it is ours. nil: there is
// none.
func foreground(cmd *exec.Cmd) *terminal {
	file, ok := cmd.Stdin.(*os.File)
	if !ok {
		return nil
	}
	t := &terminal{int(file.Fd())}
	if !t.ours() {
		return nil
	}
	cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, t.fd
	return t
}

// ours says that our process group has the terminal.
func (t *terminal) ours() bool {
	owner, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	return err == nil && owner == syscall.Getpgrp()
}

// takeBack is for the time after the application.
func (t *terminal) takeBack() {
	if t == nil {
		return
	}
	signal.Ignore(syscall.SIGTTOU) // it is sent to who sets the foreground from the background
	_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, syscall.Getpgrp())
	signal.Reset(syscall.SIGTTOU)
}

// giveTo gives the terminal to a process group, if a shell has given it to us.
func (t *terminal) giveTo(group int) bool {
	return t.ours() && unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, group) == nil
}

// stopped says that a child has been stopped since the last call, by Ctrl-Z for one. It leaves alone how the child ends.
func stopped(pid int) bool {
	var info unix.Siginfo
	return unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED|unix.WNOHANG, nil) == nil && info.Signo != 0
}

// fromKeyboard says that a signal may be the terminal's, which sends it to the whole process group in its foreground.
func fromKeyboard() bool {
	fd, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return (&terminal{fd}).ours()
}

// orphaned says that no shell would let our process group go on if it were stopped: the parent of its first process is of
// another session. (sudo and the like are of the group itself.)
func orphaned() bool {
	group, err := unix.Getpgid(0)
	if err != nil {
		return true
	}
	session, err := unix.Getsid(0)
	if err != nil {
		return true
	}
	for parent := os.Getppid(); parent > 1; parent = parentOf(parent) {
		if g, err := unix.Getpgid(parent); err != nil {
			return true
		} else if g != group {
			s, err := unix.Getsid(parent)
			return err != nil || s != session
		}
	}
	return true
}

// parentOf reads "pid (name) state ppid …" (proc_pid_stat(5)); 0: nobody knows.
func parentOf(pid int) (parent int) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	var state string
	_, _ = fmt.Sscan(string(stat[bytes.LastIndexByte(stat, ')')+1:]), &state, &parent)
	return parent
}
