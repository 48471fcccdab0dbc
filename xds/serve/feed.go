package serve

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"

	"sallyport/xds/build"
)

// feed is what one stream is told: the set in force, and the watches that wait for something newer. It is a cache of
// go-control-plane's for one client, which keeps apart clients that call themselves the same. What a client was sent counts
// as known, also if it refused it: a refused version is not sent again until it changes.
type feed struct {
	mu         sync.Mutex
	generation uint64
	set        set // nil: nothing was published yet
	latest     set // without what lingers
	linger     *time.Timer
	lingerTime time.Duration
	closed     bool
	watches    map[string]*watch // by type
	holds      map[string]*hold  // by type
	again      *time.Timer       // fires at againAt: then a hold ends
	againAt    time.Time
}

// hold keeps a type from a client that refuses what it is sent, or asks again for what it has, for a time that grows. A
// client in such a loop costs this server, and itself, no more than that.
type hold struct {
	times int // in a row
	until time.Time
}

// Pauses after a refusal: what comes later than that is sent at once.
const (
	firstHold = 50 * time.Millisecond
	mostHold  = 5 * time.Second
)

// watch is a request that waits for an answer. Its channel has room for one answer per type.
type watch struct {
	typeURL   string
	sub       cachev3.Subscription
	request   *discoveryv3.DiscoveryRequest
	responses chan cachev3.Response
	delta     *discoveryv3.DeltaDiscoveryRequest
	deltas    chan cachev3.DeltaResponse
	first     bool // of its type on the stream: answered at once, also if there is nothing
}

func newFeed(linger time.Duration) *feed {
	return &feed{watches: map[string]*watch{}, holds: map[string]*hold{}, lingerTime: linger}
}

// refused notes that the client did not take what it was sent of a type.
func (f *feed) refused(typeURL string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.holds[typeURL]
	if h == nil {
		h = &hold{}
		f.holds[typeURL] = h
	}
	h.until = time.Now().Add(min(firstHold<<min(h.times, 20), mostHold))
	h.times++
}

// taken notes that the client took it.
func (f *feed) taken(typeURL string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.holds, typeURL)
}

// isHeld says that nothing of the type is sent now, and has answer called when it may be. The lock is held.
func (f *feed) isHeld(typeURL string) bool {
	h := f.holds[typeURL]
	if h == nil {
		return false
	}
	wait := time.Until(h.until)
	if wait <= 0 {
		return false
	}
	if f.again == nil || h.until.Before(f.againAt) {
		if f.again != nil {
			f.again.Stop()
		}
		f.again, f.againAt = time.AfterFunc(wait, f.release), h.until
	}
	return true
}

// release answers what was held, where its hold has ended.
func (f *feed) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.again = nil
	if !f.closed && f.set != nil {
		f.answer()
	}
}

// publish puts a set in force; one of an older generation is passed over.
func (f *feed) publish(s set, generation uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || generation < f.generation {
		return
	}
	f.generation, f.latest = generation, s
	if f.set != nil {
		// New clusters come before the routes to them, and old ones go after: two steps, as one answer per type cannot do both.
		merged := s.withRemoved(f.set)
		if differ := !sameSet(merged, s); differ && f.linger == nil {
			f.linger = time.AfterFunc(f.lingerTime, f.settle)
		}
		s = merged
	}
	f.set = s
	f.answer()
}

func sameSet(a, b set) bool {
	for _, t := range lingering {
		if a.of(t) != b.of(t) {
			return false
		}
	}
	return true
}

// settle removes what lingered.
func (f *feed) settle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.linger = nil
	if f.closed {
		return
	}
	f.set = f.latest
	f.answer()
}

// answer answers all watches that have something new, in the order of build.Types. The lock is held.
func (f *feed) answer() {
	for _, t := range build.Types {
		if w := f.watches[t]; w != nil && !f.isHeld(t) && w.answer(f.set.of(t)) {
			delete(f.watches, t)
		}
	}
}

func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.linger != nil {
		f.linger.Stop()
	}
	if f.again != nil {
		f.again.Stop()
	}
	clear(f.watches)
}

// watch answers w at once, or keeps it until there is something.
func (f *feed) watch(w *watch) (cancel func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.set != nil && !f.isHeld(w.typeURL) && w.answer(f.set.of(w.typeURL)) {
		return func() {}
	}
	f.watches[w.typeURL] = w
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.watches[w.typeURL] == w {
			delete(f.watches, w.typeURL)
		}
	}
}

// gone is the version of a resource that the client was told does not exist.
const gone = "\x00"

// diff compares what the client was sent with what there is. sent is what it will then have been sent.
func (w *watch) diff(t *typeSet) (changed, removed []string, sent map[string]string) {
	known := w.sub.ReturnedResources()
	sent = make(map[string]string, len(known))
	look := func(name string) {
		if _, done := sent[name]; done {
			return
		}
		r, ok := t.resources[name]
		if !ok {
			sent[name] = gone
			if v, told := known[name]; !told || v != gone {
				removed = append(removed, name)
			}
			return
		}
		sent[name] = r.version
		if known[name] != r.version {
			changed = append(changed, name)
		}
	}
	for name := range w.sub.SubscribedResources() {
		look(name)
	}
	if w.sub.IsWildcard() {
		for name := range t.resources {
			look(name)
		}
	}
	if w.sub.IsWildcard() || w.delta != nil {
		for name := range known { // also what another control plane sent (initial_resource_versions)
			look(name)
		}
	}
	slices.Sort(changed)
	slices.Sort(removed)
	return changed, removed, sent
}

// answer sends what is new, and says whether that was anything.
func (w *watch) answer(t *typeSet) bool {
	changed, removed, sent := w.diff(t)
	if w.delta != nil {
		return w.answerDelta(t, changed, removed, sent)
	}
	// A state-of-the-world answer cannot say that a single endpoint or route configuration does not exist: it is left out.
	whole := w.typeURL == build.ClusterType || w.typeURL == build.ListenerType
	had := false
	for _, name := range removed {
		_, known := w.sub.ReturnedResources()[name]
		had = had || known
	}
	if len(changed) == 0 && !(whole && had) && !(w.first && w.sub.IsWildcard()) {
		return false
	}
	names := changed
	if whole { // these are always sent as a whole: what is not in the answer is removed
		names = names[:0:0]
		for name, v := range sent {
			if v != gone {
				names = append(names, name)
			}
		}
		slices.Sort(names)
	}
	for name, v := range sent {
		if v == gone {
			delete(sent, name)
		}
	}
	r := &discoveryv3.DiscoveryResponse{TypeUrl: w.typeURL, VersionInfo: t.version}
	for _, name := range names {
		r.Resources = append(r.Resources, t.resources[name].any)
	}
	select {
	case w.responses <- &cachev3.PassthroughResponse{Request: w.request, DiscoveryResponse: r, ReturnedResources: sent}:
		return true
	default:
		return false // the stream still has an answer of this type before it, and will ask again
	}
}

func (w *watch) answerDelta(t *typeSet, changed, removed []string, sent map[string]string) bool {
	if len(changed)+len(removed) == 0 && !(w.first && w.sub.IsWildcard()) {
		return false
	}
	r := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: w.typeURL, SystemVersionInfo: t.version, RemovedResources: removed}
	for _, name := range changed {
		r.Resources = append(r.Resources, &discoveryv3.Resource{Name: name, Version: t.resources[name].version, Resource: t.resources[name].any})
	}
	for name, v := range sent {
		_, named := w.sub.SubscribedResources()[name]
		if v == gone && !named {
			delete(sent, name) // nobody asks for it by name: nothing to remember
		}
	}
	select {
	case w.deltas <- &cachev3.DeltaPassthroughResponse{DeltaRequest: w.delta, DeltaDiscoveryResponse: r, NextVersionMap: sent}:
		return true
	default:
		return false
	}
}

// feeds is go-control-plane's cache interface over all feeds. The server replaces the node of every request by one whose id
// is the key of the feed: see callbacks.
type feeds struct {
	mu   sync.Mutex
	list map[string]*feed
}

var errNoFeed = errors.New("the stream is not known")

func (c *feeds) get(key string) *feed {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.list[key]
}

// CreateWatch implements cachev3.ConfigWatcher.
func (c *feeds) CreateWatch(r *cachev3.Request, sub cachev3.Subscription, value chan cachev3.Response) (func(), error) {
	f := c.get(r.GetNode().GetId())
	if f == nil {
		return nil, errNoFeed
	}
	return f.watch(&watch{typeURL: r.GetTypeUrl(), sub: sub, request: r, responses: value, first: r.GetResponseNonce() == ""}), nil
}

// CreateDeltaWatch implements cachev3.ConfigWatcher.
func (c *feeds) CreateDeltaWatch(r *cachev3.DeltaRequest, sub cachev3.Subscription, value chan cachev3.DeltaResponse) (func(), error) {
	f := c.get(r.GetNode().GetId())
	if f == nil {
		return nil, errNoFeed
	}
	return f.watch(&watch{typeURL: r.GetTypeUrl(), sub: sub, delta: r, deltas: value, first: r.GetResponseNonce() == ""}), nil
}

// Fetch implements cachev3.ConfigFetcher: there are streams only.
func (c *feeds) Fetch(context.Context, *cachev3.Request) (cachev3.Response, error) {
	return nil, errors.New("fetching is not implemented; use a stream")
}
