package jwtauthn

import (
	"time"

	"sallyport/sidecar/route"
)

// provider is a compiled JwtProvider. Immutable but for its cache.
type provider struct {
	name      string
	issuer    string // "": any
	audiences []string
	subject   *route.StringMatcher
	keys      []key
	cache     *cache

	places *places

	skew          int64 // seconds
	requireExpiry bool
	maxLifetime   time.Duration // 0: none

	forward         bool
	payloadHeader   string
	padPayload      bool
	payloadMetadata string
	claims          []claimHeader
	reroute         bool
}

type claimHeader struct {
	header string
	path   []string
}

// check says whether a token whose signature is good may be used now.
// audiences, if not nil, take the place of the provider's.
func (p *provider) check(t *token, audiences []string, now time.Time) status {
	if st := p.checkIssuer(t); st != ok {
		return st
	}
	unix := now.Unix()
	if t.hasNbf && t.nbf > unix+p.skew {
		return notYetValid
	}
	// Written so that an exp close to the largest number does not overflow.
	if t.hasExp && unix-p.skew > t.exp {
		return expired
	}
	if p.requireExpiry && !t.hasExp {
		return verificationFailed
	}
	if p.maxLifetime > 0 && (!t.hasExp || t.exp > unix+int64(p.maxLifetime/time.Second)) {
		return verificationFailed
	}
	if p.subject != nil && !p.subject.MatchString(t.sub) {
		return verificationFailed
	}
	if audiences == nil {
		audiences = p.audiences
	}
	if len(audiences) > 0 && !overlap(audiences, t.aud) {
		return audienceNotAllowed
	}
	return ok
}

func (p *provider) checkIssuer(t *token) status {
	if p.issuer != "" && t.iss != p.issuer {
		return unknownIssuer
	}
	return ok
}

func overlap(a, b []string) bool {
	for _, s := range a {
		if contains(b, s) {
			return true
		}
	}
	return false
}
