package serve

import (
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"sallyport/xds/build"
)

// asker asks a feed for all listeners, each time as if it had nothing.
type asker struct {
	f  *feed
	ch chan cachev3.Response
}

func (a *asker) ask() {
	sub := streamv3.NewSotwSubscription(nil, true)
	a.f.watch(&watch{typeURL: build.ListenerType, sub: &sub, request: &discoveryv3.DiscoveryRequest{TypeUrl: build.ListenerType}, responses: a.ch, first: true})
}

func (a *asker) answered() bool {
	select {
	case <-a.ch:
		return true
	default:
		return false
	}
}

// A client that refuses what it is sent, and asks for it again at once, is made to wait, each time longer.
func TestAClientThatRefusesInALoopIsMadeToWait(t *testing.T) {
	f := newFeed(time.Hour)
	defer f.close()
	f.publish(set{build.ListenerType: newTypeSet(map[string]resource{"inbound": {version: "1"}})}, 1)
	a := &asker{f, make(chan cachev3.Response, 1)}
	a.ask()
	if !a.answered() {
		t.Fatal("the first is not answered at once")
	}
	last := time.Duration(0)
	for n := range 30 {
		before := time.Now()
		f.refused(build.ListenerType)
		f.mu.Lock()
		pause := f.holds[build.ListenerType].until.Sub(before)
		f.holds[build.ListenerType].until = before.Add(time.Hour) // so that this machine may be slow
		f.mu.Unlock()
		if pause < last && pause < mostHold || pause > mostHold+time.Hour {
			t.Fatalf("refusal %d holds for %s, the one before for %s", n, pause, last)
		}
		last = min(pause, mostHold)
		a.ask()
		if a.answered() {
			t.Fatalf("refusal %d was answered at once", n)
		}
	}
	// Neither a new version nor another type's answer brings it out before.
	f.publish(set{build.ListenerType: newTypeSet(map[string]resource{"inbound": {version: "2"}})}, 2)
	if a.answered() {
		t.Fatal("a publication ended the wait")
	}
	f.mu.Lock()
	f.holds[build.ListenerType].until = time.Now() // the time is over
	f.mu.Unlock()
	f.release()
	if !a.answered() {
		t.Fatal("not answered after the wait")
	}
	f.taken(build.ListenerType)
	a.ask()
	if !a.answered() {
		t.Fatal("held after it was taken")
	}
}

// What was held comes by itself when its time is over, whichever hold began first.
func TestWhatWasHeldIsSentAfterItsPause(t *testing.T) {
	f := newFeed(time.Hour)
	defer f.close()
	f.publish(set{build.ListenerType: newTypeSet(map[string]resource{"inbound": {version: "1"}})}, 1)
	for range 20 {
		f.refused(build.ClusterType) // the longest hold
	}
	clusters := &asker{f, make(chan cachev3.Response, 1)}
	sub := streamv3.NewSotwSubscription(nil, true)
	f.watch(&watch{typeURL: build.ClusterType, sub: &sub, request: &discoveryv3.DiscoveryRequest{TypeUrl: build.ClusterType}, responses: clusters.ch, first: true})
	f.refused(build.ListenerType)
	a := &asker{f, make(chan cachev3.Response, 1)}
	a.ask()
	select {
	case <-a.ch:
	case <-time.After(20 * time.Second):
		t.Fatal("never sent")
	}
}

// A delta client that refuses is not sent the same again; one that subscribes anew in a loop is counted as one that refuses.
func TestARefusedDeltaAnswerIsNotRepeated(t *testing.T) {
	p := newPlane(t)
	p.load()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn).DeltaAggregatedResources(p.context("orders"))
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *discoveryv3.DeltaDiscoveryRequest) {
		t.Helper()
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(typeURL string) *discoveryv3.DeltaDiscoveryResponse {
		t.Helper()
		r, err := s.Recv()
		if err != nil || r.GetTypeUrl() != typeURL {
			t.Fatal(r.GetTypeUrl(), err)
		}
		return r
	}
	refusals := func(want int) {
		t.Helper()
		p.feeds.mu.Lock()
		defer p.feeds.mu.Unlock()
		for _, f := range p.feeds.list {
			f.mu.Lock()
			if h := f.holds[build.ListenerType]; h == nil || h.times != want {
				t.Errorf("%+v, want %d refusals", h, want)
			}
			f.mu.Unlock()
		}
	}
	send(&discoveryv3.DeltaDiscoveryRequest{Node: node("orders"), TypeUrl: build.ListenerType})
	first := receive(build.ListenerType)
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: build.ListenerType, ResponseNonce: first.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "no"}})
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: build.ClusterType})
	receive(build.ClusterType) // not the listeners again
	refusals(1)
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: build.ListenerType})
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: build.SecretType})
	receive(build.SecretType)
	refusals(2)
}
