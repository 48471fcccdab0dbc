package statedir

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestWriteMakesPrivateFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "state")
	d := open(t, path)
	if err := d.Write("x", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("x", []byte("22")); err != nil {
		t.Fatal(err)
	}
	got, err := d.Read("x", 2)
	if err != nil || string(got) != "22" {
		t.Fatalf("Read = %q, %v", got, err)
	}
	for name, want := range map[string]fs.FileMode{"": 0o700, "x": 0o600} {
		st, err := os.Stat(filepath.Join(path, name))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%q: mode %v, %v; want %v", name, st.Mode(), err, want)
		}
	}
	if names, _ := d.Names(-1); len(names) != 1 {
		t.Errorf("a write leaves %v behind", names)
	}
}

func TestLoosePermissionsAreRefused(t *testing.T) {
	for _, mode := range []fs.FileMode{0o750, 0o701, 0o777, 0o720} {
		path := filepath.Join(t.TempDir(), "state")
		open(t, path)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "chmod 700") {
			t.Errorf("folder %#o: %v", mode, err)
		}
	}
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	if err := d.Write("key", []byte("k")); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o666} {
		if err := os.Chmod(filepath.Join(path, "key"), mode); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Read("key", 10); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("file %#o: %v", mode, err)
		}
	}
}

func TestForeignOwnerIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a folder away")
	}
	path := filepath.Join(t.TempDir(), "state")
	open(t, path)
	if err := os.Chown(path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "uid 12345") {
		t.Errorf("Open: %v", err)
	}
}

func TestReadRefusesWhatIsNoOrdinaryFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(path, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(path, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("big", bytes.Repeat([]byte("x"), 11)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "pipe", "big", "../outside", "."} {
		if data, err := d.Read(name, 10); err == nil {
			t.Errorf("Read(%q) = %q", name, data)
		}
	}
	if _, err := d.Read("absent", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

func TestLockKeepsASecondOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	a, b := open(t, path), open(t, path)
	release, err := a.Lock("lock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Lock("lock"); !errors.Is(err, ErrLocked) || strings.Contains(err.Error(), "\n") {
		t.Errorf("second lock: %v", err)
	}
	release()
	release, err = b.Lock("lock")
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	release()
}

func TestOneOfManyMovesSucceeds(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "state"))
	if err := d.Write("a", nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() { errs[i] = d.Move("a", "b") })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, fs.ErrNotExist):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d moves succeeded, want 1", won)
	}
}

func TestSubFolderObeysTheSameRules(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := open(t, path)
	s, err := d.Sub("tokens")
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if err := os.Chmod(filepath.Join(path, "tokens"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Sub("tokens"); err == nil {
		t.Error("loose sub-folder taken")
	}
	if _, err := d.Sub("../x"); err == nil {
		t.Error("sub-folder outside taken")
	}
}
