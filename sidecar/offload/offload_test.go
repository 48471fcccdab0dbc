package offload

import (
	"net/netip"
	"testing"
	"time"

	"sallyport/sidecar/loop"
)

// bench is a worker that is stepped by hand, and a first job that keeps its
// queue busy until let.
type bench struct {
	t *testing.T
	w *loop.Worker
	q *Queue
	// hold is what the job that runs waits for.
	hold chan struct{}
}

func newBench(t *testing.T) *bench {
	w, err := loop.New(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return &bench{t: t, w: w, q: Of(w), hold: make(chan struct{})}
}

func (b *bench) until(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); b.w.Step(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatal("never: " + what)
		}
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func (b *bench) block() {
	b.q.New(addr("192.0.2.9"), func() { <-b.hold }).Start(func() {})
}

func TestClientsTakeTurns(t *testing.T) {
	b := newBench(t)
	b.block()
	var order []string
	start := func(client, name string) {
		b.q.New(addr(client), func() {}).Start(func() { order = append(order, name) })
	}
	for range 20 {
		start("198.51.100.1", "flood")
	}
	start("203.0.113.1", "honest")
	close(b.hold)
	b.until("all done", func() bool { return len(order) == 21 })
	for i, name := range order {
		if name == "honest" && i > 1 {
			t.Errorf("the honest client's job was done as number %d", i+1)
		}
	}
}

func TestJobsOfOneClientAreDoneInOrder(t *testing.T) {
	b := newBench(t)
	b.block()
	var order []int
	for i := range 10 {
		b.q.New(addr("198.51.100.1"), func() {}).Start(func() { order = append(order, i) })
	}
	close(b.hold)
	b.until("all done", func() bool { return len(order) == 10 })
	for i, n := range order {
		if i != n {
			t.Fatalf("order %v", order)
		}
	}
}

func TestACanceledJobIsNotRunAndHeardOf(t *testing.T) {
	b := newBench(t)
	b.block()
	ran, heard, last := false, false, false
	j := b.q.New(addr("198.51.100.1"), func() { ran = true })
	j.Start(func() { heard = true })
	b.q.New(addr("198.51.100.1"), func() {}).Start(func() { last = true })
	if b.q.Waiting() != 2 {
		t.Fatalf("%d jobs wait", b.q.Waiting())
	}
	j.Cancel()
	if b.q.Waiting() != 1 {
		t.Errorf("%d jobs wait after one was canceled", b.q.Waiting())
	}
	close(b.hold)
	b.until("the other job is done", func() bool { return last })
	if ran || heard {
		t.Error("the canceled job ran, or was told to be done")
	}
	running := b.q.New(addr("198.51.100.1"), func() {})
	running.Start(func() { heard = true })
	running.Cancel()
	b.until("the queue is idle", func() bool { return !b.q.busy })
	if heard {
		t.Error("a job that was canceled while it ran was told to be done")
	}
}

func TestWhatWaitsIsBoundedForAllAndForEach(t *testing.T) {
	b := newBench(t)
	b.block()
	defer close(b.hold)
	refused := map[string]int{}
	start := func(client string) {
		j := b.q.New(addr(client), func() {})
		j.Start(func() {
			if j.Refused {
				refused[client]++
			}
		})
	}
	for range MaxShare + 10 {
		start("198.51.100.1")
	}
	if b.q.Waiting() != MaxShare || refused["198.51.100.1"] != 10 {
		t.Fatalf("%d wait, %d refused", b.q.Waiting(), refused["198.51.100.1"])
	}
	for i := range MaxWaiting/MaxShare + 2 {
		for range MaxShare {
			start(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String())
		}
	}
	if b.q.Waiting() != MaxWaiting {
		t.Fatalf("%d wait, want %d", b.q.Waiting(), MaxWaiting)
	}
	start("203.0.113.1")
	if refused["203.0.113.1"] != 0 || b.q.Waiting() != MaxWaiting {
		t.Errorf("a newcomer was refused by a queue that others fill: %d wait", b.q.Waiting())
	}
}

func TestOneHostOfIPv6IsOneClient(t *testing.T) {
	b := newBench(t)
	b.block()
	defer close(b.hold)
	refused := 0
	for i := range MaxShare + 5 {
		a := addr("2001:db8:1:2::1").As16()
		a[15] = byte(i)
		j := b.q.New(netip.AddrFrom16(a), func() {})
		j.Start(func() {
			if j.Refused {
				refused++
			}
		})
	}
	if refused != 5 {
		t.Errorf("%d refused", refused)
	}
	if share(addr("::ffff:192.0.2.1")) != addr("192.0.2.1") {
		t.Error("IPv4 within IPv6 is another client")
	}
}

func TestAPanicIsTheJobsOwn(t *testing.T) {
	b := newBench(t)
	j := b.q.New(addr("198.51.100.1"), func() { panic("as a test does") })
	done := false
	j.Start(func() { done = true })
	b.until("the job is done", func() bool { return done })
	if j.Failed == nil || j.Refused {
		t.Errorf("failed: %v, refused: %v", j.Failed, j.Refused)
	}
	next := false
	b.q.New(addr("198.51.100.1"), func() {}).Start(func() { next = true })
	b.until("the next one is done", func() bool { return next })
}
