package secret

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"
)

// maxChains bounds what chains remembers: a sidecar has some hundred peers.
const maxChains = 1024

// chains remembers which certificates of peers led to a trusted root, so that
// the signatures in a chain are verified once and not in each handshake of the
// same peer: a tenth of the CPU of a new connection. That the peer has the key is
// verified by TLS each time, names and pins by the validation.
//
// It belongs to one direction of one compiled validation and goes with it: what
// was trusted under the authorities of before is not looked up here again.
// Only success is remembered, so that nobody without a trusted certificate can
// fill it, and not beyond the end of any certificate of the chain. Safe for
// concurrent use.
type chains struct {
	mu    sync.Mutex
	until map[chainKey]time.Time
}

// chainKey is what a peer sent and whom it was verified against.
type chainKey struct {
	sent  [32]byte
	roots *x509.CertPool
}

func keyOf(certs []*x509.Certificate, roots *x509.CertPool) chainKey {
	h := sha256.New()
	for _, c := range certs {
		h.Write(c.Raw) // DER says its own length, so the border between two is not lost
	}
	k := chainKey{roots: roots}
	h.Sum(k.sent[:0])
	return k
}

// has says that the chain was verified and is still within its time.
func (s *chains) has(certs []*x509.Certificate, roots *x509.CertPool, now time.Time) bool {
	if s == nil {
		return false
	}
	k := keyOf(certs, roots)
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.until[k]
	// A clock that was set back could fall before the beginning of a certificate.
	return ok && !now.After(until) && !now.Before(certs[0].NotBefore)
}

// add remembers what was verified just now.
func (s *chains) add(certs []*x509.Certificate, roots *x509.CertPool, chain []*x509.Certificate) {
	if s == nil {
		return
	}
	until := chain[0].NotAfter
	for _, c := range chain {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil || len(s.until) >= maxChains {
		s.until = make(map[chainKey]time.Time)
	}
	s.until[keyOf(certs, roots)] = until
}
