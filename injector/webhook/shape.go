package webhook

import (
	"bytes"
	"fmt"
)

// What a pod may be made of. Others bound its length alone, and `{}` is two bytes of text and, as a container, a kilobyte
// of memory. Pods that run are far below: these leave room for hundreds of containers.
const (
	maxValues   = 20_000   // objects, arrays, strings, numbers and so on, of all depths
	maxElements = 1000     // of one array
	maxDepth    = 64       // of objects and arrays in each other; types and managed fields of a pod need 15
	maxEscapes  = 64 << 10 // characters that JSON writes as several, and a text of JSON within JSON as more each time
	maxDigits   = 128      // of a number
	maxExponent = 2        // digits of an exponent, where these are computed
)

// shape is what, beyond its length, decides how much memory and time a JSON text takes.
type shape struct {
	values   int
	elements int // of the longest array
	depth    int
	escapes  int
	number   []byte // one that is costly to compute with
}

// shapeOf looks through a text once and allocates nothing. It is exact for JSON; of what is none it says something, as
// whoever decodes it will refuse it.
func shapeOf(text []byte) shape {
	var (
		s       shape
		isArray [maxDepth + 1]bool // of what is open, by depth
		counts  [maxDepth + 1]int
		depth   int
	)
	value := func() {
		s.values++
		if depth <= maxDepth && isArray[depth] {
			counts[depth]++
			s.elements = max(s.elements, counts[depth])
		}
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '{', '[':
			value()
			depth++
			s.depth = max(s.depth, depth)
			if depth <= maxDepth {
				isArray[depth], counts[depth] = c == '[', 0
			}
		case '}', ']':
			depth = max(depth-1, 0)
		case ':':
			s.values-- // what stands before was a name
		case '"':
			value()
			i += s.quoted(text[i+1:])
		case ',', ' ', '\t', '\r', '\n':
		default:
			value()
			i += s.bare(text[i:])
		}
	}
	return s
}

// quoted takes a string and returns its length with the quote that ends it.
func (s *shape) quoted(text []byte) int {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			s.scalar(text[:i])
			return i + 1
		case '\\':
			s.escapes++
			i++
		case '<', '>', '&': // encoding/json writes these escaped, for the sake of HTML
			s.escapes++
		case "\u2028"[0]:
			if bytes.HasPrefix(text[i:], []byte("\u2028")) || bytes.HasPrefix(text[i:], []byte("\u2029")) {
				s.escapes++
			}
		}
	}
	return len(text)
}

// bare takes a number, true, false or null and returns its length but for the first character.
func (s *shape) bare(text []byte) int {
	n := bytes.IndexAny(text, ",]}: \t\r\n")
	if n < 0 {
		n = len(text)
	}
	s.scalar(text[:n])
	return max(n-1, 0)
}

func (s *shape) scalar(text []byte) {
	if s.number == nil && costly(text) {
		s.number = text
	}
}

// costly is whether Kubernetes, were this text a quantity such as 100m or 1e3, would compute with all of its digits: a
// million of them take a second and two gigabytes, 1e-2147483648 takes longer than anybody waits. Which text is one only
// the types know; so texts of that form are meant that nobody writes. Short digits with a large exponent, as the beginning
// of a commit may look (12e4567), are not among them: these are not computed.
func costly(text []byte) bool {
	text = bytes.TrimLeft(bytes.TrimSpace(text), "+-")
	suffix := bytes.TrimLeft(text, "0123456789.")
	number := text[:len(text)-len(suffix)]
	switch {
	case len(number) == 0 || bytes.Count(number, []byte(".")) > 1:
		return false
	case len(suffix) < 2 || suffix[0]|0x20 != 'e':
		return len(number) > maxDigits && len(suffix) <= len("Ki")
	}
	exponent := bytes.TrimLeft(suffix[1:], "+-")
	if len(bytes.Trim(exponent, "0123456789")) > 0 {
		return len(number) > maxDigits && len(suffix) <= len("Ei")
	}
	large := len(bytes.TrimLeft(exponent, "0")) > maxExponent
	return len(number) > maxDigits || large && (suffix[1] == '-' || len(number) > 18) // an int64 holds 18 digits
}

// check says what about a pod is out of all proportion.
func (s shape) check() error {
	switch {
	case s.depth > maxDepth:
		return fmt.Errorf("objects and lists of the pod are nested %d deep, and at most %d are taken", s.depth, maxDepth)
	case s.elements > maxElements:
		return fmt.Errorf("a list of the pod has %d elements, and at most %d are taken", s.elements, maxElements)
	case s.values > maxValues:
		return fmt.Errorf("the pod holds %d values (objects, lists, strings, numbers), and at most %d are taken", s.values, maxValues)
	case s.escapes > maxEscapes:
		return fmt.Errorf(`%d characters of the pod's strings are escaped in JSON (quotes, line ends, < > & \), and at most %d are taken`,
			s.escapes, maxEscapes)
	case s.number != nil:
		return fmt.Errorf("the pod's number %s has more digits, or a larger exponent, than anything in a pod needs", quote(string(s.number)))
	}
	return nil
}

// weight estimates, from above, what is allocated while a review of such a body is answered. Measured, for pods of many
// shapes that package manifest injects; what is long, or of many parts, takes no more than peerWork in the end, as a pod out
// of all proportion is not decoded and a patch that becomes too large is not finished.
func (s shape) weight(length int) int {
	const review, perByte, perValue, perEscape = 64 << 10, 30, 2000, 300
	return min(review+perByte*length+perValue*s.values+perEscape*s.escapes, peerWork)
}
