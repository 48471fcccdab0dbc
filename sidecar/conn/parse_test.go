package conn

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseClientHelloOfCryptoTLS(t *testing.T) {
	hello := clientHelloBytes(t, &tls.Config{ServerName: "Shop.Example", NextProtos: []string{"h2", "http/1.1"}})
	for cut := range len(hello) {
		if _, more, err := ParseClientHello(hello[:cut]); !more || err != nil {
			t.Fatalf("with %d of %d bytes: needMore %v, %v", cut, len(hello), more, err)
		}
	}
	for _, p := range [][]byte{hello, append(slices.Clone(hello), "more"...), fragment(hello, 1), fragment(hello, 100)} {
		info, more, err := ParseClientHello(p)
		if more || err != nil || info.ServerName != "shop.example" || !slices.Equal(info.ALPN, []string{"h2", "http/1.1"}) {
			t.Fatalf("got %+v, %v, %v", info, more, err)
		}
	}
	info, _, err := ParseClientHello(clientHelloBytes(t, &tls.Config{InsecureSkipVerify: true}))
	if err != nil || info.ServerName != "" || info.ALPN != nil {
		t.Fatalf("without extensions of interest: %+v, %v", info, err)
	}
}

// fragment spreads the message of one record over records of n bytes.
func fragment(record []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(record[recordHeader:], n) {
		out = append(out, record[0], record[1], record[2], byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestParseClientHelloRefuses(t *testing.T) {
	hello := clientHelloBytes(t, &tls.Config{ServerName: "shop.example"})
	edit := func(f func(p []byte) []byte) []byte { return f(slices.Clone(hello)) }
	name := bytes.Index(hello, []byte("shop.example"))
	for what, tc := range map[string]struct {
		p    []byte
		want error
	}{
		"HTTP":                    {[]byte("G"), ErrNotTLS},
		"SSLv2":                   {[]byte{0x80, 0x2e, 1}, ErrNotTLS},
		"a version of 4":          {[]byte{22, 4}, ErrNotTLS},
		"another message":         {edit(func(p []byte) []byte { p[5] = 2; return p }), ErrNotTLS},
		"empty record":            {[]byte{22, 3, 1, 0, 0}, ErrBadClientHello},
		"long record":             {[]byte{22, 3, 1, 0x40, 1}, ErrBadClientHello},
		"long message":            {[]byte{22, 3, 1, 0, 9, 1, 1, 0, 0}, ErrBadClientHello},
		"a second record of data": {append(fragment(hello, 100)[:105], 23, 3, 3, 0, 1), ErrBadClientHello},
		"NUL in the name":         {edit(func(p []byte) []byte { p[name] = 0; return p }), ErrBadClientHello},
		"final dot":               {edit(func(p []byte) []byte { p[name+11] = '.'; return p }), ErrBadClientHello},
		"name length":             {edit(func(p []byte) []byte { p[name-1]++; return p }), ErrBadClientHello},
		"session id of 33":        {edit(func(p []byte) []byte { p[recordHeader+4+34] = 33; return p }), ErrBadClientHello},
	} {
		if _, more, err := ParseClientHello(tc.p); more || !errors.Is(err, tc.want) {
			t.Errorf("%s: needMore %v, %v, want %v", what, more, err, tc.want)
		}
	}
}

func FuzzParseClientHello(f *testing.F) {
	// ClientHellos are in testdata: crypto/tls makes another one each time.
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		before := bytes.Clone(p)
		info, more, err := ParseClientHello(p)
		if !bytes.Equal(p, before) {
			t.Fatal("the input was changed")
		}
		if more && (err != nil || len(p) > MaxClientHello*6+10) {
			t.Fatalf("needMore with %d bytes and %v", len(p), err)
		}
		if (more || err != nil) && (info.ServerName != "" || info.ALPN != nil) {
			t.Fatalf("%+v with needMore %v, %v", info, more, err)
		}
		if strings.ToLower(info.ServerName) != info.ServerName || strings.ContainsAny(info.ServerName, " \x00\r\n/") {
			t.Fatalf("name %q", info.ServerName)
		}
		if more || err != nil {
			return
		}
		// What is behind does not change it; what is missing is asked for.
		again, more, err := ParseClientHello(append(before, 0, 1, 2))
		if more || err != nil || again.ServerName != info.ServerName || !slices.Equal(again.ALPN, info.ALPN) {
			t.Fatalf("%+v, then %+v, %v, %v", info, again, more, err)
		}
	})
}

var proxyPairs = []struct{ src, dst string }{
	{"192.0.2.1:1", "198.51.100.2:65535"},
	{"[2001:db8::1]:80", "[2001:db8::2]:443"},
	{"192.0.2.1:1", "[2001:db8::2]:443"},
}

func TestProxyHeaderRoundTrip(t *testing.T) {
	for _, pair := range proxyPairs {
		src, dst := netip.MustParseAddrPort(pair.src), netip.MustParseAddrPort(pair.dst)
		for version := 1; version <= 2; version++ {
			h := AppendProxyHeader([]byte("x"), version, src, dst)[1:]
			for cut := range len(h) {
				if _, _, _, more, err := ParseProxyHeader(h[:cut]); !more || err != nil {
					t.Fatalf("version %d, %d of %d bytes: needMore %v, %v", version, cut, len(h), more, err)
				}
			}
			s, d, n, more, err := ParseProxyHeader(append(h, "GET"...))
			if s != src || d != dst || n != len(h) || more || err != nil {
				t.Fatalf("version %d: %v %v %d %v %v, want %v %v %d", version, s, d, n, more, err, src, dst, len(h))
			}
		}
	}
	for version := 1; version <= 2; version++ {
		h := AppendProxyHeader(nil, version, netip.AddrPort{}, netip.AddrPort{})
		s, d, n, more, err := ParseProxyHeader(h)
		if s.IsValid() || d.IsValid() || n != len(h) || more || err != nil {
			t.Fatalf("version %d, unknown: %v %v %d %v %v", version, s, d, n, more, err)
		}
	}
}

// v2 makes a header of version 2 from its parts.
func v2(command, family byte, body ...[]byte) []byte {
	b := bytes.Join(body, nil)
	h := append([]byte(proxyV2), command, family)
	h = binary.BigEndian.AppendUint16(h, uint16(len(b)))
	return append(h, b...)
}

func tlv(typ byte, value ...byte) []byte {
	return append([]byte{typ, byte(len(value) >> 8), byte(len(value))}, value...)
}

var v4addrs = []byte{192, 0, 2, 1, 192, 0, 2, 2, 0, 80, 1, 187}

func TestProxyHeaderTLVs(t *testing.T) {
	h := v2(0x21, 0x11, v4addrs, tlv(3, 0, 0, 0, 0), tlv(2, []byte("shop.example")...))
	sum := crc32.Checksum(h, crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(h[16+12+3:], sum)
	src, _, n, more, err := ParseProxyHeader(h)
	if src.String() != "192.0.2.1:80" || n != len(h) || more || err != nil {
		t.Fatalf("%v %d %v %v", src, n, more, err)
	}
	if v, ok := ProxyTLV(h[:n], 2); !ok || string(v) != "shop.example" {
		t.Fatalf("TLV: %q, %v", v, ok)
	}
	if _, ok := ProxyTLV(h[:n], 0xea); ok {
		t.Fatal("a TLV that is not there")
	}
	h[len(h)-1] ^= 1
	if _, _, _, _, err := ParseProxyHeader(h); !errors.Is(err, ErrBadProxyHeader) {
		t.Fatalf("wrong checksum: %v", err)
	}
}

func TestProxyHeaderRefuses(t *testing.T) {
	for what, tc := range map[string]struct {
		p    []byte
		want error
	}{
		"another protocol":    {[]byte("GET / HTTP/1.1\r\n"), ErrNoProxyHeader},
		"almost v1":           {[]byte("PROXX"), ErrNoProxyHeader},
		"bare LF":             {[]byte("PROXY TCP4 1.2.3.4 1.2.3.5 1 2\n"), ErrBadProxyHeader},
		"too long":            {[]byte("PROXY TCP4 " + strings.Repeat("1", 100)), ErrBadProxyHeader},
		"port 65536":          {[]byte("PROXY TCP4 1.2.3.4 1.2.3.5 65536 2\r\n"), ErrBadProxyHeader},
		"port +1":             {[]byte("PROXY TCP4 1.2.3.4 1.2.3.5 +1 2\r\n"), ErrBadProxyHeader},
		"port 01":             {[]byte("PROXY TCP4 1.2.3.4 1.2.3.5 01 2\r\n"), ErrBadProxyHeader},
		"empty port":          {[]byte("PROXY TCP4 1.2.3.4 1.2.3.5  2\r\n"), ErrBadProxyHeader},
		"wrong family":        {[]byte("PROXY TCP4 ::1 ::2 1 2\r\n"), ErrBadProxyHeader},
		"a zone":              {[]byte("PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n"), ErrBadProxyHeader},
		"two spaces":          {[]byte("PROXY TCP4  1.2.3.4 1.2.3.5 1 2\r\n"), ErrBadProxyHeader},
		"UDP4":                {[]byte("PROXY UDP4 1.2.3.4 1.2.3.5 1 2\r\n"), ErrBadProxyHeader},
		"nothing":             {[]byte("PROXY \r\n"), ErrBadProxyHeader},
		"version 1 of binary": {v2(0x11, 0x11, v4addrs), ErrBadProxyHeader},
		"command 2":           {v2(0x22, 0x11, v4addrs), ErrBadProxyHeader},
		"family 4":            {v2(0x21, 0x41, v4addrs), ErrBadProxyHeader},
		"transport 3":         {v2(0x21, 0x13, v4addrs), ErrBadProxyHeader},
		"addresses cut":       {v2(0x21, 0x11, v4addrs[:11]), ErrBadProxyHeader},
		"TLV cut":             {v2(0x21, 0x11, v4addrs, tlv(2, 1, 2)[:4]), ErrBadProxyHeader},
		"huge":                {v2(0x21, 0x11, make([]byte, MaxProxyHeader)), ErrBadProxyHeader},
	} {
		if _, _, _, more, err := ParseProxyHeader(tc.p); more || !errors.Is(err, tc.want) {
			t.Errorf("%s: needMore %v, %v, want %v", what, more, err, tc.want)
		}
	}
	if _, _, n, _, err := ParseProxyHeader(v2(0x20, 0x11, v4addrs)); n != 28 || err != nil {
		t.Errorf("LOCAL: %d, %v", n, err)
	}
}

func FuzzParseProxyHeader(f *testing.F) {
	for _, pair := range proxyPairs {
		for version := 1; version <= 2; version++ {
			f.Add(AppendProxyHeader(nil, version, netip.MustParseAddrPort(pair.src), netip.MustParseAddrPort(pair.dst)))
		}
	}
	f.Add(v2(0x21, 0x11, v4addrs, tlv(3, 0, 0, 0, 0), tlv(2, 1)))
	f.Add([]byte("PROXY UNKNOWN a b\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		src, dst, n, more, err := ParseProxyHeader(p)
		if n < 0 || n > len(p) || more && err != nil || src.IsValid() != dst.IsValid() {
			t.Fatalf("%v %v %d %v %v", src, dst, n, more, err)
		}
		if more && len(p) >= MaxProxyHeader {
			t.Fatalf("needMore with %d bytes", len(p))
		}
		if err != nil || more {
			if n != 0 || src.IsValid() {
				t.Fatalf("%v %d with %v, %v", src, n, more, err)
			}
			return
		}
		ProxyTLV(p[:n], 2)
		// The header ends where n says, whatever follows.
		if _, _, m, more, err := ParseProxyHeader(append(bytes.Clone(p[:n]), "\r\n"...)); m != n || more || err != nil {
			t.Fatalf("again: %d, %v, %v, want %d", m, more, err, n)
		}
		// What it says can be said again.
		if src.IsValid() {
			for version := 1; version <= 2; version++ {
				s, d, _, _, err := ParseProxyHeader(AppendProxyHeader(nil, version, src, dst))
				if err != nil || s != src || d != dst {
					t.Fatalf("%v %v became %v %v, %v", src, dst, s, d, err)
				}
			}
		}
	})
}
