// Package issuer is the gRPC service by which a sidecar gets its X.509-SVID: Istio's certificate service
// (istio.v1.auth.IstioCertificateService), as no SPIFFE standard carries a CSR. It owns the decision who may have which
// certificate (join token, service account token, mutual TLS, peer credentials of a Unix socket); signing is the authority's. The control plane
// registers one Service, on its TLS server and, by ServeUnix, on a socket. Runs on gRPC's goroutines.
package issuer

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	securityv1 "istio.io/api/security/v1alpha1"

	"sallyport/certs"
	"sallyport/certs/ca"
	"sallyport/certs/peercred"
	"sallyport/certs/tlsconfig"
	"sallyport/certs/token"
	"sallyport/certs/tokenreview"
)

const (
	// MaxMessage bounds a request; a server that Register is called on should have grpc.MaxRecvMsgSize no larger.
	MaxMessage = 64 << 10

	maxCSRPEM      = 2 * ca.MaxCSRSize
	maxSocketConns = 1024
	maxJoinToken   = 512

	failureInterval = time.Second // per caller: failedBurst failures, then one a second
	failureBurst    = 30
	issueInterval   = 500 * time.Millisecond // per caller and identity
	issueBurst      = 120
	maxLimitKeys    = 16_384
)

// Options of New. Authority is needed; what else is absent is a way to be attested that is closed.
type Options struct {
	Authority *ca.Authority
	Tokens    *token.Store            // nil: no join tokens
	Accounts  *tokenreview.Reviewer   // nil: no Kubernetes service account tokens
	Rules     peercred.Rules          // empty: nobody by Unix socket
	Allow     func(spiffeid.ID) error // asked for every certificate, renewals too; nil allows all that are attested
	Now       func() time.Time        // default time.Now
	Logger    *slog.Logger            // default slog.Default
}

// How a caller was attested, in logs and Stats.
const (
	ByToken   = "token"
	ByAccount = "service-account"
	ByMTLS    = "mtls"
	BySocket  = "socket"
)

// Stats counts since the start.
type Stats struct {
	Issued  map[string]uint64 // by ByToken, ByAccount, ByMTLS, BySocket
	Refused map[string]uint64 // by gRPC code
}

// Service answers CreateCertificate. Safe for concurrent use.
type Service struct {
	securityv1.UnimplementedIstioCertificateServiceServer
	opt      Options
	failures *limiter
	issues   *limiter

	mu    sync.Mutex
	stats Stats
}

// New makes the service.
func New(o Options) *Service {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Service{
		opt:      o,
		failures: newLimiter(failureInterval, failureBurst, maxLimitKeys),
		issues:   newLimiter(issueInterval, issueBurst, maxLimitKeys),
		stats:    Stats{Issued: map[string]uint64{}, Refused: map[string]uint64{}},
	}
}

// Register adds the service to a gRPC server. Its TLS must be tlsconfig.JoinServer, and every other service on it
// stands behind Guard.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	securityv1.RegisterIstioCertificateServiceServer(r, s)
}

// Stats returns the counters: a copy.
func (s *Service) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := Stats{Issued: map[string]uint64{}, Refused: map[string]uint64{}}
	for k, v := range s.stats.Issued {
		c.Issued[k] = v
	}
	for k, v := range s.stats.Refused {
		c.Refused[k] = v
	}
	return c
}

// CreateCertificate implements istio.v1.auth.IstioCertificateService. The request's metadata is ignored, as it proves
// nothing. The answer's chain is leaf, issuing certificate, roots of the bundle, the active root last.
func (s *Service) CreateCertificate(ctx context.Context, req *securityv1.IstioCertificateRequest) (*securityv1.IstioCertificateResponse, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Internal, "the transport does not tell who calls")
	}
	key := limitKey(p)
	if !s.failures.ready(key, s.opt.Now()) {
		s.count(codes.ResourceExhausted)
		return nil, status.Errorf(codes.ResourceExhausted, "too many failed requests from %s: wait some seconds", key)
	}
	resp, id, how, err := s.create(ctx, p, key, req)
	if err != nil {
		st := status.Convert(err)
		s.failures.take(key, s.opt.Now())
		s.count(st.Code())
		s.opt.Logger.Warn("certificate refused", "peer", key, "spiffe_id", id.String(), "code", st.Code().String(), "reason", st.Message())
		return nil, st.Err()
	}
	s.mu.Lock()
	s.stats.Issued[how]++
	s.mu.Unlock()
	s.opt.Logger.Info("certificate issued", "peer", key, "spiffe_id", id.String(), "attested_by", how)
	return resp, nil
}

func (s *Service) count(code codes.Code) {
	s.mu.Lock()
	s.stats.Refused[code.String()]++
	s.mu.Unlock()
}

func (s *Service) create(ctx context.Context, p *peer.Peer, key string, req *securityv1.IstioCertificateRequest) (
	*securityv1.IstioCertificateResponse, spiffeid.ID, string, error) {
	der, err := decodeRequest(req.GetCsr())
	if err != nil {
		return nil, spiffeid.ID{}, "", err
	}
	id, err := ca.RequestedID(der)
	if err != nil {
		return nil, spiffeid.ID{}, "", status.Error(codes.InvalidArgument, err.Error())
	}
	if td := s.opt.Authority.TrustDomain(); id.TrustDomain() != td {
		return nil, id, "", status.Errorf(codes.InvalidArgument, "%s is not of this control plane's trust domain %s", id, td.Name())
	}
	how, redeem, err := s.attest(ctx, p, id)
	if err != nil {
		return nil, id, how, err
	}
	// All that can fail comes before the token is used up.
	if _, err := ca.CheckRequest(der, id); err != nil {
		return nil, id, how, status.Error(codes.InvalidArgument, err.Error())
	}
	if s.opt.Allow != nil {
		if err := s.opt.Allow(id); err != nil {
			return nil, id, how, status.Errorf(codes.PermissionDenied, "%s may have no certificate: %v", id, err)
		}
	}
	if !s.issues.take(key+" "+id.String(), s.opt.Now()) {
		return nil, id, how, status.Errorf(codes.ResourceExhausted, "too many certificates for %s: wait some seconds", id)
	}
	if err := redeem(); err != nil {
		return nil, id, how, err
	}
	chain, err := s.opt.Authority.Sign(der, id, seconds(req.GetValidityDuration()))
	if err != nil {
		if errors.Is(err, ca.ErrRequest) {
			return nil, id, how, status.Error(codes.InvalidArgument, err.Error())
		}
		s.opt.Logger.Error("certificate not signed", "spiffe_id", id.String(), "error", err)
		return nil, id, how, status.Error(codes.Internal, "the certificate authority could not sign: see the control plane's log")
	}
	resp := &securityv1.IstioCertificateResponse{}
	add := func(raw []byte) {
		resp.CertChain = append(resp.CertChain, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})))
	}
	for _, c := range chain {
		add(c.Raw)
	}
	active := s.opt.Authority.Root()
	for _, root := range s.opt.Authority.Bundle().X509Authorities() {
		if !root.Equal(active) {
			add(root.Raw)
		}
	}
	add(active.Raw) // "the root cert is the last element", ca.proto
	return resp, id, how, nil
}

func seconds(n int64) time.Duration {
	if n <= 0 || n > int64((365*24*time.Hour)/time.Second) {
		return 0 // the authority's own
	}
	return time.Duration(n) * time.Second
}

func decodeRequest(text string) ([]byte, error) {
	if len(text) > maxCSRPEM {
		return nil, status.Errorf(codes.InvalidArgument, "csr: %d bytes, at most %d are read", len(text), maxCSRPEM)
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || (block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST") {
		return nil, status.Error(codes.InvalidArgument, "csr: must be a PEM block CERTIFICATE REQUEST")
	}
	if strings.TrimSpace(string(rest)) != "" {
		return nil, status.Error(codes.InvalidArgument, "csr: must be one PEM block, something follows it")
	}
	return block.Bytes, nil
}

// attest decides whether the caller may have id. redeem uses up what can be used once. A caller that brings a token is
// judged by the token alone; there is no falling back from a bad credential to another.
func (s *Service) attest(ctx context.Context, p *peer.Peer, id spiffeid.ID) (how string, redeem func() error, err error) {
	_, isTLS := p.AuthInfo.(credentials.TLSInfo)
	socket, isSocket := p.AuthInfo.(peercred.Info)
	if !isTLS && !isSocket {
		return "", nil, status.Error(codes.PermissionDenied, "the connection is neither TLS nor a Unix socket")
	}
	none := func() error { return nil }
	bearer, ok, err := bearerToken(ctx)
	if err != nil {
		return ByToken, nil, err
	}
	if ok && tokenreview.Is(bearer) {
		return ByAccount, none, s.byAccount(ctx, bearer, id)
	}
	if ok {
		secret, _, _ := strings.Cut(bearer, ".") // the fingerprint is the caller's affair
		redeem, err := s.byToken(secret, id)
		return ByToken, redeem, err
	}
	if isSocket {
		if !s.opt.Rules.Allows(socket, id) {
			return BySocket, nil, status.Errorf(codes.PermissionDenied, "no socket rule gives %s to uid %d, gid %d", id, socket.UID, socket.GID)
		}
		return BySocket, none, nil
	}
	have, ok, err := tlsconfig.PeerID(ctx, s.opt.Now())
	if err != nil {
		return ByMTLS, nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if !ok {
		return "", nil, status.Error(codes.Unauthenticated, "neither a token nor a client certificate was given")
	}
	if have != id {
		return ByMTLS, nil, status.Errorf(codes.PermissionDenied, "the client certificate is of %s, it cannot renew %s%s", have, id, certs.GatewayHint(have, id))
	}
	return ByMTLS, none, nil
}

func bearerToken(ctx context.Context) (string, bool, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) == 0 {
		return "", false, nil
	}
	if len(values) > 1 {
		return "", false, status.Error(codes.Unauthenticated, "authorization: must be given once")
	}
	scheme, value, ok := strings.Cut(values[0], " ")
	value = strings.TrimSpace(value)
	if !ok || !strings.EqualFold(scheme, "Bearer") || len(value) > tokenreview.MaxToken || !tokenreview.Is(value) && len(value) > maxJoinToken {
		return "", false, status.Error(codes.Unauthenticated, "authorization: must be Bearer and a join token or a service account token")
	}
	return value, true, nil
}

// byAccount is the attestation by a Kubernetes service account. Its token may be used again: the API server says each
// time whether it is still good.
func (s *Service) byAccount(ctx context.Context, bearer string, id spiffeid.ID) error {
	if s.opt.Accounts == nil {
		return status.Error(codes.Unauthenticated, "this control plane takes no service account tokens: start it with --kubernetes")
	}
	account, have, err := s.opt.Accounts.ID(ctx, bearer)
	switch {
	case errors.Is(err, tokenreview.ErrRefused):
		return status.Error(codes.Unauthenticated, err.Error())
	case err != nil:
		s.opt.Logger.Error("service account token not checked", "error", err)
		return status.Error(codes.Unavailable, "the service account token could not be checked: see the control plane's log")
	case have != id:
		advice := "give the service an account of its name"
		if _, gateway, ok := certs.ParseGatewayID(id); ok {
			advice = fmt.Sprintf("start the control plane with --kubernetes-gateway %s/%s=%s", account.Namespace, account.Name, gateway)
		}
		return status.Errorf(codes.PermissionDenied, "pod %s runs as %s, which is %s, not %s: %s", account.Pod, account, have, id, advice)
	}
	return nil
}

func (s *Service) byToken(secret string, id spiffeid.ID) (func() error, error) {
	if s.opt.Tokens == nil {
		return nil, status.Error(codes.Unauthenticated, "this control plane takes no join tokens")
	}
	have, err := s.opt.Tokens.Lookup(secret)
	if err != nil {
		return nil, s.tokenError(err)
	}
	if have != id {
		return nil, status.Errorf(codes.PermissionDenied, "the join token is for %s, not for %s%s", have, id, certs.GatewayHint(have, id))
	}
	return func() error {
		_, err := s.opt.Tokens.Redeem(secret)
		if err != nil {
			return s.tokenError(err)
		}
		return nil
	}, nil
}

func (s *Service) tokenError(err error) error {
	for _, known := range []error{token.ErrUsed, token.ErrExpired, token.ErrUnknown, token.ErrFormat} {
		if errors.Is(err, known) {
			return status.Error(codes.Unauthenticated, known.Error())
		}
	}
	s.opt.Logger.Error("join token not checked", "error", err)
	return status.Error(codes.Internal, "the join token could not be checked: see the control plane's log")
}

// Guard returns interceptors that let through only callers with a valid client certificate, and the certificate
// service itself, which attests its callers. PeerID then tells who it is. now nil means time.Now.
func Guard(now func() time.Time) (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	if now == nil {
		now = time.Now
	}
	check := func(ctx context.Context, method string) error {
		if method == securityv1.IstioCertificateService_CreateCertificate_FullMethodName {
			return nil
		}
		_, ok, err := tlsconfig.PeerID(ctx, now())
		if err != nil {
			return status.Error(codes.Unauthenticated, err.Error())
		}
		if !ok {
			return status.Error(codes.Unauthenticated, "a client certificate is needed: get one with a join token first")
		}
		return nil
	}
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if err := check(ctx, info.FullMethod); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if err := check(ss.Context(), info.FullMethod); err != nil {
			return err
		}
		return next(srv, ss)
	}
	return unary, stream
}

// ServeUnix serves on a Unix socket at path, where callers are attested by Rules, until ctx ends. mode is 0600, 0660 or
// 0666. ready, if not nil, is called once the socket takes connections.
func (s *Service) ServeUnix(ctx context.Context, path string, mode os.FileMode, ready func()) error {
	l, err := peercred.Listen(path, mode, maxSocketConns)
	if err != nil {
		return fmt.Errorf("certificate service: %w", err)
	}
	return s.serve(ctx, l, ready)
}

func (s *Service) serve(ctx context.Context, l net.Listener, ready func()) error {
	g := grpc.NewServer(
		grpc.Creds(peercred.Credentials()),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(16),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: time.Minute}),
	)
	s.Register(g)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	if ready != nil {
		ready()
	}
	if err := g.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("certificate service: %w", err)
	}
	return nil
}

// CreateJoinToken makes a join token for id in a control plane's state folder, whether or not that runs; it makes the
// authority if there is none yet, so that the token can carry its root's fingerprint. `sallyport token create` prints
// what String gives.
func CreateJoinToken(stateDir string, id spiffeid.ID, ttl time.Duration) (token.Token, error) {
	pub, err := ca.Describe(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		a, openErr := ca.Open(stateDir, ca.Options{TrustDomain: id.TrustDomain()})
		if openErr != nil {
			return token.Token{}, openErr
		}
		_ = a.Close()
		pub, err = ca.Describe(stateDir)
	}
	if err != nil {
		return token.Token{}, err
	}
	if id.TrustDomain() != pub.TrustDomain {
		return token.Token{}, fmt.Errorf("join token: %s is not of the trust domain %s of %s", id, pub.TrustDomain.Name(), stateDir)
	}
	store, err := token.Open(stateDir, nil)
	if err != nil {
		return token.Token{}, err
	}
	defer store.Close()
	secret, err := store.Create(id, ttl)
	if err != nil {
		return token.Token{}, err
	}
	return token.Token{Secret: secret, Fingerprint: pub.Fingerprint}, nil
}
