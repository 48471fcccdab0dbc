// Package demo brings up a small shop on this machine: an L4 tier, two edges,
// services with their sidecars, the control plane and, if asked, a real Consul,
// each a process of its own on 127.0.0.1. It owns these processes and a folder
// for the time of Run; the sub-command `sallyport demo` calls it.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Options say what to show. The zero value starts the shop and waits.
type Options struct {
	Check      bool   // walk through by itself instead of waiting
	Consul     bool   // discover by a real Consul instead of a file
	ConsulPath string // of Consul's program; default: the one on the PATH
	// Transparent runs the services by "sallyport run": they call each other by name, and know nothing of a sidecar. Needs root.
	Transparent bool
	Keep        bool   // leave the folder with configuration and logs
	Binary      string // sallyport itself; default: this program
}

// ErrFailed says that a row of the check failed; the rows were printed.
var ErrFailed = errors.New("the demo found something that does not hold")

// shop is the running demo.
type shop struct {
	*plan
	Options
	dir       string
	family    family
	users     *issuer
	collector *collector
	consul    *consulAgent
	plane     *process
	l4        *process
}

// Run starts the shop. Without Check it prints what to try and waits for ctx to
// end; with Check it prints a row for each thing it tried, and returns ErrFailed
// if one did not hold. Nothing is left behind.
func Run(ctx context.Context, o Options, out io.Writer) (err error) {
	begin := time.Now()
	s := &shop{Options: o}
	if s.Binary == "" {
		if s.Binary, err = os.Executable(); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	if o.Transparent && o.Check {
		return errors.New("demo: --transparent has no --check: the walk kills sidecars, which are restarted there")
	}
	if o.Transparent && os.Geteuid() != 0 {
		return errors.New("demo: --transparent must be run as root: it redirects the services' traffic")
	}
	if o.Consul {
		if s.ConsulPath, err = findConsul(o.ConsulPath); err != nil {
			return err
		}
	}
	if s.dir, err = os.MkdirTemp("", "sallyport-demo-"); err != nil { // 0700
		return fmt.Errorf("demo: %w", err)
	}
	if o.Transparent {
		// The sidecars run as a user of their own, and pass through to their folders.
		if err := os.Chmod(s.dir, 0o711); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	defer s.end(out, &err)
	if err := s.start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // interrupted while it started: not a mistake
		}
		return fmt.Errorf("demo: %w", err)
	}
	if o.Check {
		ok := s.check(ctx, out, begin)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("demo: interrupted")
		case !ok:
			return ErrFailed
		}
		return nil
	}
	s.tour(out)
	return s.wait(ctx, out)
}

// end stops the processes and removes the folder.
func (s *shop) end(out io.Writer, err *error) {
	s.family.stop()
	if s.plan != nil {
		s.cleanUp()
		s.ports.close()
	}
	if s.collector != nil {
		s.collector.close()
	}
	if s.Keep {
		fmt.Fprintf(out, "kept: %s\n", s.dir)
		return
	}
	if e := os.RemoveAll(s.dir); e != nil && *err == nil {
		*err = fmt.Errorf("demo: %w", e)
	}
}

// run starts a child.
func (s *shop) run(name string, argv ...string) (*process, error) {
	s.ports.release(argv...)
	p, err := start(s.dir, name, argv...)
	if err == nil {
		s.family.add(p)
	}
	return p, err
}

// start brings everything up and returns when the first request can be answered.
func (s *shop) start(ctx context.Context) (err error) {
	if s.plan, err = newPlan(); err != nil {
		return err
	}
	if s.users, err = newIssuer(); err != nil {
		return err
	}
	if s.collector, err = newCollector("127.0.0.1:0"); err != nil {
		return err
	}
	if err := s.write(s.dir, s.collector.addr, s.users); err != nil {
		return err
	}
	source := []string{"--catalog", filepath.Join(s.dir, "catalog.yaml")}
	if s.Consul {
		if s.consul, err = startConsul(ctx, s.dir, s.ConsulPath, &s.ports); s.consul != nil && s.consul.process != nil {
			s.family.add(s.consul.process)
		}
		if err != nil {
			return err
		}
		if err := s.consul.register(s.catalog); err != nil {
			return err
		}
		source = []string{"--consul", "http://" + s.consul.addr}
	}
	if !s.Transparent {
		for _, in := range s.instances {
			if err := s.startApp(in); err != nil {
				return err
			}
		}
	}
	argv := []string{s.Binary, "control-plane", "--listen", local(s.control), "--status-listen", local(s.status),
		"--policies", filepath.Join(s.dir, "policies"), "--state", filepath.Join(s.dir, "state")}
	if s.plane, err = s.run("control-plane", append(argv, source...)...); err != nil {
		return err
	}
	if err := waitFor(ctx, s.plane, "the control plane", listening(local(s.control))); err != nil {
		return err
	}
	if err := s.startProxies(ctx); err != nil {
		return err
	}
	return s.waitReady(ctx)
}

func (s *shop) startApp(in *instance) (err error) {
	in.process, err = s.run(in.id, append([]string{s.Binary}, in.args(false)...)...)
	return err
}

// startProxies starts the sidecars, the edges and the L4 tier.
func (s *shop) startProxies(ctx context.Context) (err error) {
	for _, in := range s.instances {
		if s.Transparent {
			if err := s.startBoth(ctx, in); err != nil {
				return err
			}
			continue
		}
		args := []string{"sidecar", "--service", in.service, "--port", strconv.Itoa(in.app), "--listen", local(in.mesh)}
		for _, service := range sortedNames(in.upstreams) {
			args = append(args, "--upstream", fmt.Sprintf("%s:%d", service, in.upstreams[service]))
		}
		if in.sidecar, err = s.proxy(ctx, identity{"service", in.service}, in.id, in.admin, args...); err != nil {
			return err
		}
	}
	for _, e := range s.edges {
		if e.process, err = s.proxy(ctx, identity{"gateway", gateway}, e.id, e.admin, "edge", "--gateway", gateway, "--listen", local(e.port)); err != nil {
			return err
		}
	}
	s.l4, err = s.proxy(ctx, identity{"gateway", gateway}, "l4", s.l4Admin, "l4", "--gateway", gateway, "--listen", local(s.public))
	return err
}

// startBoth starts a service by "sallyport run", with a sidecar of which it knows nothing.
func (s *shop) startBoth(ctx context.Context, in *instance) error {
	token, err := s.token(ctx, identity{"service", in.service}, in.id)
	if err != nil {
		return err
	}
	argv := []string{s.Binary, "run", "--service", in.service, "--name", in.id, "--port", strconv.Itoa(in.app), "--inbound-port", strconv.Itoa(in.mesh),
		"--address", "127.0.0.1", "--control-plane", local(s.control), "--token", token, "--admin", local(in.admin), "--concurrency", "1",
		"--drain-timeout", "0s", "--state", filepath.Join(s.dir, "run"), "--", s.Binary}
	if in.process, err = s.run(in.id, append(argv, in.args(true)...)...); err != nil {
		return err
	}
	in.sidecar = in.process
	return nil
}

// cleanUp removes the rules of services that had to be killed.
func (s *shop) cleanUp() {
	if !s.Transparent {
		return
	}
	for _, in := range s.instances {
		if in.process != nil {
			_ = exec.Command(s.Binary, "redirect", "cleanup", "--name", in.id).Run() // there are none where run has ended by itself
		}
	}
}

// identity is whose a join token is to be: kind is service or gateway.
type identity struct{ kind, name string }

// token makes a join token: each can be used once.
func (s *shop) token(ctx context.Context, of identity, id string) (string, error) {
	create := exec.CommandContext(ctx, s.Binary, "token", "create", "--"+of.kind, of.name, "--state", filepath.Join(s.dir, "state"))
	var complaint strings.Builder
	create.Stderr = &complaint
	token, err := create.Output()
	if err != nil {
		return "", fmt.Errorf("token for %s: %w: %s", id, err, strings.TrimSpace(complaint.String()))
	}
	return strings.TrimSpace(string(token)), nil
}

// proxy starts a proxy with a join token of its own.
func (s *shop) proxy(ctx context.Context, of identity, id string, admin int, args ...string) (*process, error) {
	token, err := s.token(ctx, of, id)
	if err != nil {
		return nil, err
	}
	argv := append([]string{s.Binary}, args...)
	argv = append(argv, "--control-plane", local(s.control), "--token", token, "--instance", id,
		"--admin", local(admin), "--concurrency", "1", "--drain-time-s", "0")
	return s.run(id+"-"+args[0], argv...)
}

// waitReady waits for each process to say that it is, and then for a request
// to come through from one end to the other.
func (s *shop) waitReady(ctx context.Context) error {
	for _, in := range s.instances {
		if err := waitFor(ctx, in.process, in.id, ready("http://"+local(in.app)+"/healthz")); err != nil {
			return err
		}
		if err := waitFor(ctx, in.sidecar, "the sidecar of "+in.id, ready("http://"+local(in.admin)+"/ready")); err != nil {
			return err
		}
	}
	for _, e := range s.edges {
		if err := waitFor(ctx, e.process, "the edge "+e.id, ready("http://"+local(e.admin)+"/ready")); err != nil {
			return err
		}
	}
	if err := waitFor(ctx, s.l4, "the L4 tier", ready("http://"+local(s.l4Admin)+"/ready")); err != nil {
		return err
	}
	if err := s.waitComplete(ctx); err != nil {
		return err
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	defer c.close()
	return waitFor(ctx, nil, "a request through all hops", func() error {
		_, err := c.ok(ctx, "/checkout/pay")
		return err
	})
}

// waitComplete waits until each proxy that is asked from outside, the L4 tier
// and the edges, knows every instance that it shall and finds it healthy: an
// instance whose first health check came before it listened is out until the second.
func (s *shop) waitComplete(ctx context.Context) error {
	if err := s.waitMembers(ctx, s.l4, s.l4Admin, tierCluster, len(s.edges)); err != nil {
		return err
	}
	for _, e := range s.edges {
		for cluster, want := range map[string]int{
			"default/storefront":       len(s.of("storefront", "")),
			"default/orders~orders-v1": len(s.of("orders", "v1")),
			"default/orders~orders-v2": len(s.of("orders", "v2")),
		} {
			if err := s.waitMembers(ctx, e.process, e.admin, cluster, want); err != nil {
				return err
			}
		}
	}
	return nil
}

// tierCluster begins the name of the cluster of edges in the L4 tier.
const tierCluster = "l4/"

// waitMembers waits until a cluster of a proxy has that many healthy members.
func (s *shop) waitMembers(ctx context.Context, p *process, admin int, cluster string, want int) error {
	return waitFor(ctx, p, "the instances of "+cluster, func() error {
		n, err := counter(ctx, admin, membersHealthy, `envoy_cluster_name="`+cluster)
		if err == nil && int(n) != want {
			err = fmt.Errorf("%s finds %.0f healthy; want %d", p.name, n, want)
		}
		return err
	})
}

// wait returns when ctx ends, and says if a process ends before that.
func (s *shop) wait(ctx context.Context, out io.Writer) error {
	told := map[*process]bool{}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			for _, p := range s.family.all() {
				if !p.alive() && !told[p] {
					told[p] = true
					fmt.Fprintf(out, "%s ended (%v); its log: %s\n", p.name, p.err, p.log)
				}
			}
		}
	}
}
