package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Authority is a certificate authority of the test.
type Authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	Path string // its certificate, PEM
	Pool *x509.CertPool
}

// Identity is a certificate with its key, in files and for Go.
type Identity struct {
	CertPath, KeyPath string
	TLS               tls.Certificate
}

// NewAuthority makes a certificate authority for a SPIFFE trust domain.
func NewAuthority(t testing.TB, trustDomain string) *Authority {
	t.Helper()
	a := &Authority{t: t, dir: t.TempDir(), key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.Pool = x509.NewCertPool()
	a.Pool.AddCert(a.cert)
	a.Path = a.write("ca.pem", "CERTIFICATE", der)
	return a
}

// Issue makes a certificate for both uses. Names are SPIFFE IDs (spiffe://…), IP addresses or DNS names.
func (a *Authority) Issue(names ...string) Identity {
	a.t.Helper()
	return a.IssueUntil(time.Now().Add(time.Hour), names...)
}

// IssueUntil is Issue with an end, which may lie in the past.
func (a *Authority) IssueUntil(end time.Time, names ...string) Identity {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: serial(a.t), Subject: pkix.Name{CommonName: names[0]}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, name := range names {
		if uri, err := url.Parse(name); err == nil && uri.Scheme == "spiffe" {
			template.URIs = append(template.URIs, uri)
		} else if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	key := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	base := strings.NewReplacer("/", "_", ":", "_", "*", "_").Replace(names[0]) + template.SerialNumber.Text(36)
	return Identity{
		CertPath: a.write(base+".crt", "CERTIFICATE", der), KeyPath: a.write(base+".key", "PRIVATE KEY", keyDER),
		TLS: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
	}
}

// Client is a TLS configuration that trusts the authority; the identity may be left out.
func (a *Authority) Client(serverName string, identity ...Identity) *tls.Config {
	c := &tls.Config{RootCAs: a.Pool, ServerName: serverName}
	for _, i := range identity {
		c.Certificates = append(c.Certificates, i.TLS)
	}
	return c
}

func (a *Authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Issuer signs JSON web tokens with ES256.
type Issuer struct {
	t      testing.TB
	Name   string // iss
	key    *ecdsa.PrivateKey
	signer jose.Signer
}

// NewIssuer makes an issuer with a key of its own.
func NewIssuer(t testing.TB, name string) *Issuer {
	t.Helper()
	i := &Issuer{t: t, Name: name, key: newKey(t)}
	var err error
	i.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: "test"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// JWKS is the public key set, as JSON in one line.
func (i *Issuer) JWKS() string {
	i.t.Helper()
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: "test", Algorithm: string(jose.ES256), Use: "sig"}}}
	text, err := json.Marshal(set)
	if err != nil {
		i.t.Fatal(err)
	}
	return string(text)
}

// Token signs a token that is valid until exp, with further claims.
func (i *Issuer) Token(exp time.Time, claims map[string]any) string {
	i.t.Helper()
	token, err := jwt.Signed(i.signer).Claims(jwt.Claims{Issuer: i.Name, Subject: "tester", Expiry: jwt.NewNumericDate(exp)}).Claims(claims).Serialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return token
}

// Server is a TLS configuration that presents the identity.
func (i Identity) Server() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{i.TLS}} }
