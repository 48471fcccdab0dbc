package source

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// WorkloadOptions of WorkloadAPI; the zero value is good.
type WorkloadOptions struct {
	ID     spiffeid.ID      // which SVID to use if the workload has several; zero: the first, as SPIFFE says
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default
}

// Workload is a Source fed by a SPIFFE Workload API: SPIRE, or another sidecar's.
type Workload struct {
	opt    WorkloadOptions
	client *workloadapi.Client
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	svid    *x509svid.SVID
	bundles []*x509bundle.Bundle
	state   State
	updated chan struct{}
}

var _ Source = (*Workload)(nil)

// WorkloadAPI connects to the Workload API at addr (unix:///path, SPIFFE Workload Endpoint §4) and returns with the
// first SVID, or with the last error when ctx ends. The context bounds only this call.
func WorkloadAPI(ctx context.Context, addr string, o WorkloadOptions) (*Workload, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(addr))
	if err != nil {
		return nil, fmt.Errorf("workload API %s: %w", addr, err)
	}
	run, cancel := context.WithCancel(context.Background())
	w := &Workload{
		opt: o, client: client, cancel: cancel, done: make(chan struct{}),
		updated: make(chan struct{}), state: State{ID: o.ID},
	}
	first := w.Updated()
	go w.run(run)
	select {
	case <-first:
		return w, nil
	case <-ctx.Done():
		last := w.State().LastError
		_ = w.Close()
		if last == nil {
			last = ctx.Err()
		}
		return nil, fmt.Errorf("workload API %s: no identity: %w", addr, last)
	}
}

// Close ends the watch.
func (w *Workload) Close() error {
	w.cancel()
	<-w.done
	return w.client.Close()
}

// run watches until Close; go-spiffe connects again by itself, with backoff.
func (w *Workload) run(ctx context.Context) {
	defer close(w.done)
	expiry := make(chan struct{})
	go func() { // tells the expiry of an SVID that is not replaced
		defer close(expiry)
		w.watchExpiry(ctx)
	}()
	_ = w.client.WatchX509Context(ctx, w) // ends with ctx, or with an error that OnX509ContextWatchError has seen
	<-ctx.Done()
	<-expiry
}

func (w *Workload) watchExpiry(ctx context.Context) {
	var told time.Time
	for {
		changed := w.Updated()
		wait := maxSleep
		if end := w.State().NotAfter; !end.IsZero() && end != told {
			wait = min(wait, end.Sub(w.opt.Now()))
			if wait <= 0 {
				told = end
				w.opt.Logger.Error("identity has expired, new handshakes fail until it is renewed", "not_after", end)
				w.mu.Lock()
				w.announce()
				w.mu.Unlock()
				continue
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (w *Workload) OnX509ContextUpdate(x *workloadapi.X509Context) {
	svid := x.DefaultSVID()
	if !w.opt.ID.IsZero() {
		i := slices.IndexFunc(x.SVIDs, func(s *x509svid.SVID) bool { return s.ID == w.opt.ID })
		if i < 0 {
			w.OnX509ContextWatchError(fmt.Errorf("it gives no SVID for %s", w.opt.ID))
			return
		}
		svid = x.SVIDs[i]
	}
	bundles := x.Bundles.Bundles()
	own := svid.ID.TrustDomain()
	slices.SortFunc(bundles, func(a, b *x509bundle.Bundle) int {
		if (a.TrustDomain() == own) != (b.TrustDomain() == own) {
			if a.TrustDomain() == own {
				return -1
			}
			return 1
		}
		return strings.Compare(a.TrustDomain().Name(), b.TrustDomain().Name())
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.svid, w.bundles = svid, bundles
	w.state.ID = svid.ID
	w.state.NotBefore, w.state.NotAfter = svid.Certificates[0].NotBefore, svid.Certificates[0].NotAfter
	w.state.Renewals++
	w.state.LastRenewal, w.state.LastError = w.opt.Now(), nil
	w.announce()
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (w *Workload) OnX509ContextWatchError(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state.Failures++
	w.state.LastError, w.state.LastErrorAt = err, w.opt.Now()
}

// announce is called with mu held.
func (w *Workload) announce() {
	close(w.updated)
	w.updated = make(chan struct{})
}

// GetX509SVID implements x509svid.Source.
func (w *Workload) GetX509SVID() (*x509svid.SVID, error) {
	w.mu.Lock()
	svid, last := w.svid, w.state.LastError
	w.mu.Unlock()
	if err := expired(svid, w.opt.Now(), last); err != nil {
		return nil, err
	}
	return svid, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (w *Workload) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	for _, b := range w.Bundles() {
		if b.TrustDomain() == td {
			return b, nil
		}
	}
	return nil, fmt.Errorf("no trust bundle for trust domain %q", td.Name())
}

// Bundles implements Source.
func (w *Workload) Bundles() []*x509bundle.Bundle {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.bundles)
}

// Updated implements Source.
func (w *Workload) Updated() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.updated
}

// State implements Source.
func (w *Workload) State() State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}
