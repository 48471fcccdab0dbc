package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"sallyport/xds/document"
	"sallyport/xds/filewatch"
)

// Folder is a watched folder of documents.
type Folder struct {
	dir  string
	poll time.Duration
	log  *slog.Logger

	// Owned by Open, then by Run.
	loader loader
	keep   *keeper // nil: nothing is kept over a restart
	first  *Set    // what Open has read

	mu     sync.Mutex
	status Status
}

// Status is how the folder is doing.
type Status struct {
	Folder   string            `json:"folder"`
	Loaded   bool              `json:"loaded"`
	Changed  time.Time         `json:"changed"`
	Problems document.Problems `json:"problems,omitempty"` // with what is refused now
	// Restored says that something was refused at the start, so that what was in force before it is in force again.
	Restored bool `json:"restored,omitempty"`
	// Unkept says why what is in force now would not survive a restart.
	Unkept string `json:"unkept,omitempty"`
}

// NewFolder makes a source of a folder. poll 0 is filewatch.DefaultPoll.
func NewFolder(dir string, poll time.Duration, log *slog.Logger) *Folder {
	return &Folder{dir: dir, poll: poll, log: log, status: Status{Folder: dir}}
}

// Keep has what is in force kept in a state folder over a restart. It is called before Open.
func (f *Folder) Keep(state string) error {
	k, err := openKeeper(state, f.dir)
	if err != nil {
		return fmt.Errorf("policies cannot be kept over a restart: %w", err)
	}
	f.keep = k
	return nil
}

// Status is safe for concurrent use.
func (f *Folder) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// Open reads the folder for the first time. What is wrong with it is an error, unless there is something that was in force
// before the restart: a proxy must not be told that there are no policies because they could not be read.
func (f *Folder) Open() error {
	var unread error
	if f.keep != nil {
		f.loader.files, unread = f.keep.load(f.dir)
	}
	before := f.loader.idents()
	restored := f.loader.files != nil
	set, problems := f.loader.load(f.dir)
	for id := range before { // in force before the restart, refused by this version of the program
		restored = restored && !f.loader.lost[id]
	}
	if err := problems.Err(); err != nil && !restored {
		return errors.Join(err, unread)
	}
	if unread != nil && f.loader.documents() == 0 {
		return fmt.Errorf("the folder %s has no policies, and those that were in force before the restart cannot be read: %w; remove that file if there are none", f.dir, unread)
	}
	if unread != nil {
		f.log.Warn("policies that were kept over the restart cannot be read; the folder's are in force", "error", unread)
	}
	f.tell(problems)
	if len(problems) > 0 {
		f.log.Error("policies are refused at the start; what was in force before it stays in force", "problems", len(problems))
	}
	f.first = set
	f.report(problems)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Restored = len(problems) > 0
	return nil
}

// Run publishes Sets until ctx ends, on the goroutine that it runs on. Mistakes are reported, and what was good last stays
// in force.
func (f *Folder) Run(ctx context.Context, publish func(*Set)) error {
	if f.keep != nil {
		defer f.keep.close()
	}
	if f.first == nil {
		if err := f.Open(); err != nil {
			return err
		}
	}
	publish(f.first)
	dir, err := filepath.Abs(f.dir)
	if err != nil {
		dir = f.dir
	}
	filewatch.Watch(ctx, f.poll, func() []string { return append([]string{dir}, slices.Clone(f.loader.refs)...) }, func() {
		before := f.loader.idents()
		set, problems := f.loader.load(f.dir)
		f.tell(problems)
		now := f.loader.idents()
		for id, e := range before {
			if now[id] == nil {
				f.log.Info("policy removed", "kind", id.kind, "name", id.Key.String(), "file", e.doc.File)
			}
		}
		publish(set)
		f.report(problems)
	})
	return nil
}

// tell logs what is refused and was not before.
func (f *Folder) tell(problems document.Problems) {
	known := f.Status().Problems
	for _, p := range problems {
		if slices.ContainsFunc(known, func(k *document.Problem) bool { return *k == *p }) {
			continue
		}
		f.log.Error("policy refused, its last good version stays in force", "file", p.File, "line", p.Line, "field", p.Field, "reason", p.Text)
	}
}

// report says how it went, once what is in force is kept.
func (f *Folder) report(problems document.Problems) {
	unkept := ""
	if f.keep != nil {
		if err := f.keep.save(f.dir, f.loader.files); err != nil {
			unkept = err.Error()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if unkept != "" && unkept != f.status.Unkept {
		f.log.Error("policies in force could not be kept: a restart reads them from the folder alone", "error", unkept)
	}
	f.status.Problems, f.status.Changed, f.status.Unkept, f.status.Loaded = problems, time.Now(), unkept, true
	if len(problems) == 0 {
		f.status.Restored = false
	}
}
