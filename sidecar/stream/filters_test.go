package stream_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/stream/chain"
	"sallyport/sidecar/stream/streamtest"
	"sallyport/sidecar/upstream"
)

// script is a filter made of functions; those that are nil let events go on.
type script struct {
	requestHead   func(c stream.Context, h *message.Head, end bool) stream.Verdict
	requestData   func(c stream.Context, p []byte, end bool) ([]byte, stream.Verdict)
	responseHead  func(c stream.Context, h *message.Head, end bool) stream.Verdict
	responseData  func(c stream.Context, p []byte, end bool) ([]byte, stream.Verdict)
	responseTrail func(c stream.Context, h *message.Head) stream.Verdict
	done          func(c stream.Context)
}

func (*script) Name() string { return "script" }
func (s *script) RequestHead(c stream.Context, h *message.Head, end bool) stream.Verdict {
	if s.requestHead == nil {
		return stream.Continue
	}
	return s.requestHead(c, h, end)
}
func (s *script) RequestData(c stream.Context, p []byte, end bool) ([]byte, stream.Verdict) {
	if s.requestData == nil {
		return p, stream.Continue
	}
	return s.requestData(c, p, end)
}
func (s *script) ResponseHead(c stream.Context, h *message.Head, end bool) stream.Verdict {
	if s.responseHead == nil {
		return stream.Continue
	}
	return s.responseHead(c, h, end)
}
func (s *script) ResponseData(c stream.Context, p []byte, end bool) ([]byte, stream.Verdict) {
	if s.responseData == nil {
		return p, stream.Continue
	}
	return s.responseData(c, p, end)
}
func (s *script) ResponseTrailers(c stream.Context, h *message.Head) stream.Verdict {
	if s.responseTrail == nil {
		return stream.Continue
	}
	return s.responseTrail(c, h)
}
func (s *script) Done(c stream.Context) {
	if s.done != nil {
		s.done(c)
	}
}

func TestAFilterThatHoldsTheHeadStopsTheBodyToo(t *testing.T) {
	var held stream.Context
	verdict := stream.Hold
	r := streamtest.New(t, 1).Filters(&script{
		requestHead: func(c stream.Context, _ *message.Head, _ bool) stream.Verdict { held = c; return verdict },
		requestData: func(_ stream.Context, p []byte, _ bool) ([]byte, stream.Verdict) { return p, verdict },
	})
	r.Conn.BufferLimit = 100
	client := r.Open("POST", "/")
	client.Send(strings.Repeat("a", 101))
	r.Settle()
	if r.Hosts[0].TryAccept() != nil {
		t.Fatal("the upstream was asked")
	}
	if client.Paused != 1 {
		t.Errorf("the client is paused %d times above the limit", client.Paused)
	}
	verdict = stream.Continue
	held.Resume()
	l := r.Hosts[0].Accept()
	l.Head()
	if client.Paused != 0 {
		t.Errorf("the client is paused %d times after Resume", client.Paused)
	}
	client.End("b")
	if body := l.Chunked(); body != strings.Repeat("a", 101)+"b" {
		t.Errorf("the upstream got %q", body)
	}
}

func TestABodyThatAFilterCollectsIsAnsweredAboveTheLimit(t *testing.T) {
	collects := &script{
		requestHead: func(_ stream.Context, _ *message.Head, end bool) stream.Verdict {
			if end {
				return stream.Continue
			}
			return stream.Collect
		},
		requestData: func(_ stream.Context, p []byte, end bool) ([]byte, stream.Verdict) {
			if end {
				return p, stream.Continue
			}
			return p, stream.Collect
		},
	}
	r := streamtest.New(t, 1).Filters(collects)
	logs := logged(r)
	r.Conn.BufferLimit = 100
	client := r.Open("POST", "/")
	for range 3 {
		client.Send(strings.Repeat("a", 50))
	}
	client.Want(413, "Payload Too Large")
	if logs.All[0].Details != "request_payload_too_large" || r.Stat(stream.StatRqTooLarge) != 1 {
		t.Errorf("%+v", logs.All)
	}
	if !client.Dropped {
		t.Error("an HTTP/1 connection goes on in the middle of a request")
	}
	client = r.Open("POST", "/")
	client.Send("small ")
	client.End("body")
	l := r.Hosts[0].Accept()
	l.Head()
	if body := l.Chunked(); body != "small body" {
		t.Errorf("the upstream got %q", body)
	}
}

func TestAResponseThatAFilterCollectsIsAnsweredAboveTheLimit(t *testing.T) {
	saw := 0
	r := streamtest.New(t, 1).Filters(
		&spy{response: func(stream.Context, *message.Head) { saw++ }},
		&script{
			responseHead: func(stream.Context, *message.Head, bool) stream.Verdict { return stream.Collect },
			responseData: func(_ stream.Context, p []byte, end bool) ([]byte, stream.Verdict) {
				if end {
					return p, stream.Continue
				}
				return p, stream.Collect
			},
		})
	logs := logged(r)
	r.Cluster.BufferLimit = 100
	client := r.Get("/")
	l := r.Hosts[0].Accept()
	l.Head()
	l.Send("HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\n" + strings.Repeat("a", 101))
	client.Want(500, "Internal Server Error")
	if logs.All[0].Details != "response_payload_too_large" {
		t.Errorf("%+v", logs.All)
	}
	l.Ended()
	if saw != 0 {
		t.Error("a filter between the collecting one and the client saw a head")
	}
	client = r.Get("/")
	l = r.Hosts[0].Accept()
	l.Head()
	l.Answer("200 OK", "small")
	client.Want(200, "small")
}

func TestALocalReplyPassesTheResponsesFilters(t *testing.T) {
	var order []string
	note := func(name string) *script {
		return &script{
			responseHead: func(c stream.Context, h *message.Head, _ bool) stream.Verdict {
				order = append(order, name+" head")
				h.AddString("x-saw", name)
				return stream.Continue
			},
			responseData: func(_ stream.Context, p []byte, end bool) ([]byte, stream.Verdict) {
				order = append(order, name+" "+string(p))
				return p, stream.Continue
			},
			done: func(stream.Context) { order = append(order, name+" done") },
		}
	}
	r := streamtest.New(t, 0).Filters(note("a"), &answer{403, "no"}, note("b"))
	client := r.Get("/").Want(403, "no")
	if got := client.Header("x-saw"); got != "b,a" {
		t.Errorf("x-saw %s: all filters see a local reply, in the order of responses", got)
	}
	if want := []string{"b head", "a head", "b no", "a no", "a done", "b done"}; !slices.Equal(order, want) {
		t.Errorf("order %q", order)
	}
}

func TestAFilterAnswersInPlaceOfTheUpstream(t *testing.T) {
	saw := 0
	r := streamtest.New(t, 1).Filters(
		&spy{response: func(stream.Context, *message.Head) { saw++ }},
		&script{responseHead: func(c stream.Context, h *message.Head, _ bool) stream.Verdict {
			if h.Is(message.Status, "200") {
				return c.Stream.Reply(502, "forbidden fruit", "test", 0)
			}
			return stream.Continue
		}})
	client := r.Get("/")
	l := r.Hosts[0].Accept()
	l.Head()
	l.Send("HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\nsome")
	client.Want(502, "forbidden fruit")
	l.Ended()
	if saw != 0 || r.Finished != 1 {
		t.Errorf("the filter in front saw %d heads; %d streams over", saw, r.Finished)
	}
}

func TestAFilterThatAnswersTooLateResetsTheStream(t *testing.T) {
	r := streamtest.New(t, 1).Filters(&script{responseData: func(c stream.Context, p []byte, _ bool) ([]byte, stream.Verdict) {
		if string(p) == "bad" {
			return nil, c.Stream.Reply(502, "no", "found_bad", 0)
		}
		return p, stream.Continue
	}})
	logs := logged(r)
	client := r.Get("/")
	l := r.Hosts[0].Accept()
	l.Head()
	l.Send("HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\ngood")
	r.Settle()
	l.Send("bad")
	client.Done()
	if client.Status != 200 || client.Body != "good" || client.Reset == 0 {
		t.Errorf("%d %q, reset %v", client.Status, client.Body, client.Reset)
	}
	if e := logs.All[0]; e.Details != "found_bad" || r.Stat(stream.StatRqTxReset) != 1 {
		t.Errorf("%+v", e)
	}
	l.Ended()
}

// TestAFilterThatEndsTheResponseEndsTheStream: the codec has all of it, and may give what stood for the stream to
// another request.
func TestAFilterThatEndsTheResponseEndsTheStream(t *testing.T) {
	for _, version := range []message.Version{message.HTTP11, message.HTTP2} {
		r := streamtest.New(t, 1).Filters(&script{responseData: func(c stream.Context, _ []byte, _ bool) ([]byte, stream.Verdict) {
			c.Inject([]byte("mine"), true)
			return nil, stream.Continue
		}})
		r.Manager.StreamIdle = time.Minute
		logs := logged(r)
		client := r.Begin(version, streamtest.Head("GET", "/"), true)
		l := r.Hosts[0].Accept()
		l.Head()
		l.Send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
		client.Want(200, "mine")
		r.Settle()
		if r.Finished != 1 || r.ClusterStat(upstream.StatRqTxReset) != 1 {
			t.Errorf("%v: %d streams are over, %d requests of the upstream are given up", version, r.Finished, r.ClusterStat(upstream.StatRqTxReset))
		}
		r.Advance(2 * time.Minute)
		l.Ended()
		if client.Dropped || len(logs.All) != 1 || logs.All[0].Flags != "-" || logs.All[0].Details != "via_upstream" {
			t.Errorf("%v: dropped %v, log %+v", version, client.Dropped, logs.All)
		}
	}
}

func TestAResponseThatIsHeldPausesTheUpstream(t *testing.T) {
	var held stream.Context
	r := streamtest.New(t, 1).Filters(&script{
		responseHead: func(c stream.Context, _ *message.Head, _ bool) stream.Verdict { held = c; return stream.Hold },
		responseData: func(_ stream.Context, p []byte, _ bool) ([]byte, stream.Verdict) { return p, stream.Hold },
	})
	r.Cluster.BufferLimit = 1000
	client := r.Get("/")
	l := r.Hosts[0].Accept()
	l.Head()
	const size = 4 << 20
	l.Send("HTTP/1.1 200 OK\r\ncontent-length: 4194304\r\n\r\n")
	body := strings.Repeat("x", size)
	for sent := 0; sent < size; {
		n := l.Try(body[sent:])
		if sent += n; n == 0 {
			r.Settle()
			if n = l.Try(body[sent:]); n == 0 {
				break
			}
			sent += n
		}
	}
	if kept := len(held.Held()); kept > 1000+64<<10 {
		t.Errorf("%d bytes are held with a limit of 1,000", kept)
	}
	if client.Status != 0 {
		t.Error("the client got the head")
	}
	client.Stream.Reset(message.RemoteReset)
	r.Settle()
	l.Ended()
}

func TestAStreamThatEndsWhileAFilterHoldsIsOver(t *testing.T) {
	for name, end := range map[string]func(c *streamtest.Client){
		"the client goes":           func(c *streamtest.Client) { c.Stream.Reset(message.ConnectionClosed) },
		"the client resets":         func(c *streamtest.Client) { c.Stream.Reset(message.RemoteReset) },
		"the client breaks HTTP":    func(c *streamtest.Client) { c.Stream.Reset(message.ProtocolError) },
		"the filter itself replies": func(c *streamtest.Client) { c.Stream.Reply(403, "", "test", 0) },
	} {
		t.Run(name, func(t *testing.T) {
			var held stream.Context
			done := 0
			r := streamtest.New(t, 1).Filters(&script{
				requestHead: func(c stream.Context, _ *message.Head, _ bool) stream.Verdict { held = c; return stream.Hold },
				done:        func(stream.Context) { done++ },
			})
			logs := logged(r)
			client := r.Get("/")
			end(client)
			held.Resume() // as a goroutine's answer that comes too late
			r.Settle()
			if done != 1 || r.Finished != 1 || r.Hosts[0].TryAccept() != nil {
				t.Errorf("done %d times, %d streams over", done, r.Finished)
			}
			want := map[string]string{"the client goes": "downstream_remote_disconnect DC", "the client resets": "downstream_remote_reset DR",
				"the client breaks HTTP": "http1.codec_error DPE", "the filter itself replies": "test -"}[name]
			if got := strings.TrimSpace(logs.String()); got != want {
				t.Errorf("log %q, want %q", got, want)
			}
		})
	}
}

func TestAPanicCostsItsStreamAlone(t *testing.T) {
	for name, c := range map[string]struct {
		filter *script
		status int // 0: the response is reset
	}{
		"at the request's head":      {&script{requestHead: func(stream.Context, *message.Head, bool) stream.Verdict { panic("as a test does") }}, 500},
		"at the request's content":   {&script{requestData: func(stream.Context, []byte, bool) ([]byte, stream.Verdict) { panic("as a test does") }}, 500},
		"at the response's head":     {&script{responseHead: func(_ stream.Context, h *message.Head, _ bool) stream.Verdict { panic("as a test does") }}, 500},
		"at the response's content":  {&script{responseData: func(stream.Context, []byte, bool) ([]byte, stream.Verdict) { panic("as a test does") }}, 0},
		"at the response's trailers": {&script{responseTrail: func(stream.Context, *message.Head) stream.Verdict { panic("as a test does") }}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1).Filters(c.filter)
			r.Cluster.HTTP1.EnableTrailers = true
			client := r.Open("POST", "/")
			client.End("x")
			if l := r.Hosts[0].TryAccept(); l != nil {
				r.Settle()
				if strings.Contains(l.Received(), "\r\n\r\n") {
					l.Send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-t: 1\r\n\r\n")
				}
			}
			client.Done()
			if client.Status != c.status && !(c.status == 0 && client.Reset != 0) {
				t.Errorf("%d, reset %v", client.Status, client.Reset)
			}
			if len(r.Panics) != 1 || r.Panics[0] != "as a test does" || r.Finished != 1 {
				t.Errorf("panics %v; %d streams over", r.Panics, r.Finished)
			}
		})
	}
}

// TestAPanicInTheCodecCostsTheConnection: its state is not known, and nothing more is sent on it.
func TestAPanicInTheCodecCostsTheConnection(t *testing.T) {
	for _, call := range []string{"Head", "Data", "Trailers", "Reset"} {
		t.Run(call, func(t *testing.T) {
			r := streamtest.New(t, 1)
			r.Cluster.HTTP1.EnableTrailers = true
			client := r.Get("/")
			client.Breaks = call
			l := r.Hosts[0].Accept()
			l.Head()
			l.Send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
			r.Settle()
			if call == "Reset" {
				l.Send("zz\r\n")
			} else {
				l.Send("0\r\nx-t: 1\r\n\r\n")
			}
			r.Until("the stream is over", func() bool { return r.Finished > 0 })
			if len(r.Panics) != 1 || r.Panics[0] != "in "+call || r.Broken != 1 || r.Finished != 1 || client.Ended || client.Reset != 0 {
				t.Errorf("panics %v, %d connections were ended, %d streams over, the client has %+v", r.Panics, r.Broken, r.Finished, client)
			}
		})
	}
}

func TestAPanicIsAnsweredWithoutFilters(t *testing.T) {
	done := 0
	r := streamtest.New(t, 0).Filters(
		&script{responseHead: func(stream.Context, *message.Head, bool) stream.Verdict { panic("second") }, done: func(stream.Context) { panic("third") }},
		&script{requestHead: func(stream.Context, *message.Head, bool) stream.Verdict { panic("first") }, done: func(stream.Context) { done++ }},
	)
	r.Get("/").Want(500, "Internal Server Error")
	if len(r.Panics) != 2 || r.Panics[0] != "first" || r.Panics[1] != "third" || done != 1 || r.Finished != 1 {
		t.Errorf("%v; the other filter was told %d times; %d streams over", r.Panics, done, r.Finished)
	}
}

type badLog struct{}

func (badLog) Log(*stream.Stream) { panic("log") }

func TestAPanicOfALogLeavesNothingBehind(t *testing.T) {
	r := streamtest.New(t, 0)
	r.Manager.AccessLogs = []stream.AccessLog{badLog{}}
	r.Get("/").Want(503, "no healthy upstream")
	if len(r.Panics) != 1 || r.Finished != 1 {
		t.Errorf("%v; %d streams over", r.Panics, r.Finished)
	}
}

func TestMetadata(t *testing.T) {
	r := streamtest.New(t, 0).Filters(&spy{head: func(c stream.Context, _ *message.Head) {
		s := c.Stream
		s.SetMetadata("a", "k", 1)
		s.SetMetadata("a", "l", 2)
		s.SetMetadata("b", "k", 3)
		s.SetMetadata("a", "k", 4)
		if s.MetadataValue("a", "k") != 4 || s.MetadataValue("a", "l") != 2 || s.MetadataValue("b", "k") != 3 || s.MetadataValue("b", "l") != nil {
			t.Errorf("%+v", s.Metadata)
		}
	}})
	r.Get("/").Done()
}

// gate is a filter that lets pass what its route's override does not name.
type gate struct{ closed bool }

func (*gate) Name() string { return "gate" }
func (g *gate) Recheck(c stream.Context, h *message.Head) (bool, string) {
	return !g.closed && c.Override() != "closed" && !h.Is(message.Path, "/rewritten"), "denied_now"
}

func TestWhatANewPolicyForbidsEnds(t *testing.T) {
	for name, c := range map[string]struct {
		responded bool
		change    func(r *streamtest.Rig, g *gate)
		ends      bool
	}{
		"before the response":                 {change: func(_ *streamtest.Rig, g *gate) { g.closed = true }, ends: true},
		"within the response":                 {responded: true, change: func(_ *streamtest.Rig, g *gate) { g.closed = true }, ends: true},
		"by the override of the new route":    {change: func(r *streamtest.Rig, _ *gate) { reroute(r, "closed") }, ends: true},
		"no change":                           {change: func(*streamtest.Rig, *gate) {}},
		"a change that allows it":             {change: func(r *streamtest.Rig, _ *gate) { reroute(r, "open") }},
		"a policy that there was none before": {change: func(r *streamtest.Rig, _ *gate) { r.Filters(&gate{closed: true}) }, ends: true},
		"a chain that asks nothing":           {change: func(r *streamtest.Rig, _ *gate) { r.Filters() }},
	} {
		t.Run(name, func(t *testing.T) {
			g := &gate{}
			r := streamtest.New(t, 1)
			if name != "a policy that there was none before" {
				r.Filters(g)
			}
			logs := logged(r)
			prefixed("/", "/rewritten")(r)
			client := r.Get("/")
			l := r.Hosts[0].Accept()
			l.Head()
			if c.responded {
				l.Send("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc")
				r.Settle()
			}
			route := client.Stream.Route
			c.change(r, g)
			client.Stream.Recheck()
			if !c.ends {
				if client.Stream.Route != route {
					t.Error("the stream has another route now")
				}
				l.Answer("200 OK", "ok")
				client.Want(200, "ok")
				return
			}
			client.Done()
			switch {
			case c.responded && (client.Reset == 0 || client.Body != "abc"):
				t.Errorf("%q, reset %v", client.Body, client.Reset)
			case !c.responded && (client.Status != 403 || logs.All[0].Details != "denied_now"):
				t.Errorf("%d, %+v", client.Status, logs.All)
			}
			l.Ended()
			if r.Stat(stream.StatRqRevoked) != 1 {
				t.Error("not counted")
			}
			client.Stream.Recheck() // of a stream that is over
		})
	}
}

// TestAllStreamsAreAskedAbout though others end meanwhile: what one that is ended leaves to HTTP/2's other streams may
// be all that these waited for.
func TestAllStreamsAreAskedAbout(t *testing.T) {
	for ended := range 4 {
		var list stream.List
		var clients []*streamtest.Client
		var asked []string
		r := streamtest.New(t, 1)
		r.Filters(&witness{func(c stream.Context, h *message.Head) {
			asked = append(asked, string(h.Get(message.Path)))
			if len(asked) == 2 {
				clients[ended].Stream.Reset(message.ConnectionClosed)
				list.Remove(clients[ended].Stream)
			}
		}})
		for _, path := range []string{"/0", "/1", "/2", "/3"} {
			c := r.Get(path)
			list.Add(c.Stream)
			clients = append(clients, c)
			r.Hosts[0].Accept().Head()
		}
		list.Recheck() // the last that came is the first
		want := []string{"/3", "/2", "/1", "/0"}
		if ended < 2 {
			want = slices.Delete(want, 3-ended, 4-ended)
		}
		if !slices.Equal(asked, want) {
			t.Errorf("with the end of /%d: %q were asked about, want %q", ended, asked, want)
		}
	}
}

// witness is a filter that is told what is asked, and allows it.
type witness struct {
	asked func(c stream.Context, h *message.Head)
}

func (*witness) Name() string { return "witness" }
func (w *witness) Recheck(c stream.Context, h *message.Head) (bool, string) {
	w.asked(c, h)
	return true, ""
}

func reroute(r *streamtest.Rig, override string) {
	next := *r.Route
	f := *r.Route.Forward
	f.Clusters = slices.Clone(f.Clusters)
	f.Clusters[0].Overrides = []route.Override{{Filter: 0, Config: override}}
	next.Forward = &f
	r.Route = &next
	r.Publish()
}

func TestARequestThatAFilterHoldsIsNotAskedAgain(t *testing.T) {
	// It meets the filters that are in force when it goes on.
	r := streamtest.New(t, 1).Filters(&gate{closed: true}, &script{requestHead: func(stream.Context, *message.Head, bool) stream.Verdict { return stream.Hold }})
	client := r.Get("/")
	client.Stream.Recheck()
	if client.Ended {
		t.Error("ended")
	}
}

var _ chain.Stream = (*stream.Stream)(nil)
