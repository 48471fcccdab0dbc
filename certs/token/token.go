// Package token owns one-time join tokens: who has one may take the identity it was made for, once. Only hashes of
// them are stored. The control plane redeems them and `sallyport token create` makes them, in two processes over one
// folder at the same time: every step is one rename(2), so there is no lock. A Store is safe for concurrent use; it
// writes files and may not be called from a worker.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/certs/statedir"
)

const (
	// DefaultTTL is how long a token may wait for its use.
	DefaultTTL = time.Hour
	// MaxTTL bounds what Create takes: a token that lives longer is a password.
	MaxTTL = 7 * 24 * time.Hour
	// MaxOpen bounds the tokens that wait for their use.
	MaxOpen = 10_000

	secretSize  = 32 // bytes of crypto/rand
	maxFileSize = 8 << 10
	// A used token is remembered for this long after its expiry, to answer "used" rather than "unknown".
	memory = 24 * time.Hour

	openSuffix = ".open"
	usedSuffix = ".used"
)

// The three ways in which a well-formed token is not good. Each is the whole message for a person.
var (
	ErrUsed    = errors.New("join token was already used: each token is good for one start, create a new one with sallyport token create")
	ErrExpired = errors.New("join token has expired: create a new one with sallyport token create")
	ErrUnknown = errors.New("join token is not known to this control plane: it was mistyped, made for another one, or expired long ago")
	ErrFormat  = errors.New("join token is malformed: it must be <secret>.<fingerprint> as printed by sallyport token create")
)

// Token is what a sidecar is given: the secret, and the SHA-256 of the root certificate (DER, lower-case hex) by which
// it recognizes the control plane before it says the secret.
type Token struct {
	Secret      string
	Fingerprint string
}

// String is the form that a person copies. It holds the secret: never log it.
func (t Token) String() string { return t.Secret + "." + t.Fingerprint }

// Parse reads what String wrote; blanks around it are taken off, as files end in newlines.
func Parse(s string) (Token, error) {
	secret, fingerprint, ok := strings.Cut(strings.TrimSpace(s), ".")
	if !ok || !validSecret(secret) || !validFingerprint(fingerprint) {
		return Token{}, ErrFormat
	}
	return Token{secret, fingerprint}, nil
}

func validSecret(s string) bool {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(s)
	// The decoder skips line breaks; one secret must have one spelling.
	return err == nil && len(raw) == secretSize && !strings.ContainsAny(s, "\r\n")
}

func validFingerprint(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == sha256.Size && s == strings.ToLower(s)
}

// record is what a token's file holds.
type record struct {
	Digest  string    `json:"sha256"` // of the secret
	ID      string    `json:"spiffe_id"`
	Expires time.Time `json:"expires"`
}

// Store keeps the tokens of one control plane.
type Store struct {
	dir *statedir.Dir
	now func() time.Time
}

// Open opens the store in the folder "tokens" of the control plane's state folder. now nil means time.Now.
func Open(stateDir string, now func() time.Time) (*Store, error) {
	if now == nil {
		now = time.Now
	}
	state, err := statedir.Open(stateDir)
	if err != nil {
		return nil, fmt.Errorf("join tokens: %w", err)
	}
	defer state.Close()
	dir, err := state.Sub("tokens")
	if err != nil {
		return nil, fmt.Errorf("join tokens: %w", err)
	}
	return &Store{dir: dir, now: now}, nil
}

// Close releases the folder.
func (s *Store) Close() error { return s.dir.Close() }

// Create makes a token for id that is good for ttl (zero: DefaultTTL) and returns its secret, which is stored nowhere.
func (s *Store) Create(id spiffeid.ID, ttl time.Duration) (secret string, err error) {
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if id.Path() == "" {
		return "", fmt.Errorf("join token: %q is not the SPIFFE ID of a workload", id)
	}
	if ttl < time.Second || ttl > MaxTTL {
		return "", fmt.Errorf("join token: lifetime %v is out of range, must be 1s to %v", ttl, MaxTTL)
	}
	open, err := s.sweep()
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	if open >= MaxOpen {
		return "", fmt.Errorf("join token: %d tokens wait for their use, at most %d: wait until some expire", open, MaxOpen)
	}
	raw := make([]byte, secretSize)
	_, _ = rand.Read(raw) // never fails, crypto/rand
	secret = base64.RawURLEncoding.EncodeToString(raw)
	name, digest := locate(secret)
	data, err := json.Marshal(record{Digest: digest, ID: id.String(), Expires: s.now().Add(ttl).UTC()})
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	if err := s.dir.Write(name+openSuffix, data); err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	return secret, nil
}

// locate returns the file's name, which is half of the digest, and the digest. The name is looked up in time that
// depends on it, which tells an attacker nothing: the preimage of a SHA-256 prefix cannot be steered. The whole digest
// is then compared in constant time.
func locate(secret string) (name, digest string) {
	sum := sha256.Sum256([]byte(secret))
	digest = hex.EncodeToString(sum[:])
	return digest[:32], digest
}

// Lookup tells for whom a secret is, without using it up: the caller checks the rest of the request first, so that a
// bad request does not cost the token.
func (s *Store) Lookup(secret string) (spiffeid.ID, error) {
	id, _, err := s.lookup(secret)
	return id, err
}

func (s *Store) lookup(secret string) (spiffeid.ID, string, error) {
	if !validSecret(secret) {
		return spiffeid.ID{}, "", ErrFormat
	}
	name, digest := locate(secret)
	used := false
	data, err := s.dir.Read(name+openSuffix, maxFileSize)
	if errors.Is(err, fs.ErrNotExist) {
		used = true
		data, err = s.dir.Read(name+usedSuffix, maxFileSize)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return spiffeid.ID{}, "", ErrUnknown
	}
	if err != nil {
		return spiffeid.ID{}, "", fmt.Errorf("join tokens: %w", err)
	}
	rec, id, err := parseRecord(data)
	if err != nil {
		return spiffeid.ID{}, "", fmt.Errorf("join tokens: %s/%s: %w", s.dir.Path(), name, err)
	}
	if subtle.ConstantTimeCompare([]byte(rec.Digest), []byte(digest)) != 1 {
		return spiffeid.ID{}, "", ErrUnknown
	}
	if used {
		return spiffeid.ID{}, "", ErrUsed
	}
	if !s.now().Before(rec.Expires) {
		return spiffeid.ID{}, "", ErrExpired
	}
	return id, name, nil
}

func parseRecord(data []byte) (record, spiffeid.ID, error) {
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return record{}, spiffeid.ID{}, err
	}
	id, err := spiffeid.FromString(rec.ID)
	if err != nil {
		return record{}, spiffeid.ID{}, err
	}
	return rec, id, nil
}

// Redeem uses a secret up and tells for whom it was. Of any number of callers, in any number of processes, one
// succeeds; the mark is on disk before Redeem returns, so it holds over a crash.
func (s *Store) Redeem(secret string) (spiffeid.ID, error) {
	id, name, err := s.lookup(secret)
	if err != nil {
		return spiffeid.ID{}, err
	}
	// The rename decides the race between redeemers that all passed lookup: the source exists for one of them.
	err = s.dir.Move(name+openSuffix, name+usedSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return spiffeid.ID{}, ErrUsed
	}
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("join tokens: %w", err)
	}
	return id, nil
}

// sweep removes what nobody needs to remember and counts the tokens that are still open.
func (s *Store) sweep() (open int, err error) {
	names, err := s.dir.Names(-1)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		isOpen := strings.HasSuffix(name, openSuffix)
		if !isOpen && !strings.HasSuffix(name, usedSuffix) {
			continue
		}
		data, err := s.dir.Read(name, maxFileSize)
		if errors.Is(err, fs.ErrNotExist) {
			continue // used up, or swept by another process, in between
		}
		if err != nil {
			return 0, err
		}
		rec, _, err := parseRecord(data)
		switch {
		case err != nil:
			return 0, fmt.Errorf("%s/%s: %w: remove it", s.dir.Path(), name, err)
		case s.now().After(rec.Expires.Add(memory)):
			if err := s.dir.Remove(name); err != nil {
				return 0, err
			}
		case isOpen && s.now().Before(rec.Expires):
			open++
		}
	}
	return open, nil
}
