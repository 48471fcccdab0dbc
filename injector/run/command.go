package run

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Statuses of a shell for what cannot be started (POSIX.1 2.8.2); env(1) and nice(1) have them too.
const (
	statusNotExecutable = 126
	statusNotFound      = 127
)

// find looks the command up before anything is changed.
func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, fs.ErrPermission):
		return "", &Exit{Code: statusNotExecutable, Err: fmt.Errorf("%s: not executable", name)}
	case errors.Is(err, exec.ErrDot):
		return "", &Exit{Code: statusNotFound, Err: fmt.Errorf("%s: found only in the current folder; write ./%s", name, name)}
	default:
		return "", &Exit{Code: statusNotFound, Err: fmt.Errorf("%s: command not found", name)}
	}
}

// passedOn are the signals that the application gets when we do. SIGCHLD, SIGPIPE and SIGURG are the runtime's own
// matter, SIGTTIN and SIGTTOU the terminal's.
var passedOn = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
	syscall.SIGWINCH, syscall.SIGCONT}

// application runs the command to its end and returns how that was.
func application(o *Options, path, cgroup string, signals <-chan os.Signal) error {
	cmd := exec.Command(path, o.Command[1:]...)
	cmd.Args[0] = o.Command[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = o.Stdin, o.Stdout, o.Stderr
	// Should we be killed, so is it told: without its sidecar it reaches nobody, and nobody reaches it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Env = os.Environ()
	if o.User != "" {
		c, err := lookup(o.User)
		if err != nil {
			return err
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.uid, Gid: c.gid, Groups: c.groups}
		if c.name != "" {
			cmd.Env = append(cmd.Env, "USER="+c.name, "LOGNAME="+c.name, "HOME="+c.home)
		}
	}
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		if err != nil {
			return err
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	back := foreground(cmd)
	defer back()
	if err := cmd.Start(); err != nil {
		code := statusNotExecutable
		if errors.Is(err, fs.ErrNotExist) {
			code = statusNotFound
		}
		return &Exit{Code: code, Err: fmt.Errorf("%s: %w", o.Command[0], err)}
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s) // that it has just ended is no error
		case err := <-done:
			return exitOf(cmd, err)
		}
	}
}

// exitOf turns how a process ended into how we shall end.
func exitOf(cmd *exec.Cmd, err error) error {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err // copying of input or output failed
	}
	ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case ok && ws.Signaled():
		return &Exit{Code: 128 + int(ws.Signal())}
	case cmd.ProcessState.ExitCode() != 0:
		return &Exit{Code: cmd.ProcessState.ExitCode()}
	default:
		return nil
	}
}

// foreground gives the application the terminal, where there is one and it is ours, so that Ctrl-C goes to it once and
// not to its sidecar; what it returns takes the terminal back.
func foreground(cmd *exec.Cmd) (back func()) {
	tty, ok := cmd.Stdin.(*os.File)
	if !ok {
		return func() {}
	}
	owner, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	if err != nil || owner != syscall.Getpgrp() {
		return func() {}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, true, int(tty.Fd())
	return func() {
		signal.Ignore(syscall.SIGTTOU) // it is sent to who sets the foreground from the background
		_ = unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, syscall.Getpgrp())
		signal.Reset(syscall.SIGTTOU)
	}
}
