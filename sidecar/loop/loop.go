// Package loop is the engine of the data path: a Worker is one goroutine
// locked to its thread that runs one epoll instance, its timers and the
// functions posted to it. A worker owns whatever is registered with it:
// everything but Post and Stop is called on the worker's own goroutine, so
// nothing on it locks. Nothing on it may block either: what can block runs on
// an ordinary goroutine and comes back through Post.
//
// One turn of the loop is, in this order: take events, dispatch them, run
// what asked to run again, run posted functions, fire timers, and last the
// turn's end, where what the turn has produced for a connection leaves in one
// write. Each step is capped, so that no step can starve the others.
package loop

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/buffer"
	"sallyport/sidecar/invariants"
)

// What one turn does at most; what is left over is done in the next one,
// which then does not sleep.
const (
	maxEvents   = 256
	maxPosts    = 1024
	maxTimers   = 1024
	maxAgain    = 1024
	maxTurnEnds = 1 << 14
)

// Events is the set of conditions that epoll reported for a file descriptor.
type Events uint32

// The conditions. Err and Hup are always reported, whether asked for or not.
const (
	In        Events = unix.EPOLLIN
	Out       Events = unix.EPOLLOUT
	RdHup     Events = unix.EPOLLRDHUP // the peer shut down its writing half
	Hup       Events = unix.EPOLLHUP
	Err       Events = unix.EPOLLERR
	Edge      Events = unix.EPOLLET
	Exclusive Events = unix.EPOLLEXCLUSIVE // one of several waiting workers is woken; Add only

	// Stream is what a connection registers, once for its whole life: both
	// directions, edge-triggered, so that no request costs an epoll_ctl.
	Stream = In | Out | RdHup | Edge
)

// Handler takes the events of one file descriptor, on the worker.
type Handler interface {
	Event(e Events)
}

// Prefetcher sees the events of a turn before any of them is dispatched, where there are several: to make one system call
// for many of them. See Worker.SetPrefetcher.
type Prefetcher interface {
	// Offer shows one of the events, Fetch says that it was the last.
	Offer(h Handler, e Events)
	Fetch()
	// Settle comes when they were dispatched.
	Settle()
}

// TurnEnder is called at the end of a turn: see Worker.AtTurnEnd.
type TurnEnder interface {
	TurnEnd()
}

// Turner is called after the events of a turn: see Worker.Again and Worker.Later.
type Turner interface {
	Turn()
}

// Token names one registration of a file descriptor. It never names another
// one, also when the kernel has given the descriptor's number away again:
// an event that was fetched before Forget is recognized as stale by it.
type Token uint64

type slot struct {
	handler Handler
	gen     uint32
	next    int32 // of the free list
}

// Worker is one event loop. Owned by the goroutine that runs it; Post, Stop
// and ID are safe for concurrent use.
type Worker struct {
	id    int
	epfd  int
	event int // the eventfd that interrupts the sleep

	clock   func() time.Time
	start   time.Time
	now     time.Time
	nowMono int64

	slots  []slot
	free   int32 // first free slot, -1 where none
	fds    int
	events [maxEvents]unix.EpollEvent
	ahead  Prefetcher // nil without

	// Where the turn is. A panic ends work in the middle; it goes on here.
	phase   phase
	ready   int     // events of the turn
	done    int     // what the phase has done, which its cap counts
	handler Handler // of the event that was dispatched last
	note    func(v any)

	wheel    wheel
	pool     buffer.Pool
	turnEnds []TurnEnder
	ended    int // how many of turnEnds were called
	again    []Turner
	againNow []Turner
	later    []Turner // again, from the next turn on
	locals   map[any]any
	onStop   []func()

	// What other goroutines touch. asleep is set before the queue is looked
	// at for the last time and before the thread sleeps, posted is set
	// after the queue grew: one of the two sides always sees the other.
	mu      sync.Mutex
	queue   []func()
	closed  bool
	posted  atomic.Bool
	asleep  atomic.Bool
	stopped atomic.Bool

	running []func() // the queue being run; reused
	ran     int

	yieldEvery time.Duration // see yield
	yielded    int64

	owner invariants.Owner
}

// New makes a worker. id is for metrics and logs, and makes connection ids
// distinct between workers.
func New(id int) (*Worker, error) { return NewWithClock(id, time.Now) }

// NewWithClock is New with another clock, for tests that step time by hand.
func NewWithClock(id int, clock func() time.Time) (*Worker, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("worker %d: epoll_create1: %w", id, err)
	}
	event, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("worker %d: eventfd: %w", id, err)
	}
	w := &Worker{id: id, epfd: epfd, event: event, clock: clock, free: -1, yieldEvery: yieldEvery}
	w.pool.Owner, w.wheel.owner = &w.owner, &w.owner
	w.start = clock()
	w.now = w.start
	// Edge-triggered: every write to the eventfd is an edge, so it never
	// needs to be read.
	if _, err := w.Add(event, wakeUp{}, In|Edge); err != nil {
		w.Close()
		return nil, err
	}
	w.fds = 0
	return w, nil
}

// wakeUp takes the eventfd's events: the wake-up is all there is to it.
type wakeUp struct{}

func (wakeUp) Event(Events) {}

// Owned panics, in builds with the tag "invariants", where the worker runs and the caller is not on it. It is
// for whoever owns something that belongs to a worker, at the entry of what only the worker may call. Before
// Run, after it, and where a test steps the worker, anybody may.
func (w *Worker) Owned() { w.owner.Check() }

// ID is what New was given.
func (w *Worker) ID() int { return w.id }

// Now is the time at which the current turn began. It costs no clock call.
func (w *Worker) Now() time.Time { return w.now }

// NowMono is Now in nanoseconds since the worker was made; it never goes back.
func (w *Worker) NowMono() int64 { return w.nowMono }

// Pool is the worker's memory.
func (w *Worker) Pool() *buffer.Pool { return &w.pool }

// Registered is the number of file descriptors that are registered.
func (w *Worker) Registered() int { return w.fds }

// Local returns the worker's one value for key, made by create at the first
// call: the place for a package's state that exists once per worker. It is
// for set-up, not for the path of a request.
func (w *Worker) Local(key any, create func() any) any {
	w.Owned()
	v, ok := w.locals[key]
	if !ok {
		if w.locals == nil {
			w.locals = make(map[any]any)
		}
		v = create()
		w.locals[key] = v
	}
	return v
}

// SetPrefetcher is for one package, the one that owns the sockets.
func (w *Worker) SetPrefetcher(p Prefetcher) {
	w.Owned()
	w.ahead = p
}

// OnStop has f called when the worker has stopped, before its epoll instance
// is closed, last registered first.
func (w *Worker) OnStop(f func()) { w.onStop = append(w.onStop, f) }

// Add registers fd for the events in e. A Handler's Event comes on the worker.
func (w *Worker) Add(fd int, h Handler, e Events) (Token, error) {
	w.Owned()
	i := w.free
	if i < 0 {
		w.slots = append(w.slots, slot{})
		i = int32(len(w.slots) - 1)
	} else {
		w.free = w.slots[i].next
	}
	s := &w.slots[i]
	s.handler = h
	s.gen++
	t := Token(s.gen)<<32 | Token(i)
	if err := w.ctl(unix.EPOLL_CTL_ADD, fd, t, e); err != nil {
		w.release(i)
		return 0, fmt.Errorf("epoll_ctl add: %w", err)
	}
	w.fds++
	return t, nil
}

// Mod changes the events of a registration.
func (w *Worker) Mod(fd int, t Token, e Events) error {
	w.Owned()
	if err := w.ctl(unix.EPOLL_CTL_MOD, fd, t, e); err != nil {
		return fmt.Errorf("epoll_ctl mod: %w", err)
	}
	return nil
}

// Del ends a registration; no event reaches its Handler after this.
func (w *Worker) Del(fd int, t Token) error {
	w.Forget(t)
	if err := w.ctl(unix.EPOLL_CTL_DEL, fd, t, 0); err != nil {
		return fmt.Errorf("epoll_ctl del: %w", err)
	}
	return nil
}

// Forget is Del for a descriptor that the caller closes right after, which
// takes it out of the epoll set without another system call.
func (w *Worker) Forget(t Token) {
	w.Owned()
	i := int32(uint32(t))
	if int(i) >= len(w.slots) || w.slots[i].gen != uint32(t>>32) || w.slots[i].handler == nil {
		return
	}
	w.release(i)
	w.fds--
}

func (w *Worker) release(i int32) {
	w.slots[i].handler = nil
	w.slots[i].next = w.free
	w.free = i
}

func (w *Worker) ctl(op, fd int, t Token, e Events) error {
	return unix.EpollCtl(w.epfd, op, fd, &unix.EpollEvent{Events: uint32(e), Fd: int32(uint32(t)), Pad: int32(t >> 32)})
}

// AtTurnEnd has t.TurnEnd called once at the end of this turn. Calls made
// during the turn's end are honored in the same turn.
func (w *Worker) AtTurnEnd(t TurnEnder) {
	w.Owned()
	w.turnEnds = append(w.turnEnds, t)
}

// Again has t.Turn called once, for what must not run inside the caller: behind
// the events of this turn where the caller is one of them, else in the next turn,
// which comes without a sleep.
func (w *Worker) Again(t Turner) {
	w.Owned()
	w.again = append(w.again, t)
}

// Later is Again for work that was capped: it never runs in the turn that had enough of it.
func (w *Worker) Later(t Turner) {
	w.Owned()
	w.later = append(w.later, t)
}

// Post has f called on the worker. Safe for concurrent use. Functions posted
// by one goroutine run in order. It answers false where the worker has stopped: f will not run.
func (w *Worker) Post(f func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	w.queue = append(w.queue, f)
	w.posted.Store(true)
	w.wake()
	return true
}

// wake interrupts the sleep; w.mu is held, so that the eventfd is not closed
// meanwhile. A burst of calls makes one write: the first one ends asleep.
func (w *Worker) wake() {
	if w.asleep.CompareAndSwap(true, false) {
		one := [8]byte{0: 1}
		// It cannot fail: the counter would have to be near 2^64.
		_, _ = unix.Write(w.event, one[:])
	}
}

// Stop makes Run return after the current turn. Safe for concurrent use.
func (w *Worker) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped.Store(true)
	if !w.closed {
		w.wake()
	}
}

// Run is the worker's life: it returns after Stop. It must be called once, on
// a goroutine of its own.
func (w *Worker) Run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w.owner.Bind()
	defer w.owner.Release()
	for !w.stopped.Load() {
		w.yield()
		w.turn(-1)
	}
	w.Close()
}

// yieldEvery is half of what Go's scheduler gives a goroutine at a time (forcePreemptNS, 10 ms).
const yieldEvery = 5 * time.Millisecond

// yield goes once through Go's scheduler, which otherwise never sees a worker: a goroutine that is locked to its thread,
// and whose system calls do not block, is not scheduled again in its life.
//
// Go's monitor thread (sysmon; runtime/proc.go, retake, read in Go 1.26) takes a P whose schedtick has not changed for
// 10 ms for one that somebody hogs. It cannot preempt it, since there is no other goroutine in the way; but it takes the P
// away in each system call that it meets, the sleep in epoll_wait among them, and as long as it finds a P to take
// it sleeps for 20 µs only, up to 3,000 times a second. At a thousand requests a second that costs as much as the
// requests do: docs/performance.md has the figures. TestGosMonitorRests says whether it is still so.
func (w *Worker) yield() {
	if w.yieldEvery > 0 && w.nowMono-w.yielded >= int64(w.yieldEvery) {
		w.yielded = w.nowMono
		runtime.Gosched()
	}
}

// Close ends a worker that was stepped by hand; Run does it by itself.
func (w *Worker) Close() {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return
	}
	w.closed = true
	w.stopped.Store(true)
	w.mu.Unlock()
	// What was posted before may be what someone waits for.
	for w.posted.Load() || w.ran < len(w.running) {
		w.work(phasePosts, phasePosts+1)
	}
	for len(w.onStop) > 0 {
		w.stopNext()
	}
	w.work(phaseTurnEnds, phases)
	// Under the lock: see wake.
	w.mu.Lock()
	defer w.mu.Unlock()
	unix.Close(w.epfd)
	unix.Close(w.event)
}

// stopNext calls the last function of OnStop that was not called yet.
func (w *Worker) stopNext() {
	defer w.Guard(nil)
	last := len(w.onStop) - 1
	f := w.onStop[last]
	w.onStop = w.onStop[:last]
	f()
}

// Step runs one turn on the caller's goroutine, sleeping at most d: for tests,
// which use it instead of Run.
func (w *Worker) Step(d time.Duration) { w.turn(d) }

// busy says that there is work without any event.
func (w *Worker) busy() bool {
	return w.posted.Load() || w.ran < len(w.running) || len(w.again) > 0 || len(w.later) > 0 || w.ended < len(w.turnEnds) || w.stopped.Load()
}

func (w *Worker) turn(limit time.Duration) {
	n, err := pollNow(w.epfd, w.events[:])
	if n == 0 && limit != 0 && !w.busy() {
		n, err = w.sleep(limit)
	}
	if err != nil && !errors.Is(err, unix.EINTR) {
		// Only a programming error (a closed or foreign descriptor) gets here.
		panic(fmt.Sprintf("worker %d: epoll_wait: %v", w.id, err))
	}
	w.tick()
	if len(w.later) > 0 {
		w.again = append(w.again, w.later...)
		clear(w.later)
		w.later = w.later[:0]
	}
	w.ready = max(n, 0)
	w.work(phasePrefetch, phases)
}

// phase is a step of the turn.
type phase uint8

const (
	phasePrefetch phase = iota
	phaseEvents
	phaseSettle
	phaseAgain
	phasePosts
	phaseTimers
	phaseTurnEnds
	phases
)

// work runs the phases from first to before end, also where some of what they call panics.
func (w *Worker) work(first, end phase) {
	for w.phase, w.done = first, 0; w.phase < end; {
		w.workUntil(end)
	}
}

// workUntil goes on with the turn until a panic at most.
func (w *Worker) workUntil(end phase) {
	defer w.survive()
	for ; w.phase < end; w.phase, w.done = w.phase+1, 0 {
		switch w.phase {
		case phasePrefetch:
			w.prefetch()
		case phaseEvents:
			w.runEvents()
		case phaseSettle:
			w.settle()
		case phaseAgain:
			w.runAgain()
		case phasePosts:
			w.runPosts()
		case phaseTimers:
			w.wheel.advance(uint64(w.nowMono)/tick, maxTimers)
		case phaseTurnEnds:
			w.runTurnEnds()
		}
	}
}

// prefetch is not repeated where it panics: done says that it began.
func (w *Worker) prefetch() {
	if w.ahead == nil || w.ready < 2 || w.done > 0 {
		return
	}
	w.done++
	for i := range w.events[:w.ready] {
		e := &w.events[i]
		if h := w.handlerOf(e); h != nil {
			w.ahead.Offer(h, Events(e.Events))
		}
	}
	w.ahead.Fetch()
}

func (w *Worker) settle() {
	if w.ahead == nil || w.ready < 2 || w.done > 0 {
		return
	}
	w.done++
	w.ahead.Settle()
}

// handlerOf is nil for an event of a registration that has ended.
func (w *Worker) handlerOf(e *unix.EpollEvent) Handler {
	if s := uint32(e.Fd); int(s) < len(w.slots) && w.slots[s].gen == uint32(e.Pad) {
		return w.slots[s].handler
	}
	return nil
}

func (w *Worker) runEvents() {
	for w.done < w.ready {
		e := &w.events[w.done]
		w.done++
		if h := w.handlerOf(e); h != nil {
			w.handler = h
			h.Event(Events(e.Events))
		}
	}
	w.handler = nil
}

// tick takes the time of the turn.
func (w *Worker) tick() {
	now := w.clock()
	// A clock of a test may go back; ours is monotonic.
	if mono := int64(now.Sub(w.start)); mono >= w.nowMono {
		w.now, w.nowMono = now, mono
	}
}

// sleep waits for events until the next timer is due, at most limit where that is not negative.
func (w *Worker) sleep(limit time.Duration) (int, error) {
	w.asleep.Store(true)
	if w.busy() {
		// Posted between the look and the flag: see Worker.posted.
		w.asleep.Store(false)
		return 0, nil
	}
	w.tick() // the turn before may have taken long
	ms := -1
	if limit >= 0 {
		ms = int((limit + time.Millisecond - 1) / time.Millisecond)
	}
	if left, ok := w.wheel.sleep(uint64(w.nowMono)); ok && (ms < 0 || left < ms) {
		ms = left
	}
	n, err := pollWait(w.epfd, w.events[:], ms)
	w.asleep.Store(false)
	return n, err
}

func (w *Worker) runAgain() {
	if w.done == 0 {
		if len(w.again) == 0 {
			return
		}
		n := min(len(w.again), maxAgain)
		// A copy, because Turn calls Again for the turn after this one.
		w.againNow = append(w.againNow[:0], w.again[:n]...)
		rest := copy(w.again, w.again[n:])
		clear(w.again[rest:])
		w.again = w.again[:rest]
	}
	for w.done < len(w.againNow) {
		t := w.againNow[w.done]
		w.done++
		t.Turn()
	}
	clear(w.againNow)
	w.againNow = w.againNow[:0]
}

func (w *Worker) runPosts() {
	if w.ran == len(w.running) {
		if w.done > 0 || !w.posted.Load() {
			return // what was posted meanwhile runs in the next turn
		}
		w.mu.Lock()
		w.posted.Store(false)
		w.running, w.queue = w.queue, w.running[:0]
		w.mu.Unlock()
		w.ran = 0
	}
	for w.done < maxPosts && w.ran < len(w.running) {
		f := w.running[w.ran]
		w.running[w.ran] = nil
		w.ran++
		w.done++
		f()
	}
}

func (w *Worker) runTurnEnds() {
	for w.done < maxTurnEnds && w.ended < len(w.turnEnds) {
		t := w.turnEnds[w.ended]
		w.ended++
		w.done++
		t.TurnEnd()
		w.turnEnds[w.ended-1] = nil
	}
	if w.ended == len(w.turnEnds) {
		clear(w.turnEnds) // one that panicked
		w.turnEnds, w.ended = w.turnEnds[:0], 0
	}
}
