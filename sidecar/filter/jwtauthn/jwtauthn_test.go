package jwtauthn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/encoding/protojson"

	"sallyport/sidecar/filter/filtertest"
)

// keyring are the keys of the tests, made once.
var keyring = sync.OnceValue(func() map[string]any {
	m := map[string]any{}
	must := func(k any, err error) any {
		if err != nil {
			panic(err)
		}
		return k
	}
	m["rsa"] = must(rsa.GenerateKey(rand.Reader, 2048))
	m["p256"] = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	m["p384"] = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	m["p521"] = must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	m["ed"] = must(ed, err)
	m["hmac"] = []byte(strings.Repeat("0123456789abcdef", 4))
	return m
})

func public(k any) any {
	if s, is := k.(crypto.Signer); is {
		return s.Public()
	}
	return k
}

// jwks is a key set of the named keys, with their names as kid.
func jwks(t testing.TB, names ...string) string {
	t.Helper()
	set := jose.JSONWebKeySet{}
	for _, n := range names {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: public(keyring()[n]), KeyID: n})
	}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// now is the time in a rig.
const now = 1_700_000_000

func claims(change ...any) map[string]any {
	m := map[string]any{"iss": "https://issuer", "sub": "alice", "aud": "orders", "exp": now + 300}
	for i := 0; i+1 < len(change); i += 2 {
		if change[i+1] == nil {
			delete(m, change[i].(string))
		} else {
			m[change[i].(string)] = change[i+1]
		}
	}
	return m
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, keyName string, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: keyring()[keyName], KeyID: keyName}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	obj, err := s.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := obj.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// config is a filter with the provider "p", which has all keys, changed by JSON that is merged in.
func config(t testing.TB, provider, rest string) *jwtv3.JwtAuthentication {
	t.Helper()
	if provider != "" {
		provider = "," + provider
	}
	if rest == "" {
		rest = `"rules":[{"match":{"prefix":"/"},"requires":{"provider_name":"p"}}]`
	}
	set, _ := json.Marshal(jwks(t, "rsa", "p256", "p384", "p521", "ed", "hmac"))
	text := `{"providers":{"p":{"issuer":"https://issuer","local_jwks":{"inline_string":` + string(set) + `}` + provider + `}},` + rest + `}`
	m := &jwtv3.JwtAuthentication{}
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return m
}

func rig(t testing.TB, m *jwtv3.JwtAuthentication, override any) *filtertest.Rig {
	t.Helper()
	f, _ := filtertest.Compile(t, Kind, m)
	return filtertest.New(t, f, override)
}

func bearer(token string) []string { return []string{"authorization", "Bearer " + token} }

func TestTokens(t *testing.T) {
	good := sign(t, jose.RS256, "rsa", claims())
	parts := strings.Split(good, ".")
	enc := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	// The public key as it might be taken for an HMAC secret.
	der, err := x509.MarshalPKIXPublicKey(public(keyring()["rsa"]))
	if err != nil {
		t.Fatal(err)
	}
	confused, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: der}, (&jose.SignerOptions{}).WithHeader("kid", "rsa"))
	if err != nil {
		t.Fatal(err)
	}
	obj, err := confused.Sign([]byte(`{"iss":"https://issuer","aud":"orders"}`))
	if err != nil {
		t.Fatal(err)
	}
	confusion, _ := obj.CompactSerialize()
	for name, c := range map[string]struct {
		provider string
		headers  []string
		status   int
		body     string
	}{
		"RS256":                              {"", bearer(good), 200, "passed"},
		"PS384":                              {"", bearer(sign(t, jose.PS384, "rsa", claims())), 200, "passed"},
		"ES256":                              {"", bearer(sign(t, jose.ES256, "p256", claims())), 200, "passed"},
		"ES384, off the worker":              {"", bearer(sign(t, jose.ES384, "p384", claims())), 200, "passed"},
		"EdDSA":                              {"", bearer(sign(t, jose.EdDSA, "ed", claims())), 200, "passed"},
		"HS256 with a secret":                {"", bearer(sign(t, jose.HS256, "hmac", claims())), 200, "passed"},
		"missing":                            {"", nil, 401, "Jwt is missing"},
		"other scheme":                       {"", []string{"authorization", "Basic eDp5"}, 401, "Jwt is missing"},
		"expired":                            {"", bearer(sign(t, jose.RS256, "rsa", claims("exp", now-61))), 401, "Jwt is expired"},
		"expired within the skew":            {"", bearer(sign(t, jose.RS256, "rsa", claims("exp", now-59))), 200, "passed"},
		"own skew":                           {`"clock_skew_seconds":5`, bearer(sign(t, jose.RS256, "rsa", claims("exp", now-59))), 401, "Jwt is expired"},
		"not yet":                            {"", bearer(sign(t, jose.RS256, "rsa", claims("nbf", now+61))), 401, "Jwt not yet valid"},
		"no exp":                             {"", bearer(sign(t, jose.RS256, "rsa", claims("exp", nil))), 200, "passed"},
		"no exp, though required":            {`"require_expiration":true`, bearer(sign(t, jose.RS256, "rsa", claims("exp", nil))), 401, "Jwt verification fails"},
		"lives too long":                     {`"max_lifetime":"60s"`, bearer(good), 401, "Jwt verification fails"},
		"other subject":                      {`"subjects":{"prefix":"spiffe://"}`, bearer(good), 401, "Jwt verification fails"},
		"other issuer":                       {"", bearer(sign(t, jose.RS256, "rsa", claims("iss", "https://evil"))), 401, "Jwt issuer is not configured"},
		"no issuer":                          {"", bearer(sign(t, jose.RS256, "rsa", claims("iss", nil))), 401, "Jwt issuer is not configured"},
		"audience":                           {`"audiences":["https://orders/"]`, bearer(good), 200, "passed"},
		"other audience":                     {`"audiences":["payments"]`, bearer(good), 403, "Audiences in Jwt are not allowed"},
		"no audience":                        {`"audiences":["payments"]`, bearer(sign(t, jose.RS256, "rsa", claims("aud", nil))), 403, "Audiences in Jwt are not allowed"},
		"several audiences":                  {`"audiences":["payments"]`, bearer(sign(t, jose.RS256, "rsa", claims("aud", []string{"orders", "payments"}))), 200, "passed"},
		"forged signature":                   {"", bearer(parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2]))), 401, "Jwt verification fails"},
		"forged payload":                     {"", bearer(parts[0] + "." + enc(`{"iss":"https://issuer","sub":"root"}`) + "." + parts[2]), 401, "Jwt verification fails"},
		"no signature":                       {"", bearer(parts[0] + "." + parts[1] + "."), 401, "Jwt verification fails"},
		"alg none":                           {"", bearer(enc(`{"alg":"none"}`) + "." + parts[1] + "."), 401, "Jwt header [alg] is not supported"},
		"alg nONE":                           {"", bearer(enc(`{"alg":"nONE"}`) + "." + parts[1] + "."), 401, "Jwt header [alg] is not supported"},
		"no alg":                             {"", bearer(enc(`{"typ":"JWT"}`) + "." + parts[1] + "." + parts[2]), 401, "Jwt header [alg] field is required and must be a string"},
		"RSA key taken for a secret":         {"", bearer(confusion), 401, "Jwt doesn't"},
		"unknown kid":                        {"", bearer(enc(`{"alg":"RS256","kid":"other"}`) + "." + parts[1] + "." + parts[2]), 401, "Jwks doesn't have key to match kid or alg from Jwt"},
		"kid is a number":                    {"", bearer(enc(`{"alg":"RS256","kid":1}`) + "." + parts[1] + "." + parts[2]), 401, "Jwt header [kid] field is not a string"},
		"critical extension":                 {"", bearer(enc(`{"alg":"RS256","crit":["b64"],"b64":false}`) + "." + parts[1] + "." + parts[2]), 401, "Jwt verification fails"},
		"two sections":                       {"", bearer("a.b"), 401, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"},
		"header is not base64":               {"", bearer("a." + parts[1] + "." + parts[2]), 401, "Jwt header is an invalid Base64url encoded"},
		"header is not JSON":                 {"", bearer(enc("{") + "." + parts[1] + "." + parts[2]), 401, "Jwt header is an invalid JSON"},
		"payload is not JSON":                {"", bearer(parts[0] + "." + enc("[]") + "." + parts[2]), 401, "Jwt payload is an invalid JSON"},
		"exp is a string":                    {"", bearer(sign(t, jose.RS256, "rsa", claims("exp", "soon"))), 401, "Jwt payload [exp] field is not an integer"},
		"exp is negative":                    {"", bearer(sign(t, jose.RS256, "rsa", claims("exp", -1))), 401, "Jwt payload [exp] field is not a positive 64 bit integer"},
		"exp is enormous":                    {"", bearer(sign(t, jose.RS256, "rsa", claims("exp", json.Number("9223372036854775807")))), 200, "passed"},
		"second line of Authorization":       {"", []string{"authorization", "Bearer " + good, "authorization", "Bearer x.y.z"}, 401, texts[badForm]},
		"second line before it":              {"", []string{"authorization", "Bearer x.y.z", "authorization", "Bearer " + good}, 401, texts[badForm]},
		"second line of another scheme":      {"", []string{"authorization", "Basic eDp5", "authorization", "Bearer " + good}, 401, texts[badForm]},
		"second line with the same token":    {"", []string{"authorization", "Bearer " + good, "authorization", "Bearer " + good}, 401, texts[badForm]},
		"two lines of another scheme":        {"", []string{"authorization", "Basic eDp5", "authorization", "Basic eDp5"}, 401, texts[missing]},
		"two tokens in a line":               {"", bearer(good + ", Bearer x.y.z"), 401, texts[badForm]},
		"more behind the token":              {"", bearer(good + " x"), 401, texts[badSignatureBase64]},
		"token in quotes":                    {"", bearer(`"` + good + `"`), 401, texts[badSignatureBase64]},
		"scheme in small letters":            {"", []string{"authorization", "bearer " + good}, 200, "passed"},
		"scheme in capital letters":          {"", []string{"authorization", "BEARER " + good}, 200, "passed"},
		"scheme and two blanks":              {"", []string{"authorization", "bearer  " + good}, 200, "passed"},
		"scheme and a tab":                   {"", []string{"authorization", "bearer\t" + good}, 200, "passed"},
		"scheme in small letters, bad token": {"", []string{"authorization", "bearer x.y.z"}, 401, texts[badHeaderBase64]},
		"scheme alone":                       {"", []string{"authorization", "Bearer"}, 401, texts[missing]},
	} {
		t.Run(name, func(t *testing.T) {
			r := rig(t, config(t, c.provider, ""), nil)
			if name == "RSA key taken for a secret" {
				c.body = texts[noKey]
			}
			for _, round := range []string{"first", "second, from the cache"} {
				res := r.Get(t, "/x?y", c.headers...)
				if res.Status != c.status || res.Body != c.body {
					t.Fatalf("%s: %d %q, want %d %q", round, res.Status, res.Body, c.status, c.body)
				}
				if c.status == 200 {
					if res.Request.Lookup("authorization") != nil {
						t.Error("the token was not removed")
					}
					continue
				}
				want := `Bearer realm="http://example.com/x?y"`
				if c.body != texts[missing] {
					want += `, error="invalid_token"`
				}
				if got := res.Header("www-authenticate"); got != want {
					t.Errorf("challenge %s, want %s", got, want)
				}
				if want := "jwt_authn_access_denied{" + strings.ReplaceAll(c.body, " ", "_") + "}"; res.Details != want {
					t.Errorf("details %q, want %q", res.Details, want)
				}
			}
		})
	}
}

func TestACachedTokenExpires(t *testing.T) {
	r := rig(t, config(t, "", ""), nil)
	h := bearer(sign(t, jose.RS256, "rsa", claims()))
	if !r.Get(t, "/", h...).Passed() {
		t.Fatal("refused")
	}
	r.Clock = r.Clock.Add(361 * time.Second)
	if res := r.Get(t, "/", h...); res.Body != "Jwt is expired" {
		t.Errorf("after its end: %d %q", res.Status, res.Body)
	}
}

func TestRequirements(t *testing.T) {
	set, _ := json.Marshal(jwks(t, "rsa", "p384"))
	two := func(requires string) *jwtv3.JwtAuthentication {
		m := &jwtv3.JwtAuthentication{}
		text := `{"providers":{
			"a":{"issuer":"a","local_jwks":{"inline_string":` + string(set) + `},"claim_to_headers":[{"header_name":"x-sub","claim_name":"sub"}]},
			"b":{"issuer":"b","from_headers":[{"name":"x-b"}],"local_jwks":{"inline_string":` + string(set) + `}},
			"c":{"issuer":"c","local_jwks":{"inline_string":` + string(set) + `}}},
			"rules":[{"match":{"prefix":"/"},"requires":` + requires + `}]}`
		if err := protojson.Unmarshal([]byte(text), m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	a := bearer(sign(t, jose.RS256, "rsa", claims("iss", "a")))
	slowA := bearer(sign(t, jose.ES384, "p384", claims("iss", "a")))
	b := []string{"x-b", sign(t, jose.ES384, "p384", claims("iss", "b"))}
	cToken := bearer(sign(t, jose.RS256, "rsa", claims("iss", "c")))
	bad := bearer("x.y.z")
	const anyAB = `{"requires_any":{"requirements":[{"provider_name":"a"},{"provider_name":"b"}]}}`
	const allAB = `{"requires_all":{"requirements":[{"provider_name":"a"},{"provider_name":"b"}]}}`
	const aOrNone = `{"requires_any":{"requirements":[{"allow_missing":{}},{"provider_name":"a"}]}}`
	join := func(l ...[]string) (all []string) {
		for _, h := range l {
			all = append(all, h...)
		}
		return all
	}
	for name, c := range map[string]struct {
		requires string
		headers  []string
		status   int
	}{
		"any, first":                            {anyAB, a, 200},
		"any, second, off the worker":           {anyAB, b, 200},
		"any, none":                             {anyAB, nil, 401},
		"any, bad":                              {anyAB, bad, 401},
		"all, both":                             {allAB, join(a, b), 200},
		"all, both off the worker":              {allAB, join(slowA, b), 200},
		"all, one":                              {allAB, a, 401},
		"missing allowed, missing":              {`{"allow_missing":{}}`, nil, 200},
		"missing allowed, good":                 {`{"allow_missing":{}}`, cToken, 200},
		"missing allowed, bad":                  {`{"allow_missing":{}}`, bad, 401},
		"missing allowed, good and bad":         {`{"allow_missing":{}}`, join(a, []string{"x-b", "x.y.z"}), 401},
		"missing allowed, bad in small letters": {`{"allow_missing":{}}`, []string{"authorization", "bearer x.y.z"}, 401},
		"missing allowed, another scheme":       {`{"allow_missing":{}}`, []string{"authorization", "Basic eDp5"}, 200},
		"failed allowed, bad":                   {`{"allow_missing_or_failed":{}}`, bad, 200},
		"a or none, none":                       {aOrNone, nil, 200},
		"a or none, a":                          {aOrNone, a, 200},
		"a or none, off the worker":             {aOrNone, slowA, 200},
		"a or none, bad":                        {aOrNone, bad, 401},
		"a or none, one of another issuer":      {aOrNone, cToken, 401},
		"audiences of the rule":                 {`{"provider_and_audiences":{"provider_name":"a","audiences":["orders"]}}`, a, 200},
		"audiences of the rule, other":          {`{"provider_and_audiences":{"provider_name":"a","audiences":["x"]}}`, a, 403},
	} {
		t.Run(name, func(t *testing.T) {
			res := rig(t, two(c.requires), nil).Get(t, "/", join(c.headers, []string{"x-sub", "forged"})...)
			if res.Status != c.status {
				t.Errorf("%d %q, want %d", res.Status, res.Body, c.status)
			}
			if v := string(res.Request.Lookup("x-sub")); v != "" && v != "alice" {
				t.Errorf("a forged header got through: %q", v)
			}
		})
	}
}

func TestClaimsGoToTheRequest(t *testing.T) {
	r := rig(t, config(t, `"forward":true,"forward_payload_header":"X-Payload","pad_forward_payload_header":true,"payload_in_metadata":"jwt",
		"claim_to_headers":[{"header_name":"X-Sub","claim_name":"sub"},{"header_name":"x-nested","claim_name":"n.k"},
			{"header_name":"x-dotted","claim_path":[{"key":"a.b"}]},{"header_name":"x-list","claim_name":"list"},{"header_name":"x-evil","claim_name":"evil"}]`, ""), nil)
	token := sign(t, jose.RS256, "rsa", claims("n", map[string]any{"k": 42}, "a.b", true, "list", []int{1}, "evil", "a\r\nx-admin: 1"))
	res := r.Get(t, "/", append(bearer(token), "x-evil", "forged", "x-payload", "forged")...)
	if !res.Passed() {
		t.Fatal(res.Body)
	}
	for name, want := range map[string]string{"x-sub": "alice", "x-nested": "42", "x-dotted": "true", "x-list": "WzFd", "x-evil": "", "authorization": "Bearer " + token} {
		if got := string(res.Request.Lookup(name)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	payload, err := base64.URLEncoding.DecodeString(string(res.Request.Lookup("x-payload")))
	if err != nil || !strings.Contains(string(payload), `"sub":"alice"`) {
		t.Errorf("payload %q: %v", payload, err)
	}
	if m, is := res.Metadata[namespace+" jwt"].(map[string]any); !is || m["sub"] != "alice" {
		t.Errorf("metadata: %v", res.Metadata)
	}
}

func TestRoutes(t *testing.T) {
	m := config(t, "", `"requirement_map":{"strict":{"provider_name":"p"}},"rules":[{"match":{"path":"/open"}},{"match":{"prefix":"/"},"requirement_name":"strict"}],"bypass_cors_preflight":true`)
	r := rig(t, m, nil)
	if !r.Get(t, "/open").Passed() || r.Get(t, "/closed").Status != 401 {
		t.Error("the first rule that matches is not the one in force")
	}
	if r.Get(t, "/open/").Passed() {
		t.Error("a rule for a path took another")
	}
	if !r.Do(t, "OPTIONS", "/closed", "origin", "https://x", "access-control-request-method", "GET").Passed() {
		t.Error("a preflight was stopped")
	}
	if r.Do(t, "OPTIONS", "/closed", "origin", "https://x").Passed() {
		t.Error("an OPTIONS request that is no preflight passed")
	}
	o := filtertest.CompileRoute(t, Kind, &jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_Disabled{Disabled: true}})
	if !rig(t, m, o).Get(t, "/closed").Passed() {
		t.Error("a route that disables the filter needs a token")
	}
	o = filtertest.CompileRoute(t, Kind, &jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_RequirementName{RequirementName: "strict"}})
	if rig(t, m, o).Get(t, "/open").Status != 401 {
		t.Error("the route's requirement is not in force")
	}
	o = filtertest.CompileRoute(t, Kind, &jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_RequirementName{RequirementName: "nonesuch"}})
	if res := rig(t, m, o).Get(t, "/open"); res.Status != 403 || !strings.Contains(res.Body, "Wrong requirement_name: nonesuch. It should be one of [strict]") {
		t.Errorf("a requirement that is not there: %d %q", res.Status, res.Body)
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*jwtv3.JwtAuthentication)
		want   string
	}{
		"remote keys": {func(m *jwtv3.JwtAuthentication) {
			p := &jwtv3.JwtProvider{}
			if err := protojson.Unmarshal([]byte(`{"remote_jwks":{"http_uri":{"uri":"https://x","cluster":"c","timeout":"1s"}}}`), p); err != nil {
				t.Fatal(err)
			}
			m.Providers["p"].JwksSourceSpecifier = p.JwksSourceSpecifier
		}, "remote_jwks: not implemented"},
		"no keys": {func(m *jwtv3.JwtAuthentication) { m.Providers["p"].GetLocalJwks().Specifier = nil }, "local_jwks"},
		"unknown provider": {func(m *jwtv3.JwtAuthentication) {
			m.Rules[0].GetRequires().RequiresType = &jwtv3.JwtRequirement_ProviderName{ProviderName: "q"}
		}, `rules[0].requires.provider_name: "q" is not a provider; known: p`},
		"extract only": {func(m *jwtv3.JwtAuthentication) {
			m.Rules[0].GetRequires().RequiresType = &jwtv3.JwtRequirement_ExtractOnlyWithoutValidation{}
		}, "extract_only_without_validation"},
		"fraction": {func(m *jwtv3.JwtAuthentication) {
			if err := protojson.Unmarshal([]byte(`{"prefix":"/","runtime_fraction":{"default_value":{"numerator":1}}}`), m.Rules[0].Match); err != nil {
				t.Fatal(err)
			}
		}, "runtime_fraction"},
		"filter state": {func(m *jwtv3.JwtAuthentication) { m.FilterStateRules = &jwtv3.FilterStateRule{Name: "x"} }, "filter_state_rules: not implemented"},
	} {
		t.Run(name, func(t *testing.T) {
			m := config(t, "", "")
			c.change(m)
			if err := filtertest.CompileError(t, Kind, m); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	for set, want := range map[string]string{
		`{`:                                      "not valid JSON",
		`{}`:                                     `no "keys"`,
		`{"keys":[]}`:                            "no key that can verify",
		`{"keys":[{"kty":"oct","k":"c2hvcnQ"}]}`: "the secret has 5 bytes",
		`{"keys":[{"kty":"RSA","alg":"HS256","n":"AQ","e":"AQAB"}]}`: "key 0 of the JWKS",
		`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`:    "key 0 of the JWKS",
		`{"keys":[{"kty":"secp256k1"}]}`:                             "no key that can verify",
	} {
		if _, err := parseKeys([]byte(set), func(string) {}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", set, err, want)
		}
	}
}

func TestAPrivateKeyInAJWKSIsOnlyUsedForItsPublicHalf(t *testing.T) {
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: keyring()["rsa"], KeyID: "rsa"}}})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := parseKeys(b, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if _, is := keys[0].public.(*rsa.PublicKey); !is {
		t.Errorf("kept %T", keys[0].public)
	}
}

// FuzzToken asserts that no change of a token passes.
func FuzzToken(f *testing.F) {
	good := sign(f, jose.ES256, "p256", claims())
	f.Add(good)
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJub25lIn0..")
	keys, err := parseKeys([]byte(jwks(f, "p256", "rsa")), func(string) {})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		tok, st := parse(raw)
		if st != ok {
			return
		}
		if verify(keys, tok) == ok && raw != good {
			t.Errorf("%q passes", raw)
		}
	})
}

// cached calls use with the requirement of m's first rule and a head whose tokens were verified already.
func cached(b testing.TB, m *jwtv3.JwtAuthentication, headers []string, use func(func())) {
	b.Helper()
	f, _ := filtertest.Compile(b, Kind, m)
	need := f.(*Filter).rules[0].needs
	h := filtertest.Head("GET", "/x?a=b&access%5Ftokens=c", headers...)
	e := &evaluation{}
	evaluate := func() {
		e.begin(h, time.Unix(now, 0))
		if st := need.evaluate(e); st != ok {
			b.Fatal(texts[st])
		}
	}
	evaluate()
	use(evaluate)
}

func BenchmarkCachedToken(b *testing.B) {
	cached(b, config(b, "", ""), bearer(sign(b, jose.RS256, "rsa", claims())), func(evaluate func()) {
		b.ReportAllocs()
		for b.Loop() {
			evaluate()
		}
	})
}

func TestACachedTokenAllocatesNothing(t *testing.T) {
	token := sign(t, jose.RS256, "rsa", claims())
	const places = `"from_headers":[{"name":"x-token"}],"from_params":["t"],"from_cookies":["c"]`
	for name, c := range map[string]struct {
		m       *jwtv3.JwtAuthentication
		headers []string
	}{
		"required":      {config(t, "", ""), bearer(token)},
		"optional":      {config(t, "", `"rules":[{"match":{"prefix":"/"},"requires":{"allow_missing":{}}}]`), bearer(token)},
		"in every line": {config(t, places, ""), []string{"x-token", token, "x-token", token, "cookie", "a=b", "cookie", "c=" + token}},
	} {
		cached(t, c.m, c.headers, func(evaluate func()) {
			if n := testing.AllocsPerRun(100, evaluate); n != 0 {
				t.Errorf("%s: %v allocations", name, n)
			}
		})
	}
}

func TestARequestWithACachedTokenAllocatesNothing(t *testing.T) {
	f, _ := filtertest.Compile(t, Kind, config(t, `"claim_to_headers":[{"header_name":"x-sub","claim_name":"sub"}],"forward_payload_header":"x-payload","payload_in_metadata":"jwt"`, ""))
	if n := filtertest.Extra(t, f, nil, "GET", "/", bearer(sign(t, jose.RS256, "rsa", claims()))...); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkVerify(b *testing.B) {
	keys, err := parseKeys([]byte(jwks(b, "rsa", "p256", "p384", "p521", "ed", "hmac")), func(string) {})
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		alg jose.SignatureAlgorithm
		key string
	}{{jose.RS256, "rsa"}, {jose.ES256, "p256"}, {jose.ES384, "p384"}, {jose.ES512, "p521"}, {jose.EdDSA, "ed"}, {jose.HS256, "hmac"}} {
		raw := sign(b, c.alg, c.key, claims())
		b.Run(string(c.alg), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				t, st := parse(raw)
				if st != ok || verify(keys, t) != ok {
					b.Fatal("refused")
				}
			}
		})
	}
}
