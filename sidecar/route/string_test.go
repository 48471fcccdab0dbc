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
		`a\.b`: StringExact, "": StringExact, "a+": stringRegex, "(?i)abc": stringRegex, "a|b": stringRegex, "a.*b": stringRegex, ".+": stringRegex, "\ufffd": stringRegex,
	} {
		m, err := NewRegex(pattern)
		if err != nil || m.kind != kind {
			t.Errorf("%q: kind %d, want %d (%v)", pattern, m.kind, kind, err)
		}
	}
	for pattern, want := range map[string]string{"(": "missing closing )", "a)|(b": "unexpected )", "a{1001}": "invalid repeat count", strings.Repeat("a", maxRegex+1): "at most"} {
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
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 200 || strings.ContainsAny(s, "\r\n") {
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
	} {
		r, err := NewReplacer(c.pattern, c.substitution)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(r.Replace([]byte("> "), []byte(c.path))); got != "> "+c.want {
			t.Errorf("%s: %q, want %q", c.pattern, got, c.want)
		}
	}
	for _, s := range []string{`\1`, `\`, `\x`} {
		if _, err := NewReplacer("a", s); err == nil {
			t.Errorf("substitution %q was taken", s)
		}
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
