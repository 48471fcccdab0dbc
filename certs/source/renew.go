package source

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/url"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	minBackoff     = 500 * time.Millisecond
	maxBackoff     = 30 * time.Second
	attemptTimeout = 10 * time.Second
	// Timers stand still while a machine sleeps, certificates do not: no wait is longer than this.
	maxSleep = time.Minute
)

// Issuer gets a certificate for a request. current is the identity that may prove itself for a renewal; nil if there is
// none or it has expired.
type Issuer interface {
	Issue(ctx context.Context, csr []byte, current *Identity) (Issued, error)
}

// Issued is an issuer's answer: the chain without the root, leaf first, and the trust bundle of the own domain.
type Issued struct {
	Chain []*x509.Certificate
	Roots []*x509.Certificate
}

// Identity is one generation of key, certificate and bundle. Immutable.
type Identity struct {
	SVID   *x509svid.SVID
	Bundle *x509bundle.Bundle
	// since is when it was received: the life that is halved begins there, not at the backdated NotBefore.
	since time.Time
}

// Renewed is a Source whose key is made here and whose certificate an Issuer renews. The key is new at every renewal.
type Renewed struct {
	id     spiffeid.ID
	issuer Issuer
	now    func() time.Time
	log    *slog.Logger
	keep   func(*Identity) error // nil: the key stays in memory
	onEnd  func()
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	cur     *Identity
	state   State
	updated chan struct{}
}

var _ Source = (*Renewed)(nil)

// config is what start needs beside the issuer.
type config struct {
	id      spiffeid.ID
	now     func() time.Time
	log     *slog.Logger
	initial *Identity
	keep    func(*Identity) error
	onEnd   func() // releases what belongs to the source
}

// start gets the first identity, unless there is an initial one, and then renews until Close. Until ctx ends it tries
// again when the issuer cannot be reached, and gives up when the issuer refuses.
func start(ctx context.Context, issuer Issuer, c config) (*Renewed, error) {
	if c.now == nil {
		c.now = time.Now
	}
	if c.log == nil {
		c.log = slog.Default()
	}
	r := &Renewed{
		id: c.id, issuer: issuer, now: c.now, log: c.log, keep: c.keep, onEnd: c.onEnd,
		done: make(chan struct{}), updated: make(chan struct{}), state: State{ID: c.id},
	}
	if c.initial != nil {
		r.set(c.initial)
	}
	for attempt := 1; r.cur == nil; attempt++ {
		err := r.renew(ctx)
		if err == nil {
			break
		}
		if errors.Is(err, ErrRefused) {
			return nil, fmt.Errorf("no identity for %s: %w", c.id, err)
		}
		if ctx.Err() != nil || !sleep(ctx, backoff(attempt)) {
			return nil, fmt.Errorf("no identity for %s: gave up after %d attempts: %w", c.id, attempt, err)
		}
	}
	run, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go r.run(run)
	return r, nil
}

// Close ends the renewal. What was read stays valid.
func (r *Renewed) Close() error {
	r.cancel()
	<-r.done
	return nil
}

// ID returns whose identity it is.
func (r *Renewed) ID() spiffeid.ID { return r.id }

// GetX509SVID implements x509svid.Source.
func (r *Renewed) GetX509SVID() (*x509svid.SVID, error) {
	r.mu.Lock()
	cur, last := r.cur, r.state.LastError
	r.mu.Unlock()
	if err := expired(cur.SVID, r.now(), last); err != nil {
		return nil, err
	}
	return cur.SVID, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (r *Renewed) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cur.Bundle.GetX509BundleForTrustDomain(td)
}

// Bundles implements Source.
func (r *Renewed) Bundles() []*x509bundle.Bundle {
	r.mu.Lock()
	defer r.mu.Unlock()
	return []*x509bundle.Bundle{r.cur.Bundle}
}

// Updated implements Source.
func (r *Renewed) Updated() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.updated
}

// State implements Source.
func (r *Renewed) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

func (r *Renewed) set(id *Identity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cur = id
	r.state.NotBefore, r.state.NotAfter = id.SVID.Certificates[0].NotBefore, id.SVID.Certificates[0].NotAfter
	r.state.Renewals++
	r.state.LastRenewal, r.state.LastError = id.since, nil
	r.announce()
}

// announce is called with mu held.
func (r *Renewed) announce() {
	close(r.updated)
	r.updated = make(chan struct{})
}

func (r *Renewed) run(ctx context.Context) {
	defer close(r.done)
	if r.onEnd != nil {
		defer r.onEnd()
	}
	// An issuer in this process says when its bundle changes; the answer is a renewal, which brings the new bundle.
	var changed <-chan struct{}
	watch, _ := r.issuer.(interface{ Updated() <-chan struct{} })
	cur := r.cur // written by this goroutine alone from here on
	due := renewAt(cur)
	toldExpired, failed := false, 0
	for {
		if watch != nil && changed == nil {
			changed = watch.Updated()
		}
		notAfter := cur.SVID.Certificates[0].NotAfter
		next := due
		if !toldExpired && notAfter.Before(next) {
			next = notAfter
		}
		if d := next.Sub(r.now()); d > 0 {
			timer := time.NewTimer(min(d, maxSleep))
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-changed:
				timer.Stop()
				changed, due = nil, r.now()
			case <-timer.C:
			}
			continue
		}
		if !toldExpired && !r.now().Before(notAfter) {
			toldExpired = true
			r.log.Error("identity has expired, new handshakes fail until it is renewed", "spiffe_id", r.id.String(), "not_after", notAfter)
			r.mu.Lock()
			r.announce()
			r.mu.Unlock()
			continue
		}
		if r.renew(ctx) != nil {
			if ctx.Err() != nil {
				return
			}
			failed++
			due = r.now().Add(backoff(failed))
			continue
		}
		cur = r.cur
		due, failed, toldExpired = renewAt(cur), 0, false
	}
}

// renewAt is at half of the life, give or take a tenth of it, so that what started together does not renew together.
func renewAt(id *Identity) time.Time {
	life := id.SVID.Certificates[0].NotAfter.Sub(id.since)
	return id.since.Add(time.Duration(float64(life) * (0.45 + 0.1*mathrand.Float64())))
}

// backoff doubles up to a bound, and then takes off up to half at random.
func backoff(attempt int) time.Duration {
	d := maxBackoff
	if attempt < 7 {
		d = min(d, minBackoff<<(attempt-1))
	}
	return d - time.Duration(mathrand.Float64()*float64(d)/2)
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// renew makes one attempt and records how it went.
func (r *Renewed) renew(ctx context.Context) error {
	next, err := r.attempt(ctx)
	if err != nil {
		if ctx.Err() == nil || r.cur == nil {
			r.mu.Lock()
			r.state.Failures++
			r.state.LastError, r.state.LastErrorAt = err, r.now()
			r.mu.Unlock()
			r.log.Warn("identity not renewed", "spiffe_id", r.id.String(), "error", err)
		}
		return err
	}
	r.set(next)
	r.log.Info("identity renewed", "spiffe_id", r.id.String(), "not_after", next.SVID.Certificates[0].NotAfter)
	if r.keep != nil {
		if err := r.keep(next); err != nil {
			r.log.Error("identity not kept for a restart", "spiffe_id", r.id.String(), "error", err)
		}
	}
	return nil
}

func (r *Renewed) attempt(ctx context.Context) (*Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{r.id.URL()}}, key)
	if err != nil {
		return nil, err
	}
	cur := r.cur
	if cur != nil && !r.now().Before(cur.SVID.Certificates[0].NotAfter) {
		cur = nil
	}
	issued, err := r.issuer.Issue(ctx, csr, cur)
	if err != nil {
		return nil, err
	}
	return accept(r.id, key, issued, r.now())
}

// accept takes an issuer's answer only if it is what was asked for: our key, our ID, valid now, under the bundle.
func accept(id spiffeid.ID, key *ecdsa.PrivateKey, issued Issued, now time.Time) (*Identity, error) {
	if len(issued.Chain) == 0 || len(issued.Roots) == 0 {
		return nil, errors.New("the issuer's answer lacks a certificate or the trust bundle")
	}
	bundle := x509bundle.FromX509Authorities(id.TrustDomain(), issued.Roots)
	got, _, err := x509svid.Verify(issued.Chain, bundle, x509svid.WithTime(now))
	if err != nil {
		return nil, fmt.Errorf("the issuer's certificate does not hold: %w", err)
	}
	if got != id {
		return nil, fmt.Errorf("the issuer's certificate is of %s, not of %s", got, id)
	}
	if !key.PublicKey.Equal(issued.Chain[0].PublicKey) {
		return nil, errors.New("the issuer's certificate is not for the key in the request")
	}
	svid := &x509svid.SVID{ID: id, Certificates: issued.Chain, PrivateKey: key}
	return &Identity{SVID: svid, Bundle: bundle, since: now}, nil
}
