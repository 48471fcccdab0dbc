package policy

import (
	"context"
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

	mu     sync.Mutex
	status Status
}

// Status is how the folder is doing.
type Status struct {
	Folder   string            `json:"folder"`
	Loaded   bool              `json:"loaded"`
	Changed  time.Time         `json:"changed"`
	Problems document.Problems `json:"problems,omitempty"` // with what is refused now
}

// NewFolder makes a source of a folder. poll 0 is filewatch.DefaultPoll.
func NewFolder(dir string, poll time.Duration, log *slog.Logger) *Folder {
	return &Folder{dir: dir, poll: poll, log: log, status: Status{Folder: dir}}
}

// Status is safe for concurrent use.
func (f *Folder) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// Run publishes Sets until ctx ends, on the goroutine that it runs on. A mistake at the start is an error: a proxy must
// not be told that there are no policies because they could not be read. Later ones are reported, and what was good last
// stays in force.
func (f *Folder) Run(ctx context.Context, publish func(*Set)) error {
	var l loader
	set, problems := l.load(f.dir)
	f.report(problems, len(problems) == 0)
	if err := problems.Err(); err != nil {
		return err
	}
	publish(set)
	dir, err := filepath.Abs(f.dir)
	if err != nil {
		dir = f.dir
	}
	filewatch.Watch(ctx, f.poll, func() []string { return append([]string{dir}, slices.Clone(l.refs)...) }, func() {
		set, problems := l.load(f.dir)
		for _, p := range problems {
			f.log.Error("policy refused, its last good version stays in force", "file", p.File, "line", p.Line, "field", p.Field, "reason", p.Text)
		}
		publish(set)
		f.report(problems, true)
	})
	return nil
}

func (f *Folder) report(problems document.Problems, loaded bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Problems, f.status.Changed = problems, time.Now()
	f.status.Loaded = f.status.Loaded || loaded
}
