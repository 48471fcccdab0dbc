package secret

import (
	"path/filepath"
	"slices"
	"time"
	"weak"

	"github.com/fsnotify/fsnotify"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/panics"
)

// fileSource is what a secret with files was read by.
type fileSource struct {
	files []string // all that were read
	dirs  []string // that are watched
	read  func(*fields.Report) (*material, *reader)
	sum   [32]byte // of what was read last; of the watcher's goroutine after the start
}

// follow makes mat one that is read again when its files change.
func (s *Store) follow(mat *material, x *reader, read func(*fields.Report) (*material, *reader)) *material {
	if mat == nil || len(x.files) == 0 {
		return mat
	}
	f := &fileSource{files: x.files, dirs: x.dirs, read: read, sum: fingerprint(x.parts)}
	if len(f.dirs) == 0 {
		for _, name := range f.files {
			if d := filepath.Dir(name); !slices.Contains(f.dirs, d) {
				f.dirs = append(f.dirs, d)
			}
		}
	}
	mat.files = f
	return mat
}

// watcher re-reads files. It refers weakly to the secrets: those that no
// context uses any more are not followed.
type watcher struct {
	store   *Store
	events  *fsnotify.Watcher // nil where the system gave none: then they are polled
	add     chan watched
	stopped chan struct{}
}

type watched struct {
	slot  weak.Pointer[slot]
	files *fileSource
}

const (
	// settle is how long events are gathered: a certificate and its key are written one after the other.
	settle = 50 * time.Millisecond
	poll   = 10 * time.Second
)

func (s *Store) watchFiles(sl *slot, f *fileSource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	if s.watch == nil {
		w := &watcher{store: s, add: make(chan watched), stopped: make(chan struct{})}
		var err error
		if w.events, err = fsnotify.NewWatcher(); err != nil {
			s.log.Warn("files of secrets are polled, for they cannot be watched", "error", err)
			w.events = nil
		}
		s.watch = w
		s.wait.Go(w.run)
	}
	// The watch stands before the caller goes on: a change after that is seen.
	if w := s.watch; w.events != nil {
		for _, d := range f.dirs {
			if err := w.events.Add(d); err != nil {
				s.log.Warn("changes of a secret's files will not be noticed", "folder", d, "error", err)
			}
		}
	}
	w := s.watch
	s.mu.Unlock()
	select {
	case w.add <- watched{weak.Make(sl), f}:
	case <-w.stopped:
	}
	s.mu.Lock()
}

func (w *watcher) close() { close(w.stopped) }

func (w *watcher) run() {
	var events chan fsnotify.Event
	var errs chan error
	if w.events != nil {
		events, errs = w.events.Events, w.events.Errors
		defer w.events.Close()
	}
	var all []watched
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-w.stopped:
			return
		case n := <-w.add:
			all = append(w.live(all), n)
			// A change between the first read and the watch was not seen.
			settled = time.After(settle)
		case _, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if settled == nil {
				settled = time.After(settle)
			}
		case err := <-errs:
			w.store.log.Warn("watching files of secrets", "error", err)
			settled = time.After(settle) // events may have been lost
		case <-settled:
			settled = nil
			_ = panics.Guard(w.store.log, "re-reading the files of secrets", func() { all = w.reload(all) }) // told in the log
		case <-ticker.C:
			if w.events == nil {
				_ = panics.Guard(w.store.log, "re-reading the files of secrets", func() { all = w.reload(all) })
			}
		}
	}
}

// live drops what nobody uses.
func (w *watcher) live(all []watched) []watched {
	return slices.DeleteFunc(all, func(x watched) bool { return w.using(x) == nil })
}

func (w *watcher) using(x watched) *slot {
	sl := x.slot.Value()
	if sl == nil {
		return nil
	}
	if m := sl.v.Load(); m == nil || m.files != x.files {
		return nil // replaced by another secret of the same name, or removed
	}
	return sl
}

func (w *watcher) reload(all []watched) []watched {
	all = w.live(all)
	for _, x := range all {
		sl := w.using(x)
		if sl == nil {
			continue
		}
		r := fields.NewReport("secret", sl.name)
		m, read := x.files.read(r)
		if m == nil {
			// Written only half, perhaps: the next event comes when it is whole.
			w.store.log.Warn("the files of a secret changed and cannot be used; the last ones stay in use", "error", r.Err())
			continue
		}
		if sum := fingerprint(read.parts); sum != x.files.sum {
			x.files.sum = sum
			m.files = x.files
			w.store.put(sl, m)
			w.store.log.Info("secret re-read from its files", "secret", sl.name, "files", x.files.files)
		}
	}
	return all
}
