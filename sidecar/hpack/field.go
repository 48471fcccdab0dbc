package hpack

import (
	"encoding/binary"
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

// nameChar marks the bytes of a token (RFC 9110 §5.6.2) without capitals (RFC 9113 §8.2.1).
var nameChar = func() (t [256]bool) {
	for c := 'a'; c <= 'z'; c++ {
		t[c] = true
	}
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] = true
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
	for _, c := range name {
		if !nameChar[c] {
			return forbidden
		}
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

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// validValue is RFC 9113 §8.2.1, and of RFC 9110 §5.5 that control characters
// other than HTAB are as dangerous as the three that §8.2.1 names.
func validValue(p []byte) bool {
	if len(p) == 0 {
		return true
	}
	if blank(p[0]) || blank(p[len(p)-1]) {
		return false
	}
	i := 0
	for ; i+8 <= len(p); i += 8 {
		// Marks bytes below 0x20 and equal to 0x7f; HTAB is for the loop below to see.
		x := binary.LittleEndian.Uint64(p[i:])
		del := x ^ ones*0x7f
		if ((x-ones*0x20)&^x|(del-ones)&^del)&highs != 0 && !validBytes(p[i:i+8]) {
			return false
		}
	}
	return validBytes(p[i:])
}

func validBytes(p []byte) bool {
	for _, c := range p {
		if c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

// view is s as bytes that must not be written to.
func view(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
