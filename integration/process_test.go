package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/integration/harness"
)

// denying is small.yaml with a second listener that denies every connection, and says so in the log.
func denying(t *testing.T) string {
	return strings.Replace(small(t), "static_resources:\n  listeners:\n", `static_resources:
  listeners:
  - name: denied
    address: {socket_address: {address: 127.0.0.1, port_value: ${listen.denied}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.rbac
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC
          stat_prefix: denied
          rules: {action: ALLOW}
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: denied
          cluster: one
`, 1)
}

// fullPipe is a pipe that nobody reads and that takes nothing more.
func fullPipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	c, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = c.Write(func(fd uintptr) bool {
		for {
			switch _, err := syscall.Write(int(fd), make([]byte, 4096)); {
			case errors.Is(err, syscall.EAGAIN):
				return true
			case err != nil:
				t.Error(err)
				return true
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Fd() // blocking again, as a process finds its standard error
	return w
}

func TestALogThatNobodyReadsStopsNothing(t *testing.T) {
	one := harness.NewBackend(t, "one").HTTP1()
	p := harness.NewSidecar(t).Bootstrap(denying(t)).Backend("one", one).Args("--concurrency", "1").Stderr(fullPipe(t)).Run()
	for range 3 {
		// A line of the log, by the only worker.
		harness.Dial(t, p.Addr("denied"), nil).Send("x").WaitClosed(10 * time.Second)
		if m := harness.Get(t, p.Addr("http"), "/"); m.Status() != 200 {
			t.Errorf("%s", m.String())
		}
	}
	if code := p.Stop(20 * time.Second); code != 0 {
		t.Errorf("SIGTERM: exit %d", code)
	}
}

// hangUp sends the signals that end no service, and waits until its log has an answer to each.
func hangUp(t *testing.T, p *harness.Process) {
	t.Helper()
	for s, text := range map[syscall.Signal]string{syscall.SIGHUP: "signal=hangup", syscall.SIGUSR1: `signal="user defined signal 1"`} {
		p.Signal(s)
		p.WaitLog(text)
	}
	if code := p.Stop(20 * time.Second); code != 0 {
		t.Errorf("SIGTERM: exit %d", code)
	}
}

func TestATerminalThatGoesAwayEndsNoService(t *testing.T) {
	// Where this test itself runs under nohup, its children would ignore the signal: what is caught here is not ignored there.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	defer signal.Stop(caught)
	t.Run("sidecar", func(t *testing.T) {
		one := harness.NewBackend(t, "one").HTTP1()
		hangUp(t, harness.NewSidecar(t).Bootstrap(small(t)).Backend("one", one).Run().Process)
	})
	t.Run("edge and control plane", func(t *testing.T) {
		c := harness.NewControlPlane(t).Catalog("services: []\n").Run()
		edge := harness.NewEdge(t).Gateway("public").ControlPlane(c.Addr(), c.Token("--gateway", "public")).Start()
		edge.WaitLog("identity renewed") // before that it may not even have begun
		hangUp(t, edge.Process)
		hangUp(t, c.Process)
	})
}

func TestAccessLogIsRotatedAsEnvoys(t *testing.T) {
	both(t, func(t *testing.T, o observed) {
		old := o.log + ".1"
		if err := os.Rename(o.log, old); err != nil {
			t.Fatal(err)
		}
		o.Signal(syscall.SIGUSR1)
		harness.Eventually(t, 20*time.Second, "a line in the new file", func() error {
			harness.Get(t, o.Addr("http"), "/plain")
			text, err := os.ReadFile(o.log)
			if err == nil && len(text) == 0 {
				err = errors.New("it is empty")
			}
			return err
		})
	})
}

// lone builds the sidecar of the only service in a mesh.
func lone(t *testing.T, args ...string) (*harness.ControlPlane, *harness.ProxyBuilder) {
	t.Helper()
	app := harness.NewBackend(t, "orders").HTTP1()
	b := harness.NewSidecar(t).Service("orders", app.Port())
	c := harness.NewControlPlane(t).Args("--status-listen", "-").Args(args...)
	c.Catalog(fmt.Sprintf("services:\n- name: orders\n  instances: [{address: 127.0.0.1, port: %d, sidecar: {port: %s}}]\n", app.Port(), port(t, b.Address("mesh")))).Run()
	return c, b.ControlPlane(c.Addr(), c.Token("--service", "orders"))
}

// notReady waits until /ready answers 503 with that text.
func notReady(p *harness.Proxy, why string) {
	p.WaitFor("refusal of /ready: "+why, func() error {
		code, body, err := p.Page("/ready")
		if err == nil && (code != 503 || !strings.Contains(body, why)) {
			err = fmt.Errorf("%d %s", code, body)
		}
		return err
	})
}

func TestASidecarWithoutItsPortIsNotReadyUntilItHasIt(t *testing.T) {
	_, b := lone(t)
	taken, err := net.Listen("tcp", b.Address("mesh"))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p := b.Start()
	notReady(p, b.Address("mesh")+" is in use by another process")
	taken.Close()
	p.WaitReady()
}

func TestASidecarWhoseIdentityExpiredIsNotReady(t *testing.T) {
	c, b := lone(t, "--svid-ttl", "3s")
	p := b.Run()
	c.Kill()
	notReady(p, "identity has expired")
	if !p.Running() {
		t.Error("it has ended")
	}
}
