// Package tokenreview attests callers by Kubernetes service account tokens. It owns the question whether the API server
// vouches for a token (TokenReview, authentication.k8s.io/v1) and the rule by which an account becomes a SPIFFE ID; the
// certificate service (package issuer) asks it, on gRPC's goroutines. Nothing is cached: the API server's answer is about
// this moment, a deleted pod's token fails at once, and a sidecar asks only once in its life. Tokens appear in no
// error and no log.
package tokenreview

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	authenticationv1 "k8s.io/api/authentication/v1"

	"sallyport/certs"
)

const (
	// MaxToken bounds a token; the API server's own are about 1 KiB.
	MaxToken = 16 << 10

	path          = "/apis/authentication.k8s.io/v1/tokenreviews"
	accountPrefix = "system:serviceaccount:"
	podName       = "authentication.kubernetes.io/pod-name" // in the user's extra fields, of bound tokens
	maxParallel   = 32
	maxReason     = 256
)

// ErrRefused is wrapped by the error of a token that is not good. Other errors say that it could not be checked.
var ErrRefused = errors.New("service account token refused")

// API is the part of the API server that is needed; package apiserver has it.
type API interface {
	Create(ctx context.Context, path string, in, out any) error
}

// Reviewer asks the API server. Safe for concurrent use.
type Reviewer struct {
	api      API
	td       spiffeid.TrustDomain
	gateways Gateways
	slots    chan struct{}
}

// Gateways are the accounts, NAMESPACE/NAME, that stand for a gateway of their namespace instead of for a service. Who may
// make accounts decides which services there are, but not who gets the keys of a gateway: so the operator names them.
type Gateways map[string]string

// ParseGateways reads flags of the form NAMESPACE/ACCOUNT=GATEWAY.
func ParseGateways(flags []string) (Gateways, error) {
	g := Gateways{}
	for _, f := range flags {
		account, gateway, ok := strings.Cut(f, "=")
		namespace, name, both := strings.Cut(account, "/")
		if !ok || !both || spiffeid.ValidatePathSegment(namespace) != nil || spiffeid.ValidatePathSegment(name) != nil || spiffeid.ValidatePathSegment(gateway) != nil {
			return nil, fmt.Errorf("%q: must be NAMESPACE/ACCOUNT=GATEWAY", f)
		}
		if had, twice := g[account]; twice && had != gateway {
			return nil, fmt.Errorf("%q: the account is gateway %q already", f, had)
		}
		g[account] = gateway
	}
	return g, nil
}

// New makes a reviewer. The tokens' audience must be the trust domain's name.
func New(api API, td spiffeid.TrustDomain, gateways Gateways) *Reviewer {
	return &Reviewer{api: api, td: td, gateways: gateways, slots: make(chan struct{}, maxParallel)}
}

// Account is who a token stands for.
type Account struct {
	Namespace, Name string
	Pod             string // to which the token is bound
}

// String is the account as Kubernetes writes it.
func (a Account) String() string { return accountPrefix + a.Namespace + ":" + a.Name }

// Is tells a service account token from a join token: a JSON web token in its compact form has two dots (RFC 7519
// §3), a join token has one.
func Is(token string) bool { return strings.Count(token, ".") == 2 }

// ID returns whose token it is and the SPIFFE ID that this account has in the mesh.
func (r *Reviewer) ID(ctx context.Context, token string) (Account, spiffeid.ID, error) {
	a, err := r.review(ctx, token)
	if err != nil {
		return Account{}, spiffeid.ID{}, err
	}
	id, err := certs.ServiceID(r.td, a.Namespace, a.Name)
	if gateway := r.gateways[a.Namespace+"/"+a.Name]; gateway != "" {
		id, err = certs.GatewayID(r.td, a.Namespace, gateway)
	}
	if err != nil {
		return a, spiffeid.ID{}, fmt.Errorf("%w: %s: %w", ErrRefused, a, err)
	}
	// Who may make accounts in a namespace of that name must not become the control plane by it.
	if id == certs.ControlPlaneID(r.td) {
		return a, spiffeid.ID{}, fmt.Errorf("%w: %s would have the name of the control plane itself: give the account another name", ErrRefused, a)
	}
	return a, id, nil
}

func (r *Reviewer) review(ctx context.Context, token string) (Account, error) {
	if token == "" || len(token) > MaxToken {
		return Account{}, fmt.Errorf("%w: it is empty or longer than %d bytes", ErrRefused, MaxToken)
	}
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return Account{}, ctx.Err()
	}
	audience := r.td.Name()
	var answer authenticationv1.TokenReview
	err := r.api.Create(ctx, path, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{audience}},
	}, &answer)
	if err != nil {
		return Account{}, err
	}
	st := answer.Status
	if !st.Authenticated {
		return Account{}, fmt.Errorf("%w by the API server: %s", ErrRefused, reason(st.Error, token, audience))
	}
	// "A client of the TokenReview API that sets the spec.audiences field should validate that a compatible audience
	// identifier is returned in the status.audiences field": a server that knows no audiences returns none.
	if !slices.Contains(st.Audiences, audience) {
		return Account{}, fmt.Errorf("%w: its audience is not the trust domain %q", ErrRefused, audience)
	}
	rest, ok := strings.CutPrefix(st.User.Username, accountPrefix)
	namespace, name, both := strings.Cut(rest, ":")
	if !ok || !both || namespace == "" || name == "" {
		return Account{}, fmt.Errorf("%w: it is of %q, which is no service account", ErrRefused, shorten(st.User.Username))
	}
	a := Account{Namespace: namespace, Name: name}
	pods := st.User.Extra[podName]
	if len(pods) != 1 || pods[0] == "" {
		return Account{}, fmt.Errorf("%w: %s: the token is not bound to a pod: use one that a projected volume (serviceAccountToken) "+
			"gives to the pod", ErrRefused, a)
	}
	a.Pod = pods[0]
	return a, nil
}

// reason is the API server's own, which must not show the token whatever that server writes.
func reason(text, token, audience string) string {
	if text == "" || strings.Contains(text, token) {
		return fmt.Sprintf("it is expired, of another cluster or audience (wanted: %q), or its pod is gone", audience)
	}
	return shorten(text)
}

func shorten(s string) string {
	if len(s) > maxReason {
		return s[:maxReason] + "…"
	}
	return s
}
