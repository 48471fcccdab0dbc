package run

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
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

// lookForTerminal is how often a command in the background is looked after.
const lookForTerminal = 200 * time.Millisecond

// application runs the command to its end and returns how that was.
func application(o *Options, path string, in *cgroup, signals chan os.Signal) error {
	cmd, err := command(o, path)
	if err != nil {
		return err
	}
	if in != nil {
		dir, err := os.Open(in.dir)
		if err != nil {
			return err
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	tty := foreground(cmd)
	defer tty.takeBack()
	children := make(chan os.Signal, 1)
	if tty != nil {
		signal.Notify(children, syscall.SIGCHLD)
		defer signal.Stop(children)
	} else if !signal.Ignored(syscall.SIGTSTP) {
		signal.Notify(signals, syscall.SIGTSTP) // the terminal, if we have one, stops our process group, which is not the command's
	}
	if err := cmd.Start(); err != nil {
		code := statusNotExecutable
		if errors.Is(err, fs.ErrNotExist) {
			code = statusNotFound
		}
		return &Exit{Code: code, Err: fmt.Errorf("%s: %w", o.Command[0], err)}
	}
	j := &job{process: cmd.Process, pid: cmd.Process.Pid, tty: tty}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	// After "bg" a shell's "fg" gives us the terminal without a signal: it is looked for.
	background := time.NewTicker(lookForTerminal)
	background.Stop()
	defer background.Stop()
	for {
		select {
		case s := <-signals:
			if !j.signal(s.(syscall.Signal)) {
				background.Reset(lookForTerminal)
			}
		case <-background.C:
			if tty.giveTo(j.pid) {
				background.Stop()
			}
		case <-children:
			if stopped(j.pid) {
				j.stopWithIt()
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

// command is what is started, with its user and environment.
func command(o *Options, path string) (*exec.Cmd, error) {
	cmd := exec.Command(path, o.Command[1:]...)
	cmd.Args[0] = o.Command[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = o.Stdin, o.Stdout, o.Stderr
	// Should we be killed, so is it told: without its sidecar it reaches nobody, and nobody reaches it. In a process group
	// of its own it gets from us alone what the terminal sends to ours, once.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	cmd.Env = os.Environ()
	if o.Consul != "" { // the token is for the registration
		cmd.Env = slices.DeleteFunc(cmd.Env, func(v string) bool { return strings.HasPrefix(v, consulToken+"=") })
	}
	if o.User == "" {
		return cmd, nil
	}
	c, err := lookup(o.User)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.uid, Gid: c.gid, Groups: c.groups}
	if c.name != "" {
		cmd.Env = append(cmd.Env, "USER="+c.name, "LOGNAME="+c.name, "HOME="+c.home)
	}
	return cmd, nil
}

// job is the command as a shell's job: one with us.
type job struct {
	process *os.Process
	pid     int       // its process group, too
	tty     *terminal // nil: it has none from us
}

// signal passes a signal on. false: the command is to have the terminal, which is not ours to give yet.
func (j *job) signal(s syscall.Signal) (ok bool) {
	switch {
	case s == syscall.SIGTSTP:
		if !orphaned() {
			_ = syscall.Kill(-j.pid, s)
			_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		}
	case s == syscall.SIGCONT:
		ok = j.tty == nil || j.tty.giveTo(j.pid)
		_ = syscall.Kill(-j.pid, s)
		return ok
	case j.tty == nil && (s == syscall.SIGINT || s == syscall.SIGQUIT) && fromKeyboard():
		_ = syscall.Kill(-j.pid, s) // as if its processes were in our group, which the terminal has signalled
	default:
		_ = j.process.Signal(s) // that it has just ended is no error
	}
	return true
}

// stopWithIt is for a command that has been stopped: Ctrl-Z reached it alone, and the shell that waits for us is to see
// it. By SIGTSTP, because where no shell could ever let us go on the kernel does not stop us (setpgid(2), orphaned process
// groups), and then neither must the command be.
func (j *job) stopWithIt() {
	if orphaned() {
		_ = syscall.Kill(-j.pid, syscall.SIGCONT)
		return
	}
	_ = syscall.Kill(0, syscall.SIGTSTP)
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
