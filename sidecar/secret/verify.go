package secret

//lint:file-ignore SA1019 files in use have deprecated fields, which Envoy reads still, and so do we

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"sallyport/sidecar/config/fields"
)

var validationFields = fields.Of(&tlsv3.CertificateValidationContext{}, "trusted_ca", "system_root_certs", "watched_directory",
	"verify_certificate_spki", "verify_certificate_hash", "match_typed_subject_alt_names", "match_subject_alt_names",
	"allow_expired_certificate", "trust_chain_verification", "custom_validator_config", "max_verify_depth", "suppress_client_ca_list").Strict()

// spiffeValidator is envoy.tls.cert_validator.spiffe's type.
const spiffeValidator = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"

// validation is a compiled CertificateValidationContext: how a peer's certificate is judged. Immutable.
type validation struct {
	pool *x509.CertPool // trusted_ca
	// byDomain gives the roots for the trust domain in a peer's SPIFFE ID, in place of pool.
	byDomain func(trustDomain string) (*x509.CertPool, error)
	sans     []san
	// spiffe: the leaf must be a valid X.509-SVID.
	spiffe       bool
	pins         map[[32]byte]bool // SHA-256 of the certificate or of its public key
	allowExpired bool
	depth        int // max_verify_depth; -1: any
	hideCAs      bool
}

// trusts says that a chain is verified at all.
func (v *validation) trusts() bool { return v.pool != nil || v.byDomain != nil }

// judges says that not every certificate is accepted.
func (v *validation) judges() bool { return v != nil && (v.trusts() || len(v.pins) > 0) }

// merge puts what came by SDS over the default, as combined_validation_context
// does: single fields are replaced, lists joined.
func merge(base, over *validation) *validation {
	if base == nil {
		return over
	}
	if over == nil {
		return base
	}
	m := *over
	if m.pool == nil {
		m.pool = base.pool
	}
	if m.byDomain == nil {
		m.byDomain = base.byDomain // and goes before any pool: it is the narrower
	}
	m.sans = append(base.sans[:len(base.sans):len(base.sans)], over.sans...)
	m.spiffe = base.spiffe || over.spiffe
	m.allowExpired = base.allowExpired || over.allowExpired
	m.hideCAs = base.hideCAs || over.hideCAs
	if m.depth < 0 {
		m.depth = base.depth
	}
	if len(base.pins) > 0 {
		m.pins = make(map[[32]byte]bool, len(base.pins)+len(over.pins))
		for _, p := range []map[[32]byte]bool{base.pins, over.pins} {
			for k := range p {
				m.pins[k] = true
			}
		}
	}
	return &m
}

// loadValidation reads and compiles a validation context.
func (s *Store) loadValidation(r *fields.Report, path string, m *tlsv3.CertificateValidationContext) *material {
	fields.Check(r, path, m, validationFields)
	n := r.Count()
	read := func(r *fields.Report) (*material, *reader) {
		x := &reader{r: r}
		before := r.Count()
		v := x.validation(path, m)
		x.directory(m.GetWatchedDirectory())
		if r.Count() > before {
			return nil, x
		}
		return &material{validation: v}, x
	}
	mat, x := read(r)
	if r.Count() > n {
		return nil
	}
	return s.follow(mat, x, read)
}

func (x *reader) validation(path string, m *tlsv3.CertificateValidationContext) *validation {
	v := &validation{allowExpired: m.GetAllowExpiredCertificate(), depth: -1, hideCAs: m.GetSuppressClientCaList()}
	if d := m.GetMaxVerifyDepth(); d != nil {
		v.depth = int(d.GetValue())
	}
	if m.GetTrustChainVerification() != tlsv3.CertificateValidationContext_VERIFY_TRUST_CHAIN {
		x.r.Errorf(fields.At(path, "trust_chain_verification"), "%s is refused: it would let in whoever made a certificate for themselves", m.GetTrustChainVerification())
	}
	if m.GetTrustedCa() != nil {
		at := fields.At(path, "trusted_ca")
		if b := x.read(at, m.GetTrustedCa()); b != nil {
			v.pool = x.pool(at, b)
		}
	}
	if m.GetSystemRootCerts() != nil && v.pool == nil {
		pool, err := x509.SystemCertPool()
		if err != nil {
			x.r.Errorf(fields.At(path, "system_root_certs"), "the system's roots cannot be read: %v", err)
		}
		v.pool, v.hideCAs = pool, true
	}
	for i, h := range m.GetVerifyCertificateHash() {
		b, err := hex.DecodeString(strings.ReplaceAll(h, ":", ""))
		if err != nil || len(b) != 32 {
			x.r.Errorf(fields.Index(path, "verify_certificate_hash", i), "%q is not a SHA-256 in hex", h)
			continue
		}
		v.pin([32]byte(b))
	}
	for i, h := range m.GetVerifyCertificateSpki() {
		b, err := base64.StdEncoding.DecodeString(h)
		if err != nil || len(b) != 32 {
			x.r.Errorf(fields.Index(path, "verify_certificate_spki", i), "%q is not a SHA-256 in base64", h)
			continue
		}
		v.pin([32]byte(b))
	}
	for i, t := range m.GetMatchTypedSubjectAltNames() {
		v.sans = append(v.sans, compileTyped(x.r, fields.Index(path, "match_typed_subject_alt_names", i), t)...)
	}
	if len(m.GetMatchTypedSubjectAltNames()) == 0 { // the newer field goes before the older one
		for i, t := range m.GetMatchSubjectAltNames() {
			v.sans = append(v.sans, compileUntyped(x.r, fields.Index(path, "match_subject_alt_names", i), t)...)
		}
	}
	for i := range v.sans {
		v.spiffe = v.spiffe || v.sans[i].spiffe()
	}
	if c := m.GetCustomValidatorConfig(); c != nil {
		x.spiffe(fields.At(path, "custom_validator_config"), c.GetTypedConfig().GetTypeUrl(), c.GetTypedConfig().GetValue(), v)
	}
	return v
}

func (v *validation) pin(h [32]byte) {
	if v.pins == nil {
		v.pins = map[[32]byte]bool{}
	}
	v.pins[h] = true
}

func (x *reader) pool(path string, b []byte) *x509.CertPool {
	list, err := certificates(b)
	if err != nil {
		x.r.Errorf(path, "%v", err)
		return nil
	}
	pool := x509.NewCertPool()
	for _, c := range list {
		pool.AddCert(c)
	}
	return pool
}

// errNoIdentity is for a peer that must have a SPIFFE ID and has none.
var errNoIdentity = errors.New("the peer's certificate is not a SPIFFE X.509-SVID")

// verify judges a peer's certificates. server says that we are the server and
// the peer a client. It runs for every handshake, also resumed ones
// (tls.Config.VerifyConnection). name, if not "", must be among the leaf's DNS names.
// known, if not nil, spares the signatures of a chain that it has seen.
func (v *validation) verify(certs []*x509.Certificate, server bool, name string, now time.Time, known *chains) error {
	if len(certs) == 0 {
		return errors.New("the peer sent no certificate")
	}
	leaf := certs[0]
	var domain string
	if v.spiffe {
		var err error
		if domain, err = svid(leaf); err != nil {
			return err
		}
	}
	if err := v.trusted(certs, domain, server, now, known); err != nil {
		return err
	}
	if len(v.pins) > 0 && !v.pins[sha256.Sum256(leaf.Raw)] && !v.pins[sha256.Sum256(leaf.RawSubjectPublicKeyInfo)] {
		return errors.New("the peer's certificate is not among verify_certificate_hash and verify_certificate_spki")
	}
	if name != "" {
		if err := leaf.VerifyHostname(name); err != nil {
			return fmt.Errorf("the peer's certificate is not for %q", name)
		}
	}
	if len(v.sans) == 0 {
		return nil
	}
	for i := range v.sans {
		if v.sans[i].match(leaf) {
			return nil
		}
	}
	return fmt.Errorf("the peer's certificate has none of the accepted subject alternative names; it has %s", names(leaf))
}

// trusted verifies that one of the trusted authorities signed the leaf.
func (v *validation) trusted(certs []*x509.Certificate, domain string, server bool, now time.Time, known *chains) error {
	if !v.trusts() {
		return nil
	}
	roots := v.pool
	if v.byDomain != nil {
		var err error
		if roots, err = v.byDomain(domain); err != nil || roots == nil {
			return fmt.Errorf("the peer's trust domain %q is not trusted", domain)
		}
	}
	if v.allowExpired {
		known = nil // which goes by the time at which a chain ends
	}
	if known.has(certs, roots, now) {
		return nil
	}
	o := x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if server {
		o.KeyUsages[0] = x509.ExtKeyUsageClientAuth
	}
	if len(certs) > 1 {
		o.Intermediates = x509.NewCertPool()
		for _, c := range certs[1:] {
			o.Intermediates.AddCert(c)
		}
	}
	if v.allowExpired {
		// Judged as of the last moment at which what was sent was valid.
		for _, c := range certs {
			if c.NotAfter.Before(o.CurrentTime) {
				o.CurrentTime = c.NotAfter
			}
		}
	}
	found, err := certs[0].Verify(o)
	if err != nil {
		return fmt.Errorf("the peer's certificate is not trusted: %s", strings.TrimPrefix(err.Error(), "x509: "))
	}
	for _, c := range found {
		if v.depth < 0 || len(c)-2 <= v.depth {
			known.add(certs, roots, c)
			return nil
		}
	}
	return fmt.Errorf("the peer's certificate has more than %d intermediate authorities", v.depth)
}

// svid checks that a leaf is an X.509-SVID and returns its trust domain
// (X509-SVID §2, §4.1, §5.2: exactly one URI, no CA, no signing of certificates or CRLs).
func svid(leaf *x509.Certificate) (domain string, err error) {
	if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != "spiffe" {
		return "", errNoIdentity
	}
	if leaf.IsCA {
		return "", errors.New("the peer's certificate is that of an authority, not a SPIFFE X.509-SVID leaf")
	}
	if leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return "", errors.New("the peer's certificate may sign certificates or CRLs, which a SPIFFE X.509-SVID leaf must not")
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return "", errors.New("the peer's certificate lacks the key usage digitalSignature, which a SPIFFE X.509-SVID needs")
	}
	u := leaf.URIs[0]
	if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Contains(u.Host, ":") || !validDomain(u.Host) || !validPath(u) {
		return "", errNoIdentity
	}
	return u.Host, nil
}

// validDomain is SPIFFE-ID §2.1: lower-case letters, digits, dots, dashes, underscores.
func validDomain(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return len(s) <= 255
}

// validPath is SPIFFE-ID §2.2: segments that are not empty nor dots, of letters, digits, dots, dashes, underscores.
func validPath(u *url.URL) bool {
	if u.EscapedPath() != u.Path {
		return false
	}
	if u.Path == "" {
		return true
	}
	for seg := range strings.SplitSeq(u.Path[1:], "/") {
		if seg == "" || seg == "." || seg == ".." {
			return false
		}
		for i := range len(seg) {
			if c := seg[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

// names lists a leaf's names for an error, shortened: a peer chose them.
func names(leaf *x509.Certificate) string {
	var all []string
	for _, u := range leaf.URIs {
		all = append(all, u.String())
	}
	all = append(all, leaf.DNSNames...)
	if len(all) == 0 {
		return "none"
	}
	text := fmt.Sprintf("%q", all)
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "…"
	}
	return text
}

// peer adapts verify to tls.Config.VerifyConnection.
func (v *validation) peer(server, needName, optional bool, now func() time.Time) func(tls.ConnectionState) error {
	known := &chains{}
	return func(cs tls.ConnectionState) error {
		if optional && len(cs.PeerCertificates) == 0 {
			return nil
		}
		name := ""
		if needName {
			if name = cs.ServerName; name == "" {
				return errors.New("there is no server name to verify the peer's certificate against (auto_san_validation)")
			}
		}
		return v.verify(cs.PeerCertificates, server, name, now(), known)
	}
}
