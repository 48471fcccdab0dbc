package secret

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/panics"
)

// IdentityCluster is the name of the cluster that, as the source of an SDS
// secret, means the process's own identity.
const IdentityCluster = "sallyport_identity"

// Names of secrets of the process's own identity, as SPIRE's agent has them:
// its X.509-SVID, the roots of its own trust domain, and the roots of every
// trust domain that it federates with, each for the peers of that domain alone.
const (
	IdentityCertificate = "default"
	IdentityRoots       = "ROOTCA"
	IdentityAllRoots    = "ALL"
)

// Identity is the process's own identity: a key made here, and a certificate
// that is renewed while the process runs. Safe for concurrent use.
type Identity interface {
	// Certificate is the present X.509-SVID with its key and intermediates.
	Certificate() (*tls.Certificate, error)
	// Roots are the authorities of a trust domain, "" for the own one.
	Roots(trustDomain string) (*x509.CertPool, error)
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
}

// Options of a Store. The zero value serves configurations with inline and file secrets alone.
type Options struct {
	Identity Identity // nil: secrets of IdentityCluster are refused
	Log      *slog.Logger
	Now      func() time.Time
	// Changed is called, on any goroutine, after a secret has arrived or
	// changed: what waits for it may look again.
	Changed func()
}

// Store holds the secrets of a process. Safe for concurrent use.
type Store struct {
	identity Identity
	log      *slog.Logger
	now      func() time.Time
	changed  func()
	// generation counts the changes: a context built under the present
	// one need not look at its secrets again.
	generation atomic.Uint64

	mu      sync.Mutex
	named   map[string]*slot // SDS over ADS
	static  map[string]*slot // of the bootstrap
	own     map[string]*slot // of the identity, by name
	watch   *watcher
	stop    chan struct{}
	stopped bool
	wait    sync.WaitGroup
}

// NewStore returns an empty store. Close ends its goroutines.
func NewStore(o Options) *Store {
	s := &Store{identity: o.Identity, log: o.Log, now: o.Now, changed: o.Changed, stop: make(chan struct{}),
		named: map[string]*slot{}, static: map[string]*slot{}, own: map[string]*slot{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.changed == nil {
		s.changed = func() {}
	}
	s.generation.Store(1)
	return s
}

// OnChange sets Options.Changed for an owner that is made after the store; before its first use.
func (s *Store) OnChange(f func()) { s.changed = f }

// Close ends the store's goroutines. Contexts go on with what they have.
func (s *Store) Close() {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return
	}
	s.stopped = true
	close(s.stop)
	if s.watch != nil {
		s.watch.close()
	}
	s.mu.Unlock()
	s.wait.Wait()
}

// slot is the place of one secret. The pointer in it is swapped as a whole.
type slot struct {
	name string // for errors
	v    atomic.Pointer[material]
}

// material is one version of a secret. Immutable.
type material struct {
	certificate *tls.Certificate
	validation  *validation
	err         error // why there is none: the last good one is kept where there is one
	// files keeps the watched files alive as long as the secret is in use.
	files *fileSource
}

// put stores m and lets everybody know, unless it is what was there.
func (s *Store) put(sl *slot, m *material) {
	sl.v.Store(m)
	s.generation.Add(1)
	s.changed()
}

// adopt puts m into the slot and follows its files.
func (s *Store) adopt(sl *slot, m *material) {
	s.put(sl, m)
	if m.files != nil {
		s.watchFiles(sl, m.files)
	}
}

// Set takes a secret that came by SDS. On error the old one stays.
func (s *Store) Set(m *tlsv3.Secret) error {
	mat, err := s.parse(m)
	if err != nil {
		return err
	}
	s.adopt(s.slot(s.named, m.GetName()), mat)
	return nil
}

// SetStatic takes a secret of the bootstrap's static_resources.
func (s *Store) SetStatic(m *tlsv3.Secret) error {
	mat, err := s.parse(m)
	if err != nil {
		return err
	}
	s.adopt(s.slot(s.static, m.GetName()), mat)
	return nil
}

func (s *Store) parse(m *tlsv3.Secret) (*material, error) {
	r := fields.NewReport("secret", m.GetName())
	var mat *material
	switch t := m.GetType().(type) {
	case *tlsv3.Secret_TlsCertificate:
		mat = s.loadCertificate(r, "tls_certificate", t.TlsCertificate)
	case *tlsv3.Secret_ValidationContext:
		mat = s.loadValidation(r, "validation_context", t.ValidationContext)
	case nil:
		r.Errorf("", "is empty; needs tls_certificate or validation_context")
	default:
		r.Errorf("", "is of a kind that is not implemented; needs tls_certificate or validation_context")
	}
	return mat, r.Err()
}

// Remove forgets a secret of SDS: connections that need it are not made any more.
func (s *Store) Remove(name string) {
	s.mu.Lock()
	sl := s.named[name]
	s.mu.Unlock()
	if sl != nil && sl.v.Load() != nil {
		s.put(sl, nil)
	}
}

// Retain forgets all secrets of SDS but those: nothing refers to the others any more.
func (s *Store) Retain(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.named {
		if !slices.Contains(names, name) {
			delete(s.named, name)
		}
	}
}

func (s *Store) slot(in map[string]*slot, name string) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl := in[name]
	if sl == nil {
		sl = &slot{name: name}
		in[name] = sl
	}
	return sl
}

// fromIdentity is the slot of the process's own identity with that name.
func (s *Store) fromIdentity(name string) (*slot, error) {
	if s.identity == nil {
		return nil, fmt.Errorf("the cluster %s is this process's own identity, and it has none; start it with one", IdentityCluster)
	}
	if name != IdentityCertificate && name != IdentityRoots && name != IdentityAllRoots {
		return nil, fmt.Errorf("%q is none of the secrets of %s: %s, %s, %s", name, IdentityCluster, IdentityCertificate, IdentityRoots, IdentityAllRoots)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl := s.own[name]; sl != nil {
		return sl, nil
	}
	sl := &slot{name: name}
	if len(s.own) == 0 && !s.stopped {
		s.wait.Go(s.followIdentity)
	}
	s.own[name] = sl
	sl.v.Store(s.readIdentity(sl, nil))
	return sl, nil
}

// followIdentity re-reads the identity when it changes.
func (s *Store) followIdentity() {
	for {
		changed := s.identity.Changed()
		_ = panics.Guard(s.log, "reading the identity", s.rereadIdentity) // told in the log; the last one stays
		s.generation.Add(1)
		s.changed()
		select {
		case <-changed:
		case <-s.stop:
			return
		}
	}
}

func (s *Store) rereadIdentity() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sl := range s.own {
		sl.v.Store(s.readIdentity(sl, sl.v.Load()))
	}
}

// readIdentity makes what the slot holds; old is kept where there is nothing new.
func (s *Store) readIdentity(sl *slot, old *material) *material {
	var m *material
	var err error
	if sl.name == IdentityCertificate {
		var c *tls.Certificate
		if c, err = s.identity.Certificate(); err == nil {
			c, err = withLeaf(c)
		}
		m = &material{certificate: c}
	} else {
		var own *x509.CertPool
		own, err = s.identity.Roots("")
		v := &validation{pool: own, spiffe: true, depth: -1}
		if sl.name == IdentityAllRoots {
			// No hint for clients: one of our roots alone would keep
			// those of other domains from showing their certificate.
			v.byDomain, v.pool = remembered(s.identity.Roots), nil
		} else if c, cerr := s.identity.Certificate(); cerr == nil {
			if c, cerr = withLeaf(c); cerr == nil && len(c.Leaf.URIs) == 1 {
				v.byDomain = only(c.Leaf.URIs[0].Host, own)
			}
		}
		m = &material{validation: v}
	}
	if err == nil {
		return m
	}
	if old != nil && old.err == nil {
		s.log.Warn("identity could not be read; the last one stays in use", "secret", sl.name, "error", err)
		return old
	}
	return &material{err: err}
}

// remembered asks once for each domain that has a bundle: what is made of an
// identity is made anew when the identity changes. Peers that name other domains
// leave nothing here.
func remembered(roots func(string) (*x509.CertPool, error)) func(string) (*x509.CertPool, error) {
	var known sync.Map // of *x509.CertPool by trust domain
	return func(domain string) (*x509.CertPool, error) {
		if p, ok := known.Load(domain); ok {
			return p.(*x509.CertPool), nil
		}
		p, err := roots(domain)
		if err == nil && p != nil {
			known.Store(domain, p)
		}
		return p, err
	}
}

// only trusts an authority for the identities of its own trust domain.
func only(domain string, pool *x509.CertPool) func(string) (*x509.CertPool, error) {
	return func(peer string) (*x509.CertPool, error) {
		if peer != domain {
			return nil, fmt.Errorf("trust domain %q is not %q", peer, domain)
		}
		return pool, nil
	}
}

// withLeaf sees to it that the leaf is parsed: handshakes should not do it again each time.
func withLeaf(c *tls.Certificate) (*tls.Certificate, error) {
	if c == nil || len(c.Certificate) == 0 {
		return nil, errors.New("the identity holds no certificate")
	}
	if c.Leaf != nil {
		return c, nil
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil, err
	}
	d := *c
	d.Leaf = leaf
	return &d, nil
}

// fingerprint of what was read, to tell a change from an event that changed nothing.
func fingerprint(parts [][]byte) [32]byte { return sha256.Sum256(bytes.Join(parts, []byte{0})) }
