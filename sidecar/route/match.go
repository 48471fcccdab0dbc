package route

import (
	"bytes"
	"math"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route/regex"
)

// PathKind is how a Matcher looks at the path.
type PathKind uint8

const (
	// PathAny matches every request that has a path.
	PathAny PathKind = iota
	PathExact
	PathPrefix
	// PathSeparated is path_separated_prefix: "/a" matches /a and /a/b, not /ab.
	PathSeparated
	PathRegex
	// PathConnect matches CONNECT requests, which need not have a path.
	PathConnect
)

// Always is the Fraction that every request is in.
const Always = 1_000_000

// Matcher is a compiled envoy.config.route.v3.RouteMatch. Immutable once built.
type Matcher struct {
	Kind PathKind
	// Path is compared for all kinds but PathAny, PathRegex and PathConnect;
	// in lower case where Fold.
	Path  string
	Fold  bool // case_sensitive: false
	Regex StringMatcher

	Headers []HeaderMatcher
	Query   []QueryMatcher
	Cookies []CookieMatcher
	// Fraction of requests, in millionths, that match: runtime_fraction.
	Fraction uint32
	GRPC     bool
	// Presented and Validated are tls_context: 0 unset, 1 must, -1 must not.
	Presented, Validated int8
}

// MatchInfo is what a match depends on beside the head.
type MatchInfo struct {
	// TLS: the downstream connection is.
	TLS bool
	// ClientCert: the client presented a certificate; Validated: and it was verified.
	ClientCert, Validated bool
	// Internal: the request comes from inside (for require_tls EXTERNAL_ONLY).
	Internal bool
}

// NewPath returns a matcher for one of the kinds that compare with a string.
func NewPath(kind PathKind, path string, fold bool) Matcher {
	if fold {
		path = lowerASCII(path)
	}
	if kind == PathPrefix && path == "" {
		kind = PathAny
	}
	return Matcher{Kind: kind, Path: path, Fold: fold, Fraction: Always}
}

// Taken is how much of a path a match takes, for prefix_rewrite: all of it
// where there is no literal.
func (m *Matcher) Taken() Matched {
	switch m.Kind {
	case PathExact, PathPrefix, PathSeparated:
		return Matched{PrefixLen: len(m.Path)}
	case PathAny:
		return Matched{}
	}
	return Matched{PrefixLen: math.MaxInt}
}

// request is what is looked at more than once while a route is searched.
type request struct {
	head    *message.Head
	path    []byte // without query and fragment
	query   []byte // without "?"
	hasPath bool
	connect bool
	random  uint64
	info    MatchInfo
	work    regex.Budget
}

func newRequest(h *message.Head, random uint64, info MatchInfo) request {
	p := h.Get(message.Path)
	q := request{head: h, hasPath: len(p) > 0, connect: h.Is(message.Method, "CONNECT"), random: random, info: info}
	q.path, q.query = splitPath(p)
	return q
}

// splitPath cuts query and fragment off (RFC 3986 §3.4, §3.5). A fragment is
// not allowed in a request, but nothing that is matched may hide behind one.
func splitPath(p []byte) (path, query []byte) {
	for i, c := range p {
		switch c {
		case '#':
			return p[:i], nil
		case '?':
			query = p[i+1:]
			if k := bytes.IndexByte(query, '#'); k >= 0 {
				query = query[:k]
			}
			return p[:i], query
		}
	}
	return p, nil
}

// BarePath is a path without its query and fragment.
func BarePath(p []byte) []byte {
	p, _ = splitPath(p)
	return p
}

// Try says whether a request matches, for users other than a Table, such as
// the rules of jwt_authn.
func (m *Matcher) Try(h *message.Head, random uint64, info MatchInfo, w *regex.Budget) regex.Answer {
	q := newRequest(h, random, info)
	q.work = *w
	a := m.try(&q)
	*w = q.work
	return a
}

// try says whether the request matches: Unknown where all that is known does.
func (m *Matcher) try(q *request) regex.Answer {
	all := m.tryPath(q)
	if all == regex.No {
		return all
	}
	// What is cheap comes first, and spares the rest.
	if m.Fraction < Always && !inFraction(q.random, m.Fraction) ||
		m.GRPC && !isGRPC(q.head) ||
		m.Presented != 0 && (m.Presented > 0) != q.info.ClientCert ||
		m.Validated != 0 && (m.Validated > 0) != q.info.Validated {
		return regex.No
	}
	for i := range m.Headers {
		if all = all.And(m.Headers[i].Try(q.head, &q.work)); all == regex.No {
			return all
		}
	}
	for i := range m.Query {
		if all = all.And(m.Query[i].try(q.query, &q.work)); all == regex.No {
			return all
		}
	}
	for i := range m.Cookies {
		if all = all.And(m.Cookies[i].try(q.head, &q.work)); all == regex.No {
			return all
		}
	}
	return all
}

func (m *Matcher) tryPath(q *request) regex.Answer {
	if m.Kind == PathConnect {
		return regex.Of(q.connect)
	}
	if !q.hasPath {
		return regex.No // a CONNECT without a path: only a connect_matcher takes it
	}
	p := q.path
	switch m.Kind {
	case PathRegex:
		return m.Regex.Try(p, &q.work)
	case PathExact:
		return regex.Of(m.equal(p))
	case PathPrefix:
		return regex.Of(len(p) >= len(m.Path) && m.equal(p[:len(m.Path)]))
	case PathSeparated:
		return regex.Of(len(p) >= len(m.Path) && (len(p) == len(m.Path) || p[len(m.Path)] == '/') && m.equal(p[:len(m.Path)]))
	}
	return regex.Yes
}

func (m *Matcher) equal(p []byte) bool {
	if m.Fold {
		return message.EqualFold(p, m.Path)
	}
	return string(p) == m.Path
}

// inFraction says whether the request with that random number is among the
// first n millionths. All bits of random are used: routes must not be tied to
// the choice of a weighted cluster, which is made of the same number.
func inFraction(random uint64, n uint32) bool {
	return (random*0x9e3779b97f4a7c15>>32)*Always>>32 < uint64(n)
}

// InFraction says whether an event with that random number is among n millionths of all.
func InFraction(random uint64, n uint32) bool { return n >= Always || inFraction(random, n) }

// isGRPC says whether the request is gRPC's by its content type.
func isGRPC(h *message.Head) bool {
	const grpc = "application/grpc"
	ct := h.Get(message.ContentType)
	return len(ct) >= len(grpc) && string(ct[:len(grpc)]) == grpc &&
		(len(ct) == len(grpc) || ct[len(grpc)] == '+' || ct[len(grpc)] == ';')
}
