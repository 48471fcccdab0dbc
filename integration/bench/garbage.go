package main

import (
	"context"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"sallyport/integration/bench/load"
)

// garbage measures what our proxy allocates and how its collector stops it: the first hop, with GODEBUG=gctrace=1.
func garbage(ctx context.Context, b *bench, r *running, t load.Spec) ([]figure, load.Result, error) {
	warm, err := b.warm(ctx, r, t)
	if err != nil {
		return nil, warm, err
	}
	var mu sync.Mutex
	var pauses []float64
	var cycles int
	follow := func(line string) {
		if p, ok := parseTrace(line); ok {
			mu.Lock()
			pauses = append(pauses, p[:]...)
			cycles++
			mu.Unlock()
		}
	}
	before, look, err := looks(ctx, r.hops[0])
	if err != nil {
		return nil, warm, err
	}
	r.processes[0].stderr.follow(follow)
	t.Seconds = b.seconds
	got, err := load.Run(ctx, b.self, t)
	r.processes[0].stderr.follow(nil)
	if err != nil {
		return nil, got, err
	}
	after, err := readHeap(ctx, r.hops[0])
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(pauses)
	n := float64(max(got.Done, 1))
	worst := func(p float64) float64 {
		if len(pauses) == 0 {
			return math.NaN()
		}
		return load.Percentile(pauses, p)
	}
	return []figure{
		{name: "bytes allocated per request", value: max(after.bytes-before.bytes-look.bytes, 0) / n},
		{name: "objects per request", value: max(after.objects-before.objects-look.objects, 0) / n},
		{name: "collections per 100,000 requests", value: float64(cycles) / n * 1e5},
		{name: "pause p99, ms", value: worst(99)},
		{name: "pause max, ms", value: worst(100)},
	}, withFailures(got, warm), err
}

// heap is what has been allocated since the start.
type heap struct{ bytes, objects float64 }

// looks returns the state before a load, and what one look at it allocates by itself.
func looks(ctx context.Context, h hop) (last, each heap, err error) {
	var bytes, objects []float64
	for i := range 6 {
		now, err := readHeap(ctx, h)
		if err != nil {
			return last, each, err
		}
		if i > 0 {
			bytes, objects = append(bytes, now.bytes-last.bytes), append(objects, now.objects-last.objects)
		}
		last = now
	}
	return last, heap{median(bytes), median(objects)}, nil
}

func readHeap(ctx context.Context, h hop) (heap, error) {
	text, err := h.adminPage(ctx, "/stats/prometheus")
	if err != nil {
		return heap{}, err
	}
	return parseHeap(string(text))
}

func parseHeap(text string) (h heap, err error) {
	found := 0
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		to := map[string]*float64{"go_memstats_alloc_bytes_total": &h.bytes, "go_memstats_mallocs_total": &h.objects}[name]
		if to == nil {
			continue
		}
		if *to, err = strconv.ParseFloat(value, 64); err != nil {
			return h, err
		}
		found++
	}
	if found != 2 {
		return h, fmt.Errorf("/stats/prometheus has %d of go_memstats_alloc_bytes_total and go_memstats_mallocs_total", found)
	}
	return h, nil
}

// A line of gctrace (package runtime): of the three times that it gives by the clock, the world is stopped in the first,
// when a cycle begins, and in the third, when marking ends.
var trace = regexp.MustCompile(`^gc \d+ @[0-9.]+s \d+%: ([0-9.]+)\+[0-9.]+\+([0-9.]+) ms clock`)

func parseTrace(line string) (pauses [2]float64, ok bool) {
	m := trace.FindStringSubmatch(line)
	if m == nil {
		return pauses, false
	}
	var err1, err2 error
	pauses[0], err1 = strconv.ParseFloat(m[1], 64)
	pauses[1], err2 = strconv.ParseFloat(m[2], 64)
	return pauses, err1 == nil && err2 == nil
}

// follow has each line from now on told; nil ends it.
func (t *tail) follow(line func(string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.line, t.part = line, nil
}
