// Package probe is the sidecar's health port: whether the sidecar itself is
// ready, and the application's probes made in the kubelet's place. Under strict
// mTLS the kubelet, which has no SVID, cannot reach the application; so the
// injector points its probes here (/app-health/CONTAINER/{livez,readyz,startupz,…}) and
// hands the originals to the sidecar in the environment, in Kubernetes' own
// format. The requests come from the network: nothing of one is passed on but
// its User-Agent, and what is probed is fixed at the start.
//
// Package sidecar calls it; each probe runs on a goroutine of net/http's server.
package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/panics"
)

// Environment is the variable that holds the application's probes.
const Environment = "SALLYPORT_APP_PROBES"

// Prefix is the path under which they are made.
const Prefix = "/app-health/"

const (
	maxText     = 256 << 10
	maxProbes   = 1000
	maxAtOnce   = 64       // probes under way; more are answered 503
	maxAnswer   = 10 << 10 // of the application's answer that is passed on, as the kubelet reads it
	maxTimeout  = 10 * time.Minute
	maxRedirect = 10
)

// Probe is the part of Kubernetes' core/v1 Probe (and of a LifecycleHandler) that
// says what to ask. Exactly one of the three is set. Ports are numbers: the injector has resolved their names.
type Probe struct {
	HTTP    *HTTPGet   `json:"httpGet,omitempty"`
	TCP     *TCPSocket `json:"tcpSocket,omitempty"`
	GRPC    *GRPC      `json:"grpc,omitempty"`
	Timeout int32      `json:"timeoutSeconds,omitempty"` // seconds; 0 is 1, as in Kubernetes
}

// HTTPGet succeeds with a status from 200 to 399.
type HTTPGet struct {
	Path    string   `json:"path,omitempty"`
	Port    int32    `json:"port"`
	Host    string   `json:"host,omitempty"`   // "": the address at which this probe came in, the pod's
	Scheme  string   `json:"scheme,omitempty"` // HTTP or HTTPS; the certificate is not verified, as the kubelet does not
	Headers []Header `json:"httpHeaders,omitempty"`
}

// Header is a field of the request. Host sets the authority.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// TCPSocket succeeds when a connection is accepted.
type TCPSocket struct {
	Port int32  `json:"port"`
	Host string `json:"host,omitempty"`
}

// GRPC asks the standard health service, without TLS.
type GRPC struct {
	Port    int32  `json:"port"`
	Service string `json:"service,omitempty"`
}

// Parse reads probes by their path, as in {"/app-health/app/readyz": {"httpGet": {"port": 8080}}}.
// Empty text is no probes.
func Parse(text string) (map[string]Probe, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxText {
		return nil, fmt.Errorf("%s: %d bytes, at most %d are taken", Environment, len(text), maxText)
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	var probes map[string]Probe
	if err := d.Decode(&probes); err != nil {
		return nil, fmt.Errorf("%s: %w", Environment, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: something follows the probes", Environment)
	}
	if len(probes) > maxProbes {
		return nil, fmt.Errorf("%s: %d probes, at most %d are taken", Environment, len(probes), maxProbes)
	}
	for path, p := range probes {
		if !strings.HasPrefix(path, Prefix) || len(path) > 512 {
			return nil, fmt.Errorf("%s: path %.80q: must begin with %s", Environment, path, Prefix)
		}
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", Environment, path, err)
		}
	}
	return probes, nil
}

func (p *Probe) check() error {
	kinds, port := 0, int32(0)
	if h := p.HTTP; h != nil {
		kinds, port = kinds+1, h.Port
		if h.Scheme != "" && h.Scheme != "HTTP" && h.Scheme != "HTTPS" {
			return fmt.Errorf("httpGet.scheme %q: must be HTTP or HTTPS", h.Scheme)
		}
		if _, err := http.NewRequest(http.MethodGet, h.url("127.0.0.1"), nil); err != nil {
			return fmt.Errorf("httpGet.path: %w", err)
		}
	}
	if p.TCP != nil {
		kinds, port = kinds+1, p.TCP.Port
	}
	if p.GRPC != nil {
		kinds, port = kinds+1, p.GRPC.Port
	}
	switch {
	case kinds != 1:
		return errors.New("exactly one of httpGet, tcpSocket and grpc is required")
	case port < 1 || port > 65535:
		return fmt.Errorf("port %d: must be from 1 to 65535", port)
	case p.Timeout < 0:
		return fmt.Errorf("timeoutSeconds %d: must not be negative", p.Timeout)
	}
	return nil
}

func (p *Probe) timeout() time.Duration {
	return min(max(time.Duration(p.Timeout)*time.Second, time.Second), maxTimeout)
}

func (h *HTTPGet) url(pod string) string {
	scheme := "http"
	if h.Scheme == "HTTPS" {
		scheme = "https"
	}
	path := h.Path
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return scheme + "://" + net.JoinHostPort(or(h.Host, pod), strconv.Itoa(int(h.Port))) + path
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// Options of Listen.
type Options struct {
	Address string           // IP:PORT
	Probes  map[string]Probe // of the application
	// Unready says why the sidecar is not ready for traffic; "": it is.
	Unready func() string
	Held    bool // the process that started this one holds the address for it
	Log     *slog.Logger
}

// Server serves the health port until Close.
type Server struct {
	o       Options
	listen  net.Listener
	server  *http.Server
	client  *http.Client
	slots   chan struct{}
	stopped chan struct{}
}

// Listen starts a server.
func Listen(o Options) (*Server, error) {
	var open net.ListenConfig
	if o.Held {
		open.Control = conn.Share
	}
	l, err := open.Listen(context.Background(), "tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("--health-address %s: %w", o.Address, err)
	}
	s := &Server{o: o, listen: l, slots: make(chan struct{}, maxAtOnce), stopped: make(chan struct{})}
	s.client = &http.Client{
		// A connection of its own for each, as the kubelet makes them: one that is kept would tell of an
		// application that no longer accepts that it does.
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
		CheckRedirect: sameHost,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/ready", s.ready)
	mux.HandleFunc("GET /healthz/live", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, "LIVE\n") })
	mux.HandleFunc("GET "+Prefix, s.probe)
	s.server = &http.Server{Handler: guarded(mux, o.Log), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, IdleTimeout: 30 * time.Second,
		WriteTimeout: maxTimeout + 5*time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug)}
	go func() {
		defer close(s.stopped)
		if err := s.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			o.Log.Error("health port ended", "address", o.Address, "error", err)
		}
	}()
	return s, nil
}

// guarded keeps a panic within its request. net/http would too, and say so in a debug line alone.
func guarded(h http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				reply(w, http.StatusInternalServerError, panics.Error(log, "answering a probe", p).Error()+"\n")
			}
		}()
		h.ServeHTTP(w, r)
	})
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listen.Addr() }

// Close ends the server and what it is doing.
func (s *Server) Close() error {
	err := s.server.Close()
	<-s.stopped
	return err
}

func reply(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if why := s.o.Unready(); why != "" {
		reply(w, http.StatusServiceUnavailable, why+"\n")
		return
	}
	reply(w, http.StatusOK, "LIVE\n")
}

func (s *Server) probe(w http.ResponseWriter, r *http.Request) {
	p, ok := s.o.Probes[r.URL.Path]
	if !ok {
		reply(w, http.StatusNotFound, "no such probe\n")
		return
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		reply(w, http.StatusServiceUnavailable, "too many probes at once\n")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), p.timeout())
	defer cancel()
	pod := "127.0.0.1"
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		pod = a.AddrPort().Addr().Unmap().String()
	}
	var err error
	switch {
	case p.HTTP != nil:
		var status int
		var body []byte
		if status, body, err = s.get(ctx, p.HTTP, pod, r.UserAgent()); err == nil {
			reply(w, status, string(body))
			return
		}
	case p.TCP != nil:
		err = connect(ctx, or(p.TCP.Host, pod), p.TCP.Port)
	default:
		err = serving(ctx, pod, p.GRPC)
	}
	if err != nil {
		reply(w, http.StatusServiceUnavailable, err.Error()+"\n")
		return
	}
	reply(w, http.StatusOK, "ok\n")
}

// errElsewhere ends redirects to another host, which the kubelet does not follow either, and takes for a success.
var errElsewhere = errors.New("redirected to another host")

func sameHost(r *http.Request, via []*http.Request) error {
	if r.URL.Hostname() != via[0].URL.Hostname() {
		return errElsewhere
	}
	if len(via) >= maxRedirect {
		return fmt.Errorf("stopped after %d redirects", maxRedirect)
	}
	return nil
}

func (s *Server) get(ctx context.Context, h *HTTPGet, pod, agent string) (int, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url(pod), nil)
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("User-Agent", agent)
	r.Header.Set("Accept", "*/*")
	for _, f := range h.Headers {
		if strings.EqualFold(f.Name, "Host") {
			r.Host = f.Value
			continue
		}
		r.Header.Add(f.Name, f.Value)
	}
	a, err := s.client.Do(r)
	if errors.Is(err, errElsewhere) {
		return http.StatusOK, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	defer a.Body.Close()
	body, err := io.ReadAll(io.LimitReader(a.Body, maxAnswer))
	if err != nil {
		return 0, nil, err
	}
	// What is not a final status would be misread on the way back: a 3xx without a Location is a success to the kubelet.
	if a.StatusCode >= 300 && a.StatusCode < 400 {
		return http.StatusOK, body, nil
	}
	return a.StatusCode, bytes.ToValidUTF8(body, nil), nil
}

func connect(ctx context.Context, host string, port int32) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	return c.Close()
}

func serving(ctx context.Context, pod string, p *GRPC) error {
	c, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(pod, strconv.Itoa(int(p.Port))),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(), grpc.WithUserAgent("kube-probe"))
	if err != nil {
		return err
	}
	defer c.Close()
	a, err := grpc_health_v1.NewHealthClient(c).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: p.Service})
	if err != nil {
		return err
	}
	if a.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("the application says %v", a.GetStatus())
	}
	return nil
}
