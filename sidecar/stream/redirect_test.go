package stream_test

import (
	"strings"
	"testing"

	"sallyport/sidecar/filter/filtertest"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

// none is a filter that wants no event.
type none struct{}

func (none) Name() string { return "none" }

func replacer(t *testing.T, pattern, substitution string) route.Replacer {
	t.Helper()
	r, err := route.NewReplacer(pattern, substitution)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestARedirectOfARouteStaysAtItsHost(t *testing.T) {
	prefix := func(p string) route.PathRewrite { return route.PathRewrite{Prefix: p, HasPrefix: true} }
	for _, c := range []struct {
		name, path, want string
		taken            int
		redirect         route.Redirect
	}{
		{"a prefix that is replaced", "/a/b?c", "http://example.com/x/b?c", 2, route.Redirect{Rewrite: prefix("/x")}},
		{"a prefix that is taken away", "/a.evil.example/b", "http://example.com/.evil.example/b", 2, route.Redirect{Rewrite: prefix("")}},
		{"a whole path that is taken away", "/a?b", "http://example.com/?b", 2, route.Redirect{Rewrite: prefix("")}},
		{"what an expression leaves", "/a/@evil.example", "http://example.com/@evil.example", 0, route.Redirect{Rewrite: route.PathRewrite{Regex: replacer(t, "^/a/(.*)$", `\1`)}}},
		{"a port in front", "/a:99@evil.example", "http://example.com/:99@evil.example", 0, route.Redirect{Rewrite: route.PathRewrite{Regex: replacer(t, "^/a", "")}}},
		{"two slashes", "//evil.example", "http://example.com//evil.example", 0, route.Redirect{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := filtertest.New(t, none{}, nil)
			c.redirect.Status = 302
			r.Route.Direct, r.Route.Redirect, r.Route.Matched = nil, &c.redirect, route.Matched{PrefixLen: c.taken}
			res := r.Get(t, c.path)
			if got := res.Header("location"); res.Status != 302 || got != c.want {
				t.Errorf("%d %q, want %q", res.Status, got, c.want)
			}
		})
	}
}

func TestARedirectByTheManagerStaysAtItsHost(t *testing.T) {
	r := filtertest.New(t, none{}, nil)
	r.Manager().Slashes = stream.SlashRedirect
	for path, want := range map[string]string{"/%2fevil.example": "/evil.example", "//evil.example/%2f?q": "/evil.example//?q", `/\evil.example%5c`: "/evil.example/"} {
		if res := r.Get(t, path); res.Status != 307 || res.Header("location") != want {
			t.Errorf("%s: %d %q, want %q", path, res.Status, res.Header("location"), want)
		}
	}
}

// TestWhatIsTooLongToMatch: where it would take too long to find the route, or what is left of the path, the request is refused.
func TestWhatIsTooLongToMatch(t *testing.T) {
	long := "/" + strings.Repeat("ab", 25<<10)
	refused := func(name string, r *filtertest.Rig) {
		res := r.Get(t, long)
		if res.Status != 414 || res.Body != "URI Too Long" || res.Details != "too_long_to_match" {
			t.Errorf("%s: %d %q (%s)", name, res.Status, res.Body, res.Details)
		}
		if res = r.Do(t, "POST", long, "content-type", "application/grpc"); res.Status != 200 || string(res.Head.Get(message.GRPCStatus)) != "3" {
			t.Errorf("%s, gRPC: %d, status %s", name, res.Status, res.Head.Get(message.GRPCStatus))
		}
	}
	slow, err := route.NewRegex("/(a|b)*a(a|b){20}")
	if err != nil {
		t.Fatal(err)
	}
	r := filtertest.New(t, none{}, nil)
	table, err := route.NewTable([]*route.VirtualHost{{Name: "v", Domains: []string{"*"}, Entries: []route.Entry{
		{Matcher: route.Matcher{Kind: route.PathRegex, Regex: slow, Fraction: route.Always}, Route: r.Route}}}}, route.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.Manager().Routes.Publish(table)
	if res := r.Get(t, "/a"+strings.Repeat("b", 20)); !res.Passed() {
		t.Errorf("a short path: %d", res.Status)
	}
	refused("the route", r)

	r = filtertest.New(t, none{}, nil)
	r.Route.Direct, r.Route.Redirect = nil, &route.Redirect{Status: 301, Rewrite: route.PathRewrite{Regex: replacer(t, "a", strings.Repeat("b", 100))}}
	refused("a redirect", r)
}
