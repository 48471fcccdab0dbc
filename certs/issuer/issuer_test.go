package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	securityv1 "istio.io/api/security/v1alpha1"

	"sallyport/certs"
	"sallyport/certs/ca"
	"sallyport/certs/peercred"
	"sallyport/certs/tlsconfig"
	"sallyport/certs/token"
)

var (
	quiet    = slog.New(slog.DiscardHandler)
	td       = spiffeid.RequireTrustDomainFromString("sallyport.local")
	orders   = spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/svc/orders")
	payments = spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/svc/payments")
)

type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// identity is a key and a chain as tlsconfig wants them.
type identity struct {
	*x509svid.SVID
	*x509bundle.Bundle
}

// plane is a control plane's certificate service on TLS and on a Unix socket.
type plane struct {
	*Service
	ca     *ca.Authority
	tokens *token.Store
	clock  *clock
	addr   string
	socket string
}

func newPlane(t *testing.T, change func(*Options)) *plane {
	t.Helper()
	p := &plane{clock: &clock{}, socket: filepath.Join(t.TempDir(), "ca.sock")}
	dir := filepath.Join(t.TempDir(), "state")
	var err error
	if p.ca, err = ca.Open(dir, ca.Options{Now: p.clock.now, Logger: quiet}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.ca.Close() })
	if p.tokens, err = token.Open(dir, p.clock.now); err != nil {
		t.Fatal(err)
	}
	o := Options{Authority: p.ca, Tokens: p.tokens, Now: p.clock.now, Logger: quiet,
		Rules: peercred.Rules{{Num: uint32(os.Getuid()), IDs: []spiffeid.ID{orders}}}}
	if change != nil {
		change(&o)
	}
	p.Service = New(o)

	unary, stream := Guard(p.clock.now)
	server := p.signed(t, certs.ControlPlaneID(td))
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(tlsconfig.JoinServer(server, spiffeid.MatchMemberOf(td), tlsconfig.WithClock(p.clock.now)))),
		grpc.UnaryInterceptor(unary), grpc.StreamInterceptor(stream), grpc.MaxRecvMsgSize(MaxMessage))
	p.Register(g)
	grpc_health_v1.RegisterHealthServer(g, grpc_health_v1.UnimplementedHealthServer{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = l.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	wg.Go(func() {
		if err := p.ServeUnix(ctx, p.socket, 0o600, func() { close(ready) }); err != nil {
			t.Error(err)
		}
	})
	<-ready
	t.Cleanup(func() { g.Stop(); cancel(); wg.Wait() })
	return p
}

func newRequest(t testing.TB, uris ...string) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.CertificateRequest{}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

func (p *plane) signed(t testing.TB, id spiffeid.ID) *identity {
	t.Helper()
	key, der := newRequest(t, id.String())
	chain, err := p.ca.Sign(der, id, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &identity{&x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}, p.ca.Bundle()}
}

// call asks for a certificate for uris. who is the client certificate, secret the token; either may be absent.
func (p *plane) call(t testing.TB, who *identity, secret string, uris ...string) (*securityv1.IstioCertificateResponse, error) {
	t.Helper()
	cfg := tlsconfig.Anonymous(p.ca, spiffeid.MatchID(certs.ControlPlaneID(td)), tlsconfig.WithClock(p.clock.now))
	if who != nil {
		cfg = tlsconfig.Client(who, spiffeid.MatchID(certs.ControlPlaneID(td)), tlsconfig.WithClock(p.clock.now))
	}
	return ask(t, p.addr, credentials.NewTLS(cfg), secret, uris...)
}

func ask(t testing.TB, target string, creds credentials.TransportCredentials, secret string, uris ...string) (*securityv1.IstioCertificateResponse, error) {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, der := newRequest(t, uris...)
	ctx := t.Context()
	if secret != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+secret)
	}
	return securityv1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityv1.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), ValidityDuration: 600,
	})
}

func (p *plane) token(t testing.TB, id spiffeid.ID) string {
	t.Helper()
	secret, err := p.tokens.Create(id, 0)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func wantCode(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want %s with %q", err, code, text)
	}
}

func TestTokenGivesOneCertificate(t *testing.T) {
	p := newPlane(t, nil)
	secret := p.token(t, orders)
	resp, err := p.call(t, nil, secret, orders.String())
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	for _, text := range resp.GetCertChain() {
		block, _ := pem.Decode([]byte(text))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	if len(chain) != 3 || !chain[2].Equal(p.ca.Root()) {
		t.Fatalf("%d certificates, the last must be the root", len(chain))
	}
	if id, _, err := x509svid.Verify(chain[:2], p.ca, x509svid.WithTime(p.clock.now())); err != nil || id != orders {
		t.Errorf("Verify = %s, %v", id, err)
	}
	if left := chain[0].NotAfter.Sub(p.clock.now()); left > 10*time.Minute || left < 9*time.Minute {
		t.Errorf("lives %v, asked for 10m", left)
	}
	_, err = p.call(t, nil, secret, orders.String())
	wantCode(t, err, codes.Unauthenticated, "join token was already used")
	if st := p.Stats(); st.Issued[ByToken] != 1 || st.Refused["Unauthenticated"] != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestOfManyCallersWithOneTokenOneSucceeds(t *testing.T) {
	p := newPlane(t, nil)
	secret := p.token(t, orders)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = p.call(t, nil, secret, orders.String()) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			wantCode(t, err, codes.Unauthenticated, "already used")
		}
	}
	if won != 1 {
		t.Errorf("%d callers got a certificate", won)
	}
}

func TestABadRequestDoesNotCostTheToken(t *testing.T) {
	p := newPlane(t, nil)
	secret := p.token(t, orders)
	for _, uris := range [][]string{{payments.String()}, {}, {orders.String(), payments.String()}, {"spiffe://evil.local/ns/default/svc/orders"}, {"https://x/y"}} {
		if _, err := p.call(t, nil, secret, uris...); err == nil {
			t.Errorf("%v: certificate given", uris)
		}
	}
	if _, err := p.call(t, nil, secret+"."+strings.Repeat("0", 64), orders.String()); err != nil {
		t.Errorf("the token is spent: %v", err)
	}
}

func TestRenewalByMutualTLS(t *testing.T) {
	p := newPlane(t, nil)
	who := p.signed(t, orders)
	if _, err := p.call(t, who, "", orders.String()); err != nil {
		t.Fatal(err)
	}
	_, err := p.call(t, who, "", payments.String())
	wantCode(t, err, codes.PermissionDenied, "cannot renew")
	_, err = p.call(t, nil, "", orders.String())
	wantCode(t, err, codes.Unauthenticated, "neither a token nor a client certificate")
	// A bad token is not made good by a certificate.
	_, err = p.call(t, who, "x", orders.String())
	wantCode(t, err, codes.Unauthenticated, "malformed")
	// A certificate of another authority of the same name does not even get through the handshake.
	other := newPlane(t, nil)
	mallory := other.signed(t, orders)
	mallory.Bundle = p.ca.Bundle()
	if _, err := p.call(t, mallory, "", orders.String()); status.Code(err) != codes.Unavailable {
		t.Errorf("foreign certificate: %v", err)
	}
}

func TestAnExpiredCertificateOnAnOpenConnectionRenewsNothing(t *testing.T) {
	p := newPlane(t, nil)
	who := p.signed(t, orders)
	ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: who.Certificates}}})
	_, der := newRequest(t, orders.String())
	req := &securityv1.IstioCertificateRequest{Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
	if _, err := p.CreateCertificate(ctx, req); err != nil {
		t.Fatal(err)
	}
	p.clock.forward(time.Hour)
	_, err := p.CreateCertificate(ctx, req)
	wantCode(t, err, codes.Unauthenticated, "expired")
}

func TestUnixSocketByUser(t *testing.T) {
	p := newPlane(t, nil)
	if _, err := ask(t, "unix://"+p.socket, insecure.NewCredentials(), "", orders.String()); err != nil {
		t.Fatal(err)
	}
	_, err := ask(t, "unix://"+p.socket, insecure.NewCredentials(), "", payments.String())
	wantCode(t, err, codes.PermissionDenied, "no socket rule")
	closed := newPlane(t, func(o *Options) { o.Rules = nil })
	_, err = ask(t, "unix://"+closed.socket, insecure.NewCredentials(), "", orders.String())
	wantCode(t, err, codes.PermissionDenied, "no socket rule")
}

func TestPlaintextIsRefused(t *testing.T) {
	p := newPlane(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	p.Register(g)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	_, err = ask(t, l.Addr().String(), insecure.NewCredentials(), p.token(t, orders), orders.String())
	wantCode(t, err, codes.PermissionDenied, "neither TLS nor a Unix socket")
}

func TestWhatOptionsClose(t *testing.T) {
	p := newPlane(t, func(o *Options) {
		o.Tokens = nil
		o.Allow = func(id spiffeid.ID) error {
			if id == payments {
				return errors.New("revoked")
			}
			return nil
		}
	})
	_, err := p.call(t, nil, "x", orders.String())
	wantCode(t, err, codes.Unauthenticated, "takes no join tokens")
	_, err = p.call(t, p.signed(t, payments), "", payments.String())
	wantCode(t, err, codes.PermissionDenied, "revoked")
	if _, err := p.call(t, p.signed(t, orders), "", orders.String()); err != nil {
		t.Error(err)
	}
}

func TestGuardAsksForACertificate(t *testing.T) {
	p := newPlane(t, nil)
	check := func(cfg *tls.Config) error {
		conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		watch, serr := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if serr == nil {
			_, serr = watch.Recv()
		}
		if status.Code(err) != status.Code(serr) {
			t.Errorf("unary %v, stream %v", err, serr)
		}
		return err
	}
	clock, server := tlsconfig.WithClock(p.clock.now), spiffeid.MatchID(certs.ControlPlaneID(td))
	wantCode(t, check(tlsconfig.Anonymous(p.ca, server, clock)), codes.Unauthenticated, "client certificate is needed")
	wantCode(t, check(tlsconfig.Client(p.signed(t, orders), server, clock)), codes.Unimplemented, "") // it got through
}

func TestRequestsOutOfShape(t *testing.T) {
	p := newPlane(t, nil)
	ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: peercred.Info{UID: uint32(os.Getuid())}})
	_, der := newRequest(t, orders.String())
	good := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	broken := append([]byte(nil), der...)
	broken[len(broken)-1] ^= 1
	for name, csr := range map[string]string{
		"empty": "", "not PEM": "hello", "DER": string(der), "two blocks": good + good, "junk after": good + "x",
		"too large": good + strings.Repeat("\n", maxCSRPEM), "a certificate": strings.ReplaceAll(good, "CERTIFICATE REQUEST", "CERTIFICATE"),
		"bad signature": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: broken})),
		"cut":           string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der[:20]})),
	} {
		if _, err := p.CreateCertificate(ctx, &securityv1.IstioCertificateRequest{Csr: csr}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, seconds := range []int64{-1, 0, 1, 1 << 62, -1 << 62} {
		if _, err := p.CreateCertificate(ctx, &securityv1.IstioCertificateRequest{Csr: good, ValidityDuration: seconds}); err != nil {
			t.Errorf("validity %d: %v", seconds, err)
		}
	}
	for _, value := range []string{"", "Bearer", "Basic abc", "Bearer " + strings.Repeat("x", 600)} {
		c := metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", value))
		if _, err := p.CreateCertificate(c, &securityv1.IstioCertificateRequest{Csr: good}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("authorization %.20q: %v", value, err)
		}
	}
	c := metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer a", "authorization", "Bearer b"))
	if _, err := p.CreateCertificate(c, &securityv1.IstioCertificateRequest{Csr: good}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("two headers: %v", err)
	}
}

func TestRateLimits(t *testing.T) {
	p := newPlane(t, nil)
	caller := func(ip string) context.Context {
		return peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}, AuthInfo: credentials.TLSInfo{}})
	}
	_, der := newRequest(t, orders.String())
	req := &securityv1.IstioCertificateRequest{Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
	fixed := p.clock.now()
	p.opt.Now = func() time.Time { return fixed }
	for i := range failureBurst {
		if _, err := p.CreateCertificate(caller("192.0.2.1"), req); status.Code(err) != codes.Unauthenticated {
			t.Fatalf("try %d: %v", i, err)
		}
	}
	_, err := p.CreateCertificate(caller("192.0.2.1"), req)
	wantCode(t, err, codes.ResourceExhausted, "192.0.2.1")
	_, err = p.CreateCertificate(caller("192.0.2.2"), req)
	wantCode(t, err, codes.Unauthenticated, "") // another caller is not concerned
	fixed = fixed.Add(failureInterval)
	_, err = p.CreateCertificate(caller("192.0.2.1"), req)
	wantCode(t, err, codes.Unauthenticated, "")

	socket := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: peercred.Info{UID: uint32(os.Getuid())}})
	for i := range issueBurst {
		if _, err := p.CreateCertificate(socket, req); err != nil {
			t.Fatalf("certificate %d: %v", i, err)
		}
	}
	_, err = p.CreateCertificate(socket, req)
	wantCode(t, err, codes.ResourceExhausted, "too many certificates")
}

func TestLimiterForgets(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newLimiter(time.Second, 2, 4)
	for _, key := range strings.Split("abcdefgh", "") {
		if !l.take(key, now) {
			t.Errorf("first of %s refused", key)
		}
		if len(l.due) > 4 {
			t.Fatalf("%d keys", len(l.due))
		}
	}
	now = now.Add(time.Hour)
	l.take("z", now)
	if len(l.due) != 1 {
		t.Errorf("%d keys after an hour, want 1", len(l.due))
	}
	if !l.take("z", now) || l.take("z", now) || l.ready("z", now) || !l.ready("z", now.Add(time.Second)) {
		t.Error("burst of 2, then one a second: does not hold")
	}
	for in, want := range map[string]string{"192.0.2.7:1": "192.0.2.7", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::/64", "[::ffff:192.0.2.7]:1": "192.0.2.7", "[fe80::1%lo]:1": "fe80::/64"} {
		addr := net.TCPAddrFromAddrPort(mustAddrPort(t, in))
		if got := limitKey(&peer.Peer{Addr: addr}); got != want {
			t.Errorf("limitKey(%s) = %q, want %q", in, got, want)
		}
	}
}

func TestCreateJoinToken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, err := CreateJoinToken(dir, orders, 0) // makes the authority
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.Open(dir, ca.Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	second, err := CreateJoinToken(dir, orders, 0) // beside a running control plane
	if err != nil {
		t.Fatal(err)
	}
	if want := ca.Fingerprint(a.Root()); first.Fingerprint != want || second.Fingerprint != want {
		t.Error("the tokens do not carry the root's fingerprint")
	}
	if again, err := token.Parse(first.String()); err != nil || again != first {
		t.Errorf("Parse: %v, %v", again, err)
	}
	store, err := token.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := store.Redeem(second.Secret); err != nil || id != orders {
		t.Errorf("Redeem = %s, %v", id, err)
	}
	if _, err := CreateJoinToken(dir, spiffeid.RequireFromString("spiffe://example.org/ns/default/svc/orders"), 0); err == nil {
		t.Error("token for another trust domain")
	}
}

func mustAddrPort(t *testing.T, s string) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
