package register

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// agent is as much of a Consul agent as a registration meets.
type agent struct {
	mu       sync.Mutex
	services map[string]*api.AgentServiceRegistration
	changed  chan struct{}
	refuse   string // ID of what is not taken
}

func newAgent(t *testing.T) (*agent, string) {
	a := &agent{services: map[string]*api.AgentServiceRegistration{}, changed: make(chan struct{}, 100)}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/agent/service/register", func(w http.ResponseWriter, r *http.Request) {
		var s api.AgentServiceRegistration
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			t.Error(err)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if s.ID == a.refuse {
			http.Error(w, "no", http.StatusInternalServerError)
			return
		}
		a.services[s.ID] = &s
		a.changed <- struct{}{}
	})
	mux.HandleFunc("GET /v1/agent/service/{id}", func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.services[r.PathValue("id")] == nil {
			http.Error(w, "unknown service ID", http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte("{}"))
	})
	mux.HandleFunc("PUT /v1/agent/service/deregister/{id}", func(_ http.ResponseWriter, r *http.Request) { a.remove(r.PathValue("id")) })
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return a, s.URL
}

func (a *agent) remove(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.services, id)
	a.changed <- struct{}{}
}

func (a *agent) ids() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, id := range []string{"shop.db-0", "shop.db-0-sidecar-proxy"} {
		if s := a.services[id]; s != nil {
			out = append(out, id+" in "+s.Meta[MetaNamespace])
		}
	}
	return strings.Join(out, ", ")
}

// until waits for what is registered to be so.
func (a *agent) until(t *testing.T, want string) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for a.ids() != want {
		select {
		case <-a.changed:
		case <-timeout:
			t.Fatalf("registered: %q, want %q", a.ids(), want)
		}
	}
}

func TestARegistrationThatTheAgentLosesIsMadeAgain(t *testing.T) {
	a, url := newAgent(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	meta := map[string]string{"version": "v2"}
	go func() {
		done <- Run(ctx, Options{Consul: url, Service: "db", Namespace: "shop", ID: "shop.db-0", Port: 5432, SidecarPort: 15006, Meta: meta,
			Look: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	}()
	both := "shop.db-0 in shop, shop.db-0-sidecar-proxy in shop"
	a.until(t, both)
	for _, lost := range []string{"shop.db-0", "shop.db-0-sidecar-proxy"} {
		a.remove(lost)
		a.until(t, both)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	a.until(t, "")
	if len(meta) != 1 {
		t.Errorf("the caller's meta data were changed: %v", meta)
	}
}

// TestWhatWasOnlyTriedIsTakenAwayToo: the agent has taken the service, and refuses its proxy until we end.
func TestWhatWasOnlyTriedIsTakenAwayToo(t *testing.T) {
	a, url := newAgent(t)
	a.refuse = "shop.db-0-sidecar-proxy"
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Consul: url, Service: "db", Namespace: "shop", ID: "shop.db-0", Port: 5432, SidecarPort: 15006, Log: slog.New(slog.DiscardHandler)})
	}()
	a.until(t, "shop.db-0 in shop")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	a.until(t, "")
}

// TestEachDeregistrationHasItsOwnTime: an agent that does not answer to the one may to the other.
func TestEachDeregistrationHasItsOwnTime(t *testing.T) {
	hang := make(chan struct{})
	var mu sync.Mutex
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path)
		first := len(asked) == 1
		mu.Unlock()
		if first {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			return
		}
		http.Error(w, "Unknown service ID", http.StatusNotFound)
	}))
	defer s.Close()
	defer close(hang)
	err := Deregister(t.Context(), Options{Consul: s.URL, ID: "db-0"})
	if err == nil {
		t.Error("that the first did not answer is no error")
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"/v1/agent/service/deregister/db-0", "/v1/agent/service/deregister/db-0-sidecar-proxy"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}
