package http1

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"unsafe"
)

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

// regName marks the bytes of a registered name or IPv4 address (RFC 3986
// §3.2.2) that are taken: not the comma, which a recipient that joined two Host
// fields would produce, and not percent-encoding, which some decode and some
// do not. No DNS name has either.
var regName = func() (t [256]bool) {
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

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// below marks, in the high bit of each byte of x, bytes under n (n <= 128). A
// borrow may mark bytes after the first hit wrongly, so only the first counts.
func below(x uint64, n byte) uint64 { return (x - ones*uint64(n)) & ^x & highs }

// equal is below for bytes equal to c.
func equal(x uint64, c byte) uint64 { return below(x^ones*uint64(c), 1) }

// valueEnd returns the index of the first byte that may not stand in a field
// value (RFC 9110 §5.5: HTAB, SP, VCHAR, obs-text may), or len(p).
func valueEnd(p []byte) int {
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

// targetEnd returns the index of the first byte that may not stand in a
// request target, or len(p). Stricter than net/http, as Envoy: only visible
// ASCII, and no "#" (RFC 9112 §3.2 has no fragment in any form).
func targetEnd(p []byte) int {
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

// validEscapes says whether each "%" of a path is followed by two hexadecimal
// digits (RFC 3986 §2.1), as net/http wants it: what decoders make of another
// differs, and with it what a rule for paths would match. The query is free.
func validEscapes(path []byte) bool {
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

// IsTokenByte says whether c may stand in a token (RFC 9110 §5.6.2). Package
// listener asks it of a request line that it does not know to be one yet.
func IsTokenByte(c byte) bool { return lowerToken[c] != 0 }

// isToken says whether p is a token.
func isToken(p []byte) bool {
	for _, c := range p {
		if !IsTokenByte(c) {
			return false
		}
	}
	return len(p) > 0
}

// isLowerName says whether s is a field name as a Head must have it.
func isLowerName(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; lowerToken[c] != c || c == 0 {
			return false
		}
	}
	return len(s) > 0
}

// equalFold compares p with a lower-case ASCII string.
func equalFold(p []byte, lower string) bool {
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

// nextElement cuts the first element off a comma-separated list (RFC 9110
// §5.6.1), without the whitespace around it. Elements may be empty.
func nextElement(list []byte) (element, rest []byte) {
	for i, c := range list {
		if c == ',' {
			return trim(list[:i]), list[i+1:]
		}
	}
	return trim(list), nil
}

// trim removes optional whitespace (RFC 9110 §5.6.3) from both ends.
func trim(p []byte) []byte {
	for len(p) > 0 && (p[0] == ' ' || p[0] == '\t') {
		p = p[1:]
	}
	for len(p) > 0 && (p[len(p)-1] == ' ' || p[len(p)-1] == '\t') {
		p = p[:len(p)-1]
	}
	return p
}

// decimal reads 1*DIGIT that fits an int64; -1 where p is anything else
// (RFC 9110 §8.6: no sign, no list, no whitespace).
func decimal(p []byte) int64 {
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

// validAuthority checks uri-host [ ":" port ] (RFC 9110 §7.2, RFC 3986 §3.2):
// no userinfo (RFC 9110 §4.2.4), no empty host (§4.2.1).
func validAuthority(p []byte, needPort bool) bool {
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
		for i < len(p) && regName[p[i]] {
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
	n := decimal(port)
	return len(port) <= 5 && n >= 0 && n <= 65535
}
