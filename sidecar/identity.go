package sidecar

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/certs/source"
)

// identity shows a source of certs as what TLS contexts ask for (secret.Identity).
type identity struct{ src source.Source }

// Certificate is the present SVID with its key.
func (i identity) Certificate() (*tls.Certificate, error) {
	svid, err := i.src.GetX509SVID()
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}

// Roots are the authorities of a trust domain, "" for the own one.
func (i identity) Roots(trustDomain string) (*x509.CertPool, error) {
	td := i.src.State().ID.TrustDomain()
	if trustDomain != "" {
		var err error
		if td, err = spiffeid.TrustDomainFromString(trustDomain); err != nil {
			return nil, err
		}
	}
	bundle, err := i.src.GetX509BundleForTrustDomain(td)
	if err != nil {
		return nil, fmt.Errorf("trust bundle of %s: %w", td, err)
	}
	pool := x509.NewCertPool()
	for _, c := range bundle.X509Authorities() {
		pool.AddCert(c)
	}
	return pool, nil
}

// Changed is closed at the next change.
func (i identity) Changed() <-chan struct{} { return i.src.Updated() }

// noIdentity stands for the process's identity where a configuration is only
// validated: it has none, and that is no mistake of the configuration.
type noIdentity struct{}

func (noIdentity) Certificate() (*tls.Certificate, error) { return nil, errNoIdentity }
func (noIdentity) Roots(string) (*x509.CertPool, error)   { return nil, errNoIdentity }
func (noIdentity) Changed() <-chan struct{}               { return nil }

var errNoIdentity = errors.New("there is no identity while a configuration is validated")
