package workload

import (
	"context"
	"crypto/x509"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"sallyport/certs/source"
)

// api is the SPIFFE Workload API, X.509-SVID profile (SPIFFE Workload API §5).
type api struct {
	workloadpb.UnimplementedSpiffeWorkloadAPIServer
	*Server
}

// checkHeader refuses a call without the header that no cross-protocol request forgery can set: SPIFFE Workload
// Endpoint §5.
func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request: workload.spiffe.io must be true")
	}
	return nil
}

// FetchX509SVID streams the caller's SVIDs, with keys, and again at every change.
func (a *api) FetchX509SVID(_ *workloadpb.X509SVIDRequest, stream workloadpb.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	return follow(a.Server, stream.Context(), svidResponse, stream.Send)
}

// FetchX509Bundles streams the trust bundles, and again at every change.
func (a *api) FetchX509Bundles(_ *workloadpb.X509BundlesRequest, stream workloadpb.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	return follow(a.Server, stream.Context(), bundlesResponse, stream.Send)
}

// follow sends what build makes of the caller's sources, now and when it has changed. A source that fails later keeps
// the stream open and silent: the client knows when its SVID ends. The first answer may not be left out, so then it is
// an error, and the client asks again.
func follow[M proto.Message](s *Server, ctx context.Context, build func([]source.Source) (M, error), send func(M) error) error {
	if err := checkHeader(ctx); err != nil {
		return err
	}
	sources, who, err := s.sources(ctx)
	if err != nil {
		return err
	}
	var last proto.Message
	for {
		changes := watchAll(ctx, sources)
		msg, err := build(sources)
		switch {
		case err != nil && last == nil:
			return status.Errorf(codes.Unavailable, "no valid identity at the moment: %v", err)
		case err != nil:
			s.log.Warn("workload not updated", "peer", who.String(), "error", err)
		case last == nil || !proto.Equal(last, msg):
			if err := send(msg); err != nil {
				return err
			}
			last = msg
		}
		if !changes.wait() {
			return ctx.Err()
		}
	}
}

func svidResponse(sources []source.Source) (*workloadpb.X509SVIDResponse, error) {
	resp := &workloadpb.X509SVIDResponse{FederatedBundles: map[string][]byte{}}
	for _, src := range sources {
		svid, err := src.GetX509SVID()
		if err != nil {
			return nil, err
		}
		own, err := src.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		if err != nil {
			return nil, err
		}
		chain, key, err := svid.MarshalRaw()
		if err != nil {
			return nil, err
		}
		resp.Svids = append(resp.Svids, &workloadpb.X509SVID{
			SpiffeId: svid.ID.String(), X509Svid: chain, X509SvidKey: key, Bundle: concat(own),
		})
		for _, b := range src.Bundles() {
			if b.TrustDomain() != svid.ID.TrustDomain() {
				resp.FederatedBundles[b.TrustDomain().IDString()] = concat(b)
			}
		}
	}
	return resp, nil
}

func bundlesResponse(sources []source.Source) (*workloadpb.X509BundlesResponse, error) {
	resp := &workloadpb.X509BundlesResponse{Bundles: map[string][]byte{}}
	for _, src := range sources {
		for _, b := range src.Bundles() {
			resp.Bundles[b.TrustDomain().IDString()] = concat(b)
		}
	}
	return resp, nil
}

// concat is a bundle as the protocol has it: DER certificates one after the other. Sorted, so that equal bundles are
// equal bytes.
func concat(b *x509bundle.Bundle) []byte {
	var out []byte
	for _, c := range sorted(b) {
		out = append(out, c.Raw...)
	}
	return out
}

func sorted(b *x509bundle.Bundle) []*x509.Certificate {
	list := b.X509Authorities()
	slices.SortFunc(list, func(x, y *x509.Certificate) int { return slices.Compare(x.Raw, y.Raw) })
	return list
}
