package policy

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

const denial = `apiVersion: policy.sallyport.io/v1
kind: AuthorizationPolicy
metadata: {name: never}
spec:
  targetRefs: [{kind: Service, name: orders}]
  action: DENY
  rules: [{from: [{service: web}]}]
`

var orders = ServiceTarget("default", "orders")

// denies says that the denial is in force.
func denies(s *Set) bool { return s != nil && len(s.Authorization[orders]) == 1 }

func TestAFileWithoutDocumentsLiftsNothing(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":       "",
		"a line's end":  "\n",
		"comments only": "# who may call whom\n\n# see the wiki\n",
		"separators":    "---\n---\n",
		"a null":        "null\n",
		"an empty list of documents, and a comment": "---\n# nothing\n---\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := &folder{t: t, dir: t.TempDir()}
			f.write("other.yaml", gateway)
			f.write("deny.yaml", denial)
			if !denies(f.read(0)) {
				t.Fatal("not in force")
			}
			f.write("deny.yaml", text)
			for range 2 { // and it stays so
				s, p := f.load(f.dir)
				if !denies(s) || len(p) != 1 || !strings.HasSuffix(p[0].Error(), "deny.yaml: is empty; what was in it stays in force (1). Delete the file to remove its policies") {
					t.Fatalf("in force: %t, problems: %v", denies(s), p)
				}
			}
			// Another version is taken, and the file's removal is a removal.
			f.write("deny.yaml", strings.Replace(denial, "never", "again", 1))
			if s := f.read(0); !denies(s) || s.Authorization[orders][0].Name != "again" {
				t.Fatal("the new version is not in force")
			}
			f.write("deny.yaml", text)
			f.read(1)
			if err := os.Remove(filepath.Join(f.dir, "deny.yaml")); err != nil {
				t.Fatal(err)
			}
			if denies(f.read(0)) {
				t.Fatal("removed, and in force")
			}
		})
	}
	t.Run("and one that never had any is no mistake", func(t *testing.T) {
		f := &folder{t: t, dir: t.TempDir()}
		f.write("deny.yaml", "# to come\n")
		f.read(0)
	})
	t.Run("a file that cannot be opened", func(t *testing.T) {
		f := &folder{t: t, dir: t.TempDir()}
		f.write("deny.yaml", denial)
		f.read(0)
		path := filepath.Join(f.dir, "deny.yaml")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("nowhere", path); err != nil {
			t.Fatal(err)
		}
		if !denies(f.read(1)) {
			t.Fatal("lifted")
		}
	})
}

func TestAFolderThatIsGoneLiftsNothing(t *testing.T) {
	parent := t.TempDir()
	f := &folder{t: t, dir: filepath.Join(parent, "policies")}
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f.write("deny.yaml", denial)
	f.read(0)
	away := filepath.Join(parent, "away")
	if err := os.Rename(f.dir, away); err != nil {
		t.Fatal(err)
	}
	if s, p := f.load(f.dir); !denies(s) || len(p) != 1 || !strings.Contains(p[0].Text, "cannot be read") {
		t.Fatalf("gone: %v", p)
	}
	// What is there where nothing is mounted is another folder, and empty.
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if s, p := f.load(f.dir); !denies(s) || len(p) != 1 || !strings.Contains(p[0].Text, "is empty, and held policies when it was read last; they stay in force (1)") {
		t.Fatalf("another folder: %v", p)
	}
	f.write("none.yaml", "# no policies any more\n")
	if denies(f.read(0)) {
		t.Fatal("taken away on purpose, and in force")
	}
	f.write("deny.yaml", denial)
	f.read(0)
	for _, name := range []string{"deny.yaml", "none.yaml"} {
		if err := os.Remove(filepath.Join(f.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if denies(f.read(0)) {
		t.Fatal("the last file of the folder was deleted, and is in force")
	}
}

// A name that is changed together with a mistake must not lift what was there under the other name.
func TestARenamedDocumentThatIsRefusedLiftsNothing(t *testing.T) {
	for name, text := range map[string]string{
		"a mistake in it":         strings.NewReplacer("never", "again", "DENY", "DENNY").Replace(denial),
		"another kind, misspelt":  strings.Replace(denial, "AuthorizationPolicy", "AuthorisationPolicy", 1),
		"a target that is absent": strings.NewReplacer("never", "again", "{kind: Service, name: orders}", "{group: gateway.networking.k8s.io, kind: Gateway, name: g}").Replace(strings.NewReplacer("AuthorizationPolicy", "RateLimitPolicy", "  action: DENY\n", "  requests: 5\n", "  rules: [{from: [{service: web}]}]\n", "  unit: Minute\n").Replace(denial)),
	} {
		t.Run(name, func(t *testing.T) {
			f := &folder{t: t, dir: t.TempDir()}
			f.write("deny.yaml", denial)
			f.read(0)
			f.write("deny.yaml", text)
			if !denies(f.read(1)) {
				t.Fatal("lifted")
			}
			if !denies(f.read(1)) {
				t.Fatal("lifted when it was read once more")
			}
			f.write("deny.yaml", strings.Replace(denial, "never", "again", 1))
			if s := f.read(0); !denies(s) || s.Authorization[orders][0].Name != "again" {
				t.Fatal("the mended version is not in force alone")
			}
		})
	}
	t.Run("one that moves to another file beside a mistake is there once", func(t *testing.T) {
		f := &folder{t: t, dir: t.TempDir()}
		f.write("a.yaml", denial)
		f.read(0)
		f.write("a.yaml", strings.Replace(gateway, "8080", "many", 1))
		f.write("b.yaml", denial)
		if !denies(f.read(1)) {
			t.Fatal("lifted")
		}
	})
}

// kept is a control plane's folders over several starts.
type keptOver struct {
	t          *testing.T
	dir, state string
}

func newKept(t *testing.T) *keptOver {
	t.Helper()
	parent := t.TempDir()
	k := &keptOver{t: t, dir: filepath.Join(parent, "policies"), state: filepath.Join(parent, "state")}
	if err := os.Mkdir(k.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *keptOver) write(name, text string) {
	k.t.Helper()
	if err := os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

// start opens the folder as a control plane that starts.
func (k *keptOver) start() (*Set, Status, error) {
	k.t.Helper()
	f := NewFolder(k.dir, 0, quiet)
	if err := f.Keep(k.state); err != nil {
		k.t.Fatal(err)
	}
	defer f.keep.close()
	err := f.Open()
	return f.first, f.Status(), err
}

func (k *keptOver) good() *Set {
	k.t.Helper()
	s, status, err := k.start()
	if err != nil || len(status.Problems) > 0 || status.Restored || status.Unkept != "" {
		k.t.Fatalf("%v %+v", err, status)
	}
	return s
}

const token = `---
apiVersion: policy.sallyport.io/v1
kind: JWTPolicy
metadata: {name: users}
spec:
  targetRefs: [{kind: Service, name: orders}]
  issuer: me
  jwks: {file: ../keys/jwks.json}
`

const jwks = `{"keys":[{"kty":"EC","crv":"P-256","kid":"1","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`

func TestWhatWasInForceSurvivesARestart(t *testing.T) {
	for name, x := range map[string]struct {
		damage   func(k *keptOver)
		problems string // "" for none
		denied   bool   // the denial is in force
		token    bool   // the JWT policy is in force
	}{
		"nothing changed":        {func(*keptOver) {}, "", true, true},
		"a file that is empty":   {func(k *keptOver) { k.write("deny.yaml", "") }, "is empty; what was in it stays in force (2)", true, true},
		"a file that is no YAML": {func(k *keptOver) { k.write("deny.yaml", denial+"---\n{") }, "is not YAML", true, true},
		"a document with a typo": {func(k *keptOver) { k.write("deny.yaml", strings.Replace(denial, "DENY", "DENNY", 1)+token) }, `"DENNY" is not known`, true, true},
		"a file that is half":    {func(k *keptOver) { k.write("deny.yaml", denial[:len(denial)-20]) }, "is not YAML", true, true},
		"keys that are gone":     {func(k *keptOver) { _ = os.RemoveAll(filepath.Join(k.dir, "..", "keys")) }, "jwks.json cannot be opened", true, true},
		"keys that are none":     {func(k *keptOver) { k.write("../keys/jwks.json", "") }, "is not a JSON Web Key Set", true, true},
		"a folder that is gone":  {func(k *keptOver) { _ = os.RemoveAll(k.dir) }, "cannot be read", true, true},
		"a folder that is empty": {func(k *keptOver) { _ = os.RemoveAll(k.dir); _ = os.Mkdir(k.dir, 0o700) }, "is empty, and held policies when it was read last", true, true},
		"a document taken out":   {func(k *keptOver) { k.write("deny.yaml", denial) }, "", true, false},
		"the file deleted":       {func(k *keptOver) { _ = os.Remove(filepath.Join(k.dir, "deny.yaml")) }, "is empty, and held policies", true, true},
		"all taken out in earnest": {func(k *keptOver) {
			_ = os.Remove(filepath.Join(k.dir, "deny.yaml"))
			k.write("none.yaml", "# no policies\n")
		}, "", false, false},
		"a new file with a typo": {func(k *keptOver) { k.write("new.yaml", strings.Replace(gateway, "8080", "many", 1)) }, "must be a whole number", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKept(t)
			if err := os.Mkdir(filepath.Join(k.dir, "..", "keys"), 0o700); err != nil {
				t.Fatal(err)
			}
			k.write("../keys/jwks.json", jwks)
			k.write("deny.yaml", denial+token)
			k.good()
			x.damage(k)
			for range 2 { // over more than one restart
				s, status, err := k.start()
				if err != nil {
					t.Fatal(err)
				}
				if denies(s) != x.denied || (s.JWT[orders] != nil) != x.token || x.token && s.JWT[orders].Spec.Keys() != jwks {
					t.Errorf("denied %t, token %v", denies(s), s.JWT[orders])
				}
				if (x.problems != "") != status.Restored || len(status.Problems) > 1 || x.problems != "" && (len(status.Problems) == 0 || !strings.Contains(status.Problems[0].Error(), x.problems)) {
					t.Errorf("%+v, want a problem with %q", status, x.problems)
				}
			}
			if info, err := os.Stat(filepath.Join(k.state, keptFolder, keptFile)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v %v", info, err)
			}
		})
	}
}

func TestWhatIsWrongAtTheFirstStartIsAnError(t *testing.T) {
	k := newKept(t)
	k.write("deny.yaml", strings.Replace(denial, "DENY", "DENNY", 1))
	if _, _, err := k.start(); err == nil || !strings.Contains(err.Error(), `"DENNY" is not known`) {
		t.Errorf("%v", err)
	}
	// Of another folder nothing is taken.
	k.write("deny.yaml", denial)
	k.good()
	other := &keptOver{t: t, dir: t.TempDir(), state: k.state}
	other.write("deny.yaml", "{")
	if _, _, err := other.start(); err == nil {
		t.Error("what was kept of another folder is in force")
	}
}

func TestWhatWasKeptAndCannotBeRead(t *testing.T) {
	damage := func(k *keptOver, change func(string) string) {
		t.Helper()
		path := filepath.Join(k.state, keptFolder, keptFile)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(change(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	half := func(s string) string { return s[:len(s)/2] }
	strict := func(s string) string { return strings.Replace(s, "action: DENY", "action: LOG", 1) } // another version knew it
	later := func(s string) string { return strings.Replace(s, `"version":1`, `"version":2`, 1) }
	for name, change := range map[string]func(string) string{"cut off": half, "a document that is refused now": strict, "another version": later} {
		t.Run(name, func(t *testing.T) {
			k := newKept(t)
			k.write("deny.yaml", denial)
			k.good()
			damage(k, change)
			if !denies(k.good()) { // the folder is good, and is kept again
				t.Fatal("not in force")
			}
			damage(k, change)
			k.write("deny.yaml", "")
			if _, _, err := k.start(); err == nil || !strings.Contains(err.Error(), keptFile) {
				t.Errorf("a file that is empty, and nobody knows what was in it: %v", err)
			}
		})
	}
}

// What was in force and is refused now, by another version of the program say, or for what stands beside it, is an error at
// the start: to go on without it would lift it.
func TestWhatWasInForceAndIsRefusedNowIsAnErrorAtTheStart(t *testing.T) {
	k := newKept(t)
	const mesh = "apiVersion: policy.sallyport.io/v1\nkind: Mesh\nmetadata: {name: mesh}\nspec: {defaultAuthorization: deny}\n"
	k.write("mesh.yaml", mesh)
	k.good()
	k.write("another.yaml", strings.NewReplacer("name: mesh", "name: another", "deny", "allow").Replace(mesh))
	if _, _, err := k.start(); err == nil || !strings.Contains(err.Error(), "there is another Mesh already") {
		t.Errorf("%v", err)
	}
}
