// Package rbac is role-based access control, for HTTP requests
// (envoy.filters.http.rbac) and for connections (envoy.filters.network.rbac):
// policies that say who may do what, by SPIFFE ID, address, path, header and
// so on. Compiled rules are immutable and are evaluated on the workers without
// allocation. What cannot be compiled is refused: no rule is ever dropped.
package rbac

import (
	"net/netip"
	"strings"

	"sallyport/sidecar/filter"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route/regex"
	"sallyport/sidecar/stream"
)

// action is what a set of policies does with a match.
type action uint8

const (
	allow  action = iota // what no policy matches is denied
	deny                 // what a policy matches is denied
	logged               // nothing is denied; access logs are told
)

// engine is a compiled envoy.config.rbac.v3.RBAC.
type engine struct {
	action   action
	policies []policy // by name, the order in which Envoy looks at them
	// deniedDetails is for a denial that no policy caused.
	deniedDetails string
}

type policy struct {
	name    string
	boxed   any // name, so that metadata needs no allocation
	details string
	// Any of the permissions and any of the principals must match.
	permissions, principals []node
}

// judge returns whether the request may go on, and the policy that matched, or
// nil. Where it would take too long to find out whether a policy matches, it
// does where it denies, and does not where it allows.
func (e *engine) judge(f *facts) (bool, *policy) {
	f.work = regex.Budget{}
	for i := range e.policies {
		p := &e.policies[i]
		matched := anyOf(p.permissions, f)
		if matched != regex.No {
			matched = matched.And(anyOf(p.principals, f))
		}
		if matched == regex.Yes || matched == regex.Unknown && e.action == deny {
			return e.action != deny, p
		}
	}
	return e.action != allow, nil
}

// rules is what one configuration, the filter's or a route's, says.
type rules struct {
	enforced, shadow *engine // nil: none
	// Keys of dynamic metadata, with shadow_rules_stat_prefix.
	shadowPolicy, shadowResult string
}

// Filter is the HTTP filter.
type Filter struct {
	name  string
	rules *rules
	stats stats
}

// stats count decisions; a route's rules count here too, as in Envoy.
type stats struct {
	allowed, denied, shadowAllowed, shadowDenied filter.Counter
}

const namespace = "envoy.filters.http.rbac"

// Values of metadata, made once.
var (
	boxedAllowed any = "allowed"
	boxedDenied  any = "denied"
	boxedNone    any = "none"
	boxedTrue    any = true
	boxedFalse   any = false
)

// Name is the filter's name in the configuration.
func (f *Filter) Name() string { return f.name }

// RequestHead lets the request pass or answers 403.
func (f *Filter) RequestHead(c stream.Context, h *message.Head, _ bool) stream.Verdict {
	r, s := f.of(c), c.Stream
	x := facts{head: h, conn: s.Conn, remote: s.Remote.Addr().Unmap()}
	if r.shadow != nil {
		ok, p := r.shadow.judge(&x)
		s.SetMetadata(namespace, r.shadowPolicy, boxedName(p))
		s.SetMetadata(namespace, r.shadowResult, boxedResult(ok))
		count(ok, f.stats.shadowAllowed, f.stats.shadowDenied)
	}
	if r.enforced == nil {
		return stream.Continue
	}
	ok, p := r.enforced.judge(&x)
	if r.enforced.action == logged {
		hint := boxedFalse
		if p != nil {
			hint = boxedTrue
		}
		s.SetMetadata("envoy.common", "access_log_hint", hint)
	}
	s.SetMetadata(namespace, "enforced_effective_policy_id", boxedName(p))
	s.SetMetadata(namespace, "enforced_engine_result", boxedResult(ok))
	count(ok, f.stats.allowed, f.stats.denied)
	if ok {
		return stream.Continue
	}
	return s.Reply(403, "RBAC: access denied", r.enforced.details(p), 0)
}

// of returns the rules for the stream: the filter's own, or those of its route.
func (f *Filter) of(c stream.Context) *rules {
	if over, ok := c.Override().(*rules); ok {
		return over
	}
	return f.rules
}

// Recheck judges a request that goes on under new rules. It counts nothing: it
// is no other request.
func (f *Filter) Recheck(c stream.Context, h *message.Head) (ok bool, details string) {
	e := f.of(c).enforced
	if e == nil {
		return true, ""
	}
	ok, p := e.judge(&facts{head: h, conn: c.Stream.Conn, remote: c.Stream.Remote.Addr().Unmap()})
	return ok, e.details(p)
}

func (e *engine) details(p *policy) string {
	if p == nil {
		return e.deniedDetails
	}
	return p.details
}

func boxedName(p *policy) any {
	if p == nil {
		return boxedNone
	}
	return p.boxed
}

func boxedResult(ok bool) any {
	if ok {
		return boxedAllowed
	}
	return boxedDenied
}

func count(ok bool, yes, no filter.Counter) {
	if ok {
		yes.Inc()
	} else {
		no.Inc()
	}
}

// details is the response code detail for a policy, without blanks: logs are split at them.
func details(name string) string {
	name = strings.Map(func(r rune) rune {
		if r == ' ' || '\t' <= r && r <= '\r' {
			return '_'
		}
		return r
	}, name)
	return "rbac_access_denied_matched_policy[" + name + "]"
}

// Network is the network filter. It is asked before a connection's first byte,
// and again when its configuration has changed. All that rules look at here
// stays as it is while a connection lives, so that both of Envoy's
// enforcement_types are met by this.
type Network struct {
	rules *rules
	stats stats
}

// Allow says whether a connection may be, or go on.
func (n *Network) Allow(c *stream.Connection) (bool, string) {
	x := facts{conn: c, remote: c.Remote.Addr().Unmap()}
	if e := n.rules.shadow; e != nil {
		ok, _ := e.judge(&x)
		count(ok, n.stats.shadowAllowed, n.stats.shadowDenied)
	}
	e := n.rules.enforced
	if e == nil {
		return true, ""
	}
	ok, p := e.judge(&x)
	count(ok, n.stats.allowed, n.stats.denied)
	if ok {
		return true, ""
	}
	return false, e.details(p)
}

// facts are what rules look at.
type facts struct {
	head   *message.Head // nil for a connection
	conn   *stream.Connection
	remote netip.Addr // the client, where x-forwarded-for is trusted as that says
	// work is what one judgment may take.
	work regex.Budget
}

// destination is where the client meant to go, which after interception is not
// where the connection ended.
func (f *facts) destination() netip.AddrPort {
	if d := f.conn.OriginalDst; d.IsValid() {
		return d
	}
	return f.conn.Local
}
