package stream

import (
	"fmt"
	"strings"
	"testing"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
)

func TestNormalizePath(t *testing.T) {
	all := &Manager{NormalizePath: true, MergeSlashes: true, Slashes: SlashUnescapeForward}
	plain := &Manager{NormalizePath: true}
	reject := &Manager{NormalizePath: true, Slashes: SlashReject}
	for _, c := range []struct {
		name, in, want string
		m              *Manager
		refused        bool
	}{
		{"a plain path stays", "/a/b?c=/../d", "/a/b?c=/../d", all, false},
		{"dot segments are resolved", "/a/./b/../c", "/a/c", plain, false},
		{"parents do not climb above the root", "/../../admin", "/admin", plain, false},
		{"encoded dots are dots", "/x/%2e%2E/admin", "/admin", plain, false},
		{"a trailing parent leaves its slash", "/a/b/..", "/a/", plain, false},
		{"a trailing dot leaves its slash", "/a/.", "/a/", plain, false},
		{"only parents", "/..", "/", plain, false},
		{"backslash is a slash", `/a\..\admin`, "/admin", plain, false},
		{"unreserved characters are decoded", "/%61dmin", "/admin", plain, false},
		{"reserved characters stay encoded", "/a%3Bb%20c", "/a%3Bb%20c", plain, false},
		{"a double encoding is decoded once", "/%2541%2520/x", "/%2541%2520/x", plain, false},
		{"dots that are encoded twice are refused", "/%252e%252e/x", "", plain, true},
		{"however often they are encoded", "/a/%2525252e./x", "", plain, true},
		{"a dot in more bytes than one is refused", "/a/%c0%ae%c0%ae/x", "", plain, true},
		{"in three", "/a/.%e0%80%ae", "", plain, true},
		{"or not encoded at all", "/a/\xc0\xae\xf0\x80\x80\xae/x", "", plain, true},
		{"other bytes that are no UTF-8 stay", "/a/%c0%e9\xff..", "/a/%c0%e9\xff..", plain, false},
		{"a parent with parameters is a parent", "/a/..;/admin", "/admin", plain, false},
		{"whatever they are", "/a/..;x=1;y/admin", "/admin", plain, false},
		{"encoded dots with parameters, too", "/a/%2e%2e;x/admin", "/admin", plain, false},
		{"and a dot", "/a/.;x/b", "/a/b", plain, false},
		{"a trailing parent with parameters leaves its slash", "/a/b/..;x", "/a/", plain, false},
		{"a name keeps its parameters", "/a;x/b;y=..", "/a;x/b;y=..", plain, false},
		{"three dots with parameters are a name", "/a/...;x/b", "/a/...;x/b", plain, false},
		{"dots before an encoded semicolon are refused", "/a/..%3bx/admin", "", plain, true},
		{"an encoded semicolon stays elsewhere", "/a%3bx/...%3b", "/a%3bx/...%3b", plain, false},
		{"parameters without a name are refused", "/;x/admin", "", plain, true},
		{"but at the end", "/a/;jsessionid=1", "/a/;jsessionid=1", plain, false},
		{"dots before an escaped slash are refused, where it is kept", "/a/..%2fadmin", "", plain, true},
		{"and behind one", "/a%2f../b", "", plain, true},
		{"behind a backslash", "/a/b%5c..%5cadmin", "", plain, true},
		{"an escaped slash is kept otherwise", "/a%2fb%5Cc..%2f", "/a%2fb%5Cc..%2f", plain, false},
		{"dots between escaped slashes are resolved, where they are unescaped", "/a%2f..;x%5cadmin", "/admin", all, false},
		{"nothing is looked for in the query", "/a?/..;/%252e", "/a?/..;/%252e", plain, false},
		{"slashes are merged", "//a///b", "/a/b", all, false},
		{"slashes are kept where not asked", "//a", "//a", plain, false},
		{"escaped slashes are unescaped before dots are resolved", "/a%2f..%2Fadmin", "/admin", all, false},
		{"escaped slashes are refused", "/a%2Fb", "", reject, true},
		{"an escaped NUL is refused", "/a%00b", "", plain, true},
		{"a broken escape is refused", "/a%zz", "", plain, true},
		{"a cut escape is refused", "/a%2", "", plain, true},
		{"three dots are a name", "/.../a", "/.../a", plain, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, _, ok := normalize(nil, []byte(c.in), c.m)
			if ok == c.refused || ok && string(got) != c.want {
				t.Errorf("normalize(%q) = %q, %v; want %q", c.in, got, ok, c.want)
			}
		})
	}
}

// readings are what others could make of a path: whoever decodes once more, and
// again, takes overlong forms for what they stand for, "\" for a slash, and drops parameters.
func readings(path string) (all []string) {
	decode := func(s string) string {
		var b strings.Builder
		for i := 0; i < len(s); i++ {
			if s[i] == '%' && i+2 < len(s) && unhex(s[i+1]) >= 0 && unhex(s[i+2]) >= 0 {
				b.WriteByte(byte(unhex(s[i+1])<<4 | unhex(s[i+2])))
				i += 2
				continue
			}
			b.WriteByte(s[i])
		}
		return b.String()
	}
	lenient := strings.NewReplacer("\xc0\xae", ".", "\xe0\x80\xae", ".", "\xc0\xaf", "/", "\xc0\xbb", ";", `\`, "/")
	for {
		all = append(all, path, lenient.Replace(path))
		next := decode(path)
		if next == path {
			return all
		}
		path = next
	}
}

// climbs says why a path leads elsewhere than it seems to, by one of its readings; "" where it does not.
func climbs(path string) string {
	for _, r := range readings(path) {
		segments := strings.Split(r, "/")[1:]
		for i, s := range segments {
			name, _, parameters := strings.Cut(s, ";")
			if name == "." || name == ".." {
				return fmt.Sprintf("read as %q it has a dot segment", r)
			}
			if name == "" && parameters && i < len(segments)-1 {
				return fmt.Sprintf("read as %q it has a segment of parameters alone", r)
			}
		}
	}
	return ""
}

// TestNoPathLeadsElsewhereThanItSeemsTo: all paths of some parts out of those that lead through normalizations.
func TestNoPathLeadsElsewhereThanItSeemsTo(t *testing.T) {
	managers := []*Manager{{NormalizePath: true}, {NormalizePath: true, MergeSlashes: true, Slashes: SlashUnescapeForward},
		{NormalizePath: true, MergeSlashes: true, Slashes: SlashReject}, {NormalizePath: true, Slashes: SlashRedirect}}
	var buf, again []byte
	accepted := 0
	check := func(p []byte) {
		for _, m := range managers {
			out, redirect, ok := normalize(buf[:0], p, m)
			if buf = out; !ok {
				continue
			}
			accepted++
			if why := climbs(string(out)); why != "" {
				t.Fatalf("normalize(%q) = %q: %s", p, out, why)
			}
			if redirect && len(out) > 1 && (out[1] == '/' || out[1] == '\\') {
				t.Fatalf("%q is redirected to %q", p, out)
			}
			if again, _, ok = normalize(again[:0], out, m); !ok || string(again) != string(out) {
				t.Fatalf("normalize(%q) = %q, and again %q, %v", p, out, again, ok)
			}
		}
	}
	var grow func(p []byte, parts []string, n int)
	grow = func(p []byte, parts []string, n int) {
		if check(p); n == 0 {
			return
		}
		for _, c := range parts {
			grow(append(p, c...), parts, n-1)
		}
	}
	grow([]byte("/"), []string{"/", ".", "..", ";", "a", `\`, "%2e", "%3b", "%2F", "%5c", "%25", "2e", "%c0%ae", "\xc0\xaf"}, 4)
	grow([]byte("/"), []string{"/", "..", ";", "a", "%2f", "%252e"}, 6)
	if accepted == 0 {
		t.Error("every path was refused")
	}
}

// FuzzNormalize: a normalized path is a fixed point, and nobody can read it as one that climbs.
func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2e%2e/%2f", `/\..`, "//", "/a?b/../c", "/.%2e/", "/a/..;/b", "/a/..%3b/b", "/%252e%252e", "/%c0%ae./x", "/;x/y"} {
		f.Add(s)
	}
	m := &Manager{NormalizePath: true, MergeSlashes: true, Slashes: SlashUnescapeForward}
	keep := &Manager{NormalizePath: true}
	f.Fuzz(func(t *testing.T, in string) {
		if !strings.HasPrefix(in, "/") {
			return
		}
		for _, m := range []*Manager{m, keep} {
			once, _, ok := normalize(nil, []byte(in), m)
			if !ok {
				continue
			}
			path, _, _ := strings.Cut(string(once), "?")
			if !strings.HasPrefix(path, "/") {
				t.Fatalf("normalize(%q) = %q does not begin with a slash", in, once)
			}
			if why := climbs(path); why != "" {
				t.Fatalf("normalize(%q) = %q: %s", in, once, why)
			}
			if strings.Contains(path, `\`) || m.MergeSlashes && strings.Contains(path, "//") {
				t.Fatalf("normalize(%q) = %q has a slash too many", in, once)
			}
			if twice, _, ok := normalize(nil, once, m); !ok || string(twice) != string(once) {
				t.Fatalf("normalize(%q) = %q, and again %q, %v", in, once, twice, ok)
			}
		}
	})
}

func TestARedirectStaysAtItsHost(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
		m              Manager
	}{
		{"an escaped slash", "/a%2fb?q", "/a/b?q", Manager{Slashes: SlashRedirect}},
		{"one in front", "/%2fhost/x", "/host/x", Manager{Slashes: SlashRedirect}},
		{"two slashes in front", "//host/x%2f", "/host/x/", Manager{Slashes: SlashRedirect}},
		{"a backslash in front", "/%5chost", "/host", Manager{Slashes: SlashRedirect}},
		{"one that is not escaped", `/\/host%2f`, "/host/", Manager{Slashes: SlashRedirect}},
		{"after dots are resolved", "/a/..//host%2f", "/host/", Manager{Slashes: SlashRedirect, NormalizePath: true}},
		{"nothing but slashes", "/%2f%2f", "/", Manager{Slashes: SlashRedirect}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, redirect, ok := normalize([]byte("> "), []byte(c.in), &c.m)
			if !ok || !redirect || string(out) != "> "+c.want {
				t.Errorf("normalize(%q) = %q, %v, %v; want %q", c.in, out, redirect, ok, c.want)
			}
		})
	}
}

func BenchmarkNormalize(b *testing.B) {
	m := &Manager{NormalizePath: true, MergeSlashes: true, Slashes: SlashRedirect}
	for name, p := range map[string]string{"plain": "/api/v1/orders/12345/items?x=y", "escapes": "/api/v1/or%20ders/12345;v=1/items?x=y"} {
		b.Run(name, func(b *testing.B) {
			var dst []byte
			b.ReportAllocs()
			for b.Loop() {
				dst, _, _ = normalize(dst[:0], []byte(p), m)
			}
		})
	}
}

func TestForwardedFor(t *testing.T) {
	for _, c := range []struct {
		name, v string
		n       int
		want    string
	}{
		{"the last address", "1.1.1.1, 2.2.2.2", 0, "2.2.2.2"},
		{"the one before it", "1.1.1.1,2.2.2.2", 1, "1.1.1.1"},
		{"more hops than addresses", "1.1.1.1", 1, ""},
		{"IPv6", "::1", 0, "::1"},
		{"garbage", "x", 0, ""},
		{"empty", "", 0, ""},
		{"a trailing comma", "1.1.1.1,", 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, ok := forwardedFor([]byte(c.v), c.n)
			if ok != (c.want != "") || ok && a.String() != c.want {
				t.Errorf("forwardedFor(%q, %d) = %v, %v", c.v, c.n, a, ok)
			}
		})
	}
}

func TestCookie(t *testing.T) {
	var h message.Head
	h.AddString("cookie", `a=1; sid="x y"; ab=2`)
	h.AddString("cookie", "late=3")
	for name, want := range map[string]string{"a": "1", "sid": "x y", "ab": "2", "late": "3", "b": "", "si": ""} {
		v, _ := route.Cookie(&h, name)
		if got := string(v); got != want {
			t.Errorf("cookie %q = %q, want %q", name, got, want)
		}
	}
}

func TestQueryValue(t *testing.T) {
	for _, c := range []struct {
		path, name, want string
		ok               bool
	}{
		{"/x?a=1&b=2", "b", "2", true},
		{"/x?a=1&b=2", "a", "1", true},
		{"/x?ab=1", "a", "", false},
		{"/x?flag&b=2", "flag", "", true},
		{"/x", "a", "", false},
		{"/x?", "a", "", false},
	} {
		got, ok := queryValue([]byte(c.path), c.name)
		if string(got) != c.want || ok != c.ok {
			t.Errorf("queryValue(%q, %q) = %q, %v", c.path, c.name, got, ok)
		}
	}
}

func TestGRPCTimeout(t *testing.T) {
	for v, want := range map[string]string{"100m": "100ms", "2S": "2s", "1H": "1h0m0s", "123456789S": "", "": "", "S": "", "1x": "", "-1S": ""} {
		d, ok := grpcTimeout([]byte(v))
		if ok != (want != "") || ok && d.String() != want {
			t.Errorf("grpcTimeout(%q) = %v, %v; want %q", v, d, ok, want)
		}
	}
}
