package regex

import (
	"encoding/binary"
	"regexp/syntax"
	"slices"
	"unicode/utf8"
)

// automaton is an expression as a table of states.
type automaton struct {
	classes
	// next has a row for each state and in it a column for each class, and one
	// for the end of the value. A state is the place of its row.
	next  []uint16
	start uint16
	// all and below are final: whatever follows, the value matches (all), or
	// does not (0).
	all uint16
}

const (
	// maxTable bounds a table, which then has 128 KiB; maxStates and maxEffort
	// bound what it costs to make one.
	maxTable  = 1 << 16
	maxStates = 2048
	maxEffort = 1 << 20
)

// match says whether the expression matches all of b, and after how many bytes it knew.
func (a *automaton) match(b []byte) (is bool, steps int) {
	s, next := a.start, a.next
	i := 0
	for s > a.all && i < len(b) {
		if c := b[i]; c < utf8.RuneSelf {
			s = next[int(s)+int(a.ascii[c])]
			i++
			continue
		}
		r, n := utf8.DecodeRune(b[i:])
		s = next[int(s)+int(a.class(r))]
		i += n
	}
	if s > a.all {
		s = next[int(s)+len(a.examples)]
	}
	return s == a.all, i
}

// builder makes an automaton by the subset construction: a state of it is the
// set of instructions at which the program can stand.
type builder struct {
	automaton
	prog   *syntax.Prog
	states map[string]uint16
	queue  []state
	effort int
	seen   []bool // scratch
}

// state is a set of instructions, in ascending order, without those that take
// nothing, but with assertions: whether they hold depends on the next character.
type state struct {
	at     uint16
	insts  []uint32
	before neighbor
}

// build returns the automaton of a program, nil where it would be too large.
func build(prog *syntax.Prog) *automaton {
	b := &builder{prog: prog, states: map[string]uint16{}, seen: make([]bool, len(prog.Inst))}
	if len(prog.Inst) > maxStates || !b.sort(prog) {
		return nil
	}
	width := len(b.examples) + 1
	b.all = uint16(width)
	b.next = make([]uint16, 2*width)
	for i := range width {
		b.next[width+i] = b.all
	}
	var first []uint32
	b.follow(&first, uint32(prog.Start), 0)
	start, fits := b.state(first, nothing)
	if !fits {
		return nil
	}
	b.start = start
	for len(b.queue) > 0 {
		s := b.queue[0]
		b.queue = b.queue[1:]
		if !b.row(&s) {
			return nil
		}
	}
	b.settle()
	a := b.automaton
	return &a
}

// row fills the row of a state.
func (b *builder) row(s *state) bool {
	for class, r := range b.examples {
		var insts []uint32
		for _, pc := range b.closed(s, r) {
			if in := &b.prog.Inst[pc]; takes(in, r) {
				b.follow(&insts, in.Out, 0)
			}
		}
		at, fits := b.state(insts, before(r))
		if !fits {
			return false
		}
		b.next[int(s.at)+class] = at
	}
	for _, pc := range b.closed(s, -1) {
		if b.prog.Inst[pc].Op == syntax.InstMatch {
			b.next[int(s.at)+len(b.examples)] = b.all
		}
	}
	return true
}

func takes(in *syntax.Inst, r rune) bool {
	switch in.Op {
	case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
		return in.MatchRune(r)
	}
	return false
}

// closed is the instructions at which the program stands when the next
// character is r (negative: the end), which decides about assertions.
func (b *builder) closed(s *state, r rune) []uint32 {
	holds := s.before.context(r)
	var out []uint32
	for _, pc := range s.insts {
		if in := &b.prog.Inst[pc]; in.Op != syntax.InstEmptyWidth {
			out = append(out, pc)
		} else if syntax.EmptyOp(in.Arg)&^holds == 0 {
			b.follow(&out, in.Out, holds)
		}
	}
	clear(b.seen)
	return out
}

// follow appends to list the instructions that are reached from pc without
// taking a character. Assertions in holds are passed, others are appended.
func (b *builder) follow(list *[]uint32, pc uint32, holds syntax.EmptyOp) {
	if b.effort++; b.seen[pc] {
		return
	}
	b.seen[pc] = true
	switch in := &b.prog.Inst[pc]; in.Op {
	case syntax.InstAlt, syntax.InstAltMatch:
		b.follow(list, in.Out, holds)
		b.follow(list, in.Arg, holds)
	case syntax.InstCapture, syntax.InstNop:
		b.follow(list, in.Out, holds)
	case syntax.InstEmptyWidth:
		if holds != 0 && syntax.EmptyOp(in.Arg)&^holds == 0 {
			b.follow(list, in.Out, holds)
			return
		}
		*list = append(*list, pc)
	case syntax.InstFail:
	default:
		*list = append(*list, pc)
	}
}

// state returns the place of a state, which is made where there is none yet.
func (b *builder) state(insts []uint32, last neighbor) (at uint16, fits bool) {
	clear(b.seen)
	if len(insts) == 0 {
		return 0, true
	}
	slices.Sort(insts)
	insts = slices.Compact(insts)
	if last != nothing && !b.looksBack {
		last = other
	}
	key := make([]byte, 0, 2*len(insts)+1)
	for _, pc := range insts {
		key = binary.LittleEndian.AppendUint16(key, uint16(pc))
	}
	key = append(key, byte(last))
	if at, there := b.states[string(key)]; there {
		return at, true
	}
	width := len(b.examples) + 1
	b.effort += len(insts) * width
	if len(b.states) == maxStates || len(b.next)+width > maxTable || b.effort > maxEffort {
		return 0, false
	}
	at = uint16(len(b.next))
	b.next = append(b.next, make([]uint16, width)...)
	b.states[string(key)] = at
	b.queue = append(b.queue, state{at, insts, last})
	return at, true
}

// settle replaces the states from which every way leads to a match, or none.
func (b *builder) settle() {
	width := len(b.examples) + 1
	for _, final := range [...]uint16{0, b.all} {
		// escapes are the states from which a way leads to the other outcome.
		escapes := make([]bool, len(b.next)/width)
		escapes[(b.all-final)/uint16(width)] = true
		for changed := true; changed; {
			changed = false
			// A state's successors mostly stand behind it.
			for i := len(escapes) - 1; i >= 2; i-- {
				if !escapes[i] && slices.ContainsFunc(b.next[i*width:(i+1)*width], func(s uint16) bool { return escapes[int(s)/width] }) {
					escapes[i], changed = true, true
				}
			}
		}
		for i, s := range b.next {
			if !escapes[int(s)/width] {
				b.next[i] = final
			}
		}
		if !escapes[int(b.start)/width] {
			b.start = final
		}
	}
}
