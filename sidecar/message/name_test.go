package message

import (
	"strings"
	"testing"
)

func TestNamesAreComplete(t *testing.T) {
	seen := map[string]Name{}
	for n := Unknown + 1; n < nameCount; n++ {
		s := n.String()
		if s == "" || s != strings.ToLower(s) || seen[s] != Unknown {
			t.Errorf("name %d is %q", n, s)
			continue
		}
		seen[s] = n
		if got := NameOf([]byte(s)); got != n {
			t.Errorf("NameOf(%q) = %d, want %d", s, got, n)
		}
		// Neighbours that share length, first, middle or last byte with it.
		for i := range s {
			other := []byte(s)
			other[i] ^= 1
			if got := NameOf(other); got != seen[string(other)] && got.String() != string(other) {
				t.Errorf("NameOf(%q) = %q", other, got)
			}
		}
		if got := NameOf([]byte(s + "x")); got != Unknown && got.String() != s+"x" {
			t.Errorf("NameOf(%q) = %q", s+"x", got)
		}
	}
	for _, s := range []string{"", "x", strings.Repeat("a", 300)} {
		if got := NameOf([]byte(s)); got != Unknown {
			t.Errorf("NameOf(%q) = %q", s, got)
		}
	}
}

func BenchmarkNameOf(b *testing.B) {
	in := [][]byte{[]byte("user-agent"), []byte("accept-language"), []byte("cookie"), []byte("sec-fetch-dest"), []byte("x-request-id")}
	for b.Loop() {
		for _, s := range in {
			NameOf(s)
		}
	}
}
