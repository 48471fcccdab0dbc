package ca

import (
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"sallyport/certs/statedir"
)

var quiet = slog.New(slog.DiscardHandler)

// clock is a clock that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func openCA(t testing.TB, dir string, o Options) *Authority {
	t.Helper()
	o.Logger = quiet
	a, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func signOrders(t testing.TB, a *Authority, ttl time.Duration) []*x509.Certificate {
	t.Helper()
	chain, err := a.Sign(makeCSR(t, ecKey(t, elliptic.P256()), withURIs(ordersID.String())), ordersID, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

func TestLeafIsAnX509SVID(t *testing.T) {
	c := newClock()
	a := openCA(t, t.TempDir()+"/ca", Options{Now: c.now})
	chain := signOrders(t, a, 0)
	leaf, issuing := chain[0], chain[1]
	if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("leaf: CA %v, key usage %v", leaf.IsCA, leaf.KeyUsage)
	}
	if want := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}; !cmp.Equal(leaf.ExtKeyUsage, want) {
		t.Errorf("extended key usage %v", leaf.ExtKeyUsage)
	}
	for _, ext := range leaf.Extensions {
		if ext.Id.String() == "2.5.29.15" && !ext.Critical {
			t.Error("key usage is not critical")
		}
	}
	if got := leaf.NotAfter.Sub(c.now()); got != time.Hour {
		t.Errorf("lives %v, want 1h", got)
	}
	if got := c.now().Sub(leaf.NotBefore); got != time.Minute {
		t.Errorf("backdated by %v, want 1m", got)
	}
	if n := leaf.SerialNumber.BitLen(); n > 128 || n < 90 {
		t.Errorf("serial number of %d bits", n)
	}
	if signOrders(t, a, 0)[0].SerialNumber.Cmp(leaf.SerialNumber) == 0 {
		t.Error("two leaves have one serial number")
	}
	if !issuing.IsCA || !issuing.MaxPathLenZero || issuing.NotAfter.Before(leaf.NotAfter) {
		t.Errorf("issuing certificate: CA %v, path length zero %v, until %v", issuing.IsCA, issuing.MaxPathLenZero, issuing.NotAfter)
	}
	id, chains, err := x509svid.Verify(chain, a, x509svid.WithTime(c.now()))
	if err != nil || id != ordersID || len(chains[0]) != 3 {
		t.Errorf("Verify = %s, %v", id, err)
	}
	root := a.Root()
	if got := root.NotAfter.Sub(c.now()); got != defaultRootTTL {
		t.Errorf("root lives %v", got)
	}
	if id, err := x509svid.IDFromCert(root); err != nil || id.String() != "spiffe://sallyport.local" {
		t.Errorf("root is of %s, %v", id, err)
	}
}

func TestLifetimes(t *testing.T) {
	c := newClock()
	a := openCA(t, t.TempDir()+"/ca", Options{Now: c.now, TTL: time.Hour})
	for _, tc := range []struct{ ask, want time.Duration }{
		{0, time.Hour}, {-1, time.Hour}, {time.Minute, time.Minute}, {time.Hour, time.Hour}, {48 * time.Hour, time.Hour}, {1, time.Second},
	} {
		if got := signOrders(t, a, tc.ask)[0].NotAfter.Sub(c.now()); got != tc.want {
			t.Errorf("asked for %v: %v, want %v", tc.ask, got, tc.want)
		}
	}
	// At the end of the root's life everything under it ends with it.
	b := openCA(t, t.TempDir()+"/ca", Options{Now: c.now, IssuingTTL: 3 * time.Hour, RootTTL: 3 * time.Hour})
	c.forward(2*time.Hour + 30*time.Minute)
	chain := signOrders(t, b, 0)
	if chain[0].NotAfter.After(b.Root().NotAfter) || chain[1].NotAfter.After(b.Root().NotAfter) {
		t.Errorf("leaf until %v, issuing until %v, root until %v", chain[0].NotAfter, chain[1].NotAfter, b.Root().NotAfter)
	}
	c.forward(time.Hour)
	if _, err := b.Sign(makeCSR(t, ecKey(t, elliptic.P256()), withURIs(ordersID.String())), ordersID, 0); err == nil ||
		!strings.Contains(err.Error(), "expired") {
		t.Errorf("expired root: %v", err)
	}
	for _, o := range []Options{{TTL: time.Millisecond}, {TTL: time.Hour, IssuingTTL: time.Hour}, {RootTTL: time.Hour}} {
		if _, err := Open(t.TempDir()+"/ca", o); err == nil {
			t.Errorf("%+v taken", o)
		}
	}
}

func TestSignRefusesForeignIdentities(t *testing.T) {
	a := openCA(t, t.TempDir()+"/ca", Options{})
	key := ecKey(t, elliptic.P256())
	for _, id := range []string{"spiffe://evil.local/ns/default/svc/orders", "spiffe://sallyport.local"} {
		if _, err := a.Sign(makeCSR(t, key, withURIs(id)), spiffeid.RequireFromString(id), 0); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if _, err := a.Sign(makeCSR(t, key, withURIs(ordersID.String())), spiffeid.ID{}, 0); !errors.Is(err, ErrRequest) {
		t.Errorf("no identity: %v", err)
	}
}

func TestRestartKeepsRootAndIssuingKey(t *testing.T) {
	dir := t.TempDir() + "/ca"
	c := newClock()
	a := openCA(t, dir, Options{Now: c.now})
	before := signOrders(t, a, 0)
	if _, err := Open(dir, Options{Now: c.now, Logger: quiet}); !errors.Is(err, statedir.ErrLocked) {
		t.Errorf("second authority over one folder: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Sign(nil, ordersID, 0); err == nil {
		t.Error("a closed authority signs")
	}
	b := openCA(t, dir, Options{Now: c.now})
	after := signOrders(t, b, 0)
	if !before[1].Equal(after[1]) || !a.Root().Equal(b.Root()) {
		t.Error("restart made new keys")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	other := spiffeid.RequireTrustDomainFromString("example.org")
	if _, err := Open(dir, Options{TrustDomain: other, Logger: quiet}); err == nil || !strings.Contains(err.Error(), "example.org") {
		t.Errorf("folder of another trust domain: %v", err)
	}
	for _, name := range []string{stateFile, bundleFile, lockFile} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

func TestIssuingKeyRotatesAtHalfOfItsLife(t *testing.T) {
	c := newClock()
	a := openCA(t, t.TempDir()+"/ca", Options{Now: c.now, IssuingTTL: 24 * time.Hour})
	first := signOrders(t, a, 0)
	c.forward(11 * time.Hour)
	if !signOrders(t, a, 0)[1].Equal(first[1]) {
		t.Error("rotated early")
	}
	c.forward(2 * time.Hour)
	second := signOrders(t, a, 0)
	if second[1].Equal(first[1]) {
		t.Fatal("not rotated")
	}
	for _, chain := range [][]*x509.Certificate{{second[0], second[1]}, {first[0], first[1]}} {
		if _, _, err := x509svid.Verify(chain, a, x509svid.WithTime(chain[0].NotBefore)); err != nil {
			t.Errorf("chain across the rotation: %v", err)
		}
	}
}

func TestIssuingGoesOnWhenTheFolderIsUnwritable(t *testing.T) {
	c := newClock()
	dir := t.TempDir() + "/ca"
	a := openCA(t, dir, Options{Now: c.now, IssuingTTL: 24 * time.Hour})
	first := signOrders(t, a, 0)
	if err := os.RemoveAll(dir); err != nil { // so that every write fails, for root too
		t.Fatal(err)
	}
	c.forward(13 * time.Hour)
	if !signOrders(t, a, 0)[1].Equal(first[1]) {
		t.Error("not the old issuing key")
	}
	c.forward(10*time.Hour + 30*time.Minute) // less than a leaf's life is left
	if _, err := a.Sign(makeCSR(t, ecKey(t, elliptic.P256()), withURIs(ordersID.String())), ordersID, 0); err == nil {
		t.Error("signed under a key that could not be kept")
	}
}

func TestRootRotation(t *testing.T) {
	c := newClock()
	dir := t.TempDir() + "/ca"
	a := openCA(t, dir, Options{Now: c.now})
	old := Fingerprint(a.Root())
	oldChain := signOrders(t, a, 0)
	if err := a.RetireRoot(old); err == nil {
		t.Error("the active root was retired")
	}
	changed := a.Updated()
	next, err := a.StageRoot()
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("a new bundle was not announced")
	}
	if n := len(a.Bundle().X509Authorities()); n != 2 {
		t.Fatalf("%d roots in the bundle", n)
	}
	if Fingerprint(a.Root()) != old || !signOrders(t, a, 0)[1].Equal(oldChain[1]) {
		t.Error("a staged root signs")
	}
	if err := a.ActivateRoot(next); !errors.Is(err, ErrTooEarly) {
		t.Errorf("activated before peers know it: %v", err)
	}
	c.forward(time.Hour)
	peers := a.Bundle() // what a peer has that renewed last before the activation
	if err := a.ActivateRoot(next); err != nil {
		t.Fatal(err)
	}
	newChain := signOrders(t, a, 0)
	if newChain[1].CheckSignatureFrom(a.Root()) != nil || Fingerprint(a.Root()) != next {
		t.Error("the new root does not sign")
	}
	if _, _, err := x509svid.Verify(newChain, peers, x509svid.WithTime(c.now())); err != nil {
		t.Errorf("a peer with the bundle of before: %v", err)
	}
	if err := a.RetireRoot(old); !errors.Is(err, ErrTooEarly) {
		t.Errorf("retired while leaves live: %v", err)
	}
	if err := a.Close(); err != nil { // the rotation is on disk
		t.Fatal(err)
	}
	a = openCA(t, dir, Options{Now: c.now})
	c.forward(time.Hour)
	if err := a.RetireRoot(old); err != nil {
		t.Fatal(err)
	}
	if roots := a.Roots(); len(roots) != 1 || roots[0].Fingerprint != next || roots[0].Phase != Active {
		t.Errorf("roots %+v", roots)
	}
	if _, _, err := x509svid.Verify(oldChain, a, x509svid.WithTime(oldChain[0].NotBefore)); err == nil {
		t.Error("the retired root is still trusted")
	}
	if err := a.ActivateRoot("none"); err == nil {
		t.Error("an unknown root was activated")
	}
	pub, err := Describe(dir)
	if err != nil || pub.Fingerprint != next || pub.TrustDomain != a.TrustDomain() {
		t.Errorf("Describe = %+v, %v", pub, err)
	}
}

func TestDescribeOfNothing(t *testing.T) {
	dir := t.TempDir() + "/none"
	if _, err := Describe(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("Describe made a folder")
	}
}

func TestDamagedStateIsAnError(t *testing.T) {
	dir := t.TempDir() + "/ca"
	a := openCA(t, dir, Options{})
	_ = a.Close()
	path := filepath.Join(dir, stateFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(change func(map[string]any)) string {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		out, _ := json.Marshal(m)
		return string(out)
	}
	root := func(m map[string]any) map[string]any { return m["roots"].([]any)[0].(map[string]any) }
	for name, content := range map[string]string{
		"empty":           "",
		"cut":             string(good[:len(good)/2]),
		"unknown field":   edit(func(m map[string]any) { m["x"] = 1 }),
		"no roots":        edit(func(m map[string]any) { m["roots"] = []any{} }),
		"no active root":  edit(func(m map[string]any) { root(m)["phase"] = "staged" }),
		"unknown phase":   edit(func(m map[string]any) { root(m)["phase"] = "retired" }),
		"two active":      edit(func(m map[string]any) { m["roots"] = append(m["roots"].([]any), root(m)) }),
		"foreign key":     edit(func(m map[string]any) { root(m)["key"] = m["issuing"].(map[string]any)["key"] }),
		"no certificate":  edit(func(m map[string]any) { root(m)["certificate"] = "x" }),
		"bad domain":      edit(func(m map[string]any) { m["trust_domain"] = "A B" }),
		"issuing no key":  edit(func(m map[string]any) { delete(m["issuing"].(map[string]any), "key") }),
		"another mode":    "mode",
		"another's state": edit(func(m map[string]any) { m["issuing"] = m["roots"].([]any)[0] }),
	} {
		mode := fs.FileMode(0o600)
		if content == "mode" {
			content, mode = string(good), 0o644
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		b, err := Open(dir, Options{Logger: quiet})
		if err == nil {
			_ = b.Close()
			t.Errorf("%s: taken", name)
			continue
		}
		if !strings.Contains(err.Error(), stateFile) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error does not name the file on one line: %v", name, err)
		}
		if strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the error tells a key", name)
		}
		_ = os.Chmod(path, 0o600)
		if after, _ := os.ReadFile(path); string(after) != content {
			t.Errorf("%s: the damaged file was overwritten", name)
		}
	}
}

func TestOfflineRoot(t *testing.T) {
	dir := t.TempDir() + "/ca"
	c := newClock()
	a := openCA(t, dir, Options{Now: c.now})
	_ = a.Close()
	path := filepath.Join(dir, stateFile)
	data, _ := os.ReadFile(path)
	var f fileState
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	f.Roots[0].Key = ""
	data, _ = json.Marshal(f)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b := openCA(t, dir, Options{Now: c.now})
	signOrders(t, b, 0)
	c.forward(defaultIssuingTTL)
	if _, err := b.Sign(makeCSR(t, ecKey(t, elliptic.P256()), withURIs(ordersID.String())), ordersID, 0); err == nil ||
		!strings.Contains(err.Error(), "key of root") {
		t.Errorf("rotation without the root's key: %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	c := newClock()
	a := openCA(t, t.TempDir()+"/ca", Options{Now: c.now, IssuingTTL: 2 * time.Hour})
	csr := makeCSR(t, ecKey(t, elliptic.P256()), withURIs(ordersID.String()))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				c.forward(10 * time.Minute)
				if _, err := a.Sign(csr, ordersID, 0); err != nil {
					t.Error(err)
				}
				a.Bundle()
				_ = a.TrustDomain()
			}
		})
	}
	wg.Go(func() {
		for range 5 {
			if next, err := a.StageRoot(); err != nil {
				t.Error(err)
			} else if err := a.RetireRoot(next); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
}

func BenchmarkSign(b *testing.B) {
	a := openCA(b, b.TempDir()+"/ca", Options{})
	csr := makeCSR(b, ecKey(b, elliptic.P256()), withURIs(ordersID.String()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Sign(csr, ordersID, 0); err != nil {
			b.Fatal(err)
		}
	}
}
