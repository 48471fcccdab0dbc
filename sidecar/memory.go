package sidecar

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// gcPercent lets the heap grow to three times of what lives. What lives is
	// small, and handshakes are the only thing that makes garbage: at the
	// runtime's default of 100 a twentieth of their CPU goes into collecting.
	gcPercent = 200

	// A process is quiet when it allocates less than quietBytes in a period,
	// and it is worth a collection when that would give back at least returnBytes.
	trimPeriod  = 500 * time.Millisecond
	quietBytes  = 256 << 10
	returnBytes = 4 << 20
)

// memory gives memory back to the system that a burst has left behind: the
// start, a large configuration, thousands of handshakes. The runtime alone keeps
// what the heap once was, and comes to it again only when it grows; but a sidecar
// is idle most of its life, and there are as many sidecars as services.
type memory struct {
	samples []metrics.Sample
	allocs  uint64 // at the last look
	left    uint64 // what the last trim could not return
}

// The indexes of memory.samples.
const (
	sampleAllocs = iota
	sampleObjects
	sampleLive
	sampleFree
	sampleUnused
)

func newMemory() *memory {
	m := &memory{samples: make([]metrics.Sample, 5)}
	for i, name := range []string{"/gc/heap/allocs:bytes", "/memory/classes/heap/objects:bytes", "/gc/heap/live:bytes",
		"/memory/classes/heap/free:bytes", "/memory/classes/heap/unused:bytes"} {
		m.samples[i].Name = name
	}
	return m
}

// run looks once in a period until ctx ends. It first returns what the start has left.
func (m *memory) run(ctx context.Context) {
	if os.Getenv("GOGC") == "" { // what the operator says goes first
		debug.SetGCPercent(gcPercent)
	}
	m.trim()
	t := time.NewTicker(trimPeriod)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if m.due() {
				m.trim()
			}
		}
	}
}

// due says that the process has become quiet and holds memory that nobody uses,
// more than the last trim could not return (half-empty spans): that, it cannot
// return the next time either. What became free later counts though nothing was
// allocated since: requests that were under way at the last trim have ended, and
// the runtime's own collection, every two minutes, has found it.
func (m *memory) due() bool {
	metrics.Read(m.samples)
	v := func(i int) uint64 { return m.samples[i].Value.Uint64() }
	allocs := v(sampleAllocs)
	quiet := allocs-m.allocs < quietBytes
	m.allocs = allocs
	garbage := v(sampleObjects) - min(v(sampleLive), v(sampleObjects))
	return quiet && garbage+v(sampleFree)+v(sampleUnused) >= m.left+returnBytes
}

// trim collects and returns: some milliseconds of background work for each ten MiB that live.
func (m *memory) trim() {
	debug.FreeOSMemory()
	releaseFilePages()
	metrics.Read(m.samples)
	m.allocs = m.samples[sampleAllocs].Value.Uint64()
	m.left = m.samples[sampleFree].Value.Uint64() + m.samples[sampleUnused].Value.Uint64()
}
