package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

var (
	ordersID = spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/svc/orders")
	evilID   = "spiffe://sallyport.local/ns/default/svc/payments"
)

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func mustURI(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

func makeCSR(t testing.TB, key crypto.Signer, tmpl *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// san is a subject alternative name extension with exactly these names.
func san(t testing.TB, names ...asn1.RawValue) pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oidSubjectAltName, Value: der}
}

func general(tag int, s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(s)}
}

func withURIs(uris ...string) *x509.CertificateRequest {
	tmpl := &x509.CertificateRequest{}
	for _, u := range uris {
		tmpl.URIs = append(tmpl.URIs, mustURI(u))
	}
	return tmpl
}

func TestCheckRequest(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	id := ordersID.String()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw := func(exts ...pkix.Extension) []byte {
		return makeCSR(t, key, &x509.CertificateRequest{ExtraExtensions: exts})
	}
	bc := func(value ...byte) pkix.Extension {
		return pkix.Extension{Id: oidBasicConstraints, Value: value}
	}
	flip := func(der []byte, from int) []byte {
		der = append([]byte(nil), der...)
		der[len(der)-from] ^= 1
		return der
	}
	good := makeCSR(t, key, withURIs(id))
	dns := withURIs(id)
	dns.DNSNames = []string{"orders.example.org"}
	ip := withURIs(id)
	ip.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	mail := withURIs(id)
	mail.EmailAddresses = []string{"a@example.org"}
	subject := withURIs(id)
	subject.Subject = pkix.Name{CommonName: evilID}
	sha1 := withURIs(id)
	sha1.SignatureAlgorithm = x509.ECDSAWithSHA384

	for _, tc := range []struct {
		name string
		der  []byte
		err  string // "" is accepted
	}{
		{"ECDSA P-256", good, ""},
		{"ECDSA P-384", makeCSR(t, ecKey(t, elliptic.P384()), withURIs(id)), ""},
		{"Ed25519", makeCSR(t, ed, withURIs(id)), ""},
		{"RSA 2048", makeCSR(t, rsaKey(t, 2048), withURIs(id)), ""},
		{"P-256 with SHA-384", makeCSR(t, key, sha1), ""},
		{"a subject is ignored, not copied", makeCSR(t, key, subject), ""},
		{"basic constraints say it is no authority", raw(san(t, general(tagURI, id)), bc(0x30, 0)), ""},

		{"nothing", nil, "not a PKCS #10"},
		{"garbage", []byte("hello"), "not a PKCS #10"},
		{"cut short", good[:len(good)-1], "not a PKCS #10"},
		{"something after it", append(append([]byte(nil), good...), 0), "not a PKCS #10"},
		{"too large", make([]byte, MaxCSRSize+1), "at most"},
		{"signature changed", flip(good, 1), "signature does not fit"},
		{"signed by another key", resign(t, good, makeCSR(t, ecKey(t, elliptic.P256()), withURIs(id))), "signature does not fit"},
		{"P-224", makeCSR(t, ecKey(t, elliptic.P224()), withURIs(id)), "curve"},
		{"P-521", makeCSR(t, ecKey(t, elliptic.P521()), withURIs(id)), "curve"},
		{"RSA 1024", makeCSR(t, rsaKey(t, 1024), withURIs(id)), "RSA key of 1024"},

		{"no name", makeCSR(t, key, withURIs()), "0 subject alternative name extensions"},
		{"only a subject", makeCSR(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}), "0 subject alternative name"},
		{"another service", makeCSR(t, key, withURIs(evilID)), "attested as"},
		{"another trust domain", makeCSR(t, key, withURIs("spiffe://evil.local/ns/default/svc/orders")), "attested as"},
		{"two URIs, ours first (CVE-2022-40716)", makeCSR(t, key, withURIs(id, evilID)), "2 subject alternative names"},
		{"two URIs, ours last", makeCSR(t, key, withURIs(evilID, id)), "2 subject alternative names"},
		{"our URI twice", makeCSR(t, key, withURIs(id, id)), "2 subject alternative names"},
		{"a DNS name too", makeCSR(t, key, dns), "2 subject alternative names"},
		{"an address too", makeCSR(t, key, ip), "2 subject alternative names"},
		{"a mail address too", makeCSR(t, key, mail), "2 subject alternative names"},
		{"only a DNS name", makeCSR(t, key, &x509.CertificateRequest{DNSNames: []string{id}}), "not a URI"},
		{"a name of an unknown kind too", raw(san(t, general(tagURI, id), general(8, "x"))), "2 subject alternative names"},
		{"our ID as a registered ID", raw(san(t, general(8, id))), "not a URI"},
		{"an empty list of names", raw(san(t)), "0 subject alternative names"},
		{"two extensions, ours last", raw(san(t, general(tagURI, evilID)), san(t, general(tagURI, id))), "refused"},
		{"upper-case scheme", raw(san(t, general(tagURI, strings.Replace(id, "spiffe", "SPIFFE", 1)))), "attested as"},
		{"upper-case trust domain", raw(san(t, general(tagURI, "spiffe://Sallyport.local/ns/default/svc/orders"))), "attested as"},
		{"trailing slash", raw(san(t, general(tagURI, id+"/"))), "attested as"},
		{"percent-encoded letter", raw(san(t, general(tagURI, "spiffe://sallyport.local/ns/default/svc/order%73"))), "attested as"},
		{"dot segment", raw(san(t, general(tagURI, "spiffe://sallyport.local/ns/default/svc/x/../orders"))), "attested as"},
		{"port", raw(san(t, general(tagURI, "spiffe://sallyport.local:443/ns/default/svc/orders"))), "attested as"},
		{"user info", raw(san(t, general(tagURI, "spiffe://a@sallyport.local/ns/default/svc/orders"))), "attested as"},
		{"query", raw(san(t, general(tagURI, id+"?x=1"))), "attested as"},
		{"fragment", raw(san(t, general(tagURI, id+"#x"))), "attested as"},
		{"NUL after it", raw(san(t, general(tagURI, id+"\x00"))), "refused"},
		{"blank before it", raw(san(t, general(tagURI, " "+id))), "refused"},
		{"asks for an authority", raw(san(t, general(tagURI, id)), bc(0x30, 3, 1, 1, 0xff)), "certificate authority"},
		{"basic constraints unreadable", raw(san(t, general(tagURI, id)), bc(0x31, 0)), "basic constraints"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := CheckRequest(tc.der, ordersID)
			if tc.err == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want ErrRequest with %q", err, tc.err)
			}
		})
	}
}

// resign puts the signature of another request under body's content.
func resign(t testing.TB, body, other []byte) []byte {
	t.Helper()
	type csr struct {
		TBS, Alg asn1.RawValue
		Sig      asn1.BitString
	}
	var a, b csr
	if _, err := asn1.Unmarshal(body, &a); err != nil {
		t.Fatal(err)
	}
	if _, err := asn1.Unmarshal(other, &b); err != nil {
		t.Fatal(err)
	}
	a.Sig = b.Sig
	der, err := asn1.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// FuzzSign: whatever the request is, what is signed is a leaf of the attested identity and of the request's own key.
func FuzzSign(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	f.Add(makeCSR(f, key, withURIs(ordersID.String())))
	f.Add(makeCSR(f, key, withURIs(ordersID.String(), evilID)))
	f.Add(makeCSR(f, key, withURIs(evilID)))
	f.Add(makeCSR(f, key, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{
		san(f, general(tagURI, ordersID.String())), {Id: oidBasicConstraints, Value: []byte{0x30, 3, 1, 1, 0xff}}}}))
	a, err := Open(f.TempDir()+"/ca", Options{Logger: quiet})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = a.Close() })
	f.Fuzz(func(t *testing.T, der []byte) {
		_, _ = RequestedID(der)
		chain, err := a.Sign(der, ordersID, time.Minute)
		if err != nil {
			if !errors.Is(err, ErrRequest) {
				t.Fatalf("a bad request is not ErrRequest: %v", err)
			}
			return
		}
		id, _, err := x509svid.Verify(chain, a)
		if err != nil || id != ordersID || chain[0].IsCA || len(chain[0].DNSNames)+len(chain[0].IPAddresses) > 0 {
			t.Fatalf("signed %s, %v for the attested %s", id, err, ordersID)
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || csr.CheckSignature() != nil {
			t.Fatalf("signed a request that does not hold")
		}
	})
}
