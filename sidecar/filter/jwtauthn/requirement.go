package jwtauthn

import (
	"slices"
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
	// parsed are the tokens that were parsed for this request, and cost what it
	// takes to verify those that were, on the worker.
	parsed []parsed
	cost   cost

	found  []found  // what stood at the places
	looked []looked // that were looked at
	all    []candidate
}

// looked is a part of what was found.
type looked struct {
	at         *places
	start, end int
}

// begin makes e ready for a request. What waits belongs to a goroutine by
// now, so it is not reused.
func (e *evaluation) begin(h *message.Head, now time.Time) {
	clear(e.parsed)
	*e = evaluation{head: h, now: now, accepted: e.accepted[:0], parsed: e.parsed[:0], found: e.found[:0], looked: e.looked[:0], all: e.all[:0]}
}

// verdict is whether a token's signature is good for a provider.
type verdict struct {
	provider *provider
	raw      string
	token    *token // nil where it was not parsed
	status   status
}

// find finds the verdicts that are pending, on a goroutine.
func find(verdicts []verdict) {
	for i := range verdicts {
		v := &verdicts[i]
		if v.status != pending {
			continue // from an earlier round
		}
		if v.token == nil {
			// A long token: its places may be those of several providers.
			if k := slices.IndexFunc(verdicts[:i], func(o verdict) bool { return o.raw == v.raw }); k >= 0 {
				v.token = verdicts[k].token
			}
		}
		if v.status = ok; v.token == nil {
			v.token, v.status = parse(v.raw)
		}
		if v.status == ok {
			v.status = v.provider.checkIssuer(v.token)
		}
		if v.status == ok {
			v.status = verify(v.provider.keys, v.token)
		}
		if v.status == ok {
			v.provider.cache.put(v.token)
		}
	}
}

// parsed is what became of parsing a token.
type parsed struct {
	raw    string
	token  *token
	status status
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
	list := e.at(p.places)
	switch n := len(list); {
	case n == 0:
		return missing
	case n > maxTokens:
		return verificationFailed
	}
	mark := len(e.accepted)
	for i := range list {
		if st := e.token(p, audiences, list[i]); st != ok {
			e.accepted = e.accepted[:mark]
			return st
		}
	}
	return ok
}

// at is what stands at the places, which are looked at once a request.
func (e *evaluation) at(p *places) []found {
	for i := range e.looked {
		if l := &e.looked[i]; l.at == p {
			return e.found[l.start:l.end]
		}
	}
	l := looked{at: p, start: len(e.found)}
	e.found = p.extract(e.found, e.head)
	l.end = len(e.found)
	e.looked = append(e.looked, l)
	return e.found[l.start:l.end]
}

// candidate is a token at one of a provider's places.
type candidate struct {
	found
	provider *provider
	same     int // the first candidate with that token
}

// optional checks the tokens that are there; none need be. Each must be good
// for one of the providers at whose places it stands: places are often shared.
func (e *evaluation) optional(among []*provider) status {
	if !e.candidates(among) {
		return verificationFailed
	}
	mark, result := len(e.accepted), ok
	for i := range e.all {
		if e.all[i].same != i {
			continue // judged already
		}
		// Of a token that several look at, all that is to be verified is verified together.
		st := missing
		for k := i; k < len(e.all) && st != ok; k++ {
			if e.all[k].same != i {
				continue
			}
			switch got := e.token(e.all[k].provider, nil, e.all[k].found); {
			case got == pending, st == missing, st == unknownIssuer:
				st = got
			case got == ok && st != pending:
				st = ok
			}
		}
		// That something is still to be verified goes before any failure.
		if st != ok && result != pending && (result == ok || st == pending) {
			result = st
		}
	}
	if result == pending {
		// What is good so far counts when all is known.
		e.accepted = e.accepted[:mark]
	}
	return result
}

// candidates finds the tokens at the places of those providers. False means
// that there are more than are looked at.
func (e *evaluation) candidates(among []*provider) bool {
	e.all = e.all[:0]
	var first [maxTokens]int // of each token
	tokens := 0
	for _, p := range among {
		for _, f := range e.at(p.places) {
			i := 0
			for i < tokens && string(e.all[first[i]].raw) != string(f.raw) {
				i++
			}
			if i == maxTokens {
				return false
			}
			if i == tokens {
				first[i] = len(e.all)
				tokens++
			}
			e.all = append(e.all, candidate{f, p, first[i]})
		}
	}
	return true
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

const (
	// maxQuick is how long a token may be to be parsed on the worker: JSON takes
	// some 20 µs a KiB.
	maxQuick = 4 << 10
	// maxOnWorker is what verifying signatures may cost the worker for one
	// request: one or two that are quick.
	maxOnWorker = 200 * microsecond
)

// verify checks a token that is not in the cache. What can be told without
// the signature is told first, as in Envoy, and saves the work.
func (e *evaluation) verify(p *provider, audiences []string, raw []byte) (*token, status) {
	for i := range e.verified {
		if v := &e.verified[i]; v.provider == p && v.raw == string(raw) {
			return v.token, v.status
		}
	}
	if len(raw) > maxQuick {
		return nil, e.wait(p, raw, nil)
	}
	t, st := e.parse(raw)
	if st != ok {
		return nil, st
	}
	if st = p.check(t, audiences, e.now); st != ok {
		return nil, st
	}
	if e.cost += costOf(p.keys, t); e.cost > maxOnWorker {
		return nil, e.wait(p, raw, t)
	}
	if st = verify(p.keys, t); st == ok {
		p.cache.put(t)
	}
	return t, st
}

// wait leaves a token to a goroutine, once for each provider.
func (e *evaluation) wait(p *provider, raw []byte, t *token) status {
	v := verdict{provider: p, token: t, status: pending}
	for i := range e.waiting {
		if o := &e.waiting[i]; o.raw == string(raw) {
			if v.raw = o.raw; o.provider == p {
				return pending
			}
		}
	}
	if v.raw == "" {
		v.raw = string(raw)
	}
	e.waiting = append(e.waiting, v)
	return pending
}

// parse parses a token, once for all providers at whose places it stands.
func (e *evaluation) parse(raw []byte) (*token, status) {
	for i := range e.parsed {
		if d := &e.parsed[i]; d.raw == string(raw) {
			return d.token, d.status
		}
	}
	d := parsed{raw: string(raw)}
	d.token, d.status = parse(d.raw)
	e.parsed = append(e.parsed, d)
	return d.token, d.status
}
