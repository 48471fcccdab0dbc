package message

// A list field (RFC 9110 §5.6.1) may stand in several lines, which together are
// one list (§5.3): whoever reads the first line alone believes what a client put
// before the rest. Elements and what is built on it see all lines. They know no
// quoted strings, so they are for fields that have none in front of a comma:
// Connection, TE, Trailer, Upgrade, X-Forwarded-For, X-Forwarded-Proto and the like.

// CutElement cuts the first element off the comma-separated value of a list
// field, without the whitespace around it. Elements may be empty.
func CutElement(list []byte) (element, rest []byte) {
	for i, c := range list {
		if c == ',' {
			return Trim(list[:i]), list[i+1:]
		}
	}
	return Trim(list), nil
}

// Elements goes over the elements of a list field, in order, over all its lines:
//
//	for e := h.Elements(message.Upgrade); e.Next(); {
//		use(e.Element)
//	}
//
// Empty elements are left out (§5.6.1.2). The Head must not be changed meanwhile.
type Elements struct {
	Element []byte

	h    *Head
	line int // the next field to look at
	rest []byte
	name Name
}

// Elements returns the elements of all fields called n, which must be a known name.
func (h *Head) Elements(n Name) Elements {
	line := int(h.first[n]) - 1
	if line < 0 {
		line = len(h.fields)
	}
	return Elements{h: h, name: n, line: line}
}

// Next goes to the next element; false where there is none.
func (e *Elements) Next() bool {
	for {
		for len(e.rest) == 0 {
			fields := e.h.fields
			for e.line < len(fields) && fields[e.line].name != e.name {
				e.line++
			}
			if e.line == len(fields) {
				e.Element = nil
				return false
			}
			e.rest = e.h.value(&fields[e.line])
			e.line++
		}
		if e.Element, e.rest = CutElement(e.rest); len(e.Element) > 0 {
			return true
		}
	}
}

// CountElements is how many elements a list field has, over all its lines.
func (h *Head) CountElements(n Name) int {
	count := 0
	for e := h.Elements(n); e.Next(); {
		count++
	}
	return count
}

// ElementAt returns the i-th element of a list field over all its lines, counted
// from the end where i is negative: -1 is the last. nil: there is none.
func (h *Head) ElementAt(n Name, i int) []byte {
	if i < 0 {
		if i += h.CountElements(n); i < 0 {
			return nil
		}
	}
	for e := h.Elements(n); e.Next(); i-- {
		if i == 0 {
			return e.Element
		}
	}
	return nil
}

// OnlyElement returns the one element of a list field; nil where there is none,
// or more than one, in whatever lines.
func (h *Head) OnlyElement(n Name) []byte {
	e := h.Elements(n)
	if !e.Next() {
		return nil
	}
	only := e.Element
	if e.Next() {
		return nil
	}
	return only
}

// HasElement says whether one of the elements of a list field is the token
// lower, which must be in lower case, without regard to case.
func (h *Head) HasElement(n Name, lower string) bool {
	for e := h.Elements(n); e.Next(); {
		if EqualFold(e.Element, lower) {
			return true
		}
	}
	return false
}

// JoinElements makes one line of a list field that has several, with the elements
// of all, so that whoever comes next reads what was read here. A field that is
// one line, or not there, stays as it is.
func (h *Head) JoinElements(n Name, scratch []byte) []byte {
	first := int(h.first[n]) - 1
	if first < 0 {
		return scratch
	}
	several := false
	for _, f := range h.fields[first+1:] {
		several = several || f.name == n
	}
	if !several {
		return scratch
	}
	v := scratch[:0]
	for e := h.Elements(n); e.Next(); {
		if len(v) > 0 {
			v = append(v, ", "...)
		}
		v = append(v, e.Element...)
	}
	h.SetName(n, v)
	return v[:0]
}
