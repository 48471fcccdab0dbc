package demo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// process is one child of the demo. Its output goes to a file in the demo's
// folder; its end is waited for exactly once.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

// start runs argv[0] with its arguments. The child gets SIGKILL if this
// process dies, so that nothing is left behind even then. To be exact, if the
// thread dies that started it (prctl(2), PR_SET_PDEATHSIG); Go ends threads
// only where a goroutine that is locked to one ends, and none here is.
func start(dir, name string, argv ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// alive says whether the child still runs.
func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// grace is how long a child may take to end when asked.
const grace = 3 * time.Second

// stop asks the child to end and waits; one that does not within the grace is killed.
func (p *process) stop(grace time.Duration) {
	if !p.alive() {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
	select {
	case <-p.done:
	case <-time.After(grace):
		p.kill()
	}
}

// kill ends the child without warning.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// tail is the end of the child's log, for messages.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	if len(b) > 2000 {
		b = b[len(b)-2000:]
	}
	return string(bytes.TrimSpace(b))
}

// family stops all children at the same time.
type family struct {
	mu   sync.Mutex
	list []*process
}

func (f *family) add(p *process) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, p)
}

func (f *family) all() []*process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.list)
}

func (f *family) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	var wg sync.WaitGroup
	// Last started first stopped would be tidy; at once is quick, and
	// nobody depends on the order at the end.
	for _, p := range f.list {
		wg.Go(func() { p.stop(grace) })
	}
	wg.Wait()
}

// waitFor polls until ok says yes, the process ends, or the time is over.
func waitFor(ctx context.Context, p *process, what string, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		if last = ok(); last == nil {
			return nil
		}
		var done chan struct{}
		if p != nil {
			done = p.done
		}
		select {
		case <-done:
			return fmt.Errorf("%s ended while waiting for %s:\n%s", p.name, what, p.tail())
		case <-ctx.Done():
			if p != nil {
				return fmt.Errorf("%s: %w; the end of its log:\n%s", what, last, p.tail())
			}
			return fmt.Errorf("%s: %w", what, last)
		case <-tick.C:
		}
	}
}

// ready asks an admin page.
func ready(url string) func() error {
	client := &http.Client{Timeout: time.Second}
	return func() error {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			b, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
			return fmt.Errorf("%s answers %d: %s", url, resp.StatusCode, bytes.TrimSpace(b))
		}
		return nil
	}
}

// listening tries to connect.
func listening(addr string) func() error {
	return func() error {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}
}
