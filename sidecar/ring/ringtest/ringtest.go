// Package ringtest has the workers of tests use a ring, as those of the process do. With SALLYPORT_IO_URING=off in the
// environment they use none: "make unit" runs the packages that own sockets in both ways.
package ringtest

import (
	"os"
	"testing"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/ring"
)

// Use gives a worker that runs its ring, by conn.Batch. Where the system has no io_uring, the worker goes without.
func Use(t testing.TB, w *loop.Worker, batch func(*loop.Worker, *ring.Ring)) {
	t.Helper()
	if os.Getenv("SALLYPORT_IO_URING") == "off" {
		return
	}
	made := make(chan error)
	w.Post(func() {
		r, err := ring.New()
		if err == nil {
			batch(w, r)
		}
		made <- err
	})
	if err := <-made; err != nil {
		t.Logf("without a ring: %v", err)
	}
}
