package jwtauthn

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math"
	"strings"
)

// token is a parsed JSON Web Token (RFC 7519) in JWS compact form (RFC 7515
// §7.1). Immutable: a verified one is shared by workers through the cache.
type token struct {
	raw       string
	alg, kid  string
	signature []byte
	// payload is the second section as it came, claims what it holds.
	payload string
	claims  map[string]any

	iss, sub       string
	aud            []string
	exp, nbf       int64
	hasExp, hasNbf bool
}

// b64 is base64url without padding, and with no bits left over: one token has one form.
var b64 = base64.RawURLEncoding.Strict()

// parse takes a token apart. It does not look at the signature.
func parse(raw string) (*token, status) {
	t, payload, st := envelope(raw)
	if st != ok {
		return nil, st
	}
	var good bool
	if t.claims, good = object(payload); !good {
		return nil, badPayloadJSON
	}
	if st := t.registered(); st != ok {
		return nil, st
	}
	return t, ok
}

// envelope reads a token but for what its payload says (RFC 7515 §5.2).
func envelope(raw string) (*token, []byte, status) {
	if strings.Count(raw, ".") != 2 {
		return nil, nil, badForm
	}
	t := &token{raw: raw}
	first := strings.IndexByte(raw, '.')
	last := strings.LastIndexByte(raw, '.')
	t.payload = raw[first+1 : last]
	header, err := b64.DecodeString(raw[:first])
	if err != nil {
		return nil, nil, badHeaderBase64
	}
	h, good := object(header)
	if !good {
		return nil, nil, badHeaderJSON
	}
	alg, good := h["alg"].(string)
	if !good {
		return nil, nil, badAlg
	}
	if algorithms[alg].family == 0 {
		return nil, nil, unknownAlg // "none" too
	}
	t.alg = alg
	if kid, there := h["kid"]; there {
		if t.kid, good = kid.(string); !good {
			return nil, nil, badKID
		}
	}
	if _, there := h["crit"]; there {
		// RFC 7515 §4.1.11: what is critical must be understood; nothing is.
		return nil, nil, verificationFailed
	}
	payload, err := b64.DecodeString(t.payload)
	if err != nil {
		return nil, nil, badPayloadBase64
	}
	if t.signature, err = b64.DecodeString(raw[last+1:]); err != nil {
		return nil, nil, badSignatureBase64
	}
	return t, payload, ok
}

// object decodes a JSON object and nothing after it.
func object(b []byte) (map[string]any, bool) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var m map[string]any
	if d.Decode(&m) != nil || m == nil {
		return nil, false
	}
	rest := bytes.TrimSpace(b[d.InputOffset():])
	return m, len(rest) == 0
}

// registered reads the registered claims (RFC 7519 §4.1).
func (t *token) registered() status {
	var good bool
	if t.iss, good = text(t.claims, "iss"); !good {
		return badIss
	}
	if t.sub, good = text(t.claims, "sub"); !good {
		return badSub
	}
	if _, _, st := number(t.claims, "iat", badIat, rangeIat); st != ok {
		return st
	}
	var st status
	if t.nbf, t.hasNbf, st = number(t.claims, "nbf", badNbf, rangeNbf); st != ok {
		return st
	}
	if t.exp, t.hasExp, st = number(t.claims, "exp", badExp, rangeExp); st != ok {
		return st
	}
	if _, good = text(t.claims, "jti"); !good {
		return badJti
	}
	switch aud := t.claims["aud"].(type) {
	case nil:
		if _, there := t.claims["aud"]; there {
			return badAud
		}
	case string:
		t.aud = []string{audience(aud)}
	case []any:
		for _, a := range aud {
			s, good := a.(string)
			if !good {
				return badAud
			}
			t.aud = append(t.aud, audience(s))
		}
	default:
		return badAud
	}
	return ok
}

func text(m map[string]any, key string) (string, bool) {
	v, there := m[key]
	if !there {
		return "", true
	}
	s, good := v.(string)
	return s, good
}

// number reads a NumericDate; fractions are cut off.
func number(m map[string]any, key string, bad, outOfRange status) (int64, bool, status) {
	v, there := m[key]
	if !there {
		return 0, false, ok
	}
	n, good := v.(json.Number)
	if !good {
		return 0, false, bad
	}
	if i, err := n.Int64(); err == nil {
		if i < 0 {
			return 0, false, outOfRange
		}
		return i, true, ok
	}
	f, err := n.Float64()
	if err != nil || f < 0 || f >= math.MaxInt64 {
		return 0, false, outOfRange
	}
	return int64(f), true, ok
}

// audience brings an audience into the form that is compared, as Envoy does:
// without scheme and without a slash at the end.
func audience(a string) string {
	a = strings.TrimSuffix(a, "/")
	if s, cut := strings.CutPrefix(a, "https://"); cut {
		return s
	}
	return strings.TrimPrefix(a, "http://")
}
