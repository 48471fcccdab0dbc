package route

import (
	"regexp"
	"strings"
	"testing"
)

func TestStrings(t *testing.T) {
	for _, c := range []struct {
		m    StringMatcher
		s    string
		want bool
	}{
		{NewString(StringExact, "aB", false), "aB", true},
		{NewString(StringExact, "aB", false), "ab", false},
		{NewString(StringExact, "aB", true), "Ab", true},
		{NewString(StringPrefix, "aB", true), "ABc", true},
		{NewString(StringSuffix, "Bc", true), "abC", true},
		{NewString(StringContains, "b", true), "aBc", true},
		{NewString(StringContains, "b", false), "aBc", false},
		{NewString(StringContains, "", true), "", true},
		{NewString(StringContains, "aab", true), "xaAaB", true},
		{NewString(StringContains, "aabaaa", true), "aabaabaaa", true},
		{NewString(StringContains, "abab", true), "abaab", false},
		{NewString(StringPrefix, "abc", false), "ab", false},
		{StringMatcher{}, "anything", true},
	} {
		if got := c.m.MatchString(c.s); got != c.want {
			t.Errorf("%+v on %q: %v", c.m, c.s, got)
		}
	}
}

func TestSimpleExpressionsNeedNoEngine(t *testing.T) {
	for pattern, kind := range map[string]StringKind{
		".*": StringAny, "abc": StringExact, "^abc$": StringExact, "abc.*": StringPrefix, ".*abc": StringSuffix, ".*abc.*": StringContains,
		`a\.b`: StringExact, "": StringExact, "(?s).*": StringAny, "(?s).*a": StringSuffix, "(?s).*a(?-s).*": stringRegex, "a\nb.*": stringRegex, "a+": stringRegex, "(?i)abc": stringRegex, "a|b": stringRegex, "a.*b": stringRegex, ".+": stringRegex, "\ufffd": stringRegex,
	} {
		m, err := NewRegex(pattern)
		if err != nil || m.kind != kind {
			t.Errorf("%q: kind %d, want %d (%v)", pattern, m.kind, kind, err)
		}
	}
	for pattern, want := range map[string]string{"(": "missing closing )", "a)|(b": "unexpected )", "a{1001}": "invalid repeat count", strings.Repeat("a", 16<<10+1): "at most"} {
		if _, err := NewRegex(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: got %v, want %q", pattern, err, want)
		}
	}
}

// FuzzRegex asserts that an expression that was made simple matches what it matched before.
func FuzzRegex(f *testing.F) {
	for _, p := range []string{".*", "a.*", ".*a", ".*a.*", "^a$", "a|b", "(a).*", "^.*$", "a$b", "(?i)a.*", "(?s).*"} {
		f.Add(p, "a")
		f.Add(p, "xay")
		f.Add(p, "x\nay")
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 200 {
			return
		}
		m, err := NewRegex(pattern)
		if err != nil {
			return
		}
		re, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
		if err != nil {
			return
		}
		if got, want := m.MatchString(s), re.MatchString(s); got != want {
			t.Errorf("%q on %q: %v, want %v", pattern, s, got, want)
		}
	})
}

func TestReplacer(t *testing.T) {
	for _, c := range []struct{ pattern, substitution, path, want string }{
		{"^/service/([^/]+)(/.*)$", `\2/instance/\1`, "/service/foo/v1/api", "/v1/api/instance/foo"},
		{"one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"},
		{"^(.*?)one(.*)$", `\1two\2`, "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"},
		{"(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"},
		{"b", `\\[\0]`, "/abc", `/a\[b]c`},
		{"(x)?/", `\1-`, "/a", "-a"},
		{"", "-", "/é", "-/-é-"},
		{"a*", "-", "/baac", "-/-b-c-"},
		{"x(){0}", `\1-`, "/x", "/-"},
		{"(a)(a)(a)(a)(a)(a)(a)(a)(a)(b)", `\9`, "/aaaaaaaaab", "/a"},
	} {
		r, err := NewReplacer(c.pattern, c.substitution)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := r.Replace([]byte("> "), []byte(c.path)); !ok || string(got) != "> "+c.want {
			t.Errorf("%s: %q, want %q", c.pattern, got, c.want)
		}
	}
	for _, s := range []string{`\1`, `\`, `\x`} {
		if _, err := NewReplacer("a", s); err == nil {
			t.Errorf("substitution %q was taken", s)
		}
	}
}

// FuzzReplacer asserts that a rewrite is that of Go's regexp, or refused.
func FuzzReplacer(f *testing.F) {
	for _, p := range []string{"a*", "(a)|b", "^/x/(.*)$", `\b`, "(?i)é", "a.*b|a", ""} {
		f.Add(p, "/x/aab/é b")
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		if len(pattern) > 100 || len(path) > 500 {
			return
		}
		r, err := NewReplacer(pattern, `<\0>`)
		if err != nil {
			return
		}
		got, ok := r.Replace(nil, []byte(path))
		if want := regexp.MustCompile(pattern).ReplaceAllString(path, "<$0>"); ok && string(got) != want {
			t.Errorf("%q in %q: %q, want %q", pattern, path, got, want)
		}
	})
}

func TestRewritesAreBounded(t *testing.T) {
	for name, c := range map[string]struct{ pattern, substitution, path string }{
		"a search that begins anew at each byte": {"a.*b|a", "c", strings.Repeat("a", 50<<10)},
		"a path that grows with each match":      {"a", strings.Repeat("b", 1000), strings.Repeat("a", 1000)},
		"a path that grows with each group":      {"(.+)", strings.Repeat(`\1`, 100), strings.Repeat("a", 1000)},
	} {
		r, err := NewReplacer(c.pattern, c.substitution)
		if err != nil {
			t.Fatal(err)
		}
		if out, ok := r.Replace(nil, []byte(c.path)); ok || len(out) > 2*maxRewritten+len(c.path) {
			t.Errorf("%s: %v, and %d bytes", name, ok, len(out))
		}
	}
	r, err := NewReplacer("^/service/([^/]+)(/.*)$", `\2/instance/\1`)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := r.Replace(nil, []byte("/service/a/"+strings.Repeat("b", 30<<10))); !ok {
		t.Error("an ordinary rewrite of a long path is refused")
	}
}

func BenchmarkReplace(b *testing.B) {
	r, err := NewReplacer("^/service/([^/]+)(/.*)$", `\2/instance/\1`)
	if err != nil {
		b.Fatal(err)
	}
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst, _ = r.Replace(dst[:0], []byte("/service/foo/v1/api"))
	}
}

func TestRetryNames(t *testing.T) {
	seen := RetryOn(0)
	for name, on := range retryNames {
		if on == 0 || seen&on != 0 || RetryOnByName(name) != on {
			t.Errorf("%s: %b", name, on)
		}
		seen |= on
	}
	if RetryOnByName("nonesuch") != 0 {
		t.Error("an unknown name is a condition")
	}
}
