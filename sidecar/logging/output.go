package logging

import (
	"bytes"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxPending bounds the lines that wait; as much again may be in the hands of the goroutine that writes.
	maxPending = 1 << 20
	// maxLine is what is kept of one line.
	maxLine = 16 << 10
	// pipeBuf is what a pipe takes as a whole (PIPE_BUF, pipe(7)): lines of processes that share one do not mix.
	pipeBuf = 4 << 10
	// maxKept is the memory that is kept for the next lines; more was a burst.
	maxKept = 64 << 10
)

// Output is where a process writes its lines. Before Start a write goes straight through and may wait, as is right for a
// command whose output a person reads; from Start on no write waits. Safe for concurrent use.
type Output struct {
	w io.Writer

	mu      sync.Mutex // held for copying a line, never for writing it
	started bool
	closed  bool
	pending []byte
	wake    chan struct{} // something waits, or closed
	done    chan struct{} // the goroutine has ended

	dropped atomic.Uint64 // lines
}

// NewOutput returns an Output that writes to w.
func NewOutput(w io.Writer) *Output {
	return &Output{w: w, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// Start has one goroutine write from here on, until Close.
func (o *Output) Start() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.started && !o.closed {
		o.started = true
		go o.run()
	}
}

// Write takes whole lines. After Start it never waits and never fails.
func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	if !o.started {
		o.mu.Unlock()
		return o.w.Write(b)
	}
	n := len(b)
	if n > maxLine {
		b = append(b[:maxLine-1:maxLine-1], '\n')
	}
	if o.closed || len(o.pending)+len(b) > maxPending {
		o.mu.Unlock()
		o.dropped.Add(1)
		return n, nil
	}
	o.pending = append(o.pending, b...)
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return n, nil
}

// Dropped counts the lines that were not written: they came faster than they could be, or writing failed.
func (o *Output) Dropped() uint64 { return o.dropped.Load() }

// Close writes what waits, for at most that long. What comes later is dropped.
func (o *Output) Close(limit time.Duration) {
	o.mu.Lock()
	started, again := o.started, o.closed
	o.started, o.closed = true, true // straight through no more
	o.mu.Unlock()
	if !started || again {
		return
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-o.done:
	case <-t.C:
	}
}

func (o *Output) run() {
	defer close(o.done)
	var batch []byte
	told := uint64(0)
	for {
		o.mu.Lock()
		batch, o.pending = o.pending, batch[:0]
		closed := o.closed
		o.mu.Unlock()
		if len(batch) == 0 && !closed {
			<-o.wake
			continue
		}
		// What is missing is told where it is missing, behind what waited when the queue was full; and at the end. Never by
		// itself: where writing fails, that line would be missing too.
		if n := o.dropped.Load(); n != told {
			batch = append(batch, lost(n-told)...)
			told = n
		}
		o.write(batch)
		if closed {
			return
		}
		if cap(batch) > maxKept {
			batch = nil
		}
	}
}

// write writes lines, as many at a time as a pipe takes as a whole.
func (o *Output) write(b []byte) {
	for len(b) > 0 {
		n := min(len(b), pipeBuf)
		if i := bytes.LastIndexByte(b[:n], '\n'); i >= 0 {
			n = i + 1
		} else if i := bytes.IndexByte(b, '\n'); i >= 0 { // a longer line
			n = i + 1
		} else {
			n = len(b)
		}
		if _, err := o.w.Write(b[:n]); err != nil {
			o.dropped.Add(uint64(bytes.Count(b[:n], []byte{'\n'})))
		}
		b = b[n:]
	}
}

// lost is the line about lines that were dropped, as the logger itself would write it.
func lost(n uint64) []byte {
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Warn("lines of this log were dropped: they could not be written as fast as they came", "lines", n)
	return b.Bytes()
}
