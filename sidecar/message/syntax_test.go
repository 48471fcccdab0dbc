package message

import (
	"bytes"
	"strings"
	"testing"
)

const (
	letters    = "abcdefghijklmnopqrstuvwxyz"
	capitals   = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits     = "0123456789"
	tchars     = "!#$%&'*+-.^_`|~" + digits + letters + capitals // RFC 9110 §5.6.2
	hostBytes  = "-._~" + "!$&'()*+;=" + digits + letters + capitals
	hexDigits  = digits + "abcdefABCDEF"
	everything = 256
)

// in says whether the byte stands in the list.
func in(list string, c byte) bool { return strings.IndexByte(list, c) >= 0 }

// TestEveryByteOfEachRule asks each rule about each byte, and compares with the list that the RFC has.
func TestEveryByteOfEachRule(t *testing.T) {
	method := []byte("GET")
	for n := range everything {
		c := byte(n)
		one := []byte{c}
		check := func(rule string, got, want bool) {
			t.Helper()
			if got != want {
				t.Errorf("%s of byte %#02x is %v", rule, c, got)
			}
		}
		check("IsTokenByte", IsTokenByte(c), in(tchars, c))
		check("IsToken", IsToken(one), in(tchars, c))
		check("IsToken behind others", IsToken([]byte{'a', c}), in(tchars, c))
		check("IsLowerName of a string", IsLowerName(string(one)), in(tchars, c) && !in(capitals, c))
		check("IsLowerName of bytes", IsLowerName([]byte{'a', c}), in(tchars, c) && !in(capitals, c))
		check("IsProtocol", IsProtocol([]byte{'a', c}), in(tchars, c))
		check("IsProtocol of a version", IsProtocol([]byte{'a', '/', c}), in(tchars, c))
		check("IsProtocol with a version", IsProtocol([]byte{'a', c, '1'}), in(tchars, c) || c == '/')
		lower := byte(0)
		if in(tchars, c) {
			lower = bytes.ToLower(one)[0]
		}
		if LowerToken(c) != lower {
			t.Errorf("LowerToken of %#02x is %#02x, want %#02x", c, LowerToken(c), lower)
		}
		v, ok := HexDigit(c)
		check("HexDigit", ok, in(hexDigits, c))
		if ok && int(v) != strings.IndexByte("0123456789abcdef", bytes.ToLower(one)[0]) {
			t.Errorf("HexDigit of %q is %d", c, v)
		}
		check("Decimal", Decimal(one) == int64(c)-'0' && Decimal(one) >= 0, in(digits, c))
		check("Decimal behind a digit", Decimal([]byte{'1', c}) >= 0, in(digits, c))

		for _, needPort := range []bool{false, true} {
			port := ""
			if needPort {
				port = ":1"
			}
			check("a host's first byte", ValidAuthority([]byte(string(one)+"a"+port), needPort), in(hostBytes, c))
			check("a host's byte", ValidAuthority([]byte("a"+string(one)+"b"+port), needPort), in(hostBytes, c))
			check("a host's last byte", ValidAuthority([]byte("a"+string(one)+port), needPort), in(hostBytes, c) || c == ':' && !needPort)
			check("a port's byte", ValidAuthority([]byte("a:"+string(one)), needPort), in(digits, c))
			check("a port's later byte", ValidAuthority([]byte("a:1"+string(one)), needPort), in(digits, c))
			check("what follows a bracket", ValidAuthority([]byte("[::1]"+string(one)+"1"), needPort), c == ':')
		}

		// The rules below look at eight bytes at a time: each place of a word, and behind it.
		for at := 1; at < 20; at++ {
			p := bytes.Repeat([]byte("a"), 20)
			p[0], p[at] = '/', c
			end := 20
			if visible := c > ' ' && c < 0x7f && c != '#'; !visible {
				end = at
			}
			if got := TargetEnd(p); got != end {
				t.Errorf("TargetEnd with %#02x at %d is %d, want %d", c, at, got, end)
			}
			check("ValidPath", ValidPath(p, method), end == 20 && (c != '%' || at < 18))
			end = 20
			if c < ' ' && c != '\t' || c == 0x7f {
				end = at
			}
			if got := ValueEnd(p); got != end {
				t.Errorf("ValueEnd with %#02x at %d is %d, want %d", c, at, got, end)
			}
		}
		check("an escape's first digit", ValidEscapes([]byte("/%"+string(one)+"0")), in(hexDigits, c))
		check("an escape's second digit", ValidEscapes([]byte("/%0"+string(one))), in(hexDigits, c))
		for q := range everything {
			if q := byte(q); !in(capitals, q) {
				check("EqualFold with "+string(q), EqualFold(one, string([]byte{q})), c == q || in(capitals, c) && c+'a'-'A' == q)
			}
		}
		trimmed := len(Trim([]byte{c, 'a', c})) == 1
		check("Trim", trimmed, c == ' ' || c == '\t')
	}
}

func TestAuthorities(t *testing.T) {
	for _, c := range []struct {
		text           string
		valid, hasPort bool
	}{
		{"h", true, false},
		{"h:", true, false},
		{"h:0", true, true},
		{"h:65535", true, true},
		{"h:65536", false, false},
		{"h:00080", true, true},
		{"h:000080", false, false},
		{"h:+1", false, false},
		{"h:1:1", false, false},
		{"", false, false},
		{":80", false, false},
		{"u@h", false, false},
		{"u:p@h:1", false, false},
		{"a,b", false, false},
		{"%41", false, false},
		{"127.0.0.1:1", true, true},
		{"[::1]", true, false},
		{"[::1]:1", true, true},
		{"[::ffff:1.2.3.4]:1", true, true},
		{"[1.2.3.4]", false, false},
		{"[fe80::1%eth0]", false, false},
		{"[v1.a]", false, false},
		{"[]", false, false},
		{"[", false, false},
		{"[::1", false, false},
		{"[::1]x", false, false},
		{"::1", false, false},
	} {
		if got := ValidAuthority([]byte(c.text), false); got != c.valid {
			t.Errorf("%q: valid is %v", c.text, got)
		}
		if got := ValidAuthority([]byte(c.text), true); got != c.hasPort {
			t.Errorf("%q: valid with a port is %v", c.text, got)
		}
	}
}

func TestPaths(t *testing.T) {
	for _, c := range []struct {
		method, path string
		valid        bool
	}{
		{"GET", "/", true},
		{"GET", "", false},
		{"GET", "*", false},
		{"OPTIONS", "*", true},
		{"OPTIONS", "**", false},
		{"GET", "x", false},
		{"GET", "http://h/", false},
		{"GET", "/%2f%", false},
		{"GET", "/%2", false},
		{"GET", "/a?%2", true},
		{"GET", "/%zz?", false},
		{"GET", "/a b", false},
		{"GET", "/a#b", false},
		{"GET", "/?#", false},
	} {
		if got := ValidPath([]byte(c.path), []byte(c.method)); got != c.valid {
			t.Errorf("%s %q: valid is %v", c.method, c.path, got)
		}
	}
}

func TestContentLength(t *testing.T) {
	for _, c := range []struct {
		values []string
		n      int64
		ok     bool
	}{
		{nil, -1, true},
		{[]string{"0"}, 0, true},
		{[]string{"12"}, 12, true},
		{[]string{"12", "12"}, 12, true},
		{[]string{"12", "12", "12"}, 12, true},
		{[]string{"12", "13"}, 0, false},
		{[]string{"12", "012"}, 0, false},
		{[]string{"12", ""}, 0, false},
		{[]string{""}, 0, false},
		{[]string{"+1"}, 0, false},
		{[]string{"1,1"}, 0, false},
		{[]string{" 1"}, 0, false},
		{[]string{"999999999999999999"}, 999999999999999999, true},
		{[]string{"9999999999999999999"}, 0, false},
	} {
		var h Head
		h.AddString("x-a", "1")
		for _, v := range c.values {
			h.AddNameString(ContentLength, v)
			h.AddString("x-b", v)
		}
		n, ok := h.ContentLength()
		if n != c.n || ok != c.ok {
			t.Errorf("%q: %d, %v", c.values, n, ok)
		}
		if ok && len(c.values) > 0 && (h.Count("content-length") != 1 || string(h.Get(ContentLength)) != c.values[0]) {
			t.Errorf("%q: %d fields are left", c.values, h.Count("content-length"))
		}
	}
}
