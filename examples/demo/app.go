package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// App is one of the services of the demo: an ordinary HTTP server that knows
// nothing of the mesh. It answers with what it saw of the request, and, if it
// has others to call, with what they answered.
type App struct {
	Service  string // "orders"
	Version  string // "v1"
	Instance string // "orders-v1-1"
	Listen   string // address; 127.0.0.1 only
	// Calls are other services by path prefix: "/payments" → "http://127.0.0.1:9001".
	Calls map[string]string
}

// Answer is an App's response. Via holds the answer of the service it called.
type Answer struct {
	Service  string            `json:"service"`
	Version  string            `json:"version"`
	Instance string            `json:"instance"`
	Method   string            `json:"method"`
	Path     string            `json:"path"`
	Host     string            `json:"host"`
	Status   int               `json:"status"`
	Headers  map[string]string `json:"headers,omitempty"`
	Via      *Answer           `json:"via,omitempty"`
	Error    string            `json:"error,omitempty"`
}

// shown are the header fields that an answer repeats.
var shown = []string{"traceparent", "x-request-id", "x-forwarded-client-cert", "x-forwarded-for", "x-forwarded-proto", "x-user", "x-demo", "x-removed", "authorization", "x-envoy-attempt-count"}

// passed are the fields that a service hands on to those it calls, so that a
// trace is one trace: the one thing that an application must do itself.
var passed = []string{"traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-request-id"}

// Run serves until ctx ends.
func (a *App) Run(ctx context.Context) error {
	l, err := net.Listen("tcp", a.Listen)
	if err != nil {
		return fmt.Errorf("service %s: %w", a.Service, err)
	}
	client := &http.Client{Timeout: 10 * time.Second}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, client) })
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if s.Shutdown(end) != nil {
			s.Close()
		}
	})
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("service %s: %w", a.Service, err)
	}
	return nil
}

func (a *App) serve(w http.ResponseWriter, r *http.Request, client *http.Client) {
	out := Answer{Service: a.Service, Version: a.Version, Instance: a.Instance, Method: r.Method, Path: r.URL.RequestURI(), Host: r.Host, Status: http.StatusOK, Headers: map[string]string{}}
	for _, n := range shown {
		if v := r.Header.Get(n); v != "" {
			out.Headers[n] = v
		}
	}
	for prefix, target := range a.Calls {
		if strings.HasPrefix(r.URL.Path, prefix) {
			out.Via = a.call(r, client, target+strings.TrimPrefix(r.URL.Path, prefix))
			// A refusal is handed on as it is; any other failure is a bad gateway's.
			if out.Via.Status >= 500 {
				out.Status = http.StatusBadGateway
			} else if out.Via.Status >= 400 {
				out.Status = out.Via.Status
			}
			break
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Served-By", a.Instance)
	w.Header().Set("X-Internal", "for a gateway to remove")
	w.WriteHeader(out.Status)
	_ = json.NewEncoder(w).Encode(out) // the client may have gone
}

func (a *App) call(r *http.Request, client *http.Client, url string) *Answer {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		return &Answer{Status: http.StatusBadGateway, Error: err.Error()}
	}
	for _, n := range passed {
		if v := r.Header.Get(n); v != "" {
			req.Header.Set(n, v)
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return &Answer{Status: http.StatusBadGateway, Error: err.Error()}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return &Answer{Status: http.StatusBadGateway, Error: err.Error()}
	}
	var via Answer
	if resp.StatusCode >= 400 || json.Unmarshal(b, &via) != nil {
		return &Answer{Status: resp.StatusCode, Error: strings.TrimSpace(string(b))}
	}
	return &via
}
