package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
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
	endGrace     = 5 * time.Second  // beyond the drain time, before SIGKILL
)

// proxy is the sidecar's process, and the next one when it dies.
type proxy struct {
	o    *Options
	args []string
	url  string // of its readiness
	cmd  *exec.Cmd
	done chan error // gets what Wait says
}

func newProxy(o *Options, p *place) (*proxy, error) {
	r := &o.Redirect
	args := []string{"sidecar", "--service", o.Service, "--port", strconv.Itoa(o.Port), "--control-plane", o.ControlPlane, "--transparent",
		"--outbound-port", num(r.OutboundPort), "--inbound-port", num(r.InboundPort), "--dns-port", num(r.DNSPort),
		"--admin", o.Admin, "--health-address", netip.AddrPortFrom(o.Address, r.HealthPort).String(),
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
	if o.Token != "" {
		file := filepath.Join(p.dir, "token")
		if err := writeToken(file, o.Token, int(o.SidecarUID)); err != nil {
			return nil, err
		}
		args = append(args, "--token-file", file)
	}
	args = append(append(args, o.Join...), o.Extra...)
	return &proxy{o: o, args: args, url: "http://" + net.JoinHostPort(o.Address.String(), num(r.HealthPort)) + "/healthz/ready"}, nil
}

// writeToken makes the file anew, in a folder that belongs to another user: what that may have put there in its place, a
// link to a file of root's say, is not written to.
func writeToken(path, token string, uid int) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(token)
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
	p.cmd = exec.Command(p.o.Executable, p.args...)
	p.cmd.Args[0] = "sallyport"
	p.cmd.Stdout, p.cmd.Stderr = p.o.Stderr, p.o.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if uid := p.o.SidecarUID; uint32(os.Geteuid()) != uid {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{}}
		if p.o.InboundMode == redirect.TProxy {
			p.cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN}
		}
	}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("the sidecar cannot be started: %w", err)
	}
	p.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(p.cmd, p.done)
	return nil
}

// ready waits until the sidecar serves. An error is for people: it says what it waits for.
func (p *proxy) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.o.Wait)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	last := "it does not listen yet"
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
		if err != nil {
			return err
		}
		if a, err := client.Do(r); err == nil {
			text, _ := io.ReadAll(io.LimitReader(a.Body, 1024))
			a.Body.Close()
			if a.StatusCode == http.StatusOK {
				return nil
			}
			last = strings.TrimSpace(string(text))
		}
		select {
		case err := <-p.done:
			p.done <- err
			return fmt.Errorf("the sidecar ended (%s): its own lines above say why", status(err))
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("the sidecar was not ready within %v (%s): is the control plane %s up, and may this host join? --wait gives it longer", p.o.Wait, last, p.o.ControlPlane)
			}
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// end has the sidecar deregister and drain.
func (p *proxy) end() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(p.o.Drain + endGrace):
		p.o.Log.Warn("the sidecar does not end and is killed")
		_ = p.cmd.Process.Kill()
		<-p.done
	}
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
				_ = p.cmd.Process.Kill()
			}
			continue
		}
		p.o.Log.Info("the sidecar is back")
		if p.o.FailOpen {
			if err := closed(); err != nil {
				p.o.Log.Error("the application's traffic is not redirected", "error", err)
			}
		}
	}
}

// status is how a process ended, in words.
func status(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}
