package jwtauthn

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// differs are the tests whose result is another one here, and why.
var differs = map[string]map[int]string{
	"json_web_signature_test.json": {
		346: "the key is for PS256 and the token of PS384 (RFC 7517 §4.4)",
		350: "as 346",
		347: "the key's alg is ES521, which there is not",
		351: "as 347",
		367: "the token is the valid one: the padding that is meant is not in it",
		370: "as 367",
		372: "RFC 7515 §2: base64url has no other characters",
		373: "as 372",
	},
	"json_web_key_test.json": {
		1: "a set may have keys of both kinds: an algorithm is only ever used with a key of its kind",
		4: "RFC 7517 §4.5 lets keys share a kid",
		7: "keys come from the operator; they are not searched for weak primes",
	},
}

// TestWycheproof runs the vectors of Project Wycheproof. The payloads are no
// JSON objects, so it stops where those would be read.
func TestWycheproof(t *testing.T) {
	for _, file := range []string{"json_web_signature_test.json", "json_web_key_test.json"} {
		b, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		var vectors struct {
			TestGroups []struct {
				Comment         string
				Private, Public json.RawMessage
				Tests           []struct {
					TcID    int
					Comment string
					JWS     json.RawMessage
					Result  string
					Flags   []string
				}
			}
		}
		if err := json.Unmarshal(b, &vectors); err != nil {
			t.Fatal(err)
		}
		ran, passed := 0, 0
		for _, g := range vectors.TestGroups {
			set := g.Public
			if set == nil {
				set = g.Private // a secret
			}
			var about struct{ Keys json.RawMessage }
			if json.Unmarshal(set, &about) == nil && about.Keys == nil {
				set = json.RawMessage(`{"keys":[` + string(set) + `]}`)
			}
			keys, keyErr := parseKeys(set, func(string) {})
			for _, c := range g.Tests {
				ran++
				var raw string
				if json.Unmarshal(c.JWS, &raw) != nil {
					raw = string(c.JWS) // JSON serialization, which is no JWT
				}
				tok, _, st := envelope(raw)
				if keyErr == nil && st == ok {
					st = verify(keys, tok)
				}
				accepted := keyErr == nil && st == ok
				if accepted {
					passed++
				}
				if why := differs[file][c.TcID]; why != "" {
					if accepted == (c.Result == "valid") {
						t.Errorf("%s, test %d does not differ any more: %s", file, c.TcID, why)
					}
					continue
				}
				if accepted != (c.Result == "valid") {
					t.Errorf("%s, %s, test %d (%s, %v): accepted is %v, the result should be %s (%v, %s)", file, g.Comment, c.TcID, c.Comment, c.Flags, accepted, c.Result, keyErr, texts[st])
				}
			}
		}
		t.Logf("%s: %d tests, %d accepted", file, ran, passed)
		if ran < 20 || passed == 0 {
			t.Errorf("%s: only %d tests, %d accepted", file, ran, passed)
		}
	}
}
