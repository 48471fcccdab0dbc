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
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"sort"
	"strings"
	"syscall"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/metric"
	"sallyport/sidecar/panics"
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
	// Unready says why no traffic should come here; "": it may.
	Unready    func() string
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
	log   *slog.Logger
	addr  net.Addr
	// loopback: only programs of this host get here, a browser among them
	// that a page of another host made come (DNS rebinding).
	loopback bool
}

// Listen opens the admin page on an address ("127.0.0.1:9901" or "unix:/path").
func Listen(address string, src Source, log *slog.Logger) (*Server, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	l, err := listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("admin: cannot listen on %s: %w", address, err)
	}
	loopback := false
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		if loopback = a.IP.IsLoopback(); !loopback {
			log.Warn("the admin page is reachable from other hosts; it has no authentication", "address", l.Addr())
		}
	}
	s := &Server{src: src, addr: l.Addr(), loopback: loopback, log: log}
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

// listen opens the socket. That of a path is for its owner alone from the
// moment it exists; one that a process left behind is taken away.
func listen(network, address string) (net.Listener, error) {
	if network != "unix" {
		return net.Listen(network, address)
	}
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// bind(2) gives the file the mode of the socket, less the umask.
		return errors.Join(c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }), err)
	}}
	l, err := private.Listen(context.Background(), network, address)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	if i, statErr := os.Lstat(address); statErr != nil || i.Mode().Type() != os.ModeSocket {
		return nil, err
	}
	if c, dialErr := net.Dial(network, address); !errors.Is(dialErr, syscall.ECONNREFUSED) {
		if c != nil {
			c.Close()
		}
		return nil, err // somebody answers, or it is not ours to ask
	}
	if err := os.Remove(address); err != nil {
		return nil, err
	}
	return private.Listen(context.Background(), network, address)
}

// Addr is where the page is.
func (s *Server) Addr() net.Addr { return s.addr }

// Close ends the page.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close() // a profile may run for longer
	}
	return nil
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
		{"/stats", "statistics (?usedonly, ?filter=regexp, ?format=prometheus)", false, s.stats},
		{"/stats/prometheus", "statistics for Prometheus", false, telemetry.Prometheus(s.src.Metrics).ServeHTTP},
		{"/warnings", "configured fields that are not implemented", false, s.warnings},
		{profiles, "profiles of the process", false, pprof.Index},
		{"/debug/pprof/profile", "", false, pprof.Profile},
		{"/debug/pprof/trace", "", false, pprof.Trace},
		{"/debug/pprof/symbol", "", false, pprof.Symbol},
		// Not /debug/pprof/cmdline: --token is a secret.
	}
}

// find returns the page at a path, nil where there is none.
func (s *Server) find(path string) *page {
	var under *page
	for i := range s.pages {
		p := &s.pages[i]
		if p.path == path {
			return p
		}
		if p.path == profiles && strings.HasPrefix(path, profiles) {
			under = p // a profile by name
		}
	}
	return under
}

const profiles = "/debug/pprof/"

// ServeHTTP finds the page. A panic in one is its own.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			http.Error(w, panics.Error(s.log, "serving an admin page", p).Error(), http.StatusInternalServerError)
		}
	}()
	s.serve(w, r)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-cache, max-age=0")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Frame-Options", "DENY")
	if s.loopback && !local(r.Host) {
		http.Error(w, "this page answers to localhost and IP addresses", http.StatusMisdirectedRequest)
		return
	}
	p := s.find(r.URL.Path)
	switch {
	case p == nil && r.URL.Path != "/" && r.URL.Path != "/help":
		http.Error(w, "no such page; / lists them", http.StatusNotFound)
	case p != nil && p.post:
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "this changes the proxy: use POST", http.StatusMethodNotAllowed)
			return
		}
		// A page in the operator's browser must not be able to do it. No page
		// here has a form, so that no browser has a reason to.
		site := r.Header.Get("Sec-Fetch-Site")
		if r.Header.Get("Origin") != "" || site != "" && site != "none" && site != "same-origin" {
			http.Error(w, "cross-site requests are refused", http.StatusForbidden)
			return
		}
		p.serve(w, r)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this page is to be read: use GET", http.StatusMethodNotAllowed)
	case p == nil:
		s.index(w)
	default:
		p.serve(w, r)
	}
}

// local says whether a Host field can only come from who means this host: a
// name could be any site's, which has it resolve to 127.0.0.1.
func local(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "" || strings.EqualFold(host, "localhost") // HTTP/1.0 has none, and no browser speaks it
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
	state, why := s.src.State(), s.src.Unready()
	if why == "" {
		fmt.Fprintln(w, state)
		return
	}
	if state == "LIVE" { // it serves what it can, and is still not to get traffic
		state = "NOT READY"
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprintf(w, "%s\n%s\n", state, why)
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
		"uptime_current_epoch": fmt.Sprintf("%ds", int64(time.Since(s.src.Started).Seconds())), "go": runtime.Version(), "pid": os.Getpid()})
}

func (s *Server) stats(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("format") == "prometheus" {
		telemetry.Prometheus(s.src.Metrics).ServeHTTP(w, r)
		return
	}
	// Go's regular expressions take linear time, whatever the pattern.
	filter, err := regexp.Compile(q.Get("filter"))
	if err != nil {
		http.Error(w, "filter: "+err.Error(), http.StatusBadRequest)
		return
	}
	var b strings.Builder
	telemetry.WriteStats(&b, s.src.Metrics, q.Has("usedonly"))
	for line := range strings.Lines(b.String()) {
		if name, _, _ := strings.Cut(line, ": "); filter.MatchString(name) {
			fmt.Fprint(w, line)
		}
	}
}

func (s *Server) configDump(w http.ResponseWriter, _ *http.Request) {
	writeProto(w, s.src.ConfigDump())
}

func writeProto(w http.ResponseWriter, m proto.Message) {
	b, err := protojson.MarshalOptions{Multiline: true, Indent: " ", UseProtoNames: true}.Marshal(m)
	if err != nil {
		http.Error(w, "the page cannot be written as JSON: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the client may have gone
}

func (s *Server) clusters(w http.ResponseWriter, r *http.Request) {
	all := s.src.Clusters()
	if r.URL.Query().Get("format") == "json" {
		out := &adminv3.Clusters{}
		for _, c := range all {
			out.ClusterStatuses = append(out.ClusterStatuses, clusterStatus(c))
		}
		writeProto(w, out)
		return
	}
	writeClusters(w, all)
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
