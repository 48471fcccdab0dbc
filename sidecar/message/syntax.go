package message

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"unsafe"
)

// The grammar that both codecs check: what they accept must be the same, or a
// request would mean one thing over HTTP/1 and another over HTTP/2.

// lowerToken is the lower-case form of the bytes of a token (RFC 9110 §5.6.2), 0 for all others.
var lowerToken = func() (t [256]byte) {
	for c := '0'; c <= '9'; c++ {
		t[c] = byte(c)
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = byte(c), byte(c)
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] = c
	}
	return t
}()

// hostByte marks the bytes of a registered name or IPv4 address (RFC 3986
// §3.2.2) that are taken: not the comma, which a recipient that joined two Host
// fields would produce, and not percent-encoding, which some decode and some
// do not. No DNS name has either.
var hostByte = func() (t [256]bool) {
	for c := range t {
		t[c] = '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
	}
	for _, c := range []byte("-._~!$&'()*+;=") {
		t[c] = true
	}
	return t
}()

// hexDigit is 1 + the value of a hexadecimal digit, 0 for other bytes.
var hexDigit = func() (t [256]byte) {
	for i, c := range []byte("0123456789abcdef") {
		t[c] = byte(i + 1)
	}
	for i, c := range []byte("ABCDEF") {
		t[c] = byte(i + 11)
	}
	return t
}()

// IsTokenByte says whether c may stand in a token (RFC 9110 §5.6.2).
func IsTokenByte(c byte) bool { return lowerToken[c] != 0 }

// LowerToken is the lower-case form of a byte of a token, 0 for a byte that may not stand in one.
func LowerToken(c byte) byte { return lowerToken[c] }

// IsToken says whether p is a token.
func IsToken(p []byte) bool {
	for _, c := range p {
		if lowerToken[c] == 0 {
			return false
		}
	}
	return len(p) > 0
}

// IsProtocol says whether p names a protocol to upgrade to: protocol-name [ "/"
// protocol-version ] (RFC 9110 §7.8), each a token.
func IsProtocol(p []byte) bool {
	name := p
	if i := bytes.IndexByte(p, '/'); i >= 0 {
		if name = p[:i]; !IsToken(p[i+1:]) {
			return false
		}
	}
	return IsToken(name)
}

// IsLowerName says whether name is a field name as a Head must have it: a token without capitals.
func IsLowerName[T string | []byte](name T) bool {
	for i := 0; i < len(name); i++ {
		if c := name[i]; lowerToken[c] != c || c == 0 {
			return false
		}
	}
	return len(name) > 0
}

// HexDigit is the value of a hexadecimal digit; ok is false for other bytes.
func HexDigit(c byte) (v byte, ok bool) {
	d := hexDigit[c]
	return d - 1, d != 0
}

// EqualFold compares p with a string in lower case, ignoring the case of ASCII letters.
func EqualFold(p []byte, lower string) bool {
	if len(p) != len(lower) {
		return false
	}
	for i, c := range p {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// Trim removes optional whitespace (RFC 9110 §5.6.3) from both ends.
func Trim(p []byte) []byte {
	for len(p) > 0 && isBlank(p[0]) {
		p = p[1:]
	}
	for len(p) > 0 && isBlank(p[len(p)-1]) {
		p = p[:len(p)-1]
	}
	return p
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// Decimal reads 1*DIGIT that fits an int64; -1 where p is anything else
// (RFC 9110 §8.6: no sign, no list, no whitespace).
func Decimal(p []byte) int64 {
	if len(p) == 0 || len(p) > 18 {
		return -1
	}
	var n int64
	for _, c := range p {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int64(c-'0')
	}
	return n
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// below marks, in the high bit of each byte of x, bytes under n (n <= 128). A
// borrow may mark bytes after the first hit wrongly, so only the first counts.
func below(x uint64, n byte) uint64 { return (x - ones*uint64(n)) & ^x & highs }

// equal is below for bytes equal to c.
func equal(x uint64, c byte) uint64 { return below(x^ones*uint64(c), 1) }

// ValueEnd returns the index of the first byte that may not stand in a field
// value (RFC 9110 §5.5: HTAB, SP, VCHAR, obs-text may), or len(p).
func ValueEnd(p []byte) int {
	i := 0
	for {
		for i+8 <= len(p) {
			x := binary.LittleEndian.Uint64(p[i:])
			if m := below(x, 0x20) | equal(x, 0x7f); m != 0 {
				i += bits.TrailingZeros64(m) / 8
				if p[i] != '\t' {
					return i
				}
				i++
				continue
			}
			i += 8
		}
		for ; i < len(p); i++ {
			if c := p[i]; (c < 0x20 && c != '\t') || c == 0x7f {
				return i
			}
		}
		return i
	}
}

// TargetEnd returns the index of the first byte that may not stand in a
// request target, or len(p). Stricter than net/http, as Envoy: only visible
// ASCII, and no "#" (RFC 9112 §3.2 has no fragment in any form).
func TargetEnd(p []byte) int {
	i := 0
	for i+8 <= len(p) {
		x := binary.LittleEndian.Uint64(p[i:])
		if m := below(x, 0x21) | x&highs | equal(x, 0x7f) | equal(x, '#'); m != 0 {
			return i + bits.TrailingZeros64(m)/8
		}
		i += 8
	}
	for ; i < len(p); i++ {
		if c := p[i]; c <= ' ' || c >= 0x7f || c == '#' {
			break
		}
	}
	return i
}

// ValidEscapes says whether each "%" of a path is followed by two hexadecimal
// digits (RFC 3986 §2.1), as net/http wants it: what decoders make of another
// differs, and with it what a rule for paths would match. The query is free.
func ValidEscapes(path []byte) bool {
	for {
		i := bytes.IndexByte(path, '%')
		if i < 0 {
			return true
		}
		if bytes.IndexByte(path[:i], '?') >= 0 {
			return true
		}
		if i+2 >= len(path) || hexDigit[path[i+1]] == 0 || hexDigit[path[i+2]] == 0 {
			return false
		}
		path = path[i+3:]
	}
}

// ValidPath says whether p is a :path for that method (RFC 9113 §8.3.1): an
// origin-form target (RFC 9112 §3.2.1) whose bytes and escapes are right, or "*" for OPTIONS.
func ValidPath(p, method []byte) bool {
	if len(p) == 0 || p[0] != '/' {
		return string(p) == "*" && string(method) == "OPTIONS"
	}
	return TargetEnd(p) == len(p) && ValidEscapes(p)
}

// ValidAuthority checks uri-host [ ":" port ] (RFC 9110 §7.2, RFC 3986 §3.2):
// no userinfo (RFC 9110 §4.2.4), no empty host (§4.2.1). needPort is for
// CONNECT, whose authority names a port (RFC 9112 §3.2.3, RFC 9113 §8.5).
func ValidAuthority(p []byte, needPort bool) bool {
	i := 0
	if len(p) > 0 && p[0] == '[' {
		if i = bytes.IndexByte(p, ']'); i < 0 {
			return false
		}
		// RFC 3986 §3.2.2 has no zone here. The string is a view that ParseAddr does not keep.
		a, err := netip.ParseAddr(unsafe.String(&p[1], i-1))
		if err != nil || !a.Is6() || a.Zone() != "" {
			return false
		}
		i++
	} else {
		for i < len(p) && hostByte[p[i]] {
			i++
		}
		if i == 0 {
			return false
		}
	}
	if i == len(p) {
		return !needPort
	}
	if p[i] != ':' {
		return false
	}
	port := p[i+1:]
	if len(port) == 0 {
		return !needPort
	}
	n := Decimal(port)
	return len(port) <= 5 && n >= 0 && n <= 65535
}

// ContentLength reads content-length: one decimal number, or the same several
// times (RFC 9110 §8.6), of which one is left. n is -1 where there is none; ok
// is false where it is anything else.
func (h *Head) ContentLength() (n int64, ok bool) {
	first := int(h.first[ContentLength]) - 1
	if first < 0 {
		return -1, true
	}
	v := h.value(&h.fields[first])
	if n = Decimal(v); n < 0 {
		return 0, false
	}
	several := false
	for i := first + 1; i < len(h.fields); i++ {
		if f := &h.fields[i]; f.name == ContentLength {
			if string(h.value(f)) != string(v) {
				return 0, false
			}
			several = true
		}
	}
	if several {
		h.SetName(ContentLength, v)
	}
	return n, true
}
