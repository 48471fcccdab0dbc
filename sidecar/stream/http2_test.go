package stream_test

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"sallyport/sidecar/message"
	"sallyport/sidecar/stream/streamtest"
	"sallyport/sidecar/upstream"
)

func overHTTP2(t *testing.T) *streamtest.Rig {
	r := streamtest.New(t, 1)
	r.Cluster.Protocol = upstream.HTTP2
	return r
}

func TestARefusedStreamIsSentAgainWhateverThePolicy(t *testing.T) {
	// RFC 9113 §8.7: it was not processed, so that any method is safe.
	r := overHTTP2(t)
	client := r.Begin(message.HTTP11, streamtest.Head("POST", "/"), true)
	h := r.Hosts[0].Accept().HTTP2()
	id, _, _ := h.Request()
	h.Reset(id, http2.ErrCodeRefusedStream)
	id, path, end := h.Request()
	if path != "/" || !end {
		t.Errorf("the second try asks for %s, end %v", path, end)
	}
	h.Respond(id, true, "204")
	client.Want(204, "")
	if n := r.ClusterStat(upstream.StatRqRetry); n != 0 {
		t.Errorf("%d retries are counted", n)
	}
}

func TestAHostThatRefusesAllIsNotAskedForEver(t *testing.T) {
	r := overHTTP2(t)
	logs := logged(r)
	client := r.Get("/")
	h := r.Hosts[0].Accept().HTTP2()
	for range 4 {
		id, _, _ := h.Request()
		h.Reset(id, http2.ErrCodeRefusedStream)
	}
	client.Done()
	if client.Status != 503 || logs.All[0].Details != "upstream_reset_before_response_started{remote_refused_stream_reset}" {
		t.Errorf("%d, %+v", client.Status, logs.All)
	}
}

func TestAStreamAboveGoAwayIsSentAgain(t *testing.T) {
	r := overHTTP2(t)
	client := r.Begin(message.HTTP11, streamtest.Head("POST", "/"), true)
	h := r.Hosts[0].Accept().HTTP2()
	h.Request()
	h.GoAway(0)
	h = r.Hosts[0].Accept().HTTP2()
	id, _, _ := h.Request()
	h.Respond(id, true, "204")
	client.Want(204, "")
}

func TestAReset(t *testing.T) {
	for name, c := range map[string]struct {
		code   http2.ErrCode
		status int
		flag   string
	}{
		"CANCEL":         {http2.ErrCodeCancel, 503, "UR"},
		"INTERNAL_ERROR": {http2.ErrCodeInternal, 503, "UR"},
	} {
		t.Run(name, func(t *testing.T) {
			r := overHTTP2(t)
			logs := logged(r)
			client := r.Get("/")
			h := r.Hosts[0].Accept().HTTP2()
			id, _, _ := h.Request()
			h.Reset(id, c.code)
			client.Done()
			if client.Status != c.status || logs.All[0].Flags != c.flag {
				t.Errorf("%d, %+v", client.Status, logs.All)
			}
		})
	}
}

func TestABodyOverHTTP2(t *testing.T) {
	r := overHTTP2(t)
	client := r.Open("POST", "/")
	client.Send("early ")
	h := r.Hosts[0].Accept().HTTP2()
	id, _, end := h.Request()
	if end {
		t.Error("the request ends with its head")
	}
	client.End("late")
	if got := h.Content(); got != "early late" {
		t.Errorf("the upstream got %q", got)
	}
	h.Respond(id, false, "200", "content-type", "application/grpc")
	h.Data(id, false, "reply")
	h.Trailers(id, "grpc-status", "0")
	client.Want(200, "reply")
	if string(client.Trailers.Lookup("grpc-status")) != "0" {
		t.Error("no trailers")
	}
}

func TestAnAnswerOfGRPCCountsForTheHostAsItsCode(t *testing.T) {
	for name, c := range map[string]struct {
		fields []string
		end    bool
		ejects bool
	}{
		"unavailable":               {[]string{"content-type", "application/grpc", "grpc-status", "14"}, true, true},
		"deadline exceeded":         {[]string{"content-type", "application/grpc", "grpc-status", "4"}, true, true},
		"not found":                 {[]string{"content-type", "application/grpc", "grpc-status", "5"}, true, false},
		"a code that is not gRPC's": {[]string{"content-type", "text/plain", "grpc-status", "14"}, true, false},
		"a code in front of a body": {[]string{"content-type", "application/grpc", "grpc-status", "14"}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			asked := "application/grpc"
			if strings.Contains(name, "not gRPC's") {
				asked = "text/plain"
			}
			r := overHTTP2(t)
			r.Cluster.Outlier = &upstream.Outlier{Consecutive5xx: 1, Enforcing5xx: 100, AlwaysEjectOne: true, MaxEjectionPercent: 100, BaseEjection: time.Hour}
			client := r.Begin(message.HTTP2, streamtest.Head("POST", "/s/m", "content-type", asked), true)
			h := r.Hosts[0].Accept().HTTP2()
			id, _, _ := h.Request()
			h.Respond(id, c.end, "200", c.fields...)
			if !c.end {
				h.Data(id, true, "x")
			}
			client.Done()
			host := r.Clusters.Lookup("backend").Host(&upstream.Pick{})
			if c.ejects {
				r.Until("the host is ejected", func() bool { return r.ClusterStat(upstream.StatEjections5xx) == 1 })
			} else if host == nil || r.ClusterStat(upstream.StatEjections5xx) != 0 {
				t.Error("the host was ejected")
			}
		})
	}
}
