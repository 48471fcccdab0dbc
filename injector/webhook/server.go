package webhook

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"sallyport/certs/apiserver"
)

// Defaults of Options.
const (
	DefaultListen     = ":15017"
	DefaultStatus     = "127.0.0.1:15014"
	DefaultSecret     = "sallyport-injector-authority"
	DefaultConfig     = "sallyport-injector"
	DefaultService    = "sallyport-injector"
	DefaultCATTL      = 90 * 24 * time.Hour
	DefaultLeafTTL    = 24 * time.Hour
	DefaultBundleName = "sallyport-trust-bundle"

	// Path is where reviews are POSTed.
	Path = "/inject"
)

const (
	maxConns      = 512       // of each listener
	maxPeerConns  = 256       // of them, of one address: an API server that has none begins a burst with one for each review
	maxStreams    = 100       // of a connection: what Go's clients take to be allowed until they are told
	maxUnread     = 256 << 10 // bytes of a connection that no review has room for yet
	streamUnread  = 64 << 10  // of them, of one stream: no less than what clients take to be allowed (65,535) until they are told
	maxHeader     = 16 << 10
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second // of a whole request; of a review's body see bodyTimeout
	// idleTimeout is short, as who is idle takes a connection from others. An API server would keep one for 90 s; it is told
	// of the end (GOAWAY), and makes another.
	idleTimeout = 30 * time.Second
	stopTimeout = 10 * time.Second
	settleTime  = time.Minute
	bundleEvery = 30 * time.Second
	bundleRetry = time.Second
)

// Options of New. Client, Namespace and Inject are needed.
type Options struct {
	Client    *apiserver.Client
	Namespace string // of the secret and the service

	Listen       string // HTTPS, for the API server; default DefaultListen
	StatusListen string // HTTP: /healthz, /ready, /metrics; default DefaultStatus, "-" for none
	Secret       string // name; default DefaultSecret
	Config       string // name of the MutatingWebhookConfiguration; default DefaultConfig
	Service      string // name of the service by which the API server calls; default DefaultService

	CATTL   time.Duration // default DefaultCATTL
	LeafTTL time.Duration // default DefaultLeafTTL
	// DrainTime is for how long the server goes on, not ready, after it was told to end: the service's endpoints learn of
	// it later than the process does.
	DrainTime time.Duration

	Inject Inject
	// Allow lets a pod that cannot be injected in as it is, with a warning, rather than refusing it.
	Allow bool
	// Ready, if not nil, is asked too before the injector calls itself ready.
	Ready  func() error
	Logger *slog.Logger // default slog.Default
}

// Server is the webhook.
type Server struct {
	opt     Options
	keeper  *keeper
	metrics *metrics
	review  net.Listener
	status  net.Listener
	state   atomic.Pointer[error] // why it is not ready
	stop    atomic.Bool
}

var errStarting = errors.New("no look at the API server yet")

// New checks the options and binds the addresses.
func New(o Options) (*Server, error) {
	o.Listen, o.StatusListen = cmp.Or(o.Listen, DefaultListen), cmp.Or(o.StatusListen, DefaultStatus)
	o.Secret, o.Config, o.Service = cmp.Or(o.Secret, DefaultSecret), cmp.Or(o.Config, DefaultConfig), cmp.Or(o.Service, DefaultService)
	o.CATTL, o.LeafTTL = cmp.Or(o.CATTL, DefaultCATTL), cmp.Or(o.LeafTTL, DefaultLeafTTL)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.LeafTTL < time.Second || o.CATTL < 6*o.LeafTTL {
		return nil, fmt.Errorf("injector: certificates of %v by an authority of %v: at least a second, and the authority six times as long", o.LeafTTL, o.CATTL)
	}
	if o.DrainTime < 0 {
		return nil, fmt.Errorf("injector: drain time %v: must not be negative", o.DrainTime)
	}
	s := &Server{opt: o, metrics: newMetrics()}
	s.state.Store(&errStarting)
	host := o.Service + "." + o.Namespace + ".svc"
	s.keeper = &keeper{
		api:    o.Client,
		config: "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/" + o.Config,
		secret: "/api/v1/namespaces/" + o.Namespace + "/secrets/" + o.Secret,
		names:  []string{host, host + ".cluster.local", o.Service + "." + o.Namespace},
		lives:  lives{ca: o.CATTL, leaf: o.LeafTTL, settle: min(settleTime, o.LeafTTL/4)},
		now:    time.Now, log: o.Logger, metrics: s.metrics,
	}
	var err error
	if s.review, err = net.Listen("tcp", o.Listen); err != nil {
		return nil, fmt.Errorf("injector: %w", err)
	}
	if o.StatusListen != "-" {
		if s.status, err = net.Listen("tcp", o.StatusListen); err != nil {
			s.review.Close()
			return nil, fmt.Errorf("injector: status address: %w", err)
		}
	}
	return s, nil
}

// Addr is where reviews are taken.
func (s *Server) Addr() net.Addr { return s.review.Addr() }

// StatusAddr is where the status is shown, nil for nowhere.
func (s *Server) StatusAddr() net.Addr {
	if s.status == nil {
		return nil
	}
	return s.status.Addr()
}

// Run serves until ctx ends; it then finishes the reviews it has.
func (s *Server) Run(ctx context.Context) error {
	quiet := slog.NewLogLogger(s.opt.Logger.Handler(), slog.LevelDebug)
	quiet.SetPrefix("https: ") // strangers' handshakes are no event
	mux := http.NewServeMux()
	mux.Handle(Path, &reviewer{inject: s.opt.Inject, allow: s.opt.Allow, log: s.opt.Logger, metrics: s.metrics, room: newRoom()})
	reviews, callers := bounded(mux, s.review, quiet)
	reviews.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.keeper.certificate}
	reviews.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: maxUnread, MaxReceiveBufferPerStream: streamUnread,
	}
	status, watchers := bounded(s.statusHandler(), s.status, quiet)
	// The keeper goes on while the last reviews are answered.
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.keeper.run(keeping, s.ready); return nil })
	g.Go(func() error { return ended(reviews.ServeTLS(callers, "", "")) })
	if s.status != nil {
		g.Go(func() error { return ended(status.Serve(watchers)) })
	}
	g.Go(func() error {
		<-ctx.Done()
		defer stopKeeping()
		s.stop.Store(true)
		if s.opt.DrainTime > 0 {
			time.Sleep(s.opt.DrainTime)
		}
		limit, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		err := reviews.Shutdown(limit)
		return errors.Join(err, status.Shutdown(limit))
	})
	return g.Wait()
}

// bounded returns a server whose connections cannot be used up, nor kept for long, by those who have nothing to ask.
func bounded(h http.Handler, l net.Listener, quiet *log.Logger) (*http.Server, *peers) {
	s := &http.Server{
		Handler: h, ErrorLog: quiet, MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: 2 * readTimeout, IdleTimeout: idleTimeout,
	}
	p := newPeers(l, maxConns, maxPeerConns)
	p.serve(s)
	return s, p
}

func ended(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("injector: %w", err)
}

// ready takes the keeper's view. Once there is a certificate, an API server that is away for a while does not make the
// injector less able to answer, so only the first look counts.
func (s *Server) ready(err error) {
	if s.keeper.current.Load() != nil {
		err = nil
	}
	s.state.Store(&err)
}

func (s *Server) notReady() error {
	if s.stop.Load() {
		return errors.New("ending")
	}
	if err := *s.state.Load(); err != nil {
		return err
	}
	if s.opt.Ready != nil {
		return s.opt.Ready()
	}
	return nil
}

func (s *Server) statusHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics.handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.notReady(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ready\n")
	})
	return mux
}
