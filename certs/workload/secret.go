package workload

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"sallyport/certs/source"
)

// Names under which SPIRE serves secrets to Envoy, kept so that the same Envoy configuration works with either. The
// SPIFFE ID of an SVID and of a trust domain are names too.
const (
	CertificateName = "default" // the first SVID
	BundleName      = "ROOTCA"  // the bundle of its trust domain
)

// CertificateSecret is an SVID and its key as Envoy's secret.
func CertificateSecret(name string, svid *x509svid.SVID) (*tlsv3.Secret, error) {
	chain, key, err := svid.Marshal()
	if err != nil {
		return nil, err
	}
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(chain), PrivateKey: inline(key),
	}}}, nil
}

// BundleSecret is a trust bundle as Envoy's validation context. It trusts the whole domain: which SPIFFE IDs are
// welcome is for the listener or cluster to say (match_typed_subject_alt_names).
func BundleSecret(name string, b *x509bundle.Bundle) *tlsv3.Secret {
	var roots bytes.Buffer
	for _, c := range sorted(b) {
		_ = pem.Encode(&roots, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a bytes.Buffer does not fail
	}
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
		TrustedCa: inline(roots.Bytes()),
	}}}
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// versioned is a secret and a name for its content, which holds nothing of the key.
type versioned struct {
	secret  *tlsv3.Secret
	version string
}

// secrets is everything one caller may ask for, by name.
type secrets map[string]versioned

// collect reads the sources. A source whose SVID has expired contributes its bundles only; the error then tells why,
// and the rest stands.
func collect(sources []source.Source) (secrets, error) {
	all := secrets{}
	var failed error
	for i, src := range sources {
		for j, b := range src.Bundles() {
			v := digest(sorted(b)...)
			names := []string{b.TrustDomain().IDString()}
			if i == 0 && j == 0 {
				names = append(names, BundleName)
			}
			for _, name := range names {
				all[name] = versioned{BundleSecret(name, b), v}
			}
		}
		svid, err := src.GetX509SVID()
		if err != nil {
			failed = err
			continue
		}
		names := []string{svid.ID.String()}
		if i == 0 {
			names = append(names, CertificateName)
		}
		for _, name := range names {
			secret, err := CertificateSecret(name, svid)
			if err != nil {
				return nil, fmt.Errorf("secret %s: %w", name, err)
			}
			all[name] = versioned{secret, digest(svid.Certificates...)}
		}
	}
	return all, failed
}

// version names a set of secrets.
func (s secrets) version() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(h, "%s=%s\n", name, s[name].version)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func digest(certs ...*x509.Certificate) string {
	h := sha256.New()
	for _, c := range certs {
		h.Write(c.Raw)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
