package loop

import (
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// panicker panics in whatever the loop calls, and notes it.
type panicker struct {
	w     *Worker
	name  string
	said  *[]string
	also  bool // panics in Panicked too
	again bool // asks for another turn before it panics
}

func (p *panicker) Event(Events) { panic(p.name) }
func (p *panicker) TurnEnd()     { panic(p.name) }
func (p *panicker) Turn() {
	if p.again {
		p.w.Again(p)
	}
	panic(p.name)
}

func (p *panicker) Panicked(v any) {
	*p.said = append(*p.said, p.name+" is told "+v.(string))
	if p.also {
		panic(p.name + " again")
	}
}

// TestAPanicEndsWhatPanickedAndNothingElse: whatever the loop calls may panic, and the rest of the same turn
// goes on, each thing once and in order.
func TestAPanicEndsWhatPanickedAndNothingElse(t *testing.T) {
	ready := func(t *testing.T, w *Worker, h Handler) {
		r, wr := pipe(t)
		if _, err := w.Add(r, h, In|Edge); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(wr, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	var timers [3]Timer
	for name, c := range map[string]struct {
		arm  func(t *testing.T, w *Worker, p *panicker, say func(string))
		want []string
	}{
		"in an event": {func(t *testing.T, w *Worker, p *panicker, say func(string)) {
			ready(t, w, handlerFunc(func(Events) { say("one") }))
			ready(t, w, p)
			ready(t, w, handlerFunc(func(Events) { say("two") }))
		}, []string{"one", "noted it", "it is told it", "two", "end"}},
		"in a turn": {func(t *testing.T, w *Worker, p *panicker, say func(string)) {
			w.Again(turnFunc(func() { say("one") }))
			w.Again(p)
			w.Again(turnFunc(func() { say("two") }))
		}, []string{"one", "noted it", "it is told it", "two", "end"}},
		"at the turn's end": {func(t *testing.T, w *Worker, p *panicker, say func(string)) {
			w.AtTurnEnd(p)
			w.AtTurnEnd(turnFunc(func() { say("two") }))
		}, []string{"end", "noted it", "it is told it", "two"}},
		"in a posted function": {func(t *testing.T, w *Worker, p *panicker, say func(string)) {
			w.Post(func() { say("one") })
			w.Post(func() { panic("it") })
			w.Post(func() { say("two") })
		}, []string{"one", "noted it", "two", "end"}},
		"in a guarded function": {func(t *testing.T, w *Worker, p *panicker, say func(string)) {
			w.Post(func() { defer w.Guard(p); panic("it") })
			w.Post(func() { say("two") })
		}, []string{"noted it", "it is told it", "two", "end"}},
		"in a timer": {func(t *testing.T, w *Worker, p *panicker, say func(string)) {
			timers[0].Init(func() { say("one") })
			timers[1].Init(func() { panic("it") })
			timers[2].Init(func() { say("two") })
			for i := range timers {
				w.Schedule(&timers[i], 0)
			}
		}, []string{"one", "noted it", "two", "end"}},
		"in what is told of it": {func(t *testing.T, w *Worker, p *panicker, say func(string)) {
			p.also = true
			w.Again(p)
			w.Again(turnFunc(func() { say("two") }))
		}, []string{"noted it", "it is told it", "noted it again", "two", "end"}},
	} {
		t.Run(name, func(t *testing.T) {
			w, now := newTestWorker(t)
			var said []string
			say := func(s string) { said = append(said, s) }
			w.OnPanic(func(v any) { say("noted " + v.(string)) })
			w.AtTurnEnd(turnFunc(func() { say("end") }))
			c.arm(t, w, &panicker{w: w, name: "it", said: &said}, say)
			now.now = now.now.Add(time.Second)
			w.Step(0)
			if !slices.Equal(said, c.want) {
				t.Errorf("said %q\nwant %q", said, c.want)
			}
		})
	}
}

// TestAPanicThatComesAgainDoesNotHoldTheTurn: what asks for another turn and panics gets one a turn.
func TestAPanicThatComesAgainDoesNotHoldTheTurn(t *testing.T) {
	w, _ := newTestWorker(t)
	var said []string
	noted := 0
	w.OnPanic(func(any) { noted++ })
	w.Again(&panicker{w: w, name: "it", said: &said, again: true})
	var post func()
	post = func() { w.Post(post); panic("posted") }
	w.Post(post)
	for turn := 1; turn <= 3; turn++ {
		w.Step(0)
		if noted != 2*turn {
			t.Fatalf("%d panics after %d turns", noted, turn)
		}
	}
}

// TestAPanicWhileStopping: the worker ends all the same, and everything that was to be told is.
func TestAPanicWhileStopping(t *testing.T) {
	w, err := New(0)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	w.OnPanic(func(v any) { said = append(said, "noted "+v.(string)) })
	w.OnStop(func() { said = append(said, "first") })
	w.OnStop(func() { panic("second") })
	w.Post(func() { panic("posted") })
	w.Close()
	if got, want := strings.Join(said, ", "), "noted posted, noted second, first"; got != want {
		t.Errorf("said %s, want %s", got, want)
	}
}

func TestWithoutOnPanicAPanicGoesOn(t *testing.T) {
	w, _ := newTestWorker(t)
	w.Post(func() { panic("it") })
	defer func() {
		if recover() == nil {
			t.Error("a test would not see it")
		}
	}()
	w.Step(0)
}
