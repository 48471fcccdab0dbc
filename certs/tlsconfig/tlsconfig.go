// Package tlsconfig builds the crypto/tls configurations by which sidecars and the control plane talk: TLS 1.3 only,
// peers known by SPIFFE ID and by nothing else, current SVID read at each handshake so that a rotation needs no
// restart. Key exchange is crypto/tls's own order, X25519MLKEM768 first. The configurations are immutable and safe for
// concurrent use; the functions in them run on whatever goroutine does the handshake, never on a worker.
package tlsconfig

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// maxChain bounds the certificates of a peer that are looked at.
const maxChain = 8

// Source is what a configuration reads at each handshake; source.Source is one.
type Source interface {
	x509svid.Source
	x509bundle.Source
}

// Option changes a configuration.
type Option func(*options)

type options struct {
	now func() time.Time
}

// WithClock verifies certificates by now instead of time.Now.
func WithClock(now func() time.Time) Option { return func(o *options) { o.now = now } }

func newOptions(opts []Option) options {
	o := options{now: time.Now}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// base is what all configurations have. Session tickets are off: a resumed session would keep a peer in whose
// certificate has since expired, and skip the look at its identity.
func base(o options) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		Time:                   o.now,
	}
}

// Server requires a client certificate, of an identity that allowed takes.
func Server(src Source, allowed spiffeid.Matcher, opts ...Option) *tls.Config {
	o := newOptions(opts)
	c := base(o)
	c.ClientAuth = tls.RequireAnyClientCert // verified below, by SPIFFE's rules
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate(src) }
	c.VerifyConnection = func(cs tls.ConnectionState) error { return verify(cs, src, allowed, o.now()) }
	return c
}

// JoinServer takes clients without a certificate too: those that have none yet and come with a join token. A client
// certificate that is given must be good. Every call must then be checked with PeerID. The chain it sends ends in the
// root, which TLS does not ask for, but by which a newcomer recognizes us (Pinned).
func JoinServer(src Source, allowed spiffeid.Matcher, opts ...Option) *tls.Config {
	c := Server(src, allowed, opts...)
	c.ClientAuth = tls.RequestClientCert
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := certificate(src)
		if err != nil {
			return nil, err
		}
		return withRoot(cert, src)
	}
	must := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return must(cs)
	}
	return c
}

// Client shows our SVID and takes only a server of an identity that allowed takes.
func Client(src Source, allowed spiffeid.Matcher, opts ...Option) *tls.Config {
	c := Anonymous(src, allowed, opts...)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate(src) }
	return c
}

// Anonymous shows no certificate and checks the server by a bundle.
func Anonymous(bundles x509bundle.Source, allowed spiffeid.Matcher, opts ...Option) *tls.Config {
	o := newOptions(opts)
	c := base(o)
	// Replaced, not skipped: crypto/tls would look for a DNS name, VerifyConnection looks at the SPIFFE ID.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error { return verify(cs, bundles, allowed, o.now()) }
	return c
}

// Pinned is Anonymous for one that has no bundle yet, only the SHA-256 fingerprint (lower-case hex) of the root: the
// server must send that root, and its chain must lead there. There is no trust on first use.
func Pinned(fingerprint string, allowed spiffeid.Matcher, opts ...Option) *tls.Config {
	o := newOptions(opts)
	c := base(o)
	c.InsecureSkipVerify = true // replaced, as above
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		root := findPinned(cs.PeerCertificates, fingerprint)
		if root == nil {
			return fmt.Errorf("control plane's root is not the one in the join token (%s): the token is of another control "+
				"plane, the root was rotated since, or somebody stands in between", fingerprint)
		}
		id, err := x509svid.IDFromCert(cs.PeerCertificates[0])
		if err != nil {
			return fmt.Errorf("server certificate: %w", err)
		}
		return verify(cs, x509bundle.FromX509Authorities(id.TrustDomain(), []*x509.Certificate{root}), allowed, o.now())
	}
	return c
}

func findPinned(chain []*x509.Certificate, fingerprint string) *x509.Certificate {
	for _, cert := range chain[:min(len(chain), maxChain)] {
		sum := sha256.Sum256(cert.Raw)
		if cert.IsCA && subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(fingerprint)) == 1 {
			return cert
		}
	}
	return nil
}

// verify runs in VerifyConnection, which crypto/tls calls on every handshake, resumed ones too.
func verify(cs tls.ConnectionState, bundles x509bundle.Source, allowed spiffeid.Matcher, now time.Time) error {
	chain := cs.PeerCertificates
	if len(chain) == 0 {
		return errors.New("peer gave no certificate")
	}
	if len(chain) > maxChain {
		return fmt.Errorf("peer gave %d certificates, at most %d are looked at", len(chain), maxChain)
	}
	id, _, err := x509svid.Verify(chain, bundles, x509svid.WithTime(now))
	if err != nil {
		return fmt.Errorf("peer certificate: %w", err)
	}
	// X509-SVID §4.3: a leaf must have digitalSignature; go-spiffe checks it of our own SVIDs, not of a peer's.
	if chain[0].KeyUsage&x509.KeyUsageDigitalSignature == 0 || id.Path() == "" {
		return fmt.Errorf("peer certificate of %s is not a leaf X.509-SVID", id)
	}
	if err := allowed(id); err != nil {
		return fmt.Errorf("peer %s is not allowed here: %w", id, err)
	}
	return nil
}

func certificate(src x509svid.Source) (*tls.Certificate, error) {
	svid, err := src.GetX509SVID()
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}

func withRoot(cert *tls.Certificate, src Source) (*tls.Certificate, error) {
	last, err := x509.ParseCertificate(cert.Certificate[len(cert.Certificate)-1])
	if err != nil {
		return nil, err
	}
	id, err := x509svid.IDFromCert(cert.Leaf)
	if err != nil {
		return nil, err
	}
	bundle, err := src.GetX509BundleForTrustDomain(id.TrustDomain())
	if err != nil {
		return nil, err
	}
	for _, root := range bundle.X509Authorities() {
		if bytes.Equal(root.RawSubject, last.RawIssuer) && bytes.Equal(root.SubjectKeyId, last.AuthorityKeyId) {
			cert.Certificate = append(cert.Certificate, root.Raw)
			return cert, nil
		}
	}
	return nil, fmt.Errorf("trust bundle of %s does not hold the root of our own certificate", id.TrustDomain().Name())
}

// PeerID returns the identity that the caller of a gRPC method proved at its TLS handshake, if its certificate has not
// expired since: a connection may be older than the certificate that opened it. ok is false for a caller without one.
func PeerID(ctx context.Context, now time.Time) (id spiffeid.ID, ok bool, err error) {
	p, found := peer.FromContext(ctx)
	if !found {
		return spiffeid.ID{}, false, nil
	}
	info, found := p.AuthInfo.(credentials.TLSInfo)
	if !found || len(info.State.PeerCertificates) == 0 {
		return spiffeid.ID{}, false, nil
	}
	leaf := info.State.PeerCertificates[0]
	if !now.Before(leaf.NotAfter) {
		return spiffeid.ID{}, false, fmt.Errorf("client certificate expired at %s", leaf.NotAfter.Format(time.RFC3339))
	}
	id, err = x509svid.IDFromCert(leaf)
	if err != nil {
		return spiffeid.ID{}, false, fmt.Errorf("client certificate: %w", err)
	}
	return id, true, nil
}
