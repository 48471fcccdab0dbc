package sidecar

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/config"
	"sallyport/sidecar/panics"
)

// TestAPanicOnAWorkerIsSurvivedCountedAndLogged: start arms the workers.
func TestAPanicOnAWorkerIsSurvivedCountedAndLogged(t *testing.T) {
	boot, err := config.Load("", "static_resources: {}")
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	p := &process{o: Options{Concurrency: 1}, log: slog.New(slog.NewTextHandler(&log, nil)), boot: boot, started: time.Now()}
	defer p.stop()
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	before := panics.Count()
	p.workers[0].Post(func() { panic("bad filter") })
	alive := make(chan struct{})
	p.workers[0].Post(func() { close(alive) })
	select {
	case <-alive:
	case <-time.After(20 * time.Second):
		t.Fatal("the worker is gone")
	}
	if n := p.metrics.Singles()[panics.Counter]; n != before+1 {
		t.Errorf("%d panics were counted, want %d", n, before+1)
	}
	if !strings.Contains(log.String(), "bad filter") || !strings.Contains(log.String(), "sidecar.TestAPanicOnAWorker") {
		t.Errorf("the log does not say what and where:\n%s", log.String())
	}
}
