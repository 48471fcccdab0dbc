package webhook

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"sallyport/certs/apiserver"
)

// TrustBundle follows the config map in which the control plane publishes its trust bundle, which sidecars need before
// they send a token. Get is safe for concurrent use.
type TrustBundle struct {
	source apiserver.BundleMap
	log    *slog.Logger
	pem    atomic.Pointer[string]
	every  time.Duration
	retry  time.Duration
}

// NewTrustBundle returns a bundle that is empty until Follow runs.
func NewTrustBundle(source apiserver.BundleMap, log *slog.Logger) *TrustBundle {
	return &TrustBundle{source: source, log: log, every: bundleEvery, retry: bundleRetry}
}

// Follow reads the config map until ctx ends. What was read last stays when it cannot be read.
func (b *TrustBundle) Follow(ctx context.Context) {
	failing := ""
	for ctx.Err() == nil {
		wait := b.every
		text, err := b.source.Read(ctx)
		if err == nil {
			b.pem.Store(&text)
			failing = ""
		} else if wait = b.retry; err.Error() != failing && ctx.Err() == nil {
			failing = err.Error()
			b.log.Warn("trust bundle not read", "error", err)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// Get returns the bundle in PEM; an error that wraps ErrNotReady as long as there is none.
func (b *TrustBundle) Get() (string, error) {
	if p := b.pem.Load(); p != nil {
		return *p, nil
	}
	return "", fmt.Errorf("%w: the trust bundle in config map %s/%s is not known yet: is the control plane running?",
		ErrNotReady, b.source.Namespace, b.source.Name)
}
