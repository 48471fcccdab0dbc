package cors

import (
	"slices"
	"strings"
	"testing"

	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"sallyport/sidecar/filter/filtertest"
	"sallyport/sidecar/message"
)

func rig(t testing.TB, policy string) *filtertest.Rig {
	t.Helper()
	f, _ := filtertest.Compile(t, Kind, &corsv3.Cors{})
	if policy == "" {
		return filtertest.New(t, f, nil)
	}
	return filtertest.New(t, f, filtertest.CompileRoute(t, Kind, config(t, policy)))
}

func config(t testing.TB, policy string) *corsv3.CorsPolicy {
	t.Helper()
	m := &corsv3.CorsPolicy{}
	if err := protojson.Unmarshal([]byte(policy), m); err != nil {
		t.Fatal(err)
	}
	return m
}

const policyJSON = `"allow_origin_string_match":[{"exact":"https://shop"},{"suffix":".shop"}],"allow_methods":"GET, PUT","allow_headers":"x-a",
	"expose_headers":"x-b","max_age":"60","allow_credentials":true,"allow_private_network_access":true`

var preflight = []string{"access-control-request-method", "PUT"}

func TestPreflight(t *testing.T) {
	res := rig(t, "{"+policyJSON+"}").Do(t, "OPTIONS", "/", append(preflight, "origin", "https://shop", "access-control-request-private-network", "true")...)
	if res.Status != 200 || res.Passed() {
		t.Fatalf("%d %q", res.Status, res.Body)
	}
	for name, want := range map[string]string{
		"access-control-allow-origin": "https://shop", "access-control-allow-credentials": "true", "access-control-allow-methods": "GET, PUT",
		"access-control-allow-headers": "x-a", "access-control-max-age": "60", "access-control-allow-private-network": "true",
	} {
		if got := res.Header(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestRequests(t *testing.T) {
	for name, c := range map[string]struct {
		policy, method string
		headers        []string
		origin         string // access-control-allow-origin of the response
		passed         bool
	}{
		"no policy":                {"", "GET", []string{"origin", "https://shop"}, "", true},
		"no origin":                {"{" + policyJSON + "}", "GET", nil, "", true},
		"allowed origin":           {"{" + policyJSON + "}", "GET", []string{"origin", "https://shop"}, "https://shop", true},
		"allowed by suffix":        {"{" + policyJSON + "}", "GET", []string{"origin", "https://a.shop"}, "https://a.shop", true},
		"other origin":             {"{" + policyJSON + "}", "GET", []string{"origin", "https://evil"}, "", true},
		"other origin, preflight":  {"{" + policyJSON + "}", "OPTIONS", append(preflight, "origin", "https://evil"), "", true},
		"other origin, kept here":  {"{" + policyJSON + `,"forward_not_matching_preflights":false}`, "OPTIONS", append(preflight, "origin", "https://evil"), "", false},
		"OPTIONS, not a preflight": {"{" + policyJSON + "}", "OPTIONS", []string{"origin", "https://shop"}, "https://shop", true},
		"two origins":              {"{" + policyJSON + "}", "GET", []string{"origin", "https://shop", "origin", "https://evil"}, "", true},
		"two origins, any allowed": {`{"allow_origin_string_match":[{"exact":"*"}]}`, "GET", []string{"origin", "https://shop", "origin", "https://evil"}, "", true},
		"any origin":               {`{"allow_origin_string_match":[{"exact":"*"}]}`, "GET", []string{"origin", "https://x"}, "https://x", true},
		"disabled":                 {"{" + policyJSON + `,"filter_enabled":{"default_value":{}}}`, "GET", []string{"origin", "https://shop"}, "", true},
		"only counted":             {"{" + policyJSON + `,"filter_enabled":{"default_value":{}},"shadow_enabled":{"default_value":{"numerator":100}}}`, "OPTIONS", append(preflight, "origin", "https://shop"), "", true},
	} {
		t.Run(name, func(t *testing.T) {
			res := rig(t, c.policy).Do(t, c.method, "/", c.headers...)
			if res.Status != 200 || res.Passed() != c.passed || res.Header("access-control-allow-origin") != c.origin {
				t.Errorf("%d %q, origin %q", res.Status, res.Body, res.Header("access-control-allow-origin"))
			}
			if exposed := res.Header("access-control-expose-headers") != ""; exposed != (c.origin != "" && strings.Contains(c.policy, "expose")) {
				t.Errorf("expose: %v", exposed)
			}
		})
	}
}

func TestAllMethodsAndHeadersAreThoseAskedFor(t *testing.T) {
	const policy = `{"allow_origin_string_match":[{"exact":"https://shop"}],"allow_methods":"*","allow_headers":"*","allow_credentials":true}`
	for _, c := range []struct{ asked, methods, headers string }{
		{"", "PUT", ""}, {"x-a", "PUT", "x-a"}, {"x-a, x-b", "PUT", "x-a, x-b"},
	} {
		h := append(preflight, "origin", "https://shop")
		if c.asked != "" {
			h = append(h, "access-control-request-headers", c.asked)
		}
		res := rig(t, policy).Do(t, "OPTIONS", "/", h...)
		if m, x := res.Header("access-control-allow-methods"), res.Header("access-control-allow-headers"); m != c.methods || x != c.headers {
			t.Errorf("asked for %q: methods %q, headers %q", c.asked, m, x)
		}
	}
}

func TestVary(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines []string
		want  []string
	}{
		{"none", nil, []string{"origin"}},
		{"another", []string{"Accept"}, []string{"Accept, origin"}},
		{"two lines", []string{"Accept", "accept-encoding , cookie"}, []string{"Accept", "accept-encoding , cookie, origin"}},
		{"an empty one", []string{""}, []string{"origin"}},
		{"it is there", []string{"accept,ORIGIN , x"}, []string{"accept,ORIGIN , x"}},
		{"it is in the first line", []string{"Origin", "accept"}, []string{"Origin", "accept"}},
		{"everything", []string{"*"}, []string{"*"}},
		{"a longer name", []string{"x-origin"}, []string{"x-origin, origin"}},
		{"a long list", []string{strings.Repeat("accept, ", 100) + "a"}, []string{strings.Repeat("accept, ", 100) + "a, origin"}},
	} {
		var h message.Head
		for _, l := range c.lines {
			h.AddString("vary", l)
		}
		varyByOrigin(&h)
		var got []string
		for i := range h.Len() {
			_, v := h.At(i)
			got = append(got, string(v))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestEveryResponseThatDependsOnTheOriginSaysSo: also without an origin, and to one that is not allowed, or a cache gives them its answer for one that is.
func TestEveryResponseThatDependsOnTheOriginSaysSo(t *testing.T) {
	for name, c := range map[string]struct {
		policy, method string
		headers        []string
		want           string
	}{
		"allowed":            {"{" + policyJSON + "}", "GET", []string{"origin", "https://shop"}, "origin"},
		"not allowed":        {"{" + policyJSON + "}", "GET", []string{"origin", "https://evil"}, "origin"},
		"no origin":          {"{" + policyJSON + "}", "GET", nil, "origin"},
		"preflight":          {"{" + policyJSON + "}", "OPTIONS", append(preflight, "origin", "https://shop"), "origin"},
		"preflight, refused": {"{" + policyJSON + `,"forward_not_matching_preflights":false}`, "OPTIONS", append(preflight, "origin", "https://evil"), "origin"},
		"any origin":         {`{"allow_origin_string_match":[{"exact":"*"}]}`, "GET", []string{"origin", "https://x"}, "origin"},
		"no policy":          {"", "GET", []string{"origin", "https://shop"}, ""},
		"disabled":           {"{" + policyJSON + `,"filter_enabled":{"default_value":{}}}`, "GET", []string{"origin", "https://shop"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := rig(t, c.policy).Do(t, c.method, "/", c.headers...).Header("vary"); got != c.want {
				t.Errorf("vary: %q, want %q", got, c.want)
			}
		})
	}
}

// TestAReplyWhoseRequestTheFilterNeverSaw: a request that is refused before the filters is answered all the same.
func TestAReplyWhoseRequestTheFilterNeverSaw(t *testing.T) {
	res := rig(t, "{"+policyJSON+"}").Get(t, "/#", "origin", "https://shop")
	if res.Status != 400 || res.Header("access-control-allow-origin") != "" || res.Header("vary") != "" {
		t.Errorf("%d, origin %q, vary %q", res.Status, res.Header("access-control-allow-origin"), res.Header("vary"))
	}
}

func TestARequestAllocatesNothing(t *testing.T) {
	f, _ := filtertest.Compile(t, Kind, &corsv3.Cors{})
	o := filtertest.CompileRoute(t, Kind, config(t, "{"+policyJSON+"}"))
	for name, headers := range map[string][]string{"allowed": {"origin", "https://shop"}, "not allowed": {"origin", "https://evil"}, "no origin": nil} {
		if n := filtertest.Extra(t, f, o, "GET", "/", headers...); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkResponse(b *testing.B) {
	p := filtertest.CompileRoute(b, Kind, config(b, "{"+policyJSON+"}")).(*policy)
	var h message.Head
	b.ReportAllocs()
	for b.Loop() {
		h.Reset()
		h.AddNameString(message.Vary, "accept-encoding")
		p.shared.apply(&h, []byte("https://shop"))
	}
}

func TestRefused(t *testing.T) {
	c := filtertest.Compiler()
	Kind.CompileRoute(c, filtertest.Any(t, config(t, `{"allow_methods":"GET\r\nx: y","allow_origin_string_match":[{"safe_regex":{"regex":"("}}]}`)))
	for _, want := range []string{"control character", "allow_origin_string_match[0].safe_regex: regular expression"} {
		if err := c.Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
