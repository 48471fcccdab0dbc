package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/injector/redirect"
)

const (
	firstRestart = 100 * time.Millisecond
	lastRestart  = 5 * time.Second
	steady       = 10 * time.Second // who lived that long starts again at once
	endGrace     = 10 * time.Second // beyond the drain time, before SIGKILL: two deregistrations may take 6 s
)

// consulToken is the variable in which the agent's token is handed down.
const consulToken = "CONSUL_HTTP_TOKEN"

// proxy is the sidecar's process, and the next one when it dies.
type proxy struct {
	o     *Options
	dir   string // its own, of the identity
	args  []string
	cmd   *exec.Cmd
	line  *line
	done  chan error // gets what Wait says
	clean bool       // it ended as it was asked to, and so has deregistered
}

func newProxy(o *Options, p *place) (*proxy, error) {
	r := &o.Redirect
	args := []string{"sidecar", "--service", o.Service, "--port", strconv.Itoa(o.Port), "--control-plane", o.ControlPlane, "--transparent",
		"--outbound-port", num(r.OutboundPort), "--inbound-port", num(r.InboundPort), "--dns-port", num(r.DNSPort),
		"--admin", o.Admin, "--health-address", o.healthAddress(), "--by-run",
		"--instance", instance(o), "--identity-dir", p.dir, "--identity-timeout", o.Wait.String(), "--drain-time-s", strconv.Itoa(int(o.Drain.Seconds()))}
	if o.Namespace != "" {
		args = append(args, "--namespace", o.Namespace)
	}
	if o.InboundMode == redirect.TProxy {
		args = append(args, "--inbound-mode", "tproxy")
	}
	if o.LogLevel != "" {
		args = append(args, "--log-level", o.LogLevel)
	}
	if o.Consul != "" {
		args = append(args, "--consul", o.Consul, "--listen", netip.AddrPortFrom(o.Address, r.InboundPort).String())
		if o.Check != "tcp" {
			args = append(args, "--health", o.Check)
		}
	}
	if o.Token != "" || o.TokenFile != "" {
		args = append(args, "--token-file", filepath.Join(p.dir, tokenFile))
	}
	if o.BundleFile != "" {
		args = append(args, "--ca-bundle", filepath.Join(p.dir, bundleFile))
	}
	args = append(append(args, o.Join...), o.Extra...)
	return &proxy{o: o, dir: p.dir, args: args}, nil
}

// healthAddress is where the sidecar says how it is. An address that this host does not have, behind NAT, cannot be
// listened at.
func (o *Options) healthAddress() string {
	if o.here {
		return netip.AddrPortFrom(o.Address, o.Redirect.HealthPort).String()
	}
	return ":" + num(o.Redirect.HealthPort)
}

// What the sidecar is given to read in its folder.
const (
	tokenFile  = "token"
	bundleFile = "bundle.pem"
)

// maxGiven bounds a file that is copied.
const maxGiven = 1 << 20

// give writes the files that the sidecar reads and its user may not: anew for each start, because they may have changed.
func (p *proxy) give() error {
	err := p.copy("--token-file", p.o.TokenFile, tokenFile)
	if p.o.Token != "" {
		err = writeFor(filepath.Join(p.dir, tokenFile), p.o.Token, int(p.o.SidecarUID))
	}
	return errors.Join(err, p.copy("--ca-bundle", p.o.BundleFile, bundleFile))
}

func (p *proxy) copy(flag, from, to string) error {
	if from == "" {
		return nil
	}
	f, err := os.Open(from)
	if known, _ := os.ReadDir(p.dir); errors.Is(err, fs.ErrNotExist) && len(known) > 0 {
		return nil // used and thrown away: what it was for is here
	}
	if err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxGiven))
	if err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	return writeFor(filepath.Join(p.dir, to), string(text), int(p.o.SidecarUID))
}

// writeFor makes the file anew, in a folder that belongs to another user: what that may have put there in its place, a
// link to a file of root's say, is not written to.
func writeFor(path, text string, uid int) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Chown(uid, uid), f.Close())
}

func num(p uint16) string { return strconv.Itoa(int(p)) }

// instance names the instance in Consul and to the control plane: the same after a restart, another on another host.
func instance(o *Options) string {
	host, _ := os.Hostname()
	return o.Name + "-" + host
}

// start starts the process, as a user that may do nothing, in a process group that the terminal does not interrupt.
func (p *proxy) start() error {
	if err := p.give(); err != nil {
		return err
	}
	line, ends, err := newLine()
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range ends {
			f.Close()
		}
	}()
	if p.line != nil {
		p.line.end()
	}
	p.line, p.clean = line, false
	p.cmd = exec.Command(p.o.Executable, p.args...)
	p.cmd.Args[0], p.cmd.Env, p.cmd.ExtraFiles = "sallyport", sidecarEnv(os.Environ()), ends
	p.cmd.Stdout, p.cmd.Stderr = p.o.Stderr, p.o.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if uid := p.o.SidecarUID; uint32(os.Geteuid()) != uid {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{}}
		p.cmd.SysProcAttr.AmbientCaps = p.o.capabilities()
	}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("the sidecar cannot be started: %w", err)
	}
	p.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(p.cmd, p.done)
	return nil
}

// capabilities are what the sidecar's user lacks for what it was asked for; usually none.
func (o *Options) capabilities() (caps []uintptr) {
	if o.InboundMode == redirect.TProxy {
		caps = append(caps, unix.CAP_NET_ADMIN)
	}
	if slices.ContainsFunc(o.uses(), func(u use) bool { return *u.port < 1024 }) {
		caps = append(caps, unix.CAP_NET_BIND_SERVICE)
	}
	return caps
}

// sidecarEnv is what the sidecar needs of our environment. The rest is the application's: a proxy or a preloaded library
// meant for that, say.
func sidecarEnv(all []string) (out []string) {
	for _, v := range all {
		name, _, _ := strings.Cut(v, "=")
		if slices.Contains([]string{"PATH", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "GOMAXPROCS", "GOMEMLIMIT", "GOGC", "GODEBUG", "GOTRACEBACK", "GORACE"}, name) ||
			slices.ContainsFunc([]string{"OTEL_", "CONSUL_", "SALLYPORT_"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			out = append(out, v)
		}
	}
	return out
}

// ready waits until the sidecar says that it serves. An error is for people: it says what it waits for.
func (p *proxy) ready(ctx context.Context) error {
	late := time.NewTimer(p.o.Wait)
	defer late.Stop()
	select {
	case <-p.line.ready:
		return nil
	case err := <-p.done:
		p.done <- err
		return fmt.Errorf("the sidecar ended (%s): its own lines above say why", status(err))
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return fmt.Errorf("the sidecar was not ready within %v (%s): is the control plane %s up, and may this host join? --wait gives it longer",
			p.o.Wait, p.line.waitsFor(), p.o.ControlPlane)
	}
}

// redirected has the sidecar register the service.
func (p *proxy) redirected() { p.line.redirected() }

// end has the sidecar deregister and drain.
func (p *proxy) end() {
	p.line.end()
	select {
	case err := <-p.done:
		p.clean = err == nil
	case <-time.After(p.o.Drain + endGrace):
		p.o.Log.Warn("the sidecar does not end and is killed")
		p.kill()
	}
}

// kill is for a sidecar that cannot be waited for.
func (p *proxy) kill() {
	_ = p.cmd.Process.Kill()
	p.done <- <-p.done
}

// keep restarts the sidecar whenever it dies, until ctx ends, and then ends it. While it is down the rules stay, and
// the application's connections are refused; with FailOpen they are lifted meanwhile.
func (p *proxy) keep(ctx context.Context, open, closed func() error) {
	wait, started := firstRestart, time.Now()
	for {
		select {
		case <-ctx.Done():
			p.end()
			return
		case err := <-p.done:
			p.o.Log.Error("the sidecar died", "status", status(err), "again_in", wait)
		}
		if p.o.FailOpen {
			if err := open(); err != nil {
				p.o.Log.Error("redirection cannot be lifted; connections stay closed", "error", err)
			}
		}
		if time.Since(started) > steady {
			wait = firstRestart
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait, started = min(2*wait, lastRestart), time.Now()
		if err := p.start(); err != nil {
			p.o.Log.Error("restart failed", "error", err)
			p.done = make(chan error, 1)
			p.done <- err
			continue
		}
		if err := p.ready(ctx); err != nil {
			if ctx.Err() == nil {
				p.o.Log.Error("the restarted sidecar is not ready", "error", err)
				p.kill()
			}
			continue
		}
		if p.o.FailOpen {
			if err := closed(); err != nil {
				p.o.Log.Error("the application's traffic is not redirected", "error", err)
			}
		}
		p.redirected()
		p.o.Log.Info("the sidecar is back")
	}
}

// status is how a process ended, in words.
func status(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}
