package source

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	"sallyport/certs"
	"sallyport/certs/issuer"
	"sallyport/certs/tokenreview"
)

// cluster vouches for the tokens that it holds, for the account default:orders.
type cluster struct{ good map[string]bool }

func (c cluster) Create(_ context.Context, _ string, in, out any) error {
	review := in.(*authenticationv1.TokenReview)
	if !c.good[review.Spec.Token] {
		return nil
	}
	out.(*authenticationv1.TokenReview).Status = authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: review.Spec.Audiences,
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:default:orders",
			Extra:    map[string]authenticationv1.ExtraValue{"authentication.kubernetes.io/pod-name": {"orders-1"}},
		},
	}
	return nil
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestJoinByServiceAccount(t *testing.T) {
	k := cluster{good: map[string]bool{"h.first.s": true, "h.second.s": true}}
	p := newPlaneWith(t, certs.ControlPlaneID(td), func(o *issuer.Options) { o.Accounts = tokenreview.New(k, td, nil) })
	o := p.options()
	o.ServiceAccountTokenFile = filepath.Join(t.TempDir(), "token")
	wantRefusedText(t, o, "needs the trust bundle")
	o.BundleFile = filepath.Join(p.dir, "bundle.pem")
	wantRefused(t, o, "no such file")
	put(t, o.ServiceAccountTokenFile, "secret.fingerprint")
	wantRefused(t, o, "holds no JSON web token")
	put(t, o.ServiceAccountTokenFile, "h.forged.s")
	wantRefused(t, o, "refused by the API server")
	put(t, o.ServiceAccountTokenFile, "h.first.s\n")
	r := mustJoin(t, o)
	if got := r.ID(); got != orders {
		t.Errorf("identity %s", got)
	}
	mustJoin(t, o) // a restarted container sends the same token
	payments := o
	payments.Service = "payments"
	wantRefused(t, payments, "runs as system:serviceaccount:default:orders")
	both := o
	both.Token = "x"
	wantRefusedText(t, both, "exclude each other")
}

// When the SVID has expired, the token that the kubelet put there meanwhile brings a new one.
func TestAnExpiredIdentityIsRenewedByTheTokenOfThatMoment(t *testing.T) {
	k := cluster{good: map[string]bool{"h.first.s": true}}
	p := newPlaneWith(t, certs.ControlPlaneID(td), func(o *issuer.Options) { o.Accounts = tokenreview.New(k, td, nil) })
	o := p.options()
	o.BundleFile = filepath.Join(p.dir, "bundle.pem")
	o.ServiceAccountTokenFile = filepath.Join(t.TempDir(), "token")
	put(t, o.ServiceAccountTokenFile, "h.first.s")
	iss := &remote{opt: o}
	bundle, err := loadBundle(td, o.BundleFile)
	if err != nil {
		t.Fatal(err)
	}
	iss.bundle, iss.opt.TrustDomain = bundle, td
	for range 2 {
		if _, secret, err := iss.tls(nil); err != nil || secret != "h.first.s" {
			t.Fatalf("%q, %v", secret, err)
		}
	}
	put(t, o.ServiceAccountTokenFile, "h.second.s")
	if _, secret, err := iss.tls(nil); err != nil || secret != "h.second.s" {
		t.Errorf("%q, %v", secret, err)
	}
}

// wantRefusedText is for options that are wrong before anybody is asked.
func wantRefusedText(t *testing.T, o Options, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := Join(ctx, o); err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%v, want %q", err, text)
	}
}
