// Package xds is the control plane: it reads a catalog (Consul, or a file) and a folder of policies, and gives every proxy of
// the mesh its configuration over Envoy's xDS v3. It owns their wiring and the gRPC and status servers; sub-packages do the
// work: catalog, policy (sources), build (a pure function), serve (streams). It keeps no state but the policies in force, for
// its next start: several control planes with the same sources give the same answers. Main calls Run, which uses ordinary
// goroutines.
package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
	"sallyport/xds/serve"
)

// DefaultListen and DefaultStatus are the addresses of a control plane that is told none.
const (
	DefaultListen = "127.0.0.1:15010"
	DefaultStatus = "127.0.0.1:15011"
)

// Limits on connections.
const (
	maxMessage       = 8 << 20
	maxStreamsOfConn = 256
	pingAfter        = 30 * time.Second
	pingTimeout      = 10 * time.Second
	minPing          = 10 * time.Second
	maxAge           = 30 * time.Minute // then a proxy connects anew, and shows a certificate that is valid now
	ageGrace         = time.Minute
	stopTime         = 2 * time.Second
)

// Options of New. One of Consul and Catalog, and Policies, are needed.
type Options struct {
	Listen       string // gRPC; default DefaultListen
	StatusListen string // HTTP: /status, /ready, /metrics; default DefaultStatus, "-" for none

	Consul   *catalog.ConsulOptions // read services from Consul
	Catalog  string                 // or from this file
	Policies string                 // folder of documents
	State    string                 // state folder (0700) that keeps the policies in force over a restart; empty: none
	Poll     time.Duration          // how often files are looked at, besides being told of changes; default 2s

	TrustDomain spiffeid.TrustDomain
	// DefaultDeny refuses calls within the mesh that no intention or AuthorizationPolicy allows. A Mesh document overrules it.
	DefaultDeny bool

	// Credentials of the gRPC server and Identity, the SPIFFE ID that a caller proved by them, go together. Without both,
	// which Insecure must ask for, any caller is given what it asks for: for tests.
	Credentials credentials.TransportCredentials
	Identity    serve.Identity
	Insecure    bool

	ServerOptions []grpc.ServerOption         // more of them: interceptors
	Register      func(grpc.ServiceRegistrar) // more services on the same server
	Listening     func(grpc, status net.Addr) // called once both are bound; status is nil where there is none
	Server        func(*serve.Options)        // changes what the xDS server is made with; nil for nothing
	Logger        *slog.Logger                // default slog.Default()
}

// ControlPlane is a control plane that listens but does not serve yet.
type ControlPlane struct {
	opt      Options
	log      *slog.Logger
	source   catalog.Source
	policies *policy.Folder
	server   *serve.Server
	grpc     net.Listener
	status   net.Listener
}

// New checks the options and binds the addresses.
func New(o Options) (*ControlPlane, error) {
	if o.Listen == "" {
		o.Listen = DefaultListen
	}
	if o.StatusListen == "" {
		o.StatusListen = DefaultStatus
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	c := &ControlPlane{opt: o, log: o.Logger}
	switch {
	case o.Policies == "":
		return nil, errors.New("control plane: no folder of policies given; an empty folder will do")
	case (o.Consul == nil) == (o.Catalog == ""):
		return nil, errors.New("control plane: services come either from Consul or from a catalog file; name exactly one")
	case (o.Credentials == nil || o.Identity == nil) && !o.Insecure:
		return nil, errors.New("control plane: credentials and identity are needed, or proxies cannot be told apart")
	case o.TrustDomain.IsZero():
		return nil, errors.New("control plane: no trust domain given")
	}
	if o.Consul != nil {
		co := *o.Consul
		if co.Logger == nil {
			co.Logger = o.Logger
		}
		source, err := catalog.NewConsul(co)
		if err != nil {
			return nil, err
		}
		c.source = source
	} else {
		// What cannot be read now is more likely a wrong name than a file to come.
		if _, problems := catalog.LoadFile(o.Catalog); len(problems) > 0 {
			return nil, problems
		}
		c.source = catalog.NewFile(o.Catalog, o.Poll, o.Logger)
	}
	c.policies = policy.NewFolder(o.Policies, o.Poll, o.Logger)
	if o.State != "" {
		if err := c.policies.Keep(o.State); err != nil {
			return nil, err
		}
	}
	if err := c.policies.Open(); err != nil {
		return nil, err
	}
	so := serve.Options{TrustDomain: o.TrustDomain, DefaultDeny: o.DefaultDeny, Identity: o.Identity, Logger: o.Logger}
	if o.Server != nil {
		o.Server(&so)
	}
	c.server = serve.New(so)
	var err error
	if c.grpc, err = net.Listen("tcp", o.Listen); err != nil {
		return nil, fmt.Errorf("control plane: cannot listen for proxies: %w", err)
	}
	if o.StatusListen != "-" {
		if c.status, err = net.Listen("tcp", o.StatusListen); err != nil {
			c.grpc.Close()
			return nil, fmt.Errorf("control plane: cannot listen for status requests: %w", err)
		}
	}
	return c, nil
}

// Addr is where proxies connect to.
func (c *ControlPlane) Addr() net.Addr { return c.grpc.Addr() }

// StatusAddr is where the status is, nil for none.
func (c *ControlPlane) StatusAddr() net.Addr {
	if c.status == nil {
		return nil
	}
	return c.status.Addr()
}

// Run serves until ctx ends.
func (c *ControlPlane) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	s := grpc.NewServer(c.serverOptions()...)
	c.server.Register(ctx, s)
	if c.opt.Register != nil {
		c.opt.Register(s)
	}
	g.Go(func() error { c.server.Run(ctx); return nil })
	g.Go(func() error { return c.source.Run(ctx, c.server.SetCatalog) })
	g.Go(func() error { return c.policies.Run(ctx, c.server.SetPolicy) })
	g.Go(func() error { return s.Serve(c.grpc) })
	g.Go(func() error {
		<-ctx.Done()
		stop(s)
		return nil
	})
	if c.status != nil {
		h := &http.Server{Handler: c.server.Handler(c.source, c.policies), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
			WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
		g.Go(func() error {
			if err := h.Serve(c.status); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			return h.Close()
		})
	}
	if c.opt.Listening != nil {
		c.opt.Listening(c.Addr(), c.StatusAddr())
	}
	return g.Wait()
}

// stop lets streams end, which they do with the context, but not for long.
func stop(s *grpc.Server) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.GracefulStop()
	}()
	t := time.NewTimer(stopTime)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		s.Stop()
	}
}

func (c *ControlPlane) serverOptions() []grpc.ServerOption {
	o := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreamsOfConn),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout, MaxConnectionAge: maxAge, MaxConnectionAgeGrace: ageGrace}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
	}
	if c.opt.Credentials != nil {
		o = append(o, grpc.Creds(c.opt.Credentials))
	}
	return append(o, c.opt.ServerOptions...)
}
