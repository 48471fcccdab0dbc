package route

import (
	"fmt"
	"regexp"
)

// NewReplacer compiles an envoy.type.matcher.v3.RegexMatchAndSubstitute: every
// match of pattern, which here need not span the whole path, is replaced by
// substitution, in which \0 is the match and \1 to \9 its groups.
func NewReplacer(pattern, substitution string) (Replacer, error) {
	if len(pattern) > maxRegex {
		return nil, fmt.Errorf("regular expression has %d bytes; at most %d are allowed", len(pattern), maxRegex)
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, regexError(pattern, err)
	}
	r := &replacer{re: re}
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
			if n > re.NumSubexp() {
				return nil, fmt.Errorf(`substitution %q refers to group %d; the expression %q has %d`, substitution, n, pattern, re.NumSubexp())
			}
			r.parts = append(r.parts, part{string(lit), n})
			lit = lit[:0]
		}
	}
	r.tail = string(lit)
	return r, nil
}

type replacer struct {
	re    *regexp.Regexp
	parts []part
	tail  string
}

// part is a literal and the group after it.
type part struct {
	literal string
	group   int
}

// Replace appends path, with all matches replaced, to dst.
func (r *replacer) Replace(dst, path []byte) []byte {
	at := 0
	for _, m := range r.re.FindAllSubmatchIndex(path, -1) {
		dst = append(dst, path[at:m[0]]...)
		for _, p := range r.parts {
			dst = append(dst, p.literal...)
			if from := m[2*p.group]; from >= 0 {
				dst = append(dst, path[from:m[2*p.group+1]]...)
			}
		}
		dst = append(dst, r.tail...)
		at = m[1]
	}
	return append(dst, path[at:]...)
}
