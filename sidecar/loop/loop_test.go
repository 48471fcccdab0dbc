package loop

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func run(t testing.TB) *Worker {
	t.Helper()
	w, err := New(0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run()
	}()
	t.Cleanup(func() {
		w.Stop()
		<-done
	})
	return w
}

func TestPostFromManyGoroutinesKeepsTheOrderOfEach(t *testing.T) {
	w := run(t)
	const posters, each = 16, 2000
	var last [posters]int
	var wg sync.WaitGroup
	wg.Add(posters * each)
	for p := range posters {
		go func() {
			for i := range each {
				w.Post(func() {
					if last[p] != i {
						t.Errorf("poster %d: function %d ran after %d", p, i, last[p])
					}
					last[p] = i + 1
					wg.Done()
				})
			}
		}()
	}
	wg.Wait()
}

// TestPostWakesASleeper would hang if a wake-up could be lost between the last
// look at the queue and the sleep.
func TestPostWakesASleeper(t *testing.T) {
	w := run(t)
	c := make(chan int)
	for i := range 20000 {
		w.Post(func() { c <- i })
		if got := <-c; got != i {
			t.Fatalf("got %d, want %d", got, i)
		}
	}
}

func TestPostWhileStoppingNeverHangsOrPanics(t *testing.T) {
	for range 50 {
		w, err := New(0)
		if err != nil {
			t.Fatal(err)
		}
		var ran atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 100 {
					w.Post(func() { ran.Add(1) })
				}
			})
		}
		w.Post(w.Stop)
		w.Run()
		wg.Wait()
		w.Post(func() { t.Error("ran after the end") })
	}
}

type handlerFunc func(Events)

func (f handlerFunc) Event(e Events) { f(e) }

func pipe(t *testing.T) (r, wr int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	return p[0], p[1]
}

// TestStaleEventDoesNotReachTheNextOwner: both pipes are ready in one batch;
// the first handler closes the other's descriptor and registers a new pipe that gets its number.
func TestStaleEventDoesNotReachTheNextOwner(t *testing.T) {
	w, _ := newTestWorker(t)
	r1, w1 := pipe(t)
	r2, w2 := pipe(t)
	var token [2]Token
	var calls [2]int
	replaced := false
	handle := func(i, other int, otherFD int) handlerFunc {
		return func(Events) {
			calls[i]++
			if replaced {
				return
			}
			replaced = true
			w.Forget(token[other])
			unix.Close(otherFD)
			r3, _ := pipe(t)
			if r3 != otherFD {
				t.Logf("the number was not reused: %d, %d", r3, otherFD)
			}
			if _, err := w.Add(r3, handlerFunc(func(Events) { t.Error("an event of the closed descriptor arrived") }), In|Edge); err != nil {
				t.Fatal(err)
			}
		}
	}
	var err error
	if token[0], err = w.Add(r1, handle(0, 1, r2), In|Edge); err != nil {
		t.Fatal(err)
	}
	if token[1], err = w.Add(r2, handle(1, 0, r1), In|Edge); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{w1, w2} {
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	w.Step(0)
	if calls[0]+calls[1] != 1 {
		t.Fatalf("handlers were called %v times, want one of them once", calls)
	}
	w.Step(0)
	// Forget with a token that is used up must not touch the new registration.
	n := w.Registered()
	w.Forget(token[0])
	w.Forget(token[1])
	w.Forget(token[1])
	if calls[0] == 1 && w.Registered() != n-1 || calls[1] == 1 && w.Registered() != n-1 {
		t.Fatalf("%d registered after, %d before", w.Registered(), n)
	}
}

type turnFunc func()

func (f turnFunc) TurnEnd() { f() }
func (f turnFunc) Turn()    { f() }

func TestOrderOfATurn(t *testing.T) {
	w, clock := newTestWorker(t)
	var got string
	var timer Timer
	timer.Init(func() {
		got += "timer "
		w.AtTurnEnd(turnFunc(func() {
			got += "end1 "
			w.AtTurnEnd(turnFunc(func() { got += "end2 " }))
			w.Again(turnFunc(func() { got += "next " }))
		}))
	})
	w.Schedule(&timer, time.Millisecond)
	w.Post(func() { got += "post " })
	w.Again(turnFunc(func() { got += "again " }))
	clock.now = clock.now.Add(time.Second)
	w.Step(time.Hour)
	if want := "again post timer end1 end2 "; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	w.Step(time.Hour)
	if want := "again post timer end1 end2 next "; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

// eventFunc is a Handler.
type eventFunc func()

func (f eventFunc) Event(Events) { f() }

// TestLaterIsNeverInTheSameTurn: what an event asks for with Again runs in its own turn, with Later in the next.
func TestLaterIsNeverInTheSameTurn(t *testing.T) {
	w, _ := newTestWorker(t)
	fd, err := unix.Eventfd(1, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var got string
	if _, err := w.Add(fd, eventFunc(func() {
		got += "event "
		w.Later(turnFunc(func() {
			got += "later "
			w.Later(turnFunc(func() { got += "later still " }))
		}))
		w.Again(turnFunc(func() { got += "again " }))
	}), In|Edge); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"event again ", "event again later ", "event again later later still "} {
		w.Step(time.Hour) // which does not sleep
		if got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func TestPostsAreCappedPerTurn(t *testing.T) {
	w, _ := newTestWorker(t)
	n := 0
	for range maxPosts + 1 {
		w.Post(func() { n++ })
	}
	w.Step(time.Hour)
	if n != maxPosts {
		t.Fatalf("%d ran in the first turn, want %d", n, maxPosts)
	}
	w.Step(time.Hour)
	if n != maxPosts+1 {
		t.Fatalf("%d ran after two turns, want %d", n, maxPosts+1)
	}
}

func TestOnStopRunsAfterWhatWasPosted(t *testing.T) {
	w, _ := newTestWorker(t)
	var got string
	w.OnStop(func() { got += "first " })
	w.OnStop(func() { got += "second " })
	w.Post(func() { got += "post " })
	w.Close()
	if want := "post second first "; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func BenchmarkPost(b *testing.B) {
	w := run(b)
	c := make(chan struct{}, 1)
	f := func() { c <- struct{}{} }
	b.ReportAllocs()
	for b.Loop() {
		w.Post(f)
		<-c
	}
}

func BenchmarkIdleTurn(b *testing.B) {
	w, err := New(0)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	b.ReportAllocs()
	for b.Loop() {
		w.Step(0)
	}
}
