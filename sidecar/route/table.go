package route

import (
	"bytes"
	"fmt"
	"sort"
	"strings"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route/regex"
)

// Table is a compiled envoy.config.route.v3.RouteConfiguration. Immutable:
// all workers search it at the same time, without allocation.
type Table struct {
	options TableOptions
	exact   map[string]*VirtualHost
	// suffixes ("*.example.com") and prefixes ("example.*") by what stands
	// beside the "*", and the lengths that occur, longest first.
	suffixes, prefixes           map[string]*VirtualHost
	suffixLengths, prefixLengths []int
	any                          *VirtualHost // "*"
	only                         bool         // there is nothing but any
	hosts                        []*VirtualHost
}

// TableOptions are the parts of a RouteConfiguration that matching depends on.
type TableOptions struct {
	IgnorePort       bool // ignore_port_in_host_matching
	IgnoreParameters bool // ignore_path_parameters_in_path_matching
}

// VirtualHost is a compiled envoy.config.route.v3.VirtualHost.
type VirtualHost struct {
	Name       string
	Domains    []string
	RequireTLS TLSRequirement
	Entries    []Entry
	redirect   *Route // to https
}

// Entry is one route with its condition; the first that matches is taken.
type Entry struct {
	Matcher Matcher
	Route   *Route
}

// TLSRequirement is VirtualHost.TlsRequirementType.
type TLSRequirement uint8

const (
	TLSOptional TLSRequirement = iota
	TLSExternalOnly
	TLSAll
)

// NewTable builds a table. It fails where a domain is claimed twice.
func NewTable(hosts []*VirtualHost, o TableOptions) (*Table, error) {
	t := &Table{options: o, exact: map[string]*VirtualHost{}, suffixes: map[string]*VirtualHost{}, prefixes: map[string]*VirtualHost{}, hosts: hosts}
	for _, v := range hosts {
		if v.RequireTLS != TLSOptional {
			v.redirect = &Route{VirtualHost: v.Name, TraceSampling: -1, Redirect: &Redirect{Status: 301, HTTPS: true}}
		}
		for _, d := range v.Domains {
			if err := t.claim(strings.ToLower(d), v); err != nil {
				return nil, err
			}
		}
	}
	t.suffixLengths, t.prefixLengths = lengths(t.suffixes), lengths(t.prefixes)
	t.only = t.any != nil && len(t.exact)+len(t.suffixes)+len(t.prefixes) == 0
	return t, nil
}

func (t *Table) claim(d string, v *VirtualHost) error {
	taken := func(old *VirtualHost) error {
		return fmt.Errorf("domain %q is claimed by virtual host %q and again by %q; a domain may occur once", d, old.Name, v.Name)
	}
	m, key := t.exact, d
	switch {
	case d == "*":
		if t.any != nil {
			return taken(t.any)
		}
		t.any = v
		return nil
	case strings.HasPrefix(d, "*"):
		m, key = t.suffixes, d[1:]
	case strings.HasSuffix(d, "*"):
		m, key = t.prefixes, d[:len(d)-1]
	}
	if old := m[key]; old != nil {
		return taken(old)
	}
	m[key] = v
	return nil
}

func lengths(m map[string]*VirtualHost) []int {
	seen := map[int]bool{}
	var l []int
	for k := range m {
		if !seen[len(k)] {
			seen[len(k)] = true
			l = append(l, len(k))
		}
	}
	sort.Sort(sort.Reverse(sort.IntSlice(l)))
	return l
}

// VirtualHosts returns the virtual hosts in their order, to be read only.
func (t *Table) VirtualHosts() []*VirtualHost { return t.hosts }

// Undecided is the route of a request of which it would take too long to find
// out which one it takes: it must be refused.
var Undecided = &Route{TraceSampling: -1}

// Match returns the route that a request takes, nil where there is none.
// random decides about fractions; it should be the same for the whole stream.
func (t *Table) Match(h *message.Head, random uint64, info MatchInfo) *Route {
	v := t.Host(h)
	if v == nil {
		return nil
	}
	if v.RequireTLS != TLSOptional && !isHTTPS(h, info) && (v.RequireTLS == TLSAll || !info.Internal) {
		return v.redirect
	}
	q := newRequest(h, random, info)
	if t.options.IgnoreParameters {
		if i := bytes.IndexByte(q.path, ';'); i >= 0 {
			q.path = q.path[:i]
		}
	}
	for i := range v.Entries {
		e := &v.Entries[i]
		switch e.Matcher.try(&q) {
		case regex.Yes:
			return e.Route
		case regex.Unknown:
			return Undecided
		}
	}
	return nil
}

// isHTTPS says whether the client used https, as far as is known:
// x-forwarded-proto was removed already where the peer is not to be trusted.
// Where it is repeated, each value must say so: who wrote which is not known.
func isHTTPS(h *message.Head, info MatchInfo) bool {
	if !h.Has(message.XForwardedProto) {
		return info.TLS
	}
	for i := range h.Len() {
		if h.NameAt(i) != message.XForwardedProto {
			continue
		}
		if _, v := h.At(i); !message.EqualFold(v, "https") {
			return false
		}
	}
	return true
}

// Host returns the virtual host of a request: by exact domain, else the
// longest suffix, else the longest prefix, else "*". Names of hosts are
// compared without regard to case (RFC 9110 §4.2.3).
func (t *Table) Host(h *message.Head) *VirtualHost {
	if t.only {
		return t.any
	}
	host := h.Get(message.Authority)
	if host == nil {
		return nil // as Envoy: "*" is for hosts that are named
	}
	if t.options.IgnorePort {
		host = withoutPort(host)
	}
	var buf [256]byte
	host = lowered(buf[:0], host)
	if v := t.exact[string(host)]; v != nil {
		return v
	}
	for _, n := range t.suffixLengths {
		// The "*" stands for at least one character.
		if n < len(host) {
			if v := t.suffixes[string(host[len(host)-n:])]; v != nil {
				return v
			}
		}
	}
	for _, n := range t.prefixLengths {
		if n < len(host) {
			if v := t.prefixes[string(host[:n])]; v != nil {
				return v
			}
		}
	}
	return t.any
}

// lowered returns host in lower case: host itself where it is, else a copy in
// buf, which suffices for every name that DNS knows.
func lowered(buf, host []byte) []byte {
	for i, c := range host {
		if 'A' <= c && c <= 'Z' {
			buf = append(buf, host...)
			for ; i < len(buf); i++ {
				buf[i] = lowerByte(buf[i])
			}
			return buf
		}
	}
	return host
}

// withoutPort cuts ":port" off. An IPv6 address without brackets has none.
func withoutPort(host []byte) []byte {
	i := bytes.LastIndexByte(host, ':')
	if i < 0 || i == len(host)-1 {
		return host
	}
	n := 0
	for _, c := range host[i+1:] {
		if c < '0' || c > '9' {
			return host
		}
		if n = n*10 + int(c-'0'); n > 65535 {
			return host
		}
	}
	if i > 0 && host[i-1] != ']' && bytes.IndexByte(host[:i], ':') >= 0 {
		return host
	}
	return host[:i]
}
