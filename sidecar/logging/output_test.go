package logging

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// gate is a pipe that nobody reads until it is opened.
type gate struct {
	open    chan struct{}
	entered chan struct{} // a write has begun
	mu      sync.Mutex
	got     bytes.Buffer
	largest int
}

func newGate() *gate { return &gate{open: make(chan struct{}), entered: make(chan struct{}, 1000)} }

func (g *gate) Write(b []byte) (int, error) {
	g.entered <- struct{}{}
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	g.largest = max(g.largest, len(b))
	return g.got.Write(b)
}

func TestNobodyWaitsForAPipeThatNobodyReads(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd, err := syscall.Dup(int(w.Fd())) // blocking, as a process finds its stderr
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "stderr")
	out := NewOutput(f)
	out.Start()
	log, _ := New(out, slog.LevelInfo)
	// Each line waits for ever if a single one does: that this returns is the test.
	for i := range 20000 {
		log.Warn("TLS handshake failed", "n", i, "error", strings.Repeat("x", 200))
	}
	if out.Dropped() == 0 {
		t.Error("5 MB went into a pipe that nobody reads, and nothing was dropped")
	}
	out.Close(time.Millisecond) // returns though the pipe is full
	before := out.Dropped()
	if log.Info("after the end"); out.Dropped() != before+1 {
		t.Error("a line after Close is not counted as dropped")
	}
	// The goroutine that still waits for the pipe ends with its reader.
	r.Close()
	<-out.done
	f.Close()
}

func TestWhatDoesNotFitIsCountedAndTold(t *testing.T) {
	g := newGate()
	out := NewOutput(g)
	out.Start()
	write := func(text string) { fmt.Fprintln(out, text) }
	write("first")
	<-g.entered // the goroutine holds it; what comes now waits
	line := strings.Repeat("x", 1023)
	for range maxPending>>10 + 7 {
		write(line)
	}
	if got := out.Dropped(); got != 7 {
		t.Errorf("%d lines dropped, want 7", got)
	}
	close(g.open)
	out.Close(time.Minute)
	got := g.got.String()
	if !strings.HasPrefix(got, "first\n"+line+"\n") || strings.Count(got, line+"\n") != maxPending>>10 {
		t.Errorf("%d of the lines that waited were written, want %d", strings.Count(got, line), maxPending>>10)
	}
	if last := regexp.MustCompile(`time=\S+ level=WARN msg="lines of this log were dropped[^"]*" lines=7\n$`); !last.MatchString(got) {
		t.Errorf("the end does not tell what is missing: %q", got[max(0, len(got)-200):])
	}
	if g.largest > pipeBuf {
		t.Errorf("%d bytes in one write: processes that share a pipe mix their lines", g.largest)
	}
}

func TestBeforeStartAWriteGoesStraightThrough(t *testing.T) {
	var b bytes.Buffer
	out := NewOutput(&b)
	fmt.Fprintln(out, "usage: …")
	if b.String() != "usage: …\n" {
		t.Errorf("%q", b.String())
	}
	out.Close(time.Minute)
}

func TestCloseWritesWhatWaits(t *testing.T) {
	var b bytes.Buffer
	out := NewOutput(&b)
	out.Start()
	var want strings.Builder
	for i := range 1000 {
		fmt.Fprintln(io.MultiWriter(out, &want), "line", i)
	}
	out.Close(time.Minute)
	out.Close(time.Minute)
	if b.String() != want.String() {
		t.Errorf("%d bytes of %d were written", b.Len(), want.Len())
	}
}

type broken struct{ writes int }

func (b *broken) Write([]byte) (int, error) { b.writes++; return 0, syscall.EPIPE }

func TestAReaderThatWentAwayIsNotTriedForEver(t *testing.T) {
	b := &broken{}
	out := NewOutput(b)
	out.Start()
	fmt.Fprintln(out, "lost")
	out.Close(time.Minute)
	if b.writes > 3 || out.Dropped() == 0 {
		t.Errorf("%d writes, %d dropped", b.writes, out.Dropped())
	}
}

func TestALineHasABound(t *testing.T) {
	var b bytes.Buffer
	out := NewOutput(&b)
	out.Start()
	log, _ := New(out, slog.LevelInfo)
	huge := strings.Repeat("y", 1<<20)
	log.Info("text", "value", huge)
	log.Info("error", "error", errors.New(huge))
	log.Info("bytes", "value", []byte(huge))
	log.Info(huge)
	many := []any{}
	for i := range 100 {
		many = append(many, fmt.Sprint("field", i), huge)
	}
	log.Info("many", many...)
	out.Close(time.Minute)
	lines := strings.SplitAfter(b.String(), "\n")
	if len(lines) != 6 || lines[5] != "" {
		t.Fatalf("%d lines, want 5", len(lines)-1)
	}
	for i, l := range lines[:4] {
		if len(l) > maxValue+500 || !strings.Contains(l, "1048576 bytes") {
			t.Errorf("line %d has %d bytes, and should say what was cut: %s", i, len(l), l[max(0, len(l)-60):])
		}
	}
	if l := lines[4]; len(l) != maxLine {
		t.Errorf("the line of many fields has %d bytes, want %d", len(l), maxLine)
	}
}

func TestManyWritersAndOneEnd(t *testing.T) {
	var b bytes.Buffer
	out := NewOutput(&b)
	out.Start()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				fmt.Fprintln(out, "a line that is whole")
			}
		})
	}
	wg.Wait()
	out.Close(time.Minute)
	whole := strings.Count(b.String(), "a line that is whole\n")
	if whole+int(out.Dropped()) != 8000 {
		t.Errorf("%d written and %d dropped of 8000", whole, out.Dropped())
	}
}

func TestLevelsAreEnvoys(t *testing.T) {
	for name, want := range map[string]slog.Level{"trace": slog.LevelDebug - 4, "Debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn,
		"error": slog.LevelError, "critical": slog.LevelError + 4} {
		if got, err := ParseLevel(name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := ParseLevel("loud"); err == nil {
		t.Error("loud is a level")
	}
}
