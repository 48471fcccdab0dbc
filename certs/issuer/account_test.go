package issuer

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	authenticationv1 "k8s.io/api/authentication/v1"

	"sallyport/certs/tokenreview"
)

// cluster vouches for tokens that begin with the name of an account of the namespace "default".
type cluster struct {
	asked atomic.Int32
	down  atomic.Bool
}

func (c *cluster) Create(_ context.Context, _ string, in, out any) error {
	c.asked.Add(1)
	if c.down.Load() {
		return errors.New("connection refused")
	}
	review := in.(*authenticationv1.TokenReview)
	answer := out.(*authenticationv1.TokenReview)
	name, _, _ := strings.Cut(review.Spec.Token, ".")
	if name == "expired" {
		answer.Status.Error = "token has expired"
		return nil
	}
	answer.Status = authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: review.Spec.Audiences,
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:default:" + name,
			Extra:    map[string]authenticationv1.ExtraValue{"authentication.kubernetes.io/pod-name": {name + "-1"}},
		},
	}
	return nil
}

func TestServiceAccountTokens(t *testing.T) {
	var k cluster
	var log bytes.Buffer
	p := newPlane(t, func(o *Options) {
		o.Accounts = tokenreview.New(&k, td, nil)
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	for range 2 { // it may be used again, unlike a join token
		if _, err := p.call(t, nil, "orders.x.y", orders.String()); err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.call(t, nil, "orders.x.y", payments.String())
	wantCode(t, err, codes.PermissionDenied, "pod orders-1 runs as system:serviceaccount:default:orders, which is "+orders.String()+", not "+payments.String())
	_, err = p.call(t, nil, "expired.x.y", orders.String())
	wantCode(t, err, codes.Unauthenticated, "token has expired")
	// Judged by the token alone, also where a certificate would do.
	_, err = p.call(t, p.signed(t, orders), "expired.x.y", orders.String())
	wantCode(t, err, codes.Unauthenticated, "token has expired")
	k.down.Store(true)
	_, err = p.call(t, nil, "orders.x.y", orders.String())
	wantCode(t, err, codes.Unavailable, "could not be checked")
	if st := p.Stats(); st.Issued[ByAccount] != 2 || k.asked.Load() != 6 {
		t.Errorf("stats %+v, %d reviews: each call is one", st, k.asked.Load())
	}
	asked := k.asked.Load()
	_, err = p.call(t, nil, strings.Repeat("a", tokenreview.MaxToken)+".x.y", orders.String())
	wantCode(t, err, codes.Unauthenticated, "must be Bearer")
	_, err = p.call(t, nil, "orders.x.y", "spiffe://evil.local/ns/default/svc/orders")
	wantCode(t, err, codes.InvalidArgument, "trust domain")
	if k.asked.Load() != asked {
		t.Error("the API server was asked about a request that could not be granted")
	}
	if strings.Contains(log.String(), ".x.y") {
		t.Errorf("a token in the log:\n%s", log.String())
	}
}

func TestServiceAccountTokensAreRefusedWhereNobodyChecksThem(t *testing.T) {
	_, err := newPlane(t, nil).call(t, nil, "orders.x.y", orders.String())
	wantCode(t, err, codes.Unauthenticated, "start it with --kubernetes")
}
