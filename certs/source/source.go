// Package source is where a process has its identity from: it owns the private key, the current X.509-SVID and the
// trust bundles, and keeps them fresh. Join gets them from the control plane's certificate service, Local from an
// authority in the same process, WorkloadAPI from SPIRE or any other SPIFFE Workload API. All are one interface.
//
// Sources are safe for concurrent use. They are read at handshakes and configuration changes, on ordinary goroutines; no
// request on a worker needs one. Renewal runs on a goroutine of the source's own.
package source

import (
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Source gives the current identity. It fails closed: once the SVID has expired, GetX509SVID is an error, so no new
// handshake succeeds; connections that exist are nobody's business here.
type Source interface {
	x509svid.Source   // GetX509SVID
	x509bundle.Source // GetX509BundleForTrustDomain

	// Bundles returns all trust bundles, the own trust domain's first.
	Bundles() []*x509bundle.Bundle
	// Updated returns a channel that is closed when the SVID or a bundle next changes, or the SVID expires. Take the
	// channel before reading what it announces: the other way round a change in between is lost.
	Updated() <-chan struct{}
	State() State
	Close() error
}

// State is for status pages and metrics.
type State struct {
	ID          spiffeid.ID
	NotBefore   time.Time
	NotAfter    time.Time // zero: there is no SVID yet
	Renewals    uint64    // successful, the first included
	Failures    uint64
	LastRenewal time.Time
	LastError   error // of the last attempt; nil after a success
	LastErrorAt time.Time
}

// ErrRefused is wrapped by an issuer's error that asking again will not change: a used token, a wrong identity.
var ErrRefused = errors.New("identity refused")

// ErrExpired is wrapped by GetX509SVID's error when the SVID has expired.
var ErrExpired = errors.New("identity has expired")

// expired describes why there is no SVID to give.
func expired(svid *x509svid.SVID, now time.Time, last error) error {
	notAfter := svid.Certificates[0].NotAfter
	if now.Before(notAfter) {
		return nil
	}
	if last != nil {
		return fmt.Errorf("%w: %s at %s, and its renewal fails: %w", ErrExpired, svid.ID, notAfter.Format(time.RFC3339), last)
	}
	return fmt.Errorf("%w: %s at %s", ErrExpired, svid.ID, notAfter.Format(time.RFC3339))
}
