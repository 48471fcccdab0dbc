package token

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var orders = spiffeid.RequireFromString("spiffe://sallyport.local/ns/default/svc/orders")

type clock struct {
	mu sync.Mutex
	t  time.Time
}

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

func open(t testing.TB, dir string, c *clock) *Store {
	t.Helper()
	s, err := Open(dir, c.now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func create(t testing.TB, s *Store, ttl time.Duration) string {
	t.Helper()
	secret, err := s.Create(orders, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func TestATokenIsGoodOnce(t *testing.T) {
	dir, c := t.TempDir()+"/state", &clock{t: time.Unix(1e9, 0)}
	s := open(t, dir, c)
	secret := create(t, s, 0)
	for range 3 {
		if id, err := s.Lookup(secret); err != nil || id != orders {
			t.Fatalf("Lookup = %s, %v", id, err)
		}
	}
	if id, err := s.Redeem(secret); err != nil || id != orders {
		t.Fatalf("Redeem = %s, %v", id, err)
	}
	again := open(t, dir, c) // a restart
	for name, store := range map[string]*Store{"same process": s, "after a restart": again} {
		if _, err := store.Redeem(secret); !errors.Is(err, ErrUsed) {
			t.Errorf("%s: Redeem: %v", name, err)
		}
		if _, err := store.Lookup(secret); !errors.Is(err, ErrUsed) {
			t.Errorf("%s: Lookup: %v", name, err)
		}
	}
	if !strings.HasPrefix(ErrUsed.Error(), "join token was already used") {
		t.Error(ErrUsed)
	}
}

func TestOfManyRedeemersOneSucceeds(t *testing.T) {
	dir, c := t.TempDir()+"/state", &clock{t: time.Unix(1e9, 0)}
	secret := create(t, open(t, dir, c), 0)
	const n = 32
	stores := make([]*Store, 4) // as in several processes: they share nothing but the folder
	for i := range stores {
		stores[i] = open(t, dir, c)
	}
	errs := make([]error, n)
	gate := make(chan struct{})
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			<-gate
			_, errs[i] = stores[i%len(stores)].Redeem(secret)
		})
	}
	close(gate)
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, ErrUsed) {
			t.Errorf("a loser got %v, want ErrUsed", err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d redeemers succeeded", won, n)
	}
}

func TestExpiryAndMemory(t *testing.T) {
	c := &clock{t: time.Unix(1e9, 0)}
	s := open(t, t.TempDir()+"/state", c)
	kept, used := create(t, s, time.Minute), create(t, s, time.Minute)
	if _, err := s.Redeem(used); err != nil {
		t.Fatal(err)
	}
	c.forward(time.Minute - 1)
	if _, err := s.Lookup(kept); err != nil {
		t.Errorf("a moment before its end: %v", err)
	}
	c.forward(1)
	for range 2 {
		if _, err := s.Redeem(kept); !errors.Is(err, ErrExpired) {
			t.Errorf("at its end: %v", err)
		}
	}
	c.forward(memory + time.Second)
	create(t, s, time.Minute) // sweeps
	for _, secret := range []string{kept, used} {
		if _, err := s.Redeem(secret); !errors.Is(err, ErrUnknown) {
			t.Errorf("long after: %v", err)
		}
	}
	if names, _ := s.dir.Names(-1); len(names) != 1 {
		t.Errorf("%d files are left", len(names))
	}
}

func TestTheSecretIsNotStored(t *testing.T) {
	dir, c := t.TempDir()+"/state", &clock{t: time.Unix(1e9, 0)}
	secret := create(t, open(t, dir, c), 0)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data)+path, secret) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWrongSecrets(t *testing.T) {
	c := &clock{t: time.Unix(1e9, 0)}
	s := open(t, t.TempDir()+"/state", c)
	secret := create(t, s, 0)
	other := base64.RawURLEncoding.EncodeToString(make([]byte, secretSize))
	for in, want := range map[string]error{
		"": ErrFormat, "x": ErrFormat, secret + "A": ErrFormat, secret[:42]: ErrFormat, secret + "\n": ErrFormat, "\n" + secret: ErrFormat,
		"../" + secret[3:]: ErrFormat, other: ErrUnknown, strings.Repeat("A", 1<<16): ErrFormat,
	} {
		if _, err := s.Redeem(in); !errors.Is(err, want) {
			t.Errorf("Redeem(%.60q) = %v, want %v", in, err, want)
		}
	}
	// A file under the right name whose digest differs in the half that is not in the name.
	name, digest := locate(secret)
	data, err := s.dir.Read(name+openSuffix, maxFileSize)
	if err != nil {
		t.Fatal(err)
	}
	forged := strings.Replace(string(data), digest, digest[:63]+"x", 1)
	if err := s.dir.Write(name+openSuffix, []byte(forged)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Redeem(secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("half of the digest was enough: %v", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	c := &clock{t: time.Unix(1e9, 0)}
	s := open(t, t.TempDir()+"/state", c)
	for _, ttl := range []time.Duration{-1, time.Millisecond, MaxTTL + 1} {
		if _, err := s.Create(orders, ttl); err == nil {
			t.Errorf("lifetime %v taken", ttl)
		}
	}
	for _, id := range []spiffeid.ID{{}, orders.TrustDomain().ID()} {
		if _, err := s.Create(id, 0); err == nil {
			t.Errorf("identity %q taken", id)
		}
	}
	if err := s.dir.Write("broken"+openSuffix, []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(orders, 0); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a broken file: %v", err)
	}
}

func TestParse(t *testing.T) {
	secret := base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("s", 32)))
	print := strings.Repeat("0a", 32)
	good := Token{secret, print}
	for _, in := range []string{good.String(), " " + good.String() + "\n"} {
		if got, err := Parse(in); err != nil || got != good {
			t.Errorf("Parse(%q) = %v, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", ".", secret, secret + ".", "." + print, secret + "." + print + "." + print, secret + "." + strings.ToUpper(print),
		secret + "." + print[2:], secret[1:] + "." + print, secret + "=." + print, secret + " ." + print, secret[:10] + "\n" + secret[10:] + "." + print,
	} {
		if got, err := Parse(in); !errors.Is(err, ErrFormat) {
			t.Errorf("Parse(%q) = %v, %v", in, got, err)
		} else if len(in) > 50 && strings.Contains(err.Error(), secret) {
			t.Error("the error tells the secret")
		}
	}
}

// FuzzParse: what is taken has one spelling, blanks apart.
func FuzzParse(f *testing.F) {
	secret := base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("s", 32)))
	f.Add(secret + "." + strings.Repeat("0a", 32))
	f.Add(secret + "." + strings.Repeat("0A", 32))
	f.Add(".")
	s, err := Open(f.TempDir()+"/state", nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in string) {
		tok, err := Parse(in)
		if err == nil && tok.String() != strings.TrimSpace(in) {
			t.Errorf("%q and %q are one token", in, tok.String())
		}
		if _, err := s.Redeem(in); !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnknown) {
			t.Errorf("Redeem(%q): %v", in, err)
		}
	})
}
