package ca

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxCSRSize bounds a certificate request in DER. An RSA-4096 request with a long SPIFFE ID (2,048 bytes at most,
// SPIFFE-ID §2.3) stays under 4 KiB.
const MaxCSRSize = 8 << 10

// ErrRequest is wrapped by every error that says the certificate request itself is not acceptable; asking again with
// the same request will not help.
var ErrRequest = errors.New("certificate request refused")

var (
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
)

// Tag of uniformResourceIdentifier in GeneralName, RFC 5280 §4.2.1.6.
const tagURI = 6

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRequest, fmt.Errorf(format, args...))
}

// CheckRequest parses a DER certificate request and checks that its sender holds the key and asks for exactly the
// attested identity: signature valid, one subject alternative name, which is a URI, which is id. A request that also
// names something else is refused, not trimmed: a signer that looks at only one of several names is CVE-2022-40716.
func CheckRequest(der []byte, id spiffeid.ID) (*x509.CertificateRequest, error) {
	if len(der) > MaxCSRSize {
		return nil, refuse("%d bytes, at most %d are read", len(der), MaxCSRSize)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, refuse("not a PKCS #10 request: %w", err)
	}
	if err := checkKey(csr); err != nil {
		return nil, err
	}
	switch csr.SignatureAlgorithm {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519,
		x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
	default: // CheckSignature would still take SHA-1.
		return nil, refuse("signature algorithm %s is not accepted: use SHA-256 or better", csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, refuse("its signature does not fit its key: %w", err)
	}
	return csr, checkNames(csr, id)
}

func checkKey(csr *x509.CertificateRequest) error {
	switch key := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return refuse("ECDSA curve %s is not accepted: use P-256 or P-384", key.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		// The upper bound keeps one request from costing every later verifier dear.
		if bits := key.N.BitLen(); bits < 2048 || bits > 4096 {
			return refuse("RSA key of %d bits is not accepted: use 2048 to 4096, or ECDSA P-256", bits)
		}
	default:
		return refuse("key algorithm is not accepted: use ECDSA P-256")
	}
	return nil
}

func checkNames(csr *x509.CertificateRequest, id spiffeid.ID) error {
	var names []byte
	found := 0
	for _, ext := range csr.Extensions {
		switch {
		case ext.Id.Equal(oidSubjectAltName):
			names = ext.Value
			found++
		case ext.Id.Equal(oidBasicConstraints):
			var bc struct {
				IsCA       bool `asn1:"optional"`
				MaxPathLen int  `asn1:"optional,default:-1"`
			}
			if rest, err := asn1.Unmarshal(ext.Value, &bc); err != nil || len(rest) > 0 {
				return refuse("its basic constraints cannot be read")
			}
			if bc.IsCA {
				return refuse("it asks for a certificate authority; only leaf certificates are issued")
			}
		}
	}
	if found != 1 {
		return refuse("it has %d subject alternative name extensions, must have one with the URI %s", found, id)
	}
	// The extension is read here anew: crypto/x509 skips kinds of names that it does not know.
	var seq []asn1.RawValue
	if rest, err := asn1.Unmarshal(names, &seq); err != nil || len(rest) > 0 {
		return refuse("its subject alternative names cannot be read")
	}
	if len(seq) != 1 {
		return refuse("it has %d subject alternative names, must have one, the URI %s", len(seq), id)
	}
	if seq[0].Class != asn1.ClassContextSpecific || seq[0].Tag != tagURI || seq[0].IsCompound {
		return refuse("its subject alternative name is not a URI, must be %s", id)
	}
	// Byte for byte: no URI normalization stands between what was attested and what is compared.
	if got := string(seq[0].Bytes); got != id.String() {
		return refuse("it asks for %q, but the caller is attested as %s", truncate(got), id)
	}
	return nil
}

func truncate(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// RequestedID reads which identity a certificate request asks for. Nothing is proved by it: it tells an attestor what to
// decide about, and CheckRequest then holds the request to the decision.
func RequestedID(der []byte) (spiffeid.ID, error) {
	if len(der) > MaxCSRSize {
		return spiffeid.ID{}, refuse("%d bytes, at most %d are read", len(der), MaxCSRSize)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return spiffeid.ID{}, refuse("not a PKCS #10 request: %w", err)
	}
	if len(csr.URIs) != 1 {
		return spiffeid.ID{}, refuse("it has %d URI names, must have one, a SPIFFE ID", len(csr.URIs))
	}
	id, err := spiffeid.FromURI(csr.URIs[0])
	if err != nil {
		return spiffeid.ID{}, refuse("its URI %q is not a SPIFFE ID: %w", truncate(csr.URIs[0].String()), err)
	}
	return id, nil
}
