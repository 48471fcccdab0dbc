package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

var binary struct {
	once sync.Once
	path string
	dir  string // to be removed at the end
	err  error
}

// Binary returns the path of sallyport, built once per test run from this source tree.
func Binary(t testing.TB) string {
	t.Helper()
	binary.once.Do(buildBinary)
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.path
}

func buildBinary() {
	if path := os.Getenv("SALLYPORT_BIN"); path != "" {
		binary.path = path
		if _, err := os.Stat(path); err != nil {
			binary.err = fmt.Errorf("SALLYPORT_BIN: %w", err)
		}
		return
	}
	dir, err := os.MkdirTemp("", "sallyport-test-")
	if err != nil {
		binary.err = err
		return
	}
	binary.dir, binary.path = dir, filepath.Join(dir, "sallyport")
	if err := os.Chmod(dir, 0o755); err != nil { // sidecars run as users of their own
		binary.err = err
		return
	}
	args, cgo := []string{"build", "-trimpath", "-o", binary.path}, "CGO_ENABLED=0"
	if os.Getenv("SALLYPORT_RACE") == "1" {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", append(args, ".")...)
	build.Dir = Root()
	build.Env = append(os.Environ(), cgo)
	if out, err := build.CombinedOutput(); err != nil {
		binary.err = fmt.Errorf("go build: %w\n%s", err, out)
	}
}

func removeBinary() {
	if binary.dir != "" {
		os.RemoveAll(binary.dir)
	}
}

// Output is what a command said by the time it ended.
type Output struct {
	Code           int
	Stdout, Stderr string
}

// Run runs sallyport with args to its end, which must come within a minute.
func Run(t testing.TB, args ...string) Output {
	t.Helper()
	return RunWithin(t, time.Minute, args...)
}

// RunWithin is Run with another limit, for the commands that work longer.
func RunWithin(t testing.TB, limit time.Duration, args ...string) Output {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	out, err := execute(exec.CommandContext(ctx, Binary(t), args...))
	switch {
	case ctx.Err() != nil:
		t.Fatalf("sallyport %q did not end within %v\n%s%s", args, limit, out.Stdout, out.Stderr)
	case err != nil:
		t.Fatalf("sallyport %q: %v", args, err)
	}
	return out
}

// execute runs a command, made with a context, to its end. That it fails is no error of execute.
func execute(cmd *exec.Cmd) (Output, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	ownGroup(cmd)
	err := cmd.Run()
	out := Output{Stdout: stdout.String(), Stderr: stderr.String()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		out.Code, err = exit.ExitCode(), nil
	}
	return out, err
}
