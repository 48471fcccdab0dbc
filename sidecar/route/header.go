package route

import (
	"bytes"
	"strconv"
	"strings"
	"unsafe"

	"sallyport/sidecar/message"
)

// HeaderMatcher is a compiled envoy.config.route.v3.HeaderMatcher. All values
// of a repeated field are matched as one, joined by ",", so that no second
// value escapes a rule (CVE-2020-25017). Immutable.
type HeaderMatcher struct {
	name  string
	known message.Name
	kind  headerKind
	// present is what present_match says.
	present      bool
	invert       bool
	missingEmpty bool
	value        StringMatcher
	start, end   int64
}

type headerKind uint8

const (
	headerPresent headerKind = iota
	headerString
	headerRange
)

// HeaderOptions are the fields of HeaderMatcher beside the specifier.
type HeaderOptions struct {
	Invert              bool // invert_match
	TreatMissingAsEmpty bool // treat_missing_header_as_empty
}

func newHeader(name string, kind headerKind, o HeaderOptions) HeaderMatcher {
	name = strings.ToLower(name)
	if name == "host" {
		name = ":authority" // codecs make one of the other
	}
	return HeaderMatcher{name: name, known: message.NameOf([]byte(name)), kind: kind, invert: o.Invert, missingEmpty: o.TreatMissingAsEmpty}
}

// HeaderPresent matches where the field is there, or, with present false, where it is not.
func HeaderPresent(name string, present bool, o HeaderOptions) HeaderMatcher {
	m := newHeader(name, headerPresent, o)
	m.present = present
	return m
}

// HeaderValueMatches matches the field's value.
func HeaderValueMatches(name string, v StringMatcher, o HeaderOptions) HeaderMatcher {
	m := newHeader(name, headerString, o)
	m.value = v
	return m
}

// HeaderInRange matches a decimal number n with start <= n < end.
func HeaderInRange(name string, start, end int64, o HeaderOptions) HeaderMatcher {
	m := newHeader(name, headerRange, o)
	m.start, m.end = start, end
	return m
}

// Name is the field's name, in lower case.
func (m *HeaderMatcher) Name() string { return m.name }

// Match says whether the head matches. As in Envoy, a field that is missing
// matches nothing but present_match, inverted or not, unless it is to be
// treated as empty.
//
// A field that is repeated is matched value by value, and matches where one of
// them does: joined, "guest,admin" would pass a denial of "guest" (CVE-2026-26308).
func (m *HeaderMatcher) Match(h *message.Head) bool {
	found, matched := false, false
	switch {
	case m.known != message.Unknown && !h.Has(m.known):
	case m.known != message.Unknown && m.known <= message.Status:
		found, matched = true, m.matchValue(h.Get(m.known)) // a pseudo-header field is there once
	default:
		for i := 0; i < h.Len() && !matched; i++ {
			if m.known != message.Unknown && h.NameAt(i) != m.known {
				continue
			}
			if name, v := h.At(i); m.known != message.Unknown || name == m.name {
				found, matched = true, m.matchValue(v)
			}
		}
	}
	if !found {
		if !m.missingEmpty {
			return m.kind == headerPresent && m.present == m.invert
		}
		matched = m.matchValue(nil)
	}
	return matched != m.invert
}

func (m *HeaderMatcher) matchValue(v []byte) bool {
	switch m.kind {
	case headerPresent:
		return m.present
	case headerString:
		return m.value.Match(v)
	case headerRange:
		n, err := strconv.ParseInt(string(bytes.TrimSpace(v)), 10, 64)
		return err == nil && m.start <= n && n < m.end
	}
	return false
}

// QueryMatcher is a compiled envoy.config.route.v3.QueryParameterMatcher: it
// matches the first value of a parameter, as it stands in the path.
type QueryMatcher struct {
	Name string
	// Value matches the value; the zero value needs the parameter to be there, with any.
	Value StringMatcher
}

func (m *QueryMatcher) match(query []byte) bool {
	for len(query) > 0 {
		item := query
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			item, query = query[:i], query[i+1:]
		} else {
			query = nil
		}
		if !bytes.HasPrefix(item, view(m.Name)) {
			continue
		}
		switch rest := item[len(m.Name):]; {
		case len(rest) == 0:
			return m.Value.Match(nil)
		case rest[0] == '=':
			return m.Value.Match(rest[1:])
		}
	}
	return false
}

// CookieMatcher is a compiled envoy.config.route.v3.CookieMatcher.
type CookieMatcher struct {
	Name   string
	Value  StringMatcher
	Invert bool
}

func (m *CookieMatcher) match(h *message.Head) bool {
	v, ok := Cookie(h, m.Name)
	return (ok && m.Value.Match(v)) != m.Invert
}

// Cookie returns the value of the first cookie of that name (RFC 6265 §4.2.1),
// without the double quotes around it if there are any.
func Cookie(h *message.Head, name string) ([]byte, bool) {
	if !h.Has(message.Cookie) {
		return nil, false
	}
	for i := 0; i < h.Len(); i++ {
		if h.NameAt(i) != message.Cookie {
			continue
		}
		_, line := h.At(i)
		for len(line) > 0 {
			item := line
			if k := bytes.IndexByte(line, ';'); k >= 0 {
				item, line = line[:k], line[k+1:]
			} else {
				line = nil
			}
			item = bytes.Trim(item, " \t")
			if len(item) > len(name) && item[len(name)] == '=' && string(item[:len(name)]) == name {
				v := item[len(name)+1:]
				if n := len(v); n >= 2 && v[0] == '"' && v[n-1] == '"' {
					v = v[1 : n-1]
				}
				return v, true
			}
		}
	}
	return nil, false
}

// view is s as bytes that must not be written to.
func view(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
