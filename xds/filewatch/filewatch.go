// Package filewatch says that something in a folder changed. Inotify tells at once where it works; a slow poll of names,
// sizes and times finds what it does not tell (network file systems, replaced folders, exhausted watches). It owns the
// inotify instance for as long as Watch runs; packages catalog and policy call it on a goroutine of their own.
package filewatch

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// DefaultPoll is how often files are looked at without having been told.
const DefaultPoll = 2 * time.Second

// settle is how long after an event more of them are waited for: an editor writes in several steps.
const settle = 20 * time.Millisecond

// maxFiles bounds what is looked at in a folder.
const maxFiles = 10_000

// Watch calls changed after each change of the paths that paths returns (files or folders; asked anew each time, as what
// must be watched depends on what was read), until ctx ends. changed runs on the caller's goroutine.
func Watch(ctx context.Context, poll time.Duration, paths func() []string, changed func()) {
	if poll <= 0 {
		poll = DefaultPoll
	}
	var events chan fsnotify.Event
	var errs chan error
	w, err := fsnotify.NewWatcher()
	if err == nil { // otherwise the poll alone does it
		defer w.Close()
		events, errs = w.Events, w.Errors
	}
	watched := map[string]bool{}
	follow := func() {
		want := map[string]bool{}
		for _, p := range paths() {
			if info, err := os.Stat(p); err == nil && info.IsDir() {
				want[p] = true
			}
			// The folder, not the file: a file that is replaced by renaming is another one.
			want[filepath.Dir(p)] = true
		}
		for p := range want {
			if w != nil && !watched[p] && w.Add(p) == nil {
				watched[p] = true
			}
		}
		for p := range watched {
			if !want[p] {
				_ = w.Remove(p)
				delete(watched, p)
			}
		}
	}
	follow()
	// Nothing is known yet: the first check always calls changed, as what changed since the caller's own first read is not known either.
	last := [sha256.Size]byte{}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	// The state is taken before changed reads: what changes meanwhile differs from it and is seen in the next round. What
	// changed has read may have made the paths others; hence rounds, and not one.
	check := func() {
		for range 4 {
			now := state(paths())
			if now == last {
				return
			}
			last = now
			changed()
			follow()
		}
	}
	check()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if e.Has(fsnotify.Remove) {
				delete(watched, e.Name) // a removed folder takes its watch along
			}
			drain(ctx, events, watched)
			check()
			follow()
		case _, ok := <-errs:
			if !ok {
				errs = nil
			}
			check() // an overflow: something was missed
		case <-tick.C:
			check()
			follow()
		}
	}
}

func drain(ctx context.Context, events chan fsnotify.Event, watched map[string]bool) {
	quiet := time.NewTimer(settle)
	defer quiet.Stop()
	most := time.NewTimer(10 * settle)
	defer most.Stop()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			if e.Has(fsnotify.Remove) {
				delete(watched, e.Name)
			}
			quiet.Reset(settle)
		case <-quiet.C:
			return
		case <-most.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// state is a digest of names, sizes, times and inodes.
func state(paths []string) [sha256.Size]byte {
	h := sha256.New()
	slices.Sort(paths)
	one := func(p string) {
		info, err := os.Stat(p)
		if err != nil {
			fmt.Fprintf(h, "%q gone\n", p)
			return
		}
		fmt.Fprintf(h, "%q %d %d %v %d\n", p, info.Size(), info.ModTime().UnixNano(), info.Mode(), inode(info))
	}
	for _, p := range paths {
		one(p)
		n := 0
		_ = filepath.WalkDir(p, func(name string, d fs.DirEntry, err error) error {
			if n++; n > maxFiles {
				return filepath.SkipAll
			}
			if err == nil && !d.IsDir() {
				one(name)
			}
			return nil
		})
	}
	var out [sha256.Size]byte
	h.Sum(out[:0])
	return out
}
