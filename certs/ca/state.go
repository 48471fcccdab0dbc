package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/certs/statedir"
)

const (
	stateFile    = "authority.json" // everything, one file: a rename is the transaction
	bundleFile   = "bundle.pem"     // the public roots, for --ca-bundle; derived, rewritten at each change
	lockFile     = "authority.lock"
	maxStateSize = 1 << 20
	maxRoots     = 8
)

// Phase says where a root stands in its life. Exactly one is active.
type Phase string

const (
	Staged   Phase = "staged"   // in the bundle so that peers learn it; signs nothing yet
	Active   Phase = "active"   // signs issuing certificates
	Retiring Phase = "retiring" // signs nothing more; stays in the bundle until the last leaf under it has expired
)

// fileState is authority.json.
type fileState struct {
	TrustDomain string     `json:"trust_domain"`
	Roots       []fileRoot `json:"roots"`
	Issuing     *filePair  `json:"issuing,omitempty"`
}

type fileRoot struct {
	filePair
	Phase Phase     `json:"phase"`
	Since time.Time `json:"since"`
}

type filePair struct {
	Certificate string `json:"certificate"`
	Key         string `json:"key,omitempty"`
}

// pair is a certificate and its key; key is nil where the file holds none (a root kept elsewhere).
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

type root struct {
	pair
	phase Phase
	since time.Time
}

type state struct {
	td      spiffeid.TrustDomain
	roots   []root
	issuing *pair
}

func (s *state) active() *root {
	for i := range s.roots {
		if s.roots[i].phase == Active {
			return &s.roots[i]
		}
	}
	return nil
}

func (s *state) bundle() *x509bundle.Bundle {
	b := x509bundle.New(s.td)
	for i := range s.roots {
		b.AddX509Authority(s.roots[i].cert)
	}
	return b
}

// clone copies what a change may touch, so that a change whose write fails leaves nothing half-applied.
func (s *state) clone() *state {
	c := *s
	c.roots = append([]root(nil), s.roots...)
	return &c
}

func readState(d *statedir.Dir) (*state, error) {
	data, err := d.Read(stateFile, maxStateSize)
	if err != nil {
		return nil, err
	}
	s, err := parseState(data)
	if err != nil {
		return nil, fmt.Errorf("%s/%s: %w: restore it from a backup, or move it away to begin with a new authority "+
			"that nothing trusts yet", d.Path(), stateFile, err)
	}
	return s, nil
}

func parseState(data []byte) (*state, error) {
	var f fileState
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, err
	}
	td, err := spiffeid.TrustDomainFromString(f.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust_domain: %w", err)
	}
	if len(f.Roots) == 0 || len(f.Roots) > maxRoots {
		return nil, fmt.Errorf("roots: %d of them, must be 1 to %d", len(f.Roots), maxRoots)
	}
	s := &state{td: td}
	active := 0
	for i, fr := range f.Roots {
		p, err := parsePair(fr.filePair)
		if err != nil {
			return nil, fmt.Errorf("roots[%d]: %w", i, err)
		}
		switch fr.Phase {
		case Active:
			active++
		case Staged, Retiring:
		default:
			return nil, fmt.Errorf("roots[%d].phase: %q, must be staged, active or retiring", i, fr.Phase)
		}
		s.roots = append(s.roots, root{pair: *p, phase: fr.Phase, since: fr.Since})
	}
	if active != 1 {
		return nil, fmt.Errorf("roots: %d are active, must be one", active)
	}
	if f.Issuing != nil {
		if s.issuing, err = parsePair(*f.Issuing); err != nil {
			return nil, fmt.Errorf("issuing: %w", err)
		}
		if s.issuing.key == nil {
			return nil, errors.New("issuing: the key is missing")
		}
	}
	return s, nil
}

func parsePair(f filePair) (*pair, error) {
	block, _ := pem.Decode([]byte(f.Certificate))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("certificate is not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA {
		return nil, errors.New("certificate is not one of an authority")
	}
	p := &pair{cert: cert}
	if f.Key == "" {
		return p, nil
	}
	if block, _ = pem.Decode([]byte(f.Key)); block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("key is not PEM of PKCS #8")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || !ec.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the key does not belong to the certificate")
	}
	p.key = ec
	return p, nil
}

func writeState(d *statedir.Dir, s *state) error {
	f := fileState{TrustDomain: s.td.Name()}
	for _, r := range s.roots {
		fp, err := formatPair(r.pair)
		if err != nil {
			return err
		}
		f.Roots = append(f.Roots, fileRoot{filePair: fp, Phase: r.phase, Since: r.since.UTC()})
	}
	if s.issuing != nil {
		fp, err := formatPair(*s.issuing)
		if err != nil {
			return err
		}
		f.Issuing = &fp
	}
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if err := d.Write(stateFile, append(data, '\n')); err != nil {
		return err
	}
	return writeBundle(d, s)
}

func writeBundle(d *statedir.Dir, s *state) error {
	roots, err := s.bundle().Marshal()
	if err != nil {
		return err
	}
	if old, err := d.Read(bundleFile, maxStateSize); err == nil && bytes.Equal(old, roots) {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.Write(bundleFile, roots)
}

func formatPair(p pair) (filePair, error) {
	f := filePair{Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw}))}
	if p.key != nil {
		der, err := x509.MarshalPKCS8PrivateKey(p.key)
		if err != nil {
			return filePair{}, err
		}
		f.Key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	return f, nil
}

// newAuthority makes a CA certificate (X509-SVID §3: cA, keyCertSign, a SPIFFE ID without path). parent nil makes a root.
func newAuthority(td spiffeid.TrustDomain, name string, parent *pair, notBefore, notAfter time.Time) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               authorityName(name, td, serial),
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            1,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:                  uriOf(td.ID()),
	}
	signer, parentCert := key, tmpl
	if parent != nil {
		tmpl.MaxPathLen, tmpl.MaxPathLenZero = 0, true // the issuing key makes leaves only
		signer, parentCert = parent.key, parent.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parentCert, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &pair{cert: cert, key: key}, nil
}

// newSerial returns 128 random bits, not zero (RFC 5280 §4.1.2.2: positive, at most 20 octets).
func newSerial() (*big.Int, error) {
	for {
		n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
		if err != nil {
			return nil, err
		}
		if n.Sign() > 0 {
			return n, nil
		}
	}
}

// Fingerprint is the SHA-256 of a root certificate's DER in lower-case hex, as join tokens carry it.
func Fingerprint(root *x509.Certificate) string {
	sum := sha256.Sum256(root.Raw)
	return hex.EncodeToString(sum[:])
}
