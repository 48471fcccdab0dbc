package active

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/ads"
	"sallyport/sidecar/secret"
)

// Cache keeps the last good configuration on disk, so that a proxy that is
// started while the control plane is away serves. Secrets, and resources that
// hold one (secret.Holds), are never written: of those the name is, so that a
// process that starts from the cache knows that it lacks them. Files are for their
// owner alone. Safe for concurrent use; nil keeps nothing.
type Cache struct {
	dir   string
	after time.Duration
	log   *slog.Logger

	writing sync.Mutex // one Flush at a time

	mu    sync.Mutex
	state *State
	types map[string]bool // to be written
	timer *time.Timer
	told  map[string]map[string]string // by type and name, why a resource is left out; owned by Flush
}

const (
	// cacheDelay gathers the changes of a burst into one write.
	cacheDelay = time.Second
	// maxCache bounds a file.
	maxCache = 256 << 20
)

// NewCache uses a folder, which is made (0700) where there is none. What is in
// it is taken when the control plane has not answered that long after the start; 0 is 5 s.
func NewCache(dir string, after time.Duration, log *slog.Logger) (*Cache, error) {
	if after <= 0 {
		after = 5 * time.Second
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the folder for the configuration cache: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("the folder for the configuration cache: %w", err)
	}
	// Whoever can write there tells this proxy what to do.
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("the folder for the configuration cache, %s, can be written by others (%v); chmod 700 it", dir, info.Mode().Perm())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("the folder for the configuration cache, %s, belongs to user %d, and this process runs as user %d; chown it", dir, st.Uid, os.Geteuid())
	}
	return &Cache{dir: dir, after: after, log: log, types: map[string]bool{}, told: map[string]map[string]string{}}, nil
}

// Attach names the State whose configuration is kept.
func (c *Cache) Attach(s *State) {
	if c != nil {
		c.mu.Lock()
		c.state = s
		c.mu.Unlock()
	}
}

// dirty says that a type has changed.
func (c *Cache) dirty(typeURL string) {
	if c == nil || typeURL == ads.SecretType {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.types[typeURL] = true
	if c.timer == nil {
		c.timer = time.AfterFunc(cacheDelay, c.Flush)
	}
}

// Flush writes what has changed.
func (c *Cache) Flush() {
	if c == nil {
		return
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	state, types := c.state, c.types
	c.types, c.timer = map[string]bool{}, nil
	c.mu.Unlock()
	// Without c.mu: the state holds its own lock when it calls dirty.
	if state == nil {
		return
	}
	for t := range types {
		if err := c.write(t, state.resources(t)); err != nil {
			c.log.Warn("the configuration cannot be kept on disk", "type", t, "error", err)
		}
	}
}

func (c *Cache) path(typeURL string) string {
	return filepath.Join(c.dir, typeURL[strings.LastIndexByte(typeURL, '.')+1:]+".pb")
}

func (c *Cache) write(typeURL string, list []*discoveryv3.Resource) error {
	m := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL}
	told, before := map[string]string{}, c.told[typeURL]
	c.told[typeURL] = told
	for _, r := range list {
		place := secret.Holds(r.Resource)
		if place != "" {
			m.RemovedResources = append(m.RemovedResources, r.GetName())
			told[r.GetName()] = place
			if before[r.GetName()] != place {
				c.log.Warn("a resource is not kept on disk, for it holds what may be a secret; after a restart it waits for the control plane",
					"type", typeURL, "name", r.GetName(), "field", place)
			}
		} else {
			m.Resources = append(m.Resources, r)
		}
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	// Written beside and renamed: a crash leaves the old file or the new one.
	f, err := os.CreateTemp(c.dir, ".new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(b); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), c.path(typeURL))
}

// load reads what is kept of a type. Response.Removed has the names of what was left out.
func (c *Cache) load(typeURL string) (r ads.Response, err error) {
	r = ads.Response{Type: typeURL, Version: "cache"}
	f, err := os.Open(c.path(typeURL))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	} else if err != nil {
		return r, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCache+1))
	if err != nil {
		return r, err
	}
	var m discoveryv3.DeltaDiscoveryResponse
	if err := proto.Unmarshal(b, &m); err != nil || len(b) > maxCache || m.GetTypeUrl() != typeURL {
		return r, errors.New("the file is damaged; delete it")
	}
	r.Removed = m.GetRemovedResources()
	for _, x := range m.GetResources() {
		r.Resources = append(r.Resources, ads.Resource{Name: x.GetName(), Version: x.GetVersion(), Body: x.GetResource()})
	}
	return r, nil
}

// resources are those of a type in force that came from the control plane.
func (s *State) resources(typeURL string) (out []*discoveryv3.Resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	add := func(name string, r *resource) {
		if !r.static && r.body != nil {
			out = append(out, &discoveryv3.Resource{Name: name, Version: r.version, Resource: r.body})
		}
	}
	switch typeURL {
	case ads.ClusterType:
		for n, c := range s.clusters {
			add(n, &c.resource)
		}
	case ads.EndpointType:
		for n, e := range s.endpoints {
			add(n, &e.resource)
		}
	case ads.ListenerType:
		for n, l := range s.listeners {
			add(n, &l.resource)
		}
	case ads.RouteType:
		for n, r := range s.routes {
			add(n, &r.resource)
		}
	}
	return out
}
