package sidecar

import (
	"runtime"
	"runtime/debug"
	"testing"
)

var hold []byte

// TestMemoryIsDueWhenQuietAfterABurst: not during a burst, once after it, and not
// again while nothing happens.
func TestMemoryIsDueWhenQuietAfterABurst(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // what is garbage stays to be seen
	m := newMemory()
	m.trim()
	if m.due() {
		t.Error("due with nothing allocated since the last time")
	}
	for range 64 {
		hold = make([]byte, 1<<20)
	}
	hold = nil
	if m.due() {
		t.Error("due in the middle of a burst")
	}
	if !m.due() {
		t.Fatal("not due after a burst of 64 MiB")
	}
	free := m.samples[sampleFree].Value.Uint64() + m.samples[sampleObjects].Value.Uint64()
	m.trim()
	if m.due() {
		t.Error("due again though nothing happened")
	}
	if now := m.samples[sampleFree].Value.Uint64() + m.samples[sampleObjects].Value.Uint64(); now > free-60<<20 {
		t.Errorf("%d bytes were in use or free before the trim, %d are after it", free, now)
	}
}

// TestMemoryThatBecomesFreeAfterATrimIsReturned: at the trim it was in use, and nothing is allocated after it.
func TestMemoryThatBecomesFreeAfterATrimIsReturned(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	m := newMemory()
	hold = make([]byte, 64<<20)
	m.trim()
	if m.due() {
		t.Error("due while all of it is in use")
	}
	hold = nil
	runtime.GC() // as the runtime itself, in time
	if !m.due() {
		t.Fatal("not due")
	}
	m.trim()
	if m.due() {
		t.Error("due again though nothing happened")
	}
}
