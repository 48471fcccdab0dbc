package source

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"sallyport/certs/ca"
)

var (
	quiet  = slog.New(slog.DiscardHandler)
	td     = spiffeid.RequireTrustDomainFromString("sallyport.local")
	orders = spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/svc/orders")
)

// desk is an issuer in the test's process that can be away, or refuse.
type desk struct {
	a *ca.Authority

	mu       sync.Mutex
	fail     error
	asked    []time.Time
	currents []*Identity
}

func (d *desk) Issue(ctx context.Context, csr []byte, current *Identity) (Issued, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, time.Now())
	d.currents = append(d.currents, current)
	if d.fail != nil {
		return Issued{}, d.fail
	}
	return (&local{Authority: d.a}).Issue(ctx, csr, current)
}

func (d *desk) setFail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

func (d *desk) count() int { return len(d.attempts()) }

func (d *desk) attempts() []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.asked)
}

// lastCurrent is what the last attempt had to show.
func (d *desk) lastCurrent() *Identity {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.currents[len(d.currents)-1]
}

func newCA(t testing.TB, o ca.Options) *ca.Authority {
	t.Helper()
	o.Logger = quiet
	a, err := ca.Open(filepath.Join(t.TempDir(), "ca"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func begin(t testing.TB, d *desk) *Renewed {
	t.Helper()
	r, err := start(t.Context(), d, config{id: orders, log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func current(t testing.TB, r Source) *x509svid.SVID {
	t.Helper()
	svid, err := r.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func TestRenewsAtHalfOfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &desk{a: newCA(t, ca.Options{})}
		r := begin(t, d)
		defer r.Close()
		seen := map[string]bool{}
		when := map[time.Duration]bool{}
		for i := range 20 {
			svid := current(t, r)
			key := string(svid.Certificates[0].RawSubjectPublicKeyInfo)
			if seen[key] {
				t.Fatal("a key was used twice")
			}
			seen[key] = true
			last := time.Now()
			<-r.Updated()
			waited := time.Since(last)
			when[waited] = true
			// NotAfter is in whole seconds, so that a life may be one shorter.
			if waited < 27*time.Minute-time.Second || waited > 33*time.Minute {
				t.Errorf("renewal %d after %v, want 27m to 33m", i, waited)
			}
			if d.lastCurrent().SVID != svid {
				t.Error("the renewal was not offered the current SVID")
			}
		}
		if len(when) < 10 {
			t.Errorf("no jitter: waits %v", when)
		}
		if st := r.State(); st.Renewals != 21 || st.Failures != 0 || st.LastError != nil || st.ID != orders {
			t.Errorf("state %+v", st)
		}
	})
}

func TestIssuerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &desk{a: newCA(t, ca.Options{})}
		r := begin(t, d)
		defer r.Close()
		first := current(t, r)
		d.setFail(errors.New("nobody is there"))
		start := time.Now()

		time.Sleep(59 * time.Minute) // past half of the life: it tries, and what it has stays good
		if current(t, r) != first {
			t.Error("the SVID changed")
		}
		st := r.State()
		if st.LastError == nil || st.Failures == 0 || !st.NotAfter.Equal(first.Certificates[0].NotAfter) {
			t.Errorf("state %+v", st)
		}
		// Backoff: from half a second up to half a minute, so about two a minute once it is long.
		if n := d.count(); n < 50 || n > 150 {
			t.Errorf("%d attempts in half an hour", n)
		}
		asked := d.attempts()
		for i := 10; i < len(asked); i++ {
			if gap := asked[i].Sub(asked[i-1]); gap < 15*time.Second || gap > 31*time.Second {
				t.Errorf("attempt %d after %v", i, gap)
			}
		}

		<-r.Updated() // the end of the SVID is announced
		if lived := time.Since(start); lived < time.Hour-time.Second || lived > time.Hour+time.Minute {
			t.Errorf("announced after %v", lived)
		}
		_, err := r.GetX509SVID()
		if !errors.Is(err, ErrExpired) || !strings.Contains(err.Error(), "nobody is there") {
			t.Errorf("after the end: %v", err)
		}
		if _, err := r.GetX509BundleForTrustDomain(td); err != nil {
			t.Errorf("the bundle went with the SVID: %v", err)
		}
		time.Sleep(time.Minute)
		if d.lastCurrent() != nil {
			t.Error("an expired SVID is offered as a proof")
		}

		d.setFail(nil)
		<-r.Updated()
		if current(t, r) == first {
			t.Error("not renewed when the issuer came back")
		}
		if st := r.State(); st.LastError != nil || st.Renewals != 2 {
			t.Errorf("state %+v", st)
		}
	})
}

func TestFirstIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &desk{a: newCA(t, ca.Options{}), fail: errors.New("nobody is there")}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := start(ctx, d, config{id: orders, log: quiet})
		if err == nil || !strings.Contains(err.Error(), "nobody is there") || strings.Contains(err.Error(), "\n") || d.count() < 3 {
			t.Errorf("issuer away: %v after %d attempts", err, d.count())
		}
		d.asked, d.fail = nil, errors.Join(ErrRefused)
		if _, err := start(t.Context(), d, config{id: orders, log: quiet}); !errors.Is(err, ErrRefused) || d.count() != 1 {
			t.Errorf("issuer refuses: %v after %d attempts", err, d.count())
		}
		d.fail = errors.New("not yet")
		time.AfterFunc(10*time.Second, func() { d.setFail(nil) })
		r := begin(t, d)
		defer r.Close()
		current(t, r)
	})
}

func TestCloseEndsTheRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &desk{a: newCA(t, ca.Options{})}
		ended := 0
		r, err := start(t.Context(), d, config{id: orders, log: quiet, onEnd: func() { ended++ }})
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
		if ended != 1 {
			t.Errorf("released %d times", ended)
		}
		time.Sleep(50 * time.Minute)
		if d.count() != 1 {
			t.Error("renewed after Close")
		}
		current(t, r)
	})
}

func TestShortLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &desk{a: newCA(t, ca.Options{TTL: 2 * time.Second})}
		r := begin(t, d)
		defer r.Close()
		for range 200 { // certificates count whole seconds, so lives are 1s to 2s: there is a valid SVID at every moment
			time.Sleep(100 * time.Millisecond)
			current(t, r)
		}
		if n := d.count(); n < 15 || n > 45 {
			t.Errorf("%d certificates in 20s of lives of 2s", n)
		}
	})
}

func TestLocalFollowsTheBundle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCA(t, ca.Options{})
		r, err := Local(t.Context(), a, orders, LocalOptions{Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		synctest.Wait()
		changed := r.Updated()
		before := time.Now()
		if _, err := a.StageRoot(); err != nil {
			t.Fatal(err)
		}
		<-changed
		if b := r.Bundles()[0]; len(b.X509Authorities()) != 2 || time.Since(before) > time.Second {
			t.Errorf("%d roots after %v", len(b.X509Authorities()), time.Since(before))
		}
	})
}

func TestAcceptTakesOnlyWhatWasAskedFor(t *testing.T) {
	a, stranger := newCA(t, ca.Options{}), newCA(t, ca.Options{})
	payments := spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/svc/payments")
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	key := newKey()
	sign := func(a *ca.Authority, key *ecdsa.PrivateKey, id spiffeid.ID) []*x509.Certificate {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, key)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := a.Sign(der, id, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return chain
	}
	roots, now := a.Bundle().X509Authorities(), time.Now()
	good := sign(a, key, orders)
	for _, tc := range []struct {
		name   string
		issued Issued
		now    time.Time
		ok     bool
	}{
		{"what was asked for", Issued{good, roots}, now, true},
		{"two roots", Issued{good, append(stranger.Bundle().X509Authorities(), roots...)}, now, true},
		{"nothing", Issued{}, now, false},
		{"no roots", Issued{Chain: good}, now, false},
		{"no chain", Issued{Roots: roots}, now, false},
		{"leaf without the issuing certificate", Issued{good[:1], roots}, now, false},
		{"another root", Issued{good, stranger.Bundle().X509Authorities()}, now, false},
		{"another service", Issued{sign(a, key, payments), roots}, now, false},
		{"another key", Issued{sign(a, newKey(), orders), roots}, now, false},
		{"expired", Issued{good, roots}, now.Add(2 * time.Hour), false},
		{"the root as leaf", Issued{roots, roots}, now, false},
	} {
		if _, err := accept(orders, key, tc.issued, tc.now); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
