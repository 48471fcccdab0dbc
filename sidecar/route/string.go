package route

import (
	"bytes"
	"regexp/syntax"
	"strings"
	"unicode/utf8"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route/regex"
)

// StringKind is how a StringMatcher compares.
type StringKind uint8

const (
	// StringAny matches every value; regular expressions such as ".*" become it.
	StringAny StringKind = iota
	StringExact
	StringPrefix
	StringSuffix
	StringContains
	stringRegex
)

// StringMatcher is a compiled envoy.type.matcher.v3.StringMatcher. The zero
// value matches everything. Immutable; Match does not allocate.
type StringMatcher struct {
	kind StringKind
	fold bool
	// oneLine excludes values with a line break, as an expression does in which
	// "." stands for what value leaves open.
	oneLine bool
	value   string // in lower case where fold
	skip    []int  // of StringContains where fold: see containsFold
	re      *regex.Expression
}

// NewString returns a matcher that compares with value; fold ignores the case of ASCII letters.
func NewString(kind StringKind, value string, fold bool) StringMatcher {
	m := StringMatcher{kind: kind, fold: fold, value: value}
	if fold {
		m.value = lowerASCII(value)
	}
	if fold && kind == StringContains {
		m.skip = skips(m.value)
	}
	return m
}

// NewRegex returns a matcher for a regular expression in RE2's syntax, which
// must match the whole value, as everywhere in Envoy. An expression that is a
// mere literal, prefix, suffix or infix is compared as such.
func NewRegex(pattern string) (StringMatcher, error) {
	parsed, err := regex.Parse(pattern)
	if err != nil {
		return StringMatcher{}, err
	}
	if m, ok := simpleRegex(parsed); ok {
		return m, nil
	}
	re, err := regex.Compile(pattern)
	if err != nil {
		return StringMatcher{}, err
	}
	return StringMatcher{kind: stringRegex, re: re, value: pattern}, nil
}

// simpleRegex recognizes expressions of the forms lit, lit.*, .*lit, .*lit.*
// and .*, with lit a plain string.
func simpleRegex(re *syntax.Regexp) (StringMatcher, bool) {
	re = re.Simplify()
	parts := []*syntax.Regexp{re}
	if re.Op == syntax.OpConcat {
		parts = re.Sub
	}
	// The whole value must match anyway.
	if len(parts) > 0 && parts[0].Op == syntax.OpBeginText {
		parts = parts[1:]
	}
	if len(parts) > 0 && parts[len(parts)-1].Op == syntax.OpEndText {
		parts = parts[:len(parts)-1]
	}
	open, shut, oneLine := false, false, false
	if len(parts) > 0 && isAnything(parts[0]) {
		open, oneLine = true, isLine(parts[0])
		parts = parts[1:]
	}
	if n := len(parts); n > 0 && isAnything(parts[n-1]) {
		if shut = true; open && oneLine != isLine(parts[n-1]) {
			return StringMatcher{}, false
		}
		oneLine = isLine(parts[n-1])
		parts = parts[:n-1]
	}
	var lit string
	switch len(parts) {
	case 0:
	case 1:
		p := parts[0]
		if p.Op == syntax.OpEmptyMatch {
			break
		}
		if p.Op != syntax.OpLiteral || p.Flags&syntax.FoldCase != 0 {
			return StringMatcher{}, false
		}
		lit = string(p.Rune)
		// U+FFFD also matches a byte that is not UTF-8, which only the engine knows.
		if strings.ContainsRune(lit, utf8.RuneError) || oneLine && strings.Contains(lit, "\n") {
			return StringMatcher{}, false
		}
	default:
		return StringMatcher{}, false
	}
	kind := StringExact
	switch {
	case lit == "" && (open || shut):
		kind = StringAny
	case open && shut:
		kind = StringContains
	case open:
		kind = StringSuffix
	case shut:
		kind = StringPrefix
	}
	return StringMatcher{kind: kind, oneLine: oneLine, value: lit}, true
}

func isAnything(re *syntax.Regexp) bool {
	return re.Op == syntax.OpStar && (re.Sub[0].Op == syntax.OpAnyChar || re.Sub[0].Op == syntax.OpAnyCharNotNL)
}

// isLine says that an isAnything does not take line breaks.
func isLine(re *syntax.Regexp) bool { return re.Sub[0].Op == syntax.OpAnyCharNotNL }

// Match says whether b matches. It does not where that is not known: callers
// for whom a match opens or denies something ask Try.
func (m *StringMatcher) Match(b []byte) bool {
	var w regex.Budget
	return m.Try(b, &w) == regex.Yes
}

// MatchString is Match for a string.
func (m *StringMatcher) MatchString(s string) bool { return m.Match(view(s)) }

// Try says whether b matches, within the budget of a decision.
func (m *StringMatcher) Try(b []byte, w *regex.Budget) regex.Answer {
	switch {
	case m.kind == StringExact && !m.fold:
		return regex.Of(string(b) == m.value)
	case m.kind == stringRegex:
		return m.re.Match(b, w)
	case m.oneLine && bytes.IndexByte(b, '\n') >= 0:
		return regex.No
	}
	return regex.Of(m.compare(b))
}

// TryString is Try for a string.
func (m *StringMatcher) TryString(s string, w *regex.Budget) regex.Answer { return m.Try(view(s), w) }

func (m *StringMatcher) compare(b []byte) bool {
	switch m.kind {
	case StringAny:
		return true
	case StringExact:
		return m.equal(b)
	case StringPrefix:
		return len(b) >= len(m.value) && m.equal(b[:len(m.value)])
	case StringSuffix:
		return len(b) >= len(m.value) && m.equal(b[len(b)-len(m.value):])
	}
	if m.fold {
		return m.containsFold(b)
	}
	return bytes.Contains(b, view(m.value))
}

// containsFold looks for value at every place of b, in time that depends on
// their lengths and not on what they hold (Knuth, Morris and Pratt).
func (m *StringMatcher) containsFold(b []byte) bool {
	if m.value == "" {
		return true
	}
	k := 0
	for _, c := range b {
		for k > 0 && m.value[k] != lowerByte(c) {
			k = m.skip[k-1]
		}
		if m.value[k] == lowerByte(c) {
			if k++; k == len(m.value) {
				return true
			}
		}
	}
	return false
}

// skips has for each beginning of s the length of the longest part at its
// start that is at its end, too.
func skips(s string) []int {
	skip := make([]int, len(s))
	for i, k := 1, 0; i < len(s); i++ {
		for k > 0 && s[k] != s[i] {
			k = skip[k-1]
		}
		if s[k] == s[i] {
			k++
		}
		skip[i] = k
	}
	return skip
}

func (m *StringMatcher) equal(b []byte) bool {
	if m.fold {
		return message.EqualFold(b, m.value)
	}
	return string(b) == m.value
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		b[i] = lowerByte(c)
	}
	return string(b)
}
