package regex

import (
	"fmt"
	"regexp/syntax"
	"sync"
	"unicode/utf8"
)

// Search is an expression that is looked for within a value, with the groups
// that it captures. Immutable.
type Search struct {
	program
	groups int
}

// NewSearch compiles an expression.
func NewSearch(pattern string) (*Search, error) {
	re, err := Parse(pattern)
	if err != nil {
		return nil, err
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", pattern, err)
	}
	p, err := newProgram(pattern, prog)
	return &Search{p, re.MaxCap()}, err
}

// Groups is the number of groups, without that of the whole match.
func (s *Search) Groups() int { return s.groups }

// Next finds the first match in b that begins at from or behind it. at then
// has two places for each group, the whole match first: where it begins and
// ends, or -1. What stands before from counts for assertions.
func (s *Search) Next(b []byte, from int, at []int, w *Budget) Answer {
	for i := range at {
		at[i] = -1 // a group that can never capture has no place in the program
	}
	return s.run(b, from, at[:s.slots], w)
}

// program is a compiled expression that is run instruction by instruction: all
// ways in which it could match are followed at once, in the order in which
// they count (Thompson's and Pike's construction), so that the steps for a
// character are bounded by the instructions.
type program struct {
	inst     []syntax.Inst
	start    uint32
	slots    int  // places in a value that are remembered: two a group
	anchored bool // it matches at the beginning of a value only
	pool     *sync.Pool
}

const (
	// maxProgram bounds the instructions of an expression that has no table. Of
	// those a value needs at most two steps a character.
	maxProgram = 2048
	// dear is what such a step costs in steps of a table: 10 ns against 2 ns.
	dear = 5
)

func newProgram(pattern string, prog *syntax.Prog) (program, error) {
	n := len(prog.Inst)
	if n > maxProgram {
		const most = 80
		if len(pattern) > most {
			pattern = pattern[:most] + "…"
		}
		return program{}, fmt.Errorf("regular expression %q needs %d instructions; at most %d are allowed: use smaller counts in {}", pattern, n, maxProgram)
	}
	p := program{inst: prog.Inst, start: uint32(prog.Start), slots: prog.NumCap, anchored: prog.StartCond()&syntax.EmptyBeginText != 0}
	p.pool = &sync.Pool{New: func() any {
		return &machine{now: newThreads(n, p.slots), next: newThreads(n, p.slots), own: make([]int, p.slots)}
	}}
	return p, nil
}

// machine is what a run needs of memory.
type machine struct {
	now, next threads
	own       []int // the places of the thread that is being followed
	steps     int
}

// threads are the places in a program at which a run stands before a
// character, the one that counts most first.
type threads struct {
	list []uint32 // instructions that take a character, or match
	at   []int    // the places that each has captured
	// seen has the round in which an instruction was last passed.
	seen  []uint32
	round uint32
}

func newThreads(n, slots int) threads {
	return threads{list: make([]uint32, 0, n), at: make([]int, n*slots), seen: make([]uint32, n)}
}

func (t *threads) clear() {
	t.list = t.list[:0]
	if t.round++; t.round == 0 {
		clear(t.seen)
		t.round = 1
	}
}

// runeAt is the character at i and its length, negative at the end.
func runeAt(b []byte, i int) (rune, int) {
	switch {
	case i >= len(b):
		return -1, 0
	case b[i] < utf8.RuneSelf:
		return rune(b[i]), 1
	}
	return utf8.DecodeRune(b[i:])
}

// run finds the first match at or behind from.
func (p *program) run(b []byte, from int, at []int, w *Budget) (found Answer) {
	m := p.pool.Get().(*machine)
	m.steps = 0
	m.now.clear()
	m.next.clear()
	left := (MaxWork - w.spent) / dear
	before := rune(-1)
	if from > 0 {
		before, _ = utf8.DecodeLastRune(b[:from])
	}
	c, width := runeAt(b, from)
	for pos := from; ; {
		if len(m.now.list) == 0 && (found == Yes || p.anchored && pos > 0) {
			break
		}
		if m.steps > left {
			found = Unknown
			break
		}
		holds := syntax.EmptyOpContext(before, c)
		if found == No {
			for i := range m.own {
				m.own[i] = -1
			}
			if p.slots > 0 {
				m.own[0] = pos
			}
			p.follow(m, &m.now, p.start, pos, holds)
		}
		after, n := runeAt(b, pos+width)
		if p.step(m, c, pos, pos+width, syntax.EmptyOpContext(c, after), at) {
			found = Yes
		}
		if width == 0 {
			break
		}
		m.now, m.next = m.next, m.now
		m.next.clear()
		before, c = c, after
		pos, width = pos+width, n
	}
	w.Spend(dear * m.steps)
	p.pool.Put(m)
	return found
}

// step takes the character c, which stands at pos, and says whether a thread matched.
func (p *program) step(m *machine, c rune, pos, next int, holds syntax.EmptyOp, at []int) bool {
	for i, pc := range m.now.list {
		m.steps++
		in := &p.inst[pc]
		own := m.now.at[i*p.slots : (i+1)*p.slots]
		if in.Op == syntax.InstMatch {
			// Threads behind this one count less.
			if copy(at, own); p.slots > 0 {
				at[1] = pos
			}
			return true
		}
		if c >= 0 && takes(in, c) {
			copy(m.own, own)
			p.follow(m, &m.next, in.Out, next, holds)
		}
	}
	return false
}

// follow adds the instructions that are reached from pc at pos without taking a character.
func (p *program) follow(m *machine, t *threads, pc uint32, pos int, holds syntax.EmptyOp) {
	m.steps++
	if t.seen[pc] == t.round {
		return
	}
	t.seen[pc] = t.round
	switch in := &p.inst[pc]; in.Op {
	case syntax.InstAlt, syntax.InstAltMatch:
		p.follow(m, t, in.Out, pos, holds)
		p.follow(m, t, in.Arg, pos, holds)
	case syntax.InstNop:
		p.follow(m, t, in.Out, pos, holds)
	case syntax.InstEmptyWidth:
		if syntax.EmptyOp(in.Arg)&^holds == 0 {
			p.follow(m, t, in.Out, pos, holds)
		}
	case syntax.InstCapture:
		if int(in.Arg) >= p.slots {
			p.follow(m, t, in.Out, pos, holds)
			return
		}
		old := m.own[in.Arg]
		m.own[in.Arg] = pos
		p.follow(m, t, in.Out, pos, holds)
		m.own[in.Arg] = old
	case syntax.InstFail:
	default:
		copy(t.at[len(t.list)*p.slots:], m.own)
		t.list = append(t.list, pc)
	}
}
