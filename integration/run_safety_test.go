package integration

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"sallyport/integration/harness"
)

// What run must not do whoever else is on the machine, and whatever ends when.

// thief is a user without privilege who wants a port: it says what it was sent there.
var thief = harness.Program("thief", func(args []string) int {
	if err := errors.Join(syscall.Setgid(65534), syscall.Setuid(65534)); err != nil {
		fmt.Println(err)
		return 1
	}
	for tries := 0; ; tries++ {
		if tries == 1000 {
			fmt.Println("waiting for its chance")
		}
		l, err := net.Listen("tcp", args[0])
		if err != nil {
			continue
		}
		fmt.Println("got the port")
		for {
			c, err := l.Accept()
			if err != nil {
				return 1
			}
			b := make([]byte, 4096)
			n, _ := c.Read(b)
			fmt.Printf("stole %q\n", b[:n])
			c.Close()
		}
	}
})

// The knocker connects to an address again and again. Once that was refused it says if it works all the same.
var _ = harness.Program("knocker", func(args []string) int {
	past := make(chan bool)
	for range 16 { // of which one meets the moment between two steps
		go func() {
			for refused := false; ; {
				c, err := net.DialTimeout("tcp", args[0], 100*time.Millisecond)
				switch {
				case err != nil:
					refused = refused || errors.Is(err, syscall.ECONNREFUSED)
				case refused:
					past <- true
				default:
					_ = c.(*net.TCPConn).SetLinger(0) // so that it does not run out of ports
					c.Close()
				}
			}
		}()
	}
	<-past
	fmt.Println("talked past the sidecar")
	return 0
})

// behind starts a program and leaves it behind.
var behind = harness.Program("behind", func(args []string) int {
	cmd := exec.Command("/proc/self/exe", args[1:]...)
	cmd.Env = append(os.Environ(), "SALLYPORT_TEST_PROGRAM="+args[0])
	cmd.Stdout = os.Stdout
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
})

func sh(script string) harness.Command {
	return harness.Command{Path: "sh", Args: []string{"-c", script}}
}

// job is a command line of run for what is not registered.
func (w *workshop) job(name string, flags []string, command harness.Command) harness.Command {
	w.t.Helper()
	c := w.args(name, flags, command)
	for i, a := range c.Args {
		if a == "--consul" {
			c.Args = append(c.Args[:i:i], c.Args[i+2:]...)
			break
		}
	}
	return c
}

func (w *workshop) refused(why string, c harness.Command) {
	w.t.Helper()
	if out := w.machine.Run(c.Path, c.Args...); out.Code != 1 || !strings.Contains(out.Stderr, why) {
		w.t.Errorf("exit code %d, want 1 with %q\n%s%s", out.Code, why, out.Stdout, out.Stderr)
	}
}

// gone is nil for a process that has ended, reaped or not.
func gone(pid int) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if _, state, _ := strings.Cut(string(stat), ") "); err == nil && !strings.HasPrefix(state, "Z") {
		return fmt.Errorf("process %d is there", pid)
	}
	return nil
}

// stubborn is a command that outlives SIGTERM; it says who it is.
const stubborn = `trap '' TERM; echo alive as $$.; while :; do sleep 0.05; done`

func pidOf(p *harness.Process) (pid int) {
	p.WaitLog("alive as ")
	p.WaitLog(".\n")
	_, after, _ := strings.Cut(p.Log(), "alive as ")
	_, _ = fmt.Sscanf(after, "%d", &pid)
	return pid
}

// TestRunKeepsTheSidecarsPorts: what is redirected to them must not reach anybody else, while there is no sidecar least of all.
func TestRunKeepsTheSidecarsPorts(t *testing.T) {
	w := newWorkshop(t)
	plain := w.other.Listen("tcp", ":8080", nil)
	go func() {
		_ = http.Serve(plain, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, public) }))
	}()
	ports := []string{"--wait", "3s", "--outbound-port", "15001", "--inbound-port", "15006", "--dns-port", "15053", "--health-port", "15021"}
	target := "http://" + w.other.IPv4.String() + ":8080/"
	front := w.start("storefront", 8000, relay("8000"), append(w.token("storefront"), ports...)...)
	w.eventually("calls arrive", func() error { return w.asks(target, "200 "+public) })
	for _, at := range []string{"127.0.0.1:15001", "127.0.0.1:15053", ":15006", w.machine.IPv4.String() + ":15021"} {
		w.machine.Start(thief(at)).WaitLog("waiting for its chance")
	}
	thieves := w.machine.Start(thief("127.0.0.1:15001"))
	thieves.WaitLog("waiting for its chance")

	if err := syscall.Kill(sidecarOf(t, front), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	front.WaitLog("the sidecar is back")
	w.eventually("calls arrive", func() error { return w.asks(target, "200 "+public) })
	w.control.Kill()
	if err := syscall.Kill(sidecarOf(t, front), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	front.WaitLog("the restarted sidecar is not ready")
	if err := w.asks(target, "connection refused"); err != nil {
		t.Error(err)
	}
	if strings.Contains(thieves.Log(), "got the port") {
		t.Errorf("a port of the sidecar was taken: %s", thieves.Log())
	}
	w.control.Restart()

	w.refused("--outbound-port 15001 is in use", w.job("second", append(w.token("second"), ports...), sh("true")))
	front.WaitLog("the sidecar is back")
	w.eventually("the first goes on", func() error { return w.asks(target, "200 "+public) })
	front.Stop(20 * time.Second)

	w.machine.Listen("tcp", "127.0.0.1:16001", nil)
	w.refused("--outbound-port 16001 is in use by process "+strconv.Itoa(os.Getpid()), w.job("third", append(w.token("third"), "--outbound-port", "16001"), sh("true")))
	// A sidecar without run is not ready either; it ends, and says why.
	for _, taken := range []string{"outbound", "inbound"} {
		c := harness.Command{Path: harness.Binary(t), Args: append([]string{"sidecar", "--service", "x", "--port", "8080", "--control-plane", w.control.Addr(),
			"--transparent", "--" + taken + "-port", "16001"}, w.token("x")...)}
		w.refused("16001 is in use by another process", c)
	}
	w.asBefore()
}

// TestRunHasANamespaceOnce: rules of a whole network namespace are not taken from whoever lives by them.
func TestRunHasANamespaceOnce(t *testing.T) {
	w := newWorkshop(t)
	all := func(name string, port int) []string {
		return append(w.token(name), "--capture", "namespace", "--outbound-port", strconv.Itoa(port), "--inbound-port", strconv.Itoa(port+1),
			"--dns-port", strconv.Itoa(port+2), "--health-port", strconv.Itoa(port+3))
	}
	first := w.machine.Start(w.job("first", all("first", 15101), sh(stubborn)))
	left := pidOf(first)
	rules := network(t, w.machine)
	w.refused("whole network namespace", w.job("second", all("second", 15201), sh("true")))
	w.refused("whole network namespace", w.job("third", append(all("third", 15201), "--state", w.otherState()), sh("true")))
	if now := network(t, w.machine); now != rules {
		t.Errorf("the rules of the first were touched:\n%s\nbefore:\n%s", now, rules)
	}
	first.Kill()
	first.WaitExit(10 * time.Second)
	defer func() { // it has the name of none that is started again
		_ = syscall.Kill(left, syscall.SIGKILL)
		dirs, _ := filepath.Glob(filepath.Dir(harness.Cgroup(t, "beside")) + fmt.Sprintf("/sallyport-test%d-first", os.Getpid()))
		for _, dir := range dirs {
			w.eventually("removed", func() error { return syscall.Rmdir(dir) })
		}
	}()
	// Its sidecar is dead: who comes next takes over.
	next := w.machine.Start(w.job("second", all("second", 15301), sh("exit 3")))
	if code := next.WaitExit(20 * time.Second); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	w.asBefore()

	// The operator's own.
	l := w.machine.Listen("tcp", "127.0.0.1:15001", nil)
	w.machine.Must(harness.Binary(t), "redirect", "apply")
	rules = network(t, w.machine)
	w.refused("whole network namespace", w.job("second", all("second", 15301), sh("true")))
	if now := network(t, w.machine); now != rules {
		t.Errorf("the operator's rules were touched:\n%s\nbefore:\n%s", now, rules)
	}
	l.Close()
	w.machine.Must(harness.Binary(t), "redirect", "cleanup")
	w.asBefore()
}

// otherState is another folder for --state.
func (w *workshop) otherState() string {
	w.t.Helper()
	dir := w.t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// TestRunClearsUpAfterACrash: whatever was left, from wherever, of whatever capture.
func TestRunClearsUpAfterACrash(t *testing.T) {
	w := newWorkshop(t)
	// In a session of its own, where the harness does not find it.
	survivor := harness.Command{Path: "setsid", Args: []string{"--wait", "sh", "-c", stubborn}}
	crash := func(c harness.Command) (left int) {
		p := w.machine.Start(c)
		left = pidOf(p)
		p.Kill()
		p.WaitExit(10 * time.Second)
		if err := gone(left); err != nil {
			return left
		}
		t.Fatal("nothing was left behind")
		return 0
	}
	ends := func(what string, c harness.Command) {
		t.Helper()
		p := w.machine.Start(c)
		if code := p.WaitExit(30 * time.Second); code != 3 {
			t.Errorf("%s: exit code %d, want 3", what, code)
		}
		w.asBefore()
	}
	flags := w.token("batch")

	// From the cgroup of another session, which is empty after it.
	there := w.job("batch", flags, survivor)
	there.Cgroup = harness.Cgroup(t, "session")
	left := crash(there)
	ends("from another cgroup", w.job("batch", nil, sh("exit 3")))
	if err := gone(left); err != nil {
		t.Error(err)
		_ = syscall.Kill(left, syscall.SIGKILL)
	}
	if dirs, _ := filepath.Glob(there.Cgroup + "/sallyport-*"); len(dirs) > 0 {
		t.Errorf("%s stays", dirs)
		for _, dir := range dirs {
			w.eventually("removed", func() error { return syscall.Rmdir(dir) })
		}
	}
	// A command that outlives SIGTERM, in a cgroup that had to be killed.
	left = crash(w.job("batch", nil, survivor))
	ends("after a kill", w.job("batch", nil, sh("sleep 0.3; exit 3")))
	if err := gone(left); err != nil {
		t.Error(err)
	}
	// Another capture than before.
	left = crash(w.job("batch", nil, survivor))
	ends("of another capture", w.job("batch", []string{"--capture", "namespace"}, sh("exit 3")))
	if err := gone(left); err != nil {
		t.Error(err)
	}
	left = crash(w.job("batch", []string{"--capture", "namespace"}, survivor))
	ends("the other way round", w.job("batch", nil, sh("exit 3")))
	if err := gone(left); err != nil {
		t.Error(err)
		_ = syscall.Kill(left, syscall.SIGKILL)
	}
}

// TestRunResolvesTheControlPlaneAfterACrash: of a whole namespace's rules those for DNS lead to the dead sidecar.
func TestRunResolvesTheControlPlaneAfterACrash(t *testing.T) {
	w := newWorkshop(t)
	answers := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: w.hub.IPv4.AsSlice()})
		}
		_ = rw.WriteMsg(m)
	})
	var udp net.PacketConn
	w.hub.Do(func() (err error) { udp, err = net.ListenPacket("udp", w.hub.IPv4.String()+":53"); return err })
	server := &dns.Server{PacketConn: udp, Handler: answers}
	go func() { _ = server.ActivateAndServe() }()
	defer udp.Close()
	_, port, err := net.SplitHostPort(w.control.Addr())
	if err != nil {
		t.Fatal(err)
	}
	byName := []string{"--capture", "namespace", "--control-plane", "control.example:" + port}
	p := w.machine.Start(w.job("batch", append(byName, w.token("batch")...), sh(stubborn)))
	pidOf(p)
	p.Kill()
	p.WaitExit(10 * time.Second)
	p = w.machine.Start(w.job("batch", byName, sh("exit 3")))
	if code := p.WaitExit(30 * time.Second); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	w.asBefore()
}

// TestRunLeavesNothing of the command: it is ended where it hides, and talks to nobody on its way.
func TestRunLeavesNothing(t *testing.T) {
	w := newWorkshop(t)
	open := w.other.Listen("tcp", ":8080", nil)
	go func() {
		for {
			c, err := open.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for _, capture := range []string{"cgroup", "namespace"} {
		flags := []string{"--capture", capture}
		if capture == "cgroup" {
			flags = append(flags, w.token("batch")...)
		}
		p := w.machine.Start(w.job("batch", flags, behind("knocker", w.other.IPv4.String()+":8080")))
		if code := p.WaitExit(30 * time.Second); code != 0 || strings.Contains(p.Log(), "talked past") || !strings.Contains(p.Log(), "processes=1") {
			t.Errorf("%s: exit code %d: %s", capture, code, p.Log())
		}
		w.asBefore()
	}
	nested := `cg=$(mount -t cgroup2 | head -1 | cut -d' ' -f3)$(sed -n s/^0:://p /proc/self/cgroup); mkdir -p $cg/a/b; sh -c "echo 0 >$cg/a/b/cgroup.procs; echo alive as \$\$.; exec sleep 300" & ` +
		`until test -n "$(cat $cg/a/b/cgroup.procs)"; do :; done; echo in $cg`
	p := w.machine.Start(w.job("batch", nil, sh(nested)))
	pid := pidOf(p)
	if code := p.WaitExit(30 * time.Second); code != 0 || !strings.Contains(p.Log(), "processes=1") {
		t.Errorf("a nested cgroup: exit code %d: %s", code, p.Log())
	}
	if err := gone(pid); err != nil {
		t.Error(err)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_, after, _ := strings.Cut(p.Log(), "in /")
	dir, _, _ := strings.Cut("/"+after, "\n")
	if _, err := os.Stat(dir); err == nil || !strings.Contains(dir, "sallyport-") {
		t.Errorf("the cgroup %s stays", dir)
	}
	w.asBefore()
}

// TestRunDeregisters also for a sidecar that cannot.
func TestRunDeregisters(t *testing.T) {
	w := newWorkshop(t)
	p := w.start("orders", 8080, shopkeeper("orders", "8080", secret), append(w.token("orders"), "--wait", "3s")...)
	w.eventually("registered", func() error { return w.registered("orders", 1) })
	w.control.Kill() // so that no sidecar comes back
	if err := syscall.Kill(sidecarOf(t, p), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.WaitLog("the restarted sidecar is not ready")
	if code := p.Stop(30 * time.Second); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
	services, err := w.consul.Client.Agent().Services()
	if err != nil || len(services) != 0 {
		t.Errorf("Consul still holds %v, %v", services, err)
	}
	w.asBefore()
}

// TestRunHasANameOnce on a machine, whatever folder its state is in.
func TestRunHasANameOnce(t *testing.T) {
	w := newWorkshop(t)
	first := w.machine.Start(w.job("batch", w.token("batch"), sh(stubborn)))
	pid := pidOf(first)
	w.refused("running already", w.job("batch", append(w.token("batch"), "--state", w.otherState()), sh("true")))
	if err := gone(pid); err == nil {
		t.Error("the second ended the first's command")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := first.WaitExit(20 * time.Second); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	// The operator's rules of that name are not for run to take.
	cgroup := harness.Cgroup(t, "operator")
	name := fmt.Sprintf("test%d-batch", os.Getpid())
	w.machine.Must(harness.Binary(t), "redirect", "apply", "--name", name, "--cgroup", cgroup, "--inbound-mode", "off")
	w.refused("which run has not made", w.job("batch", nil, sh("true")))
	w.machine.Must(harness.Binary(t), "redirect", "cleanup", "--name", name)
	w.asBefore()
}

// TestRunWithoutAReaderOfItsLog goes on.
func TestRunWithoutAReaderOfItsLog(t *testing.T) {
	w := newWorkshop(t)
	c := w.job("batch", append(w.token("batch"), "--port", "8000"), relay("8000"))
	r, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env, cmd.Stderr = append(os.Environ(), c.Env...), stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	w.machine.Do(cmd.Start)
	defer cmd.Process.Kill()
	target := "http://127.0.0.1:8000/"
	w.eventually("it runs", func() error { return w.asks(target, "502") })
	r.Close()
	pid := 0
	for range 2 { // each time something is said about it
		pid = childOf(t, cmd.Process.Pid, pid)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	childOf(t, cmd.Process.Pid, pid)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 143 {
		t.Errorf("%v, want exit status 143", err)
	}
	w.asBefore()
}

// childOf is the sidecar of a run that is not the one before.
func childOf(t *testing.T, parent, before int) (found int) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, "a new sidecar", func() error {
		all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
		for _, file := range all {
			data, _ := os.ReadFile(file)
			for s := range strings.FieldsSeq(string(data)) {
				line, _ := os.ReadFile("/proc/" + s + "/cmdline")
				if pid, err := strconv.Atoi(s); err == nil && pid != before && strings.HasPrefix(string(line), "sallyport\x00sidecar\x00") {
					found = pid
					return nil
				}
			}
		}
		return errors.New("none")
	})
	return found
}

// TestRunUnderATightUmask: what is root's alone is not the sidecar's user's to read, and does not have to be.
func TestRunUnderATightUmask(t *testing.T) {
	w := newWorkshop(t)
	dir := t.TempDir()
	token, bundle := filepath.Join(dir, "token"), filepath.Join(dir, "bundle.pem")
	text, err := os.ReadFile(filepath.Join(w.control.StateDir(), "bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{token: w.token("batch")[1], bundle: string(text)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c := w.job("batch", []string{"--token-file", token, "--ca-bundle", bundle, "--state", filepath.Join(w.otherState(), "fresh", "state")}, sh("exit 3"))
	c.Args = append([]string{"-c", `umask 077; exec "$@"`, "sh", c.Path}, c.Args...)
	c.Path = "sh"
	if code := w.machine.Start(c).WaitExit(30 * time.Second); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	c = w.job("batch", w.token("batch"), sh("true"))
	private := filepath.Join(w.otherState(), "sallyport")
	if out, err := exec.Command("cp", c.Path, private).CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	if err := os.Chmod(private, 0o750); err != nil {
		t.Fatal(err)
	}
	c.Path = private
	w.refused("may not be executed by user 1337", c)
	w.asBefore()
}

// TestRunIsToldToEnd: with the status that the signal makes, and by the one who may tell.
func TestRunIsToldToEnd(t *testing.T) {
	w := newWorkshop(t)
	flags := w.token("batch")
	w.control.Kill()
	for signal, want := range map[syscall.Signal]int{syscall.SIGTERM: 143, syscall.SIGINT: 130, syscall.SIGHUP: 129, syscall.SIGQUIT: 131} {
		c := w.job("batch", flags, sh("true"))
		// Whatever the test itself was started with: what is ignored stays so, as below.
		c.Args, c.Path = append([]string{"--default-signal=TERM,INT,HUP,QUIT", c.Path}, c.Args...), "env"
		p := w.machine.Start(c)
		sidecarOf(t, p)
		p.Signal(signal)
		if code := p.WaitExit(20 * time.Second); code != want || strings.Contains(p.Log(), "canceled") {
			t.Errorf("%v before readiness: exit code %d, want %d: %s", signal, code, want, p.Log())
		}
	}
	w.control.Restart()
	// As a service manager does that signals every process at once: the sidecar stays for as long as the command does.
	p := w.machine.Start(w.job("batch", flags, sh(`trap 'echo asked; while ! test -e `+w.state+`/go; do sleep 0.05; done; exit 5' TERM; echo started; while :; do sleep 0.05; done`)))
	p.WaitLog("started")
	sidecar := sidecarOf(t, p)
	if err := syscall.Kill(sidecar, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGTERM)
	p.WaitLog("asked")
	if strings.Contains(p.Log(), "draining") || gone(sidecar) == nil {
		t.Errorf("the sidecar ended before the command: %s", p.Log())
	}
	if err := os.WriteFile(filepath.Join(w.state, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := p.WaitExit(20 * time.Second); code != 5 || strings.Contains(p.Log(), "the sidecar died") {
		t.Errorf("exit code %d, want 5: %s", code, p.Log())
	}
	// What is ignored from the start stays so.
	c := w.job("batch", nil, sh(`echo started; trap 'exit 5' TERM; while :; do sleep 0.05; done`))
	c.Args, c.Path = append([]string{c.Path}, c.Args...), "nohup"
	p = w.machine.Start(c)
	p.WaitLog("started")
	p.Signal(syscall.SIGHUP)
	p.Signal(syscall.SIGTERM)
	if code := p.WaitExit(20 * time.Second); code != 5 {
		t.Errorf("under nohup: exit code %d, want 5", code)
	}
	w.asBefore()
}

// TestRunKnowsWhereItsCommandListens: with TPROXY that is the address which its clients dial. Consul's checks make no noise.
func TestRunKnowsWhereItsCommandListens(t *testing.T) {
	w := newWorkshop(t)
	p := w.start("front", 8000, relay(w.machine.IPv4.String()+":8000"), append(w.token("front"), "--inbound-mode", "tproxy")...)
	w.eventually("healthy", func() error { return w.registered("front", 1) })
	w.eventually("the sidecar's own check", func() error {
		list, _, err := w.consul.Client.Health().Service("front-sidecar-proxy", "", true, nil)
		if err == nil && len(list) != 1 {
			err = fmt.Errorf("%d healthy sidecars", len(list))
		}
		return err
	})
	if code := p.Stop(20 * time.Second); code != 143 || strings.Contains(p.Log(), "TLS handshake failed") {
		t.Errorf("exit code %d: %s", code, p.Log())
	}
	w.asBefore()
}

// TestRunBehindNAT: others reach the host at an address that it does not have.
func TestRunBehindNAT(t *testing.T) {
	w := newWorkshop(t)
	p := w.machine.Start(w.job("batch", append(w.token("batch"), "--address", "192.0.2.7", "--port", "8080"), sh("exit 3")))
	if code := p.WaitExit(20 * time.Second); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	// Ports that only root may take are the sidecar's all the same.
	p = w.machine.Start(w.job("batch", []string{"--outbound-port", "701", "--dns-port", "702", "--inbound-port", "703", "--port", "8080"}, sh("exit 3")))
	if code := p.WaitExit(20 * time.Second); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	w.refused("--port 15001 is the sidecar's --outbound-port too", w.job("batch", []string{"--capture", "namespace", "--port", "15001"}, sh("true")))
	w.asBefore()
}

// TestRunLeavesAnOperatorsRules of the whole namespace, which it has not made, in force.
func TestRunLeavesAnOperatorsRules(t *testing.T) {
	w := newWorkshop(t)
	once := w.machine.Start(w.job("batch", append(w.token("batch"), "--capture", "namespace"), sh("exit 3")))
	if code := once.WaitExit(20 * time.Second); code != 3 {
		t.Fatalf("exit code %d, want 3", code)
	}
	w.machine.Must(harness.Binary(t), "redirect", "apply", "--exclude-outbound-ports", "15010")
	rules := network(t, w.machine)
	for _, capture := range []string{"none", "cgroup"} {
		p := w.machine.Start(w.job("batch", []string{"--capture", capture}, sh("exit 3")))
		if code := p.WaitExit(20 * time.Second); code != 3 {
			t.Errorf("%s: exit code %d, want 3", capture, code)
		}
		if now := network(t, w.machine); now != rules {
			t.Errorf("%s: the operator's rules were touched:\n%s\nbefore:\n%s", capture, now, rules)
		}
	}
	w.machine.Must(harness.Binary(t), "redirect", "cleanup")
	w.asBefore()
}
