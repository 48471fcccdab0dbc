// Package workload hands the identities of a sidecar to processes on its host, over one Unix socket, in two standard
// ways: the SPIFFE Workload API (X.509-SVIDs and bundles) and Envoy's secret discovery service. It owns the socket and
// the streams on it; who may have what is decided by an Attest, from the kernel's word on the caller. Private keys
// leave this process here and nowhere else, to a process that was attested, as both standards say.
//
// Not offered: JWT-SVIDs and WIT-SVIDs; those methods answer Unimplemented. Runs on gRPC's goroutines.
package workload

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"reflect"
	"time"

	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/certs/peercred"
	"sallyport/certs/source"
)

const (
	maxConns   = 512
	maxStreams = 64 // of a connection
	maxRequest = 64 << 10
)

// Attest returns the sources whose identities a caller may have, the default one first; none refuses it. It is called
// at the beginning of every stream.
type Attest func(peercred.Info) []source.Source

// Users attests callers by user id: every one of uids, and the user that this process runs as, has src.
func Users(src source.Source, uids ...uint32) Attest {
	self := uint32(os.Geteuid())
	return func(who peercred.Info) []source.Source {
		if who.UID == self {
			return []source.Source{src}
		}
		for _, uid := range uids {
			if who.UID == uid {
				return []source.Source{src}
			}
		}
		return nil
	}
}

// Options of New; the zero value is good.
type Options struct {
	Logger *slog.Logger // default slog.Default
}

// Server serves both services. Safe for concurrent use.
type Server struct {
	attest Attest
	log    *slog.Logger
}

// New makes a server.
func New(attest Attest, o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Server{attest: attest, log: o.Logger}
}

// Listen makes the socket, mode 0600 or 0660; hand it to Serve.
func Listen(path string, mode os.FileMode) (net.Listener, error) {
	if m := mode.Perm(); m != 0o600 && m != 0o660 {
		return nil, fmt.Errorf("workload API socket %s: mode %#o, must be 0600 or 0660", path, m)
	}
	l, err := peercred.Listen(path, mode, maxConns)
	if err != nil {
		return nil, fmt.Errorf("workload API: %w", err)
	}
	return l, nil
}

// Serve serves on l until ctx ends, and closes it. Open streams end then: their clients connect again.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(
		grpc.Creds(peercred.Credentials()),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(10*time.Second),
	)
	workloadpb.RegisterSpiffeWorkloadAPIServer(g, &api{Server: s})
	secretv3.RegisterSecretDiscoveryServiceServer(g, &sds{Server: s})
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	if err := g.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("workload API: %w", err)
	}
	return nil
}

// sources attests the caller of ctx.
func (s *Server) sources(ctx context.Context) ([]source.Source, peercred.Info, error) {
	who, ok := peercred.FromContext(ctx)
	if !ok {
		return nil, who, status.Error(codes.Internal, "the transport does not tell who calls")
	}
	list := s.attest(who)
	if len(list) == 0 {
		s.log.Warn("workload refused", "peer", who.String())
		// SPIFFE Workload API §4.4: PermissionDenied where the caller has no identity.
		return nil, who, status.Errorf(codes.PermissionDenied, "no identity issued: uid %d has none on this socket", who.UID)
	}
	return list, who, nil
}

// watch is what a stream waits on: the next change of any of its sources.
type watch []reflect.SelectCase

// watchAll is taken before the sources are read, so that no change falls between the reading and the waiting.
func watchAll(ctx context.Context, sources []source.Source) watch {
	w := watch{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}}
	for _, src := range sources {
		w = append(w, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(src.Updated())})
	}
	return w
}

// wait reports false when the stream's context ended.
func (w watch) wait() bool {
	i, _, _ := reflect.Select(w)
	return i != 0
}
