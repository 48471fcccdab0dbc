package serve

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/certs"
	"sallyport/xds/build"
)

// Limits on what a client sends.
const (
	maxNames  = 100_000 // in one request
	maxTypes  = 64      // on one stream
	maxDetail = 4 << 10 // of the reason of a NACK that is kept
)

// stream is one xDS stream. What is not said to be otherwise is guarded by the server's lock.
type stream struct {
	key      string
	identity spiffeid.ID // zero: not checked
	since    time.Time
	protocol string
	feed     *feed

	authorized bool
	proxy      build.Proxy // once authorized, immutable
	node       string      // once authorized, immutable; what the proxy calls itself
	problem    string      // why there is no newer configuration
	types      map[string]*typeState
	served     atomic.Bool // something was published
}

// typeState is what is known of a client and a type.
type typeState struct {
	sentVersion, sentNonce string
	ackedVersion           string
	nack                   *Nack
}

// Nack is what a proxy refused.
type Nack struct {
	Version string    `json:"version"`
	Error   string    `json:"error"`
	Time    time.Time `json:"time"`
	Count   int       `json:"count"`
}

// callbacks are called by go-control-plane's server on the goroutine of a stream.
type callbacks struct{ *Server }

func key(protocol string, id int64) string { return protocol + "-" + strconv.FormatInt(id, 10) }

const (
	sotwProtocol  = "sotw"
	deltaProtocol = "delta"
)

func (s *Server) open(ctx context.Context, key, protocol string) error {
	st := &stream{key: key, since: time.Now(), protocol: protocol, feed: newFeed(s.opt.Linger), types: map[string]*typeState{}}
	if s.opt.Identity != nil {
		id, err := s.opt.Identity(ctx)
		if err != nil {
			if _, ok := status.FromError(err); ok {
				return err
			}
			return status.Error(codes.Unauthenticated, err.Error())
		}
		st.identity = id
	}
	s.mu.Lock()
	full := len(s.streams) >= s.opt.MaxStreams
	if !full {
		s.streams[key] = st
	}
	s.mu.Unlock()
	if full {
		return status.Errorf(codes.ResourceExhausted, "this control plane serves %d streams already: ask another", s.opt.MaxStreams)
	}
	s.feeds.mu.Lock()
	s.feeds.list[key] = st.feed
	s.feeds.mu.Unlock()
	return nil
}

func (s *Server) closed(key string) {
	s.mu.Lock()
	st := s.streams[key]
	delete(s.streams, key)
	s.mu.Unlock()
	s.feeds.mu.Lock()
	delete(s.feeds.list, key)
	s.feeds.mu.Unlock()
	if st == nil {
		return
	}
	st.feed.close()
	if st.authorized {
		s.log.Info("proxy gone", "proxy", st.node, "kind", st.proxy.String(), "protocol", st.protocol)
	}
}

// request looks at a request before it is answered. The first one says who asks.
func (s *Server) request(key string, node **corev3.Node, typeURL, nonce string, names int, refused *rpcstatus.Status) error {
	if names > maxNames {
		return status.Errorf(codes.InvalidArgument, "%d resource names in one request; at most %d are allowed", names, maxNames)
	}
	s.mu.Lock()
	st := s.streams[key]
	s.mu.Unlock()
	if st == nil {
		return status.Error(codes.Internal, "the stream is not known")
	}
	if !st.authorized {
		if err := s.authorize(st, *node); err != nil {
			s.metrics.refused.Inc()
			s.log.Warn("proxy refused", "proxy", (*node).GetId(), "spiffe_id", st.identity.String(), "reason", status.Convert(err).Message())
			return err
		}
		s.configure(st)
	}
	// From here on the stream goes by the name that we gave it: two clients may have the same id.
	*node = &corev3.Node{Id: key}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := st.types[typeURL]
	if t == nil {
		if len(st.types) >= maxTypes {
			return status.Errorf(codes.InvalidArgument, "more than %d types on one stream", maxTypes)
		}
		t = &typeState{}
		st.types[typeURL] = t
	}
	switch {
	case refused != nil:
		st.feed.refused(typeURL)
	case nonce == "" && t.sentNonce != "": // it asks for what it was sent on this stream
		st.feed.refused(typeURL)
	case nonce == t.sentNonce:
		st.feed.taken(typeURL)
	}
	switch {
	case nonce == "" || nonce != t.sentNonce: // a new subscription, or about an answer that is no longer the last
	case refused != nil:
		text := refused.GetMessage()
		if len(text) > maxDetail {
			text = text[:maxDetail] + "…"
		}
		if t.nack == nil {
			t.nack = &Nack{}
		}
		t.nack.Version, t.nack.Error, t.nack.Time = t.sentVersion, text, time.Now()
		t.nack.Count++
		s.metrics.nacks.WithLabelValues(shortType(typeURL)).Inc()
		s.log.Error("proxy refused a configuration", "proxy", st.node, "type", shortType(typeURL), "version", t.sentVersion, "reason", text)
	default:
		t.ackedVersion, t.nack = t.sentVersion, nil
	}
	return nil
}

// authorize compares what a proxy says of itself with the identity that its certificate proves.
func (s *Server) authorize(st *stream, node *corev3.Node) error {
	if node == nil {
		return status.Error(codes.InvalidArgument, "the first request of a stream must have a node")
	}
	p, err := build.ParseNode(node)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if s.opt.Identity != nil {
		want, err := p.Identity(s.opt.TrustDomain)
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		if st.identity != want {
			return status.Errorf(codes.PermissionDenied, "%s may not have the configuration of the %s, which is for %s%s", st.identity, p, want, certs.GatewayHint(st.identity, want))
		}
	}
	s.mu.Lock()
	st.proxy, st.node, st.authorized = p, name(node.GetId()), true
	s.mu.Unlock()
	s.log.Info("proxy connected", "proxy", st.node, "kind", p.String(), "spiffe_id", st.identity.String(), "protocol", st.protocol)
	return nil
}

// name bounds what a stranger calls itself.
func name(id string) string {
	if len(id) > 256 {
		id = id[:256]
	}
	return id
}

func (s *Server) sent(key, typeURL, version, nonce string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[key]; st != nil {
		if t := st.types[typeURL]; t != nil {
			t.sentVersion, t.sentNonce = version, nonce
		}
	}
	s.metrics.sent.WithLabelValues(shortType(typeURL)).Inc()
}

func (c *callbacks) OnStreamOpen(ctx context.Context, id int64, _ string) error {
	return c.open(ctx, key(sotwProtocol, id), sotwProtocol)
}

func (c *callbacks) OnStreamClosed(id int64, _ *corev3.Node) { c.closed(key(sotwProtocol, id)) }

func (c *callbacks) OnStreamRequest(id int64, r *discoveryv3.DiscoveryRequest) error {
	return c.request(key(sotwProtocol, id), &r.Node, r.GetTypeUrl(), r.GetResponseNonce(), len(r.GetResourceNames()), r.GetErrorDetail())
}

func (c *callbacks) OnStreamResponse(_ context.Context, id int64, _ *discoveryv3.DiscoveryRequest, r *discoveryv3.DiscoveryResponse) {
	c.sent(key(sotwProtocol, id), r.GetTypeUrl(), r.GetVersionInfo(), r.GetNonce())
}

func (c *callbacks) OnDeltaStreamOpen(ctx context.Context, id int64, _ string) error {
	return c.open(ctx, key(deltaProtocol, id), deltaProtocol)
}

func (c *callbacks) OnDeltaStreamClosed(id int64, _ *corev3.Node) { c.closed(key(deltaProtocol, id)) }

func (c *callbacks) OnStreamDeltaRequest(id int64, r *discoveryv3.DeltaDiscoveryRequest) error {
	names := len(r.GetResourceNamesSubscribe()) + len(r.GetResourceNamesUnsubscribe()) + len(r.GetInitialResourceVersions())
	return c.request(key(deltaProtocol, id), &r.Node, r.GetTypeUrl(), r.GetResponseNonce(), names, r.GetErrorDetail())
}

func (c *callbacks) OnStreamDeltaResponse(id int64, _ *discoveryv3.DeltaDiscoveryRequest, r *discoveryv3.DeltaDiscoveryResponse) {
	c.sent(key(deltaProtocol, id), r.GetTypeUrl(), r.GetSystemVersionInfo(), r.GetNonce())
}

func (c *callbacks) OnFetchRequest(context.Context, *discoveryv3.DiscoveryRequest) error {
	return status.Error(codes.Unimplemented, "fetching is not implemented; use a stream")
}

func (c *callbacks) OnFetchResponse(*discoveryv3.DiscoveryRequest, *discoveryv3.DiscoveryResponse) {}

// shortType is a type URL as people say it.
func shortType(typeURL string) string {
	switch typeURL {
	case build.ClusterType:
		return "CDS"
	case build.EndpointType:
		return "EDS"
	case build.ListenerType:
		return "LDS"
	case build.RouteType:
		return "RDS"
	case build.SecretType:
		return "SDS"
	}
	return "other"
}
