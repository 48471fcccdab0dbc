// Package admin is the operator's page of one proxy: readiness, statistics,
// what is configured and what each host is doing. It serves plain HTTP with
// the standard library on an address of its own, by default none, in examples
// 127.0.0.1. Reading needs GET; what changes anything needs POST and is
// refused to browsers' cross-site requests. No page shows a key.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"strings"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"sallyport/sidecar/metric"
	"sallyport/sidecar/telemetry"
	"sallyport/sidecar/upstream"
)

// Source is what the pages show; package sidecar fills it in. All functions
// are safe for concurrent use.
type Source struct {
	Metrics  *metric.Registry
	Clusters func() []*upstream.Cluster
	// State is "LIVE", "DRAINING", "PRE_INITIALIZING" or "INITIALIZING", as Envoy's ServerInfo has them.
	State func() string
	// Reason says, when State is not LIVE, what is waited for.
	Reason     func() string
	ConfigDump func() *adminv3.ConfigDump
	// Warnings are fields that are set and not implemented.
	Warnings  func() []string
	Listeners func() map[string][]string
	// Certificates describes the certificates in use, for /certs.
	Certificates func() any
	Drain        func()
	Quit         func()
	SetLevel     func(string) error
	Version      string
	Node         string
	Started      time.Time
}

type page struct {
	path, help string
	post       bool
	serve      func(http.ResponseWriter, *http.Request)
}

// Server is the admin page's HTTP server.
type Server struct {
	src   Source
	pages []page
	http  *http.Server
	addr  net.Addr
}

// Listen opens the admin page on an address ("127.0.0.1:9901" or "unix:/path").
func Listen(address string, src Source, log *slog.Logger) (*Server, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("admin: cannot listen on %s: %w", address, err)
	}
	if network == "unix" {
		if err := os.Chmod(address, 0o600); err != nil {
			l.Close()
			return nil, fmt.Errorf("admin: %w", err)
		}
	} else if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		log.Warn("the admin page is reachable from other hosts; it has no authentication", "address", l.Addr())
	}
	s := &Server{src: src, addr: l.Addr()}
	s.pages = s.list()
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 120 * time.Second,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	go func() {
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("admin page ended", "error", err)
		}
	}()
	return s, nil
}

// Addr is where the page is.
func (s *Server) Addr() net.Addr { return s.addr }

// Close ends the page.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return s.http.Shutdown(ctx)
}

func (s *Server) list() []page {
	return []page{
		{"/certs", "certificates in use and when they expire", false, s.certs},
		{"/clusters", "hosts of each cluster, their health and what they do (?format=json)", false, s.clusters},
		{"/config_dump", "configuration in force and refused, without secrets", false, s.configDump},
		{"/drain_listeners", "stop accepting, let connections end", true, s.drain},
		{"/listeners", "listeners and their addresses", false, s.listeners},
		{"/logging", "set the log level (?level=debug)", true, s.logging},
		{"/memory", "memory of the process", false, s.memory},
		{"/quitquitquit", "end the process", true, s.quit},
		{"/ready", "200 when the proxy serves, else 503 and what is missing", false, s.ready},
		{"/server_info", "version, state and uptime", false, s.serverInfo},
		{"/stats", "statistics (?usedonly, ?filter=text, ?format=prometheus)", false, s.stats},
		{"/stats/prometheus", "statistics for Prometheus", false, telemetry.Prometheus(s.src.Metrics).ServeHTTP},
		{"/warnings", "configured fields that are not implemented", false, s.warnings},
		{"/debug/pprof/", "profiles of the process", false, pprof.Index},
		{"/debug/pprof/profile", "", false, pprof.Profile},
		{"/debug/pprof/trace", "", false, pprof.Trace},
		{"/debug/pprof/cmdline", "", false, pprof.Cmdline},
		{"/debug/pprof/symbol", "", false, pprof.Symbol},
	}
}

// ServeHTTP finds the page.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-cache, max-age=0")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if r.URL.Path == "/" || r.URL.Path == "/help" {
		s.index(w)
		return
	}
	for _, p := range s.pages {
		if p.path != r.URL.Path && !(p.path == "/debug/pprof/" && strings.HasPrefix(r.URL.Path, p.path)) {
			continue
		}
		if p.post {
			if r.Method != http.MethodPost {
				w.Header().Set("Allow", http.MethodPost)
				http.Error(w, "this changes the proxy: use POST", http.StatusMethodNotAllowed)
				return
			}
			// A page in the operator's browser must not be able to do it.
			if r.Header.Get("Origin") != "" || strings.HasPrefix(r.Header.Get("Sec-Fetch-Site"), "cross") {
				http.Error(w, "cross-site requests are refused", http.StatusForbidden)
				return
			}
		}
		p.serve(w, r)
		return
	}
	http.Error(w, "no such page; / lists them", http.StatusNotFound)
}

func (s *Server) index(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!doctype html><title>sallyport %s</title><h1>sallyport</h1><p>node %s, state %s</p><table>",
		html.EscapeString(s.src.Version), html.EscapeString(s.src.Node), html.EscapeString(s.src.State()))
	for _, p := range s.pages {
		if p.help == "" {
			continue
		}
		if p.post {
			fmt.Fprintf(w, "<tr><td>POST %s<td>%s", p.path, html.EscapeString(p.help))
		} else {
			fmt.Fprintf(w, `<tr><td><a href="%s">%s</a><td>%s`, p.path, p.path, html.EscapeString(p.help))
		}
	}
	fmt.Fprint(w, "</table>")
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	state := s.src.State()
	if state != "LIVE" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, state)
	if state != "LIVE" {
		if reason := s.src.Reason(); reason != "" {
			fmt.Fprintln(w, reason)
		}
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		http.Error(w, "cannot be written as JSON", http.StatusInternalServerError)
	}
}

func (s *Server) serverInfo(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]any{"version": s.src.Version, "state": s.src.State(), "node": map[string]string{"id": s.src.Node},
		"uptime_current_epoch": time.Since(s.src.Started).Truncate(time.Second).String(), "go": runtime.Version(), "pid": os.Getpid()})
}

func (s *Server) stats(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("format") == "prometheus" {
		telemetry.Prometheus(s.src.Metrics).ServeHTTP(w, r)
		return
	}
	var b strings.Builder
	telemetry.WriteStats(&b, s.src.Metrics, q.Has("usedonly"))
	filter := q.Get("filter")
	for line := range strings.Lines(b.String()) {
		if strings.Contains(line, filter) {
			fmt.Fprint(w, line)
		}
	}
}

func (s *Server) configDump(w http.ResponseWriter, _ *http.Request) {
	b, err := protojson.MarshalOptions{Multiline: true, Indent: " ", UseProtoNames: true}.Marshal(s.src.ConfigDump())
	if err != nil {
		http.Error(w, "the configuration cannot be shown: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the client may have gone
}

func (s *Server) clusters(w http.ResponseWriter, r *http.Request) {
	all := s.src.Clusters()
	if r.URL.Query().Get("format") == "json" {
		type cluster struct {
			Name  string                `json:"name"`
			Hosts []upstream.HostStatus `json:"host_statuses"`
		}
		var out []cluster
		for _, c := range all {
			out = append(out, cluster{c.Config.Name, c.Status()})
		}
		writeJSON(w, map[string]any{"cluster_statuses": out})
		return
	}
	for _, c := range all {
		n := c.Config.Name
		for p, name := range []string{"default", "high"} {
			b := c.Config.Breakers[p]
			fmt.Fprintf(w, "%s::%s_priority::max_connections::%d\n%s::%s_priority::max_pending_requests::%d\n%s::%s_priority::max_requests::%d\n%s::%s_priority::max_retries::%d\n",
				n, name, b.Connections, n, name, b.Pending, n, name, b.Requests, n, name, b.Retries)
		}
		for _, h := range c.Status() {
			health := "healthy"
			if len(h.Flags) > 0 {
				health = "/" + strings.Join(h.Flags, "/")
			}
			fmt.Fprintf(w, "%s::%s::health_flags::%s\n%s::%s::rq_active::%d\n%s::%s::rq_total::%d\n%s::%s::rq_error::%d\n%s::%s::cx_total::%d\n%s::%s::cx_connect_fail::%d\n%s::%s::weight::%d\n%s::%s::priority::%d\n%s::%s::zone::%s\n",
				n, h.Address, health, n, h.Address, h.Active, n, h.Address, h.Requests, n, h.Address, h.Errors, n, h.Address, h.Connects,
				n, h.Address, h.Fails, n, h.Address, h.Weight, n, h.Address, h.Priority, n, h.Address, h.Zone)
		}
	}
}

func (s *Server) listeners(w http.ResponseWriter, r *http.Request) {
	all := s.src.Listeners()
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, all)
		return
	}
	names := make([]string, 0, len(all))
	for n := range all {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		for _, a := range all[n] {
			fmt.Fprintf(w, "%s::%s\n", n, a)
		}
	}
}

func (s *Server) certs(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]any{"certificates": s.src.Certificates()})
}

func (s *Server) warnings(w http.ResponseWriter, _ *http.Request) {
	for _, line := range s.src.Warnings() {
		fmt.Fprintln(w, line)
	}
}

func (s *Server) memory(w http.ResponseWriter, _ *http.Request) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	writeJSON(w, map[string]any{"allocated": m.HeapAlloc, "heap_size": m.HeapSys, "total": m.Sys, "goroutines": runtime.NumGoroutine(), "gc_cycles": m.NumGC,
		"limit": debug.SetMemoryLimit(-1)})
}

func (s *Server) drain(w http.ResponseWriter, _ *http.Request) {
	s.src.Drain()
	fmt.Fprintln(w, "OK")
}

func (s *Server) quit(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, "OK")
	s.src.Quit()
}

func (s *Server) logging(w http.ResponseWriter, r *http.Request) {
	if err := s.src.SetLevel(r.URL.Query().Get("level")); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintln(w, "OK")
}
