package regex

import (
	"encoding/binary"
	"regexp/syntax"
	"slices"
	"unicode"
	"unicode/utf8"
)

// classes sorts characters into those between which an expression tells no
// difference, so that a table has a column a class and not one a character.
type classes struct {
	ascii [utf8.RuneSelf]uint8
	// starts are where the ranges of the other characters begin, ascending, of
	// the classes at the same places.
	starts []rune
	of     []uint8
	// examples have one character of each class.
	examples []rune
	// looksBack says that an assertion depends on the character before it, and
	// not only on whether there is one.
	looksBack bool
}

// maxClasses leaves one column for the end of a value.
const maxClasses = 255

// sort finds the classes of a program's characters; false means that there are too many.
func (c *classes) sort(prog *syntax.Prog) bool {
	c.looksBack = slices.ContainsFunc(prog.Inst, func(in syntax.Inst) bool {
		return in.Op == syntax.InstEmptyWidth && syntax.EmptyOp(in.Arg)&^(syntax.EmptyBeginText|syntax.EmptyEndText) != 0
	})
	insts, cuts := characters(prog)
	known := map[string]uint8{}
	signature := make([]byte, (len(insts)+7)/8+1)
	for i, lo := range cuts {
		clear(signature)
		for k, in := range insts {
			if in.MatchRune(lo) {
				signature[k/8] |= 1 << (k % 8)
			}
		}
		if c.looksBack {
			signature[len(signature)-1] = byte(before(lo))
		}
		class, there := known[string(signature)]
		if !there {
			if len(known) == maxClasses {
				return false
			}
			class = uint8(len(known))
			known[string(signature)] = class
			c.examples = append(c.examples, lo)
		}
		hi := rune(unicode.MaxRune) + 1
		if i+1 < len(cuts) {
			hi = cuts[i+1]
		}
		for r := lo; r < min(hi, utf8.RuneSelf); r++ {
			c.ascii[r] = class
		}
		if n := len(c.of); hi > utf8.RuneSelf && (n == 0 || c.of[n-1] != class) {
			c.starts, c.of = append(c.starts, max(lo, utf8.RuneSelf)), append(c.of, class)
		}
	}
	return true
}

// class is that of a character that is not ASCII.
func (c *classes) class(r rune) uint8 {
	i, there := slices.BinarySearch(c.starts, r)
	if !there {
		i--
	}
	return c.of[i]
}

// characters are the instructions of a program that differ in what characters
// they take, and where, in ascending order, a range of characters begins that
// some of them take and others do not.
func characters(prog *syntax.Prog) (insts []*syntax.Inst, cuts []rune) {
	// What assertions look at: the end of a line, and letters of a word.
	cuts = []rune{0, '\n', '\n' + 1, '0', '9' + 1, 'A', 'Z' + 1, '_', '_' + 1, 'a', 'z' + 1, utf8.RuneSelf}
	seen := map[string]bool{}
	for i := range prog.Inst {
		in := &prog.Inst[i]
		switch in.Op {
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
		default:
			continue
		}
		key := binary.LittleEndian.AppendUint32(nil, in.Arg)
		for _, r := range in.Rune {
			key = binary.LittleEndian.AppendUint32(key, uint32(r))
		}
		if !seen[string(key)] {
			seen[string(key)] = true
			insts = append(insts, in)
		}
	}
	for _, in := range insts {
		if len(in.Rune) != 1 {
			for k := 0; k+1 < len(in.Rune); k += 2 {
				cuts = append(cuts, in.Rune[k], in.Rune[k+1]+1)
			}
			continue
		}
		r := in.Rune[0]
		cuts = append(cuts, r, r+1)
		if syntax.Flags(in.Arg)&syntax.FoldCase != 0 {
			for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
				cuts = append(cuts, f, f+1)
			}
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	for len(cuts) > 0 && cuts[len(cuts)-1] > unicode.MaxRune {
		cuts = cuts[:len(cuts)-1]
	}
	return insts, cuts
}

// neighbor is what an assertion may look for in the character before it.
type neighbor uint8

const (
	other neighbor = iota
	letter
	newline
	nothing // the beginning of the value
)

func before(r rune) neighbor {
	switch {
	case r == '\n':
		return newline
	case syntax.IsWordChar(r):
		return letter
	}
	return other
}

// context is the assertions that hold between a character and the next one, which is negative at the end.
func (n neighbor) context(next rune) syntax.EmptyOp {
	return syntax.EmptyOpContext([...]rune{other: ' ', letter: 'a', newline: '\n', nothing: -1}[n], next)
}
