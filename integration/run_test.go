package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/integration/harness"
)

// relay is an application on a port, or IP:PORT, that asks for the URL that it is asked for, and says what it got.
var relay = harness.Program("relay", func(args []string) int {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	at := args[0]
	if !strings.Contains(at, ":") {
		at = ":" + at
	}
	s := &http.Server{Addr: at, ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, err := client.Get(r.FormValue("to"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer a.Body.Close()
		w.WriteHeader(a.StatusCode)
		_, _ = io.Copy(w, a.Body)
	})}
	fmt.Println(s.ListenAndServe())
	return 1
})

// workshop is one machine on which services are started by sallyport run, a hub with Consul and the control plane, and
// another host without a mesh.
type workshop struct {
	t                   *testing.T
	hub, machine, other *harness.Host
	consul              *harness.ConsulAgent
	control             *harness.ControlPlane
	state               string
	before              string
}

func newWorkshop(t *testing.T) *workshop {
	t.Helper()
	for _, tool := range []string{"nft", "ip", "setpriv", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			harness.NotRun(t, tool+" is not installed (Debian: nftables iproute2 util-linux curl)")
		}
	}
	harness.Need(t, harness.Consul)
	lan := harness.NewNetwork(t)
	w := &workshop{t: t, hub: lan.Host("hub"), machine: lan.Host("machine"), other: lan.Host("other"), state: t.TempDir()}
	// Also the folders above it are the sidecar's to pass through.
	if err := errors.Join(os.Chmod(w.state, 0o755), os.Chmod(filepath.Dir(w.state), 0o755)); err != nil {
		t.Fatal(err)
	}
	w.machine.ResolvConf("nameserver " + w.hub.IPv4.String() + "\noptions timeout:1 attempts:2\n")
	w.consul = harness.NewConsul(t).On(w.hub).Run()
	w.consul.Intend("*", "*", true)
	w.control = harness.NewControlPlane(t).On(w.hub).Consul(w.consul).Run()
	w.before = network(t, w.machine)
	return w
}

// args is a command line of sallyport run.
func (w *workshop) args(service string, flags []string, command harness.Command) harness.Command {
	w.t.Helper()
	args := []string{"run", "--service", service, "--control-plane", w.control.Addr(), "--consul", w.consul.URL(), "--state", w.state, "-l", "info",
		"--name", fmt.Sprintf("test%d-%s", os.Getpid(), service), "--drain-timeout", "1s", "--wait", "8s"}
	args = append(append(append(args, flags...), "--", command.Path), command.Args...)
	return harness.Command{Name: "run " + service, Path: harness.Binary(w.t), Args: args, Env: command.Env}
}

func (w *workshop) token(service string) []string {
	w.t.Helper()
	return []string{"--token", w.control.Token("--service", service)}
}

func (w *workshop) start(service string, port int, command harness.Command, flags ...string) *harness.Process {
	w.t.Helper()
	flags = append(flags, "--port", strconv.Itoa(port))
	return w.machine.Start(w.args(service, flags, command))
}

// asks has the relay ask for a URL.
func (w *workshop) asks(target, want string) error {
	w.t.Helper()
	r, err := w.machine.HTTPClient().Get("http://" + w.machine.IPv4.String() + ":8000/?to=" + url.QueryEscape(target))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if got := fmt.Sprintf("%d %s", r.StatusCode, b); !strings.Contains(got, want) {
		return fmt.Errorf("%s: %q, want %q", target, got, want)
	}
	return nil
}

func (w *workshop) eventually(what string, check func() error) {
	w.t.Helper()
	harness.Eventually(w.t, 20*time.Second, what, check)
}

// registered are the instances that Consul takes for healthy.
func (w *workshop) registered(service string, want int) error {
	w.t.Helper()
	list, _, err := w.consul.Client.Health().Service(service, "", true, nil)
	if err == nil && len(list) != want {
		err = fmt.Errorf("%d healthy instances of %s, want %d", len(list), service, want)
	}
	return err
}

func (w *workshop) asBefore() {
	w.t.Helper()
	asBefore(w.t, w.machine, w.before)
}

// sidecarOf is the process id of a run's sidecar.
func sidecarOf(t *testing.T, p *harness.Process) int {
	t.Helper()
	var found int
	harness.Eventually(t, 10*time.Second, "a sidecar", func() error {
		dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, file := range dirs {
			line, err := os.ReadFile(file)
			if err != nil || !strings.HasPrefix(string(line), "sallyport\x00sidecar\x00") {
				continue
			}
			stat, err := os.ReadFile(filepath.Join(filepath.Dir(file), "stat"))
			if err != nil {
				continue
			}
			var ppid int
			_, after, _ := strings.Cut(string(stat), ") ")
			if _, err := fmt.Sscanf(after[2:], "%d", &ppid); err == nil && ppid == p.Pid() {
				found, err = strconv.Atoi(filepath.Base(filepath.Dir(file)))
				return err
			}
		}
		return errors.New("none")
	})
	return found
}

// TestRunTwoServicesOnOneMachine: each with its own sidecar, without namespaces, and both unaware of it.
func TestRunTwoServicesOnOneMachine(t *testing.T) {
	w := newWorkshop(t)
	plain := w.other.Listen("tcp", ":8080", nil)
	go func() {
		_ = http.Serve(plain, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, public) }))
	}()
	orders := w.start("orders", 8080, shopkeeper("orders", "8080", secret), append(w.token("orders"), "--check", "/")...)
	front := w.start("storefront", 8000, relay("8000"), append(w.token("storefront"), "--fail-open")...)
	w.eventually("both are healthy in Consul", func() error { return errors.Join(w.registered("orders", 1), w.registered("storefront", 1)) })
	own := w.machine.IPv4.String()
	greeting := "200 orders says " + secret
	for _, target := range []string{"http://orders:8080/", "http://orders.service.consul:8080/", "http://" + own + ":8080/"} {
		w.eventually("calls arrive", func() error { return w.asks(target, greeting) })
		if err := w.asks(target, "/ns/default/svc/storefront"); err != nil {
			t.Errorf("the call did not cross both sidecars: %v", err)
		}
	}
	if err := w.asks("http://"+w.other.IPv4.String()+":8080/", "200 "+public); err != nil {
		t.Error(err)
	}
	// From another host only the mesh comes in.
	if out := w.other.Run("curl", "-sS", "-m", "5", "http://"+own+":8080/"); out.Code == 0 {
		t.Errorf("plaintext from outside was let in: %q", out.Stdout)
	}
	// Who is in no cgroup of ours is not touched.
	if out := w.machine.Must("curl", "-sS", "-m", "5", "http://"+own+":8080/"); strings.Contains(out, "spiffe") {
		t.Errorf("a process that was not started by run crossed a sidecar: %q", out)
	}

	t.Run("the callee's sidecar dies and comes back", func(t *testing.T) {
		if err := syscall.Kill(sidecarOf(t, orders), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		orders.WaitLog("the sidecar died")
		orders.WaitLog("the sidecar is back")
		w.eventually("healed", func() error { return w.asks("http://orders:8080/", greeting) })
	})
	t.Run("the caller's sidecar dies", func(t *testing.T) {
		w.control.Kill() // so that no sidecar becomes ready meanwhile
		if err := syscall.Kill(sidecarOf(t, orders), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		orders.WaitLog("the restarted sidecar is not ready")
		if out := w.other.Run("curl", "-sS", "-m", "5", "http://"+own+":8080/"); out.Code == 0 {
			t.Errorf("without its sidecar the service is open: %q", out.Stdout)
		}
		if err := syscall.Kill(sidecarOf(t, front), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.eventually("it fails open, as it was told to", func() error {
			return w.asks("http://"+w.other.IPv4.String()+":8080/", "200 "+public)
		})
		w.control.Restart()
		w.eventually("healed", func() error { return w.asks("http://orders:8080/", greeting) })
	})
	t.Run("killed itself, and started again", func(t *testing.T) {
		orders.Kill()
		orders.WaitExit(10 * time.Second)
		again := w.start("orders", 8080, shopkeeper("orders", "8080", secret), "--check", "/") // no token: the identity was kept
		again.WaitLog("registered in Consul")
		w.eventually("calls arrive", func() error { return w.asks("http://orders:8080/", greeting) })
		if out := w.machine.Run(harness.Binary(t), w.args("orders", []string{"--port", "8080"}, harness.Command{Path: "true"}).Args...); out.Code != 1 || !strings.Contains(out.Stderr, "running already") {
			t.Errorf("a second one of the same name: exit code %d, %q", out.Code, out.Stderr)
		}
		again.Signal(syscall.SIGTERM)
		if code := again.WaitExit(20 * time.Second); code != 143 {
			t.Errorf("ended by SIGTERM the command makes the exit code %d, want 143", code)
		}
	})
	front.Signal(syscall.SIGTERM)
	if code := front.WaitExit(20 * time.Second); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
	for _, service := range []string{"orders", "storefront"} {
		list, _, err := w.consul.Client.Catalog().Service(service, "", nil)
		if err != nil || len(list) != 0 {
			t.Errorf("Consul still holds %d instances of %s, %v", len(list), service, err)
		}
	}
	w.asBefore()
}

// TestRunEndsAsTheCommandEnds, so that jobs end.
func TestRunEndsAsTheCommandEnds(t *testing.T) {
	w := newWorkshop(t)
	sh := func(script string) harness.Command { return harness.Command{Path: "sh", Args: []string{"-c", script}} }
	flags := w.token("batch") // taken once: the identity is kept
	job := func(flags []string, c harness.Command) harness.Command {
		c = w.args("batch", flags, c)
		for i, a := range c.Args {
			if a == "--consul" { // what only calls is not registered
				c.Args = append(c.Args[:i:i], c.Args[i+2:]...)
				break
			}
		}
		return c
	}
	for _, c := range []struct {
		script string
		want   int
	}{{"exit 0", 0}, {"exit 3", 3}, {"kill -KILL $$", 137}, {`test "$(cat)" = input`, 1}} {
		p := w.machine.Start(job(flags, sh(c.script)))
		if code := p.WaitExit(60 * time.Second); code != c.want {
			t.Errorf("%q: exit code %d, want %d", c.script, code, c.want)
		}
		flags = nil
	}
	w.asBefore()

	p := w.machine.Start(job(nil, sh(`trap 'exit 7' USR1; trap 'exit 8' HUP; echo started; while :; do sleep 0.05; done`)))
	p.WaitLog("started")
	p.Signal(syscall.SIGUSR1)
	if code := p.WaitExit(20 * time.Second); code != 7 {
		t.Errorf("SIGUSR1 was not passed on: exit code %d, want 7", code)
	}
	p = w.machine.Start(job(nil, sh(`sleep 300 & echo left behind`)))
	if code := p.WaitExit(20 * time.Second); code != 0 || !strings.Contains(p.Log(), "processes=1") {
		t.Errorf("a process left behind: exit code %d, %q", code, p.Log())
	}
	p = w.machine.Start(job([]string{"--user", "65534"}, sh(`id -u`)))
	if code := p.WaitExit(20 * time.Second); code != 0 || !strings.Contains(p.Log(), "65534\n") {
		t.Errorf("as another user: exit code %d, %q", code, p.Log())
	}
	w.asBefore()

	p = w.machine.Start(job([]string{"--capture", "namespace"}, harness.Command{Path: "curl", Args: []string{"-sS", "-m", "5", "http://240.0.0.1:81/"}}))
	// It is the sidecar that accepts what is for a virtual address at which there is nothing, and closes it.
	if code := p.WaitExit(20 * time.Second); code != 52 || !strings.Contains(p.Log(), "Empty reply") {
		t.Errorf("the whole namespace: exit code %d, %q", code, p.Log())
	}
	w.asBefore()

	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	notExecutable := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notExecutable, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	bin := harness.Binary(t)
	basic := []string{"run", "--service", "x", "--state", w.state, "--control-plane", w.control.Addr(), "--wait", "2s"}
	with := func(more ...string) []string { return append(basic[:len(basic):len(basic)], more...) }
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no service", []string{bin, "run", "--control-plane", "a:1", "--", "true"}, 1, "--service NAME is required"},
		{"no command", append([]string{bin}, basic...), 1, "no command"},
		{"no control plane", []string{bin, "run", "--service", "x", "--", "true"}, 1, "--control-plane HOST:PORT is required"},
		{"an unknown command", append([]string{bin}, with("--", "no-such-command")...), 127, "no-such-command: command not found"},
		{"not executable", append([]string{bin}, with("--", notExecutable)...), 126, "not executable"},
		{"not root", append([]string{"setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", bin}, with("--", "true")...), 1, "must be started as root"},
		{"a name that is none", append([]string{bin}, with("--name", "a/b", "--", "true")...), 1, "--name"},
		{"a capture that is none", append([]string{bin}, with("--capture", "all", "--", "true")...), 1, "must be cgroup, namespace or none"},
		{"registration without a port", append([]string{bin}, with("--consul", "http://127.0.0.1:1", "--", "true")...), 1, "without --port"},
		{"a user that is none", append([]string{bin}, with("--user", "nobody-of-that-name", "--", "true")...), 1, "no such user"},
		{"the sidecar's user", append([]string{bin}, with("--user", "1337", "--", "true")...), 1, "that of the sidecar"},
		{"no token", append([]string{bin}, with("--", "true")...), 1, "sallyport token create"},
		{"no control plane there", []string{bin, "run", "--service", "x", "--state", w.state, "--control-plane", dead.Addr().String(), "--wait", "1s", "--token", w.control.Token("--service", "x"), "--", "true"}, 1, dead.Addr().String()},
	} {
		out := w.machine.Run(c.args[0], c.args[1:]...)
		if out.Code != c.code || !strings.Contains(out.Stderr, c.want) {
			t.Errorf("%s: exit code %d, want %d with %q\n%s", c.name, out.Code, c.code, c.want, out.Stderr)
		}
	}
	w.asBefore()
}

// TestRunAsTheFirstProcessOfAContainer: run reaps what loses its parent there, and passes signals and statuses on.
func TestRunAsTheFirstProcessOfAContainer(t *testing.T) {
	w := newWorkshop(t)
	contained := func(script string, flags ...string) *harness.Process {
		c := w.args("batch", append(flags, "--capture", "namespace", "--port", "8080"), harness.Command{Path: "sh", Args: []string{"-c", script}})
		c.Args = append([]string{"--pid", "--fork", "--kill-child", "--mount-proc", c.Path}, c.Args...)
		c.Path = "unshare"
		return w.machine.Start(c)
	}
	// Of the shell that is started in the background nothing is left when its own parent has gone: not even a zombie.
	p := contained(`(sh -c 'echo orphan $$' &); while [ "$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ' Z ')" != 0 ]; do sleep 0.01; done; echo first process: $(tr '\0' ' ' </proc/1/cmdline); exit 5`, w.token("batch")...)
	if code := p.WaitExit(30 * time.Second); code != 5 || !strings.Contains(p.Log(), "orphan") || !strings.Contains(p.Log(), "sallyport run --service batch") {
		t.Errorf("exit code %d, want 5: %q", code, p.Log())
	}
	w.asBefore()

	p = contained(`trap 'exit 9' TERM; echo started; while :; do sleep 0.05; done`)
	p.WaitLog("started")
	first, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.Pid(), p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(first)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.WaitExit(20 * time.Second); code != 9 {
		t.Errorf("SIGTERM was not passed on: exit code %d, want 9", code)
	}
	w.asBefore()
}

// TestRunInATerminal: to an interactive shell, run with its command is one job.
func TestRunInATerminal(t *testing.T) {
	w := newWorkshop(t)
	c := w.args("batch", append(w.token("batch"), "--capture", "none", "--port", "8080"),
		waiting(`trap 'echo interrupted; exit 4' INT; echo started as $$ of $PPID`))
	term := newTerminal(t)
	term.start(w.machine, "bash", append([]string{"--norc", "-i", "-s", c.Path}, c.Args...)...)
	shows, types := term.shows, term.types
	types("\"$@\"\n")
	var command, parent int
	w.eventually("the command", func() error {
		_, after, _ := strings.Cut(term.text(), "started as ")
		if _, err := fmt.Sscanf(after, "%d of %d\r\n", &command, &parent); err != nil {
			return fmt.Errorf("the terminal shows %q: %w", term.text(), err)
		}
		return nil
	})
	both := func(stopped bool) error {
		for _, pid := range []int{parent, command} {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				return err
			}
			if _, state, _ := strings.Cut(string(stat), ") "); (state[0] == 'T') != stopped {
				return fmt.Errorf("process %d is in state %c", pid, state[0])
			}
		}
		return nil
	}
	for range 2 {
		types("\x1a")
		w.eventually("both are stopped", func() error { return both(true) })
		types("fg\n")
		w.eventually("both go on", func() error { return both(false) })
	}
	types("\x1a")
	w.eventually("both are stopped", func() error { return both(true) })
	types("bg\n")
	w.eventually("both go on", func() error { return both(false) })
	types("fg\n")
	w.eventually("it has the terminal again", func() error {
		if owner, err := unix.IoctlGetInt(int(term.master.Fd()), unix.TIOCGPGRP); err != nil || owner != command {
			return fmt.Errorf("process group %d has the terminal, want %d, %v", owner, command, err)
		}
		return nil
	})
	types("\x03")
	w.eventually("its end", shows("interrupted\r\n"))
	types("echo ended with $?\n")
	w.eventually("its status", shows("ended with 4"))
	if n := strings.Count(term.text(), "interrupted\r\n"); n != 1 {
		t.Errorf("Ctrl-C reached the command %d times: %q", n, term.text())
	}
	// With its input from elsewhere the command is in no foreground, and yet of the same job.
	types("\"$@\" </dev/null\n")
	w.eventually("the command", func() error {
		all := strings.Split(term.text(), "started as ")
		if _, err := fmt.Sscanf(all[len(all)-1], "%d of %d\r\n", &command, &parent); err != nil || len(all) != 3 {
			return fmt.Errorf("the terminal shows %q: %w", term.text(), err)
		}
		return nil
	})
	types("\x1a")
	w.eventually("both are stopped", func() error { return both(true) })
	types("fg\n")
	w.eventually("both go on", func() error { return both(false) })
	types("\x03")
	types("echo and then with $?\n")
	w.eventually("its status", shows("and then with 4"))
	if n := strings.Count(term.text(), "interrupted\r\n"); n != 2 {
		t.Errorf("Ctrl-C reached the command %d times: %q", n-1, term.text())
	}
}

// TestRunInATerminalWithoutAShell: Ctrl-Z must not stop what nobody could let go on.
func TestRunInATerminalWithoutAShell(t *testing.T) {
	w := newWorkshop(t)
	c := w.args("batch", append(w.token("batch"), "--capture", "none", "--port", "8080"),
		waiting(`trap 'echo goes on; exit 4' CONT; echo started`))
	term := newTerminal(t)
	cmd := term.start(w.machine, c.Path, c.Args...)
	w.eventually("the command", term.shows("started\r\n"))
	term.types("\x1a")
	w.eventually("it goes on", term.shows("goes on\r\n"))
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 4 {
		t.Errorf("%v, want exit status 4", err)
	}
}

// waiting is a shell that waits after a script, for signals. It starts no other programs meanwhile: a shell that is stopped
// between vfork and exec of one is not stopped, but hangs (state D).
func waiting(script string) harness.Command {
	return harness.Command{Path: "bash", Args: []string{"-c", `exec 9<> <(:); ` + script + `; while :; do read -r -t 0.05 -u 9 _; done`}}
}

// terminal is one with its screen.
type terminal struct {
	t             *testing.T
	master, slave *os.File
	mu            sync.Mutex
	screen        strings.Builder
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	term := &terminal{t: t}
	var err error
	open := func(path string) (f *os.File) {
		if f, err = os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	term.master = open("/dev/ptmx")
	if err := unix.IoctlSetPointerInt(int(term.master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(term.master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	term.slave = open("/dev/pts/" + strconv.Itoa(n))
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := term.master.Read(b)
			if err != nil {
				return
			}
			term.mu.Lock()
			term.screen.Write(b[:n])
			term.mu.Unlock()
		}
	}()
	return term
}

// start starts a program as the first of the terminal's session. It ends with the test.
func (term *terminal) start(h *harness.Host, path string, args ...string) *exec.Cmd {
	term.t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term.slave, term.slave, term.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
	h.Do(cmd.Start)
	term.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

func (term *terminal) text() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.screen.String()
}

func (term *terminal) shows(text string) func() error {
	return func() error {
		if all := term.text(); !strings.Contains(all, text) {
			return fmt.Errorf("the terminal shows %q, want %q", all, text)
		}
		return nil
	}
}

func (term *terminal) types(text string) {
	term.t.Helper()
	if _, err := term.master.WriteString(text); err != nil {
		term.t.Fatal(err)
	}
}
