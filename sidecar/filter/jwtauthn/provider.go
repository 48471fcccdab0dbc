package jwtauthn

import (
	"bytes"
	"net/url"
	"time"

	"sallyport/sidecar/message"
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

	headers []headerLocation
	params  []string
	cookies []string

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

type headerLocation struct {
	name   string
	prefix string
}

type claimHeader struct {
	header string
	path   []string
}

// found is a token in a request and where it was.
type found struct {
	raw    []byte
	header string // name of the header, or
	param  string // of the query parameter; neither for a cookie
}

// maxTokens bounds how many tokens of one request a provider looks at.
const maxTokens = 8

// extract appends the tokens at the provider's places to list. What it
// returns is valid until the head changes.
func (p *provider) extract(list []found, h *message.Head) []found {
	for i := range p.headers {
		l := &p.headers[i]
		v, there := h.Joined(l.name)
		if !there {
			continue
		}
		if l.prefix != "" {
			at := bytes.Index(v, []byte(l.prefix))
			if at < 0 {
				continue
			}
			v = tokenIn(v[at+len(l.prefix):])
		}
		list = append(list, found{raw: v, header: l.name})
	}
	if len(p.params) > 0 {
		_, query, _ := bytes.Cut(h.Get(message.Path), []byte("?"))
		for _, name := range p.params {
			if v, there := param(query, name); there {
				list = append(list, found{raw: v, param: name})
			}
		}
	}
	for _, name := range p.cookies {
		if v, there := route.Cookie(h, name); there {
			list = append(list, found{raw: v})
		}
	}
	if len(list) > maxTokens {
		list = list[:maxTokens]
	}
	return list
}

// tokenIn returns the first run of characters that a token can have, as Envoy
// does: what follows the prefix may be quoted or have more after it.
func tokenIn(b []byte) []byte {
	start := 0
	for start < len(b) && !tokenChar(b[start]) {
		start++
	}
	end := start
	for end < len(b) && tokenChar(b[end]) {
		end++
	}
	return b[start:end]
}

func tokenChar(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '=' || c == '.'
}

// param returns the first value of a query parameter.
func param(query []byte, name string) ([]byte, bool) {
	for item := range bytes.SplitSeq(query, []byte("&")) {
		k, v, _ := bytes.Cut(item, []byte("="))
		if string(k) != name {
			continue
		}
		if bytes.IndexByte(v, '%') >= 0 {
			if s, err := url.QueryUnescape(string(v)); err == nil {
				return []byte(s), true
			}
		}
		return v, true
	}
	return nil, false
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
