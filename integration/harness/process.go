package harness

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Command is a program to start beside the test.
type Command struct {
	Name string // in messages and before the dumped log
	Path string
	Args []string
	Env  []string // in addition to the test's own
	Dir  string
	Life time.Duration // the process is killed after it; 10 minutes by default
	// Stderr takes both outputs in place of the log that is kept; nil: they are kept.
	Stderr *os.File
	// Cgroup is the folder of the cgroup (version 2) in which it starts; "": that of the test.
	Cgroup string
}

// Process is a started Command. It ends with its test, whatever happens.
type Process struct {
	Name string

	t      testing.TB
	cmd    *exec.Cmd
	log    logBuffer
	exited chan struct{}
	err    error    // valid once exited is closed, like left
	left   []string // command lines of the children that outlived it
}

// maxLog bounds what is kept of one process's log: the first and the last half of it.
const maxLog = 4 << 20

// Start starts the command, with its log kept and shown if the test fails.
func (c Command) Start(t testing.TB) *Process {
	t.Helper()
	p := &Process{Name: c.Name, t: t, exited: make(chan struct{})}
	p.cmd = exec.Command(c.Path, c.Args...)
	p.cmd.Dir, p.cmd.Env = c.Dir, append(os.Environ(), c.Env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if c.Stderr != nil {
		p.cmd.Stdout, p.cmd.Stderr = c.Stderr, c.Stderr
	}
	p.cmd.WaitDelay = 5 * time.Second // a grandchild that keeps the pipe must not keep the test
	ownGroup(p.cmd)
	if c.Cgroup != "" {
		dir, err := os.Open(c.Cgroup)
		if err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		defer dir.Close()
		p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("%s: %v", c.Name, err)
	}
	life := c.Life
	if life == 0 {
		life = 10 * time.Minute
	}
	end := time.AfterFunc(life, p.kill)
	go func() {
		p.err = p.cmd.Wait()
		end.Stop()
		p.left = endGroup(p.cmd.Process.Pid)
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.kill()
		<-p.exited
		for _, crash := range []string{"WARNING: DATA RACE", "\npanic: ", "\nfatal error: "} {
			if strings.Contains("\n"+p.log.String(), crash) {
				t.Errorf("%s: %s", c.Name, strings.TrimSpace(crash))
			}
		}
		if t.Failed() {
			t.Logf("---- %s: %q\n%s---- end of %s", c.Name, p.cmd.Args, indent(p.log.String()), c.Name)
		}
	})
	return p
}

// ownGroup puts a command into a process group of its own, so that what it starts can be ended with it, and asks the
// kernel to end it should the test process die.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if cmd.Cancel != nil { // made by CommandContext
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	}
}

func (p *Process) kill() {
	select {
	case <-p.exited: // the id may be another's by now
	default:
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// Pid is the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Log is what the process has written so far, to both outputs.
func (p *Process) Log() string { return p.log.String() }

// Left waits for the end of the process and returns the command lines of what it started and left behind. (They were
// killed since.)
func (p *Process) Left() []string {
	<-p.exited
	return p.left
}

// endGroup ends what a process group still has after its leader has gone, and says what that was.
func endGroup(group int) (left []string) {
	if syscall.Kill(-group, 0) != nil {
		return nil
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		// pid (name) state ppid pgrp …, and the name may hold anything (proc(5)).
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) < 3 || f[2] != strconv.Itoa(group) || f[0] == "Z" {
			continue
		}
		dir := filepath.Dir(path)
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		left = append(left, string(bytes.ReplaceAll(bytes.TrimRight(line, "\x00"), []byte{0}, []byte{' '})))
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return left
}

// Running says whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process alone.
func (p *Process) Signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("%s: signal %v: %v", p.Name, s, err)
	}
}

// Kill ends the process at once, by SIGKILL, and waits for that.
func (p *Process) Kill() {
	p.kill()
	<-p.exited
}

// Stop asks the process to end, by SIGTERM, and returns its exit code. It must end within limit.
func (p *Process) Stop(limit time.Duration) int {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	return p.WaitExit(limit)
}

// WaitExit returns the exit code of a process that must end within limit by itself; -1 if a signal ended it.
func (p *Process) WaitExit(limit time.Duration) int {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(limit):
		p.t.Fatalf("%s did not end within %v", p.Name, limit)
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// WaitLog waits until the log holds text.
func (p *Process) WaitLog(text string) {
	p.t.Helper()
	p.WaitFor("log line "+text, func() error {
		if !strings.Contains(p.log.String(), text) {
			return errors.New("not in the log")
		}
		return nil
	})
}

// WaitFor waits until ready returns nil, for 30 seconds at most, and fails at once if the process ends before.
func (p *Process) WaitFor(what string, ready func() error) {
	p.t.Helper()
	var ended bool
	err := poll(30*time.Second, func() error {
		if ended = !p.Running(); ended {
			return nil
		}
		return ready()
	})
	if ended {
		p.t.Fatalf("%s ended (%v) before %s", p.Name, p.err, what)
	}
	if err != nil {
		p.t.Fatalf("%s: no %s: %v", p.Name, what, err)
	}
}

// Eventually polls until check returns nil; it must within the limit.
func Eventually(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	if err := poll(limit, check); err != nil {
		t.Fatalf("%s: not within %v: %v", what, limit, err)
	}
}

func poll(limit time.Duration, check func() error) error {
	err := check()
	if err == nil {
		return nil
	}
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err = check(); err == nil {
				return nil
			}
		case <-deadline.C:
			return err
		}
	}
}

var ports struct {
	sync.Mutex
	given map[int]bool
}

// FreePort returns a TCP port of 127.0.0.1 on which nothing listens, and which was not handed out before by this
// process, so that two programs started at once do not meet on it. The kernel gives it to no connection before it is
// listened on: it is below the ports from which connections get theirs.
func FreePort(t testing.TB) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		port := lowestPort + rand.IntN(firstEphemeral()-lowestPort)
		if ports.given[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		if ports.given == nil {
			ports.given = map[int]bool{}
		}
		ports.given[port] = true
		return port
	}
	t.Fatal("no free port")
	return 0
}

const lowestPort = 10240 // below are those of well-known services

// firstEphemeral is the first of the ports from which connections get theirs, or what is usual where that is too low.
var firstEphemeral = sync.OnceValue(func() int {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		panic(err)
	}
	first, err := strconv.Atoi(strings.Fields(string(text))[0])
	if err != nil {
		panic(err)
	}
	if first <= lowestPort {
		first = 32768
	}
	return first
})

// FreeAddr is FreePort as host:port.
func FreeAddr(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", FreePort(t))
}

// logBuffer keeps the beginning and the end of a log. It is safe for concurrent use.
type logBuffer struct {
	mu   sync.Mutex
	head []byte
	tail []byte
	cut  bool
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(p)
	if room := maxLog/2 - len(b.head); room > 0 {
		room = min(room, len(p))
		b.head = append(b.head, p[:room]...)
		p = p[room:]
	}
	b.tail = append(b.tail, p...)
	if over := len(b.tail) - maxLog/2; over > 0 {
		b.tail = append(b.tail[:0], b.tail[over:]...)
		b.cut = true
	}
	return n, nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var s bytes.Buffer
	s.Write(b.head)
	if b.cut {
		s.WriteString("\n[…]\n")
	}
	s.Write(b.tail)
	return s.String()
}

func indent(s string) string {
	if s == "" {
		return "\t(no output)\n"
	}
	return "\t" + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n\t") + "\n"
}
