package run

import (
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
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
	if err := o.checkUsers(); err != nil {
		return err
	}
	// A reader of our log that goes away must not end us with the rules in force. Not ignored, which children inherit: only
	// not deadly (os/signal, SIGPIPE).
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, ending := endBySignal(ctx)
	// Both processes are told to die with the thread that starts them (PR_SET_PDEATHSIG), so that must not end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := take(&o)
	if err != nil {
		return ending.status(err)
	}
	defer p.leave()
	return ending.status(o.inPlace(ctx, p, path, ending))
}

// inPlace goes on once the name is ours.
func (o *Options) inPlace(ctx context.Context, p *place, path string, ending *ending) error {
	// Before anything is looked up: of the rules of a whole namespace that a crash has left, those for DNS lead nowhere.
	if err := p.clear(o); err != nil {
		return err
	}
	if err := o.address(); err != nil {
		return err
	}
	ports, err := o.hold()
	if err != nil {
		return err
	}
	defer ports.close()
	if err := p.makeCgroup(o); err != nil {
		return err
	}
	defer p.removeCgroup(o)
	lift, apply, err := o.redirection(p)
	if err != nil {
		return err
	}
	// From here on signals are the application's.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, heeded(passedOn)...)
	defer signal.Stop(signals)
	sidecar, err := newProxy(o, p)
	if err != nil {
		return err
	}
	if err := sidecar.start(); err != nil {
		return err
	}
	err = sidecar.ready(ctx)
	switch {
	case ctx.Err() != nil:
		sidecar.kill() // it serves nobody yet, and would only complain of what it could not finish
		return ctx.Err()
	case err != nil:
		sidecar.end()
		return err
	}
	if err := apply(); err != nil {
		sidecar.end()
		return err
	}
	sidecar.redirected()
	defer o.deregister(sidecar) // last: whatever was redirected before, now Consul can be reached
	// Until nothing is left of the application it stays closed in.
	defer func() {
		if err := p.endCgroup(o); err != nil {
			o.Log.Error("the rules stay in force: what is left of the command would talk past them", "error", err)
		} else if err := lift(); err != nil {
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
	if err := ending.over(); err != nil {
		return err
	}
	watch, enough := context.WithCancel(kept)
	defer enough()
	if o.Port != 0 {
		go o.warnIfNobodyListens(watch)
	}
	return application(o, path, p.cgroup, signals)
}

// redirection is how the rules go and come.
func (o *Options) redirection(p *place) (lift, apply func() error, err error) {
	if o.Capture == None {
		nothing := func() error { return nil }
		return nothing, nothing, nil
	}
	dir := ""
	if p.cgroup != nil {
		dir = p.cgroup.dir
	}
	plan, err := redirect.Plan(o.rules(dir))
	if err != nil {
		return nil, nil, err
	}
	rules := plan.Config
	lift = func() error {
		if err := redirect.Cleanup(rules.Name); err != nil {
			return err
		}
		return p.noteRules("")
	}
	apply = func() error {
		// First, so that no crash leaves rules of which nobody knows whose they are.
		if err := p.noteRules(whose(o, &rules)); err != nil {
			return err
		}
		return redirect.Apply(rules)
	}
	return lift, apply, nil
}

// deregister does it for a sidecar that has not: it was down when the command ended, or had to be killed.
func (o *Options) deregister(sidecar *proxy) {
	if o.Consul == "" || sidecar.clean || o.Deregister == nil {
		return
	}
	if err := o.Deregister(instance(o)); err != nil {
		o.Log.Error("the service stays in Consul until its checks have failed for a minute", "id", instance(o), "error", err)
	}
}

// patience is how long an application may take to listen before that is worth a line.
const patience = 15 * time.Second

// warnIfNobodyListens says so once.
func (o *Options) warnIfNobodyListens(ctx context.Context) {
	host := "127.0.0.1"
	if o.InboundMode == redirect.TProxy && o.here {
		host = o.Address.String() // the application listens on the address that its clients dial
	}
	deadline := time.After(patience)
	for {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(o.Port)))
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
