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

// logged has the rig keep an access log.
func logged(r *streamtest.Rig) *streamtest.Logs {
	l := &streamtest.Logs{}
	r.Manager.AccessLogs = []stream.AccessLog{l}
	return l
}

func TestTheTimersOfAStream(t *testing.T) {
	type exchange struct {
		r      *streamtest.Rig
		client *streamtest.Client
		link   *streamtest.Link
	}
	for name, c := range map[string]struct {
		set    func(r *streamtest.Rig)
		begin  func(e *exchange) // up to where time passes
		after  time.Duration
		status int // 0: the response is reset
		flags  string
		detail string
		stat   int
	}{
		"stream_idle_timeout while nothing is answered": {
			set: func(r *streamtest.Rig) { r.Manager.StreamIdle = time.Second }, after: time.Second,
			status: 408, flags: "SI", detail: "stream_idle_timeout", stat: stream.StatRqIdleTimeout},
		"the route's idle_timeout in its place": {
			set: func(r *streamtest.Rig) {
				r.Manager.StreamIdle, r.Route.Forward.IdleTimeout = time.Second, 3*time.Second
			}, after: 3 * time.Second,
			status: 408, flags: "SI", detail: "stream_idle_timeout", stat: stream.StatRqIdleTimeout},
		"stream_idle_timeout within the response": {
			set: func(r *streamtest.Rig) { r.Manager.StreamIdle = time.Second }, after: time.Second,
			begin:  func(e *exchange) { e.link.Send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab"); e.r.Settle() },
			status: 0, flags: "SI", detail: "stream_idle_timeout", stat: stream.StatRqIdleTimeout},
		"the route's timeout": {
			set: func(r *streamtest.Rig) { r.Route.Forward.Timeout = 2 * time.Second }, after: 2 * time.Second,
			status: 504, flags: "UT", detail: "response_timeout", stat: -upstream.StatRqTimeout},
		"the route's timeout within the response": {
			set: func(r *streamtest.Rig) { r.Route.Forward.Timeout = 2 * time.Second }, after: 2 * time.Second,
			begin:  func(e *exchange) { e.link.Send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab"); e.r.Settle() },
			status: 0, flags: "UT", detail: "response_timeout", stat: -upstream.StatRqTimeout},
		"per_try_timeout": {
			set: func(r *streamtest.Rig) { r.Route.Forward.Retry = &route.Retry{PerTry: time.Second} }, after: time.Second,
			status: 504, flags: "UT", detail: "upstream_per_try_timeout", stat: -upstream.StatRqPerTryTimeout},
		"per_try_timeout after a 103": {
			set:    func(r *streamtest.Rig) { r.Route.Forward.Retry = &route.Retry{PerTry: time.Second} },
			begin:  func(e *exchange) { e.link.Send("HTTP/1.1 103 Early Hints\r\n\r\n"); e.r.Settle() },
			after:  time.Second,
			status: 504, flags: "UT", detail: "upstream_per_try_timeout", stat: -upstream.StatRqPerTryTimeout},
		"per_try_idle_timeout": {
			set: func(r *streamtest.Rig) { r.Route.Forward.Retry = &route.Retry{PerTryIdle: time.Second} }, after: time.Second,
			status: 504, flags: "SI", detail: "upstream_per_try_idle_timeout", stat: -upstream.StatRqPerTryIdleTimeout},
		"per_try_idle_timeout within the response": {
			set: func(r *streamtest.Rig) { r.Route.Forward.Retry = &route.Retry{PerTryIdle: time.Second} }, after: time.Second,
			begin:  func(e *exchange) { e.link.Send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab"); e.r.Settle() },
			status: 0, flags: "SI", detail: "upstream_per_try_idle_timeout", stat: -upstream.StatRqPerTryIdleTimeout},
		"max_stream_duration after the request": {
			set: func(r *streamtest.Rig) { r.Manager.MaxStream = time.Second }, after: time.Second,
			status: 504, flags: "DT", detail: "max_duration_timeout", stat: stream.StatRqMaxDuration},
		"the caller's x-envoy-upstream-rq-timeout-ms": {
			set:    func(r *streamtest.Rig) { r.Route.Forward.Timeout = time.Hour },
			after:  1500 * time.Millisecond,
			status: 504, flags: "UT", detail: "response_timeout", stat: -upstream.StatRqTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			logs := logged(r)
			c.set(r)
			e := &exchange{r: r}
			var fields []string
			if strings.HasPrefix(name, "the caller's") {
				fields = []string{"x-envoy-upstream-rq-timeout-ms", "1500"}
			}
			e.client = r.Get("/", fields...)
			e.link = r.Hosts[0].Accept()
			e.link.Head()
			r.Settle()
			if c.begin != nil {
				c.begin(e)
			}
			r.Advance(c.after - 10*time.Millisecond)
			if e.client.Ended || e.client.Reset != 0 {
				t.Fatalf("ended 10 ms early with %d", e.client.Status)
			}
			r.Advance(20 * time.Millisecond)
			e.client.Done()
			if c.status == 0 && e.client.Reset == 0 || c.status != 0 && e.client.Status != c.status {
				t.Errorf("status %d, reset %v", e.client.Status, e.client.Reset)
			}
			if len(logs.All) != 1 || logs.All[0].Flags != c.flags || logs.All[0].Details != c.detail {
				t.Errorf("log: %+v", logs.All)
			}
			n := int64(0)
			if c.stat < 0 {
				n = r.ClusterStat(-c.stat)
			} else {
				n = r.Stat(c.stat)
			}
			if n != 1 {
				t.Errorf("counted %d times", n)
			}
			if c.status != 0 {
				e.link.Ended() // the upstream is not left with a request that nobody waits for
			}
		})
	}
}

func TestRequestTimeoutIsForTheRequestAlone(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Manager.RequestTime, r.Manager.MaxStream = time.Second, time.Minute
	logs := logged(r)
	late := r.Open("POST", "/")
	r.Advance(1100 * time.Millisecond)
	late.Want(408, "request timeout")
	in := r.Open("POST", "/")
	in.End("all")
	l := r.Hosts[0].Accept() // of the one that is late
	r.Until("the other request", func() bool {
		if strings.Contains(l.Received(), "all") {
			return true
		}
		if n := r.Hosts[0].TryAccept(); n != nil {
			l = n
		}
		return false
	})
	r.Advance(5 * time.Second)
	l.Head()
	l.Answer("200 OK", "ok")
	in.Want(200, "ok")
	if logs.All[0].Flags != "DT" || logs.All[0].Details != "request_overall_timeout" {
		t.Errorf("%+v", logs.All[0])
	}
	long := r.Open("POST", "/")
	r.Manager.RequestTime = 0
	r.Advance(900 * time.Millisecond)
	long.Send("x")
	r.Advance(time.Minute)
	if long.Status != 408 {
		t.Errorf("status %d where the client is late", long.Status)
	}
}

func TestActivityPutsTheIdleTimeoutOff(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Manager.StreamIdle = time.Second
	client := r.Open("POST", "/")
	l := r.Hosts[0].Accept()
	l.Head()
	for range 5 {
		r.Advance(800 * time.Millisecond)
		client.Send("x")
	}
	client.End("")
	l.Send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
	r.Settle()
	for range 5 {
		r.Advance(800 * time.Millisecond)
		l.Send("y")
		r.Settle()
	}
	client.Want(200, "yyyyy")
}

func TestPerTryTimeoutsAreRetried(t *testing.T) {
	for name, p := range map[string]*route.Retry{
		"total": {On: route.On5xx, Retries: 1, PerTry: time.Second},
		"idle":  {On: route.OnReset, Retries: 1, PerTryIdle: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			r := retrying(t, 1, p)
			client := r.Get("/")
			l := r.Hosts[0].Accept()
			l.Head()
			r.Settle()
			r.Advance(1010 * time.Millisecond)
			l.Ended()
			r.Advance(time.Second)
			l = r.Hosts[0].Accept()
			l.Head()
			l.Answer("200 OK", "ok")
			client.Want(200, "ok")
		})
	}
}

func TestATryIsTimedFromTheEndOfTheRequest(t *testing.T) {
	r := retrying(t, 1, &route.Retry{PerTry: time.Second})
	r.Route.Forward.Timeout = 10 * time.Second
	client := r.Open("POST", "/")
	l := r.Hosts[0].Accept()
	l.Head()
	r.Advance(30 * time.Second)
	if client.Ended {
		t.Fatal("a timeout ran while the client was still sending")
	}
	client.End("x")
	r.Settle()
	r.Advance(1010 * time.Millisecond)
	client.Want(504, "upstream request timeout")
}

func TestADeadlineOfGRPC(t *testing.T) {
	begin := func(t *testing.T, f func(*route.Forward)) (*streamtest.Rig, *streamtest.Client) {
		r := streamtest.New(t, 1)
		r.Route.Forward.HonorGRPCTimeout = true
		r.Route.Forward.Timeout = time.Hour
		f(r.Route.Forward)
		client := r.Begin(message.HTTP2, streamtest.Head("POST", "/s/m", "content-type", "application/grpc", "te", "trailers", "grpc-timeout", "2S"), false)
		r.Hosts[0].Accept().Head()
		return r, client
	}
	t.Run("runs while the client still streams, and is status 4", func(t *testing.T) {
		r, client := begin(t, func(*route.Forward) {})
		client.Send("message")
		r.Advance(1900 * time.Millisecond)
		if client.Ended {
			t.Fatal("too early")
		}
		r.Advance(200 * time.Millisecond)
		client.Done()
		if client.Status != 200 || client.Header("grpc-status") != "4" || client.Header("grpc-message") != "upstream request timeout" {
			t.Errorf("%d, grpc-status %s, %q", client.Status, client.Header("grpc-status"), client.Header("grpc-message"))
		}
	})
	t.Run("is cut to max_grpc_timeout", func(t *testing.T) {
		r, client := begin(t, func(f *route.Forward) { f.MaxGRPCTimeout = time.Second })
		r.Advance(1100 * time.Millisecond)
		client.Done()
		if client.Header("grpc-status") != "4" {
			t.Errorf("grpc-status %s", client.Header("grpc-status"))
		}
	})
}

func TestWhatTheUpstreamIsToldOfTheTimeout(t *testing.T) {
	for name, c := range map[string]struct {
		timeout, perTry time.Duration
		want            string
	}{
		"the route's":          {2 * time.Second, 0, "x-envoy-expected-rq-timeout-ms: 2000"},
		"that of a try":        {2 * time.Second, time.Second, "x-envoy-expected-rq-timeout-ms: 1000"},
		"a try that is longer": {2 * time.Second, 3 * time.Second, "x-envoy-expected-rq-timeout-ms: 2000"},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			r.Route.Forward.Timeout = c.timeout
			r.Route.Forward.Retry = &route.Retry{PerTry: c.perTry}
			r.Get("/")
			if head := r.Hosts[0].Accept().Head(); !strings.Contains(head, c.want) {
				t.Errorf("%s", head)
			}
		})
	}
}

func TestATunnelHasNoTimeouts(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Route.Forward.Timeout = time.Second
	r.Route.Forward.Retry = &route.Retry{PerTry: time.Second, On: route.On5xx, Retries: 3}
	r.Manager.Upgrades = []route.Upgrade{{Protocol: "websocket", Enabled: true}}
	client := r.Open("GET", "/ws", "upgrade", "websocket", "connection", "upgrade")
	l := r.Hosts[0].Accept()
	l.Head()
	r.Advance(time.Minute)
	l.Send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
	r.Settle()
	client.Send("ping")
	if got := l.Take(4); got != "ping" {
		t.Errorf("the upstream got %q", got)
	}
	r.Advance(time.Hour)
	l.Send("pong")
	r.Settle()
	if client.Status != 101 || client.Body != "pong" || client.Ended {
		t.Errorf("%d %q", client.Status, client.Body)
	}
	if r.Stat(stream.StatRqUpgrades) != 1 {
		t.Error("the upgrade is not counted")
	}
	l.Close()
	client.Done()
	if r.Finished != 1 {
		t.Error("the stream is not over")
	}
	if client.Reset != message.LocalReset && !client.Ended {
		t.Errorf("reset %v", client.Reset)
	}
}
