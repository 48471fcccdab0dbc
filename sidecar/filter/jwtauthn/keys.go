package jwtauthn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes of PS256,
	_ "crypto/sha512" // PS384 and PS512
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// family is the kind of key that an algorithm needs.
type family uint8

const (
	familyRSA family = iota + 1
	familyEC
	familyEd
	familyHMAC
)

// algorithm is one of RFC 7518 §3.1, or EdDSA (RFC 8037 §3.1).
type algorithm struct {
	family family
	curve  elliptic.Curve // of familyEC: RFC 7518 §3.4 ties the algorithm to a curve
	bytes  int            // of familyHMAC: the shortest key (RFC 7518 §3.2)
	pss    crypto.Hash    // of RSASSA-PSS
	cost   cost           // of verifying one signature, but of familyRSA
}

// algorithms is the list of all that are accepted. "none" is not among them,
// and a key is used only with algorithms of its own family, so that no public
// key is ever taken for an HMAC secret.
var algorithms = map[string]algorithm{
	"RS256": {family: familyRSA}, "RS384": {family: familyRSA}, "RS512": {family: familyRSA},
	"PS256": {family: familyRSA, pss: crypto.SHA256}, "PS384": {family: familyRSA, pss: crypto.SHA384}, "PS512": {family: familyRSA, pss: crypto.SHA512},
	"ES256": {family: familyEC, curve: elliptic.P256(), cost: 100 * microsecond},
	"ES384": {family: familyEC, curve: elliptic.P384(), cost: 1000 * microsecond},
	"ES512": {family: familyEC, curve: elliptic.P521(), cost: 2500 * microsecond},
	"EdDSA": {family: familyEd, cost: 80 * microsecond},
	"HS256": {family: familyHMAC, bytes: 32, cost: 10 * microsecond},
	"HS384": {family: familyHMAC, bytes: 48, cost: 10 * microsecond},
	"HS512": {family: familyHMAC, bytes: 64, cost: 10 * microsecond},
}

// cost is the time that something takes, about (BenchmarkVerify): it decides
// what a worker does itself, and how many keys are tried.
type cost int

const microsecond cost = 1

// maxCost is what the signature of one token may cost. A token that names no
// key is tried against those that fit it, up to this: 8 of P-521, 200 of RSA 2048.
const maxCost = 20_000 * microsecond

// key is one key of a JWKS (RFC 7517).
type key struct {
	id, alg string // "" where the key does not say
	family  family
	public  any // *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey or []byte
}

// Bounds of a JWKS.
const (
	maxJWKS = 1 << 20
	maxKeys = 256
	minRSA  = 2048 // RFC 7518 §3.3
	maxRSA  = 8192
)

// parseKeys reads a JWKS. Keys that are not for signatures or of an unknown
// type are passed over and told by warn, as RFC 7517 §5 asks; weak ones are errors.
func parseKeys(b []byte, warn func(string)) ([]key, error) {
	if len(b) > maxJWKS {
		return nil, fmt.Errorf("the JWKS has %d bytes; at most %d are allowed", len(b), maxJWKS)
	}
	var set struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("the JWKS is not valid JSON: %w", err)
	}
	if set.Keys == nil {
		return nil, errors.New(`the JWKS has no "keys"`)
	}
	if len(*set.Keys) > maxKeys {
		return nil, fmt.Errorf("the JWKS has %d keys; at most %d are allowed", len(*set.Keys), maxKeys)
	}
	var keys []key
	for i, raw := range *set.Keys {
		k, skip, err := parseKey(raw)
		switch {
		case err != nil:
			return nil, fmt.Errorf("key %d of the JWKS: %w", i, err)
		case skip != "":
			warn(fmt.Sprintf("key %d of the JWKS is not used: %s", i, skip))
		default:
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("the JWKS has no key that can verify a signature")
	}
	return keys, nil
}

func parseKey(raw []byte) (k key, skip string, err error) {
	var about struct {
		Kty, Use, Alg, Crv string
		Ops                []string `json:"key_ops"`
	}
	if err := json.Unmarshal(raw, &about); err != nil {
		return k, "", err
	}
	switch {
	case about.Use != "" && about.Use != "sig":
		return k, fmt.Sprintf("its use is %q", about.Use), nil
	case about.Ops != nil && !contains(about.Ops, "verify"):
		return k, "its key_ops do not have verify", nil
	case about.Alg != "" && algorithms[about.Alg].family == 0:
		return k, fmt.Sprintf("its alg is %q", about.Alg), nil
	case about.Kty != "RSA" && about.Kty != "EC" && about.Kty != "OKP" && about.Kty != "oct":
		return k, fmt.Sprintf("its kty is %q", about.Kty), nil
	case about.Kty == "OKP" && about.Crv != "Ed25519":
		return k, fmt.Sprintf("its crv is %q", about.Crv), nil
	case about.Kty == "EC" && about.Crv != "P-256" && about.Crv != "P-384" && about.Crv != "P-521":
		return k, fmt.Sprintf("its crv is %q", about.Crv), nil
	}
	var j jose.JSONWebKey
	if err := j.UnmarshalJSON(raw); err != nil {
		return k, "", err
	}
	k = key{id: j.KeyID, alg: j.Algorithm}
	public := j.Key
	if _, secret := public.([]byte); !secret {
		if !j.IsPublic() {
			j = j.Public() // of a private key only the public half is kept
		}
		public = j.Key
	}
	switch p := public.(type) {
	case *rsa.PublicKey:
		k.family = familyRSA
		if n := p.N.BitLen(); n < minRSA || n > maxRSA {
			return k, "", fmt.Errorf("the RSA key has %d bits; it must have from %d to %d", n, minRSA, maxRSA)
		}
	case *ecdsa.PublicKey:
		k.family = familyEC
	case ed25519.PublicKey:
		k.family = familyEd
	case []byte:
		k.family = familyHMAC
		if need := algorithms[k.alg].bytes; len(p) < max(need, 32) {
			return k, "", fmt.Errorf("the secret has %d bytes; %s needs %d", len(p), k.alg, max(need, 32))
		}
	default:
		return k, fmt.Sprintf("its type is %T", public), nil
	}
	k.public = public
	if k.alg != "" && algorithms[k.alg].family != k.family {
		return k, "", fmt.Errorf("its alg %q does not go with its kty %q", k.alg, about.Kty)
	}
	return k, "", nil
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// fits says whether the key may verify a signature of that algorithm.
func (k *key) fits(name string) bool {
	a := algorithms[name]
	if a.family != k.family || k.alg != "" && k.alg != name {
		return false
	}
	switch p := k.public.(type) {
	case *ecdsa.PublicKey:
		return p.Curve == a.curve
	case []byte:
		return len(p) >= a.bytes
	}
	return true
}

// cost is that of verifying a signature of that algorithm with the key.
func (k *key) cost(name string) cost {
	a := algorithms[name]
	p, is := k.public.(*rsa.PublicKey)
	if !is {
		return a.cost
	}
	c := 50 * microsecond
	if n := cost(p.N.BitLen()); n > 2048 {
		// Go has assembly for 2048 bits.
		c = 300 * microsecond * (n * n >> 10) / (3072 * 3072 >> 10)
	}
	if a.pss != 0 {
		c *= 2 // see saltFits
	}
	return c
}

// candidates calls f with each key that the token's kid and alg allow, until
// it answers true or the keys so far cost as much as is allowed.
func candidates(keys []key, t *token, f func(*key) bool) {
	spent := cost(0)
	for i := range keys {
		k := &keys[i]
		if t.kid != "" && k.id != "" && t.kid != k.id || !k.fits(t.alg) {
			continue
		}
		if spent += k.cost(t.alg); spent > maxCost || f(k) {
			return
		}
	}
}

// verify checks the signature against the keys.
func verify(keys []key, t *token) status {
	st := noKey
	var jws *jose.JSONWebSignature
	candidates(keys, t, func(k *key) bool {
		st = verificationFailed
		if jws == nil {
			var err error
			// The list of algorithms has the one that the key was found for, no other.
			if jws, err = jose.ParseSignedCompact(t.raw, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(t.alg)}); err != nil {
				return true
			}
		}
		if _, err := jws.Verify(k.public); err == nil && saltFits(k, t) {
			st = ok
		}
		return st == ok
	})
	return st
}

// dearest is an algorithm for which there are more keys than a token that names
// none is tried against, or "".
func dearest(keys []key) (alg string) {
	for name := range algorithms {
		c := cost(0)
		for i := range keys {
			if keys[i].fits(name) {
				c += keys[i].cost(name)
			}
		}
		if c > maxCost && name > alg {
			alg = name
		}
	}
	return alg
}

// costOf is what verify may cost.
func costOf(keys []key, t *token) (c cost) {
	candidates(keys, t, func(k *key) bool {
		c += k.cost(t.alg)
		return false
	})
	return c
}

// saltFits says whether the salt of an RSASSA-PSS signature is as long as its
// hash, as RFC 7518 §3.5 demands; the library takes any length.
func saltFits(k *key, t *token) bool {
	h := algorithms[t.alg].pss
	if h == 0 {
		return true
	}
	p, is := k.public.(*rsa.PublicKey)
	if !is {
		return false
	}
	d := h.New()
	io.WriteString(d, t.raw[:strings.LastIndexByte(t.raw, '.')])
	return rsa.VerifyPSS(p, h, d.Sum(nil), t.signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
}
