// Package metric counts. A Set is a fixed list of counters, gauges and
// histograms for one thing (a cluster, a listener); each worker adds to a
// block of its own, so that counting is an uncontended add, and a block is
// made when its worker first counts, so that a thing that sees no traffic
// costs nothing. Readers sum the blocks. Package telemetry writes them out.
package metric

import (
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
)

// Kind of a metric.
type Kind uint8

const (
	Counter Kind = iota
	Gauge
	// Histogram takes len(Buckets)+2 cells: the buckets, +Inf, and the sum.
	Histogram
)

// Buckets are the upper bounds of histograms, in milliseconds, as Envoy's defaults.
var Buckets = [...]float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

const histogramCells = len(Buckets) + 2

// Desc describes one metric of a Layout.
type Desc struct {
	Name string // within its prefix: "upstream_rq_total"
	Kind Kind
}

// Layout is the list of metrics of one kind of thing, built once.
type Layout struct {
	Descs []Desc
	at    []int // first cell of each
	cells int
}

// NewLayout lays the metrics out; they are addressed by their index in descs. A package writes them as one table, indexed by
// its constants, whose last constant is the number of metrics:
//
//	var descs = [statCount]metric.Desc{
//		statTotal:  {Name: "downstream_cx_total"},
//		statActive: {Name: "downstream_cx_active", Kind: metric.Gauge},
//	}
//	var stats = metric.NewLayout(descs[:]...)
//
// So the compiler refuses an entry too many, and NewLayout panics, which every test of the package sees, where an entry
// has no name or the name of another: a value would be counted under the wrong name, or under none.
func NewLayout(descs ...Desc) *Layout {
	l := &Layout{Descs: descs, at: make([]int, len(descs))}
	index := make(map[string]int, len(descs))
	for i, d := range descs {
		if d.Name == "" {
			panic(fmt.Sprintf("metric %d of %d has no name", i, len(descs)))
		}
		if first, taken := index[d.Name]; taken {
			panic(fmt.Sprintf("metrics %d and %d have the same name %q", first, i, d.Name))
		}
		index[d.Name] = i
		l.at[i] = l.cells
		l.cells++
		if d.Kind == Histogram {
			l.cells += histogramCells - 1
		}
	}
	return l
}

// Set holds the values of one thing. Safe for concurrent use; a Block belongs to a worker.
type Set struct {
	layout *Layout
	blocks []atomic.Pointer[Block]
}

// Block is one worker's cells.
type Block struct {
	layout *Layout
	cells  []atomic.Uint64
}

// NewSet returns a set for that many workers and one more block for everybody else (index workers).
func NewSet(l *Layout, workers int) *Set {
	return &Set{layout: l, blocks: make([]atomic.Pointer[Block], workers+1)}
}

// At returns the worker's block.
func (s *Set) At(worker int) *Block {
	if b := s.blocks[worker].Load(); b != nil {
		return b
	}
	b := &Block{layout: s.layout, cells: make([]atomic.Uint64, s.layout.cells)}
	if !s.blocks[worker].CompareAndSwap(nil, b) {
		return s.blocks[worker].Load()
	}
	return b
}

// Shared returns the block for goroutines that are not a worker.
func (s *Set) Shared() *Block { return s.At(len(s.blocks) - 1) }

// Inc adds one to the i-th metric.
func (b *Block) Inc(i int) { b.cells[b.layout.at[i]].Add(1) }

// Add adds n, which is negative for a gauge that falls.
func (b *Block) Add(i int, n int64) { b.cells[b.layout.at[i]].Add(uint64(n)) }

// Observe adds a value, in milliseconds, to a histogram. A negative one, of a
// clock that was set back, counts as zero.
func (b *Block) Observe(i int, ms float64) {
	ms = max(ms, 0)
	at := b.layout.at[i]
	n := 0
	for n < len(Buckets) && ms > Buckets[n] {
		n++
	}
	b.cells[at+n].Add(1)
	b.cells[at+histogramCells-1].Add(uint64(ms * 1000))
}

// Value sums a counter or gauge over the workers.
func (s *Set) Value(i int) int64 { return int64(s.cell(s.layout.at[i])) }

func (s *Set) cell(at int) (sum uint64) {
	for w := range s.blocks {
		if b := s.blocks[w].Load(); b != nil {
			sum += b.cells[at].Load()
		}
	}
	return sum
}

// Distribution is the state of a histogram: counts per bucket (the last is
// +Inf), their total and the sum of the values in milliseconds.
type Distribution struct {
	Counts [len(Buckets) + 1]uint64
	Total  uint64
	Sum    float64
}

// Distribution sums a histogram over the workers.
func (s *Set) Distribution(i int) (d Distribution) {
	at := s.layout.at[i]
	for n := range d.Counts {
		d.Counts[n] = s.cell(at + n)
		d.Total += d.Counts[n]
	}
	d.Sum = float64(s.cell(at+histogramCells-1)) / 1000
	return d
}

// Layout returns the list of the set's metrics.
func (s *Set) Layout() *Layout { return s.layout }

// Family is a registered Set: Prefix is the kind of thing ("cluster",
// "listener", "http", "tcp"), Name which one, as in Envoy's
// cluster.<name>.upstream_rq_total and envoy_cluster_upstream_rq_total{envoy_cluster_name="<name>"}.
type Family struct {
	Prefix, Name string
	Set          *Set
}

// Registry knows all sets of the process. Safe for concurrent use.
type Registry struct {
	Workers int

	mu       sync.Mutex
	families map[[2]string]*Family
	single   map[string]*Single
	outside  map[string]func() uint64
}

// Single is a counter outside of any set, for filters. Safe for concurrent use.
type Single struct{ v atomic.Uint64 }

// Inc adds one.
func (s *Single) Inc() { s.v.Add(1) }

// Load returns the value.
func (s *Single) Load() uint64 { return s.v.Load() }

// NewRegistry returns a registry for sets with that many workers.
func NewRegistry(workers int) *Registry {
	return &Registry{Workers: workers, families: map[[2]string]*Family{}, single: map[string]*Single{}}
}

// Set returns the set of that prefix and name and makes it where it is new: a
// cluster that is updated goes on counting.
func (r *Registry) Set(prefix, name string, l *Layout) *Set {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := [2]string{prefix, name}
	f := r.families[key]
	if f == nil {
		f = &Family{Prefix: prefix, Name: name, Set: NewSet(l, r.Workers)}
		r.families[key] = f
	}
	return f.Set
}

// Drop forgets a set: series of removed things do not stay for ever.
func (r *Registry) Drop(prefix, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.families, [2]string{prefix, name})
}

// Single returns the counter with that dotted name.
func (r *Registry) Single(name string) *Single {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.single[name]
	if s == nil {
		s = &Single{}
		r.single[name] = s
	}
	return s
}

// Outside adds a counter that something else keeps, the kernel for example; it
// is asked whenever values are read.
func (r *Registry) Outside(name string, value func() uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.outside == nil {
		r.outside = map[string]func() uint64{}
	}
	r.outside[name] = value
}

// Families returns all sets, sorted by prefix and name.
func (r *Registry) Families() []*Family {
	r.mu.Lock()
	all := make([]*Family, 0, len(r.families))
	for _, f := range r.families {
		all = append(all, f)
	}
	r.mu.Unlock()
	sort.Slice(all, func(i, j int) bool {
		if all[i].Prefix != all[j].Prefix {
			return all[i].Prefix < all[j].Prefix
		}
		return all[i].Name < all[j].Name
	})
	return all
}

// Singles returns the single counters' values by name.
func (r *Registry) Singles() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := make(map[string]uint64, len(r.single))
	for n, s := range r.single {
		m[n] = s.v.Load()
	}
	for n, value := range r.outside {
		m[n] = value()
	}
	return m
}
