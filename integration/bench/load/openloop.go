package load

import (
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// schedule fixes in advance when each request is due: a stall of the proxy, or of the generator, takes nothing off
// the latency of the requests that were due meanwhile.
type schedule struct {
	start int64 // nanoseconds of CLOCK_MONOTONIC
	rate  int   // a second
	n     int   // requests
}

// due is when request i is to be sent. It is computed from the start, so that no error adds up.
func (s schedule) due(i int) int64 { return s.start + int64(i)*int64(time.Second)/int64(s.rate) }

func monotonic() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // it cannot fail for this clock
	return t.Nano()
}

// drain is how long after the last request was due its answer is waited for.
const drain = 5 * time.Second

// maxSamples bounds the memory of a run: 32 MiB.
const maxSamples = 4 << 20

// open is the state of an open loop; it runs on one loop.
type open struct {
	schedule
	l       *loop
	r       *Result
	next    int   // the first request that was not sent and does not wait
	waiting []int // due, with no connection at hand
	free    []*asker
	under   map[*asker]int // request under way on each busy connection
	samples []int64
	lags    []int64
	timer   int
}

// openLoop sends Rate requests a second at times fixed in advance, over Connections connections.
func openLoop(s Spec) (Result, error) {
	n := int(s.Seconds * float64(s.Rate))
	if s.Rate < 1 || n < 1 || n > maxSamples {
		return Result{}, fmt.Errorf("rate %d for %v s: must make between 1 and %d requests", s.Rate, s.Seconds, maxSamples)
	}
	l, err := newLoop()
	if err != nil {
		return Result{}, err
	}
	// The kernel gathers the timers of a thread within its slack, 50 µs by default, which would show in the latency.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	var r Result
	o := &open{l: l, r: &r, under: map[*asker]int{}, samples: make([]int64, 0, n), lags: make([]int64, 0, n)}
	request := s.request()
	for range max(s.Connections, 1) {
		a := &asker{l: l, address: s.Address, request: request, done: o.done, failed: o.failed}
		a.open(func() { o.free = append(o.free, a) })
	}
	if o.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return r, fmt.Errorf("timerfd_create: %w", err)
	}
	if err := l.watch(o.timer, o.tick); err != nil {
		return r, err
	}
	// The connections stand by the time the first request is due.
	o.schedule = schedule{start: monotonic() + int64(100*time.Millisecond), rate: s.Rate, n: n}
	o.arm()
	err = l.run(time.Now().Add(s.duration()+drain), func() bool { return len(o.samples) >= n })
	now := monotonic()
	for _, i := range o.under {
		o.lost(i, now)
	}
	for _, i := range o.waiting {
		o.lost(i, now)
	}
	for ; o.next < n; o.next++ {
		o.lost(o.next, now)
	}
	r.Latency = summary(o.samples, o.lags)
	return r, err
}

// lost counts a request without an answer: as a failure, and with the time that it was waited for.
func (o *open) lost(i int, now int64) {
	o.r.fail("no answer")
	o.samples = append(o.samples, max(now-o.due(i), 0))
}

func (o *open) arm() {
	if o.next >= o.n {
		return
	}
	at := unix.NsecToTimespec(o.due(o.next))
	if err := unix.TimerfdSettime(o.timer, unix.TFD_TIMER_ABSTIME, &unix.ItimerSpec{Value: at}, nil); err != nil {
		panic(err) // the arguments are valid
	}
}

// tick sends what is due.
func (o *open) tick() {
	var b [8]byte
	_, _ = unix.Read(o.timer, b[:]) // how often it rang does not matter: the clock says what is due
	now := monotonic()
	for o.next < o.n && o.due(o.next) <= now {
		i := o.next
		o.next++
		if len(o.free) == 0 {
			o.waiting = append(o.waiting, i)
			continue
		}
		o.lags = append(o.lags, now-o.due(i))
		a := o.free[0]
		o.free = o.free[1:]
		o.send(a, i)
	}
	o.arm()
}

func (o *open) send(a *asker, i int) {
	o.under[a] = i
	a.ask()
}

func (o *open) done(a *asker) {
	o.r.Done++
	o.over(a)
	o.idle(a)
}

// over takes the latency of the request on a connection.
func (o *open) over(a *asker) {
	if i, busy := o.under[a]; busy {
		delete(o.under, a)
		o.samples = append(o.samples, monotonic()-o.due(i))
	}
}

// idle gives a connection the next request that waits.
func (o *open) idle(a *asker) {
	if len(o.waiting) == 0 {
		o.free = append(o.free, a)
		return
	}
	i := o.waiting[0]
	o.waiting = o.waiting[1:]
	o.send(a, i)
}

func (o *open) failed(a *asker, why string) {
	if _, busy := o.under[a]; busy {
		o.r.fail(why)
		o.over(a)
	}
	switch {
	case a.s == nil: // open tries again
	case a.s.closed:
		a.s = nil
		o.free = slices.DeleteFunc(o.free, func(x *asker) bool { return x == a })
		o.l.later(time.Millisecond, func() { a.open(func() { o.idle(a) }) })
	default:
		o.idle(a)
	}
}

func summary(samples, lags []int64) *Latency {
	slices.Sort(samples)
	slices.Sort(lags)
	return &Latency{P50: Percentile(samples, 50), P99: Percentile(samples, 99), P999: Percentile(samples, 99.9), Max: Percentile(samples, 100),
		Lag: Percentile(lags, 99)}
}

// Percentile is the least of sorted values that p percent of them do not exceed (nearest rank); 0 of none.
func Percentile[T int64 | float64](sorted []T, p float64) T {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted)) * (1 - 1e-12))) // 99.9 % of 1,000 is 999, also in floating point
	return sorted[min(max(rank, 1), len(sorted))-1]
}
