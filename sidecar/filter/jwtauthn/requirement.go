package jwtauthn

import (
	"time"

	"sallyport/sidecar/message"
)

// kind is the sort of a requirement.
type kind uint8

const (
	needProvider kind = iota
	needAny
	needAll
	// allowMissing lets requests without a token pass; one that is there must be good.
	allowMissing
	// allowFailed lets every request pass; good tokens have their effects.
	allowFailed
)

// requirement is a compiled JwtRequirement.
type requirement struct {
	kind      kind
	provider  *provider
	audiences []string // of provider_and_audiences; nil: the provider's
	kids      []requirement
	// among are the providers whose places allowMissing and allowFailed look at.
	among []*provider
}

// evaluation is one request's way through a requirement.
type evaluation struct {
	head     *message.Head
	now      time.Time
	accepted []accepted
	// verified are the outcomes that a goroutine found, waiting what it is still to find.
	verified []verdict
	waiting  []verdict
	found    []found // scratch
}

// begin makes e ready for a request. What waits belongs to a goroutine by
// now, so it is not reused.
func (e *evaluation) begin(h *message.Head, now time.Time) {
	*e = evaluation{head: h, now: now, accepted: e.accepted[:0], found: e.found[:0]}
}

// verdict is whether a token's signature is good for a provider.
type verdict struct {
	provider *provider
	token    *token
	status   status
}

func (r *requirement) evaluate(e *evaluation) status {
	switch r.kind {
	case needProvider:
		return e.provider(r.provider, r.audiences)
	case needAll:
		for i := range r.kids {
			if st := r.kids[i].evaluate(e); st != ok {
				return st
			}
		}
		return ok
	case needAny:
		return r.any(e)
	case allowMissing:
		return e.optional(r.among)
	}
	if st := e.optional(r.among); st == pending {
		return pending
	}
	return ok // what failed was not accepted, what is good was
}

// any takes the first requirement that holds. Where none does, an error about
// a token says more than that one is missing or of another issuer.
func (r *requirement) any(e *evaluation) status {
	last, telling, wait := missing, ok, false
	for i := range r.kids {
		mark := len(e.accepted)
		switch st := r.kids[i].evaluate(e); st {
		case ok:
			if !wait {
				return ok
			}
		case pending:
			wait = true
		case missing, unknownIssuer:
			last = st
		default:
			last, telling = st, st
		}
		// What failed, or is to be decided when all is known, has no effects.
		e.accepted = e.accepted[:mark]
	}
	switch {
	case wait:
		return pending
	case telling != ok:
		return telling
	}
	return last
}

// provider demands a token at the provider's places; every one there must be good.
func (e *evaluation) provider(p *provider, audiences []string) status {
	e.found = p.extract(e.found[:0], e.head)
	if len(e.found) == 0 {
		return missing
	}
	mark := len(e.accepted)
	for i := range e.found {
		if st := e.token(p, audiences, e.found[i]); st != ok {
			e.accepted = e.accepted[:mark]
			return st
		}
	}
	return ok
}

// optional checks the tokens that are there; none need be. Each must be good
// for one of the providers at whose places it stands: places are often shared.
func (e *evaluation) optional(among []*provider) status {
	type candidate struct {
		found
		provider *provider
	}
	var all []candidate
	for _, p := range among {
		e.found = p.extract(e.found[:0], e.head)
		for _, f := range e.found {
			all = append(all, candidate{f, p})
		}
	}
	mark, result := len(e.accepted), ok
	for i := range all {
		st, first := missing, true
		for k := range all {
			if string(all[k].raw) != string(all[i].raw) {
				continue
			}
			if k < i {
				first = false // judged already
				break
			}
			got := e.token(all[k].provider, nil, all[k].found)
			if got == ok || got == pending {
				st = got
				break
			}
			if st == missing || st == unknownIssuer {
				st = got
			}
		}
		// That something is still to be verified goes before any failure.
		if first && st != ok && result != pending && (result == ok || st == pending) {
			result = st
		}
	}
	if result == pending {
		e.accepted = e.accepted[:mark]
	}
	return result
}

// token checks one token for one provider.
func (e *evaluation) token(p *provider, audiences []string, f found) status {
	t := p.cache.get(f.raw)
	if t == nil {
		var st status
		if t, st = e.verify(p, audiences, f.raw); st != ok {
			return st
		}
	}
	if st := p.check(t, audiences, e.now); st != ok {
		return st
	}
	e.accepted = append(e.accepted, accepted{p, t, f})
	return ok
}

// verify checks a token that is not in the cache. What can be told without
// the signature is told first, as in Envoy, and saves the work.
func (e *evaluation) verify(p *provider, audiences []string, raw []byte) (*token, status) {
	for i := range e.verified {
		if v := &e.verified[i]; v.provider == p && v.token.raw == string(raw) {
			return v.token, v.status
		}
	}
	t, st := parse(string(raw))
	if st != ok {
		return nil, st
	}
	if st = p.check(t, audiences, e.now); st != ok {
		return nil, st
	}
	if slow(p.keys, t) {
		e.waiting = append(e.waiting, verdict{provider: p, token: t, status: pending})
		return nil, pending
	}
	if st = verify(p.keys, t); st == ok {
		p.cache.put(t)
	}
	return t, st
}
