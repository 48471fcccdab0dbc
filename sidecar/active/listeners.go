package active

import (
	"fmt"
	"slices"

	"sallyport/sidecar/ads"
	"sallyport/sidecar/config"
	"sallyport/sidecar/listener"
	"sallyport/sidecar/panics"
)

// batch is what one response changes of the listeners. All of it comes into force at once, and the engine is told of what
// goes together with what comes: an address goes from one listener to another without a gap, in whichever order they are
// in the response.
type batch struct {
	set    []*batched
	remove map[string]*listener.Config
}

// batched is a listener of a batch: one that can be in force now, or one that waits.
type batched struct {
	l        *listening
	r        resource
	compiled *config.Listener
	waits    bool
	undo     func() // as it was before
}

// publishBatch puts a batch in force and calls refuse for what cannot be. The lock is held.
func (s *State) publishBatch(refuse func(name string, err error)) {
	b := s.batch
	s.batch = nil
	var ready []*batched
	for _, one := range b.set {
		switch err := s.duplicate(b, one); {
		case err != nil:
			one.undo()
			if !one.waits { // the other may go, and no control plane sends this one again because of that
				s.postpone(one.compiled.Config.Name, one.r, one.compiled, false, err)
			}
			refuse(one.compiled.Config.Name, err)
		case !one.waits:
			ready = append(ready, one)
		}
	}
	remove := make([]string, 0, len(b.remove))
	for name, cfg := range b.remove {
		if s.claimed(cfg) {
			s.leaving[name] = cfg
		} else {
			remove = append(remove, name)
		}
	}
	set := make([]*listener.Config, len(ready))
	for i, one := range ready {
		set[i] = one.compiled.Config
	}
	for i, err := range s.putListeners(set, remove) {
		one := ready[i]
		if err = s.listened(one.l, one.r, one.compiled, err); err != nil {
			one.undo()
			s.unbound[one.compiled.Config.Name].accepted = false
			refuse(one.compiled.Config.Name, fmt.Errorf("listener %q: %w", one.compiled.Config.Name, err))
		}
	}
}

// duplicate refuses a listener of a batch that would have an address of another one: of one that is there, waits, or
// comes before it in the batch.
func (s *State) duplicate(b *batch, one *batched) error {
	later := map[*listening]bool{}
	for i := len(b.set) - 1; b.set[i] != one; i-- {
		later[b.set[i].l] = true
	}
	for name, other := range s.listeners {
		cfg := other.wanted()
		if other == one.l || later[other] || cfg == nil {
			continue
		}
		if at, is := listener.Conflict(one.compiled.Config, cfg); is {
			return &listener.DuplicateError{Listener: one.compiled.Config.Name, Other: name, Address: at}
		}
	}
	return nil
}

// wanted is the last version that was accepted, in force or not; nil: none yet.
func (l *listening) wanted() *listener.Config {
	switch {
	case l.next != nil:
		return l.next.Config
	case l.active != nil:
		return l.active.Config
	}
	return nil
}

// claimed says that a listener that waits will have an address of cfg: until then the old one serves on.
func (s *State) claimed(cfg *listener.Config) bool {
	for _, l := range s.listeners {
		if l.next != nil {
			if _, is := listener.Conflict(l.next.Config, cfg); is {
				return true
			}
		}
	}
	return false
}

// putListeners tells the engine; with what comes go those that stayed for it. Where that panics, the engine is told of
// each alone, so that one cannot harm the others.
func (s *State) putListeners(set []*listener.Config, remove []string) (errs []error) {
	for _, cfg := range set {
		delete(s.leaving, cfg.Name) // it is wanted again
		for name, old := range s.leaving {
			if _, is := listener.Conflict(cfg, old); is {
				remove = append(remove, name)
				delete(s.leaving, name)
			}
		}
	}
	if len(set)+len(remove) == 0 {
		return nil
	}
	tell := func(set []*listener.Config, remove []string) (errs []error) {
		if p := panics.Guard(s.log, "opening a listener", func() { errs = s.publisher.ApplyListeners(set, remove) }); p != nil {
			return slices.Repeat([]error{p}, max(len(set), 1))
		}
		return errs
	}
	if len(set)+len(remove) == 1 {
		return tell(set, remove)
	}
	if p := panics.Guard(s.log, "opening listeners", func() { errs = s.publisher.ApplyListeners(set, remove) }); p == nil {
		return errs
	}
	for i := range set {
		errs = append(errs, tell(set[i:i+1], nil)[0])
	}
	tell(nil, remove)
	return errs
}

// leave removes the listeners that stayed for one that waited, and that nobody waits for any more.
func (s *State) leave() {
	var remove []string
	for name, cfg := range s.leaving {
		if !s.claimed(cfg) {
			remove = append(remove, name)
			delete(s.leaving, name)
		}
	}
	s.putListeners(nil, remove)
}

// listened is what became of a listener that the engine was told of. What cannot be opened later than in its response can
// no more be refused: it is noted, told, and tried again.
func (s *State) listened(l *listening, r resource, compiled *config.Listener, err error) error {
	l.next, l.wait = nil, nil
	s.wants = true
	if err == nil {
		l.active = compiled
		return nil
	}
	s.fail(ads.ListenerType, compiled.Config.Name, l.version, l.body, err)
	s.log.Error("a listener cannot be opened", "listener", compiled.Config.Name, "error", err)
	// The next response with the same bytes tries again.
	l.sum, l.body = 0, nil
	s.postpone(compiled.Config.Name, r, compiled, true, err)
	return err
}
