package tokenreview

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	authenticationv1 "k8s.io/api/authentication/v1"
)

const jwt = "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl"

var td = spiffeid.RequireTrustDomainFromString("mesh.example")

// fakeAPI answers every review with status, or err.
type fakeAPI struct {
	t      *testing.T
	status authenticationv1.TokenReviewStatus
	err    error
}

func (f fakeAPI) Create(_ context.Context, path string, in, out any) error {
	f.t.Helper()
	r := in.(*authenticationv1.TokenReview)
	if path != "/apis/authentication.k8s.io/v1/tokenreviews" || r.Spec.Token != jwt || len(r.Spec.Audiences) != 1 || r.Spec.Audiences[0] != "mesh.example" {
		f.t.Errorf("%s %+v", path, r.Spec)
	}
	if f.err != nil {
		return f.err
	}
	data, err := json.Marshal(authenticationv1.TokenReview{Status: f.status})
	if err != nil {
		return err
	}
	return json.Unmarshal(data, out)
}

func good(change func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
	s := authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{"mesh.example"},
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:shop:orders",
			Extra:    map[string]authenticationv1.ExtraValue{"authentication.kubernetes.io/pod-name": {"orders-1"}},
		},
	}
	if change != nil {
		change(&s)
	}
	return s
}

func TestAnAccountBecomesTheServiceOfItsName(t *testing.T) {
	a, id, err := New(fakeAPI{t: t, status: good(nil)}, td, nil).ID(context.Background(), jwt)
	if err != nil {
		t.Fatal(err)
	}
	if id.String() != "spiffe://mesh.example/ns/shop/svc/orders" || a != (Account{"shop", "orders", "orders-1"}) {
		t.Errorf("%v %v", id, a)
	}
}

func TestAnAccountThatTheOperatorNamesIsAGateway(t *testing.T) {
	g, err := ParseGateways([]string{"shop/orders=public"})
	if err != nil {
		t.Fatal(err)
	}
	if _, id, err := New(fakeAPI{t: t, status: good(nil)}, td, g).ID(context.Background(), jwt); err != nil || id.String() != "spiffe://mesh.example/ns/shop/gw/public" {
		t.Errorf("%v %v", id, err)
	}
	// An account of that name in another namespace is not meant.
	other := good(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:stage:orders" })
	if _, id, err := New(fakeAPI{t: t, status: other}, td, g).ID(context.Background(), jwt); err != nil || id.String() != "spiffe://mesh.example/ns/stage/svc/orders" {
		t.Errorf("%v %v", id, err)
	}
	for _, flag := range []string{"", "public", "shop=public", "shop/=public", "/orders=public", "shop/orders=", "shop/orders=a/b", "a/b/c=public"} {
		if g, err := ParseGateways([]string{flag}); err == nil {
			t.Errorf("%q: %v", flag, g)
		}
	}
	if g, err := ParseGateways([]string{"shop/orders=public", "shop/orders=inner"}); err == nil {
		t.Errorf("one account, two gateways: %v", g)
	}
}

func TestRefusals(t *testing.T) {
	type status = authenticationv1.TokenReviewStatus
	for name, tc := range map[string]struct {
		change func(*status)
		want   string
	}{
		"the API server says no":          {func(s *status) { *s = status{Error: "token has expired"} }, "by the API server: token has expired"},
		"it says no without a reason":     {func(s *status) { *s = status{} }, `wanted: "mesh.example"`},
		"it repeats the token":            {func(s *status) { *s = status{Error: "bad " + jwt} }, "its pod is gone"},
		"a server without audiences":      {func(s *status) { s.Audiences = nil }, `its audience is not the trust domain "mesh.example"`},
		"another audience":                {func(s *status) { s.Audiences = []string{"https://kubernetes.default.svc"} }, "its audience is not"},
		"a person":                        {func(s *status) { s.User.Username = "alice" }, `of "alice", which is no service account`},
		"half an account":                 {func(s *status) { s.User.Username = "system:serviceaccount:shop" }, "which is no service account"},
		"a node":                          {func(s *status) { s.User.Username = "system:node:n1" }, "which is no service account"},
		"a token of no pod":               {func(s *status) { s.User.Extra = nil }, "system:serviceaccount:shop:orders: the token is not bound to a pod"},
		"a name that no SPIFFE ID can be": {func(s *status) { s.User.Username = "system:serviceaccount:shop:a:b" }, "cannot be part of a SPIFFE ID"},
		"the name of the control plane": {func(s *status) { s.User.Username = "system:serviceaccount:sallyport:control-plane" },
			"would have the name of the control plane itself"},
	} {
		t.Run(name, func(t *testing.T) {
			_, id, err := New(fakeAPI{t: t, status: good(tc.change)}, td, nil).ID(context.Background(), jwt)
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if !id.IsZero() || strings.Contains(err.Error(), jwt) {
				t.Errorf("id %v, error %v", id, err)
			}
		})
	}
}

func TestAnAPIServerThatIsAwayIsNoRefusal(t *testing.T) {
	_, _, err := New(fakeAPI{t: t, err: errors.New("connection refused")}, td, nil).ID(context.Background(), jwt)
	if err == nil || errors.Is(err, ErrRefused) {
		t.Error(err)
	}
}

func TestNothingIsAskedForATokenThatCannotBeOne(t *testing.T) {
	r := New(nil, td, nil) // any question would crash
	for _, token := range []string{"", strings.Repeat("x", MaxToken+1)} {
		if _, _, err := r.ID(context.Background(), token); !errors.Is(err, ErrRefused) {
			t.Error(err)
		}
	}
	if !Is(jwt) || Is("secret.fingerprint") || Is("") {
		t.Error("a JSON web token has two dots, a join token one")
	}
}
