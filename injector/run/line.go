package run

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
)

// The line is two pipes between run and a sidecar that it has started, one for each direction:
//
//   - to the sidecar goes one byte once the application's traffic is redirected. The end of the pipe is the sidecar's: it
//     deregisters and drains. Signals do not end it, because a terminal or a service manager sends them to the sidecar and
//     to the application at once, and the sidecar is needed until the application has ended.
//   - from the sidecar come lines: what it waits for, and lineReady when it waits no more. It is this child that says so,
//     and not whoever answers at a port.
const (
	fdFromRun = 3
	fdToRun   = 4

	lineReady = "ready"
	maxReason = 1 << 10
)

// Line is the sidecar's end.
type Line struct {
	to         *os.File
	redirected chan struct{}
	ended      chan struct{}
}

// TakeLine takes the two descriptors that run hands down.
func TakeLine() (*Line, error) {
	for _, fd := range []int{fdFromRun, fdToRun} {
		var st syscall.Stat_t
		if err := syscall.Fstat(fd, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFIFO {
			return nil, errors.New("--by-run: is for sallyport run, which hands two pipes down")
		}
		syscall.CloseOnExec(fd)
	}
	l := &Line{to: os.NewFile(fdToRun, "to run"), redirected: make(chan struct{}), ended: make(chan struct{})}
	go l.listen(os.NewFile(fdFromRun, "from run"))
	return l, nil
}

func (l *Line) listen(from *os.File) {
	defer close(l.ended)
	b := make([]byte, 1)
	if n, err := from.Read(b); n != 1 || err != nil {
		return
	}
	close(l.redirected)
	_, _ = io.Copy(io.Discard, from) // any end is the end
}

// Context ends when run has ended, or wants the sidecar to.
func (l *Line) Context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	go func() {
		select {
		case <-l.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// Redirected is closed once the application's traffic comes here.
func (l *Line) Redirected() <-chan struct{} { return l.redirected }

// Progress says what the sidecar waits for; "" is nothing.
func (l *Line) Progress(reason string) {
	if reason == "" {
		reason = lineReady
	}
	reason = strings.ReplaceAll(reason, "\n", "; ")
	// That run is gone is heard at the other pipe.
	_, _ = fmt.Fprintln(l.to, reason[:min(len(reason), maxReason)])
}

// line is run's end.
type line struct {
	out   *os.File
	ready chan struct{} // closed when the sidecar says that it is

	mu     sync.Mutex
	reason string
}

// newLine makes both pipes; ends are those of the sidecar, to be closed when it has been started.
func newLine() (l *line, ends []*os.File, err error) {
	in, out, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	from, to, err := os.Pipe()
	if err != nil {
		in.Close()
		out.Close()
		return nil, nil, err
	}
	l = &line{out: out, ready: make(chan struct{}), reason: "it has no identity yet"}
	go l.listen(from)
	return l, []*os.File{in, to}, nil
}

func (l *line) listen(from *os.File) {
	defer from.Close()
	lines := bufio.NewScanner(io.Reader(from))
	for lines.Scan() {
		if lines.Text() == lineReady {
			close(l.ready)
			_, _ = io.Copy(io.Discard, from)
			return
		}
		l.mu.Lock()
		l.reason = lines.Text()
		l.mu.Unlock()
	}
}

// waitsFor is what the sidecar has said last.
func (l *line) waitsFor() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reason
}

// redirected tells the sidecar to register the service: from now on what others send arrives at it.
func (l *line) redirected() { _, _ = l.out.Write([]byte{1}) } // a sidecar that has died is noticed elsewhere

func (l *line) end() { l.out.Close() }
