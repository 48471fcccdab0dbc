package ads

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// Target is where the control plane is: the static cluster of the bootstrap.
type Target struct {
	// Addresses are tried in turn: "host:port", or "unix:" and a path.
	Addresses []string
	Authority string
	// TLS gives the configuration of each new connection; nil for plaintext.
	TLS interface {
		ClientConfig(host string) (*tls.Config, error)
	}
	ConnectTimeout time.Duration
	// KeepAlive and KeepAliveTimeout are HTTP/2 PINGs; 30 s and 10 s.
	KeepAlive, KeepAliveTimeout time.Duration
}

// Dial returns a connection that is made when it is first needed, and again when it breaks.
func Dial(t Target) (*grpc.ClientConn, error) {
	if len(t.Addresses) == 0 {
		return nil, errors.New("the control plane's cluster has no endpoints")
	}
	if t.KeepAlive <= 0 {
		t.KeepAlive = 30 * time.Second
	}
	if t.KeepAliveTimeout <= 0 {
		t.KeepAliveTimeout = 10 * time.Second
	}
	if t.ConnectTimeout <= 0 {
		t.ConnectTimeout = 5 * time.Second
	}
	r := manual.NewBuilderWithScheme("sallyport")
	var state resolver.State
	for _, a := range t.Addresses {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a}}})
	}
	r.InitialState(state)
	creds := insecure.NewCredentials()
	if t.TLS != nil {
		creds = &handshaker{source: t.TLS}
	}
	if t.Authority == "" {
		t.Authority = strings.TrimPrefix(t.Addresses[0], "unix:")
		if strings.HasPrefix(t.Addresses[0], "unix:") {
			t.Authority = "localhost"
		}
	}
	return grpc.NewClient("sallyport:///control-plane",
		grpc.WithResolvers(r),
		grpc.WithTransportCredentials(creds),
		grpc.WithAuthority(t.Authority),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			network := "tcp"
			if path, ok := strings.CutPrefix(addr, "unix:"); ok {
				network, addr = "unix", path
			}
			return (&net.Dialer{Timeout: t.ConnectTimeout}).DialContext(ctx, network, addr)
		}),
		// The wait between streams is the client's (Options.Backoff…): a
		// second one, of the connection, would only add to it.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: t.ConnectTimeout,
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: t.KeepAlive, Timeout: t.KeepAliveTimeout, PermitWithoutStream: false}))
}

// handshaker makes TLS with the secrets of the moment at which it is needed:
// a renewed certificate is used at the next connection.
type handshaker struct {
	source interface {
		ClientConfig(host string) (*tls.Config, error)
	}
}

func (h *handshaker) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	host, _, err := net.SplitHostPort(authority)
	if err != nil {
		host = authority
	}
	cfg, err := h.source.ClientConfig(host)
	if err != nil {
		return nil, nil, err
	}
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2"}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, raw)
}

func (h *handshaker) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("a client has no server's handshake")
}

func (h *handshaker) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (h *handshaker) Clone() credentials.TransportCredentials { return &handshaker{source: h.source} }

func (h *handshaker) OverrideServerName(string) error { return nil }
