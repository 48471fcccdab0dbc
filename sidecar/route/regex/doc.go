// Package regex matches whole values with regular expressions in RE2's syntax,
// in bounded time. An expression is compiled, off the workers, to a table of
// states (a deterministic finite automaton): a value costs one step a character
// then, whatever the expression. Where the table would be too large, and to find
// what a rewrite replaces, the expression's program is run instead: some steps a
// character. Steps are counted in a Budget, and where it does not suffice the
// answer is Unknown, which whoever asks treats as the refusal of the request.
// Compiled expressions are immutable and shared by all workers; in the steady
// state matching allocates nothing.
//
// The files: regex.go is expressions and budgets, automaton.go the tables,
// classes.go how characters are sorted into those that an expression tells
// apart, search.go the programs.
package regex
