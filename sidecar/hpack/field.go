package hpack

import (
	"unsafe"

	"sallyport/sidecar/message"
)

// class is what RFC 9113 says of a field. It is found out once, when the field
// comes as a literal, and kept in the table: a field that comes again as an
// index is not looked at again.
type class uint8

const (
	// forbidden: the name or the value may not stand in any message (§8.2).
	forbidden class = 1 << iota
	// pseudo: a pseudo-header field (§8.3).
	pseudo
	// unknownPseudo: one that no RFC defined.
	unknownPseudo
)

// nameClass is the class of known names.
var nameClass = func() (t [256]class) {
	for n := message.Method; n <= message.Status; n++ {
		t[n] = pseudo
	}
	// Connection-specific fields (§8.2.2).
	for _, n := range []message.Name{message.Connection, message.KeepAlive, message.ProxyConnection, message.TransferEncoding, message.Upgrade} {
		t[n] = forbidden
	}
	return t
}()

// classOfName is the class of a name that came as a literal.
func classOfName(known message.Name, name []byte) class {
	if known != message.Unknown {
		return nameClass[known]
	}
	if len(name) == 0 {
		return forbidden
	}
	if name[0] == ':' {
		return pseudo | unknownPseudo
	}
	if !message.IsLowerName(name) { // §8.2.1
		return forbidden
	}
	return 0
}

// classOfValue is the class of a value that came as a literal, for a field of that name.
func classOfValue(known message.Name, value []byte) class {
	if !validValue(value) || known == message.TE && string(value) != "trailers" {
		return forbidden
	}
	return 0
}

// validValue is RFC 9113 §8.2.1, and of RFC 9110 §5.5 that control characters
// other than HTAB are as dangerous as the three that §8.2.1 names.
func validValue(p []byte) bool {
	return len(p) == 0 || !blank(p[0]) && !blank(p[len(p)-1]) && message.ValueEnd(p) == len(p)
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

// view is s as bytes that must not be written to.
func view(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
