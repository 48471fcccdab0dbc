package route

import (
	"fmt"
	"unicode/utf8"

	"sallyport/sidecar/route/regex"
)

// Replacer rewrites a path without its query.
type Replacer interface {
	// Replace appends the rewritten path to dst. It fails where that would
	// take too long, or become longer than any request's path may be.
	Replace(dst, path []byte) (out []byte, ok bool)
}

// maxRewritten bounds what a rewrite makes of a path: a substitution that is
// longer than what it replaces makes a path longer with each match.
const maxRewritten = 64 << 10

// NewReplacer compiles an envoy.type.matcher.v3.RegexMatchAndSubstitute: every
// match of pattern, which here need not span the whole path, is replaced by
// substitution, in which \0 is the match and \1 to \9 its groups.
func NewReplacer(pattern, substitution string) (Replacer, error) {
	find, err := regex.NewSearch(pattern)
	if err != nil {
		return nil, err
	}
	r := &replacer{find: find}
	lit := []byte{}
	for i := 0; i < len(substitution); i++ {
		c := substitution[i]
		if c != '\\' {
			lit = append(lit, c)
			continue
		}
		i++
		switch {
		case i == len(substitution):
			return nil, fmt.Errorf(`substitution %q ends in a single backslash; write "\\" for one`, substitution)
		case substitution[i] == '\\':
			lit = append(lit, '\\')
		case substitution[i] < '0' || substitution[i] > '9':
			return nil, fmt.Errorf(`substitution %q: a backslash must be followed by a digit or a backslash`, substitution)
		default:
			n := int(substitution[i] - '0')
			if n > find.Groups() {
				return nil, fmt.Errorf(`substitution %q refers to group %d; the expression %q has %d`, substitution, n, pattern, find.Groups())
			}
			r.parts = append(r.parts, part{string(lit), n})
			lit = lit[:0]
		}
	}
	r.tail = string(lit)
	return r, nil
}

type replacer struct {
	find  *regex.Search
	parts []part
	tail  string
}

// part is a literal and the group after it.
type part struct {
	literal string
	group   int
}

// Replace appends path, with all matches replaced, to dst. An empty match right
// behind another match is none, as in RE2.
func (r *replacer) Replace(dst, path []byte) ([]byte, bool) {
	var w regex.Budget
	var places [20]int // of ten groups, allocated only where an expression has more
	m := places[:]
	if n := 2*r.find.Groups() + 2; n > len(m) {
		m = make([]int, n)
	}
	base, copied, end := len(dst), 0, -1
	for from := 0; from <= len(path); {
		switch r.find.Next(path, from, m, &w) {
		case regex.Unknown:
			return dst, false
		case regex.No:
			from = len(path) + 1
			continue
		}
		if from = m[1]; m[0] == m[1] {
			_, n := utf8.DecodeRune(path[m[1]:])
			from += max(n, 1)
			if m[0] == end {
				continue
			}
		}
		end = m[1]
		dst = append(dst, path[copied:m[0]]...)
		for _, p := range r.parts {
			dst = append(dst, p.literal...)
			if at := m[2*p.group]; at >= 0 {
				dst = append(dst, path[at:m[2*p.group+1]]...)
			}
		}
		dst = append(dst, r.tail...)
		if copied = m[1]; len(dst)-base > maxRewritten {
			return dst, false
		}
	}
	dst = append(dst, path[copied:]...)
	return dst, len(dst)-base <= maxRewritten
}
