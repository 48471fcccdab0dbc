package run

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// passedOn are the signals that the application gets when we do. SIGCHLD, SIGPIPE and SIGURG are the runtime's own
// matter, SIGTTIN and SIGTTOU the terminal's.
var passedOn = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
	syscall.SIGWINCH, syscall.SIGCONT}

// deadly are those that end a process which does not care for them, and that people send for it.
var deadly = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT}

// heeded leaves out what is ignored from the start, by nohup or a shell's "&": so it shall stay, for the application, too.
func heeded(list []os.Signal) []os.Signal {
	return slices.DeleteFunc(slices.Clone(list), signal.Ignored)
}

// ending is what ends us before the application is started.
type ending struct {
	signals chan os.Signal
	done    chan struct{}
	signal  os.Signal // valid once done is closed; nil: there was none
}

// endBySignal returns a context that a deadly signal ends. That of the caller is not heeded, but for its values: it ends
// by some of the same signals, and does not say by which.
func endBySignal(ctx context.Context) (context.Context, *ending) {
	before := ctx.Err() != nil
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e := &ending{signals: make(chan os.Signal, 1), done: make(chan struct{})}
	if before {
		e.signals <- syscall.SIGTERM
	}
	signal.Notify(e.signals, heeded(deadly)...)
	go func() {
		defer close(e.done)
		if e.signal = <-e.signals; e.signal != nil {
			cancel()
		}
	}()
	return ctx, e
}

// over says that signals are the application's from now on: nil, unless there has been one.
func (e *ending) over() error { return e.status(nil) }

// status ends the watch, and makes a signal's status of the error that came of it.
func (e *ending) status(err error) error {
	select {
	case <-e.done:
	default:
		signal.Stop(e.signals)
		close(e.signals) // nobody sends to it any more
		<-e.done
	}
	if s, ok := e.signal.(syscall.Signal); ok {
		return &Exit{Code: 128 + int(s)}
	}
	return err
}
