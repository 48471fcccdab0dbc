package route

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route/regex"
)

func head(method, authority, path string, headers ...string) *message.Head {
	h := &message.Head{}
	h.AddNameString(message.Method, method)
	if path != "" {
		h.AddNameString(message.Path, path)
	}
	if authority != "" {
		h.AddNameString(message.Authority, authority)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		h.AddString(headers[i], headers[i+1])
	}
	return h
}

// hosts makes a virtual host for each list of domains, named after it, whose one route takes everything.
func hosts(domains ...string) (list []*VirtualHost) {
	for _, d := range domains {
		list = append(list, &VirtualHost{Name: d, Domains: strings.Fields(d),
			Entries: []Entry{{NewPath(PathPrefix, "/", false), &Route{VirtualHost: d}}}})
	}
	return list
}

func table(t testing.TB, o TableOptions, v ...*VirtualHost) *Table {
	t.Helper()
	tb, err := NewTable(v, o)
	if err != nil {
		t.Fatal(err)
	}
	return tb
}

func TestHosts(t *testing.T) {
	tb := table(t, TableOptions{}, hosts("*", "*.com", "*.example.com", "*-x.example.com", "www.*", "www.example.*", "www.example.com api.example.com:8080", "UPPER.example.ORG")...)
	noPort := table(t, TableOptions{IgnorePort: true}, hosts("example.com", "*.example.com", "[::1]")...)
	for _, c := range []struct {
		tb         *Table
		host, want string
	}{
		{tb, "www.example.com", "www.example.com api.example.com:8080"},
		{tb, "WWW.Example.COM", "www.example.com api.example.com:8080"},
		{tb, "api.example.com:8080", "www.example.com api.example.com:8080"},
		{tb, "api.example.com", "*.example.com"},
		{tb, "a-x.example.com", "*-x.example.com"},
		{tb, "-x.example.com", "*.example.com"},
		{tb, ".example.com", "*.com"},
		{tb, "example.com", "*.com"},
		{tb, "www.example.org", "www.example.*"},
		{tb, "www.other.org", "www.*"},
		{tb, "www.", "*"},
		{tb, "upper.example.org", "UPPER.example.ORG"},
		{tb, strings.Repeat("A", 400) + ".EXAMPLE.COM", "*.example.com"},
		{tb, "other", "*"},
		{noPort, "example.com:443", "example.com"},
		{noPort, "a.example.com:1", "*.example.com"},
		{noPort, "[::1]:80", "[::1]"},
		{noPort, "[::1]", "[::1]"},
		{noPort, "example.com:99999", ""},
		{noPort, "example.com:", ""},
		{noPort, "other.org", ""},
	} {
		got := ""
		if v := c.tb.Host(head("GET", c.host, "/")); v != nil {
			got = v.Name
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.host, got, c.want)
		}
	}
	if tb.Host(head("GET", "", "/")) != nil {
		t.Error("a request without a host found a virtual host")
	}
	for _, d := range []string{"a", "*.a", "a.*", "*"} {
		if _, err := NewTable(hosts(d, strings.ToUpper(d)), TableOptions{}); err == nil || !strings.Contains(err.Error(), "claimed by virtual host") {
			t.Errorf("domain %s twice: %v", d, err)
		}
	}
}

// naiveHost is how the documentation of VirtualHost.domains says it, without any index.
func naiveHost(list []*VirtualHost, host string) string {
	host = strings.ToLower(host)
	best, rank := "", [2]int{-1, -1}
	for _, v := range list {
		for _, d := range v.Domains {
			d = strings.ToLower(d)
			r := [2]int{-1, len(d)}
			switch {
			case d == "*":
				r[0] = 0
			case d == host && !strings.HasPrefix(d, "*") && !strings.HasSuffix(d, "*"):
				r[0] = 3
			case d[0] == '*' && len(host) > len(d)-1 && strings.HasSuffix(host, d[1:]):
				r[0] = 2
			case d[0] != '*' && d[len(d)-1] == '*' && len(host) > len(d)-1 && strings.HasPrefix(host, d[:len(d)-1]):
				r[0] = 1
			}
			if r[0] > rank[0] || r[0] == rank[0] && r[0] >= 0 && r[1] > rank[1] {
				best, rank = v.Name, r
			}
		}
	}
	return best
}

// naivePath is Matcher.matchPath on strings.
func naivePath(m *Matcher, path string) bool {
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		path = path[:i]
	}
	p := m.Path
	if m.Fold {
		path = strings.ToLower(path)
	}
	switch m.Kind {
	case PathAny:
		return true
	case PathExact:
		return path == p
	case PathPrefix:
		return strings.HasPrefix(path, p)
	case PathSeparated:
		return path == p || strings.HasPrefix(path, p+"/")
	}
	panic("not here")
}

func TestTableAgreesWithANaiveMatcher(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	word := func(n int) string {
		b := make([]byte, rng.IntN(n)+1)
		for i := range b {
			b[i] = "aAb./"[rng.IntN(5)]
		}
		return string(b)
	}
	for range 3000 {
		var list []*VirtualHost
		seen := map[string]bool{}
		for i := range rng.IntN(6) + 1 {
			d := pick("", "*", "*") + strings.Trim(word(4), "/") + pick("", "*", "")
			if strings.Count(d, "*") > 1 || d == "" || seen[strings.ToLower(d)] {
				continue
			}
			seen[strings.ToLower(d)] = true
			v := &VirtualHost{Name: fmt.Sprint(i, " ", d), Domains: []string{d}}
			for k := range rng.IntN(5) {
				m := NewPath([]PathKind{PathExact, PathPrefix, PathSeparated}[rng.IntN(3)], "/"+word(3), rng.IntN(2) == 0)
				v.Entries = append(v.Entries, Entry{m, &Route{Name: fmt.Sprint(k), VirtualHost: v.Name}})
			}
			list = append(list, v)
		}
		tb := table(t, TableOptions{}, list...)
		for range 20 {
			host, path := word(4), "/"+word(4)+pick("", "?a/b", "#/a")
			want, got := "", ""
			name := naiveHost(list, host)
			for _, v := range list {
				if v.Name != name {
					continue
				}
				for i := range v.Entries {
					if naivePath(&v.Entries[i].Matcher, path) {
						want = name + " " + v.Entries[i].Route.Name
						break
					}
				}
			}
			if r := tb.Match(head("GET", host, path), 0, MatchInfo{}); r != nil {
				got = r.VirtualHost + " " + r.Name
			}
			if got != want {
				t.Fatalf("host %q path %q: %q, want %q", host, path, got, want)
			}
		}
	}
}

func expression(t testing.TB, s string) StringMatcher {
	t.Helper()
	m, err := NewRegex(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMatchers(t *testing.T) {
	with := func(f func(*Matcher)) Matcher {
		m := NewPath(PathPrefix, "/", false)
		f(&m)
		return m
	}
	header := func(h HeaderMatcher) Matcher { return with(func(m *Matcher) { m.Headers = []HeaderMatcher{h} }) }
	exact := func(s string) StringMatcher { return NewString(StringExact, s, false) }
	none, invert, empty := HeaderOptions{}, HeaderOptions{Invert: true}, HeaderOptions{TreatMissingAsEmpty: true}
	get := func(path string, headers ...string) *message.Head { return head("GET", "h", path, headers...) }
	for name, c := range map[string]struct {
		m    Matcher
		h    *message.Head
		want bool
	}{
		"prefix":                            {NewPath(PathPrefix, "/a", false), get("/ab"), true},
		"prefix, other case":                {NewPath(PathPrefix, "/a", false), get("/Ab"), false},
		"prefix, case ignored":              {NewPath(PathPrefix, "/A", true), get("/ab"), true},
		"prefix is not in the query":        {NewPath(PathPrefix, "/a?b", false), get("/a?b"), false},
		"exact with query":                  {NewPath(PathExact, "/a", false), get("/a?b"), true},
		"exact with fragment":               {NewPath(PathExact, "/a", false), get("/a#b?c"), true},
		"separated, itself":                 {NewPath(PathSeparated, "/a", false), get("/a?x"), true},
		"separated, below":                  {NewPath(PathSeparated, "/a", false), get("/a/b"), true},
		"separated, longer":                 {NewPath(PathSeparated, "/a", false), get("/ab"), false},
		"regex":                             {Matcher{Kind: PathRegex, Regex: expression(t, "/a/[0-9]+"), Fraction: Always}, get("/a/12?x"), true},
		"regex spans all":                   {Matcher{Kind: PathRegex, Regex: expression(t, "/a/[0-9]+"), Fraction: Always}, get("/a/12/b"), false},
		"regex with alternatives spans all": {Matcher{Kind: PathRegex, Regex: expression(t, "/a|/b"), Fraction: Always}, get("/abc"), false},
		"connect":                           {Matcher{Kind: PathConnect, Fraction: Always}, head("CONNECT", "h:1", ""), true},
		"connect is not a GET":              {Matcher{Kind: PathConnect, Fraction: Always}, get("/"), false},
		"prefix takes no CONNECT":           {NewPath(PathPrefix, "", false), head("CONNECT", "h:1", ""), false},
		"header":                            {header(HeaderValueMatches("X-A", exact("1"), none)), get("/", "x-a", "1"), true},
		"header, values are not joined":     {header(HeaderValueMatches("x-a", exact("1,2"), none)), get("/", "x-a", "1", "x-a", "2"), false},
		"header, the first of two":          {header(HeaderValueMatches("x-a", exact("1"), none)), get("/", "x-a", "1", "x-a", "2"), true},
		"header, the last of two":           {header(HeaderValueMatches("x-a", exact("2"), none)), get("/", "x-a", "1", "x-a", "2"), true},
		"known header, the last of two":     {header(HeaderValueMatches("accept", exact("2"), none)), get("/", "accept", "1", "accept", "2"), true},
		"header inverted":                   {header(HeaderValueMatches("x-a", exact("1"), invert)), get("/", "x-a", "2"), true},
		"missing header inverted":           {header(HeaderValueMatches("x-a", exact("1"), invert)), get("/"), false},
		"missing header as empty, inverted": {header(HeaderValueMatches("x-a", exact("1"), HeaderOptions{true, true})), get("/"), true},
		"missing header as empty":           {header(HeaderValueMatches("x-a", exact(""), empty)), get("/"), true},
		"present":                           {header(HeaderPresent("x-a", true, none)), get("/", "x-a", ""), true},
		"present, missing":                  {header(HeaderPresent("x-a", true, none)), get("/"), false},
		"absent":                            {header(HeaderPresent("x-a", false, none)), get("/"), true},
		"absent, present":                   {header(HeaderPresent("x-a", false, none)), get("/", "x-a", ""), false},
		"present inverted, missing":         {header(HeaderPresent("x-a", true, invert)), get("/"), true},
		"absent inverted, missing":          {header(HeaderPresent("x-a", false, invert)), get("/"), false},
		"absent inverted, present":          {header(HeaderPresent("x-a", false, invert)), get("/", "x-a", ""), true},
		"range, start":                      {header(HeaderInRange("x-a", -1, 5, none)), get("/", "x-a", "-1"), true},
		"range, end":                        {header(HeaderInRange("x-a", -1, 5, none)), get("/", "x-a", "5"), false},
		"range, no number":                  {header(HeaderInRange("x-a", -1, 5, none)), get("/", "x-a", "3x"), false},
		"method":                            {header(HeaderValueMatches(":method", exact("GET"), none)), get("/"), true},
		"host is :authority":                {header(HeaderValueMatches("Host", exact("h"), none)), get("/"), true},
		"query":                             {with(func(m *Matcher) { m.Query = []QueryMatcher{{"a", exact("1")}} }), get("/?b=2&a=1"), true},
		"query, first value":                {with(func(m *Matcher) { m.Query = []QueryMatcher{{"a", exact("1")}} }), get("/?a=2&a=1"), false},
		"query, present":                    {with(func(m *Matcher) { m.Query = []QueryMatcher{{Name: "a"}} }), get("/?ab&a"), true},
		"query, missing":                    {with(func(m *Matcher) { m.Query = []QueryMatcher{{Name: "a"}} }), get("/?ab=a"), false},
		"query is not in the fragment":      {with(func(m *Matcher) { m.Query = []QueryMatcher{{Name: "a"}} }), get("/?b#&a"), false},
		"cookie":                            {with(func(m *Matcher) { m.Cookies = []CookieMatcher{{"a", exact("1"), false}} }), get("/", "cookie", `b=2; a="1"`), true},
		"cookie, missing and inverted":      {with(func(m *Matcher) { m.Cookies = []CookieMatcher{{"a", exact("1"), true}} }), get("/"), true},
		"grpc":                              {with(func(m *Matcher) { m.GRPC = true }), get("/", "content-type", "application/grpc+proto"), true},
		"grpc-web is not":                   {with(func(m *Matcher) { m.GRPC = true }), get("/", "content-type", "application/grpc-web"), false},
		"fraction of nothing":               {with(func(m *Matcher) { m.Fraction = 0 }), get("/"), false},
		"certificate demanded":              {with(func(m *Matcher) { m.Presented = 1 }), get("/"), false},
		"certificate unwanted":              {with(func(m *Matcher) { m.Presented = -1 }), get("/"), true},
	} {
		if got := c.m.Try(c.h, 7, MatchInfo{}, &regex.Budget{}); got != regex.Of(c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestFractionsAreRight(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	n, low := 0, 0
	for range 100_000 {
		r := rng.Uint64()
		if InFraction(r, 250_000) {
			n++
			if uint32(r>>20)%2 == 0 { // as the choice between two clusters
				low++
			}
		}
	}
	if n < 24_000 || n > 26_000 || low < n*48/100 || low > n*52/100 {
		t.Errorf("%d of 100,000 are in a quarter; %d of them go to the first of two clusters", n, low)
	}
}

func TestTLSRequirement(t *testing.T) {
	v := hosts("*")
	v[0].RequireTLS = TLSAll
	tb := table(t, TableOptions{}, v...)
	if r := tb.Match(head("GET", "h", "/"), 0, MatchInfo{}); r == nil || r.Redirect == nil || !r.Redirect.HTTPS || r.Redirect.Status != 301 {
		t.Errorf("plaintext: %+v", r)
	}
	if r := tb.Match(head("GET", "h", "/"), 0, MatchInfo{TLS: true}); r == nil || r.Redirect != nil {
		t.Error("TLS is redirected")
	}
	if r := tb.Match(head("GET", "h", "/", "x-forwarded-proto", "https"), 0, MatchInfo{}); r == nil || r.Redirect != nil {
		t.Error("TLS before another proxy is redirected")
	}
	for _, lines := range [][]string{{"https", "http"}, {"http", "https"}, {"https, http"}, {"https", ""}} {
		h := head("GET", "h", "/")
		for _, l := range lines {
			h.AddString("x-forwarded-proto", l)
		}
		if r := tb.Match(h, 0, MatchInfo{TLS: true}); r == nil || r.Redirect == nil {
			t.Errorf("x-forwarded-proto in the lines %q is taken for https", lines)
		}
	}
	v[0].RequireTLS = TLSExternalOnly
	tb = table(t, TableOptions{}, v...)
	if r := tb.Match(head("GET", "h", "/"), 0, MatchInfo{Internal: true}); r == nil || r.Redirect != nil {
		t.Error("an internal request is redirected")
	}
}

func TestPathParameters(t *testing.T) {
	v := &VirtualHost{Name: "v", Domains: []string{"*"}, Entries: []Entry{{NewPath(PathExact, "/a", false), &Route{}}}}
	if table(t, TableOptions{}, v).Match(head("GET", "h", "/a;b=c"), 0, MatchInfo{}) != nil {
		t.Error("parameters were ignored")
	}
	if table(t, TableOptions{IgnoreParameters: true}, v).Match(head("GET", "h", "/a;b=c?d"), 0, MatchInfo{}) == nil {
		t.Error("parameters were not ignored")
	}
}

func FuzzMatch(f *testing.F) {
	list := hosts("a.b", "*.b", "a.*", "A.c")
	tb := table(f, TableOptions{}, list...)
	ported := table(f, TableOptions{IgnorePort: true}, list...)
	f.Add("a.B:80", "/x?y#z")
	f.Fuzz(func(t *testing.T, host, path string) {
		h := head("GET", host, path)
		if v := tb.Host(h); host != "" && strings.ToLower(host) == lowerASCII(host) {
			got := ""
			if v != nil {
				got = v.Name
			}
			if want := naiveHost(list, host); got != want {
				t.Errorf("%q: %q, want %q", host, got, want)
			}
		}
		ported.Host(h)
		for _, k := range []PathKind{PathExact, PathPrefix, PathSeparated} {
			m := NewPath(k, "/x", false)
			if path != "" && m.Try(h, 0, MatchInfo{}, &regex.Budget{}) != regex.Of(naivePath(&m, path)) {
				t.Errorf("%q by kind %d", path, k)
			}
		}
		if b := BarePath([]byte(path)); strings.ContainsAny(string(b), "?#") {
			t.Errorf("%q is not bare", b)
		}
	})
}

// TestAllHeaderMatchers: every kind with every option against no, one and two
// values, by a definition that is Envoy 1.40's (integration compares a part of it).
func TestAllHeaderMatchers(t *testing.T) {
	exact := func(s string) StringMatcher { return NewString(StringExact, s, false) }
	kinds := map[string]struct {
		make    func(string, HeaderOptions) HeaderMatcher
		one     func(string) bool
		missing bool // present_match: false
	}{
		"present":  {make: func(n string, o HeaderOptions) HeaderMatcher { return HeaderPresent(n, true, o) }, one: func(string) bool { return true }},
		"absent":   {make: func(n string, o HeaderOptions) HeaderMatcher { return HeaderPresent(n, false, o) }, one: func(string) bool { return false }, missing: true},
		"exact":    {make: func(n string, o HeaderOptions) HeaderMatcher { return HeaderValueMatches(n, exact("a"), o) }, one: func(v string) bool { return v == "a" }},
		"empty":    {make: func(n string, o HeaderOptions) HeaderMatcher { return HeaderValueMatches(n, exact(""), o) }, one: func(v string) bool { return v == "" }},
		"a joined": {make: func(n string, o HeaderOptions) HeaderMatcher { return HeaderValueMatches(n, exact("a,b"), o) }, one: func(v string) bool { return v == "a,b" }},
		"contains": {make: func(n string, o HeaderOptions) HeaderMatcher {
			return HeaderValueMatches(n, NewString(StringContains, "A", true), o)
		}, one: func(v string) bool { return strings.Contains(strings.ToLower(v), "a") }},
		"regex": {make: func(n string, o HeaderOptions) HeaderMatcher { return HeaderValueMatches(n, expression(t, "[^b]*"), o) }, one: func(v string) bool { return !strings.Contains(v, "b") }},
		"range": {make: func(n string, o HeaderOptions) HeaderMatcher { return HeaderInRange(n, 1, 5, o) }, one: func(v string) bool { return v == "3" }},
	}
	values := [][]string{nil}
	for _, a := range []string{"", "a", "b", "3", "9", "a,b"} {
		values = append(values, []string{a})
		for _, b := range []string{"", "a", "b", "3", "9", "a,b"} {
			values = append(values, []string{a, b})
		}
	}
	for name, k := range kinds {
		for _, o := range []HeaderOptions{{}, {Invert: true}, {TreatMissingAsEmpty: true}, {Invert: true, TreatMissingAsEmpty: true}} {
			for _, field := range []string{"x-own", "user-agent"} {
				m := k.make(field, o)
				for _, vs := range values {
					h := head("GET", "h", "/")
					want := false
					for _, v := range vs {
						h.AddString(field, v)
						want = want || k.one(v)
					}
					switch {
					case len(vs) > 0:
						want = want != o.Invert
					case o.TreatMissingAsEmpty:
						want = k.one("") != o.Invert
					default:
						// Missing matches present_match alone, inverted or not.
						want = (name == "present" || name == "absent") && k.missing != o.Invert
					}
					if got := m.Match(h); got != want {
						t.Errorf("%s, %+v, %q: %v", name, o, vs, got)
					}
				}
			}
		}
	}
}

// slow is an expression that has no table.
const slow = "(a|b)*a(a|b){20}"

func TestARequestIsRefusedWhereItsRouteWouldTakeTooLongToFind(t *testing.T) {
	long := "/" + strings.Repeat("ab", 25<<10)
	regexRoute := func(p string) Entry {
		return Entry{Matcher{Kind: PathRegex, Regex: expression(t, p), Fraction: Always}, &Route{Name: "regex"}}
	}
	byHeader := NewPath(PathPrefix, "/", false)
	byHeader.Headers = []HeaderMatcher{HeaderValueMatches("x-a", expression(t, slow), HeaderOptions{Invert: true})}
	rest := Entry{NewPath(PathPrefix, "/", false), &Route{Name: "rest"}}
	first := Entry{NewPath(PathPrefix, "/ab", false), &Route{Name: "first"}}
	repeat := func(e Entry, n int) (list []Entry) {
		for range n {
			list = append(list, e)
		}
		return list
	}
	for name, c := range map[string]struct {
		entries []Entry
		h       *message.Head
		want    string
	}{
		"ten expressions":                       {append(repeat(regexRoute("/.*x"), 10), rest), head("GET", "h", long), "rest"},
		"a thousand of them":                    {append(repeat(regexRoute("/.*x"), 1000), rest), head("GET", "h", long), "refused"},
		"a thousand and a short path":           {append(repeat(regexRoute("/.*x"), 1000), rest), head("GET", "h", "/ab"), "rest"},
		"one that needs long":                   {[]Entry{regexRoute("/" + slow), rest}, head("GET", "h", long), "refused"},
		"one that needs long, behind the route": {[]Entry{first, regexRoute("/" + slow), rest}, head("GET", "h", long), "first"},
		"a header":                              {[]Entry{{byHeader, &Route{Name: "header"}}, rest}, head("GET", "h", "/", "x-a", long[1:]), "refused"},
		"a header of another path":              {[]Entry{{func() Matcher { m := byHeader; m.Kind, m.Path = PathPrefix, "/x"; return m }(), &Route{}}, rest}, head("GET", "h", "/", "x-a", long[1:]), "rest"},
	} {
		tb := table(t, TableOptions{}, &VirtualHost{Name: "v", Domains: []string{"*"}, Entries: c.entries})
		got := ""
		switch r := tb.Match(c.h, 0, MatchInfo{}); {
		case r == Undecided:
			got = "refused"
		case r != nil:
			got = r.Name
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	list := hosts("*.example.com", "www.*", "*")
	v := &VirtualHost{Name: "v", Domains: []string{"orders.example.com"}}
	for i := range 20 {
		m := NewPath(PathPrefix, fmt.Sprintf("/service/%d/", i), false)
		m.Headers = []HeaderMatcher{HeaderValueMatches(":method", NewString(StringExact, "GET", false), HeaderOptions{})}
		v.Entries = append(v.Entries, Entry{m, &Route{}})
	}
	v.Entries = append(v.Entries, Entry{Matcher{Kind: PathRegex, Regex: expression(b, "/orders/[0-9]+/items"), Fraction: Always}, &Route{}})
	tb := table(b, TableOptions{}, append(list, v)...)
	for name, h := range map[string]*message.Head{
		"prefix": head("GET", "orders.example.com", "/service/19/x?y=z"),
		"regex":  head("GET", "Orders.Example.com", "/orders/12345/items"),
		"any":    head("GET", "elsewhere", "/"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if tb.Match(h, 1, MatchInfo{}) == nil {
					b.Fatal("no route")
				}
			}
		})
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	tb := table(t, TableOptions{IgnorePort: true}, append(hosts("*.example.com"), &VirtualHost{Name: "r", Domains: []string{"r"}, Entries: []Entry{
		{Matcher{Kind: PathRegex, Regex: expression(t, "/[a-z]+/x"), Fraction: Always}, &Route{}}}})...)
	for _, h := range []*message.Head{head("GET", "WWW.example.com:80", "/a?b"), head("GET", "R", "/abc/x")} {
		if n := testing.AllocsPerRun(1000, func() {
			if tb.Match(h, 1, MatchInfo{}) == nil {
				t.Fatal("no route")
			}
		}); n >= 1 {
			t.Errorf("%v allocations", n)
		}
	}
}

// FuzzHeaders asserts that a second value never hides the first, or is hidden by it.
func FuzzHeaders(f *testing.F) {
	f.Add("x-role", "user", "admin", "admin")
	f.Add("accept", "", "a", ",")
	f.Fuzz(func(t *testing.T, name, a, b, needle string) {
		name = lowerASCII(name)
		if name == "" || name[0] == ':' || name == "host" || len(name) > 1000 || strings.ToLower(name) != name {
			return
		}
		h := head("GET", "h", "/", name, a, name, b)
		for kind, want := range map[StringKind]bool{
			StringExact: a == needle || b == needle, StringPrefix: strings.HasPrefix(a, needle) || strings.HasPrefix(b, needle),
			StringSuffix: strings.HasSuffix(a, needle) || strings.HasSuffix(b, needle), StringContains: strings.Contains(a, needle) || strings.Contains(b, needle),
		} {
			m := HeaderValueMatches(name, NewString(kind, needle, false), HeaderOptions{})
			if got := m.Match(h); got != want {
				t.Errorf("%q: %q and %q by kind %d with %q: %v", name, a, b, kind, needle, got)
			}
		}
	})
}
