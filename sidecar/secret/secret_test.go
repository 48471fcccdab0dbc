package secret

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/sidecar/config/fields"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	k := newKey(t)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, k, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

// pair is a certificate and its key in PEM.
type pair struct {
	cert, key string
	leaf      *x509.Certificate
}

// zoo makes a leaf; change may spoil the template.
func (a *authority) zoo(t testing.TB, id string, change func(*x509.Certificate)) pair {
	t.Helper()
	k := newKey(t)
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if id != "" {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs = []*url.URL{u}
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pair{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb})), leaf}
}

func inline(s string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
}

func file(name string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: name}}
}

func (p pair) proto() *tlsv3.TlsCertificate {
	return &tlsv3.TlsCertificate{CertificateChain: inline(p.cert), PrivateKey: inline(p.key)}
}

func exactURI(v string) *tlsv3.SubjectAltNameMatcher {
	return &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI,
		Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: v}}}
}

func serverContext(p pair, v *tlsv3.CertificateValidationContext) *tlsv3.DownstreamTlsContext {
	c := &tlsv3.CommonTlsContext{TlsCertificates: []*tlsv3.TlsCertificate{p.proto()}, AlpnProtocols: []string{"h2"}}
	if v != nil {
		c.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v}
	}
	return &tlsv3.DownstreamTlsContext{CommonTlsContext: c, RequireClientCertificate: wrapperspb.Bool(v != nil)}
}

func clientContext(p *pair, v *tlsv3.CertificateValidationContext) *tlsv3.UpstreamTlsContext {
	c := &tlsv3.CommonTlsContext{AlpnProtocols: []string{"h2"}}
	if p != nil {
		c.TlsCertificates = []*tlsv3.TlsCertificate{p.proto()}
	}
	if v != nil {
		c.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v}
	}
	return &tlsv3.UpstreamTlsContext{CommonTlsContext: c, Sni: "svc"}
}

func newStore(t testing.TB, o Options) *Store {
	s := NewStore(o)
	t.Cleanup(s.Close)
	return s
}

func (s *Store) mustServer(t testing.TB, m *tlsv3.DownstreamTlsContext) *Server {
	t.Helper()
	r := fields.NewReport("listener", "l")
	c := s.Server(r, "ctx", m)
	if c == nil {
		t.Fatal(r.Err())
	}
	return c
}

func (s *Store) mustClient(t testing.TB, m *tlsv3.UpstreamTlsContext) *Client {
	t.Helper()
	r := fields.NewReport("cluster", "c")
	c := s.Client(r, "ctx", m, ClientOptions{})
	if c == nil {
		t.Fatal(r.Err())
	}
	return c
}

// shake makes a handshake and returns what each side thinks of it.
func shake(t testing.TB, client, server *tls.Config) (state tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, c := range []net.Conn{a, b} {
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	srv := tls.Server(b, server)
	done := make(chan error, 1)
	go func() {
		err := srv.Handshake()
		if err == nil {
			_, err = srv.Write([]byte("x")) // carries the tickets, too
		}
		if err != nil {
			b.Close()
		}
		done <- err
	}()
	cli := tls.Client(a, client)
	clientErr = cli.Handshake()
	if clientErr == nil {
		// In TLS 1.3 the client learns only now whether its certificate was taken.
		_, clientErr = cli.Read(make([]byte, 1))
	}
	if clientErr != nil {
		a.Close()
	}
	return cli.ConnectionState(), clientErr, <-done
}

const (
	idA = "spiffe://mesh.local/ns/default/svc/a"
	idB = "spiffe://mesh.local/ns/default/svc/b"
)

func TestPeersAreJudgedByChainAndName(t *testing.T) {
	// Of the same subject, or the client would not even offer its certificate.
	ca, other := newAuthority(t, "ca"), newAuthority(t, "ca")
	server := ca.zoo(t, idB, nil)
	good := &tlsv3.CertificateValidationContext{TrustedCa: inline(ca.pem), MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{exactURI(idA)}}
	for name, c := range map[string]struct {
		client pair
		want   string // in the server's error; "" accepts
	}{
		"the one that is expected":         {ca.zoo(t, idA, nil), ""},
		"another of the same authority":    {ca.zoo(t, idB, nil), "none of the accepted subject alternative names"},
		"the same name of another":         {other.zoo(t, idA, nil), "is not trusted"},
		"a name that starts like it":       {ca.zoo(t, idA+"x", nil), "none of the accepted"},
		"an expired one":                   {ca.zoo(t, idA, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "expired"},
		"one for servers alone":            {ca.zoo(t, idA, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), "is not trusted"},
		"an authority":                     {ca.zoo(t, idA, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), "that of an authority"},
		"one that may sign":                {ca.zoo(t, idA, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), "may sign certificates"},
		"one that may sign CRLs":           {ca.zoo(t, idA, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }), "may sign certificates"},
		"one that may not sign handshakes": {ca.zoo(t, idA, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), "digitalSignature"},
		"two URIs": {ca.zoo(t, idA, func(c *x509.Certificate) {
			c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "mesh.local", Path: "/x"})
		}), "not a SPIFFE X.509-SVID"},
		"no name":   {ca.zoo(t, "", nil), "not a SPIFFE X.509-SVID"},
		"a DNS one": {ca.zoo(t, "", func(c *x509.Certificate) { c.DNSNames = []string{"a"} }), "not a SPIFFE X.509-SVID"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, Options{})
			srv, err := s.mustServer(t, serverContext(server, good)).ServerConfig()
			if err != nil {
				t.Fatal(err)
			}
			cli, err := s.mustClient(t, clientContext(&c.client, &tlsv3.CertificateValidationContext{TrustedCa: inline(ca.pem)})).ClientConfig("")
			if err != nil {
				if strings.Contains(name, "expired") && strings.Contains(err.Error(), "our own certificate expired") {
					cli = &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{must(tls.X509KeyPair([]byte(c.client.cert), []byte(c.client.key)))}}
				} else {
					t.Fatal(err)
				}
			}
			state, clientErr, serverErr := shake(t, cli, srv)
			if c.want == "" {
				if clientErr != nil || serverErr != nil {
					t.Fatal(clientErr, serverErr)
				}
				if state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != "h2" {
					t.Errorf("TLS %x, ALPN %q", state.Version, state.NegotiatedProtocol)
				}
				if state.CurveID != tls.X25519MLKEM768 {
					t.Errorf("key exchange %v is not post-quantum", state.CurveID)
				}
				return
			}
			if serverErr == nil || !strings.Contains(serverErr.Error(), c.want) {
				t.Errorf("got %v, want %q", serverErr, c.want)
			}
			if clientErr == nil {
				t.Error("the client thinks that it is in")
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestAServerIsJudgedByItsNameAndNotItsHost(t *testing.T) {
	ca := newAuthority(t, "ca")
	s := newStore(t, Options{})
	srv, err := s.mustServer(t, serverContext(ca.zoo(t, idB, nil), nil)).ServerConfig()
	if err != nil {
		t.Fatal(err)
	}
	for id, ok := range map[string]bool{idB: true, idA: false} {
		v := &tlsv3.CertificateValidationContext{TrustedCa: inline(ca.pem), MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{exactURI(id)}}
		cli, err := s.mustClient(t, clientContext(nil, v)).ClientConfig("")
		if err != nil {
			t.Fatal(err)
		}
		if _, got, _ := shake(t, cli, srv); (got == nil) != ok {
			t.Errorf("%s: %v", id, got)
		}
	}
}

func TestAResumedServerIsJudgedAgain(t *testing.T) {
	ca := newAuthority(t, "ca")
	now := time.Now()
	s := newStore(t, Options{Now: func() time.Time { return now }})
	server := ca.zoo(t, idB, nil)
	srv, err := s.mustServer(t, serverContext(server, nil)).ServerConfig()
	if err != nil {
		t.Fatal(err)
	}
	v := &tlsv3.CertificateValidationContext{TrustedCa: inline(ca.pem), MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{exactURI(idB)}}
	c := s.mustClient(t, clientContext(nil, v))
	cli, err := c.ClientConfig("")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		state, err, _ := shake(t, cli, srv)
		if err != nil || state.DidResume != (i == 1) {
			t.Fatalf("round %d: %v, resumed %v", i, err, state.DidResume)
		}
	}
	now = server.leaf.NotAfter.Add(time.Minute)
	if _, err, _ := shake(t, cli, srv); err == nil {
		t.Error("a session was resumed with a server whose certificate has expired")
	}
}

func TestClientsAreNeverResumed(t *testing.T) {
	ca := newAuthority(t, "ca")
	s := newStore(t, Options{})
	v := &tlsv3.CertificateValidationContext{TrustedCa: inline(ca.pem)}
	srv, err := s.mustServer(t, serverContext(ca.zoo(t, idB, nil), v)).ServerConfig()
	if err != nil {
		t.Fatal(err)
	}
	p := ca.zoo(t, idA, nil)
	cli, err := s.mustClient(t, clientContext(&p, v)).ClientConfig("")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if state, err, _ := shake(t, cli, srv); err != nil || state.DidResume {
			t.Fatal(err, state.DidResume)
		}
	}
}

func TestWithoutAClientCertificateNothingGetsIn(t *testing.T) {
	ca := newAuthority(t, "ca")
	s := newStore(t, Options{})
	v := &tlsv3.CertificateValidationContext{TrustedCa: inline(ca.pem)}
	srv, _ := s.mustServer(t, serverContext(ca.zoo(t, idB, nil), v)).ServerConfig()
	cli, _ := s.mustClient(t, clientContext(nil, v)).ClientConfig("")
	if _, clientErr, serverErr := shake(t, cli, srv); clientErr == nil || serverErr == nil {
		t.Error(clientErr, serverErr)
	}
}

func TestSecretsThatAreMissingOrExpiredFailClosed(t *testing.T) {
	ca := newAuthority(t, "ca")
	now := time.Now()
	changes := 0
	s := newStore(t, Options{Now: func() time.Time { return now }, Changed: func() { changes++ }})
	ads := func(name string) *tlsv3.SdsSecretConfig {
		return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{}}}
	}
	c := s.mustServer(t, &tlsv3.DownstreamTlsContext{RequireClientCertificate: wrapperspb.Bool(true), CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{ads("cert")},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{exactURI(idA)}},
			ValidationContextSdsSecretConfig: ads("roots")}}}})
	if got := c.Secrets(); len(got) != 2 || got[0] != "cert" || got[1] != "roots" {
		t.Errorf("%q", got)
	}
	if _, err := c.ServerConfig(); err == nil || !strings.Contains(err.Error(), `the secret "cert" has not arrived`) || c.Ready() {
		t.Fatal(err, c.Ready())
	}
	p := ca.zoo(t, idB, nil)
	set := func(m *tlsv3.Secret) {
		t.Helper()
		if err := s.Set(m); err != nil {
			t.Fatal(err)
		}
	}
	set(&tlsv3.Secret{Name: "cert", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: p.proto()}})
	if _, err := c.ServerConfig(); err == nil || !strings.Contains(err.Error(), `the secret "roots" has not arrived`) {
		t.Fatal(err)
	}
	set(&tlsv3.Secret{Name: "roots", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(ca.pem)}}})
	srv, err := c.ServerConfig()
	if err != nil || !c.Ready() || changes != 2 {
		t.Fatal(err, c.Ready(), changes)
	}
	again, _ := c.ServerConfig()
	if srv != again {
		t.Error("built anew without a change")
	}
	client := func(id string) *tls.Config {
		p := ca.zoo(t, id, nil)
		return must(s.mustClient(t, clientContext(&p, &tlsv3.CertificateValidationContext{TrustedCa: inline(ca.pem)})).ClientConfig(""))
	}
	if _, _, err := shake(t, client(idA), srv); err != nil {
		t.Error(err)
	}
	if _, _, err := shake(t, client(idB), srv); err == nil {
		t.Error("the names of the default context do not count")
	}
	// A bad secret changes nothing and its error shows no key.
	bad := &tlsv3.Secret{Name: "cert", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(p.cert), PrivateKey: inline(ca.zoo(t, idA, nil).key)}}}
	err = s.Set(bad)
	if err == nil || !strings.Contains(err.Error(), `secret "cert": tls_certificate: private key does not match`) {
		t.Fatal(err)
	}
	if got, _ := c.ServerConfig(); got != srv {
		t.Error("a bad secret changed what is in force")
	}
	now = p.leaf.NotAfter.Add(time.Second)
	if _, err := c.ServerConfig(); err == nil || !strings.Contains(err.Error(), "our own certificate expired at") {
		t.Error(err)
	}
	now = time.Now()
	s.Remove("roots")
	if _, err := c.ServerConfig(); err == nil {
		t.Error("the roots are gone")
	}
	set(&tlsv3.Secret{Name: "roots", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{}}})
	if cfg, err := c.ServerConfig(); err == nil {
		t.Error("an empty validation context was taken for one that accepts everybody", cfg)
	}
}

func TestContextsThatWouldLetAnybodyInAreRefused(t *testing.T) {
	ca := newAuthority(t, "ca")
	p := ca.zoo(t, idB, nil)
	s := newStore(t, Options{})
	server := func(change func(*tlsv3.DownstreamTlsContext, *tlsv3.CertificateValidationContext)) error {
		v := &tlsv3.CertificateValidationContext{TrustedCa: inline(ca.pem)}
		m := serverContext(p, v)
		change(m, v)
		r := fields.NewReport("listener", "l")
		s.Server(r, "ctx", m)
		return r.Err()
	}
	for want, change := range map[string]func(*tlsv3.DownstreamTlsContext, *tlsv3.CertificateValidationContext){
		"nothing says whose certificates are good": func(m *tlsv3.DownstreamTlsContext, _ *tlsv3.CertificateValidationContext) {
			m.CommonTlsContext.ValidationContextType = nil
		},
		"anybody can make a certificate with any name": func(_ *tlsv3.DownstreamTlsContext, v *tlsv3.CertificateValidationContext) {
			v.TrustedCa = nil
			v.MatchTypedSubjectAltNames = []*tlsv3.SubjectAltNameMatcher{exactURI(idA)}
		},
		"trust_chain_verification: ACCEPT_UNTRUSTED is refused": func(_ *tlsv3.DownstreamTlsContext, v *tlsv3.CertificateValidationContext) {
			v.TrustChainVerification = tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
		},
		"validation_context.crl: not implemented": func(_ *tlsv3.DownstreamTlsContext, v *tlsv3.CertificateValidationContext) { v.Crl = inline("x") },
		"holds no certificate in PEM":             func(_ *tlsv3.DownstreamTlsContext, v *tlsv3.CertificateValidationContext) { v.TrustedCa = inline("x") },
		"is empty, and would accept every name": func(_ *tlsv3.DownstreamTlsContext, v *tlsv3.CertificateValidationContext) {
			v.MatchTypedSubjectAltNames = []*tlsv3.SubjectAltNameMatcher{{SanType: tlsv3.SubjectAltNameMatcher_URI,
				Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{}}}}
		},
		`"RC4" is not a cipher suite`: func(m *tlsv3.DownstreamTlsContext, _ *tlsv3.CertificateValidationContext) {
			m.CommonTlsContext.TlsParams = &tlsv3.TlsParameters{CipherSuites: []string{"RC4"}}
		},
		"custom_handshaker: not implemented": func(m *tlsv3.DownstreamTlsContext, _ *tlsv3.CertificateValidationContext) {
			m.CommonTlsContext.CustomHandshaker = &corev3.TypedExtensionConfig{Name: "x"}
		},
	} {
		if err := server(change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	r := fields.NewReport("cluster", "c")
	if s.Client(r, "ctx", clientContext(nil, nil), ClientOptions{}) == nil || len(r.Warnings) != 1 {
		t.Error("a client that trusts everybody must be warned of", r.Err(), r.Warnings)
	}
}

func TestNamesMatchByKindAndPattern(t *testing.T) {
	leaf := &x509.Certificate{DNSNames: []string{"*.example.com", "One.Example.org"}, EmailAddresses: []string{"a@example.com"}, IPAddresses: []net.IP{net.ParseIP("10.0.0.1")},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "mesh.local", Path: "/svc/a"}}}
	for _, c := range []struct {
		kind    tlsv3.SubjectAltNameMatcher_SanType
		matcher *matcherv3.StringMatcher
		want    bool
	}{
		{tlsv3.SubjectAltNameMatcher_DNS, exactly("api.example.com"), true},
		{tlsv3.SubjectAltNameMatcher_DNS, exactly("a.b.example.com"), false},
		{tlsv3.SubjectAltNameMatcher_DNS, exactly("example.com"), false},
		{tlsv3.SubjectAltNameMatcher_DNS, exactly("one.example.org"), true},
		{tlsv3.SubjectAltNameMatcher_DNS, exactly("spiffe://mesh.local/svc/a"), false},
		{tlsv3.SubjectAltNameMatcher_URI, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "spiffe://mesh.local/"}}, true},
		{tlsv3.SubjectAltNameMatcher_URI, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: "/a"}}, true},
		{tlsv3.SubjectAltNameMatcher_URI, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: "SVC"}}, false},
		{tlsv3.SubjectAltNameMatcher_URI, &matcherv3.StringMatcher{IgnoreCase: true, MatchPattern: &matcherv3.StringMatcher_Contains{Contains: "SVC"}}, true},
		{tlsv3.SubjectAltNameMatcher_URI, regexMatcher(`spiffe://mesh\.local/svc/(a|b)`), true},
		{tlsv3.SubjectAltNameMatcher_URI, regexMatcher(`spiffe://mesh\.local/svc`), false}, // the whole name counts
		{tlsv3.SubjectAltNameMatcher_EMAIL, exactly("a@example.com"), true},
		{tlsv3.SubjectAltNameMatcher_IP_ADDRESS, exactly("10.0.0.1"), true},
		{tlsv3.SubjectAltNameMatcher_IP_ADDRESS, exactly("10.0.0.2"), false},
	} {
		r := fields.NewReport("x", "y")
		list := compileTyped(r, "m", &tlsv3.SubjectAltNameMatcher{SanType: c.kind, Matcher: c.matcher})
		if len(list) != 1 {
			t.Fatal(r.Err())
		}
		if got := list[0].match(leaf); got != c.want {
			t.Errorf("%s %v: %v", c.kind, c.matcher, got)
		}
	}
}

func exactly(v string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: v}}
}

func regexMatcher(v string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: v}}}
}

func TestPinsAloneAreEnough(t *testing.T) {
	ca := newAuthority(t, "ca")
	s := newStore(t, Options{})
	p, q := ca.zoo(t, idA, nil), ca.zoo(t, idA, nil)
	h := sha256.Sum256(p.leaf.Raw)
	srv := must(s.mustServer(t, serverContext(ca.zoo(t, idB, nil), &tlsv3.CertificateValidationContext{VerifyCertificateHash: []string{hex.EncodeToString(h[:])}})).ServerConfig())
	for i, x := range []pair{p, q} {
		cli := must(s.mustClient(t, clientContext(&x, nil)).ClientConfig(""))
		if _, _, err := shake(t, cli, srv); (err == nil) != (i == 0) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestEachTrustDomainHasItsOwnBundle(t *testing.T) {
	one, two := newAuthority(t, "one"), newAuthority(t, "two")
	cfg, err := anypb.New(&tlsv3.SPIFFECertValidatorConfig{TrustDomains: []*tlsv3.SPIFFECertValidatorConfig_TrustDomain{
		{Name: "one.local", TrustBundle: inline(one.pem)}, {Name: "two.local", TrustBundle: inline(two.pem)}}})
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, Options{})
	v := &tlsv3.CertificateValidationContext{CustomValidatorConfig: &corev3.TypedExtensionConfig{Name: "envoy.tls.cert_validator.spiffe", TypedConfig: cfg}}
	srv := must(s.mustServer(t, serverContext(one.zoo(t, "spiffe://one.local/s", nil), v)).ServerConfig())
	for id, c := range map[string]struct {
		by *authority
		ok bool
	}{"spiffe://one.local/a": {one, true}, "spiffe://two.local/a": {two, true}, "spiffe://two.local/b": {one, false}, "spiffe://three.local/a": {one, false}} {
		p := c.by.zoo(t, id, nil)
		cli := must(s.mustClient(t, clientContext(&p, nil)).ClientConfig(""))
		if _, _, err := shake(t, cli, srv); (err == nil) != c.ok {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestFilesAreReadAgainWhenTheyChange(t *testing.T) {
	ca := newAuthority(t, "ca")
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "c.key")
	// Written beside and renamed, as certificate managers do; key first, so
	// that for a moment the two do not fit.
	store := func(p pair) {
		t.Helper()
		for _, f := range []struct{ name, text string }{{key, p.key}, {cert, p.cert}} {
			if err := os.WriteFile(f.name+".new", []byte(f.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(f.name+".new", f.name); err != nil {
				t.Fatal(err)
			}
		}
	}
	first, second := ca.zoo(t, idA, nil), ca.zoo(t, idA, nil)
	store(first)
	changed := make(chan struct{}, 100)
	s := newStore(t, Options{Changed: func() { changed <- struct{}{} }})
	c := s.mustServer(t, &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsCertificates: []*tlsv3.TlsCertificate{{CertificateChain: file(cert), PrivateKey: file(key)}}}})
	serial := func() *big.Int { return must(c.ServerConfig()).Certificates[0].Leaf.SerialNumber }
	if serial().Cmp(first.leaf.SerialNumber) != 0 {
		t.Fatal("not the first")
	}
	store(second)
	deadline := time.After(20 * time.Second)
	for serial().Cmp(second.leaf.SerialNumber) != 0 {
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("the new file was not read")
		}
	}
	r := fields.NewReport("listener", "l")
	s.Server(r, "ctx", &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsCertificates: []*tlsv3.TlsCertificate{{CertificateChain: file(cert + "x"), PrivateKey: file(key)}}}})
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "certificate_chain.filename: "+cert+"x cannot be opened: no such file or directory") {
		t.Error(err)
	}
}

// changing is an identity that the test changes.
type changing struct {
	mu      sync.Mutex
	cert    *tls.Certificate
	roots   map[string]*x509.CertPool
	changed chan struct{}
}

func (c *changing) Certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cert == nil {
		return nil, errors.New("no SVID yet")
	}
	return c.cert, nil
}

func (c *changing) Roots(domain string) (*x509.CertPool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.roots[domain]; p != nil {
		return p, nil
	}
	return nil, errors.New("no bundle")
}

func (c *changing) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *changing) set(cert *tls.Certificate) {
	c.mu.Lock()
	c.cert = cert
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
}

func TestTheOwnIdentityIsASecretSource(t *testing.T) {
	ca, far := newAuthority(t, "ca"), newAuthority(t, "far")
	pool := func(a *authority) *x509.CertPool {
		p := x509.NewCertPool()
		p.AddCert(a.cert)
		return p
	}
	id := &changing{changed: make(chan struct{}), roots: map[string]*x509.CertPool{"": pool(ca), "mesh.local": pool(ca), "far.local": pool(far)}}
	changed := make(chan struct{}, 100)
	s := newStore(t, Options{Identity: id, Changed: func() { changed <- struct{}{} }})
	own := func(name string) *tlsv3.SdsSecretConfig {
		return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{
			ApiConfigSource: &corev3.ApiConfigSource{GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: IdentityCluster}}}}}}}}
	}
	context := func(roots string) *Server {
		return s.mustServer(t, &tlsv3.DownstreamTlsContext{RequireClientCertificate: wrapperspb.Bool(true), CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{own("default")},
			ValidationContextType:          &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{ValidationContextSdsSecretConfig: own(roots)}}})
	}
	mesh, all := context("ROOTCA"), context("ALL")
	if mesh.Ready() || len(mesh.Secrets()) != 0 {
		t.Error("ready without an SVID", mesh.Secrets())
	}
	if _, err := mesh.ServerConfig(); err == nil || !strings.Contains(err.Error(), "no SVID yet") {
		t.Fatal(err)
	}
	await := func(serial *big.Int) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			if c, err := mesh.ServerConfig(); err == nil && c.Certificates[0].Leaf.SerialNumber.Cmp(serial) == 0 {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatal("the change did not arrive")
			}
		}
	}
	for range 2 { // the first SVID, and its renewal
		p := ca.zoo(t, idB, nil)
		c := must(tls.X509KeyPair([]byte(p.cert), []byte(p.key)))
		id.set(&c)
		await(p.leaf.SerialNumber)
	}
	for _, c := range []struct {
		name string
		in   *Server
		by   *authority
		id   string
		ok   bool
	}{
		{"own domain", mesh, ca, idA, true},
		{"another domain, by our authority", mesh, ca, "spiffe://far.local/x", false},
		{"another domain, by its authority", mesh, far, "spiffe://far.local/x", false},
		{"own domain, all", all, ca, idA, true},
		{"federated", all, far, "spiffe://far.local/x", true},
		{"federated authority, our domain", all, far, idA, false},
		{"no SPIFFE ID", all, ca, "https://mesh.local/x", false},
	} {
		p := c.by.zoo(t, c.id, nil)
		cli := must(s.mustClient(t, clientContext(&p, nil)).ClientConfig(""))
		if _, _, err := shake(t, cli, must(c.in.ServerConfig())); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	r := fields.NewReport("listener", "l")
	NewStore(Options{}).Server(r, "ctx", &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{own("default")}}})
	if r.Err() == nil {
		t.Error("an identity that is not there was accepted")
	}
}

func TestRedactHidesKeysAlsoInAny(t *testing.T) {
	ca := newAuthority(t, "ca")
	p := ca.zoo(t, idA, nil)
	a, err := anypb.New(serverContext(p, nil))
	if err != nil {
		t.Fatal(err)
	}
	clean := Redact(&corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: a}})
	var got tlsv3.DownstreamTlsContext
	if err := clean.GetTypedConfig().UnmarshalTo(&got); err != nil {
		t.Fatal(err)
	}
	c := got.GetCommonTlsContext().GetTlsCertificates()[0]
	if c.GetPrivateKey().GetInlineString() != "[redacted]" || c.GetCertificateChain().GetInlineString() != p.cert {
		t.Errorf("%v", c)
	}
	if strings.Contains(a.String(), "redacted") {
		t.Error("the original was changed")
	}
}
