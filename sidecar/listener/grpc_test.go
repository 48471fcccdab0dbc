package listener

import (
	"io"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"sallyport/sidecar/route"
	"sallyport/sidecar/upstream"
)

// plainBytes is a gRPC codec for messages that are bytes.
type plainBytes struct{}

func (plainBytes) Name() string                  { return "bytes" }
func (plainBytes) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (plainBytes) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

var watch = grpc.StreamDesc{StreamName: "Watch", ServerStreams: true}

// grpcStream is a server of grpc-go that answers with a message each time it is told to.
func grpcStream(t testing.TB, next <-chan struct{}) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodec(plainBytes{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		m := make([]byte, 100)
		for range next {
			if err := s.SendMsg(&m); err != nil {
				return err
			}
		}
		return nil
	}))
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

// TestALongGRPCStream: the frames of a receiver of grpc-go, WINDOW_UPDATE and the PING of its bandwidth estimator, are no
// flood, though each message that it gets brings both, and it sends nothing else.
func TestALongGRPCStream(t *testing.T) {
	next := make(chan struct{})
	e := newEngine(t).to(grpcStream(t, next))
	e.cluster.Protocol = upstream.HTTP2
	e.manager.Routes = route.NewHandle("r", e.table(&route.Forward{IdleTimeout: -1})) // no timeout
	c, err := grpc.NewClient("passthrough:///"+e.serve(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(plainBytes{})))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.NewStream(t.Context(), &watch, "/test.Watch/Watch")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var m []byte
	for i := range 30_000 {
		next <- struct{}{}
		if err := s.RecvMsg(&m); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	close(next)
	if err := s.RecvMsg(&m); err != io.EOF {
		t.Error(err)
	}
}
