package jwtauthn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/encoding/protojson"

	"sallyport/sidecar/filter/filtertest"
	"sallyport/sidecar/offload"
)

// forged is a token whose signature is another's.
func forged(t testing.TB, alg jose.SignatureAlgorithm, key string) string {
	t.Helper()
	good, other := sign(t, alg, key, claims()), sign(t, alg, key, claims("sub", "mallory"))
	return good[:strings.LastIndexByte(good, '.')] + other[strings.LastIndexByte(other, '.'):]
}

func from(address, token string) []string {
	return append(bearer(token), "x-forwarded-for", address)
}

// TestAFloodOfBadTokensDoesNotDelayOthers: one client sends tokens that take long to verify, and resets
// the requests, or does not. The request of another one waits for two of them.
func TestAFloodOfBadTokensDoesNotDelayOthers(t *testing.T) {
	r := rig(t, config(t, "", ""), nil)
	q := offload.Of(r.Worker)
	bad := from("10.0.0.1", forged(t, jose.ES512, "p521"))
	for range 16_000 {
		r.Send("GET", "/", bad...).Reset()
		if n := q.Waiting(); n > 0 {
			t.Fatalf("%d verifications wait for requests that were reset", n)
		}
	}
	var flood []*filtertest.Exchange
	for range 200 {
		flood = append(flood, r.Send("GET", "/", bad...))
	}
	if n := q.Waiting(); n > offload.MaxShare {
		t.Errorf("%d verifications of one client wait", n)
	}
	outcomes := func() (n map[int]int) {
		n = map[int]int{}
		for _, e := range flood {
			if e.Done() {
				n[e.Wait(t).Status]++
			}
		}
		return n
	}
	before := outcomes()
	if before[503] < 200-offload.MaxShare-10 {
		t.Errorf("refused for too much that waits: %v", before)
	}
	good := r.Send("GET", "/", from("10.0.0.2", sign(t, jose.ES512, "p521", claims()))...)
	if res := good.Wait(t); !res.Passed() {
		t.Errorf("the good token: %d %q", res.Status, res.Body)
	}
	if after := outcomes(); after[401]-before[401] > 3 {
		t.Errorf("it waited for %d verifications", after[401]-before[401])
	}
	for _, e := range flood {
		if res := e.Wait(t); res.Status != 401 && res.Status != 503 {
			t.Fatalf("a forged token: %d", res.Status)
		}
	}
}

// manyKeys is a provider with n keys of the same curve, of which the last is the signer's, and the signer.
func manyKeys(t testing.TB, curve elliptic.Curve, n int, kid string) (*jwtv3.JwtAuthentication, *ecdsa.PrivateKey) {
	t.Helper()
	set := jose.JSONWebKeySet{}
	var last *ecdsa.PrivateKey
	for i := range n {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Public(), KeyID: fmt.Sprint(kid, i)})
		last = k
	}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	quoted, _ := json.Marshal(string(b))
	m := &jwtv3.JwtAuthentication{}
	if err := protojson.Unmarshal([]byte(`{"providers":{"p":{"local_jwks":{"inline_string":`+string(quoted)+`}}},"rules":[{"match":{"prefix":"/"},"requires":{"provider_name":"p"}}]}`), m); err != nil {
		t.Fatal(err)
	}
	return m, last
}

func signWith(t testing.TB, alg jose.SignatureAlgorithm, k *ecdsa.PrivateKey, kid string, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: k, KeyID: kid}}, nil)
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

// TestATokenThatNamesNoKeyIsTriedAgainstSome: and what that costs is not the worker's.
func TestATokenThatNamesNoKeyIsTriedAgainstSome(t *testing.T) {
	for name, c := range map[string]struct {
		curve   elliptic.Curve
		alg     jose.SignatureAlgorithm
		keys    int
		kid     string // of the token
		pass    bool
		offload bool
		warning bool
	}{
		"one key":                          {elliptic.P256(), jose.ES256, 1, "", true, false, false},
		"three keys":                       {elliptic.P256(), jose.ES256, 3, "", true, true, false},
		"three keys, one named":            {elliptic.P256(), jose.ES256, 3, "k2", true, false, false},
		"eight slow keys":                  {elliptic.P521(), jose.ES512, 8, "", true, true, false},
		"more slow keys than are tried":    {elliptic.P521(), jose.ES512, 9, "", false, true, true},
		"more slow keys, and one is named": {elliptic.P521(), jose.ES512, 9, "k8", true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			m, signer := manyKeys(t, c.curve, c.keys, "k")
			comp := filtertest.Compiler()
			f := Kind.Compile(comp, filtertest.Any(t, m)).(*Filter)
			if err := comp.Err(); err != nil {
				t.Fatal(err)
			}
			if warned := len(comp.Warnings) > 0; warned != c.warning {
				t.Errorf("warnings: %v", comp.Warnings)
			}
			h := bearer(signWith(t, c.alg, signer, c.kid, claims()))
			e := &evaluation{}
			e.begin(filtertest.Head("GET", "/", h...), time.Unix(now, 0))
			if st := f.rules[0].needs.evaluate(e); (st == pending) != c.offload {
				t.Errorf("on the worker: %s", texts[st])
			}
			if res := filtertest.New(t, f, nil).Get(t, "/", h...); res.Passed() != c.pass || !c.pass && res.Body != texts[verificationFailed] {
				t.Errorf("%d %q", res.Status, res.Body)
			}
		})
	}
}

// TestWhatALongTokenCostsIsNotTheWorkers: neither parsing it nor its signature, and each once.
func TestWhatALongTokenCostsIsNotTheWorkers(t *testing.T) {
	for name, c := range map[string]struct {
		claims []any
		status int
		body   string
	}{
		"good":                 {nil, 200, "passed"},
		"of another issuer":    {[]any{"iss", "https://other"}, 401, texts[unknownIssuer]},
		"that has expired":     {[]any{"exp", 1}, 401, texts[expired]},
		"with a strange claim": {[]any{"sub", 1}, 401, texts[badSub]},
	} {
		t.Run(name, func(t *testing.T) {
			long := sign(t, jose.RS256, "rsa", claims(append(c.claims, "x", strings.Repeat("x", maxQuick))...))
			f, _ := filtertest.Compile(t, Kind, config(t, "", ""))
			e := &evaluation{}
			e.begin(filtertest.Head("GET", "/", bearer(long)...), time.Unix(now, 0))
			if st := f.(*Filter).rules[0].needs.evaluate(e); st != pending || len(e.parsed) != 0 {
				t.Errorf("on the worker: %s", texts[st])
			}
			if res := filtertest.New(t, f, nil).Get(t, "/", bearer(long)...); res.Status != c.status || res.Body != c.body {
				t.Errorf("%d %q", res.Status, res.Body)
			}
		})
	}
}

// TestATokenIsWorkOnceForAllProvidersThatLookAtIt counts what is left to a goroutine, and what is parsed.
func TestATokenIsWorkOnceForAllProvidersThatLookAtIt(t *testing.T) {
	set, _ := json.Marshal(jwks(t, "p384", "rsa"))
	var list, any []string
	for i := range 50 {
		list = append(list, fmt.Sprintf(`"p%d":{"issuer":"https://issuer%d","local_jwks":{"inline_string":%s}}`, i, i, set))
		any = append(any, fmt.Sprintf(`{"provider_name":"p%d"}`, i))
	}
	for _, requires := range []string{`{"allow_missing":{}}`, `{"requires_any":{"requirements":[` + strings.Join(any, ",") + `]}}`} {
		m := &jwtv3.JwtAuthentication{}
		if err := protojson.Unmarshal([]byte(`{"providers":{`+strings.Join(list, ",")+`},"rules":[{"match":{"prefix":"/"},"requires":`+requires+`}]}`), m); err != nil {
			t.Fatal(err)
		}
		f, _ := filtertest.Compile(t, Kind, m)
		evaluate := func(token string) *evaluation {
			e := &evaluation{}
			e.begin(filtertest.Head("GET", "/", bearer(token)...), time.Unix(now, 0))
			if st := f.(*Filter).rules[0].needs.evaluate(e); st != pending {
				t.Errorf("on the worker: %s", texts[st])
			}
			return e
		}
		if e := evaluate(sign(t, jose.ES384, "p384", claims("iss", "https://issuer7"))); len(e.parsed) != 1 || len(e.waiting) != 1 || e.waiting[0].provider.name != "p7" {
			t.Errorf("a slow token: parsed %d times, verified %d times", len(e.parsed), len(e.waiting))
		}
		e := evaluate(sign(t, jose.RS256, "rsa", claims("iss", "https://issuer7", "x", strings.Repeat("x", maxQuick))))
		find(e.waiting)
		good := 0
		for i := range e.waiting {
			v := &e.waiting[i]
			if v.token != e.waiting[0].token {
				t.Fatal("a long token is parsed for each provider")
			}
			if v.status == ok {
				good++
			}
		}
		if good != 1 {
			t.Errorf("a long token is good for %d providers", good)
		}
	}
}

func TestARuleThatWouldTakeTooLongToMatchRefuses(t *testing.T) {
	m := config(t, "", `"rules":[{"match":{"safe_regex":{"regex":"/(a|b)*a(a|b){20}"}},"requires":{"provider_name":"p"}}]`)
	r := rig(t, m, nil)
	if res := r.Get(t, "/"+strings.Repeat("ab", 25<<10)); res.Status != 414 {
		t.Errorf("a path that is too long: %d %q", res.Status, res.Body)
	}
	if !r.Get(t, "/ab").Passed() {
		t.Error("a short path that the rule does not match")
	}
}
