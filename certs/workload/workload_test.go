package workload

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sallyport/certs/ca"
	"sallyport/certs/peercred"
	"sallyport/certs/source"
)

var (
	quiet  = slog.New(slog.DiscardHandler)
	orders = spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/svc/orders")
)

// stage is a source.Source that a test rotates and breaks.
type stage struct {
	t  *testing.T
	ca *ca.Authority

	mu      sync.Mutex
	svid    *x509svid.SVID
	bundles []*x509bundle.Bundle
	err     error
	updated chan struct{}
}

func newStage(t *testing.T) *stage {
	t.Helper()
	a, err := ca.Open(filepath.Join(t.TempDir(), "ca"), ca.Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	s := &stage{t: t, ca: a, updated: make(chan struct{}), bundles: []*x509bundle.Bundle{a.Bundle()}}
	s.rotate()
	return s
}

func (s *stage) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.updated)
	s.updated = make(chan struct{})
}

func (s *stage) rotate() *x509svid.SVID {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{orders.URL()}}, key)
	if err != nil {
		s.t.Fatal(err)
	}
	chain, err := s.ca.Sign(der, orders, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	svid := &x509svid.SVID{ID: orders, Certificates: chain, PrivateKey: key}
	s.change(func() { s.svid, s.err = svid, nil })
	return svid
}

func (s *stage) GetX509SVID() (*x509svid.SVID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.svid, s.err
}

func (s *stage) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return x509bundle.NewSet(s.Bundles()...).GetX509BundleForTrustDomain(td)
}

func (s *stage) Bundles() []*x509bundle.Bundle {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bundles
}

func (s *stage) Updated() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.updated
}

func (s *stage) State() source.State { return source.State{} }
func (s *stage) Close() error        { return nil }

func serve(t *testing.T, attest Attest) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "w.sock")
	l, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(attest, Options{Logger: quiet}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "unix://" + path
}

func dial(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func nobody(peercred.Info) []source.Source { return nil }

func patience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestWorkloadAPIWithGoSPIFFE(t *testing.T) {
	src := newStage(t)
	federated := spiffeid.RequireTrustDomainFromString("partner.example")
	src.bundles = append(src.bundles, x509bundle.FromX509Authorities(federated, []*x509.Certificate{src.ca.Root()}))
	w, err := source.WorkloadAPI(patience(t), serve(t, Users(src)), source.WorkloadOptions{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	svid, err := w.GetX509SVID()
	if err != nil || svid.ID != orders || !svid.Certificates[0].Equal(src.svid.Certificates[0]) || len(svid.Certificates) != 2 {
		t.Fatalf("SVID %v, %v", svid, err)
	}
	if list := w.Bundles(); len(list) != 2 || list[0].TrustDomain() != orders.TrustDomain() || list[1].TrustDomain() != federated {
		t.Errorf("bundles %v", list)
	}
	for range 20 { // rotations
		changed := w.Updated()
		next := src.rotate()
		<-changed
		if svid, err = w.GetX509SVID(); err != nil || !svid.Certificates[0].Equal(next.Certificates[0]) {
			t.Fatalf("after a rotation: %v", err)
		}
	}
	if st := w.State(); st.Renewals != 21 || st.ID != orders || st.LastError != nil || !st.NotAfter.Equal(svid.Certificates[0].NotAfter) {
		t.Errorf("state %+v", st)
	}
	bundles, err := workloadapi.FetchX509Bundles(patience(t), workloadapi.WithAddr(serve(t, Users(src))))
	if err != nil || bundles.Len() != 2 {
		t.Errorf("FetchX509Bundles: %v, %v", bundles, err)
	}
}

func TestWorkloadSourceFailsClosed(t *testing.T) {
	src := newStage(t)
	var mu sync.Mutex
	now := time.Now()
	w, err := source.WorkloadAPI(patience(t), serve(t, Users(src)), source.WorkloadOptions{Logger: quiet, Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	mu.Lock()
	now = now.Add(2 * time.Hour)
	mu.Unlock()
	if _, err := w.GetX509SVID(); !errors.Is(err, source.ErrExpired) {
		t.Errorf("expired: %v", err)
	}
	other := spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/svc/other")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := source.WorkloadAPI(ctx, serve(t, Users(src)), source.WorkloadOptions{ID: other, Logger: quiet}); err == nil ||
		!strings.Contains(err.Error(), other.String()) {
		t.Errorf("an SVID that is not given: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := source.WorkloadAPI(ctx, serve(t, nobody), source.WorkloadOptions{Logger: quiet}); err == nil || !strings.Contains(err.Error(), "no identity issued") {
		t.Errorf("a stranger: %v", err)
	}
}

func TestWorkloadAPIRefusals(t *testing.T) {
	src := newStage(t)
	header := metadata.AppendToOutgoingContext(patience(t), "workload.spiffe.io", "true")
	first := func(ctx context.Context, addr string) error {
		stream, err := workloadpb.NewSpiffeWorkloadAPIClient(dial(t, addr)).FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return err
	}
	addr := serve(t, Users(src))
	if err := first(patience(t), addr); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without the security header: %v", err)
	}
	if err := first(header, addr); err != nil {
		t.Error(err)
	}
	if err := first(header, serve(t, nobody)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stranger: %v", err)
	}
	src.change(func() { src.err = source.ErrExpired })
	if err := first(header, addr); status.Code(err) != codes.Unavailable {
		t.Errorf("expired: %v", err)
	}
	if _, err := workloadpb.NewSpiffeWorkloadAPIClient(dial(t, addr)).FetchJWTSVID(header, &workloadpb.JWTSVIDRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("JWT: %v", err)
	}
}

func TestUsers(t *testing.T) {
	src := newStage(t)
	attest := Users(src, 1001)
	self := uint32(os.Geteuid())
	for uid, want := range map[uint32]int{self: 1, 1001: 1, 1002: 0, 65534: 0} {
		if got := len(attest(peercred.Info{UID: uid, GID: 1001})); got != want {
			t.Errorf("uid %d: %d sources, want %d", uid, got, want)
		}
	}
	for _, mode := range []os.FileMode{0o666, 0o777, 0o644} {
		if _, err := Listen(filepath.Join(t.TempDir(), "s"), mode); err == nil {
			t.Errorf("mode %#o taken", mode)
		}
	}
}

func unpack(t *testing.T, resp *discoveryv3.DiscoveryResponse) map[string]*tlsv3.Secret {
	t.Helper()
	out := map[string]*tlsv3.Secret{}
	for _, r := range resp.GetResources() {
		s := &tlsv3.Secret{}
		if err := r.UnmarshalTo(s); err != nil {
			t.Fatal(err)
		}
		if err := s.ValidateAll(); err != nil {
			t.Error(err)
		}
		out[s.GetName()] = s
	}
	return out
}

// leaf checks that a secret is a usable pair and returns its certificate.
func leaf(t *testing.T, s *tlsv3.Secret) *x509.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(s.GetTlsCertificate().GetCertificateChain().GetInlineBytes(), s.GetTlsCertificate().GetPrivateKey().GetInlineBytes())
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

func TestStreamSecrets(t *testing.T) {
	src := newStage(t)
	stream, err := secretv3.NewSecretDiscoveryServiceClient(dial(t, serve(t, Users(src)))).StreamSecrets(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	send := func(req *discoveryv3.DiscoveryRequest) {
		t.Helper()
		req.TypeUrl = secretType
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	recv := func() *discoveryv3.DiscoveryResponse {
		t.Helper()
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default", "ROOTCA"}})
	resp := recv()
	got := unpack(t, resp)
	if len(got) != 2 || !leaf(t, got["default"]).Equal(src.svid.Certificates[0]) {
		t.Fatalf("secrets %v", got)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(got["ROOTCA"].GetValidationContext().GetTrustedCa().GetInlineBytes()) {
		t.Error("ROOTCA holds no certificate")
	}
	ack := func(r *discoveryv3.DiscoveryResponse, names ...string) {
		t.Helper()
		send(&discoveryv3.DiscoveryRequest{ResourceNames: names, VersionInfo: r.GetVersionInfo(), ResponseNonce: r.GetNonce()})
	}
	ack(resp, "ROOTCA", "default") // an ACK, whatever the order of names, is not answered: the next answer is a rotation's
	next := src.rotate()
	rotated := recv()
	if rotated.GetVersionInfo() == resp.GetVersionInfo() || rotated.GetNonce() == resp.GetNonce() || !leaf(t, unpack(t, rotated)["default"]).Equal(next.Certificates[0]) {
		t.Error("not the rotated certificate")
	}
	ack(resp, "nonsense") // a late answer to the first response is passed over
	send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default", "ROOTCA"}, VersionInfo: resp.GetVersionInfo(), ResponseNonce: rotated.GetNonce(),
		ErrorDetail: &statuspb.Status{Message: "no"}}) // a NACK is not answered by the same again
	src.change(func() { src.err = source.ErrExpired }) // and neither is an expiry: the client has the old one
	next = src.rotate()
	resp = recv()
	if !leaf(t, unpack(t, resp)["default"]).Equal(next.Certificates[0]) {
		t.Error("not the certificate after the expiry")
	}
	ack(resp, orders.String()) // another subscription
	if got = unpack(t, recv()); len(got) != 1 || !leaf(t, got[orders.String()]).Equal(next.Certificates[0]) {
		t.Errorf("by SPIFFE ID: %v", got)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil || status.Code(err) != codes.Unknown {
		t.Errorf("end of the stream: %v", err)
	}
}

func TestDeltaSecrets(t *testing.T) {
	src := newStage(t)
	client := secretv3.NewSecretDiscoveryServiceClient(dial(t, serve(t, Users(src))))
	stream, err := client.DeltaSecrets(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	send := func(req *discoveryv3.DeltaDiscoveryRequest) {
		t.Helper()
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	recv := func() *discoveryv3.DeltaDiscoveryResponse {
		t.Helper()
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: secretType, ResourceNamesSubscribe: []string{"default", "ROOTCA", "none"}})
	resp := recv()
	if len(resp.GetResources()) != 2 || len(resp.GetRemovedResources()) != 1 || resp.GetRemovedResources()[0] != "none" {
		t.Fatalf("first answer %v", resp)
	}
	versions := map[string]string{}
	for _, r := range resp.GetResources() {
		versions[r.GetName()] = r.GetVersion()
	}
	send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.GetNonce()})
	src.rotate()
	if resp = recv(); len(resp.GetResources()) != 1 || resp.GetResources()[0].GetName() != "default" {
		t.Errorf("a rotation sends %v, want the certificate alone", resp.GetResources())
	}
	send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"default", "none"}, ResourceNamesSubscribe: []string{"ROOTCA"}})
	if resp = recv(); len(resp.GetResources()) != 1 || resp.GetResources()[0].GetName() != "ROOTCA" {
		t.Errorf("a second subscription: %v", resp)
	}
	src.rotate() // nobody subscribes to it any more
	if _, err := src.ca.StageRoot(); err != nil {
		t.Fatal(err)
	}
	src.change(func() { src.bundles = []*x509bundle.Bundle{src.ca.Bundle()} })
	if resp = recv(); len(resp.GetResources()) != 1 || resp.GetResources()[0].GetName() != "ROOTCA" {
		t.Errorf("a new root: %v", resp)
	}

	// A new stream of a client that has some of it already.
	stream, err = client.DeltaSecrets(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default", "ROOTCA"},
		InitialResourceVersions: map[string]string{"ROOTCA": resp.GetResources()[0].GetVersion(), "default": versions["default"]}})
	if resp = recv(); len(resp.GetResources()) != 1 || resp.GetResources()[0].GetName() != "default" {
		t.Errorf("with initial versions: %v", resp)
	}

	stream, err = client.DeltaSecrets(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	send(&discoveryv3.DeltaDiscoveryRequest{})
	if resp = recv(); len(resp.GetResources()) != 4 {
		t.Errorf("wildcard: %d resources, want default, ROOTCA and two IDs", len(resp.GetResources()))
	}
}

func TestFetchSecrets(t *testing.T) {
	src := newStage(t)
	client := secretv3.NewSecretDiscoveryServiceClient(dial(t, serve(t, Users(src))))
	resp, err := client.FetchSecrets(patience(t), &discoveryv3.DiscoveryRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := unpack(t, resp)
	for _, name := range []string{"default", "ROOTCA", orders.String(), "spiffe://sallyport.local"} {
		if got[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	for name, tc := range map[string]struct {
		req  *discoveryv3.DiscoveryRequest
		code codes.Code
	}{
		"unknown name":   {&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default", "other"}}, codes.InvalidArgument},
		"another type":   {&discoveryv3.DiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"}, codes.InvalidArgument},
		"too many names": {&discoveryv3.DiscoveryRequest{ResourceNames: make([]string, maxNames+1)}, codes.InvalidArgument},
	} {
		if _, err := client.FetchSecrets(patience(t), tc.req); status.Code(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	src.change(func() { src.err = source.ErrExpired })
	if _, err := client.FetchSecrets(patience(t), &discoveryv3.DiscoveryRequest{ResourceNames: []string{"default"}}); status.Code(err) != codes.Unavailable {
		t.Errorf("expired: %v", err)
	}
	if resp, err := client.FetchSecrets(patience(t), &discoveryv3.DiscoveryRequest{ResourceNames: []string{"ROOTCA"}}); err != nil || len(resp.GetResources()) != 1 {
		t.Errorf("the bundle of one that has expired: %v", err)
	}
	stranger := secretv3.NewSecretDiscoveryServiceClient(dial(t, serve(t, nobody)))
	if _, err := stranger.FetchSecrets(patience(t), &discoveryv3.DiscoveryRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stranger: %v", err)
	}
	stream, err := stranger.StreamSecrets(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stranger's stream: %v", err)
	}
}

func TestVersionsTellNothingOfTheKey(t *testing.T) {
	src := newStage(t)
	before, err := collect([]source.Source{src})
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	src.svid = &x509svid.SVID{ID: src.svid.ID, Certificates: src.svid.Certificates, PrivateKey: other}
	after, err := collect([]source.Source{src})
	if err != nil || before.version() != after.version() {
		t.Errorf("the version depends on the private key: %v", err)
	}
}
