package secret

import (
	"crypto/x509"
	"regexp"
	"strings"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/config/fields"
)

// san matches one kind of subject alternative name. Immutable.
type san struct {
	kind  tlsv3.SubjectAltNameMatcher_SanType
	how   how
	value string // lower case where fold
	fold  bool
	regex *regexp.Regexp
}

// how a string is compared.
type how uint8

const (
	exact how = iota
	prefix
	suffix
	contains
	regex
)

var (
	sanFields    = fields.Of(&tlsv3.SubjectAltNameMatcher{}, "san_type", "matcher").Strict()
	stringFields = fields.Of(&matcherv3.StringMatcher{}, "exact", "prefix", "suffix", "safe_regex", "contains", "ignore_case").Strict()
	regexFields  = fields.Of(&matcherv3.RegexMatcher{}, "google_re2", "regex").Strict()
)

// compileTyped compiles match_typed_subject_alt_names.
func compileTyped(r *fields.Report, path string, m *tlsv3.SubjectAltNameMatcher) []san {
	fields.Check(r, path, m, sanFields)
	switch m.GetSanType() {
	case tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_URI, tlsv3.SubjectAltNameMatcher_EMAIL, tlsv3.SubjectAltNameMatcher_IP_ADDRESS:
	default:
		r.Errorf(fields.At(path, "san_type"), "%s is not implemented; use one of DNS, URI, EMAIL, IP_ADDRESS", m.GetSanType())
		return nil
	}
	s, ok := compileString(r, fields.At(path, "matcher"), m.GetMatcher())
	if !ok {
		return nil
	}
	s.kind = m.GetSanType()
	return []san{s}
}

// compileUntyped compiles the deprecated match_subject_alt_names, which looks at names of every kind.
func compileUntyped(r *fields.Report, path string, m *matcherv3.StringMatcher) []san {
	s, ok := compileString(r, path, m)
	if !ok {
		return nil
	}
	var out []san
	for _, k := range []tlsv3.SubjectAltNameMatcher_SanType{tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_URI,
		tlsv3.SubjectAltNameMatcher_EMAIL, tlsv3.SubjectAltNameMatcher_IP_ADDRESS} {
		s.kind = k
		out = append(out, s)
	}
	return out
}

func compileString(r *fields.Report, path string, m *matcherv3.StringMatcher) (s san, ok bool) {
	if m == nil {
		r.Errorf(path, "is required")
		return s, false
	}
	n := r.Count()
	fields.Check(r, path, m, stringFields)
	s.fold = m.GetIgnoreCase()
	switch t := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		s.how, s.value = exact, t.Exact
	case *matcherv3.StringMatcher_Prefix:
		s.how, s.value = prefix, t.Prefix
	case *matcherv3.StringMatcher_Suffix:
		s.how, s.value = suffix, t.Suffix
	case *matcherv3.StringMatcher_Contains:
		s.how, s.value = contains, t.Contains
	case *matcherv3.StringMatcher_SafeRegex:
		fields.Check(r, fields.At(path, "safe_regex"), t.SafeRegex, regexFields)
		s.how, s.value = regex, t.SafeRegex.GetRegex()
		// Envoy's regular expressions match the whole string.
		x, err := regexp.Compile(`\A(?:` + s.value + `)\z`)
		if err != nil {
			r.Errorf(fields.At(path, "safe_regex.regex"), "%q is not a regular expression of RE2: %v", s.value, err)
		}
		s.regex = x
	case nil:
		r.Errorf(path, "needs one of exact, prefix, suffix, safe_regex, contains")
	}
	if s.value == "" && r.Count() == n {
		// An empty pattern matches everything: nobody means that.
		r.Errorf(path, "is empty, and would accept every name")
	}
	if s.fold && s.how != regex {
		s.value = strings.ToLower(s.value)
	}
	return s, r.Count() == n
}

// spiffe says that the pattern is about SPIFFE IDs.
func (s *san) spiffe() bool {
	if s.kind != tlsv3.SubjectAltNameMatcher_URI {
		return false
	}
	return strings.HasPrefix(strings.TrimLeft(s.value, "^(?:"), "spiffe:")
}

func (s *san) match(leaf *x509.Certificate) bool {
	switch s.kind {
	case tlsv3.SubjectAltNameMatcher_URI:
		for _, u := range leaf.URIs {
			if s.is(u.String()) {
				return true
			}
		}
	case tlsv3.SubjectAltNameMatcher_DNS:
		for _, d := range leaf.DNSNames {
			if s.is(d) || s.how == exact && covers(d, s.value) {
				return true
			}
		}
	case tlsv3.SubjectAltNameMatcher_EMAIL:
		for _, e := range leaf.EmailAddresses {
			if s.is(e) {
				return true
			}
		}
	case tlsv3.SubjectAltNameMatcher_IP_ADDRESS:
		for _, ip := range leaf.IPAddresses {
			if s.is(ip.String()) {
				return true
			}
		}
	}
	return false
}

func (s *san) is(v string) bool {
	if s.how == regex {
		return s.regex.MatchString(v)
	}
	if s.fold {
		v = strings.ToLower(v)
	}
	switch s.how {
	case prefix:
		return strings.HasPrefix(v, s.value)
	case suffix:
		return strings.HasSuffix(v, s.value)
	case contains:
		return strings.Contains(v, s.value)
	}
	return v == s.value
}

// covers says that a wildcard name of a certificate, "*.example.com", is good
// for name: it stands for exactly one label (RFC 6125 §6.4.3).
func covers(wildcard, name string) bool {
	parent, ok := strings.CutPrefix(wildcard, "*.")
	if !ok {
		return strings.EqualFold(wildcard, name)
	}
	_, rest, ok := strings.Cut(name, ".")
	return ok && parent != "" && strings.Contains(parent, ".") && strings.EqualFold(rest, parent)
}

// decode unpacks an extension's configuration.
func decode(value []byte, m proto.Message) error { return proto.Unmarshal(value, m) }
