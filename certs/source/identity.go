package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"sallyport/certs"
	"sallyport/certs/statedir"
)

// GetX509SVID makes an identity an x509svid.Source.
func (i *Identity) GetX509SVID() (*x509svid.SVID, error) { return i.SVID, nil }

// GetX509BundleForTrustDomain makes an identity an x509bundle.Source.
func (i *Identity) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return i.Bundle.GetX509BundleForTrustDomain(td)
}

const (
	keptFile     = "identity.json"
	keptLock     = "identity.lock"
	keptMaxBytes = 256 << 10
)

// kept is an identity directory: key and certificate of one process, so that its restart renews by mutual TLS. One
// file, because a key beside the certificate of another generation is no identity.
type kept struct {
	dir    *statedir.Dir
	unlock func()
}

type keptIdentity struct {
	ID           string    `json:"spiffe_id"`
	Certificates string    `json:"certificates"`
	Key          string    `json:"key"`
	Bundle       string    `json:"bundle"`
	Since        time.Time `json:"since"`
}

func openKept(path string) (*kept, error) {
	dir, err := statedir.Open(path)
	if err != nil {
		return nil, fmt.Errorf("identity directory: %w", err)
	}
	// Two processes with one key would renew it away from each other.
	unlock, err := dir.Lock(keptLock)
	if err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("identity directory: %w", err)
	}
	return &kept{dir, unlock}, nil
}

func (k *kept) close() {
	k.unlock()
	_ = k.dir.Close()
}

func (k *kept) save(id *Identity) error {
	chain, key, err := id.SVID.Marshal()
	if err != nil {
		return err
	}
	bundle, err := id.Bundle.Marshal()
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(keptIdentity{id.SVID.ID.String(), string(chain), string(key), string(bundle), id.since.UTC()}, "", "  ")
	if err != nil {
		return err
	}
	return k.dir.Write(keptFile, append(data, '\n'))
}

// load returns the identity that was kept, nil if there is none that is still valid. One of somebody else is an error:
// the folder was meant for another service.
func (k *kept) load(want spiffeid.ID, now time.Time, log *slog.Logger) (*Identity, error) {
	data, err := k.dir.Read(keptFile, keptMaxBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("identity directory: %w", err)
	}
	id, err := parseKept(data)
	if err != nil {
		return nil, fmt.Errorf("identity directory: %s/%s: %w: remove it and join with a new token", k.dir.Path(), keptFile, err)
	}
	if id.SVID.ID != want {
		return nil, fmt.Errorf("identity directory %s holds the identity of %s, not of %s: use a folder per service%s",
			k.dir.Path(), id.SVID.ID, want, certs.GatewayHint(id.SVID.ID, want))
	}
	if _, _, err := x509svid.Verify(id.SVID.Certificates, id.Bundle, x509svid.WithTime(now)); err != nil {
		log.Info("kept identity is not valid any more, joining anew", "spiffe_id", want.String(), "reason", err)
		return nil, nil
	}
	if id.since.After(now) {
		id.since = now
	}
	return id, nil
}

func parseKept(data []byte) (*Identity, error) {
	var f keptIdentity
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, err
	}
	svid, err := x509svid.Parse([]byte(f.Certificates), []byte(f.Key)) // checks that the key fits
	if err != nil {
		return nil, err
	}
	bundle, err := x509bundle.Parse(svid.ID.TrustDomain(), []byte(f.Bundle))
	if err != nil {
		return nil, err
	}
	return &Identity{SVID: svid, Bundle: bundle, since: f.Since}, nil
}
