package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/integration/harness"
)

// demoLimit is what the demo may take in all, with or without Consul.
const demoLimit = time.Minute

func TestDemoWalksThrough(t *testing.T) {
	checkDemo(t)
}

func TestDemoWalksThroughWithConsul(t *testing.T) {
	harness.Need(t, harness.Consul)
	t.Setenv("CONSUL", harness.Consul.Path())
	checkDemo(t, "--consul")
}

// checkDemo runs the check: every row holds, and nothing is left in the folder for temporary files.
func checkDemo(t *testing.T, args ...string) {
	dir := t.TempDir()
	harness.Binary(t) // built before TMPDIR is another one, and for all tests
	t.Setenv("TMPDIR", dir)
	out := harness.RunWithin(t, demoLimit, append([]string{"demo", "--check"}, args...)...)
	t.Logf("%s%s", out.Stdout, out.Stderr)
	rows := regexp.MustCompile(`(?m)^(ok|FAILED) `).FindAllStringSubmatch(out.Stdout, -1)
	if out.Code != 0 || len(rows) < 18 || strings.Contains(out.Stdout, "FAILED") {
		t.Errorf("status %d, %d rows; want 0 and 18 rows that are ok", out.Code, len(rows))
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDemoIsEndedByCtrlC(t *testing.T) {
	dir := t.TempDir()
	p := harness.Command{Name: "demo", Path: harness.Binary(t), Args: []string{"demo"}, Env: []string{"TMPDIR=" + dir}}.Start(t)
	p.WaitLog("Ctrl-C ends everything")
	children := childrenOf(t, p.Pid())
	if len(children) < 10 {
		t.Fatalf("%d processes; want one for each part", len(children))
	}
	if code := p.Stop(20 * time.Second); code != 0 {
		t.Errorf("status %d; want 0", code)
	}
	for _, pid := range children {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("process %d lives on", pid)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// What the demo says to try does what it says.
func TestCommandsOfTheTour(t *testing.T) {
	needBash(t)
	p := harness.Command{Name: "demo", Path: harness.Binary(t), Args: []string{"demo"}, Env: []string{"TMPDIR=" + t.TempDir()}}.Start(t)
	p.WaitLog("Ctrl-C ends everything")
	var setup string
	var commands []string
	for line := range strings.Lines(p.Log()) {
		switch text := strings.TrimSpace(line); {
		case strings.HasPrefix(line, "       "+text) && !strings.HasPrefix(text, "╠") && !strings.HasPrefix(text, "╚"):
			commands = append(commands, text)
		case strings.HasPrefix(text, "cd ") || strings.HasPrefix(text, "shop() "):
			setup += text + "\n"
		}
	}
	// In each output there must be this, so many times at least.
	wants := []struct {
		text  string
		times int
	}{
		{`"service":"storefront"`, 1}, {`"service":"payments"`, 1}, {"403", 1}, {"401", 1}, {`"path":"/orders/7"`, 1},
		{"orders-v", 20}, {"storefront-", 6}, {"429", 1}, {"200", 20}, {"403", 1},
	}
	if len(commands) != len(wants) {
		t.Fatalf("%d commands: %q", len(commands), commands)
	}
	for i, want := range wants {
		out, err := exec.CommandContext(t.Context(), "bash", "-c", setup+commands[i]).CombinedOutput()
		if err != nil || strings.Count(string(out), want.text) < want.times {
			t.Errorf("%s: %v; want %s %d times in\n%s", commands[i], err, want.text, want.times, out)
		}
	}
}

// A demo that is killed takes its processes with it, though nobody is left to tell them.
func TestDemoThatIsKilledLeavesNoProcess(t *testing.T) {
	p := harness.Command{Name: "demo", Path: harness.Binary(t), Args: []string{"demo"}, Env: []string{"TMPDIR=" + t.TempDir()}}.Start(t)
	p.WaitLog("Ctrl-C ends everything")
	children := childrenOf(t, p.Pid())
	if len(children) < 10 {
		t.Fatalf("%d processes; want one for each part", len(children))
	}
	p.Kill()
	harness.Eventually(t, 10*time.Second, "the end of the processes", func() error {
		for _, pid := range children {
			if state := stateOf(pid); state != "" && state != "Z" {
				return fmt.Errorf("process %d is in state %s", pid, state)
			}
		}
		return nil
	})
}

// childrenOf reads which processes a process has started.
func childrenOf(t *testing.T, pid int) (list []int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // that thread has ended
		}
		for _, word := range strings.Fields(string(text)) {
			var child int
			if _, err := fmt.Sscan(word, &child); err != nil {
				t.Fatal(err)
			}
			list = append(list, child)
		}
	}
	return list
}

// stateOf is a process's state as /proc has it; "" where there is none.
func stateOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}

func TestReadmeOfQuickstart(t *testing.T) {
	out := runReadme(t, "quickstart")
	for _, want := range []string{`"service":"storefront"`, `"version":"v1"`, `"x-user":"alice"`, "401 without a token"} {
		if !strings.Contains(out, want) {
			t.Errorf("the commands' output lacks %s:\n%s", want, out)
		}
	}
}

func TestReadmeOfConsul(t *testing.T) {
	harness.Need(t, harness.Consul)
	out := runReadme(t, "consul")
	for _, want := range []string{`"service":"orders"`, `"status":403`} {
		if !strings.Contains(out, want) {
			t.Errorf("the commands' output lacks %s:\n%s", want, out)
		}
	}
}

func needBash(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			harness.NotRun(t, tool+" is not on the PATH")
		}
	}
}

// fixedPort is a port of the examples; in a test each stands for one that is free.
var fixedPort = regexp.MustCompile(`\b(8[0-9]{3}|1501[01])\b`)

// runReadme does what the README of an example says, in a folder that looks like the repository.
func runReadme(t *testing.T, example string) string {
	t.Helper()
	needBash(t)
	dir := t.TempDir()
	from := filepath.Join(harness.Root(), "examples", example)
	to := filepath.Join(dir, "examples", example)
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	ports := map[string]string{}
	err := filepath.WalkDir(to, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(path, "/keys/") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		moved := fixedPort.ReplaceAllStringFunc(string(text), func(port string) string {
			if ports[port] == "" {
				ports[port] = fmt.Sprint(harness.FreePort(t))
			}
			return ports[port]
		})
		return os.WriteFile(path, []byte(moved), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	links := map[string]string{"bin/sallyport": harness.Binary(t)}
	if consul := harness.Consul.Path(); consul != "" {
		links[".tools/bin/consul"] = consul
	}
	for name, target := range links {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	readme, err := os.ReadFile(filepath.Join(to, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(readme), "\n"); n > 15 {
		t.Errorf("the README has %d lines; it shall be short", n)
	}
	_, rest, _ := strings.Cut(string(readme), "```sh\n")
	script, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("the README has no commands")
	}
	ctx, cancel := context.WithTimeout(t.Context(), demoLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-e", "-c", script)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// What the script left running goes with it: the group is the script's own.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // usually nobody is left
	}
	text, readErr := os.ReadFile(log.Name())
	if readErr != nil {
		t.Fatal(readErr)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return string(text)
}

// TestDemoWithServicesThatKnowNothing: the same shop with "sallyport run". It says that it is up only after a request has
// passed all hops by the services' names.
func TestDemoWithServicesThatKnowNothing(t *testing.T) {
	h := harness.NewNetwork(t).Host("a")
	before := network(t, h)
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil { // sidecars run as another user
		t.Fatal(err)
	}
	p := h.Start(harness.Command{Name: "demo", Path: harness.Binary(t), Args: []string{"demo", "--transparent"}, Env: []string{"TMPDIR=" + dir}})
	p.WaitLog("Ctrl-C ends everything")
	if out := h.Must(harness.Binary(t), "redirect", "show"); strings.Count(out, " by ") < 6 {
		t.Errorf("redirected: %s", out)
	}
	if code := p.Stop(20 * time.Second); code != 0 {
		t.Errorf("status %d; want 0", code)
	}
	asBefore(t, h, before)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
