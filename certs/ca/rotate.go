package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/certs/statedir"
)

// A root is rotated in three steps, each of which waits for the step before to have reached every peer:
// StageRoot puts the new one into the bundle, ActivateRoot signs with it, RetireRoot takes the old one out. Peers learn
// the bundle at each renewal, which is at half of a leaf's life, and a leaf lives for TTL; so TTL is the wait.

// ErrTooEarly is wrapped by the error of a rotation step that would cut off peers.
var ErrTooEarly = errors.New("too early")

// RootStatus describes one root of the bundle.
type RootStatus struct {
	Fingerprint string
	Phase       Phase
	Since       time.Time // when it came into this phase
	NotAfter    time.Time
}

// Roots tells where each root stands.
func (a *Authority) Roots() []RootStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.st.status()
}

func (s *state) status() []RootStatus {
	list := make([]RootStatus, 0, len(s.roots))
	for _, r := range s.roots {
		list = append(list, RootStatus{Fingerprint(r.cert), r.phase, r.since, r.cert.NotAfter})
	}
	return list
}

// Root returns the active root, whose fingerprint join tokens carry.
func (a *Authority) Root() *x509.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.st.active().cert
}

// StageRoot makes a new root and adds it to the bundle. It returns its fingerprint.
func (a *Authority) StageRoot() (string, error) {
	var fingerprint string
	err := a.change("stage a root", func(st *state, now time.Time) error {
		if len(st.roots) >= maxRoots {
			return fmt.Errorf("the bundle has %d roots, at most %d: retire one first", len(st.roots), maxRoots)
		}
		p, err := newAuthority(st.td, "root", nil, now.Add(-authorityBackdate), now.Add(a.opt.RootTTL))
		if err != nil {
			return err
		}
		fingerprint = Fingerprint(p.cert)
		st.roots = append(st.roots, root{pair: *p, phase: Staged, since: now})
		return nil
	})
	return fingerprint, err
}

// ActivateRoot makes the staged root sign from now on; the one that was active begins to retire.
func (a *Authority) ActivateRoot(fingerprint string) error {
	return a.change("activate root "+fingerprint, func(st *state, now time.Time) error {
		next, err := st.find(fingerprint)
		if err != nil {
			return err
		}
		if next.phase != Staged {
			return fmt.Errorf("it is %s, must be staged", next.phase)
		}
		if due := next.since.Add(a.opt.TTL); now.Before(due) {
			return fmt.Errorf("%w: not every peer has it in its bundle before %s", ErrTooEarly, due.Format(time.RFC3339))
		}
		old := st.active()
		old.phase, old.since = Retiring, now
		next.phase, next.since = Active, now
		return nil
	})
}

// RetireRoot takes a root out of the bundle: a staged one at once, a retiring one after the last leaf under it expired.
func (a *Authority) RetireRoot(fingerprint string) error {
	return a.change("retire root "+fingerprint, func(st *state, now time.Time) error {
		old, err := st.find(fingerprint)
		if err != nil {
			return err
		}
		if old.phase == Active {
			return errors.New("it is active: stage and activate another first")
		}
		if due := old.since.Add(a.opt.TTL); old.phase == Retiring && now.Before(due) {
			return fmt.Errorf("%w: leaves under it live until %s", ErrTooEarly, due.Format(time.RFC3339))
		}
		for i := range st.roots {
			if &st.roots[i] == old {
				st.roots = append(st.roots[:i:i], st.roots[i+1:]...)
				break
			}
		}
		return nil
	})
}

func (s *state) find(fingerprint string) (*root, error) {
	for i := range s.roots {
		if Fingerprint(s.roots[i].cert) == fingerprint {
			return &s.roots[i], nil
		}
	}
	return nil, errors.New("the bundle has no such root")
}

// change applies step to a copy, writes it, and only then makes it current.
func (a *Authority) change(what string, step func(*state, time.Time) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return fmt.Errorf("certificate authority: %s: closed", what)
	}
	st := a.st.clone()
	if err := step(st, a.opt.Now()); err != nil {
		return fmt.Errorf("certificate authority: %s: %w", what, err)
	}
	if err := writeState(a.dir, st); err != nil {
		return fmt.Errorf("certificate authority: %s: %w", what, err)
	}
	a.st = st
	close(a.updated)
	a.updated = make(chan struct{})
	a.opt.Logger.Info("trust bundle changed", "step", what, "roots", len(st.roots))
	return nil
}

// Public is what may be told of an authority without its keys.
type Public struct {
	TrustDomain spiffeid.TrustDomain
	Bundle      *x509bundle.Bundle
	Fingerprint string // of the active root
	Roots       []RootStatus
}

// Describe reads the authority in dir without taking its lock, so it works beside a running control plane. The error
// of an absent one matches fs.ErrNotExist.
func Describe(dir string) (*Public, error) {
	if !statedir.Exists(dir, stateFile) {
		return nil, fmt.Errorf("no certificate authority in %s: %w", dir, fs.ErrNotExist)
	}
	d, err := statedir.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	defer d.Close()
	st, err := readState(d)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return &Public{st.td, st.bundle(), Fingerprint(st.active().cert), st.status()}, nil
}
