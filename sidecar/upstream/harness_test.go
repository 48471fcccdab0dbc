package upstream

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/ring/ringtest"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// endpoints returns n endpoints of weight 1 at 10.0.0.1:80, 10.0.0.2:80, ….
func endpoints(n int) []Endpoint {
	var out []Endpoint
	for i := range n {
		out = append(out, Endpoint{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte((i + 1) >> 8), byte(i + 1)}), 80), Weight: 1})
	}
	return out
}

func at(addr string) Endpoint { return Endpoint{Address: netip.MustParseAddrPort(addr), Weight: 1} }

func config(name string, hosts ...Endpoint) *Config {
	b := Breakers{Connections: 1024, Pending: 1024, Requests: 1024, Retries: 3}
	return &Config{Name: name, StatName: name, Hash: 1, Endpoints: hosts, PanicThreshold: 50, Breakers: [2]Breakers{b, b}}
}

// registry is one without workers, whose clusters only choose; picks name worker 0.
func registry(t testing.TB) *Registry {
	r := NewRegistry(nil, metric.NewRegistry(1), quiet)
	t.Cleanup(r.Close)
	return r
}

// clusterOf makes a cluster of one registry of its own; round robin needs a worker's position.
func clusterOf(t testing.TB, cfg *Config) *Cluster {
	t.Helper()
	r := registry(t)
	r.Set(cfg)
	c := r.Lookup(cfg.Name)
	c.turn = make([]turn, 1)
	return c
}

// spread counts who is chosen in n picks, by address.
func spread(c *Cluster, n int, p Pick) map[string]int {
	out := map[string]int{}
	for range n {
		p := p
		if h := c.Host(&p); h != nil {
			out[h.String()]++
		} else {
			out["none"]++
		}
	}
	return out
}

func host(i int) string { return fmt.Sprintf("10.0.0.%d:80", i) }

// newWorkers starts workers that stop with the test.
func newWorkers(t testing.TB, n int) []*loop.Worker {
	t.Helper()
	var out []*loop.Worker
	for i := range n {
		w, err := loop.New(i)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { w.Run(); close(done) }()
		t.Cleanup(func() { w.Stop(); <-done })
		ringtest.Use(t, w, conn.Batch)
		out = append(out, w)
	}
	return out
}

// on runs f on the worker and waits for it.
func on(w *loop.Worker, f func()) {
	done := make(chan struct{})
	w.Post(func() { f(); close(done) })
	<-done
}

func registryWith(t testing.TB, workers []*loop.Worker) *Registry {
	r := NewRegistry(workers, metric.NewRegistry(len(workers)), quiet)
	t.Cleanup(r.Close)
	return r
}

var quietLog = slog.NewLogLogger(quiet.Handler(), slog.LevelError)

// shrink sets the backlog of a listening socket to nothing.
func shrink(t testing.TB, raw syscall.RawConn) {
	t.Helper()
	err := raw.Control(func(fd uintptr) {
		if err := unix.Listen(int(fd), 0); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
