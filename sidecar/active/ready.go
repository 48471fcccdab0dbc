package active

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sallyport/sidecar/ads"
	"sallyport/sidecar/config"
	"sallyport/sidecar/listener"
)

// Bounds of the wait before the sockets of a listener are tried again.
const (
	firstRebind = 250 * time.Millisecond
	lastRebind  = 10 * time.Second
)

// unbound is a version of a listener that is wanted and whose sockets could not be had: the port is somebody else's, for
// one. The control plane was told where that was known before its response was answered. It is tried again in any case: no
// control plane sends it a second time because a port has become free.
type unbound struct {
	resource resource
	compiled *config.Listener
	err      error
	// accepted: its response was answered before its sockets were tried, for it had to wait for routes or secrets.
	accepted bool
	wait     time.Duration
	timer    *time.Timer
}

// postpone notes that the sockets of a listener could not be had, and tries again later. The lock is held.
func (s *State) postpone(name string, r resource, compiled *config.Listener, accepted bool, err error) {
	s.abandon(name)
	u := &unbound{resource: r, compiled: compiled, err: err, accepted: accepted, wait: firstRebind}
	s.unbound[name] = u
	u.timer = time.AfterFunc(u.wait, func() { s.rebind(name, u) })
}

// abandon forgets a version that could not be opened: another one has come, or it is not wanted any more. The lock is held.
func (s *State) abandon(name string) {
	if u := s.unbound[name]; u != nil {
		u.timer.Stop()
		delete(s.unbound, name)
	}
}

// unwant abandons a version of the control plane's. The lock is held.
func (s *State) unwant(typeURL, name string) {
	if u := s.unbound[name]; typeURL == ads.ListenerType && u != nil && !u.resource.static {
		s.abandon(name)
	}
}

// rebind tries the sockets of a listener again.
func (s *State) rebind(name string, u *unbound) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.unbound[name] != u {
		return
	}
	l := s.listeners[name]
	if u.err = s.putListeners([]*listener.Config{u.compiled.Config}, nil)[0]; u.err != nil {
		u.wait = min(2*u.wait, lastRebind)
		u.timer.Reset(u.wait)
		return
	}
	delete(s.unbound, name)
	if l == nil { // it was refused when it came
		l = &listening{}
		s.listeners[name] = l
	}
	l.resource, l.warnings, l.active = u.resource, u.compiled.Warnings, u.compiled
	s.succeed(ads.ListenerType, name)
	s.log.Info("a listener that could not be opened is open now", "listener", name)
	s.cache.dirty(ads.ListenerType)
	s.wants = true
	s.settle()
}

// Unopened is why a listener has no sockets. nil: it has them, or it was never asked for.
func (s *State) Unopened(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.unbound[name]; u != nil && !s.serves(name) {
		return u.err
	}
	return nil
}

// serves says that some version of a listener has its sockets.
func (s *State) serves(name string) bool {
	l := s.listeners[name]
	return l != nil && l.active != nil
}

// Configured says that clusters and listeners of the control plane were accepted once, or taken from disk. Ready does not:
// its patience has an end.
func (s *State) Configured() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted[ads.ClusterType] && s.accepted[ads.ListenerType]
}

// Lacking says what of the configuration is missing before traffic may come here, "" for nothing. That is, of a process
// that was never ready: an answer of the control plane, a listener without sockets, and every resource of which no version
// was accepted yet. One that was ready lacks only what it has accepted and could not open: a configuration that it refused
// takes nothing from what it does.
func (s *State) Lacking(wasReady bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.unbound)) {
		if u := s.unbound[name]; !s.serves(name) && (u.accepted || !wasReady) {
			return fmt.Sprintf("a listener has no socket: %v", u.err)
		}
	}
	if wasReady {
		return ""
	}
	for _, t := range ads.Types {
		for _, name := range slices.Sorted(maps.Keys(s.failures[t])) {
			if kinds[t].known(s, name) == nil {
				return "the first configuration was refused: " + s.failures[t][name].err
			}
		}
	}
	for _, t := range ads.Types {
		if names := s.withheld[t]; len(names) > 0 {
			return fmt.Sprintf("waiting for the control plane: what may hold a secret was not kept on disk: %.500s", strings.Join(names, ", "))
		}
	}
	if s.isReady {
		return ""
	}
	if s.awaitCDS || s.awaitLDS {
		return "waiting for the first configuration"
	}
	var names []string
	for _, w := range append(s.waiting("cluster"), s.waiting("listener")...) {
		names = append(names, w.what)
	}
	return fmt.Sprintf("waiting for endpoints, routes or secrets of: %.500s", strings.Join(names, ", "))
}
