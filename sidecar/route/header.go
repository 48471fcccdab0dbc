package route

import (
	"bytes"
	"iter"
	"strconv"
	"strings"
	"unsafe"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route/regex"
)

// HeaderMatcher is a compiled envoy.config.route.v3.HeaderMatcher. Immutable.
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

// Match says whether the head matches. It does not where that is not known:
// callers for whom a match opens or denies something ask Try.
func (m *HeaderMatcher) Match(h *message.Head) bool {
	var w regex.Budget
	return m.Try(h, &w) == regex.Yes
}

// Try says whether the head matches, within the budget of a decision. As in
// Envoy, a field that is missing matches nothing but present_match, inverted or
// not, unless it is to be treated as empty.
//
// A field that is repeated is matched value by value, and matches where one of
// them does: the first alone would let "other" and "guest" pass a denial of
// "guest" (CVE-2020-25017), and joined they would, too (CVE-2026-26308).
func (m *HeaderMatcher) Try(h *message.Head, w *regex.Budget) regex.Answer {
	found, matched := false, regex.No
	switch {
	case m.known != message.Unknown && !h.Has(m.known):
	case m.known != message.Unknown && m.known <= message.Status:
		found, matched = true, m.try(h.Get(m.known), w) // a pseudo-header field is there once
	default:
		for i := 0; i < h.Len() && matched != regex.Yes; i++ {
			if m.known != message.Unknown && h.NameAt(i) != m.known {
				continue
			}
			if name, v := h.At(i); m.known != message.Unknown || name == m.name {
				found, matched = true, matched.Or(m.try(v, w))
			}
		}
	}
	if !found {
		if !m.missingEmpty {
			return regex.Of(m.kind == headerPresent && m.present == m.invert)
		}
		matched = m.try(nil, w)
	}
	if m.invert {
		return matched.Not()
	}
	return matched
}

func (m *HeaderMatcher) try(v []byte, w *regex.Budget) regex.Answer {
	switch m.kind {
	case headerPresent:
		return regex.Of(m.present)
	case headerString:
		return m.value.Try(v, w)
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(v)), 10, 64)
	return regex.Of(err == nil && m.start <= n && n < m.end)
}

// QueryMatcher is a compiled envoy.config.route.v3.QueryParameterMatcher: it
// matches the first value of a parameter, as it stands in the path.
type QueryMatcher struct {
	Name string
	// Value matches the value; the zero value needs the parameter to be there, with any.
	Value StringMatcher
}

func (m *QueryMatcher) try(query []byte, w *regex.Budget) regex.Answer {
	if !w.Left() {
		return regex.Unknown
	}
	w.Spend(len(query))
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
			return m.Value.Try(nil, w)
		case rest[0] == '=':
			return m.Value.Try(rest[1:], w)
		}
	}
	return regex.No
}

// CookieMatcher is a compiled envoy.config.route.v3.CookieMatcher.
type CookieMatcher struct {
	Name   string
	Value  StringMatcher
	Invert bool
}

func (m *CookieMatcher) try(h *message.Head, w *regex.Budget) regex.Answer {
	if !w.Left() {
		return regex.Unknown
	}
	matched := regex.No
	for i := 0; i < h.Len(); i++ {
		if h.NameAt(i) == message.Cookie {
			_, line := h.At(i)
			w.Spend(len(line))
		}
	}
	if v, ok := Cookie(h, m.Name); ok {
		matched = m.Value.Try(v, w)
	}
	if m.Invert {
		return matched.Not()
	}
	return matched
}

// Cookie returns the value of the first cookie of that name (RFC 6265 §4.2.1),
// without the double quotes around it if there are any.
func Cookie(h *message.Head, name string) (value []byte, there bool) {
	for v := range Cookies(h, name) {
		return v, true
	}
	return nil, false
}

// Cookies are the values of all cookies of that name, in all field lines.
func Cookies(h *message.Head, name string) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if !h.Has(message.Cookie) {
			return
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
				if len(item) <= len(name) || item[len(name)] != '=' || string(item[:len(name)]) != name {
					continue
				}
				v := item[len(name)+1:]
				if n := len(v); n >= 2 && v[0] == '"' && v[n-1] == '"' {
					v = v[1 : n-1]
				}
				if !yield(v) {
					return
				}
			}
		}
	}
}

// view is s as bytes that must not be written to.
func view(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
