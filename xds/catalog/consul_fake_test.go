package catalog

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// fakeConsul answers what it was told, by blocking queries.
type fakeConsul struct {
	*httptest.Server

	mu        sync.Mutex
	index     uint64
	answers   map[string]any // by path; those that are not there are answered with an empty list
	leader    bool
	streaming bool     // blocking queries of /v1/health/service and connect are answered from a stream, which names no leader
	status    int      // 0: all is well
	acl       *fakeACL // nil: there are no ACLs
	served    map[string]int
	open      int
	most      int
	next      chan struct{} // closed when something changes
	count     chan struct{} // closed when something was served
}

func newFake(t *testing.T) *fakeConsul {
	f := &fakeConsul{index: 100, leader: true, streaming: true, answers: map[string]any{}, served: map[string]int{},
		next: make(chan struct{}), count: make(chan struct{})}
	f.answers["/v1/catalog/services"] = map[string][]string{"consul": {}}
	f.answers["/v1/agent/self"] = agentAllows
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(func() { f.CloseClientConnections(); f.Close() })
	return f
}

// set changes what is answered, under a new index.
func (f *fakeConsul) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	change()
	close(f.next)
	f.next = make(chan struct{})
	f.served = map[string]int{}
}

func (f *fakeConsul) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open++
	f.most = max(f.most, f.open)
	defer func() { f.open-- }()
	for r.URL.Query().Get("index") == fmt.Sprint(f.index) {
		next := f.next
		f.mu.Unlock()
		select {
		case <-next:
		case <-r.Context().Done():
		}
		f.mu.Lock()
		if r.Context().Err() != nil {
			return
		}
	}
	f.served[r.URL.Path]++
	close(f.count)
	f.count = make(chan struct{})
	if f.status != 0 {
		http.Error(w, "No cluster leader", f.status)
		return
	}
	h := w.Header()
	h.Set("X-Consul-Index", fmt.Sprint(f.index))
	h.Set("X-Consul-LastContact", "0")
	h.Set("X-Consul-KnownLeader", fmt.Sprint(f.leader))
	h.Set("X-Consul-Query-Backend", "blocking-query")
	streamed := f.streaming && r.URL.Query().Get("index") != "" && (strings.HasPrefix(r.URL.Path, "/v1/health/service/") || strings.HasPrefix(r.URL.Path, "/v1/health/connect/"))
	if streamed {
		h.Set("X-Consul-KnownLeader", "false")
		h.Set("X-Consul-Query-Backend", "streaming")
	}
	a, ok := f.answers[r.URL.Path]
	if f.acl != nil && f.acl.answers(w, r, streamed) {
		return
	}
	if !ok {
		a = []any{}
	}
	_ = json.NewEncoder(w).Encode(a)
}

// await waits until path was answered n times since the last change.
func (f *fakeConsul) await(t *testing.T, path string, n int) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		f.mu.Lock()
		served, count := f.served[path], f.count
		f.mu.Unlock()
		if served >= n {
			return
		}
		select {
		case <-count:
		case <-deadline:
			t.Fatalf("%s was answered %d times, want %d", path, served, n)
		}
	}
}

type object = map[string]any

// agentAllows is the configuration of an agent whose intentions allow by default.
var agentAllows = object{"DebugConfig": object{"DefaultIntentionPolicy": "allow"}}

// service puts a service with one instance into the fake, to be called within set.
func (f *fakeConsul) service(name string, change ...func(service object)) {
	list := maps.Clone(f.answers["/v1/catalog/services"].(map[string][]string))
	list[name] = []string{}
	f.answers["/v1/catalog/services"] = list
	s := object{"ID": name + "-1", "Service": name, "Port": 80}
	for _, c := range change {
		c(s)
	}
	f.answers["/v1/health/service/"+name] = []object{entry(s, "passing")}
}

// sidecar gives a service a sidecar.
func (f *fakeConsul) sidecar(name, id string) {
	p := entry(object{"ID": name + "-sidecar", "Service": name + "-sidecar-proxy", "Kind": "connect-proxy", "Port": 21000,
		"Proxy": object{"DestinationServiceName": name, "DestinationServiceID": id}}, "passing")
	list := maps.Clone(f.answers["/v1/catalog/services"].(map[string][]string))
	list[name+"-sidecar-proxy"] = []string{}
	f.answers["/v1/catalog/services"] = list
	f.answers["/v1/health/connect/"+name] = []object{p}
	f.answers["/v1/health/service/"+name+"-sidecar-proxy"] = []object{p}
}

// clear takes everything out.
func (f *fakeConsul) clear() {
	f.answers = map[string]any{"/v1/catalog/services": map[string][]string{}, "/v1/agent/self": agentAllows}
}

func entry(service object, status string) object {
	return object{"Node": object{"Node": "n", "Address": "127.0.0.1"}, "Service": service,
		"Checks": []object{{"CheckID": "c", "Status": status}}}
}

// follow runs a source until the test ends. It returns what is published.
func follow(t *testing.T, s Source) <-chan *Snapshot {
	ctx, cancel := context.WithCancel(context.Background())
	ch := make(chan *Snapshot, 10_000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx, func(x *Snapshot) { ch <- x }); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return ch
}

func (f *fakeConsul) source(t *testing.T, change ...func(*ConsulOptions)) (*Consul, <-chan *Snapshot) {
	t.Helper()
	o := ConsulOptions{Address: f.URL, Retry: 2 * time.Millisecond, Confirm: time.Hour, Logger: quiet}
	for _, c := range change {
		c(&o)
	}
	c, err := NewConsul(o)
	if err != nil {
		t.Fatal(err)
	}
	return c, follow(t, c)
}

func receive(t *testing.T, ch <-chan *Snapshot) *Snapshot {
	t.Helper()
	select {
	case s := <-ch:
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was published")
		return nil
	}
}

// until receives until a snapshot is as wanted; each on the way must hold.
func until(t *testing.T, ch <-chan *Snapshot, wanted, hold func(*Snapshot) bool) *Snapshot {
	t.Helper()
	for {
		s := receive(t, ch)
		if hold != nil && !hold(s) {
			t.Fatalf("published meanwhile: %v", s.Names())
		}
		if wanted(s) {
			return s
		}
	}
}

func has(names ...string) func(*Snapshot) bool {
	return func(s *Snapshot) bool {
		for _, n := range names {
			if v := s.Services[Name{DefaultNamespace, n}]; v == nil || len(v.Instances) == 0 || !v.Instances[0].Healthy {
				return false
			}
		}
		return true
	}
}

func lacks(name string) func(*Snapshot) bool {
	return func(s *Snapshot) bool { return s.Services[Name{DefaultNamespace, name}] == nil }
}
