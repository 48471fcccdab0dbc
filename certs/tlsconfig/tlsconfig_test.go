package tlsconfig

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

var (
	epoch  = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	td     = spiffeid.RequireTrustDomainFromString("sallyport.local")
	orders = spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/svc/orders")
	cp     = spiffeid.RequireFromString("spiffe://sallyport.local/ns/sallyport/svc/control-plane")
)

func atEpoch() time.Time { return epoch }

// authority makes certificates that the product's own authority would not.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func issue(t testing.TB, parent *authority, pub crypto.PublicKey, key *ecdsa.PrivateKey, tmpl *x509.Certificate) *x509.Certificate {
	t.Helper()
	tmpl.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	if tmpl.NotAfter.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = epoch.Add(-time.Hour), epoch.Add(time.Hour)
	}
	parentCert := tmpl
	if parent != nil {
		parentCert, key = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parentCert, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newAuthority(t testing.TB, parent *authority, change func(*x509.Certificate)) *authority {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: rand.Text()}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if change != nil {
		change(tmpl)
	}
	return &authority{issue(t, parent, key.Public(), key, tmpl), key}
}

func uris(list ...string) []*url.URL {
	var out []*url.URL
	for _, s := range list {
		u, err := url.Parse(s)
		if err != nil {
			panic(err)
		}
		out = append(out, u)
	}
	return out
}

func leafOf(id string) *x509.Certificate {
	return &x509.Certificate{
		URIs: uris(id), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// identity is a Source with what a test gives it.
type identity struct {
	chain  []*x509.Certificate
	key    crypto.Signer
	bundle *x509bundle.Bundle
	err    error
}

func (i *identity) GetX509SVID() (*x509svid.SVID, error) {
	if i.err != nil {
		return nil, i.err
	}
	id, _ := x509svid.IDFromCert(i.chain[0])
	return &x509svid.SVID{ID: id, Certificates: i.chain, PrivateKey: i.key}, nil
}

func (i *identity) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return i.bundle.GetX509BundleForTrustDomain(td)
}

func (a *authority) bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(td, []*x509.Certificate{a.cert})
}

func (a *authority) identity(t testing.TB, root *authority, tmpl *x509.Certificate, chain ...*x509.Certificate) *identity {
	t.Helper()
	key := newKey(t)
	leaf := issue(t, a, key.Public(), nil, tmpl)
	return &identity{chain: append([]*x509.Certificate{leaf}, chain...), key: key, bundle: root.bundle()}
}

// handshake runs both sides over loopback and has the client read one byte, so that TLS 1.3's late refusals are seen.
func handshake(t testing.TB, client, server *tls.Config) (cs tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		b, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer b.Close()
		conn := tls.Server(b, server)
		if err = conn.Handshake(); err == nil {
			_, err = conn.Write([]byte{1})
		}
		done <- err
	}()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(a, client)
	if clientErr = conn.Handshake(); clientErr == nil {
		_, clientErr = conn.Read(make([]byte, 1))
	}
	cs = conn.ConnectionState()
	_ = a.Close()
	return cs, clientErr, <-done
}

func TestMutualHandshake(t *testing.T) {
	root := newAuthority(t, nil, nil)
	issuing := newAuthority(t, root, nil)
	server := issuing.identity(t, root, leafOf(cp.String()), issuing.cert)
	client := issuing.identity(t, root, leafOf(orders.String()), issuing.cert)
	c := Client(client, spiffeid.MatchID(cp), WithClock(atEpoch))
	cs, clientErr, serverErr := handshake(t, c, Server(server, spiffeid.MatchMemberOf(td), WithClock(atEpoch)))
	if clientErr != nil || serverErr != nil {
		t.Fatal(clientErr, serverErr)
	}
	if cs.Version != tls.VersionTLS13 || cs.CurveID != tls.X25519MLKEM768 {
		t.Errorf("version %s, key exchange %s", tls.VersionName(cs.Version), cs.CurveID)
	}
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}
	if _, _, err := handshake(t, old, Server(server, spiffeid.MatchAny(), WithClock(atEpoch))); err == nil {
		t.Error("TLS 1.2 was taken")
	}
	if _, _, err := handshake(t, Anonymous(root.bundle(), spiffeid.MatchAny(), WithClock(atEpoch)),
		Server(server, spiffeid.MatchAny(), WithClock(atEpoch))); err == nil {
		t.Error("a client without a certificate was taken")
	}
	client.err = errors.New("identity has expired")
	if _, err, _ := handshake(t, c, Server(server, spiffeid.MatchAny(), WithClock(atEpoch))); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("a client without a valid SVID: %v", err)
	}
	server.err = client.err
	if _, _, err := handshake(t, c, Server(server, spiffeid.MatchAny(), WithClock(atEpoch))); err == nil {
		t.Error("a server without a valid SVID serves")
	}
}

func TestRotationNeedsNoNewConfig(t *testing.T) {
	root := newAuthority(t, nil, nil)
	server, client := root.identity(t, root, leafOf(cp.String())), root.identity(t, root, leafOf(orders.String()))
	c, s := Client(client, spiffeid.MatchID(cp), WithClock(atEpoch)), Server(server, spiffeid.MatchAny(), WithClock(atEpoch))
	if _, err, serr := handshake(t, c, s); err != nil || serr != nil {
		t.Fatal(err, serr)
	}
	next := newAuthority(t, nil, nil)
	*server = *next.identity(t, next, leafOf(cp.String()))
	if _, err, _ := handshake(t, c, s); err == nil {
		t.Error("a server under a root that is not in the bundle was taken")
	}
	client.bundle = x509bundle.FromX509Authorities(td, []*x509.Certificate{root.cert, next.cert})
	server.bundle = client.bundle
	cs, err, serr := handshake(t, c, s)
	if err != nil || serr != nil || !cs.PeerCertificates[0].Equal(server.chain[0]) {
		t.Errorf("after the rotation: %v, %v", err, serr)
	}
}

// TestPeerZoo shows a server every kind of client certificate, and a client every kind of server certificate.
func TestPeerZoo(t *testing.T) {
	root := newAuthority(t, nil, nil)
	issuing := newAuthority(t, root, nil)
	stranger := newAuthority(t, nil, nil)
	id := orders.String()
	with := func(change func(*x509.Certificate)) *x509.Certificate {
		tmpl := leafOf(id)
		change(tmpl)
		return tmpl
	}
	expiredCA := newAuthority(t, root, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = epoch.Add(-2*time.Hour), epoch.Add(-time.Hour) })
	noSign := newAuthority(t, root, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
	flat := newAuthority(t, root, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	below := newAuthority(t, flat, nil)
	leafKey := newKey(t)
	asCA := &authority{issue(t, root, leafKey.Public(), nil, leafOf(id)), leafKey}
	long := []*x509.Certificate{issuing.cert}
	for range maxChain {
		long = append(long, issuing.cert)
	}

	for _, tc := range []struct {
		name string
		who  *identity
		ok   bool
	}{
		{"leaf under the root", root.identity(t, root, leafOf(id)), true},
		{"leaf under an intermediate", issuing.identity(t, root, leafOf(id), issuing.cert), true},
		{"the root sent too", issuing.identity(t, root, leafOf(id), issuing.cert, root.cert), true},
		{"no extended key usage", root.identity(t, root, with(func(c *x509.Certificate) { c.ExtKeyUsage = nil })), true},
		{"valid from this second", root.identity(t, root, with(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = epoch, epoch.Add(1) })), true},

		{"intermediate not sent", issuing.identity(t, root, leafOf(id)), false},
		{"unknown root", stranger.identity(t, stranger, leafOf(id)), false},
		{"unknown root sent too", stranger.identity(t, stranger, leafOf(id), stranger.cert), false},
		{"wrong intermediate", issuing.identity(t, root, leafOf(id), stranger.cert), false},
		{"expired", root.identity(t, root, with(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = epoch.Add(-2*time.Hour), epoch.Add(-time.Second) })), false},
		{"not yet valid", root.identity(t, root, with(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = epoch.Add(time.Second), epoch.Add(time.Hour) })), false},
		{"expired intermediate", expiredCA.identity(t, root, leafOf(id), expiredCA.cert), false},
		{"intermediate that may not sign", noSign.identity(t, root, leafOf(id), noSign.cert), false},
		{"deeper than the path length", below.identity(t, root, leafOf(id), below.cert, flat.cert), false},
		{"signed by a leaf", asCA.identity(t, root, leafOf(id), asCA.cert), false},
		{"an authority as a leaf", root.identity(t, root, with(func(c *x509.Certificate) { c.IsCA = true })), false},
		{"key usage keyCertSign", root.identity(t, root, with(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign })), false},
		{"key usage cRLSign", root.identity(t, root, with(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign })), false},
		{"key usage keyAgreement only", root.identity(t, root, with(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })), false},
		{"no URI", root.identity(t, root, with(func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"orders"} })), false},
		{"two URIs", root.identity(t, root, with(func(c *x509.Certificate) { c.URIs = uris(id, cp.String()) })), false},
		{"another scheme", root.identity(t, root, leafOf("https://sallyport.local/ns/default/svc/orders")), false},
		{"another trust domain", root.identity(t, root, leafOf("spiffe://evil.local/ns/default/svc/orders")), false},
		{"trust domain without path", root.identity(t, root, leafOf("spiffe://sallyport.local")), false},
		{"trailing slash", root.identity(t, root, leafOf(id+"/")), false},
		{"dot segment", root.identity(t, root, leafOf("spiffe://sallyport.local/ns/../svc/orders")), false},
		{"query", root.identity(t, root, leafOf(id+"?a=b")), false},
		{"another service", root.identity(t, root, leafOf(id+"x")), false},
		{"ID only as common name", root.identity(t, root, with(func(c *x509.Certificate) { c.URIs = nil; c.Subject.CommonName = id; c.DNSNames = []string{"x"} })), false},
		{"a chain that is too long", issuing.identity(t, root, leafOf(id), long...), false},
	} {
		good := root.identity(t, root, leafOf(cp.String()))
		want := spiffeid.MatchID(orders)
		t.Run("client: "+tc.name, func(t *testing.T) {
			c := Client(tc.who, spiffeid.MatchAny(), WithClock(atEpoch))
			c.VerifyConnection = nil // its own bundle is not on trial
			for mode, server := range map[string]*tls.Config{"Server": Server(good, want, WithClock(atEpoch)), "JoinServer": JoinServer(good, want, WithClock(atEpoch))} {
				if _, _, err := handshake(t, c, server); (err == nil) != tc.ok {
					t.Errorf("%s: %v", mode, err)
				}
			}
		})
		t.Run("server: "+tc.name, func(t *testing.T) {
			s := Server(tc.who, spiffeid.MatchAny(), WithClock(atEpoch))
			s.ClientAuth, s.VerifyConnection = tls.NoClientCert, nil
			if _, err, _ := handshake(t, Client(good, want, WithClock(atEpoch)), s); (err == nil) != tc.ok {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestPinned(t *testing.T) {
	root := newAuthority(t, nil, nil)
	issuing := newAuthority(t, root, nil)
	server := issuing.identity(t, root, leafOf(cp.String()), issuing.cert)
	sum := sha256.Sum256(root.cert.Raw)
	pin := hex.EncodeToString(sum[:])
	pinned := Pinned(pin, spiffeid.MatchID(cp), WithClock(atEpoch))
	if _, err, serr := handshake(t, pinned, JoinServer(server, spiffeid.MatchAny(), WithClock(atEpoch))); err != nil || serr != nil {
		t.Fatal(err, serr)
	}

	mallory := newAuthority(t, nil, nil)
	sum = sha256.Sum256(issuing.cert.Raw)
	leafSum := sha256.Sum256(server.chain[0].Raw)
	for name, tc := range map[string]struct {
		who *identity
		pin string
	}{
		"another root":                        {mallory.identity(t, mallory, leafOf(cp.String()), mallory.cert), pin},
		"the right root beside another chain": {mallory.identity(t, mallory, leafOf(cp.String()), mallory.cert, root.cert), pin},
		"another service":                     {root.identity(t, root, leafOf(orders.String()), root.cert), pin},
		"the root not sent":                   {server, pin},
		"a pin of the leaf":                   {server, hex.EncodeToString(leafSum[:])},
		"an empty pin":                        {server, ""},
	} {
		s := Server(tc.who, spiffeid.MatchAny(), WithClock(atEpoch)) // sends exactly the chain
		s.ClientAuth, s.VerifyConnection = tls.NoClientCert, nil
		if _, err, _ := handshake(t, Pinned(tc.pin, spiffeid.MatchID(cp), WithClock(atEpoch)), s); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	// JoinServer that has no root for its own certificate must not serve a chain that nobody can check.
	server.bundle = mallory.bundle()
	if _, _, err := handshake(t, pinned, JoinServer(server, spiffeid.MatchAny(), WithClock(atEpoch))); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("own root unknown: %v", err)
	}
}

func TestPeerIDChecksExpiryAtTheCall(t *testing.T) {
	root := newAuthority(t, nil, nil)
	leaf := root.identity(t, root, leafOf(orders.String())).chain[0]
	ctx := func(certs ...*x509.Certificate) context.Context {
		return peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: certs}}})
	}
	if id, ok, err := PeerID(ctx(leaf), epoch); err != nil || !ok || id != orders {
		t.Errorf("PeerID = %s, %v, %v", id, ok, err)
	}
	if _, ok, err := PeerID(ctx(leaf), leaf.NotAfter); ok || err == nil {
		t.Error("an expired certificate on an open connection is an identity")
	}
	for name, c := range map[string]context.Context{"no peer": t.Context(), "no certificate": ctx()} {
		if _, ok, err := PeerID(c, epoch); ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}
