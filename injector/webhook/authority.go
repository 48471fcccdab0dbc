package webhook

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

const (
	maxAuthorities = 8         // in a secret; a rotation needs two
	maxSecret      = 256 << 10 // bytes of PEM

	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY" // PKCS #8
)

// authority is a root that signs serving certificates. Immutable.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	id   [sha256.Size]byte
}

// lives are the times of the rotation. Everything about it follows from the secret, these times and the clock, so that
// replicas come to the same result without talking to each other.
type lives struct {
	ca   time.Duration // of an authority; its successor is made when a third of it is left
	leaf time.Duration // of a serving certificate; renewed at half of it
	// settle is for how long a new authority stands in the caBundle before anything is signed by it: an API server takes
	// the new configuration from a watch, a little later than it was written.
	settle time.Duration
}

// backdate is how far clocks may differ.
func (l lives) backdate() time.Duration { return min(l.leaf/2, time.Hour) }

// newAuthority makes a root that is valid from now on.
func newAuthority(now time.Time, l lives) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	n, err := serial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: n,
		// Names of two authorities differ, as a verifier finds issuers by name.
		Subject:               pkix.Name{CommonName: "sallyport injector " + n.Text(36)[:8]},
		NotBefore:             now.Add(-l.backdate()),
		NotAfter:              now.Add(l.ca),
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, id: sha256.Sum256(der)}, nil
}

func serial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 158)) // at most 20 octets, RFC 5280 §4.1.2.2
	if err != nil {
		return nil, err
	}
	return n.SetBit(n, 158, 1), nil
}

// leaf signs a serving certificate, which does not outlive the authority.
func (a *authority) leaf(now time.Time, l lives, names []string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	n, err := serial()
	if err != nil {
		return nil, err
	}
	end := now.Add(l.leaf)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: n, Subject: pkix.Name{CommonName: "sallyport injector"}, DNSNames: names,
		NotBefore: now.Add(-l.backdate()), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}, nil
}

// authorities are those of the secret, the oldest first. Immutable.
type authorities []*authority

// turn returns the authorities as they should be now, and whether that is a change: expired ones go, and those whose last
// certificate has ended because a younger one signs since; a successor comes when the youngest has a third of its life left.
func (as authorities) turn(now time.Time, l lives) (authorities, bool, error) {
	next := slices.DeleteFunc(slices.Clone(as), func(a *authority) bool { return !now.Before(a.cert.NotAfter) })
	for len(next) > 1 {
		// The second has been in the bundle since its birth; from settle on it signs, and a leaf later nothing of the first
		// is in use. Twice that for a replica that was late.
		born := next[1].cert.NotBefore.Add(l.backdate())
		if now.Before(born.Add(2 * (l.settle + l.leaf))) {
			break
		}
		next = next[1:]
	}
	if n := len(next); n == 0 || next[n-1].cert.NotAfter.Sub(now) < l.ca/3 {
		a, err := newAuthority(now, l)
		if err != nil {
			return nil, false, fmt.Errorf("certificate authority: %w", err)
		}
		next = append(next, a)
	}
	return next, !slices.Equal(next, as), nil
}

// bundle is the caBundle: the certificates in PEM.
func (as authorities) bundle() []byte {
	var b bytes.Buffer
	for _, a := range as {
		pem.Encode(&b, &pem.Block{Type: blockCertificate, Bytes: a.cert.Raw}) // a Buffer takes all
	}
	return b.Bytes()
}

// marshal is what the secret holds: certificate and key of each, in PEM.
func (as authorities) marshal() ([]byte, error) {
	var b bytes.Buffer
	for _, a := range as {
		der, err := x509.MarshalPKCS8PrivateKey(a.key)
		if err != nil {
			return nil, err
		}
		pem.Encode(&b, &pem.Block{Type: blockCertificate, Bytes: a.cert.Raw})
		pem.Encode(&b, &pem.Block{Type: blockKey, Bytes: der})
	}
	return b.Bytes(), nil
}

// parseAuthorities is the reverse of marshal. Nothing at all is no authority yet; anything else that is not ours is an
// error, as it must not be overwritten.
func parseAuthorities(data []byte) (authorities, error) {
	if len(data) > maxSecret {
		return nil, fmt.Errorf("larger than %d bytes", maxSecret)
	}
	var as authorities
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var c, k *pem.Block
		if c, rest = pem.Decode(rest); c == nil || c.Type != blockCertificate {
			return nil, errors.New("no PEM of certificates and keys in turn")
		}
		if k, rest = pem.Decode(rest); k == nil || k.Type != blockKey {
			return nil, errors.New("a certificate without its key")
		}
		if len(as) >= maxAuthorities {
			return nil, fmt.Errorf("more than %d authorities", maxAuthorities)
		}
		a, err := parseAuthority(c.Bytes, k.Bytes)
		if err != nil {
			return nil, err
		}
		as = append(as, a)
	}
	return as, nil
}

func parseAuthority(certDER, keyDER []byte) (*authority, error) {
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return nil, errors.New("a key that is no PKCS #8") // the parser's words may quote the key
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) || !cert.IsCA {
		return nil, fmt.Errorf("the key is not that of the authority %q", cert.Subject.CommonName)
	}
	return &authority{cert: cert, key: key, id: sha256.Sum256(certDER)}, nil
}
