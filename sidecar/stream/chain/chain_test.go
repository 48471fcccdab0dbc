package chain

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
)

// tape is a stream that writes down what passes its filters.
type tape struct {
	t        testing.TB
	worker   *loop.Worker
	heads    [2]message.Head
	run      Run[*tape]
	passed   [2][]string
	limit    int
	paused   [2]bool
	over     bool
	overflow []Direction
	panics   []any
	disabled map[route.FilterID]bool
	override map[route.FilterID]any
}

func newTape(t testing.TB, filters ...Filter) *tape {
	t.Helper()
	w, err := loop.New(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	w.OnPanic(func(any) {}) // it goes on after one
	ids := make([]route.FilterID, len(filters))
	for i := range ids {
		ids[i] = route.FilterID(i)
	}
	c, err := Compile[*tape](filters, ids)
	if err != nil {
		t.Fatal(err)
	}
	s := &tape{t: t, worker: w, limit: 100, disabled: map[route.FilterID]bool{}, override: map[route.FilterID]any{}}
	s.heads[Request].AddNameString(message.Method, "POST")
	s.heads[Response].AddNameString(message.Status, "200")
	s.run.Begin(c, s)
	return s
}

func (s *tape) Worker() *loop.Worker                  { return s.worker }
func (s *tape) MessageHead(d Direction) *message.Head { return &s.heads[d] }
func (s *tape) HoldLimit(Direction) int               { return s.limit }
func (s *tape) Throttle(d Direction, on bool)         { s.paused[d] = on }

func (s *tape) Override(id route.FilterID) (any, bool) { return s.override[id], s.disabled[id] }

func (s *tape) PassHead(d Direction, end bool) { s.pass(d, "head", end) }

func (s *tape) PassData(d Direction, p []byte, end bool) { s.pass(d, string(p), end) }

func (s *tape) PassTrailers(d Direction, h *message.Head) {
	s.pass(d, "trailers "+string(h.Lookup("x")), true)
}

func (s *tape) pass(d Direction, what string, end bool) {
	if end {
		what += "."
	}
	s.passed[d] = append(s.passed[d], what)
}

func (s *tape) Overflow(d Direction) {
	s.overflow = append(s.overflow, d)
	s.answer()
}

func (s *tape) Panicked(v any) {
	s.panics = append(s.panics, v)
	s.answer()
}

// answer is what a stream does at a local reply, as far as the run sees it.
func (s *tape) answer() {
	s.run.Cut(Request)
	s.run.Cut(Response)
}

func (s *tape) end() {
	s.over = true
	s.run.End()
	s.run.Done()
}

func (s *tape) expect(d Direction, want ...string) {
	s.t.Helper()
	if !slices.Equal(s.passed[d], want) {
		s.t.Fatalf("passed %q, want %q", s.passed[d], want)
	}
}

// play is a filter made of functions; those that are nil let events go on.
type play struct {
	name  string
	head  [2]func(c Context[*tape], h *message.Head, end bool) Verdict
	data  [2]func(c Context[*tape], p []byte, end bool) ([]byte, Verdict)
	trail [2]func(c Context[*tape], h *message.Head) Verdict
	done  func(c Context[*tape])
}

func (p *play) Name() string { return p.name }

func (p *play) onHead(c Context[*tape], h *message.Head, end bool) Verdict {
	if f := p.head[c.Direction()]; f != nil {
		return f(c, h, end)
	}
	return Continue
}

func (p *play) onData(c Context[*tape], b []byte, end bool) ([]byte, Verdict) {
	if f := p.data[c.Direction()]; f != nil {
		return f(c, b, end)
	}
	return b, Continue
}

func (p *play) onTrailers(c Context[*tape], h *message.Head) Verdict {
	if f := p.trail[c.Direction()]; f != nil {
		return f(c, h)
	}
	return Continue
}

func (p *play) RequestHead(c Context[*tape], h *message.Head, end bool) Verdict {
	return p.onHead(c, h, end)
}
func (p *play) ResponseHead(c Context[*tape], h *message.Head, end bool) Verdict {
	return p.onHead(c, h, end)
}
func (p *play) RequestData(c Context[*tape], b []byte, end bool) ([]byte, Verdict) {
	return p.onData(c, b, end)
}
func (p *play) ResponseData(c Context[*tape], b []byte, end bool) ([]byte, Verdict) {
	return p.onData(c, b, end)
}
func (p *play) RequestTrailers(c Context[*tape], h *message.Head) Verdict { return p.onTrailers(c, h) }
func (p *play) ResponseTrailers(c Context[*tape], h *message.Head) Verdict {
	return p.onTrailers(c, h)
}
func (p *play) Done(c Context[*tape]) {
	if p.done != nil {
		p.done(c)
	}
}

func trailersOf(x string) *message.Head {
	h := &message.Head{}
	h.AddString("x", x)
	return h
}

func TestEventsPassTheFiltersInTheOrderOfTheirDirection(t *testing.T) {
	var order []string
	filter := func(name string) Filter {
		p := &play{name: name}
		for d := range p.head {
			p.head[d] = func(Context[*tape], *message.Head, bool) Verdict { order = append(order, name); return Continue }
			p.data[d] = func(_ Context[*tape], b []byte, _ bool) ([]byte, Verdict) {
				order = append(order, name+":"+string(b))
				return b, Continue
			}
			p.trail[d] = func(Context[*tape], *message.Head) Verdict { order = append(order, name+"!"); return Continue }
		}
		p.done = func(Context[*tape]) { order = append(order, "done "+name) }
		return p
	}
	s := newTape(t, filter("a"), filter("b"))
	s.run.Head(Request, false)
	s.run.Data(Request, []byte("1"), false)
	s.run.Trailers(Request, trailersOf("y"))
	s.run.Head(Response, false)
	s.run.Data(Response, []byte("2"), true)
	s.end()
	want := "a b a:1 b:1 a! b! b a b:2 a:2 done a done b"
	if got := strings.Join(order, " "); got != want {
		t.Errorf("order %s, want %s", got, want)
	}
	s.expect(Request, "head", "1", "trailers y.")
	s.expect(Response, "head", "2.")
}

// quiet wants no event but the head of a request.
type quiet struct{ verdict Verdict }

func (quiet) Name() string { return "quiet" }
func (q quiet) RequestHead(Context[*tape], *message.Head, bool) Verdict {
	return q.verdict
}

func TestAFilterThatHoldsWithoutADataEventKeepsWhatComes(t *testing.T) {
	var c Context[*tape]
	first := &play{name: "first"}
	first.head[Request] = func(x Context[*tape], _ *message.Head, _ bool) Verdict { return Continue }
	var seen []string
	last := &play{name: "last"}
	last.data[Request] = func(_ Context[*tape], b []byte, end bool) ([]byte, Verdict) {
		seen = append(seen, fmt.Sprint(string(b), " ", end))
		return b, Continue
	}
	s := newTape(t, first, quiet{Hold}, last)
	s.run.Head(Request, false)
	s.run.Data(Request, []byte("ab"), false)
	s.run.Data(Request, []byte("cd"), true)
	s.expect(Request)
	c = Context[*tape]{Stream: s, run: &s.run, at: 1, dir: Request}
	if got := string(c.Held()); got != "abcd" {
		t.Errorf("held %q", got)
	}
	c.Resume()
	s.expect(Request, "head", "abcd.")
	if !slices.Equal(seen, []string{"abcd true"}) {
		t.Errorf("the filter behind saw %q", seen)
	}
	c.Resume() // a second time does nothing
	s.expect(Request, "head", "abcd.")
}

func TestAFilterCollectsABodyAndReplacesIt(t *testing.T) {
	p := &play{name: "collector"}
	p.head[Request] = func(_ Context[*tape], _ *message.Head, end bool) Verdict {
		if end {
			return Continue
		}
		return Collect
	}
	p.data[Request] = func(c Context[*tape], b []byte, end bool) ([]byte, Verdict) {
		if !end {
			return b, Collect
		}
		all := string(c.Held()) + string(b)
		c.SetHeld([]byte(strings.ToUpper(all)))
		return nil, Continue
	}
	s := newTape(t, p)
	s.run.Head(Request, false)
	s.run.Data(Request, []byte("ab"), false)
	s.run.Data(Request, []byte("c"), true)
	s.expect(Request, "head", "ABC.")
}

func TestABodyThatIsTooLargeToCollectIsAnswered(t *testing.T) {
	for _, d := range []Direction{Request, Response} {
		p := &play{name: "collector"}
		p.head[d] = func(Context[*tape], *message.Head, bool) Verdict { return Collect }
		p.data[d] = func(_ Context[*tape], b []byte, _ bool) ([]byte, Verdict) { return b, Collect }
		s := newTape(t, p)
		s.run.Head(d, false)
		s.run.Data(d, make([]byte, 100), false)
		if len(s.overflow) != 0 || s.paused[d] {
			t.Fatalf("direction %d: a body at the limit is answered or paused", d)
		}
		s.run.Data(d, make([]byte, 1), false)
		if !slices.Equal(s.overflow, []Direction{d}) {
			t.Fatalf("direction %d: overflow %v", d, s.overflow)
		}
		s.run.Data(d, make([]byte, 1), true)
		s.expect(d)
	}
}

func TestAFilterThatHoldsPausesTheSenderAboveTheLimit(t *testing.T) {
	s := newTape(t, quiet{Hold})
	s.run.Head(Request, false)
	s.run.Data(Request, make([]byte, 100), false)
	if s.paused[Request] {
		t.Error("paused at the limit")
	}
	s.run.Data(Request, make([]byte, 1), false)
	if !s.paused[Request] || len(s.overflow) > 0 {
		t.Errorf("paused %v, overflow %v", s.paused, s.overflow)
	}
	Context[*tape]{Stream: s, run: &s.run, dir: Request}.Resume()
	if s.paused[Request] {
		t.Error("still paused after Resume")
	}
	s.run.Data(Request, nil, true)
	if n := len(s.passed[Request]); n != 3 || s.passed[Request][2] != "." {
		t.Errorf("passed %d events", n)
	}
}

func TestTwoFiltersHoldAtDifferentPlaces(t *testing.T) {
	a, b := &play{name: "a"}, &play{name: "b"}
	var ca, cb Context[*tape]
	n := 0
	b.data[Request] = func(c Context[*tape], p []byte, _ bool) ([]byte, Verdict) { cb = c; return p, Hold }
	a.data[Request] = func(c Context[*tape], p []byte, _ bool) ([]byte, Verdict) {
		if n++; n == 1 {
			return p, Continue
		}
		ca = c
		return p, Hold
	}
	a.trail[Request] = func(Context[*tape], *message.Head) Verdict { return Hold }
	b.trail[Request] = a.trail[Request]
	s := newTape(t, a, b)
	s.run.Head(Request, false)
	s.run.Data(Request, []byte("1"), false) // to b
	s.run.Data(Request, []byte("2"), false) // stays at a
	s.run.Trailers(Request, trailersOf("t"))
	s.expect(Request, "head")
	ca.Resume() // everything is at b now
	s.expect(Request, "head")
	cb.Resume()
	s.expect(Request, "head", "12", "trailers t.")
}

func TestResumeWithinAnEventMakesItContinue(t *testing.T) {
	p := &play{name: "p"}
	p.head[Request] = func(c Context[*tape], _ *message.Head, _ bool) Verdict { c.Resume(); return Hold }
	p.data[Request] = func(c Context[*tape], b []byte, _ bool) ([]byte, Verdict) { c.Resume(); return b, Collect }
	p.trail[Request] = func(c Context[*tape], _ *message.Head) Verdict { c.Resume(); return Hold }
	s := newTape(t, p)
	s.run.Head(Request, false)
	s.run.Data(Request, []byte("1"), false)
	s.run.Trailers(Request, trailersOf("t"))
	s.expect(Request, "head", "1", "trailers t.")
}

func TestTrailersThatAreHeldGoLast(t *testing.T) {
	var c Context[*tape]
	p := &play{name: "p"}
	p.data[Response] = func(_ Context[*tape], b []byte, _ bool) ([]byte, Verdict) { return b, Hold }
	p.trail[Response] = func(x Context[*tape], _ *message.Head) Verdict { c = x; return Hold }
	s := newTape(t, p)
	s.run.Head(Response, false)
	s.run.Data(Response, []byte("1"), false)
	s.run.Trailers(Response, trailersOf("t"))
	s.expect(Response, "head")
	c.Resume()
	s.expect(Response, "head", "1", "trailers t.")
}

func TestTrailersEndAHold(t *testing.T) {
	p := &play{name: "p"}
	p.data[Response] = func(_ Context[*tape], b []byte, _ bool) ([]byte, Verdict) { return b, Hold }
	p.trail[Response] = func(Context[*tape], *message.Head) Verdict { return Continue }
	s := newTape(t, p)
	s.run.Head(Response, false)
	s.run.Data(Response, []byte("1"), false)
	s.run.Trailers(Response, trailersOf("t"))
	s.expect(Response, "head", "1", "trailers t.")
}

func TestContentIsReplacedAndDropped(t *testing.T) {
	p := &play{name: "p"}
	p.data[Request] = func(_ Context[*tape], b []byte, _ bool) ([]byte, Verdict) {
		return []byte(strings.ReplaceAll(string(b), "x", "")), Continue
	}
	s := newTape(t, p)
	s.run.Head(Request, false)
	s.run.Data(Request, []byte("axb"), false)
	s.run.Data(Request, []byte("xxx"), false) // nothing is left: no event
	s.run.Data(Request, []byte("x"), true)    // the end is left
	s.expect(Request, "head", "ab", ".")
}

func TestNothingFollowsAnAnswer(t *testing.T) {
	for name, where := range map[string]func(p *play, answer func(Context[*tape]) Verdict){
		"head": func(p *play, a func(Context[*tape]) Verdict) {
			p.head[Request] = func(c Context[*tape], _ *message.Head, _ bool) Verdict { return a(c) }
		},
		"data": func(p *play, a func(Context[*tape]) Verdict) {
			p.data[Request] = func(c Context[*tape], b []byte, _ bool) ([]byte, Verdict) { return b, a(c) }
		},
		"trailers": func(p *play, a func(Context[*tape]) Verdict) {
			p.trail[Request] = func(c Context[*tape], _ *message.Head) Verdict { return a(c) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, behind := &play{name: "p"}, &play{name: "behind"}
			answered := false
			where(p, func(c Context[*tape]) Verdict {
				answered = true
				c.Stream.answer()
				return Answered
			})
			after := func() {
				if answered {
					t.Error("the filter behind saw an event after the answer")
				}
			}
			behind.head[Request] = func(Context[*tape], *message.Head, bool) Verdict { after(); return Continue }
			behind.data[Request] = func(_ Context[*tape], b []byte, _ bool) ([]byte, Verdict) { after(); return b, Continue }
			behind.trail[Request] = func(Context[*tape], *message.Head) Verdict { after(); return Continue }
			s := newTape(t, p, behind)
			s.run.Head(Request, false)
			s.run.Data(Request, []byte("1"), false)
			s.run.Trailers(Request, trailersOf("t"))
			if !answered {
				t.Error("never answered")
			}
			if n := len(s.passed[Request]); n > 0 && s.passed[Request][n-1] == "trailers t." {
				t.Errorf("passed %q", s.passed[Request])
			}
		})
	}
}

func TestAFilterThatTheRouteTurnsOffSeesNothing(t *testing.T) {
	events := 0
	p := &play{name: "p"}
	count := func() { events++ }
	for d := range p.head {
		p.head[d] = func(Context[*tape], *message.Head, bool) Verdict { count(); return Continue }
		p.data[d] = func(_ Context[*tape], b []byte, _ bool) ([]byte, Verdict) { count(); return b, Continue }
		p.trail[d] = func(Context[*tape], *message.Head) Verdict { count(); return Continue }
	}
	p.done = func(Context[*tape]) { count() }
	s := newTape(t, p)
	s.disabled[0] = true
	for _, d := range []Direction{Request, Response} {
		s.run.Head(d, false)
		s.disabled[0] = false // a later change of the route is too late
		s.run.Data(d, []byte("1"), false)
		s.run.Trailers(d, trailersOf("t"))
		s.expect(d, "head", "1", "trailers t.")
	}
	s.end()
	if events != 0 {
		t.Errorf("%d events", events)
	}
}

func TestAFilterSeesItsOverrideAndItsSlot(t *testing.T) {
	p, q := &play{name: "p"}, &play{name: "q"}
	p.head[Request] = func(c Context[*tape], _ *message.Head, _ bool) Verdict { *c.Slot() = c.Override(); return Continue }
	q.head[Request] = func(c Context[*tape], _ *message.Head, _ bool) Verdict {
		if c.Override() != nil || *c.Slot() != nil {
			t.Error("a filter sees another's")
		}
		return Continue
	}
	p.head[Response] = func(c Context[*tape], _ *message.Head, _ bool) Verdict {
		if *c.Slot() != "mine" {
			t.Errorf("slot %v", *c.Slot())
		}
		return Continue
	}
	s := newTape(t, p, q)
	s.override[0] = "mine"
	s.run.Head(Request, true)
	s.run.Head(Response, true)
	s.run.End()
	s.run.Clear()
	s.run.Begin(s2chain(t), s)
	if len(s.run.slots) != 1 || s.run.slots[0] != nil {
		t.Error("a slot outlives its stream")
	}
}

func s2chain(t *testing.T) *Chain[*tape] {
	c, err := Compile[*tape]([]Filter{&play{}}, make([]route.FilterID, 1))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestInjectedContentTakesTheMessagesPlace(t *testing.T) {
	p := &play{name: "p"}
	var c Context[*tape]
	p.head[Request] = func(x Context[*tape], _ *message.Head, end bool) Verdict {
		c = x
		return Hold
	}
	p.data[Request] = func(c Context[*tape], b []byte, end bool) ([]byte, Verdict) { return b, Hold }
	s := newTape(t, p)
	s.run.Head(Request, false)
	s.run.Data(Request, []byte("old"), false)
	c.Inject([]byte("new "), false)
	s.expect(Request, "head", "new ")
	c.Inject([]byte("body"), true)
	s.expect(Request, "head", "new ", "body.")
	s.run.Data(Request, []byte("more"), true)
	s.run.Trailers(Request, trailersOf("t"))
	c.Resume()
	c.Inject([]byte("again"), true)
	s.expect(Request, "head", "new ", "body.")
}

func TestABodyIsGivenToAMessageWithoutOne(t *testing.T) {
	for name, early := range map[string]bool{"within the event": true, "later": false} {
		t.Run(name, func(t *testing.T) {
			p := &play{name: "p"}
			var c Context[*tape]
			p.head[Response] = func(x Context[*tape], _ *message.Head, end bool) Verdict {
				if c = x; !end {
					t.Error("the head has no end")
				}
				if early {
					x.Inject([]byte("body"), true)
					return Continue
				}
				x.TakeEnd()
				return Continue
			}
			s := newTape(t, p)
			s.run.Head(Response, true)
			if !early {
				s.expect(Response, "head")
				c.Inject([]byte("body"), true)
			}
			s.expect(Response, "head", "body.")
		})
	}
}

func TestTheEndIsTakenOver(t *testing.T) {
	p := &play{name: "p"}
	var c Context[*tape]
	p.data[Request] = func(x Context[*tape], b []byte, end bool) ([]byte, Verdict) {
		if c = x; end {
			x.TakeEnd()
		}
		return b, Continue
	}
	s := newTape(t, p)
	s.run.Head(Request, false)
	s.run.Data(Request, []byte("1"), true)
	s.expect(Request, "head", "1")
	c.Inject([]byte("2"), true)
	s.expect(Request, "head", "1", "2.")
}

// work is a Work that the test ends.
type work struct {
	done     func()
	canceled int
	early    bool
}

func (w *work) Start(done func()) {
	if w.done = done; w.early {
		done()
	}
}
func (w *work) Cancel() { w.canceled++ }

func awaiting(w *work, then func(Context[*tape]) Verdict) *play {
	p := &play{name: "awaiting"}
	p.head[Request] = func(c Context[*tape], _ *message.Head, _ bool) Verdict { return c.Await(w, then) }
	return p
}

func TestWorkThatEndsResumesTheMessage(t *testing.T) {
	w, next := &work{}, &work{}
	s := newTape(t, awaiting(w, func(c Context[*tape]) Verdict {
		return c.Await(next, func(Context[*tape]) Verdict { return Continue })
	}))
	s.run.Head(Request, false)
	s.run.Data(Request, []byte("1"), true)
	w.done()
	s.expect(Request)
	next.done()
	s.expect(Request, "head", "1.")
	next.done() // too often
	s.expect(Request, "head", "1.")
	s.end()
	if w.canceled+next.canceled != 0 {
		t.Error("work that had ended was canceled")
	}
}

func TestWorkThatEndsAtOnceDoesNotHold(t *testing.T) {
	s := newTape(t, awaiting(&work{early: true}, func(Context[*tape]) Verdict { return Continue }))
	s.run.Head(Request, true)
	s.expect(Request, "head.")
}

func TestAStreamThatEndsFirstCancelsTheWork(t *testing.T) {
	for name, end := range map[string]func(s *tape){
		"over":     (*tape).end,
		"answered": (*tape).answer,
	} {
		t.Run(name, func(t *testing.T) {
			w := &work{}
			s := newTape(t, awaiting(w, func(Context[*tape]) Verdict { t.Error("then was called"); return Continue }))
			s.run.Head(Request, true)
			end(s)
			if w.canceled != 1 {
				t.Errorf("canceled %d times", w.canceled)
			}
			w.done()
			s.expect(Request)
		})
	}
}

func TestWorkForOneDirectionOutlivesTheOther(t *testing.T) {
	w := &work{}
	p := &play{name: "p"}
	p.head[Response] = func(c Context[*tape], _ *message.Head, _ bool) Verdict {
		return c.Await(w, func(Context[*tape]) Verdict { return Continue })
	}
	s := newTape(t, p)
	s.run.Head(Request, true)
	s.run.Head(Response, true)
	s.run.Cut(Request)
	if w.canceled != 0 {
		t.Error("work for the response was canceled with the request")
	}
	w.done()
	s.expect(Response, "head.")
}

func TestAPanicInAFilterIsTheStreams(t *testing.T) {
	var c Context[*tape]
	last := &play{name: "last"}
	last.head[Request] = func(Context[*tape], *message.Head, bool) Verdict { panic("as a test does") }
	p := &play{name: "p"}
	p.head[Request] = func(x Context[*tape], _ *message.Head, _ bool) Verdict { c = x; return Hold }
	s := newTape(t, p, last)
	s.run.Head(Request, true)
	c.Resume()
	w := &work{}
	s2 := newTape(t, awaiting(w, func(Context[*tape]) Verdict { panic("as a test does") }))
	s2.run.Head(Request, true)
	w.done()
	for _, s := range []*tape{s, s2} {
		if len(s.panics) != 1 {
			t.Errorf("panics %v", s.panics)
		}
		s.expect(Request)
	}
}

func TestAReentrantPieceKeepsItsPlace(t *testing.T) {
	// The terminal of a released head lets the sender go on, which delivers
	// more before the rest of what was held has passed.
	var c Context[*tape]
	p := &play{name: "p"}
	p.head[Request] = func(x Context[*tape], _ *message.Head, _ bool) Verdict { c = x; return Hold }
	nested := &play{name: "nested"}
	nested.head[Request] = func(c Context[*tape], _ *message.Head, _ bool) Verdict {
		c.Stream.run.Data(Request, []byte("2"), false)
		return Continue
	}
	s := newTape(t, p, nested)
	s.run.Head(Request, false)
	s.run.Data(Request, []byte("1"), false)
	c.Resume()
	s.run.Data(Request, []byte("3"), true)
	if got := strings.Join(s.passed[Request], ""); got != "head123." {
		t.Errorf("passed %q", s.passed[Request])
	}
}

func TestTooManyFiltersAreRefused(t *testing.T) {
	if _, err := Compile[*tape](make([]Filter, MaxFilters+1), make([]route.FilterID, MaxFilters+1)); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Errorf("%v", err)
	}
}

// gate is a filter that can be asked again.
type gate struct{ open bool }

func (g *gate) Name() string { return "gate" }
func (g *gate) Recheck(c Context[*tape], h *message.Head) (bool, string) {
	return g.open || c.Override() != nil, "closed for " + string(h.Get(message.Method))
}

func TestAFilterIsAskedAgain(t *testing.T) {
	g := &gate{}
	s := newTape(t, quiet{Continue}, g)
	ok, details := s.run.chain.Recheck(s, &s.heads[Request])
	if ok || details != "closed for POST" || !s.run.chain.Rechecks() {
		t.Errorf("%v, %q", ok, details)
	}
	s.override[1] = true
	if ok, _ := s.run.chain.Recheck(s, &s.heads[Request]); !ok {
		t.Error("the route's override is not seen")
	}
	delete(s.override, 1)
	s.disabled[1] = true
	if ok, _ := s.run.chain.Recheck(s, &s.heads[Request]); !ok {
		t.Error("a filter that the route turns off is asked")
	}
}
