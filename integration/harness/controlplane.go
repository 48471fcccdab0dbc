package harness

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ControlPlane is sallyport control-plane, before and after Run. Its address and state survive a restart.
type ControlPlane struct {
	*Process

	t        testing.TB
	args     []string
	dir      string
	catalog  string // path, or empty with Consul
	policies string
	state    string
	addr     string
	status   string // of --status-listen, "" where nobody asked for it
	env      []string
	host     *Host // nil: the machine itself
}

// NewControlPlane builds a control plane with empty policies.
func NewControlPlane(t testing.TB) *ControlPlane {
	t.Helper()
	dir := t.TempDir()
	c := &ControlPlane{t: t, dir: dir, policies: filepath.Join(dir, "policies"), state: filepath.Join(dir, "state"), addr: FreeAddr(t)}
	for _, d := range []string{c.policies, c.state} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// On has the control plane run on a host of a test network, open to the others.
func (c *ControlPlane) On(h *Host) *ControlPlane {
	c.host, c.addr = h, net.JoinHostPort(h.IPv4.String(), "15010")
	return c
}

// Consul has the catalog read from an agent.
func (c *ControlPlane) Consul(agent *ConsulAgent) *ControlPlane {
	return c.Args("--consul", agent.URL())
}

// Catalog writes the catalog file, before the start or while the control plane runs.
func (c *ControlPlane) Catalog(yaml string) *ControlPlane {
	c.t.Helper()
	if c.catalog == "" {
		c.catalog = filepath.Join(c.dir, "catalog.yaml")
		c.Args("--catalog", c.catalog)
	}
	c.write(c.catalog, yaml)
	return c
}

// Policy writes a file of the policy folder, before the start or while the control plane runs.
func (c *ControlPlane) Policy(file, yaml string) *ControlPlane {
	c.t.Helper()
	c.write(filepath.Join(c.policies, file), yaml)
	return c
}

// write replaces the file in one step, as an editor or a config map does, so that no half of it is ever read.
func (c *ControlPlane) write(path, text string) {
	c.t.Helper()
	// The new file is made in c.dir: the policy folder's watcher must not see it before it is whole.
	next := filepath.Join(c.dir, ".next")
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		c.t.Fatal(err)
	}
}

// RemovePolicy deletes a file of the policy folder.
func (c *ControlPlane) RemovePolicy(file string) {
	c.t.Helper()
	if err := os.Remove(filepath.Join(c.policies, file)); err != nil {
		c.t.Fatal(err)
	}
}

// Args appends to the command line.
func (c *ControlPlane) Args(args ...string) *ControlPlane {
	c.args = append(c.args, args...)
	return c
}

// Env appends to the environment, NAME=VALUE.
func (c *ControlPlane) Env(env ...string) *ControlPlane {
	c.env = append(c.env, env...)
	return c
}

// Status has the control plane say how it is: see Says.
func (c *ControlPlane) Status() *ControlPlane {
	c.status = FreeAddr(c.t)
	return c.Args("--status-listen", c.status)
}

// Says is what sallyport status prints.
func (c *ControlPlane) Says() string {
	c.t.Helper()
	return Run(c.t, "status", "--address", c.status).Stdout
}

// Run starts the control plane and waits until it accepts connections.
func (c *ControlPlane) Run() *ControlPlane {
	c.t.Helper()
	args := append([]string{"control-plane", "--policies", c.policies, "--listen", c.addr, "--state", c.state}, c.args...)
	command, dial := Command{Name: "control-plane", Path: Binary(c.t), Args: args, Env: c.env}, net.Dial
	if c.host != nil {
		c.Process, dial = c.host.Start(command), c.host.Dial
	} else {
		c.Process = command.Start(c.t)
	}
	c.WaitFor("open port", func() error {
		conn, err := dial("tcp", c.addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return c
}

// Restart starts it again after Kill or Stop, at the same address with the same state.
func (c *ControlPlane) Restart() { c.t.Helper(); c.Run() }

// Addr is where it serves xDS; StateDir and PolicyDir are its folders.
func (c *ControlPlane) Addr() string { return c.addr }

// StateDir is the folder of --state.
func (c *ControlPlane) StateDir() string { return c.state }

// PolicyDir is the folder of --policies.
func (c *ControlPlane) PolicyDir() string { return c.policies }

// Token makes a join token by sallyport token create, with the given arguments besides --state.
func (c *ControlPlane) Token(args ...string) string {
	c.t.Helper()
	out := Run(c.t, append([]string{"token", "create", "--state", c.state}, args...)...)
	token := strings.TrimSpace(out.Stdout)
	if out.Code != 0 || token == "" {
		c.t.Fatalf("token create: exit %d\n%s%s", out.Code, out.Stdout, out.Stderr)
	}
	return token
}
