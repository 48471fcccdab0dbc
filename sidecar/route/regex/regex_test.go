package regex

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// expressions are those that routes have, and those that are hard on a table.
var expressions = []string{
	`/.*\.(js|css|png|jpg)`, `/api/.*/v[0-9]+/.*`, `.*/[0-9a-f]{8}-[0-9a-f]{4}/.*`, `/.*/admin/?`, `/(?i).*\.php`, `.*\.(woff2?|ttf|eot)`,
	`/static/.*-[0-9a-f]+\..*`, `/.*/users/[^/]+/orders/[0-9]+`, `/.*(login|logout|signin)`, `/.*;jsessionid=.*`,
	``, `a`, `a*`, `(a|b)*c`, `[^b]*`, `^$`, `^`, `$`, `a^b`, `a$b`, `(^a|b)c`, `(?m)^a$`, `(?m)a$\n^b`, `(?ms).*^x$.*`, `\bfoo\b.*`, `.*\Bo\B.*`, `\b`, `\B`, `\b\B`,
	`(?s).*`, `.*`, `(?i)straße|k`, `\pL+`, `\PL+`, `\p{Greek}.`, `[[:word:]]+`, `\x{1F600}+`, `[^\x00-\x{10FFFF}]`, `\C`, "\ufffd+", `a{3,5}b{0,2}`, `(a?){10}a{10}`, `(|a)+`, `(a*)*`,
	`[a-z]{1,63}(\.[a-z]{1,63}){0,3}`, `\Aa\z`, `(?U)a.*b`, `a.*?b`, `[[:^alpha:]]x`, `(?i)[k]`, `[^\n]`, `\n`,
}

// TestEnginesAnswerAsGoDoes: for each expression and each word up to a length over an alphabet that holds what expressions tell apart.
func TestEnginesAnswerAsGoDoes(t *testing.T) {
	alphabet := []string{"a", "b", "o", "/", ".", "\n", "0", "K", "é", "\xff", "\xc3"}
	var words []string
	for last := []string{""}; len(last[0]) < 4; {
		words = append(words, last...)
		var next []string
		for _, w := range last {
			for _, c := range alphabet {
				next = append(next, w+c)
			}
		}
		last = next
	}
	words = append(words, "foo", "a foo b", "/a/b/login", "/api/x/v1/y", "/x/0a1b2c3d-4e5f/", "/X.PHP", "aaaab", "\u212a", "straSSe", "STRASSE", "STRAßE", "😀", "ααα", "\ufffd")
	for _, p := range expressions {
		e, err := Compile(p)
		if err != nil {
			if _, goes := regexp.Compile(p); goes == nil {
				t.Errorf("%q: %v", p, err)
			}
			continue
		}
		if e.table == nil {
			t.Errorf("%q has no table", p)
			continue
		}
		re := regexp.MustCompile(`\A(?:` + p + `)\z`)
		within := regexp.MustCompile(p)
		search, err := NewSearch(p)
		if err != nil {
			t.Fatal(err)
		}
		at := make([]int, 2*search.Groups()+2)
		for _, w := range words {
			want := within.FindStringSubmatchIndex(w)
			if got := search.Next([]byte(w), 0, at, &Budget{}); got != Of(want != nil) || got == Yes && !slices.Equal(at, want) {
				t.Fatalf("%q within %q: %d at %d, want %d", p, w, got, at, want)
			}
			if got := e.Match([]byte(w), &Budget{}); got != Of(re.MatchString(w)) {
				t.Fatalf("%q on %q: %d", p, w, got)
			}
		}
	}
}

func TestATableKnowsEarly(t *testing.T) {
	for p, want := range map[string]int{`/(a|b)/(?s).*`: 3, `/(a|b)/.+`: 1003, `x.*y`: 1, `(?s).*`: 0, `[^\x00-\x{10FFFF}]`: 0, `.*y`: 1003} {
		e, err := Compile(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, steps := e.table.match([]byte("/a/" + strings.Repeat("z", 1000))); steps != want {
			t.Errorf("%s: %d steps, want %d", p, steps, want)
		}
	}
}

func TestWorkIsBounded(t *testing.T) {
	long := []byte(strings.Repeat("a", 60<<10))
	for name, p := range map[string]string{"a table": `.*b`, "a program": `(a|b)*a(a|b){20}`} {
		e, err := Compile(p)
		if err != nil {
			t.Fatal(err)
		}
		var b Budget
		answers := map[Answer]int{}
		for range 100 {
			answers[e.Match(long, &b)]++
		}
		if answers[Unknown] < 80 || b.Left() {
			t.Errorf("%s: %v of 100 answers; a step is left: %v", name, answers, b.Left())
		}
		if e.Match([]byte("aaaaaaaaaaaaaaaaaaaaab"), &Budget{}) == Unknown {
			t.Errorf("%s: a short value is not matched", name)
		}
	}
}

func TestTheLargestProgramMatchesAShortValue(t *testing.T) {
	e, err := Compile(`(a|b)*a(a|b){640}|.*`)
	if err != nil || e.table != nil || len(e.program.inst) < maxProgram*9/10 {
		t.Fatal("the expression was to be nearly too large", err, len(e.program.inst))
	}
	if e.Match([]byte(strings.Repeat("a", 128)), &Budget{}) != Yes {
		t.Error("128 bytes are too long")
	}
}

func TestRefused(t *testing.T) {
	for p, want := range map[string]string{
		"(": "missing closing )", "a)|(b": "unexpected )", "a{1001}": "invalid repeat count", strings.Repeat("a", maxPattern+1): "at most 16384",
		`(a|b)*a((a|b)(a|b)(a|b)(a|b)){1000}`: "use smaller counts",
	} {
		if _, err := Compile(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: got %v, want %q", p, err, want)
		}
	}
}

// FuzzMatch asserts that whatever an expression was made, it matches what Go's regexp matches.
func FuzzMatch(f *testing.F) {
	for _, p := range expressions {
		f.Add(p, "a")
		f.Add(p, "x/a.php\nb")
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 200 || len(s) > 1000 {
			return
		}
		e, err := Compile(pattern)
		if err != nil {
			return
		}
		re, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
		if err != nil {
			return
		}
		if got := e.Match([]byte(s), &Budget{}); got != Of(re.MatchString(s)) && got != Unknown {
			t.Errorf("%q on %q: %d, want %v", pattern, s, got, re.MatchString(s))
		}
		search, err := NewSearch(pattern)
		if err != nil {
			return
		}
		at := make([]int, 2*search.Groups()+2)
		want := regexp.MustCompile(pattern).FindStringSubmatchIndex(s)
		switch got := search.Next([]byte(s), 0, at, &Budget{}); {
		case got != Of(want != nil) && got != Unknown:
			t.Errorf("%q within %q: %d, want %v", pattern, s, got, want)
		case got == Yes && !slices.Equal(at, want):
			t.Errorf("%q within %q: at %d, want %d", pattern, s, at, want)
		}
	})
}

func TestMatchingAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("under the race detector a sync.Pool forgets at random")
	}
	for _, p := range []string{`.*\.php`, `(a|b)*a(a|b){20}`} {
		e, err := Compile(p)
		if err != nil {
			t.Fatal(err)
		}
		v := []byte("/some/path/é.html")
		if n := testing.AllocsPerRun(100, func() {
			var b Budget
			e.Match(v, &b)
		}); n != 0 {
			t.Errorf("%s: %v allocations", p, n)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	path := []byte(strings.Repeat("/api/static/0a-f.x/users/l", 2400)[:56<<10])
	short := []byte("/orders/1")
	bench := func(name string, match func([]byte), v []byte) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(v)))
			b.ReportAllocs()
			for b.Loop() {
				match(v)
			}
		})
	}
	for _, p := range []string{`.*/[0-9a-f]{8}-[0-9a-f]{4}/.*`, `(a|b|/.*)*a(a|b){20}`} {
		e, err := Compile(p)
		if err != nil {
			b.Fatal(err)
		}
		ours := func(v []byte) { e.Match(v, &Budget{spent: -1 << 40}) }
		bench("ours/56k/"+p, ours, path)
		bench("ours/short/"+p, ours, short)
		re := regexp.MustCompile(`\A(?:` + p + `)\z`)
		bench("go/56k/"+p, func(v []byte) { re.Match(v) }, path)
		bench("go/short/"+p, func(v []byte) { re.Match(v) }, short)
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, p := range []string{`/api/.*/v[0-9]+/.*`, `\pL+/\pN+`, `(a|b)*a(a|b){20}`, `.*([a-z]{1,60}x){1,8}`} {
		b.Run(p, func(b *testing.B) {
			for b.Loop() {
				if _, err := Compile(p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
