package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityv1 "istio.io/api/security/v1alpha1"

	"sallyport/certs"
	"sallyport/certs/tlsconfig"
	"sallyport/certs/token"
	"sallyport/certs/tokenreview"
)

const (
	maxAnswer     = 256 << 10 // bytes of the issuer's answer
	maxAnswerPEMs = 16
	maxFile       = 1 << 20
)

// Options of Join.
type Options struct {
	Address     string               // of the control plane: host:port, or unix:///path
	TrustDomain spiffeid.TrustDomain // default sallyport.local
	Namespace   string               // default "default"
	Service     string               // whose identity it is to be: a service's,
	Gateway     string               // or a gateway's; one of both

	// What is needed once, at the first contact over TCP: a token, and the way to recognize the control plane, which is
	// the fingerprint in the token, or BundleFile if that is given.
	Token      string
	TokenFile  string // read again whenever there is no valid SVID, so that a new token needs no restart
	BundleFile string // PEM of the trust bundle

	// In place of a join token: the token of a Kubernetes service account, bound to this pod and for the audience of the
	// trust domain. It needs BundleFile. The kubelet replaces it, so it is read whenever it is needed.
	ServiceAccountTokenFile string

	Dir    string           // where key and SVID are kept over a restart (0700); "": nowhere, docs/decisions/0003
	TTL    time.Duration    // to ask for; zero: the control plane's own
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default

	dial func(context.Context, string) (net.Conn, error) // tests
}

// Join gets an identity from a control plane's certificate service and keeps it fresh. It returns with the first SVID,
// with an error at once if the control plane refuses or is not the right one, and with the last error when ctx ends.
// The context bounds only this call.
func Join(ctx context.Context, o Options) (*Renewed, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.TrustDomain.IsZero() {
		o.TrustDomain = spiffeid.RequireTrustDomainFromString(certs.DefaultTrustDomain)
	}
	if o.Service != "" && o.Gateway != "" {
		return nil, errors.New("an identity is either of a service or of a gateway")
	}
	id, err := certs.ServiceID(o.TrustDomain, o.Namespace, o.Service)
	if o.Gateway != "" {
		id, err = certs.GatewayID(o.TrustDomain, o.Namespace, o.Gateway)
	}
	if err != nil {
		return nil, err
	}
	iss := &remote{opt: o}
	if path, ok := strings.CutPrefix(o.Address, "unix:"); ok {
		iss.socket = "unix://" + "/" + strings.TrimLeft(path, "/")
	} else if _, _, err := net.SplitHostPort(o.Address); err != nil {
		return nil, fmt.Errorf("control plane address %q: must be host:port or unix:///path", o.Address)
	}
	if o.ServiceAccountTokenFile != "" && (o.Token != "" || o.TokenFile != "") {
		return nil, errors.New("a service account token and a join token exclude each other")
	}
	if o.ServiceAccountTokenFile != "" && o.BundleFile == "" && iss.socket == "" {
		return nil, errors.New("a service account token needs the trust bundle by which to recognize the control plane before it is sent")
	}
	if o.BundleFile != "" {
		if iss.bundle, err = loadBundle(o.TrustDomain, o.BundleFile); err != nil {
			return nil, err
		}
	}
	c := config{id: id, now: o.Now, log: o.Logger}
	if o.Dir != "" {
		kept, err := openKept(o.Dir)
		if err != nil {
			return nil, err
		}
		if c.initial, err = kept.load(id, o.Now(), o.Logger); err != nil {
			kept.close()
			return nil, err
		}
		c.keep, c.onEnd = kept.save, kept.close
	}
	r, err := start(ctx, iss, c)
	if err != nil {
		if c.onEnd != nil {
			c.onEnd()
		}
		return nil, fmt.Errorf("control plane %s: %w", o.Address, err)
	}
	return r, nil
}

func loadBundle(td spiffeid.TrustDomain, path string) (*x509bundle.Bundle, error) {
	data, err := readLimited(path)
	if err != nil {
		return nil, fmt.Errorf("trust bundle: %w", err)
	}
	b, err := x509bundle.Parse(td, data)
	if err != nil {
		return nil, fmt.Errorf("trust bundle %s: %w", path, err)
	}
	if b.Empty() {
		return nil, fmt.Errorf("trust bundle %s holds no certificate", path)
	}
	return b, nil
}

func readLimited(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile {
		return nil, fmt.Errorf("%s: must be a regular file of at most %d bytes", path, maxFile)
	}
	return os.ReadFile(path)
}

// remote is the Issuer behind Join. Used by one goroutine at a time, the one that renews.
type remote struct {
	opt    Options
	socket string // gRPC target; "": TLS over TCP
	bundle *x509bundle.Bundle
	spent  string // the secret that was answered, for good or ill; it is not sent again
}

// Issue implements Issuer. Each call has a connection of its own: it proves the identity of that moment, and there is
// one every half hour.
func (r *remote) Issue(ctx context.Context, csr []byte, current *Identity) (Issued, error) {
	target, creds := r.socket, insecure.NewCredentials()
	var secret string
	var rejected atomic.Pointer[error] // by us, of the server: gRPC tells it only as text
	if r.socket == "" {
		cfg, tok, err := r.tls(current)
		if err != nil {
			return Issued{}, err
		}
		verify := cfg.VerifyConnection
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			err := verify(cs)
			if err != nil {
				rejected.Store(&err)
			}
			return err
		}
		target, creds, secret = r.opt.Address, credentials.NewTLS(cfg), tok
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // a token may be sent once
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	}
	if r.opt.dial != nil {
		target = "passthrough:///" + r.opt.Address
		opts = append(opts, grpc.WithContextDialer(r.opt.dial))
	}
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		return Issued{}, err
	}
	defer conn.Close()
	if secret != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+secret)
	}
	resp, err := securityv1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityv1.IstioCertificateRequest{
		Csr:              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		ValidityDuration: int64(r.opt.TTL / time.Second),
	})
	if r.opt.ServiceAccountTokenFile != "" {
		secret = "" // unlike a join token it may be sent again
	}
	if err == nil {
		if secret != "" {
			r.spent = secret
		}
		return parseAnswer(resp.GetCertChain())
	}
	if why := rejected.Load(); why != nil {
		return Issued{}, fmt.Errorf("%w: %w", ErrRefused, *why)
	}
	err = explain(err)
	if secret != "" && errors.Is(err, ErrRefused) {
		r.spent = secret // it will be no better the next time
	}
	return Issued{}, err
}

// tls says how to make the connection: with the current SVID; else with a token, which is returned too.
func (r *remote) tls(current *Identity) (*tls.Config, string, error) {
	clock := tlsconfig.WithClock(r.opt.Now)
	server := spiffeid.MatchID(certs.ControlPlaneID(r.opt.TrustDomain))
	if current != nil {
		return tlsconfig.Client(fixed{current}, server, clock), "", nil
	}
	if r.opt.ServiceAccountTokenFile != "" {
		text, err := accountToken(r.opt.ServiceAccountTokenFile)
		if err != nil {
			return nil, "", err
		}
		return tlsconfig.Anonymous(r.bundle, server, clock), text, nil
	}
	text := r.opt.Token
	if r.opt.TokenFile != "" {
		data, err := readLimited(r.opt.TokenFile)
		if err != nil {
			return nil, "", fmt.Errorf("%w: join token: %w", ErrRefused, err)
		}
		text = string(data)
	}
	if text == "" {
		return nil, "", fmt.Errorf("%w: there is neither a valid identity nor a join token to begin with: "+
			"create one with sallyport token create", ErrRefused)
	}
	tok, err := token.Parse(text)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if tok.Secret == r.spent {
		return nil, "", fmt.Errorf("%w: there is no valid identity and the only join token was tried before: create a new one "+
			"with sallyport token create", ErrRefused)
	}
	if r.bundle != nil {
		return tlsconfig.Anonymous(r.bundle, server, clock), tok.Secret, nil
	}
	return tlsconfig.Pinned(tok.Fingerprint, server, clock), tok.Secret, nil
}

func accountToken(path string) (string, error) {
	data, err := readLimited(path)
	if err != nil {
		return "", fmt.Errorf("%w: service account token: %w", ErrRefused, err)
	}
	text := strings.TrimSpace(string(data))
	if !tokenreview.Is(text) || len(text) > tokenreview.MaxToken || strings.ContainsAny(text, " \r\n\t") {
		return "", fmt.Errorf("%w: service account token: %s holds no JSON web token", ErrRefused, path)
	}
	return text, nil
}

// explain turns a gRPC error into one line for a person and tells refusals from failures.
func explain(err error) error {
	st := status.Convert(err)
	switch st.Code() {
	case codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented:
		return fmt.Errorf("%w: %s", ErrRefused, st.Message())
	case codes.Unavailable:
		return fmt.Errorf("not reachable: %s", st.Message())
	default:
		return errors.New(st.Message())
	}
}

// parseAnswer takes the chain apart: what signs itself is a root of the bundle, the rest is the SVID's chain.
func parseAnswer(pems []string) (Issued, error) {
	var is Issued
	if len(pems) > maxAnswerPEMs {
		return is, fmt.Errorf("the issuer's answer has %d parts, at most %d are read", len(pems), maxAnswerPEMs)
	}
	for _, text := range pems {
		for rest := []byte(text); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if len(is.Chain)+len(is.Roots) >= maxAnswerPEMs {
				return is, fmt.Errorf("the issuer's answer has more than %d certificates", maxAnswerPEMs)
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return is, fmt.Errorf("the issuer's answer: %w", err)
			}
			if cert.IsCA && cert.CheckSignatureFrom(cert) == nil {
				is.Roots = append(is.Roots, cert)
			} else {
				is.Chain = append(is.Chain, cert)
			}
		}
	}
	return is, nil
}

// fixed shows one identity, as tlsconfig wants it.
type fixed struct{ *Identity }

var _ tlsconfig.Source = fixed{}
