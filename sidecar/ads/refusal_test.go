package ads_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/ads"
)

// wire is a control plane that is a script: the test sends and receives what goes over the stream.
type wire struct {
	grpc.ClientConnInterface // nothing but NewStream is called
	toClient                 chan proto.Message
	toServer                 chan proto.Message
}

func newWire() *wire {
	return &wire{toClient: make(chan proto.Message), toServer: make(chan proto.Message, 100000)}
}

func (w *wire) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return &wireStream{w, ctx}, nil
}

type wireStream struct {
	w   *wire
	ctx context.Context
}

func (s *wireStream) Header() (metadata.MD, error) { return nil, nil }
func (s *wireStream) Trailer() metadata.MD         { return nil }
func (s *wireStream) CloseSend() error             { return nil }
func (s *wireStream) Context() context.Context     { return s.ctx }

func (s *wireStream) SendMsg(m any) error {
	s.w.toServer <- proto.Clone(m.(proto.Message))
	return nil
}

func (s *wireStream) RecvMsg(m any) error {
	select {
	case got, ok := <-s.w.toClient:
		if !ok {
			return io.EOF
		}
		proto.Merge(m.(proto.Message), got)
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// judge is a sink that refuses resources whose body says so.
type judge struct {
	applied atomic.Int64
	pardon  atomic.Bool // what was bad is good now
}

func (j *judge) Apply(r ads.Response) (refused []ads.Refused) {
	j.applied.Add(1)
	for _, x := range r.Resources {
		if string(x.Body.GetValue()) == "panic" {
			panic("a mistake of ours")
		}
		if strings.HasPrefix(string(x.Body.GetValue()), "bad") && !j.pardon.Load() {
			refused = append(refused, ads.Refused{Name: x.Name, Err: errors.New("is bad")})
		}
	}
	return refused
}
func (j *judge) Versions(string) map[string]string { return nil }
func (j *judge) Expire(string, string)             {}

// script is one client and the control plane's side of its stream, in a bubble of synctest.
type script struct {
	t     *testing.T
	delta bool
	wire  *wire
	judge *judge
	c     *ads.Client
	nonce int
}

// play runs a story for both forms of the protocol.
func play(t *testing.T, story func(s *script)) {
	for name, delta := range map[string]bool{"state of the world": false, "delta": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{t: t, delta: delta, wire: newWire(), judge: &judge{}}
				s.c = ads.New(ads.Options{Conn: s.wire, Sink: s.judge, Delta: delta, Wildcard: []string{ads.ClusterType, ads.ListenerType}})
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { defer close(ended); s.c.Run(ctx) }()
				s.answer()
				s.answer()
				story(s)
				cancel()
				<-ended
			})
		})
	}
}

// send sends a response with one resource.
func (s *script) send(typeURL, body string) {
	s.nonce++
	nonce := fmt.Sprint(s.nonce)
	a := &anypb.Any{TypeUrl: typeURL, Value: []byte(body)}
	if s.delta {
		s.wire.toClient <- &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, SystemVersionInfo: nonce,
			Resources: []*discoveryv3.Resource{{Name: "x", Version: nonce, Resource: a}}}
		return
	}
	s.wire.toClient <- &discoveryv3.DiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, VersionInfo: nonce, Resources: []*anypb.Any{a}}
}

// said is a request of the client.
type said struct {
	typeURL, nonce, refusal string
}

// answer waits for the client's next request.
func (s *script) answer() said {
	switch m := (<-s.wire.toServer).(type) {
	case *discoveryv3.DeltaDiscoveryRequest:
		return said{m.GetTypeUrl(), m.GetResponseNonce(), m.GetErrorDetail().GetMessage()}
	case *discoveryv3.DiscoveryRequest:
		return said{m.GetTypeUrl(), m.GetResponseNonce(), m.GetErrorDetail().GetMessage()}
	}
	panic("another message")
}

// silent says that nothing was sent, after everybody has done what there is to do at this moment.
func (s *script) silent() bool {
	synctest.Wait()
	return len(s.wire.toServer) == 0
}

func (s *script) wants(nonce int, refused bool) {
	s.t.Helper()
	synctest.Wait()
	if len(s.wire.toServer) == 0 {
		s.t.Fatalf("response %d has no answer", nonce)
	}
	if got := s.answer(); got.nonce != fmt.Sprint(nonce) || (got.refusal != "") != refused {
		s.t.Errorf("answered %+v, want one of response %d, refused: %v", got, nonce, refused)
	}
}

func TestAServerThatRepeatsWhatWasRefusedIsAnsweredSlowly(t *testing.T) {
	for name, body := range map[string]func(int) string{
		"the same bytes":        func(int) string { return "bad" },
		"other bytes each time": func(i int) string { return fmt.Sprint("bad", i) },
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(s *script) {
				refusals := 0
				for begin := time.Now(); time.Since(begin) < 10*time.Second; refusals++ {
					s.send(ads.ClusterType, body(refusals))
					if got := s.answer(); got.refusal == "" {
						s.t.Fatalf("%+v", got)
					}
				}
				if refusals < 5 || refusals > 14 {
					s.t.Errorf("%d refusals in 10 s", refusals)
				}
			})
		})
	}
}

func TestAServerThatDoesNotWaitIsNotEvenLookedAt(t *testing.T) {
	play(t, func(s *script) {
		for range 1000 {
			s.send(ads.ClusterType, "bad")
		}
		s.wants(1, true)
		if !s.silent() || s.judge.applied.Load() != 1 {
			s.t.Errorf("the same bytes were looked at %d times, %d answers wait", s.judge.applied.Load(), len(s.wire.toServer))
		}
		time.Sleep(time.Second)
		s.wants(1000, true) // the last one; a nonce before it is no longer of interest
		if !s.silent() {
			s.t.Error("there is another answer")
		}
	})
}

func TestAGoodResponseNeverWaits(t *testing.T) {
	play(t, func(s *script) {
		s.send(ads.ClusterType, "bad")
		s.wants(1, true)
		for range 6 {
			s.send(ads.ClusterType, "bad")
			s.answer()
		}
		s.send(ads.ClusterType, "bad")
		if !s.silent() {
			s.t.Fatal("a repeated refusal was not held back")
		}
		s.send(ads.ListenerType, "good")
		s.wants(9, false)
		s.send(ads.ClusterType, "good")
		s.wants(10, false)
		time.Sleep(time.Minute)
		if !s.silent() {
			s.t.Errorf("the refusal that was held is sent after another response was accepted: %+v", s.answer())
		}
		// And a new mistake is told at once.
		s.send(ads.ClusterType, "bad again")
		s.wants(11, true)
	})
}

func TestWhatIsRepeatedIsTriedAgain(t *testing.T) {
	play(t, func(s *script) {
		s.send(ads.ClusterType, "bad")
		s.wants(1, true)
		s.send(ads.ClusterType, "bad")
		if !s.silent() {
			s.t.Fatal("a repeated refusal was not held back")
		}
		s.judge.pardon.Store(true) // the port is free by now
		time.Sleep(time.Second)
		s.wants(2, false)
	})
}

func TestOtherNamesDoNotAcceptWhatIsHeld(t *testing.T) {
	play(t, func(s *script) {
		s.c.Subscribe(ads.RouteType, []string{"a"})
		s.answer()
		s.send(ads.RouteType, "bad")
		s.wants(1, true)
		s.send(ads.RouteType, "bad")
		if !s.silent() {
			s.t.Fatal("a repeated refusal was not held back")
		}
		s.c.Subscribe(ads.RouteType, []string{"a", "b"})
		synctest.Wait()
		got := s.answer()
		if s.delta {
			// A request of names alone: it carries no nonce, and answers nothing.
			if got.nonce != "" || got.refusal != "" {
				s.t.Errorf("%+v", got)
			}
			return
		}
		if got.nonce != "2" || got.refusal == "" {
			s.t.Errorf("a request for other names accepts what was refused: %+v", got)
		}
	})
}

func TestAfterAMinuteAMistakeIsNew(t *testing.T) {
	play(t, func(s *script) {
		s.send(ads.ClusterType, "bad")
		s.wants(1, true)
		time.Sleep(2 * time.Minute)
		s.send(ads.ClusterType, "bad")
		s.wants(2, true)
	})
}

func TestAPanicEndsAStreamAndNotTheProcess(t *testing.T) {
	play(t, func(s *script) {
		s.send(ads.ClusterType, "panic")
		s.answer() // of another stream, which asks for everything again
		s.answer()
		s.send(ads.ClusterType, "good")
		s.wants(2, false)
	})
}
