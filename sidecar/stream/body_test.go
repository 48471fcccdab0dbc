package stream_test

import (
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/stream/streamtest"
	"sallyport/sidecar/upstream"
)

func TestAClientThatTakesNothingStopsTheUpstream(t *testing.T) {
	r := streamtest.New(t, 1)
	client := r.Get("/")
	client.Blocked = true
	l := r.Hosts[0].Accept()
	l.Head()
	l.Send("HTTP/1.1 200 OK\r\ncontent-length: 8388608\r\n\r\n")
	piece := strings.Repeat("x", 64<<10)
	sent := 0
	for idle := 0; idle < 3; {
		n := l.Try(piece)
		if sent += n; n == 0 {
			idle++
			r.Settle()
		} else {
			idle = 0
		}
	}
	if got := len(client.Body); got > 256<<10 {
		t.Errorf("%d bytes were pressed on a client that is full", got)
	}
	if sent > 2<<20 {
		t.Fatalf("the upstream could send %d bytes", sent)
	}
	client.Unblock()
	for sent < 8<<20 {
		n := l.Try(piece[:min(len(piece), 8<<20-sent)])
		if sent += n; n == 0 {
			r.Settle()
		}
	}
	client.Done()
	if len(client.Body) != 8<<20 || !client.Ended {
		t.Errorf("%d bytes, ended %v", len(client.Body), client.Ended)
	}
}

func TestAnUpstreamThatTakesNothingStopsTheClient(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Cluster.BufferLimit, r.Conn.BufferLimit = 64<<10, 64<<10
	client := r.Open("POST", "/")
	l := r.Hosts[0].Accept()
	l.Head()
	piece := strings.Repeat("x", 16<<10)
	sent := 0
	for client.Paused == 0 && sent < 8<<20 {
		client.Send(piece)
		sent += len(piece)
		r.Worker.Step(0)
	}
	if client.Paused != 1 || sent >= 8<<20 {
		t.Fatalf("paused %d times after %d bytes", client.Paused, sent)
	}
	if kept := client.Stream.Kept(); kept > 64<<10+len(piece) {
		t.Errorf("%d bytes are kept", kept)
	}
	r.Until("the client may go on", func() bool { l.Received(); return client.Paused == 0 })
	client.End("end")
	r.Until("all of it", func() bool { return strings.HasSuffix(l.Received(), "\r\n3\r\nend\r\n0\r\n\r\n") })
	l.Answer("200 OK", "ok")
	client.Want(200, "ok")
}

func TestTrailersGoBothWays(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Cluster.HTTP1.EnableTrailers = true
	client := r.Open("POST", "/", "te", "trailers")
	client.Send("body")
	client.EndWith("x-sum", "1")
	l := r.Hosts[0].Accept()
	l.Head()
	r.Until("the trailers", func() bool { return strings.HasSuffix(l.Received(), "4\r\nbody\r\n0\r\nx-sum: 1\r\n\r\n") })
	l.Send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ngrpc-status: 0\r\n\r\n")
	client.Want(200, "ok")
	if string(client.Trailers.Lookup("grpc-status")) != "0" {
		t.Error("no trailers")
	}
	if r.Finished != 1 {
		t.Error("the stream is not over")
	}
}

func TestAnEarlyAnswerEndsTheRequest(t *testing.T) {
	r := streamtest.New(t, 1)
	client := r.Open("POST", "/")
	client.Send("some")
	l := r.Hosts[0].Accept()
	l.Head()
	l.Answer("413 Payload Too Large", "no")
	client.Want(413, "no")
	if !client.Dropped {
		t.Error("the connection goes on in the middle of a request")
	}
	client.Send("more") // what comes after the end is dropped
	l.Ended()
}

func TestAnAnswerOverHTTP2LeavesTheConnectionAlone(t *testing.T) {
	r := streamtest.New(t, 0)
	client := r.Begin(message.HTTP2, streamtest.Head("POST", "/"), false)
	client.Want(503, "no healthy upstream")
	if client.Dropped {
		t.Error("the connection was to end")
	}
	client.End("late")
}

func TestAnUpstreamThatBreaksOff(t *testing.T) {
	for name, c := range map[string]struct {
		send   string
		status int
		flags  string
		detail string
		reset  bool
	}{
		"before a byte":        {"", 503, "UC", "before_response_started{connection_termination}", false},
		"in the head":          {"HTTP/1.1 200 OK\r\n", 502, "UPE", "before_response_started{protocol_error}", false},
		"in the body":          {"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", 200, "UPE", "after_response_started{protocol_error}", true},
		"with nonsense":        {"nonsense\r\n\r\n", 502, "UPE", "before_response_started{protocol_error}", false},
		"with nonsense, later": {"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 200, "UPE", "after_response_started{protocol_error}", true},
		"after a 103":          {"HTTP/1.1 103 Early Hints\r\n\r\n", 503, "UC", "before_response_started{connection_termination}", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			logs := logged(r)
			client := r.Begin(message.HTTP11, streamtest.Head("POST", "/"), true)
			l := r.Hosts[0].Accept()
			l.Head()
			l.Send(c.send)
			r.Settle()
			l.Close()
			client.Done()
			if client.Status != c.status || (client.Reset != 0) != c.reset || logs.All[0].Flags != c.flags {
				t.Errorf("%d, reset %v, %+v", client.Status, client.Reset, logs.All[0])
			}
			if got := logs.All[0].Details; got != "upstream_reset_"+c.detail {
				t.Errorf("details %s", got)
			}
			if n := r.ClusterStat(upstream.StatRqRxReset); n != 1 {
				t.Errorf("counted %d times", n)
			}
		})
	}
}

func TestTheLogSaysHowAStreamEndedWhoseResponseHadBegun(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(r *streamtest.Rig, c *streamtest.Client)
		want string
	}{
		"the client goes":                        {func(_ *streamtest.Rig, c *streamtest.Client) { c.Stream.Reset(message.ConnectionClosed) }, "downstream_remote_disconnect DC"},
		"the client resets":                      {func(_ *streamtest.Rig, c *streamtest.Client) { c.Stream.Reset(message.RemoteReset) }, "downstream_remote_reset DR"},
		"the client breaks HTTP":                 {func(_ *streamtest.Rig, c *streamtest.Client) { c.Stream.Reset(message.ProtocolError) }, "downstream_protocol_error DPE"},
		"the codec cannot send what it is given": {func(_ *streamtest.Rig, c *streamtest.Client) { c.Stream.Reset(message.LocalReset) }, "local_reset LR"},
		"nothing comes any more":                 {func(r *streamtest.Rig, _ *streamtest.Client) { r.Advance(2 * time.Minute) }, "stream_idle_timeout SI"},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			r.Manager.StreamIdle = time.Minute
			logs := logged(r)
			client := r.Get("/")
			l := r.Hosts[0].Accept()
			l.Head()
			l.Send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab")
			r.Until("the response began", func() bool { return client.Body == "ab" })
			c.end(r, client)
			if got := strings.TrimSpace(logs.String()); got != c.want || logs.All[0].Status != 200 {
				t.Errorf("log %q, want %q", got, c.want)
			}
		})
	}
}

func TestAResetTellsTheUpstream(t *testing.T) {
	r := streamtest.New(t, 1)
	client := r.Get("/")
	l := r.Hosts[0].Accept()
	l.Head()
	client.Stream.Reset(message.RemoteReset)
	r.Settle()
	l.Ended()
	if r.Stat(stream.StatRqRxReset) != 1 || r.ClusterStat(upstream.StatRqTxReset) != 1 || r.ClusterStat(upstream.StatRqActive) != 0 {
		t.Error("not counted")
	}
}

func TestAStreamIsUsedAgainAndRemembersNothing(t *testing.T) {
	r := streamtest.New(t, 1).Filters(&spy{head: func(c stream.Context, _ *message.Head) {
		if *c.Slot() != nil || c.Stream.MetadataValue("a", "b") != nil || c.Stream.Details != "" || c.Stream.Attempts != 0 {
			t.Error("it remembers")
		}
		*c.Slot() = 1
		c.Stream.SetMetadata("a", "b", 1)
	}})
	seenBefore := map[*stream.Stream]bool{}
	reused := false
	for range 4 {
		client := r.Open("POST", "/")
		reused = reused || seenBefore[client.Stream]
		seenBefore[client.Stream] = true
		client.End("x")
		var l *streamtest.Link
		r.Until("the request", func() bool {
			if l == nil {
				l = r.Hosts[0].TryAccept()
			}
			return l != nil && strings.Contains(l.Received(), "\r\n\r\n")
		})
		l.Send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
		client.Want(200, "ok")
		r.Settle()
	}
	if !reused {
		t.Error("no stream was used again")
	}
}

// tracer is a tracer that writes down.
type tracer struct{ log []string }

func (x *tracer) Start(*stream.Stream) stream.Span { x.log = append(x.log, "start"); return x }
func (x *tracer) Inject(s *stream.Stream) {
	x.log = append(x.log, "inject")
	s.Request.AddString("traceparent", "00-1")
}
func (x *tracer) Finish(*stream.Stream) { x.log = append(x.log, "finish") }

func TestASpanIsStartedInjectedAndFinished(t *testing.T) {
	r := streamtest.New(t, 1)
	x := &tracer{}
	r.Manager.Tracer = x
	client := r.Get("/")
	l := r.Hosts[0].Accept()
	if head := l.Head(); !strings.Contains(head, "traceparent: 00-1") {
		t.Errorf("%s", head)
	}
	l.Answer("200 OK", "")
	client.Want(200, "")
	if got := strings.Join(x.log, " "); got != "start inject finish" {
		t.Errorf("%s", got)
	}
}

func TestARecordStandsForAConnection(t *testing.T) {
	r := streamtest.New(t, 0)
	at := time.Unix(5, 0)
	s := stream.Record(r.Conn, at)
	if s.Conn != r.Conn || s.Remote != r.Conn.Remote || !s.Start.Equal(at) || s.Timings.RequestEnd >= 0 || s.Worker() != r.Worker {
		t.Errorf("%+v", s.Info)
	}
	if r.Conn.Principal() != "" {
		t.Error("a principal without a certificate")
	}
	r.Conn.Peer = &stream.Peer{URI: []string{"spiffe://a/b"}}
	if r.Conn.Principal() != "spiffe://a/b" {
		t.Errorf("principal %q", r.Conn.Principal())
	}
}

func TestTheTimeoutOfTheRouteEndsABackOff(t *testing.T) {
	r := retrying(t, 1, &route.Retry{On: route.On5xx, Retries: 5, ResetHeaders: []string{"retry-after"}, ResetMax: time.Hour})
	r.Route.Forward.Timeout = 2 * time.Second
	client := r.Get("/")
	l := r.Hosts[0].Accept()
	l.Head()
	l.Answer("503 no", "no", "retry-after", "60")
	r.Settle()
	r.Advance(2100 * time.Millisecond)
	client.Want(504, "upstream request timeout")
	r.Advance(time.Minute)
	if l.Received() != "" || r.Hosts[0].TryAccept() != nil {
		t.Error("a request was made after the answer")
	}
	if r.Finished != 1 {
		t.Error("the stream is not over")
	}
}
