package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/integration/bench/load"
)

// backend is a process of load that answers.
type backend struct {
	cmd   *exec.Cmd
	stdin io.Closer
	port  int
}

// backend returns the port of a backend of a kind, started when it is first asked for.
func (b *bench) backend(kind string) (int, error) {
	if x := b.backends[kind]; x != nil {
		return x.port, nil
	}
	cmd := load.Command(context.Background(), b.self, load.Spec{Kind: kind, Seconds: backendLife.Seconds()})
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("%s: %w", kind, err)
	}
	x := &backend{cmd: cmd, stdin: stdin}
	b.backends[kind] = x
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("%s: it ended before it listened: %w", kind, err)
	}
	x.port, err = portOf(strings.TrimSpace(line))
	return x.port, err
}

func portOf(address string) (int, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(port)
}

func (x *backend) stop() {
	x.stdin.Close() // it ends then, by itself
	end := time.AfterFunc(2*time.Second, func() { _ = x.cmd.Process.Kill() })
	_ = x.cmd.Wait()
	end.Stop()
}

// running is a proxy of one peer, or the two of a pair, under test.
type running struct {
	processes []*process
	address   string // where the generators go
	hops      []hop
}

type process struct {
	cmd    *exec.Cmd
	stderr *tail
	exited chan struct{}
}

// freePort returns a port on which nothing listens.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// start starts a process with its standard error kept.
func (b *bench) start(command []string, env ...string) (*process, error) {
	p := &process{cmd: exec.Command(command[0], command[1:]...), stderr: &tail{}, exited: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stderr = b.dir, p.stderr
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.WaitDelay = time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// stop ends the process: by SIGTERM, and after three seconds at once, with what it started.
func (p *process) stop() {
	if p.running() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	select {
	case <-p.exited:
	case <-time.After(3 * time.Second):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // the group; it may be empty
	<-p.exited
}

func (r *running) stop() {
	for _, p := range r.processes {
		if p.running() {
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	for _, p := range r.processes {
		p.stop()
	}
}

// run starts hops of a peer, the one that the generators reach first; nil where the peer has no such thing.
func (b *bench) run(ctx context.Context, peer string, hops ...hop) (_ *running, err error) {
	r := &running{hops: hops}
	defer func() {
		if err != nil {
			r.stop()
		}
	}()
	for i := range hops {
		if hops[i].listen, err = freePort(); err != nil {
			return nil, err
		}
		if hops[i].admin, err = freePort(); err != nil {
			return nil, err
		}
		if i > 0 {
			hops[i-1].upstream = hops[i].listen
		}
	}
	var commands [][]string
	for _, h := range hops {
		c, err := b.command(peer, h)
		if err != nil {
			return nil, err
		}
		if c == nil {
			return nil, nil
		}
		commands = append(commands, c)
	}
	var env []string
	if peer == "ours" {
		env = b.env
	}
	for _, c := range commands {
		p, err := b.start(c, env...)
		if err != nil {
			return nil, err
		}
		r.processes = append(r.processes, p)
	}
	for i, h := range hops {
		if err := r.processes[i].listens(ctx, h.listen); err != nil {
			return nil, err
		}
	}
	r.address = fmt.Sprintf("127.0.0.1:%d", hops[0].listen)
	return r, r.settle(ctx)
}

// listens waits until something accepts on the port.
func (p *process) listens(ctx context.Context, port int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err == nil {
			return c.Close()
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended: %s", p.cmd.Path, strings.TrimSpace(p.stderr.String()))
		case <-ctx.Done():
			return fmt.Errorf("%s: nothing listens on %d: %s", p.cmd.Path, port, strings.TrimSpace(p.stderr.String()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// settle waits until what a start leaves behind is done: a fifth of a second with little work, three seconds at most.
func (r *running) settle(ctx context.Context) error {
	before, err := r.cpu()
	for end := time.Now().Add(3 * time.Second); err == nil && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		var now time.Duration
		now, err = r.cpu()
		if now-before < 5*time.Millisecond {
			break
		}
		before = now
	}
	return err
}

// cpu is the time that the processes and all their descendants have taken.
func (r *running) cpu() (total time.Duration, err error) {
	for _, p := range r.processes {
		if !p.running() {
			return 0, fmt.Errorf("%s ended: %s", p.cmd.Path, strings.TrimSpace(p.stderr.String()))
		}
		for _, pid := range tree(p.cmd.Process.Pid) {
			t, err := cpuTime(pid)
			if err != nil {
				return 0, err
			}
			total += t
		}
	}
	return total, nil
}

// tree is a process and all its descendants.
func tree(pid int) []int {
	found := []int{pid}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)) // none of a process that has ended
	for _, t := range tasks {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				found = append(found, tree(child)...)
			}
		}
	}
	return found
}

// cpuTime is the CPU time of a process, of all its threads, those that have ended too. The kernel's clock of the process
// counts in nanoseconds; where it may not be read, /proc/PID/stat counts the same time in ticks.
func cpuTime(pid int) (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(cpuClock(pid), &t); err == nil {
		return time.Duration(t.Nano()), nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(text))
}

// cpuClock is what clock_getcpuclockid(3) returns: the process id's complement, and CPUCLOCK_SCHED (2).
func cpuClock(pid int) int32 { return int32(^pid<<3 | 2) }

// ticks is USER_HZ, which is 100 on every architecture that Go runs on.
const ticks = 100

// parseStat reads utime and stime, the 14th and 15th field (proc(5)). The second, in parentheses, may hold anything.
func parseStat(text string) (time.Duration, error) {
	_, rest, ok := cutLast(text, ")")
	f := strings.Fields(rest)
	if !ok || len(f) < 13 {
		return 0, fmt.Errorf("unreadable /proc/PID/stat: %.80q", text)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * time.Second / ticks, errors.Join(err1, err2)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// memory of processes, in KiB: resident, and of it anonymous, which no other process shares.
type memory struct{ rss, anon int64 }

func (r *running) memory() (m memory, err error) {
	for _, p := range r.processes {
		for _, pid := range tree(p.cmd.Process.Pid) {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				return m, err
			}
			one, err := parseStatus(string(text))
			if err != nil {
				return m, err
			}
			m.rss += one.rss
			m.anon += one.anon
		}
	}
	return m, nil
}

// parseStatus reads VmRSS and RssAnon of /proc/PID/status.
func parseStatus(text string) (m memory, err error) {
	found := 0
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		to := map[string]*int64{"VmRSS": &m.rss, "RssAnon": &m.anon}[name]
		if to == nil {
			continue
		}
		f := strings.Fields(value)
		if len(f) != 2 || f[1] != "kB" {
			return m, fmt.Errorf("unreadable line in /proc/PID/status: %q", line)
		}
		if *to, err = strconv.ParseInt(f[0], 10, 64); err != nil {
			return m, err
		}
		found++
	}
	if found != 2 {
		return m, fmt.Errorf("/proc/PID/status has %d of VmRSS and RssAnon", found)
	}
	return m, nil
}

// descriptors counts the open ones of the process.
func (p *process) descriptors() (int, error) {
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	return len(d), err
}

// adminClient opens a connection for each page: none of it is left in what is measured.
var adminClient = &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}

// admin reads a page of a hop's admin address.
func (h hop) adminPage(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", h.admin, path), nil)
	if err != nil {
		return nil, err
	}
	resp, err := adminClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.200s", path, resp.Status, b)
	}
	return b, err
}

// tail keeps the end of what a process writes, and tells each line to who wants it. It is safe for concurrent use.
type tail struct {
	mu   sync.Mutex
	text []byte
	line func(string)
	part []byte
}

// maxTail bounds what is kept.
const maxTail = 8 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	if over := len(t.text) - maxTail; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	if t.line != nil {
		t.part = append(t.part, b...)
		for {
			line, rest, found := bytes.Cut(t.part, []byte("\n"))
			if !found {
				break
			}
			t.line(string(line))
			t.part = append(t.part[:0], rest...)
		}
		t.part = t.part[:min(len(t.part), maxTail)]
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
