// Package ca is the built-in certificate authority of a trust domain. It owns the root keys, the issuing key and the
// trust bundle, in a state folder, and signs X.509-SVIDs for identities that its caller has attested. The control
// plane holds one Authority; it is safe for concurrent use. It may not be called from a worker: signing costs CPU and
// a rotation writes files.
package ca

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/certs"
	"sallyport/certs/statedir"
)

const (
	defaultTTL        = time.Hour
	defaultIssuingTTL = 7 * 24 * time.Hour
	defaultRootTTL    = 10 * 365 * 24 * time.Hour
	minTTL            = time.Second

	// A peer's clock may lag behind ours by this much and still take a fresh certificate.
	leafBackdate      = time.Minute
	authorityBackdate = 10 * time.Minute
)

// Options of Open; the zero value is good.
type Options struct {
	TrustDomain spiffeid.TrustDomain // default: that of the folder, or sallyport.local for a new one
	TTL         time.Duration        // of a leaf that asks for none, and the longest that one may ask for; default 1h
	IssuingTTL  time.Duration        // of the issuing key, replaced at half of it; default 7 days
	RootTTL     time.Duration        // default 10 years
	Now         func() time.Time     // default time.Now
	Logger      *slog.Logger         // default slog.Default
}

// Authority signs certificates. Made by Open.
type Authority struct {
	opt    Options
	dir    *statedir.Dir
	unlock func()
	td     spiffeid.TrustDomain // set once by Open

	mu      sync.Mutex
	st      *state
	updated chan struct{} // closed at a change of the bundle
	closed  bool
}

// Open opens the authority in the folder dir and makes it, with a new root, if there is none. It holds the folder's
// lock until Close.
func Open(dir string, o Options) (*Authority, error) {
	if o.TTL == 0 {
		o.TTL = defaultTTL
	}
	if o.IssuingTTL == 0 {
		o.IssuingTTL = max(defaultIssuingTTL, 4*o.TTL)
	}
	if o.RootTTL == 0 {
		o.RootTTL = defaultRootTTL
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.TTL < minTTL || o.IssuingTTL < 2*o.TTL || o.RootTTL < o.IssuingTTL {
		return nil, fmt.Errorf("certificate authority: lifetimes must satisfy 1s <= leaf (%v), twice that <= issuing key (%v) <= root (%v)",
			o.TTL, o.IssuingTTL, o.RootTTL)
	}
	d, err := statedir.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	unlock, err := d.Lock(lockFile)
	if err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	a := &Authority{opt: o, dir: d, unlock: unlock, updated: make(chan struct{})}
	if err := a.load(); err != nil {
		_ = a.Close()
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return a, nil
}

func (a *Authority) load() error {
	now := a.opt.Now()
	st, err := readState(a.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		td := a.opt.TrustDomain
		if td.IsZero() {
			td = spiffeid.RequireTrustDomainFromString(certs.DefaultTrustDomain)
		}
		p, err := newAuthority(td, "root", nil, now.Add(-authorityBackdate), now.Add(a.opt.RootTTL))
		if err != nil {
			return fmt.Errorf("make the root: %w", err)
		}
		st = &state{td: td, roots: []root{{pair: *p, phase: Active, since: now}}}
		if err := writeState(a.dir, st); err != nil {
			return err
		}
		a.opt.Logger.Info("certificate authority made", "trust_domain", td.Name(), "folder", a.dir.Path(),
			"root", Fingerprint(p.cert), "not_after", p.cert.NotAfter)
	case err != nil:
		return err
	case !a.opt.TrustDomain.IsZero() && a.opt.TrustDomain != st.td:
		return fmt.Errorf("folder %s holds the authority of trust domain %s, not %s: use another folder, or that trust domain",
			a.dir.Path(), st.td.Name(), a.opt.TrustDomain.Name())
	default:
		// A crash between the two files' renames leaves an old bundle.pem.
		if err := writeBundle(a.dir, st); err != nil {
			return err
		}
	}
	a.st, a.td = st, st.td
	if root := st.active().cert; now.Add(a.opt.RootTTL / 10).After(root.NotAfter) {
		a.opt.Logger.Warn("root certificate nears its end, rotate it", "root", Fingerprint(root), "not_after", root.NotAfter)
	}
	_, err = a.issuing(now) // so that an unusable authority is an error at start, not at the first sidecar
	return err
}

// Close releases the folder; Sign and the rotation then fail.
func (a *Authority) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	a.unlock()
	return a.dir.Close()
}

// TrustDomain returns the trust domain for which the authority signs.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.td }

// TTL returns the lifetime of a leaf, which is also the longest.
func (a *Authority) TTL() time.Duration { return a.opt.TTL }

// Bundle returns the roots that peers must trust: a copy.
func (a *Authority) Bundle() *x509bundle.Bundle {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.st.bundle()
}

// GetX509BundleForTrustDomain makes the authority an x509bundle.Source.
func (a *Authority) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return a.Bundle().GetX509BundleForTrustDomain(td)
}

// Updated returns a channel that is closed when the bundle next changes.
func (a *Authority) Updated() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.updated
}

// Sign checks the DER certificate request csr as CheckRequest does and returns a certificate for id: leaf first, then
// the issuing certificate; the root is not in it. id is what the caller has attested. A ttl of zero or above TTL gives
// TTL. The leaf never outlives what signed it (X509-SVID §4, RFC 5280 §4.1.2.5).
func (a *Authority) Sign(csr []byte, id spiffeid.ID, ttl time.Duration) ([]*x509.Certificate, error) {
	if id.TrustDomain() != a.TrustDomain() {
		return nil, refuse("%q is not of the trust domain %s", id, a.TrustDomain().Name())
	}
	if id.Path() == "" {
		return nil, refuse("%s names the trust domain, not a workload: an X.509-SVID needs a path", id)
	}
	req, err := CheckRequest(csr, id)
	if err != nil {
		return nil, err
	}
	if ttl <= 0 || ttl > a.opt.TTL {
		ttl = a.opt.TTL
	}
	ttl = max(ttl, minTTL)
	now := a.opt.Now()
	a.mu.Lock()
	iss, err := a.issuing(now)
	a.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             later(now.Add(-leafBackdate), iss.cert.NotBefore),
		NotAfter:              earlier(now.Add(ttl), iss.cert.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature, // written as critical, X509-SVID §4.3
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  uriOf(id), // from what was attested, never from the request
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, iss.cert, req.PublicKey, iss.key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: sign for %s: %w", id, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: sign for %s: %w", id, err)
	}
	return []*x509.Certificate{leaf, iss.cert}, nil
}

// issuing returns the current issuing pair and makes a new one when there is none, when it is past half of its life or
// when another root has become active. Called with mu held, or before the Authority is shared.
func (a *Authority) issuing(now time.Time) (*pair, error) {
	if a.closed {
		return nil, errors.New("closed")
	}
	root := a.st.active()
	cur := a.st.issuing
	if cur != nil && cur.cert.CheckSignatureFrom(root.cert) == nil {
		if half := cur.cert.NotAfter.Sub(cur.cert.NotBefore) / 2; now.Before(cur.cert.NotBefore.Add(half)) {
			return cur, nil
		}
	} else {
		cur = nil
	}
	next, err := a.newIssuing(now, root)
	if err == nil {
		st := a.st.clone()
		st.issuing = next
		if err = writeState(a.dir, st); err == nil {
			a.st = st
			a.opt.Logger.Info("issuing key made", "trust_domain", st.td.Name(), "not_after", next.cert.NotAfter)
			return next, nil
		}
	}
	// The old one is good for as long as it can still carry a whole leaf: a full disk must not stop the mesh.
	if cur != nil && now.Add(a.opt.TTL).Before(cur.cert.NotAfter) {
		a.opt.Logger.Error("issuing key not rotated, the old one stays in use", "error", err, "not_after", cur.cert.NotAfter)
		return cur, nil
	}
	return nil, err
}

func (a *Authority) newIssuing(now time.Time, root *root) (*pair, error) {
	if root.key == nil {
		return nil, fmt.Errorf("the issuing key needs renewal and the key of root %s is not in %s", Fingerprint(root.cert), a.dir.Path())
	}
	if !now.Before(root.cert.NotAfter) {
		return nil, fmt.Errorf("root certificate %s expired at %s: move %s away to begin with a new root, and give it to all peers",
			Fingerprint(root.cert), root.cert.NotAfter.Format(time.RFC3339), stateFile)
	}
	return newAuthority(a.st.td, "issuing", &root.pair, later(now.Add(-authorityBackdate), root.cert.NotBefore),
		earlier(now.Add(a.opt.IssuingTTL), root.cert.NotAfter))
}

func authorityName(role string, td spiffeid.TrustDomain, serial fmt.Stringer) pkix.Name {
	// The serial number makes two roots of one domain distinct names, so chain building never has to guess.
	return pkix.Name{Organization: []string{"sallyport"}, CommonName: role + " " + shorten(td.Name()), SerialNumber: serial.String()}
}

// RFC 5280 A.1: ub-common-name is 64.
func shorten(s string) string {
	if len(s) > 48 {
		return s[:48]
	}
	return s
}

func uriOf(id spiffeid.ID) []*url.URL { return []*url.URL{id.URL()} }

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
