package run

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminal is the one that the application has from us.
type terminal struct{ fd int }

// foreground gives the application the terminal, where there is one and it is ours, in a process group of its own: so
// Ctrl-C goes to it once, and not to its sidecar. nil: there is none.
func foreground(cmd *exec.Cmd) *terminal {
	file, ok := cmd.Stdin.(*os.File)
	if !ok {
		return nil
	}
	t := &terminal{int(file.Fd())}
	if !t.ours() {
		return nil
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, true, t.fd
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
