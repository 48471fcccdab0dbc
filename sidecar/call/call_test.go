package call

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream/chain"
	"sallyport/sidecar/stream/streamtest"
	"sallyport/sidecar/upstream"
)

var (
	_ chain.Work = (*Call)(nil)
	_ chain.Work = (*Unary)(nil)
)

// begin starts a call and says when it is done.
func begin(r *streamtest.Rig, q *Request) (c *Call, done *bool) {
	r.Publish()
	r.Worker.Step(0)
	c = New(r.Worker, r.Clusters.Ref("backend"), q)
	done = new(bool)
	c.Start(func() {
		if *done {
			r.T.Error("done twice")
		}
		*done = true
	})
	return c, done
}

func TestARequestAndItsResponse(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Cluster.HTTP1.EnableTrailers = true
	c, done := begin(r, &Request{Method: "POST", Path: "/check?x=1", Authority: "auth.example", Headers: []route.HeaderValue{{Name: "x-a", Value: "b"}}, Body: []byte("body")})
	l := r.Hosts[0].Accept()
	head := l.Head()
	for _, want := range []string{"POST /check?x=1 HTTP/1.1", "host: auth.example", "x-a: b", "content-length: 4"} {
		if !strings.Contains(head, want) {
			t.Errorf("%q is not in %s", want, head)
		}
	}
	if body := l.Take(4); body != "body" {
		t.Errorf("body %q", body)
	}
	l.Send("HTTP/1.1 201 Created\r\nx-b: c\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-t: u\r\n\r\n")
	r.Until("done", func() bool { return *done })
	p := &c.Response
	if p.Failure != failure.None || p.Status != 201 || string(p.Body) != "ok" || string(p.Head.Lookup("x-b")) != "c" || string(p.Trailers.Lookup("x-t")) != "u" {
		t.Errorf("%+v", p)
	}
	c.Cancel() // too late, and harmless
	r.Advance(time.Minute)
	if r.ClusterStat(upstream.StatRqTotal) != 1 || r.ClusterStat(upstream.StatRqActive) != 0 || r.ClusterStat(upstream.StatRq2xx) != 1 {
		t.Error("not counted as any other request")
	}
}

func TestTheDefaultsOfARequest(t *testing.T) {
	r := streamtest.New(t, 1)
	_, done := begin(r, &Request{})
	l := r.Hosts[0].Accept()
	if head := l.Head(); !strings.HasPrefix(head, "GET / HTTP/1.1\r\nhost: backend") || strings.Contains(head, "content-length") {
		t.Errorf("%s", head)
	}
	l.Answer("204 No Content", "")
	r.Until("done", func() bool { return *done })
}

func TestCallsThatFail(t *testing.T) {
	for name, c := range map[string]struct {
		set   func(r *streamtest.Rig)
		q     Request
		link  func(r *streamtest.Rig, l *streamtest.Link)
		after time.Duration
		want  failure.Kind
	}{
		"no cluster":         {set: func(r *streamtest.Rig) { r.Cluster.Name = "other" }, want: failure.NoCluster},
		"no host":            {set: func(r *streamtest.Rig) { r.Cluster.Endpoints = nil }, want: failure.NoHealthyUpstream},
		"the breaker":        {set: func(r *streamtest.Rig) { r.Cluster.Breakers[0].Requests = 0 }, want: failure.Overflow},
		"nobody listens":     {set: func(r *streamtest.Rig) { r.Hosts[0].Down() }, want: failure.ConnectFailure},
		"no answer":          {q: Request{Timeout: time.Second}, link: func(*streamtest.Rig, *streamtest.Link) {}, after: 1010 * time.Millisecond, want: failure.RouteTimeout},
		"no answer, default": {link: func(*streamtest.Rig, *streamtest.Link) {}, after: DefaultTimeout + 10*time.Millisecond, want: failure.RouteTimeout},
		"half an answer":     {q: Request{Timeout: time.Second}, link: func(_ *streamtest.Rig, l *streamtest.Link) { l.Send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab") }, after: 1010 * time.Millisecond, want: failure.RouteTimeout},
		"cut off": {link: func(r *streamtest.Rig, l *streamtest.Link) {
			l.Send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab")
			r.Settle()
			l.Close()
		}, want: failure.UpstreamProtocol},
		"nonsense":  {link: func(_ *streamtest.Rig, l *streamtest.Link) { l.Send("nonsense\r\n") }, want: failure.UpstreamProtocol},
		"too large": {q: Request{MaxBody: 3}, link: func(_ *streamtest.Rig, l *streamtest.Link) { l.Answer("200 OK", "four") }, want: failure.ResponseTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			if c.set != nil {
				c.set(r)
			}
			call, done := begin(r, &c.q)
			if c.link != nil {
				l := r.Hosts[0].Accept()
				l.Head()
				c.link(r, l)
				r.Settle()
				r.Advance(c.after)
			}
			r.Until("done", func() bool { return *done })
			if call.Response.Failure != c.want {
				t.Errorf("failure %s, want %s", failure.Of(call.Response.Failure).Details, failure.Of(c.want).Details)
			}
		})
	}
}

func TestACallThatIsCanceledIsGone(t *testing.T) {
	r := streamtest.New(t, 1)
	c, done := begin(r, &Request{})
	l := r.Hosts[0].Accept()
	l.Head()
	c.Cancel()
	r.Settle()
	l.Ended()
	r.Advance(time.Hour)
	if *done {
		t.Error("done was called")
	}
}

// health is a server of gRPC over a Unix socket.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	seen atomic.Pointer[metadata.MD] // of the last Check
}

func (h *health) Check(ctx context.Context, q *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		h.seen.Store(&md)
	}
	switch q.GetService() {
	case "unknown":
		return nil, status.Error(codes.NotFound, "50% of ü")
	case "slow":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

func (h *health) Watch(q *grpc_health_v1.HealthCheckRequest, s grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	for range 1000 {
		if err := s.Send(&grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_NOT_SERVING}); err != nil {
			return err
		}
	}
	return nil
}

// grpcRig is a rig whose cluster is a real server of gRPC.
func grpcRig(t *testing.T) (*streamtest.Rig, *health) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h := &health{}
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, h)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	r := streamtest.New(t, 0)
	r.Cluster.Endpoints = []upstream.Endpoint{{Path: path, Weight: 1}}
	r.Cluster.Protocol = upstream.HTTP2
	r.Publish()
	r.Worker.Step(0)
	return r, h
}

const check = "/grpc.health.v1.Health/Check"

func unary(r *streamtest.Rig, m *Method, service string) (*Unary, *grpc_health_v1.HealthCheckResponse) {
	reply := &grpc_health_v1.HealthCheckResponse{}
	u := NewUnary(r.Worker, r.Clusters.Ref("backend"), m, &grpc_health_v1.HealthCheckRequest{Service: service}, reply)
	done := false
	u.Start(func() { done = true })
	r.Until("the call is done", func() bool { return done })
	return u, reply
}

func TestAUnaryCall(t *testing.T) {
	r, h := grpcRig(t)
	u, reply := unary(r, &Method{Path: check, Metadata: []route.HeaderValue{{Name: "x-token", Value: "t"}}, Timeout: time.Minute}, "a")
	if u.Status != (Status{}) || reply.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("%+v, %v", u.Status, reply)
	}
	if v := h.seen.Load().Get("x-token"); len(v) != 1 || v[0] != "t" {
		t.Errorf("metadata %v", v)
	}
	if u, _ := unary(r, &Method{Path: check}, "unknown"); u.Status.Code != codes.NotFound || u.Status.Message != "50% of ü" || u.Status.Failure != failure.None {
		t.Errorf("%+v", u.Status)
	}
	if u, _ := unary(r, &Method{Path: "/no.Such/Method"}, ""); u.Status.Code != codes.Unimplemented {
		t.Errorf("%+v", u.Status)
	}
}

func TestADeadlineEndsACall(t *testing.T) {
	r, _ := grpcRig(t)
	reply := &grpc_health_v1.HealthCheckResponse{}
	u := NewUnary(r.Worker, r.Clusters.Ref("backend"), &Method{Path: check, Timeout: time.Hour}, &grpc_health_v1.HealthCheckRequest{Service: "slow"}, reply)
	done := false
	u.Start(func() { done = true })
	r.Settle()
	r.Advance(time.Hour + 10*time.Millisecond)
	r.Until("done", func() bool { return done })
	if u.Status.Code != codes.DeadlineExceeded || u.Status.Failure != failure.RouteTimeout {
		t.Errorf("%+v", u.Status)
	}
	u = NewUnary(r.Worker, r.Clusters.Ref("backend"), &Method{Path: check}, &grpc_health_v1.HealthCheckRequest{Service: "slow"}, reply)
	u.Start(func() { t.Error("done was called") })
	u.Cancel()
	r.Settle()
}

func TestUnaryCallsThatFail(t *testing.T) {
	t.Run("no cluster", func(t *testing.T) {
		r := streamtest.New(t, 0)
		r.Cluster.Name = "other"
		r.Publish()
		if u, _ := unary(r, &Method{Path: check}, ""); u.Status.Code != codes.Unavailable || u.Status.Failure != failure.NoCluster {
			t.Errorf("%+v", u.Status)
		}
	})
	t.Run("a host of HTTP/1.1", func(t *testing.T) {
		r := streamtest.New(t, 1)
		r.Publish()
		if u, _ := unary(r, &Method{Path: check}, ""); u.Status.Code != codes.Unavailable || !strings.Contains(u.Status.Message, "HTTP/2") {
			t.Errorf("%+v", u.Status)
		}
	})
}

// collector gathers what a stream receives.
type collector struct {
	messages int
	room     int
	closed   []Status
	on       func()
}

func (c *collector) Message([]byte) {
	if c.messages++; c.on != nil {
		c.on()
	}
}
func (c *collector) Room()           { c.room++ }
func (c *collector) Closed(s Status) { c.closed = append(c.closed, s) }

func TestAStreamOfMessages(t *testing.T) {
	r, _ := grpcRig(t)
	c := &collector{}
	s := Open(r.Worker, r.Clusters.Ref("backend"), &Method{Path: "/grpc.health.v1.Health/Watch"}, c)
	s.Send(nil) // a HealthCheckRequest of nothing
	s.CloseSend()
	r.Until("the end", func() bool { return len(c.closed) > 0 })
	if c.messages != 1000 || c.closed[0].Code != codes.OK {
		t.Errorf("%d messages, %+v", c.messages, c.closed)
	}
	s.Send([]byte("late"))
	s.Cancel()
}

func TestAStreamThatIsCanceledWithinAMessage(t *testing.T) {
	r, _ := grpcRig(t)
	c := &collector{}
	s := Open(r.Worker, r.Clusters.Ref("backend"), &Method{Path: "/grpc.health.v1.Health/Watch"}, c)
	c.on = s.Cancel
	s.Send(nil)
	s.CloseSend()
	r.Until("a message", func() bool { return c.messages > 0 })
	r.Settle()
	if c.messages != 1 || len(c.closed) != 0 {
		t.Errorf("%d messages, %+v", c.messages, c.closed)
	}
}

func TestAStreamIsFullWhereNobodyTakesItsMessages(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Cluster.Protocol = upstream.HTTP2
	r.Publish()
	r.Worker.Step(0)
	c := &collector{}
	s := Open(r.Worker, r.Clusters.Ref("backend"), &Method{Path: "/x/y", Buffer: 1000}, c)
	for range 3 {
		if s.Full() {
			t.Fatal("full too early")
		}
		s.Send(make([]byte, 400))
	}
	if !s.Full() {
		t.Error("not full with 1,215 bytes waiting")
	}
	s.Cancel()
	if s.Full() {
		t.Error("full after the end")
	}
}

func TestMessagesThatAreWrong(t *testing.T) {
	for name, c := range map[string]struct {
		pieces []string
		max    int
		want   codes.Code
	}{
		"compressed":             {[]string{"\x01\x00\x00\x00\x01a"}, 0, codes.Internal},
		"too large":              {[]string{"\x00\x00\x00\x00\x05abcde"}, 4, codes.ResourceExhausted},
		"far too large, by name": {[]string{"\x00\xff\xff\xff\xff"}, 0, codes.ResourceExhausted},
		"cut":                    {[]string{"\x00\x00\x00", "\x00\x02a"}, 0, codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			got := &collector{}
			s := &Stream{method: &Method{MaxMessage: c.max}, receiver: got, status: 200}
			for i, p := range c.pieces {
				(*streamUser)(s).Data(nil, []byte(p), i == len(c.pieces)-1)
			}
			if len(got.closed) != 1 || got.closed[0].Code != c.want || got.messages != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x01a\x00\x00\x00\x00\x00"), uint8(3))
	f.Add([]byte("\x01"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		// However the bytes are cut, the messages are the same.
		whole, pieces := &collector{}, &collector{}
		one := &Stream{method: &Method{MaxMessage: 100}, receiver: whole, status: 200}
		(*streamUser)(one).Data(nil, b, true)
		many := &Stream{method: &Method{MaxMessage: 100}, receiver: pieces, status: 200}
		for n := int(cut)%7 + 1; len(b) > n; b = b[n:] {
			if (*streamUser)(many).Data(nil, b[:n], false); len(many.in) > 100+prefix {
				t.Fatalf("%d bytes are kept", len(many.in))
			}
		}
		(*streamUser)(many).Data(nil, b, true)
		if whole.messages != pieces.messages || fmt.Sprint(whole.closed) != fmt.Sprint(pieces.closed) {
			t.Fatalf("%+v and %+v", whole, pieces)
		}
	})
}

func TestTimeoutsOnTheWire(t *testing.T) {
	for d, want := range map[time.Duration]string{1: "1n", time.Second: "1000000u", 99999999: "99999999n", 100 * time.Millisecond: "100000u", time.Hour: "3600000m", 300 * 24 * time.Hour: "25920000S", 1<<63 - 1: "2562048H"} {
		if got := string(appendTimeout(nil, d)); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}

func TestEscapes(t *testing.T) {
	for v, want := range map[string]string{"": "", "a%20b": "a b", "%": "%", "%4": "%4", "%zz": "%zz", "%C3%BC": "ü"} {
		if got := unescape([]byte(v)); got != want {
			t.Errorf("%q is %q, want %q", v, got, want)
		}
	}
}
