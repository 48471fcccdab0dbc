package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

// plain is a codec for messages that are bytes: what is measured is the proxy, not protobuf.
type plain struct{}

func (plain) Name() string { return "plain" }

func (plain) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("a message of type %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

func (plain) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("a message of type %T", v)
	}
	*b = data.Materialize()
	return nil
}

const (
	grpcService = "bench.Echo"
	// grpcMessage is the size of each message.
	grpcMessage = 1 << 10
	// grpcRun is how many messages a server sends on one stream.
	grpcRun = 1000
)

var (
	serverStream = grpc.StreamDesc{StreamName: "Server", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		var in []byte
		if err := s.RecvMsg(&in); err != nil {
			return err
		}
		for range grpcRun {
			if err := s.SendMsg(&in); err != nil {
				return err
			}
		}
		return nil
	}}
	bidiStream = grpc.StreamDesc{StreamName: "Bidi", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		for {
			var in []byte
			if err := s.RecvMsg(&in); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if err := s.SendMsg(&in); err != nil {
				return err
			}
		}
	}}
	unary = grpc.MethodDesc{MethodName: "Unary", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var in []byte
		if err := decode(&in); err != nil {
			return nil, err
		}
		return &in, nil
	}}
)

func grpcBackend(_ Spec, ready func(string)) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(plain{}), grpc.MaxConcurrentStreams(1000), grpc.InitialWindowSize(1<<20), grpc.InitialConnWindowSize(1<<24))
	s.RegisterService(&grpc.ServiceDesc{ServiceName: grpcService, HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{unary},
		Streams: []grpc.StreamDesc{serverStream, bidiStream}}, struct{}{})
	ready(l.Addr().String())
	return s.Serve(l)
}

// caller makes a call, or goes on with one, over and over; it returns how many messages it got.
type caller func(ctx context.Context, c *grpc.ClientConn) (int64, error)

// calls runs Streams callers on each of Connections connections.
func calls(s Spec, call caller) (Result, error) {
	// The end of the time cuts what is under way; that is no failure. It is no deadline of the context: that would be
	// sent along, as grpc-timeout, and a proxy would watch over it.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	time.AfterFunc(s.duration(), cancel)
	var r Result
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range max(s.Connections, 1) {
		c, err := grpc.NewClient("passthrough:///"+s.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("bench.local"),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(plain{})), grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<24))
		if err != nil {
			return r, err
		}
		defer c.Close()
		for range max(s.Streams, 1) {
			wg.Go(func() {
				var done int64
				for ctx.Err() == nil {
					n, err := call(ctx, c)
					done += n
					if err != nil && ctx.Err() == nil {
						mu.Lock()
						r.fail(err.Error())
						mu.Unlock()
						time.Sleep(time.Millisecond)
					}
				}
				mu.Lock()
				r.Done += done
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	return r, nil
}

func method(name string) string { return "/" + grpcService + "/" + name }

func echoed(in, out []byte) error {
	if len(in) != len(out) {
		return fmt.Errorf("%d bytes came back of %d", len(in), len(out))
	}
	return nil
}

func grpcUnary(s Spec) (Result, error) {
	out := body(grpcMessage)
	return calls(s, func(ctx context.Context, c *grpc.ClientConn) (int64, error) {
		var in []byte
		if err := c.Invoke(ctx, method(unary.MethodName), &out, &in); err != nil {
			return 0, err
		}
		return 1, echoed(in, out)
	})
}

func grpcServerStream(s Spec) (Result, error) {
	out := body(grpcMessage)
	return calls(s, func(ctx context.Context, c *grpc.ClientConn) (n int64, err error) {
		stream, err := c.NewStream(ctx, &serverStream, method(serverStream.StreamName))
		if err != nil {
			return 0, err
		}
		if err := errors.Join(stream.SendMsg(&out), stream.CloseSend()); err != nil {
			return 0, err
		}
		for {
			var in []byte
			err := stream.RecvMsg(&in)
			if errors.Is(err, io.EOF) && n == grpcRun {
				return n, nil
			}
			if err == nil {
				err = echoed(in, out)
			}
			if err != nil {
				return n, err
			}
			n++
		}
	})
}

func grpcBidi(s Spec) (Result, error) {
	out := body(grpcMessage)
	return calls(s, func(ctx context.Context, c *grpc.ClientConn) (n int64, err error) {
		stream, err := c.NewStream(ctx, &bidiStream, method(bidiStream.StreamName))
		if err != nil {
			return 0, err
		}
		for {
			if err := stream.SendMsg(&out); err != nil {
				return n, err
			}
			var in []byte
			if err := stream.RecvMsg(&in); err != nil {
				return n, err
			}
			if err := echoed(in, out); err != nil {
				return n, err
			}
			n++
		}
	})
}
