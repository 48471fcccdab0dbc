package run

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// AsInit does the work of a container's first process, and leaves the work of run to a child: process 1 must reap whoever
// loses its parent (wait(2) for any child, which would take os/exec's children from under it), and the kernel kills all
// others when it ends. Signals go to the child; the error is its status, as an *Exit.
func AsInit() error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, heeded(passedOn)...)
	defer signal.Stop(signals)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	child, err := os.StartProcess(self, os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return fmt.Errorf("run as process 1 cannot start itself once more: %w", err)
	}
	go func() {
		for s := range signals {
			_ = child.Signal(s) // that it has just ended is no error
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR || err == nil && pid != child.Pid:
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		default:
			return exitOf(status)
		}
	}
}
