// Package statedir keeps secrets in a folder: it owns the rules that folder and files must obey (0700 and 0600, own
// user), atomic replacement and the lock against a second process. ca, token and source store through it.
//
// A Dir is safe for concurrent use; two writers of one name are ordered by rename(2), the last one wins whole.
package statedir

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600
)

// ErrLocked is wrapped by the error of Lock when another process, or another Dir of this one, holds the lock.
var ErrLocked = errors.New("in use by another process")

// Dir is an open state folder. Names given to its methods never lead out of it (os.Root).
type Dir struct {
	path string
	root *os.Root
}

// Open opens the folder at path and makes it, with its parents, if there is none. A folder that others than its owner
// may enter, or whose owner is somebody else, is refused: what lies in it may have been read or put there by others.
func Open(path string) (*Dir, error) {
	if path == "" {
		return nil, errors.New("state folder: no path given")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("state folder %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(abs), 0o755); err != nil {
		return nil, fmt.Errorf("state folder %s: cannot make its parent: %w", abs, err)
	}
	if err := os.Mkdir(abs, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	d := &Dir{path: abs, root: root}
	if err := d.check(); err != nil {
		_ = root.Close()
		return nil, err
	}
	return d, nil
}

// Exists reports whether path holds a file called name; it makes nothing.
func Exists(path, name string) bool {
	_, err := os.Lstat(filepath.Join(path, name))
	return err == nil
}

// Sub opens the folder name inside d, making it if there is none.
func (d *Dir) Sub(name string) (*Dir, error) {
	if err := d.root.Mkdir(name, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("state folder %s: %w", d.path, err)
	}
	root, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("state folder %s: %w", d.path, err)
	}
	s := &Dir{path: filepath.Join(d.path, name), root: root}
	if err := s.check(); err != nil {
		_ = root.Close()
		return nil, err
	}
	return s, nil
}

// check looks at the folder that is open, not at its path, so nobody can swap it in between.
func (d *Dir) check() error {
	st, err := d.root.Stat(".")
	if err != nil {
		return fmt.Errorf("state folder %s: %w", d.path, err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("state folder %s has permissions %#o, others than its owner may use it: run chmod 700 %s",
			d.path, st.Mode().Perm(), d.path)
	}
	return d.checkOwner(d.path, st)
}

func (d *Dir) checkOwner(path string, st fs.FileInfo) error {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if uid := os.Geteuid(); ok && int(sys.Uid) != uid {
		return fmt.Errorf("%s belongs to uid %d, this process runs as uid %d: run as its owner or chown it", path, sys.Uid, uid)
	}
	return nil
}

// Path returns where the folder is.
func (d *Dir) Path() string { return d.path }

// Close releases the folder. Locks stay until their own release.
func (d *Dir) Close() error { return d.root.Close() }

// Read returns the content of the file name, at most limit bytes. A file looser than 0600, of another owner, or that
// is not a regular file is refused. The error of an absent file matches fs.ErrNotExist.
func (d *Dir) Read(name string, limit int64) ([]byte, error) {
	path := filepath.Join(d.path, name)
	// O_NONBLOCK so that a named pipe put in the file's place cannot hang the opening.
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("state folder %s: %w", d.path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has permissions %#o, others than its owner may use it: run chmod 600 %s, and replace "+
			"the secrets in it if others may have read it", path, st.Mode().Perm(), path)
	}
	if err := d.checkOwner(path, st); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, nil
}

// Write replaces the file name by data, or leaves it as it was: it writes beside it, syncs, renames, syncs the folder.
func (d *Dir) Write(name string, data []byte) error {
	var suffix [8]byte
	_, _ = rand.Read(suffix[:]) // never fails, crypto/rand
	tmp := name + ".tmp-" + hex.EncodeToString(suffix[:])
	f, err := d.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_CLOEXEC, fileMode)
	if err != nil {
		return fmt.Errorf("state folder %s: %w", d.path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = d.root.Rename(tmp, name)
	}
	if err != nil {
		_ = d.root.Remove(tmp)
		return fmt.Errorf("state folder %s: write %s: %w", d.path, name, err)
	}
	return d.sync()
}

// Move renames a file and makes that durable. Of several movers of one name exactly one succeeds; the others get an
// error that matches fs.ErrNotExist.
func (d *Dir) Move(from, to string) error {
	if err := d.root.Rename(from, to); err != nil {
		return fmt.Errorf("state folder %s: %w", d.path, err)
	}
	return d.sync()
}

// Remove deletes a file; one that is already gone is no error.
func (d *Dir) Remove(name string) error {
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state folder %s: %w", d.path, err)
	}
	return nil
}

// Names lists what is in the folder, at most limit entries, in no order.
func (d *Dir) Names(limit int) ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("state folder %s: %w", d.path, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(limit)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("state folder %s: %w", d.path, err)
	}
	return names, nil
}

// sync makes a rename durable: fsync(2) of the file alone does not keep its folder entry over a crash.
func (d *Dir) sync() error {
	f, err := d.root.Open(".")
	if err != nil {
		return fmt.Errorf("state folder %s: %w", d.path, err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("state folder %s: sync: %w", d.path, err)
	}
	return nil
}

// Lock takes the lock file name for as long as the process lives or until release is called. It does not wait.
func (d *Dir) Lock(name string) (release func(), err error) {
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, fileMode)
	if err != nil {
		return nil, fmt.Errorf("state folder %s: %w", d.path, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("state folder %s is %w (its file %s is locked): stop that process or use another folder",
				d.path, ErrLocked, name)
		}
		return nil, fmt.Errorf("state folder %s: lock %s: %w", d.path, name, err)
	}
	return func() { _ = f.Close() }, nil
}
