package workload

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/certs/peercred"
	"sallyport/certs/source"
)

const (
	secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	wildcard   = "*"
	maxNames   = 256 // that one stream may subscribe to
)

// sds is envoy.service.secret.v3.SecretDiscoveryService: state-of-the-world, delta and unary.
type sds struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	*Server
}

// FetchSecrets answers once.
func (s *sds) FetchSecrets(ctx context.Context, req *discoveryv3.DiscoveryRequest) (*discoveryv3.DiscoveryResponse, error) {
	sources, who, err := s.sources(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkRequest(req.GetTypeUrl(), len(req.GetResourceNames())); err != nil {
		return nil, err
	}
	chosen, err := s.choose(sources, who, req.GetResourceNames())
	if err != nil {
		return nil, err
	}
	return sotwResponse(chosen, "")
}

func checkRequest(typeURL string, names int) error {
	if typeURL != "" && typeURL != secretType {
		return grpcstatus.Errorf(codes.InvalidArgument, "type_url: %q is not served here, only %s", typeURL, secretType)
	}
	if names > maxNames {
		return grpcstatus.Errorf(codes.InvalidArgument, "resource_names: %d of them, at most %d", names, maxNames)
	}
	return nil
}

// choose picks the named secrets, all if no name is given. A name that the caller may not have, or that does not exist,
// which are the same to it, is an error, as Envoy would otherwise wait in silence.
func (s *sds) choose(sources []source.Source, who peercred.Info, names []string) (secrets, error) {
	all, failed := collect(sources)
	if failed != nil {
		s.log.Warn("secret not available", "peer", who.String(), "error", failed)
	}
	if len(names) == 0 {
		return all, nil
	}
	chosen := secrets{}
	for _, name := range names {
		v, ok := all[name]
		if !ok {
			if failed != nil {
				return nil, grpcstatus.Errorf(codes.Unavailable, "secret %q: %v", name, failed)
			}
			return nil, grpcstatus.Errorf(codes.InvalidArgument, "secret %q is not available to this workload: there are %q", name,
				slices.Sorted(maps.Keys(all)))
		}
		chosen[name] = v
	}
	return chosen, nil
}

func sotwResponse(chosen secrets, nonce string) (*discoveryv3.DiscoveryResponse, error) {
	resp := &discoveryv3.DiscoveryResponse{VersionInfo: chosen.version(), TypeUrl: secretType, Nonce: nonce}
	for _, name := range slices.Sorted(maps.Keys(chosen)) {
		packed, err := anypb.New(chosen[name].secret)
		if err != nil {
			return nil, err
		}
		resp.Resources = append(resp.Resources, packed)
	}
	return resp, nil
}

// receive reads a stream on a goroutine of its own, one request ahead at most: a client that floods is not read.
func receive[R any](ctx context.Context, recv func() (R, error)) (<-chan R, <-chan error) {
	reqs, ended := make(chan R), make(chan error, 1)
	go func() {
		for {
			req, err := recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case reqs <- req:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()
	return reqs, ended
}

func streamEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// changes turns the sources' next change into something that select can wait on. It ends with ctx.
func changes(ctx context.Context, sources []source.Source) <-chan struct{} {
	w := watchAll(ctx, sources)
	ch := make(chan struct{})
	go func() {
		if w.wait() {
			close(ch)
		}
	}()
	return ch
}

func (s *Server) nack(who peercred.Info, detail *status.Status) {
	if detail != nil {
		s.log.Warn("workload refused a secret", "peer", who.String(), "reason", detail.GetMessage())
	}
}

// StreamSecrets is the state-of-the-world protocol: a request is a new subscription, or an ACK or NACK of an answer.
func (s *sds) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	sources, who, err := s.sources(ctx)
	if err != nil {
		return err
	}
	reqs, ended := receive(ctx, stream.Recv)
	changed := changes(ctx, sources)
	var names []string
	var nonce int
	var sent string // version
	subscribed := false
	for {
		push := false
		select {
		case err := <-ended:
			return streamEnd(err)
		case <-changed:
			changed = changes(ctx, sources) // before the sources are read below
			push = subscribed
		case req := <-reqs:
			if err := checkRequest(req.GetTypeUrl(), len(req.GetResourceNames())); err != nil {
				return err
			}
			s.nack(who, req.GetErrorDetail())
			if got := req.GetResponseNonce(); subscribed && got != "" && got != strconv.Itoa(nonce) {
				continue // answers an older response: a newer request follows
			}
			want := slices.Clone(req.GetResourceNames())
			slices.Sort(want)
			want = slices.Compact(want)
			if !subscribed || !slices.Equal(want, names) {
				// A new subscription is always answered, even if the version is the same: it waits for it.
				subscribed, names, sent, push = true, want, "", true
			}
		}
		if !push {
			continue
		}
		chosen, err := s.choose(sources, who, names)
		if err != nil && sent == "" {
			return err
		}
		if err != nil || chosen.version() == sent {
			continue // an expired SVID is not taken back: the client has it and sees its end
		}
		resp, err := sotwResponse(chosen, strconv.Itoa(nonce+1))
		if err != nil {
			return err
		}
		nonce++
		if err := stream.Send(resp); err != nil {
			return err
		}
		sent = resp.GetVersionInfo()
	}
}

// DeltaSecrets is the incremental protocol. Names that do not exist are answered as removed, as xDS has it.
func (s *sds) DeltaSecrets(stream secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	sources, who, err := s.sources(ctx)
	if err != nil {
		return err
	}
	reqs, ended := receive(ctx, stream.Recv)
	changed := changes(ctx, sources)
	d := delta{known: map[string]string{}}
	for {
		select {
		case err := <-ended:
			return streamEnd(err)
		case <-changed:
			changed = changes(ctx, sources)
		case req := <-reqs:
			if err := checkRequest(req.GetTypeUrl(), len(req.GetResourceNamesSubscribe())); err != nil {
				return err
			}
			s.nack(who, req.GetErrorDetail())
			if err := d.subscribe(req); err != nil {
				return err
			}
		}
		if !d.started {
			continue
		}
		all, failed := collect(sources)
		if failed != nil {
			s.log.Warn("secret not available", "peer", who.String(), "error", failed)
		}
		resp, err := d.next(all, failed != nil)
		if err != nil {
			return err
		}
		if resp != nil {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
	}
}

// delta is what one incremental stream has subscribed to and what the client has.
type delta struct {
	started bool
	all     bool              // wildcard
	known   map[string]string // subscribed name → version that the client has; "" none, "-" told that there is none
	nonce   int
}

func (d *delta) subscribe(req *discoveryv3.DeltaDiscoveryRequest) error {
	var initial map[string]string
	if !d.started {
		d.started = true
		d.all = len(req.GetResourceNamesSubscribe()) == 0 // legacy wildcard, xDS "Wildcard subscription"
		initial = req.GetInitialResourceVersions()        // what it has from an earlier stream
	}
	for _, name := range req.GetResourceNamesSubscribe() {
		if name == wildcard {
			d.all = true
		} else {
			d.known[name] = initial[name] // a second subscription is answered again, as xDS asks
		}
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		if name == wildcard {
			d.all = false
		}
		delete(d.known, name)
	}
	if len(d.known) > maxNames {
		return grpcstatus.Errorf(codes.InvalidArgument, "resource_names_subscribe: more than %d names on one stream", maxNames)
	}
	return nil
}

// next returns what the client lacks, nil if nothing. keep says that some source could not be read: then nothing is
// said to be removed.
func (d *delta) next(all secrets, keep bool) (*discoveryv3.DeltaDiscoveryResponse, error) {
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: secretType, SystemVersionInfo: all.version()}
	if d.all {
		for name := range all {
			if _, ok := d.known[name]; !ok {
				d.known[name] = ""
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.known)) {
		v, ok := all[name]
		switch {
		case !ok && !keep && d.known[name] != "-":
			resp.RemovedResources = append(resp.RemovedResources, name)
			d.known[name] = "-"
		case ok && d.known[name] != v.version:
			packed, err := anypb.New(v.secret)
			if err != nil {
				return nil, err
			}
			resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: name, Version: v.version, Resource: packed})
			d.known[name] = v.version
		}
	}
	if len(resp.Resources)+len(resp.RemovedResources) == 0 {
		return nil, nil
	}
	d.nonce++
	resp.Nonce = strconv.Itoa(d.nonce)
	return resp, nil
}
