package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// validity is that of everything made for a run, which is far shorter.
const validity = 48 * time.Hour

// makePKI writes an authority, and the identities a (clients) and b (servers), as Envoy, HAProxy and nginx want them:
// ca.pem, NAME.pem, NAME.key, and NAME.both.pem with both.
func makePKI(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	now := time.Now()
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca, err := x509.CreateCertificate(rand.Reader, authority, authority, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, "ca.pem"), block("CERTIFICATE", ca)); err != nil {
		return err
	}
	for i, name := range []string{"a", "b"} {
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
			URIs: []*url.URL{{Scheme: "spiffe", Host: "mesh.local", Path: "/svc/" + name}}, DNSNames: []string{name + ".local", "localhost"}}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		cert, err := x509.CreateCertificate(rand.Reader, leaf, authority, key.Public(), caKey)
		if err != nil {
			return err
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return err
		}
		chain, private := block("CERTIFICATE", cert), block("EC PRIVATE KEY", der)
		for file, blocks := range map[string][]*pem.Block{".pem": {chain}, ".key": {private}, ".both.pem": {chain, private}} {
			if err := writePEM(filepath.Join(dir, name+file), blocks...); err != nil {
				return err
			}
		}
	}
	return nil
}

func block(kind string, der []byte) *pem.Block { return &pem.Block{Type: kind, Bytes: der} }

func writePEM(path string, blocks ...*pem.Block) error {
	var text []byte
	for _, b := range blocks {
		text = append(text, pem.EncodeToMemory(b)...)
	}
	return os.WriteFile(path, text, 0o600)
}

const issuer = "https://issuer.bench.local"

// makeToken makes a key set and a token of ES256 that it verifies.
func makeToken() (token, jwks string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "bench"}}, nil)
	if err != nil {
		return "", "", err
	}
	token, err = jwt.Signed(signer).Claims(jwt.Claims{Issuer: issuer, Subject: "bench", Audience: jwt.Audience{"bench"}, Expiry: jwt.NewNumericDate(time.Now().Add(validity))}).Serialize()
	if err != nil {
		return "", "", err
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "bench", Algorithm: string(jose.ES256), Use: "sig"}}})
	return token, string(set), err
}
