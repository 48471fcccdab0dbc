package source

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"sallyport/certs"
	"sallyport/certs/ca"
	"sallyport/certs/issuer"
	"sallyport/certs/peercred"
	"sallyport/certs/tlsconfig"
	"sallyport/certs/token"
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

// plane is a control plane's certificate service.
type plane struct {
	t      *testing.T
	dir    string
	ca     *ca.Authority
	tokens *token.Store
	svc    *issuer.Service
	clock  *clock
	addr   string
	socket string
	self   *Renewed
	stop   func()
}

func newPlane(t *testing.T, id spiffeid.ID) *plane {
	t.Helper()
	return newPlaneWith(t, id, nil)
}

func newPlaneWith(t *testing.T, id spiffeid.ID, change func(*issuer.Options)) *plane {
	t.Helper()
	p := &plane{t: t, clock: &clock{}, dir: filepath.Join(t.TempDir(), "state"), socket: filepath.Join(t.TempDir(), "ca.sock")}
	var err error
	if p.ca, err = ca.Open(p.dir, ca.Options{Now: p.clock.now, Logger: quiet}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.ca.Close() })
	if p.tokens, err = token.Open(p.dir, p.clock.now); err != nil {
		t.Fatal(err)
	}
	self, err := Local(t.Context(), p.ca, id, LocalOptions{Now: p.clock.now, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = self.Close() })
	p.self = self
	opt := issuer.Options{Authority: p.ca, Tokens: p.tokens, Now: p.clock.now, Logger: quiet,
		Rules: peercred.Rules{{Num: uint32(os.Getuid()), IDs: []spiffeid.ID{orders}}}}
	if change != nil {
		change(&opt)
	}
	p.svc = issuer.New(opt)
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(tlsconfig.JoinServer(self, spiffeid.MatchMemberOf(td), tlsconfig.WithClock(p.clock.now)))))
	p.svc.Register(g)
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
		if err := p.svc.ServeUnix(ctx, p.socket, 0o600, func() { close(ready) }); err != nil {
			t.Error(err)
		}
	})
	<-ready
	p.stop = sync.OnceFunc(func() { g.Stop(); cancel(); wg.Wait() })
	t.Cleanup(p.stop)
	return p
}

func (p *plane) token(id spiffeid.ID) string {
	p.t.Helper()
	secret, err := p.tokens.Create(id, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	return token.Token{Secret: secret, Fingerprint: ca.Fingerprint(p.ca.Root())}.String()
}

func (p *plane) options() Options {
	return Options{Address: p.addr, Service: "orders", Now: p.clock.now, Logger: quiet}
}

// join is Join with a bound on the test's patience.
func join(t *testing.T, o Options) (*Renewed, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := Join(ctx, o)
	if err == nil {
		t.Cleanup(func() { _ = r.Close() })
	} else if strings.Contains(err.Error(), "\n") {
		t.Errorf("an error of more than one line: %v", err)
	}
	return r, err
}

func mustJoin(t *testing.T, o Options) *Renewed {
	t.Helper()
	r, err := join(t, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantRefused(t *testing.T, o Options, text string) {
	t.Helper()
	if _, err := join(t, o); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want a refusal with %q", err, text)
	}
}

func TestJoinByToken(t *testing.T) {
	p := newPlane(t, certs.ControlPlaneID(td))
	o := p.options()
	o.Token = p.token(orders)
	r := mustJoin(t, o)
	svid := current(t, r)
	if svid.ID != orders || r.ID() != orders {
		t.Errorf("identity %s", svid.ID)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, r, x509svid.WithTime(p.clock.now())); err != nil {
		t.Error(err)
	}
	wantRefused(t, o, "join token was already used")
	o.Token, o.Service = p.token(orders), "payments"
	wantRefused(t, o, "the join token is for "+orders.String())
}

func TestJoinWithBundleFile(t *testing.T) {
	p, other := newPlane(t, certs.ControlPlaneID(td)), newPlane(t, certs.ControlPlaneID(td))
	o := p.options()
	o.Token, o.BundleFile = p.token(orders), filepath.Join(other.dir, "bundle.pem")
	wantRefused(t, o, "peer certificate")
	o.BundleFile = filepath.Join(p.dir, "bundle.pem")
	current(t, mustJoin(t, o)) // the token was not sent to the wrong one, so it is still good
}

func TestTheControlPlaneMustBeTheRightOne(t *testing.T) {
	p := newPlane(t, certs.ControlPlaneID(td))
	other := newPlane(t, certs.ControlPlaneID(td))
	impostor := newPlane(t, spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/svc/payments"))

	o := other.options() // somebody stands where the control plane should
	o.Token = p.token(orders)
	wantRefused(t, o, "not the one in the join token")
	if n := other.svc.Stats().Refused; len(n) != 0 {
		t.Errorf("the token was sent to a stranger: %v", n)
	}
	o = impostor.options() // a service of the mesh that is not the control plane
	o.Token = impostor.token(orders)
	wantRefused(t, o, "not allowed here")
	o = p.options()
	o.Token, o.TrustDomain = p.token(orders), spiffeid.RequireTrustDomainFromString("example.org")
	wantRefused(t, o, "not allowed here")
}

// What was a gateway's identity once, and its token, are refused with what to do.
func TestAGatewayJoinsByItsOwnClassOfIdentity(t *testing.T) {
	p := newPlane(t, certs.ControlPlaneID(td))
	service, gateway := spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/svc/public"), spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/gw/public")
	const hint = "create a token with sallyport token create --gateway public"
	o := p.options()
	o.Service, o.Gateway, o.Token = "", "public", p.token(service)
	if _, err := join(t, o); err == nil || !strings.Contains(err.Error(), hint) {
		t.Errorf("with a token for a service: %v", err)
	}
	old := p.options()
	old.Service, old.Token, old.Dir = "public", p.token(service), filepath.Join(t.TempDir(), "identity")
	_ = mustJoin(t, old).Close()
	o.Token, o.Dir = p.token(gateway), old.Dir
	if _, err := join(t, o); err == nil || !strings.Contains(err.Error(), hint) {
		t.Errorf("with the kept identity of a service: %v", err)
	}
	o.Dir = ""
	if got := current(t, mustJoin(t, o)).ID; got != gateway {
		t.Errorf("%s, want %s", got, gateway)
	}
}

func TestJoinInputs(t *testing.T) {
	p := newPlane(t, certs.ControlPlaneID(td))
	for name, change := range map[string]func(*Options){
		"no token":             func(o *Options) {},
		"token malformed":      func(o *Options) { o.Token = "abc" },
		"token file absent":    func(o *Options) { o.TokenFile = filepath.Join(t.TempDir(), "none") },
		"address without port": func(o *Options) { o.Address = "control-plane" },
		"address empty":        func(o *Options) { o.Address = "" },
		"no service":           func(o *Options) { o.Service = "" },
		"service and gateway":  func(o *Options) { o.Gateway = "public" },
		"service with slash":   func(o *Options) { o.Service = "a/b" },
		"bundle absent":        func(o *Options) { o.BundleFile = filepath.Join(t.TempDir(), "none") },
		"bundle is a folder":   func(o *Options) { o.BundleFile = t.TempDir() },
		"bundle without PEM":   func(o *Options) { o.BundleFile = "/dev/null" },
		"folder is a file":     func(o *Options) { o.Dir = filepath.Join(p.dir, "bundle.pem") },
	} {
		o := p.options()
		change(&o)
		if _, err := join(t, o); err == nil {
			t.Errorf("%s: an identity was given", name)
		}
	}
}

func TestJoinUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	p := newPlane(t, certs.ControlPlaneID(td))
	o := p.options()
	o.Token, o.Address = p.token(orders), addr
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Join(ctx, o); err == nil || !strings.Contains(err.Error(), addr) || strings.Contains(err.Error(), "\n") {
		t.Errorf("unreachable: %v", err)
	}
}

func TestJoinByUnixSocket(t *testing.T) {
	p := newPlane(t, certs.ControlPlaneID(td))
	o := p.options()
	o.Address = "unix://" + p.socket
	current(t, mustJoin(t, o))
	o.Service = "payments"
	wantRefused(t, o, "no socket rule")
	if n := p.svc.Stats().Issued[issuer.BySocket]; n != 1 {
		t.Errorf("%d issued by socket", n)
	}
}

func TestRenewalByMutualTLS(t *testing.T) {
	p := newPlane(t, certs.ControlPlaneID(td))
	o := p.options()
	// Long enough that a machine under load renews before the SVID expires.
	o.Token, o.TTL = p.token(orders), 3*time.Second
	r := mustJoin(t, o)
	for range 3 { // at half of its life each
		<-r.Updated()
	}
	if n := p.svc.Stats().Issued; n[issuer.ByToken] != 1 || n[issuer.ByMTLS] < 2 {
		t.Errorf("issued %v", n)
	}
}

func TestRootRotationReachesTheSidecar(t *testing.T) {
	p := newPlane(t, certs.ControlPlaneID(td))
	o := p.options()
	o.Token, o.TTL = p.token(orders), 3*time.Second
	r := mustJoin(t, o)
	if _, err := p.ca.StageRoot(); err != nil {
		t.Fatal(err)
	}
	for {
		changed := r.Updated() // before the look, or a change in between is lost
		if len(r.Bundles()[0].X509Authorities()) == 2 {
			break
		}
		<-changed
	}
}

func TestRestartWithIdentityDir(t *testing.T) {
	p := newPlane(t, certs.ControlPlaneID(td))
	o := p.options()
	o.Token, o.Dir = p.token(orders), filepath.Join(t.TempDir(), "identity")
	r := mustJoin(t, o)
	first := current(t, r)
	if _, err := join(t, o); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("two processes with one identity: %v", err)
	}
	for name, want := range map[string]os.FileMode{"": 0o700, keptFile: 0o600} {
		if st, err := os.Stat(filepath.Join(o.Dir, name)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%q: %v, %v", name, st.Mode(), err)
		}
	}
	_ = r.Close()

	o.Token = "" // a restart has none, and needs no control plane
	p.stop()
	r = mustJoin(t, o)
	if !current(t, r).Certificates[0].Equal(first.Certificates[0]) {
		t.Error("another certificate")
	}
	_ = r.Close()

	other := o
	other.Service = "payments"
	if _, err := join(t, other); err == nil || !strings.Contains(err.Error(), orders.String()) {
		t.Errorf("another service's folder: %v", err)
	}
	p.clock.forward(time.Hour + time.Second)
	wantRefused(t, o, "neither a valid identity nor a join token")

	path := filepath.Join(o.Dir, keptFile)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := join(t, o); err == nil || !strings.Contains(err.Error(), keptFile) {
		t.Errorf("damaged file: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := join(t, o); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("loose file: %v", err)
	}
}

func TestAFreshIdentityAfterARestartIsRenewedByMutualTLS(t *testing.T) {
	p := newPlane(t, certs.ControlPlaneID(td))
	o := p.options()
	o.Token, o.Dir = p.token(orders), filepath.Join(t.TempDir(), "identity")
	_ = mustJoin(t, o).Close()
	o.Token = ""
	p.clock.forward(40 * time.Minute) // past half of its life, so the restart renews at once
	r := mustJoin(t, o)
	for r.State().Renewals < 2 {
		<-r.Updated()
	}
	if n := p.svc.Stats().Issued; n[issuer.ByMTLS] != 1 || n[issuer.ByToken] != 1 {
		t.Errorf("issued %v", n)
	}
}

func TestATokenFileSavesAnExpiredSidecar(t *testing.T) {
	p := newPlane(t, certs.ControlPlaneID(td))
	file := filepath.Join(t.TempDir(), "token")
	write := func() {
		if err := os.WriteFile(file, []byte(p.token(orders)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	iss := &remote{opt: p.options()}
	iss.opt.TrustDomain, iss.opt.TokenFile = td, file
	r := &Renewed{id: orders, issuer: iss, now: p.clock.now, log: quiet, updated: make(chan struct{})}
	if err := r.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.clock.forward(2 * time.Hour)
	if _, err := p.ca.StageRoot(); err != nil { // wakes the control plane's own renewal
		t.Fatal(err)
	}
	for changed := p.self.Updated(); ; changed = p.self.Updated() {
		if _, err := p.self.GetX509SVID(); err == nil {
			break
		}
		<-changed
	}
	for range 2 { // the control plane hears of a spent token no more
		if err := r.renew(t.Context()); !errors.Is(err, ErrRefused) {
			t.Errorf("expired, token spent: %v", err)
		}
	}
	if n := p.svc.Stats().Refused; len(n) != 0 {
		t.Errorf("refused %v", n)
	}
	write()
	if err := r.renew(t.Context()); err != nil {
		t.Errorf("with a new token: %v", err)
	}
	current(t, r)
}
