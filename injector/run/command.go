package run

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
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

// lookForTerminal is how often a command in the background is looked after.
const lookForTerminal = 200 * time.Millisecond

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
	tty := foreground(cmd)
	defer tty.takeBack()
	if err := cmd.Start(); err != nil {
		code := statusNotExecutable
		if errors.Is(err, fs.ErrNotExist) {
			code = statusNotFound
		}
		return &Exit{Code: code, Err: fmt.Errorf("%s: %w", o.Command[0], err)}
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	children := make(chan os.Signal, 1)
	if tty != nil {
		signal.Notify(children, syscall.SIGCHLD)
		defer signal.Stop(children)
	}
	// After "bg" a shell's "fg" gives us the terminal without a signal: it is looked for.
	background := time.NewTicker(lookForTerminal)
	background.Stop()
	defer background.Stop()
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGCONT && tty != nil {
				if !tty.giveTo(cmd.Process.Pid) {
					background.Reset(lookForTerminal)
				}
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGCONT)
				continue
			}
			_ = cmd.Process.Signal(s) // that it has just ended is no error
		case <-background.C:
			if tty.giveTo(cmd.Process.Pid) {
				background.Stop()
			}
		case <-children:
			if stopped(cmd.Process.Pid) {
				// Ctrl-Z reached the application alone. The shell that waits for us is to see it, too.
				_ = syscall.Kill(0, syscall.SIGSTOP)
			}
		case err := <-done:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return err // copying of input or output failed
			}
			return exitOf(cmd.ProcessState.Sys().(syscall.WaitStatus))
		}
	}
}

// exitOf turns how a process ended into how we shall end.
func exitOf(status syscall.WaitStatus) error {
	switch {
	case status.Signaled():
		return &Exit{Code: 128 + int(status.Signal())}
	case status.ExitStatus() != 0:
		return &Exit{Code: status.ExitStatus()}
	default:
		return nil
	}
}
