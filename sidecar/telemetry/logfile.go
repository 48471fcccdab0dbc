package telemetry

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sallyport/sidecar/stream"
)

// Logs owns the log files of the process: one writer per path, however many
// access logs name it. Safe for concurrent use.
type Logs struct {
	log   *slog.Logger
	mu    sync.Mutex
	files map[string]*logFile // a file once opened stays open until Close

	closed  bool
	wg      sync.WaitGroup
	dropped atomic.Uint64 // lines that were not written, of all files
}

// NewLogs returns an empty set of log files; log hears of what cannot be written.
func NewLogs(log *slog.Logger) *Logs { return &Logs{log: log, files: map[string]*logFile{}} }

// Bounds of a log file's queue: what a slow disk makes wait is bounded, and
// dropped beyond it; a worker never waits for a disk.
const (
	logBatch = 64 << 10 // written at once
	logQueue = 4 << 20
	logSpare = 1 << 20 // memory kept for the next batch; more was a burst
	// logDelay is how long a line waits for others: a write per line would
	// cost more than many a request.
	logDelay    = 50 * time.Millisecond
	logLanes    = 64
	dropsReport = 10 * time.Second
	// lastLines is how long Close waits: who reads a pipe, or the disk, may be stuck.
	lastLines = 2 * time.Second
)

// lane takes the lines of one worker (or of a few, where there are more than
// logLanes), so that workers do not wait for each other while they format.
type lane struct {
	mu      sync.Mutex // held by the worker for one line, by the writer for a swap
	pending []byte
	_       [32]byte // a cache line each
}

// logFile gathers lines from all workers and writes them from a goroutine.
// Lines of one worker stay in order.
type logFile struct {
	lanes   [logLanes]lane
	waiting atomic.Int64 // bytes in the lanes
	armed   atomic.Bool  // the writer knows that something waits
	wake    chan struct{}
	full    chan struct{} // logBatch bytes wait
	stop    chan struct{}
	anew    atomic.Bool // the path is to be opened again
	closed  atomic.Bool
	dropped atomic.Uint64  // lines
	all     *atomic.Uint64 // Logs.dropped

	// Of the writer alone.
	path     string
	out      io.WriteCloser
	log      *slog.Logger
	spare    []byte
	failed   bool
	told     uint64 // of dropped
	toldWhen time.Time
}

func (l *logFile) write(f appender, s *stream.Stream) {
	i := 0
	if s.Conn != nil && s.Conn.Worker != nil {
		i = s.Conn.Worker.ID() % logLanes
	}
	n := &l.lanes[i]
	n.mu.Lock()
	if l.closed.Load() || l.waiting.Load() > logQueue {
		n.mu.Unlock()
		l.lose(1)
		return
	}
	before := len(n.pending)
	n.pending = f.Append(n.pending, s)
	size := int64(len(n.pending) - before)
	n.mu.Unlock()
	if sum := l.waiting.Add(size); sum >= logBatch && sum-size < logBatch {
		signal(l.full)
	}
	if !l.armed.Load() && l.armed.CompareAndSwap(false, true) {
		signal(l.wake)
	}
}

func (l *logFile) lose(lines int) {
	l.dropped.Add(uint64(lines))
	l.all.Add(uint64(lines))
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (l *logFile) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for stopped := false; !stopped; {
		select {
		case <-l.wake:
			timer.Reset(logDelay)
			select {
			case <-timer.C:
			case <-l.full:
			case <-l.stop:
				stopped = true
			}
		case <-l.stop:
			stopped = true
		}
		// Before the lanes are emptied: a line that comes after that wakes again.
		l.armed.Store(false)
		l.flush()
		if l.anew.CompareAndSwap(true, false) {
			l.reopen()
		}
	}
	l.report()
	l.close()
}

func (l *logFile) close() {
	if l.out == os.Stdout || l.out == os.Stderr {
		return
	}
	if err := l.out.Close(); err != nil {
		l.log.Error("access log cannot be closed", "path", l.path, "error", err)
	}
}

// reopen opens the path again: what was there may have been moved away.
func (l *logFile) reopen() {
	out, err := openLog(l.path)
	if err != nil {
		l.log.Error("access log cannot be opened again; lines go where they went before", "path", l.path, "error", err)
		return
	}
	l.close()
	l.out = out
}

// flush writes what waits in the lanes.
func (l *logFile) flush() {
	for i := range l.lanes {
		n := &l.lanes[i]
		n.mu.Lock()
		batch := n.pending
		if len(batch) > 0 {
			n.pending = l.spare[:0]
		}
		n.mu.Unlock()
		if len(batch) == 0 {
			continue
		}
		l.spare = nil
		_, err := l.out.Write(batch)
		if err != nil && !l.failed {
			l.log.Error("access log cannot be written; lines are lost", "path", l.path, "error", err)
		}
		if l.failed = err != nil; l.failed {
			l.lose(bytes.Count(batch, []byte{'\n'}))
		}
		l.waiting.Add(-int64(len(batch)))
		if cap(batch) <= logSpare {
			l.spare = batch
		}
	}
	if time.Since(l.toldWhen) > dropsReport {
		l.report()
	}
}

// report tells how many lines are missing.
func (l *logFile) report() {
	if n := l.dropped.Load(); n != l.told {
		l.log.Warn("access log lines were dropped: they could not be written as fast as they came", "path", l.path, "lines", n-l.told)
		l.told, l.toldWhen = n, time.Now()
	}
}

// open returns the writer of a path, "/dev/stdout" and "/dev/stderr" included.
func (l *Logs) open(path string) (*logFile, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("access log %s: the process is about to end", path)
	}
	if f := l.files[path]; f != nil {
		return f, nil
	}
	out, err := openLog(path)
	if err != nil {
		return nil, err
	}
	f := &logFile{path: path, out: out, log: l.log, wake: make(chan struct{}, 1), full: make(chan struct{}, 1), stop: make(chan struct{}), all: &l.dropped}
	l.files[path] = f
	l.wg.Go(f.run)
	return f, nil
}

// openLog opens a path for appending. Non-blocking, since opening a named pipe that nobody reads would wait for ever.
func openLog(path string) (io.WriteCloser, error) {
	switch path {
	case "/dev/stdout":
		return os.Stdout, nil
	case "/dev/stderr":
		return os.Stderr, nil
	}
	// 0640: requests name people.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o640)
	if err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	return f, nil
}

// Dropped counts the lines of all files that were not written.
func (l *Logs) Dropped() uint64 { return l.dropped.Load() }

// Reopen opens every file again, as Envoy does when it gets SIGUSR1: after a rotation lines go to the new file. Lines that
// wait are written to the old one first.
func (l *Logs) Reopen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.files {
		f.anew.Store(true)
		f.armed.Store(true)
		signal(f.wake)
		signal(f.full) // at once
	}
}

// Close writes what waits, for a moment at most, and ends the writers. It may be called again.
func (l *Logs) Close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		for _, f := range l.files {
			f.closed.Store(true)
			close(f.stop)
		}
	}
	l.mu.Unlock()
	ended := make(chan struct{})
	go func() { defer close(ended); l.wg.Wait() }()
	t := time.NewTimer(lastLines)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		for path, f := range l.files { // changed by none once closed
			if n := f.waiting.Load(); n > 0 {
				l.log.Error("access log could not be written to its end", "path", path, "lost_bytes", n)
			}
		}
	}
}
