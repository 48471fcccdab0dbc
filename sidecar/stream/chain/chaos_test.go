package chain

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"sallyport/sidecar/message"
)

// chaos is a filter that holds, replaces, drops, collects, awaits and answers
// at random at every event. What it does to content depends on each byte alone,
// so that the result does not depend on how the content was cut.
type chaos struct {
	name  string
	world *world
	add   byte // to each byte
	drops byte // such bytes are dropped
}

// world is what the chaos filters share: the random choices, and what is still
// to be done for filters that hold.
type world struct {
	r       *rand.Rand
	later   []func()
	answers bool
}

func (w *world) chance(percent int) bool { return w.r.IntN(100) < percent }

func (f *chaos) Name() string { return f.name }

// verdict holds at random, and sees to it that the message goes on some time.
func (f *chaos) verdict(c Context[*tape]) Verdict {
	w := f.world
	switch {
	case w.answers && w.chance(1):
		c.Stream.answer()
		return Answered
	case w.chance(60):
		return Continue
	case w.chance(10):
		c.Resume()
		return Hold
	case w.chance(30):
		job := &work{early: w.chance(30)}
		v := c.Await(job, func(c Context[*tape]) Verdict { return f.verdict(c) })
		if v == Hold {
			w.later = append(w.later, job.done)
		}
		return v
	}
	w.later = append(w.later, c.Resume)
	if w.chance(50) {
		return Collect
	}
	return Hold
}

func (f *chaos) change(p []byte) []byte {
	out := make([]byte, 0, len(p))
	for _, b := range p {
		if b != f.drops {
			out = append(out, b+f.add)
		}
	}
	return out
}

func (f *chaos) RequestHead(c Context[*tape], _ *message.Head, _ bool) Verdict { return f.verdict(c) }
func (f *chaos) ResponseHead(c Context[*tape], _ *message.Head, _ bool) Verdict {
	return f.verdict(c)
}
func (f *chaos) RequestData(c Context[*tape], p []byte, _ bool) ([]byte, Verdict) {
	return f.change(p), f.verdict(c)
}
func (f *chaos) ResponseData(c Context[*tape], p []byte, _ bool) ([]byte, Verdict) {
	return f.change(p), f.verdict(c)
}
func (f *chaos) RequestTrailers(c Context[*tape], _ *message.Head) Verdict  { return f.verdict(c) }
func (f *chaos) ResponseTrailers(c Context[*tape], _ *message.Head) Verdict { return f.verdict(c) }

// some returns the filter with only some of its events.
func some(f *chaos, r *rand.Rand) Filter {
	switch r.IntN(4) {
	case 0:
		return struct {
			named
			RequestHead[*tape]
			ResponseTrailers[*tape]
		}{named{f.name}, f, f}
	case 1:
		return struct {
			named
			RequestData[*tape]
			ResponseData[*tape]
		}{named{f.name}, f, f}
	}
	return f
}

type named struct{ name string }

func (n named) Name() string { return n.name }

// play sends a message of pieces through chaos filters and says what should
// have come of it.
func (w *world) play(t *testing.T, pieces [2][][]byte, trailers [2]bool) {
	w.answers = w.chance(20)
	var filters []Filter
	var maps []*chaos // those that see content
	for i := range w.r.IntN(5) {
		f := &chaos{name: string(rune('a' + i)), world: w, add: byte(w.r.IntN(256)), drops: byte(w.r.IntN(256))}
		g := some(f, w.r)
		filters = append(filters, g)
		if _, sees := g.(RequestData[*tape]); sees {
			maps = append(maps, f)
		} else {
			maps = append(maps, nil)
		}
	}
	s := newTape(t, filters...)
	s.limit = 1 << 20
	var steps [2][]func()
	for _, d := range []Direction{Request, Response} {
		n := len(pieces[d])
		add := func(f func()) { steps[d] = append(steps[d], f) }
		add(func() { s.run.Head(d, n == 0 && !trailers[d]) })
		for i, p := range pieces[d] {
			add(func() { s.run.Data(d, p, i == n-1 && !trailers[d]) })
		}
		if trailers[d] {
			add(func() { s.run.Trailers(d, trailersOf("t")) })
		}
	}
	for len(steps[0])+len(steps[1])+len(w.later) > 0 {
		switch at := w.r.IntN(3); {
		case at < 2 && len(steps[at]) > 0:
			next := steps[at][0]
			steps[at] = steps[at][1:]
			next()
		case len(w.later) > 0:
			i := w.r.IntN(len(w.later))
			next := w.later[i]
			w.later = append(w.later[:i], w.later[i+1:]...)
			next()
		}
	}
	answered := s.run.sides[0].cut
	for _, d := range []Direction{Request, Response} {
		want := bytes.Join(pieces[d], nil)
		order := maps
		for i := range order {
			f := order[i]
			if d == Response {
				f = order[len(order)-1-i]
			}
			if f != nil {
				want = f.change(want)
			}
		}
		s.check(d, want, trailers[d], answered)
	}
	s.end()
	if len(s.run.sides[0].holds)+len(s.run.sides[1].holds) > 0 || s.run.awaits != nil {
		t.Error("something is held or awaited after the end")
	}
}

// check says whether what passed is the message: once, in order, whole, or,
// after an answer, the beginning of it.
func (s *tape) check(d Direction, want []byte, trailers, answered bool) {
	s.t.Helper()
	passed := s.passed[d]
	var got []byte
	ends := 0
	for i, e := range passed {
		if (i == 0) != (e == "head" || e == "head.") {
			s.t.Fatalf("direction %d: passed %q: the head is not the first, or not once", d, passed)
		}
		if e[len(e)-1] == '.' && (i == len(passed)-1) {
			ends++
		}
		switch e {
		case "head", "head.", "trailers t.":
		default:
			got = append(got, e...)
		}
	}
	if ends == 1 && !trailers && passed[len(passed)-1] != "head." {
		got = got[:len(got)-1] // the mark of the end
	}
	switch {
	case !answered && (ends != 1 || !bytes.Equal(got, want)):
		s.t.Fatalf("direction %d: passed %q, want %q and one end", d, passed, want)
	case answered && !bytes.HasPrefix(append(want, '.'), got):
		s.t.Fatalf("direction %d: passed %q, which is no beginning of %q", d, passed, want)
	}
}

func randomPieces(r *rand.Rand) (p [][]byte) {
	for range r.IntN(6) {
		b := make([]byte, 1+r.IntN(20))
		for i := range b {
			b[i] = byte(r.IntN(256))
		}
		p = append(p, b)
	}
	return p
}

// TestChaos: whatever filters do, a message arrives once, whole and in order, or was answered.
func TestChaos(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 11))
		w := &world{r: r}
		w.play(t, [2][][]byte{randomPieces(r), randomPieces(r)}, [2]bool{r.IntN(2) == 0, r.IntN(2) == 0})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzChaos(f *testing.F) {
	f.Add(uint64(1), []byte("request"), []byte("response"))
	f.Add(uint64(77), []byte{}, []byte{0xff})
	f.Fuzz(func(t *testing.T, seed uint64, request, response []byte) {
		r := rand.New(rand.NewPCG(seed, 12))
		w := &world{r: r}
		w.play(t, [2][][]byte{cut(r, request), cut(r, response)}, [2]bool{r.IntN(2) == 0, r.IntN(2) == 0})
	})
}

func cut(r *rand.Rand, b []byte) (pieces [][]byte) {
	for len(b) > 0 {
		n := 1 + r.IntN(len(b))
		pieces = append(pieces, b[:n])
		b = b[n:]
	}
	return pieces
}
