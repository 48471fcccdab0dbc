package source

import (
	"context"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/certs/ca"
)

// LocalOptions of Local; the zero value is good.
type LocalOptions struct {
	TTL    time.Duration    // default: the authority's
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default
}

// Local is the source of the process that holds the authority: the control plane's own identity. It follows a change
// of the authority's bundle at once.
func Local(ctx context.Context, a *ca.Authority, id spiffeid.ID, o LocalOptions) (*Renewed, error) {
	return start(ctx, &local{Authority: a, ttl: o.TTL}, config{id: id, now: o.Now, log: o.Logger})
}

type local struct {
	*ca.Authority // Updated
	ttl           time.Duration
}

// Issue implements Issuer.
func (l *local) Issue(_ context.Context, csr []byte, _ *Identity) (Issued, error) {
	id, err := ca.RequestedID(csr) // our own process made it: the caller is attested by being here
	if err != nil {
		return Issued{}, err
	}
	chain, err := l.Sign(csr, id, l.ttl)
	if err != nil {
		return Issued{}, err
	}
	return Issued{Chain: chain, Roots: l.Bundle().X509Authorities()}, nil
}
