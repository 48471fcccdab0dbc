package cors

import (
	"strings"
	"testing"

	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"sallyport/sidecar/filter/filtertest"
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

func TestRefused(t *testing.T) {
	c := filtertest.Compiler()
	Kind.CompileRoute(c, filtertest.Any(t, config(t, `{"allow_methods":"GET\r\nx: y","allow_origin_string_match":[{"safe_regex":{"regex":"("}}]}`)))
	for _, want := range []string{"control character", "allow_origin_string_match[0].safe_regex: regular expression"} {
		if err := c.Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
