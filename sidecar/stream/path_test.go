package stream

import (
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
		{"a double encoding is decoded once", "/%252e%252e/x", "/%252e%252e/x", plain, false},
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

// FuzzNormalize: a normalized path is a fixed point and holds no segment that climbs.
func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2e%2e/%2f", `/\..`, "//", "/a?b/../c", "/.%2e/"} {
		f.Add(s)
	}
	m := &Manager{NormalizePath: true, MergeSlashes: true, Slashes: SlashUnescapeForward}
	f.Fuzz(func(t *testing.T, in string) {
		if !strings.HasPrefix(in, "/") {
			return
		}
		once, _, ok := normalize(nil, []byte(in), m)
		if !ok {
			return
		}
		path, _, _ := strings.Cut(string(once), "?")
		if !strings.HasPrefix(path, "/") {
			t.Fatalf("normalize(%q) = %q does not begin with a slash", in, once)
		}
		for s := range strings.SplitSeq(path, "/") {
			if s == ".." || s == "." {
				t.Fatalf("normalize(%q) = %q has a dot segment", in, once)
			}
		}
		if strings.Contains(path, `\`) || strings.Contains(path, "//") {
			t.Fatalf("normalize(%q) = %q has a slash too many", in, once)
		}
		// Decoding can make a new escape out of "%25..", which a second
		// pass must not be needed for: it only ever leaves "%25" alone.
		twice, _, ok := normalize(nil, once, m)
		if ok && string(twice) != string(once) {
			t.Fatalf("normalize(%q) = %q, and again %q", in, once, twice)
		}
	})
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
