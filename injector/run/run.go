package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"time"

	"sallyport/injector/redirect"
)

// Run runs the command with its sidecar to its end. The error is an *Exit where the process shall end with a status of
// its own; every other one means that the command was not started, and that host and catalog are as they were.
func Run(ctx context.Context, o Options) error {
	if err := o.check(); err != nil {
		return err
	}
	path, err := find(o.Command[0])
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("run must be started as root: it redirects traffic (CAP_NET_ADMIN) and starts the sidecar as a user of its own; " +
			"--user gives the command yours")
	}
	if o.User != "" {
		c, err := lookup(o.User)
		if err != nil {
			return err
		}
		if c.uid == o.SidecarUID {
			return fmt.Errorf("--user %s: that is the user of the sidecar, whose traffic is not redirected; give one of them another (--sidecar-uid)", o.User)
		}
	}
	if err := errors.Join(o.address(), o.ports()); err != nil {
		return err
	}
	// Both processes are told to die with the thread that starts them (PR_SET_PDEATHSIG), so that must not end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := take(&o)
	if err != nil {
		return err
	}
	defer p.leave()
	return o.inPlace(ctx, p, path)
}

// inPlace goes on once the name is ours.
func (o *Options) inPlace(ctx context.Context, p *place, path string) error {
	if o.Capture == Cgroup {
		if err := p.makeCgroup(o); err != nil {
			return err
		}
		defer p.removeCgroup(o)
	}
	rules := o.rules(p.cgroup)
	lift := func() error { return redirect.Cleanup(rules.Name) }
	apply := func() error { return redirect.Apply(rules) }
	if o.Capture == None {
		lift, apply = func() error { return nil }, func() error { return nil }
	} else if err := lift(); err != nil { // of a run that was killed
		return err
	}
	if _, err := redirect.Plan(rules); err != nil && o.Capture != None {
		return err
	}
	// From here on signals are the application's; before it is started they end what has begun.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	sidecar, err := newProxy(o, p)
	if err != nil {
		return err
	}
	if err := sidecar.start(); err != nil {
		return err
	}
	if err := sidecar.ready(ctx); err != nil {
		sidecar.end()
		return err
	}
	if err := apply(); err != nil {
		sidecar.end()
		return err
	}
	// The rules go last: until the sidecar has drained, what is left of the application stays closed in.
	defer func() {
		if err := lift(); err != nil {
			o.Log.Error("the rules stay in force", "error", err, "remove_by", "sallyport redirect cleanup --all")
		}
	}()
	kept, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // as in Run
		defer runtime.UnlockOSThread()
		sidecar.keep(kept, lift, apply)
	}()
	defer func() {
		stop()
		<-ended
	}()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	watch, enough := context.WithCancel(kept)
	defer enough()
	if o.Port != 0 {
		go o.warnIfNobodyListens(watch)
	}
	return application(o, path, p.cgroup, signals)
}

// patience is how long an application may take to listen before that is worth a line.
const patience = 15 * time.Second

// warnIfNobodyListens says so once.
func (o *Options) warnIfNobodyListens(ctx context.Context) {
	deadline := time.After(patience)
	for {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(o.Port)))
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-deadline:
			o.Log.Warn("nothing listens on the application's port: callers get 503 until something does", "port", o.Port, "waited", patience)
			return
		case <-time.After(250 * time.Millisecond):
		}
	}
}
