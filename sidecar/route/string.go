package route

import (
	"bytes"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode/utf8"
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
	kind  StringKind
	fold  bool
	value string // in lower case where fold
	re    *regexp.Regexp
}

// NewString returns a matcher that compares with value; fold ignores the case of ASCII letters.
func NewString(kind StringKind, value string, fold bool) StringMatcher {
	if fold {
		value = lowerASCII(value)
	}
	return StringMatcher{kind: kind, fold: fold, value: value}
}

// maxRegex bounds a pattern; Go's regexp bounds what repetition makes of it.
const maxRegex = 16 << 10

// NewRegex returns a matcher for a regular expression in RE2's syntax, which
// must match the whole value, as everywhere in Envoy. An expression that is a
// mere literal, prefix, suffix or infix is compared as such.
func NewRegex(pattern string) (StringMatcher, error) {
	re, err := compileRegex(pattern)
	if err != nil {
		return StringMatcher{}, err
	}
	if m, ok := simpleRegex(pattern); ok {
		return m, nil
	}
	return StringMatcher{kind: stringRegex, re: re, value: pattern}, nil
}

func compileRegex(pattern string) (*regexp.Regexp, error) {
	if len(pattern) > maxRegex {
		return nil, fmt.Errorf("regular expression has %d bytes; at most %d are allowed", len(pattern), maxRegex)
	}
	// By itself first: "a)|(b" must not become valid by being put in parentheses.
	if _, err := regexp.Compile(pattern); err != nil {
		return nil, regexError(pattern, err)
	}
	re, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
	if err != nil {
		return nil, regexError(pattern, err)
	}
	return re, nil
}

func regexError(pattern string, err error) error {
	if e, ok := err.(*syntax.Error); ok {
		return fmt.Errorf("regular expression %q: %s", pattern, e.Code)
	}
	return fmt.Errorf("regular expression %q: %w", pattern, err)
}

// simpleRegex recognizes patterns of the forms lit, lit.*, .*lit, .*lit.* and
// .*, with lit a plain string. "." does not match a newline, which no value
// that is matched here can hold.
func simpleRegex(pattern string) (StringMatcher, bool) {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return StringMatcher{}, false
	}
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
	open, shut := false, false
	if len(parts) > 0 && isAnything(parts[0]) {
		open, parts = true, parts[1:]
	}
	if len(parts) > 0 && isAnything(parts[len(parts)-1]) {
		shut, parts = true, parts[:len(parts)-1]
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
		if strings.ContainsRune(lit, utf8.RuneError) {
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
	return StringMatcher{kind: kind, value: lit}, true
}

func isAnything(re *syntax.Regexp) bool {
	return re.Op == syntax.OpStar && (re.Sub[0].Op == syntax.OpAnyChar || re.Sub[0].Op == syntax.OpAnyCharNotNL)
}

// Match says whether b matches.
func (m *StringMatcher) Match(b []byte) bool {
	switch m.kind {
	case StringAny:
		return true
	case StringExact:
		return m.equal(b)
	case StringPrefix:
		return len(b) >= len(m.value) && m.equal(b[:len(m.value)])
	case StringSuffix:
		return len(b) >= len(m.value) && m.equal(b[len(b)-len(m.value):])
	case StringContains:
		if !m.fold {
			return bytes.Contains(b, view(m.value))
		}
		for i := 0; i+len(m.value) <= len(b); i++ {
			if m.equal(b[i : i+len(m.value)]) {
				return true
			}
		}
		return false
	}
	return m.re.Match(b)
}

// MatchString is Match for a string.
func (m *StringMatcher) MatchString(s string) bool { return m.Match(view(s)) }

func (m *StringMatcher) equal(b []byte) bool {
	if m.fold {
		return equalFold(b, m.value)
	}
	return string(b) == m.value
}

// equalFold compares with a string in lower case, ignoring the case of ASCII letters.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if lowerByte(c) != lower[i] {
			return false
		}
	}
	return true
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
