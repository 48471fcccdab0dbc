package metric

import (
	"sync"
	"testing"
)

var layout = NewLayout(Desc{Name: "a"}, Desc{Name: "h", Kind: Histogram}, Desc{Name: "g", Kind: Gauge}, Desc{Name: "i", Kind: Histogram}, Desc{Name: "z"})

func TestMetricsDoNotOverlap(t *testing.T) {
	s := NewSet(layout, 1)
	b := s.At(0)
	b.Inc(0)
	b.Add(2, 5)
	b.Add(2, -7)
	b.Add(4, 3)
	for _, ms := range []float64{0, 0.5, 0.51, 3600000, 3600001} {
		b.Observe(1, ms)
	}
	b.Observe(3, 7)
	for i, want := range map[int]int64{0: 1, 2: -2, 4: 3} {
		if got := s.Value(i); got != want {
			t.Errorf("metric %d is %d, want %d", i, got, want)
		}
	}
	d := s.Distribution(1)
	if d.Total != 5 || d.Counts[0] != 2 || d.Counts[1] != 1 || d.Counts[len(Buckets)-1] != 1 || d.Counts[len(Buckets)] != 1 || d.Sum != 7200002.01 {
		t.Errorf("%+v", d)
	}
	if d := s.Distribution(3); d.Total != 1 || d.Counts[3] != 1 || d.Sum != 7 {
		t.Errorf("%+v", d)
	}
}

func TestANegativeDurationIsZero(t *testing.T) {
	s := NewSet(layout, 0)
	s.Shared().Observe(1, -5)
	if d := s.Distribution(1); d.Total != 1 || d.Counts[0] != 1 || d.Sum != 0 {
		t.Errorf("%+v", d)
	}
}

func TestBucketsRise(t *testing.T) {
	for i := 1; i < len(Buckets); i++ {
		if Buckets[i] <= Buckets[i-1] {
			t.Errorf("bucket %d is not above the one before", i)
		}
	}
}

func TestManyWorkersAndReaders(t *testing.T) {
	const workers, n = 4, 1000
	s := NewSet(layout, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for range n {
				s.At(w).Inc(0)
				s.Shared().Inc(0)
				s.Shared().Observe(1, 1)
			}
		})
		wg.Go(func() {
			last := int64(0)
			for range n {
				v := s.Value(0)
				if v < last {
					t.Errorf("a counter fell from %d to %d", last, v)
				}
				last = v
			}
		})
	}
	wg.Wait()
	if s.Value(0) != 2*workers*n || s.Distribution(1).Total != workers*n {
		t.Errorf("%d, %d", s.Value(0), s.Distribution(1).Total)
	}
}

func TestRegistryKeepsAndDrops(t *testing.T) {
	r := NewRegistry(1)
	a := r.Set("cluster", "a", layout)
	a.At(0).Inc(0)
	if r.Set("cluster", "a", layout) != a {
		t.Error("a set that is asked for again is another one")
	}
	r.Set("listener", "a", layout)
	r.Set("cluster", "b", layout)
	f := r.Families()
	if len(f) != 3 || f[0].Name != "a" || f[1].Name != "b" || f[2].Prefix != "listener" {
		t.Errorf("%v", f)
	}
	r.Drop("cluster", "a")
	r.Drop("cluster", "never was")
	if len(r.Families()) != 2 || r.Set("cluster", "a", layout) == a {
		t.Error("a dropped set is still there")
	}
	one := r.Single("x")
	one.Inc()
	r.Single("x").Inc()
	if one.Load() != 2 || r.Singles()["x"] != 2 {
		t.Error("a single counter is not one")
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	s := NewSet(layout, 1)
	s.At(0)
	if n := testing.AllocsPerRun(100, func() { s.At(0).Inc(0); s.At(0).Observe(1, 12) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkInc(b *testing.B) {
	s := NewSet(layout, 1)
	b.ReportAllocs()
	for b.Loop() {
		s.At(0).Inc(0)
	}
}

func BenchmarkObserve(b *testing.B) {
	s := NewSet(layout, 1)
	b.ReportAllocs()
	for b.Loop() {
		s.At(0).Observe(1, 40)
	}
}

func TestALayoutNamesEachOfItsMetrics(t *testing.T) {
	const (
		statA = iota
		statB
		statC
		count
	)
	for _, c := range []struct {
		name  string
		descs [count]Desc
		want  string
	}{
		{"all are named", [count]Desc{statA: {Name: "a"}, statB: {Name: "b"}, statC: {Name: "c"}}, ""},
		{"one in the middle was left out", [count]Desc{statA: {Name: "a"}, statC: {Name: "c"}}, "metric 1 of 3 has no name"},
		{"the last was left out", [count]Desc{statA: {Name: "a"}, statB: {Name: "b"}}, "metric 2 of 3 has no name"},
		{"two have one name", [count]Desc{statA: {Name: "a"}, statB: {Name: "b"}, statC: {Name: "a"}}, `metrics 0 and 2 have the same name "a"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer func() {
				if got, _ := recover().(string); got != c.want {
					t.Errorf("panicked with %q, want %q", got, c.want)
				}
			}()
			NewLayout(c.descs[:]...)
		})
	}
}
