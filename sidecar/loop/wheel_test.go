package loop

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// testClock is a clock that a test moves.
type testClock struct{ now time.Time }

func (c *testClock) Now() time.Time { return c.now }

func newTestWorker(t testing.TB) (*Worker, *testClock) {
	t.Helper()
	c := &testClock{now: time.Unix(1000, 0)}
	w, err := NewWithClock(1, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w, c
}

// TestWheelAgainstModel compares the wheel with a plain list of due times
// under random schedules, stops, moves and jumps of time.
func TestWheelAgainstModel(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		w, clock := newTestWorker(t)
		const timers = 40
		var (
			ts    [timers]Timer
			due   [timers]int64 // in nanoseconds since start, 0 while not running
			fired []int
		)
		for i := range ts {
			ts[i].Init(func() { fired = append(fired, i) })
		}
		spans := []time.Duration{3 * time.Millisecond, 70 * time.Millisecond, 5 * time.Second, 10 * time.Minute, 24 * time.Hour, 300 * 24 * time.Hour}
		for range 400 {
			i := rnd.IntN(timers)
			span := spans[rnd.IntN(len(spans))]
			switch rnd.IntN(4) {
			case 0, 1:
				d := time.Duration(rnd.Int64N(int64(span)))
				w.Schedule(&ts[i], d)
				due[i] = w.NowMono() + int64(d)
			case 2:
				ts[i].Stop()
				due[i] = 0
			case 3:
				before := w.NowMono()
				clock.now = clock.now.Add(time.Duration(rnd.Int64N(int64(span))))
				fired = fired[:0]
				w.Step(0)
				now := w.NowMono()
				for _, i := range fired {
					if due[i] == 0 || due[i] > now {
						t.Fatalf("seed %d: timer %d fired at %d, due at %d", seed, i, now, due[i])
					}
					due[i] = 0
				}
				for i := range due {
					// A tick is allowed: time is rounded up to one, and a
					// timer never fires in the tick in which it was made.
					if due[i] != 0 && due[i] <= now-2*int64(tick) && due[i] > before {
						t.Fatalf("seed %d: timer %d did not fire at %d, due at %d", seed, i, now, due[i])
					}
				}
			}
			for i := range ts {
				if ts[i].Scheduled() != (due[i] != 0) {
					t.Fatalf("seed %d: timer %d: Scheduled %v, due %d", seed, i, ts[i].Scheduled(), due[i])
				}
			}
		}
		w.Close()
	}
}

func TestTimersFireInOrder(t *testing.T) {
	w, clock := newTestWorker(t)
	var got []int
	var ts [6]Timer
	for i, ms := range []int{500, 3, 64, 65, 4096, 1} {
		ts[i].Init(func() { got = append(got, ms) })
		w.Schedule(&ts[i], time.Duration(ms)*time.Millisecond)
	}
	clock.now = clock.now.Add(time.Minute)
	w.Step(0)
	if want := []int{1, 3, 64, 65, 500, 4096}; !slices.Equal(got, want) {
		t.Fatalf("fired in the order %v, want %v", got, want)
	}
}

func TestTimerStopsAnotherOneThatIsDue(t *testing.T) {
	w, clock := newTestWorker(t)
	var a, b Timer
	fired := 0
	a.Init(func() { fired++; b.Stop() })
	b.Init(func() { fired++; a.Stop() })
	w.Schedule(&a, time.Millisecond)
	w.Schedule(&b, time.Millisecond)
	clock.now = clock.now.Add(time.Second)
	w.Step(0)
	if fired != 1 {
		t.Fatalf("%d timers fired, want the first alone", fired)
	}
}

func TestTimerSchedulesItself(t *testing.T) {
	w, clock := newTestWorker(t)
	var a Timer
	n := 0
	a.Init(func() { n++; w.Schedule(&a, 0) })
	w.Schedule(&a, 0)
	for range 10 {
		clock.now = clock.now.Add(2 * time.Millisecond)
		w.Step(0)
	}
	if n != 10 {
		t.Fatalf("fired %d times in 10 turns, want once per turn", n)
	}
}

func TestManyDueTimersAreCappedPerTurn(t *testing.T) {
	w, clock := newTestWorker(t)
	n := 0
	ts := make([]Timer, 3*maxTimers)
	for i := range ts {
		ts[i].Init(func() { n++ })
		w.Schedule(&ts[i], time.Millisecond)
	}
	clock.now = clock.now.Add(time.Second)
	for turn := 1; turn <= 3; turn++ {
		w.Step(time.Hour) // must not sleep: timers are due
		if n != turn*maxTimers {
			t.Fatalf("turn %d: %d fired, want %d", turn, n, turn*maxTimers)
		}
	}
}

func TestSleepEndsAtTheNextTimer(t *testing.T) {
	w, err := New(0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var a Timer
	fired := false
	a.Init(func() { fired = true })
	w.Step(0)
	w.Schedule(&a, 20*time.Millisecond)
	start := time.Now()
	for !fired {
		w.Step(time.Hour)
	}
	if d := time.Since(start); d < 19*time.Millisecond {
		t.Fatalf("fired after %v, too early", d)
	}
}

func TestHugeDurationsAreClamped(t *testing.T) {
	w, clock := newTestWorker(t)
	var a Timer
	a.Init(func() { t.Error("fired") })
	w.Schedule(&a, time.Duration(1<<63-1))
	clock.now = clock.now.Add(100 * 365 * 24 * time.Hour)
	w.Step(0)
	if !a.Scheduled() {
		t.Fatal("the timer is lost")
	}
	if ms, ok := w.wheel.sleep(uint64(w.nowMono)); !ok || ms <= 0 {
		t.Fatalf("sleep: %d, %v", ms, ok)
	}
}

func BenchmarkTimerMove(b *testing.B) {
	w, _ := newTestWorker(b)
	ts := make([]Timer, 10000)
	for i := range ts {
		ts[i].Init(func() {})
		w.Schedule(&ts[i], time.Duration(i)*time.Millisecond)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		w.Schedule(&ts[i%len(ts)], 15*time.Second)
	}
}

func BenchmarkTimerFire(b *testing.B) {
	w, clock := newTestWorker(b)
	ts := make([]Timer, 1000)
	for i := range ts {
		t := &ts[i]
		t.Init(func() { w.Schedule(t, time.Duration(1+i%97)*time.Millisecond) })
		t.f()
	}
	b.ReportAllocs()
	for b.Loop() {
		clock.now = clock.now.Add(time.Millisecond)
		w.tick()
		w.wheel.advance(uint64(w.nowMono)/tick, 1<<20)
	}
}

func TestWhatIsLeftOfATimer(t *testing.T) {
	w, clock := newTestWorker(t)
	var timer Timer
	timer.Init(func() {})
	if d := w.Left(&timer); d != 0 {
		t.Errorf("a timer that does not run has %v left", d)
	}
	w.Schedule(&timer, 3*time.Second)
	for _, want := range []time.Duration{3 * time.Second, 2 * time.Second, time.Second} {
		if d := w.Left(&timer); d != want {
			t.Errorf("%v is left, want %v", d, want)
		}
		clock.now = clock.now.Add(time.Second)
		w.tick()
	}
	if d := w.Left(&timer); d != time.Millisecond {
		t.Errorf("a timer that is due has %v left, want the least", d)
	}
	timer.Stop()
	if d := w.Left(&timer); d != 0 {
		t.Errorf("a timer that was stopped has %v left", d)
	}
}
