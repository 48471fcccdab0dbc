package regex

import (
	"fmt"
	"regexp/syntax"
)

// Answer is whether something matches.
type Answer uint8

const (
	No Answer = iota
	Yes
	// Unknown says that it would take too long to find out. A rule that denies
	// denies then, and one that allows does not allow.
	Unknown
)

// Of is the answer that is known.
func Of(match bool) Answer {
	if match {
		return Yes
	}
	return No
}

// Not is the opposite, which of Unknown is not known either.
func (a Answer) Not() Answer {
	switch a {
	case No:
		return Yes
	case Yes:
		return No
	}
	return Unknown
}

// Or is Yes where one of both is, and No where both are.
func (a Answer) Or(b Answer) Answer {
	switch {
	case a == Yes || b == Yes:
		return Yes
	case a == Unknown || b == Unknown:
		return Unknown
	}
	return No
}

// And is Yes where both are, and No where one is.
func (a Answer) And(b Answer) Answer {
	switch {
	case a == No || b == No:
		return No
	case a == Unknown || b == Unknown:
		return Unknown
	}
	return Yes
}

// MaxWork is how many steps the expressions of one decision (the choice of a
// route, the judgment of a policy) may take together: about 2 ms. Ten
// expressions that look at all of a path of 56 KiB take half of it.
const MaxWork = 1 << 20

// Budget counts the steps of one decision. The zero value is unspent.
type Budget struct{ spent int }

// Left says whether a step is left.
func (b *Budget) Left() bool { return b.spent < MaxWork }

// Spend takes n steps, at most as many as are left.
func (b *Budget) Spend(n int) { b.spent += min(n, MaxWork-b.spent) }

// maxPattern bounds the text of an expression.
const maxPattern = 16 << 10

// Expression is a compiled expression that must match the whole of a value, as
// everywhere in Envoy. Immutable.
type Expression struct {
	table   *automaton // nil: it would be too large
	program program    // instead
}

// Compile compiles an expression.
func Compile(pattern string) (*Expression, error) {
	// By itself first: "a)|(b" must not become valid by being put in parentheses.
	if _, err := Parse(pattern); err != nil {
		return nil, err
	}
	re, err := syntax.Parse(`\A(?:`+pattern+`)\z`, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", pattern, err)
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", pattern, err)
	}
	if t := build(prog); t != nil {
		return &Expression{table: t}, nil
	}
	prog.NumCap = 0 // what groups capture is of no interest
	p, err := newProgram(pattern, prog)
	return &Expression{program: p}, err
}

// Parse parses an expression, within the limit on its text.
func Parse(pattern string) (*syntax.Regexp, error) {
	if len(pattern) > maxPattern {
		return nil, fmt.Errorf("regular expression has %d bytes; at most %d are allowed", len(pattern), maxPattern)
	}
	re, err := syntax.Parse(pattern, syntax.Perl)
	if e, is := err.(*syntax.Error); is {
		return nil, fmt.Errorf("regular expression %q: %s", pattern, e.Code)
	} else if err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", pattern, err)
	}
	return re, nil
}

// Match says whether the expression matches all of b.
func (e *Expression) Match(b []byte, w *Budget) Answer {
	if !w.Left() {
		return Unknown
	}
	if e.table == nil {
		return e.program.run(b, 0, nil, w)
	}
	// It may take more steps than are left, but not more than one value has bytes.
	is, steps := e.table.match(b)
	w.Spend(steps)
	return Of(is)
}
