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

// retrying is a rig whose route retries.
func retrying(t *testing.T, hosts int, p *route.Retry) *streamtest.Rig {
	r := streamtest.New(t, hosts)
	r.Route.Forward.Retry = p
	return r
}

func TestAResponseThatIsRetriedIsDropped(t *testing.T) {
	for name, c := range map[string]struct {
		on      route.RetryOn
		answer  string
		fields  []string
		retry   *route.Retry
		retried bool
	}{
		"5xx":                          {on: route.On5xx, answer: "503 no", retried: true},
		"500 is no gateway error":      {on: route.OnGatewayError, answer: "500 no"},
		"gateway-error":                {on: route.OnGatewayError, answer: "502 no", retried: true},
		"retriable-4xx":                {on: route.OnRetriable4xx, answer: "409 no", retried: true},
		"another 4xx":                  {on: route.OnRetriable4xx, answer: "404 no"},
		"retriable-status-codes":       {on: route.OnRetriableStatuses, answer: "404 no", retry: &route.Retry{Statuses: []int{404}}, retried: true},
		"another status":               {on: route.OnRetriableStatuses, answer: "403 no", retry: &route.Retry{Statuses: []int{404}}},
		"cancelled":                    {on: route.OnGRPCCancelled, answer: "200 OK", fields: []string{"grpc-status", "1"}, retried: true},
		"deadline-exceeded":            {on: route.OnGRPCDeadline, answer: "200 OK", fields: []string{"grpc-status", "4"}, retried: true},
		"resource-exhausted":           {on: route.OnGRPCExhausted, answer: "200 OK", fields: []string{"grpc-status", "8"}, retried: true},
		"internal":                     {on: route.OnGRPCInternal, answer: "200 OK", fields: []string{"grpc-status", "13"}, retried: true},
		"unavailable":                  {on: route.OnGRPCUnavailable, answer: "200 OK", fields: []string{"grpc-status", "14"}, retried: true},
		"another gRPC status":          {on: route.OnGRPCUnavailable, answer: "200 OK", fields: []string{"grpc-status", "13"}},
		"a success is not retried":     {on: route.On5xx | route.OnRetriable4xx, answer: "200 OK"},
		"retriable-headers":            {on: route.OnRetriableHeaders, answer: "200 OK", fields: []string{"x-retry", "please"}, retry: &route.Retry{RetriableHeader: []route.HeaderMatcher{present("x-retry")}}, retried: true},
		"retriable-headers, not there": {on: route.OnRetriableHeaders, answer: "200 OK", retry: &route.Retry{RetriableHeader: []route.HeaderMatcher{present("x-retry")}}},
	} {
		t.Run(name, func(t *testing.T) {
			p := c.retry
			if p == nil {
				p = &route.Retry{}
			}
			p.On, p.Retries = c.on, 1
			r := retrying(t, 1, p)
			client := r.Get("/x")
			l := r.Hosts[0].Accept()
			l.Head()
			l.Answer(c.answer, "first", c.fields...)
			if !c.retried {
				client.Done()
				if client.Body != "first" || r.ClusterStat(upstream.StatRqRetry) != 0 {
					t.Fatalf("%d %q, %d retries", client.Status, client.Body, r.ClusterStat(upstream.StatRqRetry))
				}
				return
			}
			r.Settle()
			r.Advance(time.Second)
			l = again(r, l)
			l.Head()
			l.Answer("200 OK", "second")
			client.Want(200, "second")
			if r.ClusterStat(upstream.StatRqRetry) != 1 || r.ClusterStat(upstream.StatRqRetrySuccess) != 1 {
				t.Errorf("%d retries, %d successes", r.ClusterStat(upstream.StatRqRetry), r.ClusterStat(upstream.StatRqRetrySuccess))
			}
		})
	}
}

func present(name string) route.HeaderMatcher {
	return route.HeaderPresent(name, true, route.HeaderOptions{})
}

// again is the connection of the next try: l, if it was kept, or a new one.
func again(r *streamtest.Rig, l *streamtest.Link) *streamtest.Link {
	if strings.Contains(l.Received(), "\r\n\r\n") {
		return l
	}
	return r.Hosts[0].Accept()
}

func TestAResetIsRetried(t *testing.T) {
	for name, c := range map[string]struct {
		on      route.RetryOn
		before  bool // the connection ends before the request is sent
		retried bool
	}{
		"5xx":                         {on: route.On5xx, retried: true},
		"reset":                       {on: route.OnReset, retried: true},
		"gateway-error":               {on: route.OnGatewayError, retried: true},
		"connect-failure, after":      {on: route.OnConnectFailure},
		"reset-before-request, after": {on: route.OnResetBeforeRequest},
		"refused-stream":              {on: route.OnRefusedStream},
		"nothing":                     {},
	} {
		t.Run(name, func(t *testing.T) {
			r := retrying(t, 1, &route.Retry{On: c.on, Retries: 1})
			client := r.Begin(message.HTTP11, streamtest.Head("POST", "/"), true)
			l := r.Hosts[0].Accept()
			l.Head()
			l.Close()
			r.Settle()
			if !c.retried {
				client.Want(503, "upstream connect error or disconnect/reset before headers. reset reason: connection termination")
				return
			}
			r.Advance(time.Second)
			l = r.Hosts[0].Accept()
			l.Head()
			l.Answer("200 OK", "ok")
			client.Want(200, "ok")
		})
	}
}

func TestAHostThatCannotBeReachedIsRetried(t *testing.T) {
	for name, on := range map[string]route.RetryOn{"connect-failure": route.OnConnectFailure, "reset-before-request": route.OnResetBeforeRequest, "5xx": route.On5xx} {
		t.Run(name, func(t *testing.T) {
			r := retrying(t, 1, &route.Retry{On: on, Retries: 1})
			r.Hosts[0].Down()
			client := r.Get("/")
			r.Settle()
			r.Hosts[0].Up()
			r.Advance(time.Second)
			l := r.Hosts[0].Accept()
			l.Head()
			l.Answer("200 OK", "ok")
			client.Want(200, "ok")
		})
	}
}

func TestRetriesEnd(t *testing.T) {
	r := retrying(t, 1, &route.Retry{On: route.On5xx, Retries: 2})
	logs := &streamtest.Logs{}
	r.Manager.AccessLogs = []stream.AccessLog{logs}
	r.Route.IncludeAttemptCount, r.Route.IncludeAttemptCountResponse = true, true
	client := r.Get("/")
	l := r.Hosts[0].Accept()
	for i := range 3 {
		if head := l.Head(); !strings.Contains(head, "x-envoy-attempt-count: "+string(rune('1'+i))) {
			t.Errorf("try %d: %s", i+1, head)
		}
		l.Answer("503 no", "no")
		r.Settle()
		if i < 2 {
			r.Advance(time.Second)
			l = again(r, l)
		}
	}
	client.Want(503, "no")
	if client.Header("x-envoy-attempt-count") != "3" {
		t.Errorf("attempts: %q", client.Header("x-envoy-attempt-count"))
	}
	if e := logs.All[0]; e.Attempts != 3 || e.Flags != "URX" || e.Details != "via_upstream" {
		t.Errorf("%+v", e)
	}
	if r.ClusterStat(upstream.StatRqRetryLimit) != 1 {
		t.Errorf("limit reached %d times", r.ClusterStat(upstream.StatRqRetryLimit))
	}
}

func TestTheBreakerOfRetriesHolds(t *testing.T) {
	r := retrying(t, 1, &route.Retry{On: route.On5xx, Retries: 5})
	r.Cluster.Breakers[0].Retries = 0
	client := r.Get("/")
	l := r.Hosts[0].Accept()
	l.Head()
	l.Answer("503 no", "no")
	client.Want(503, "no")
	if r.ClusterStat(upstream.StatRqRetryOverflow) != 1 {
		t.Error("not counted")
	}
}

func TestTheCallersOwnRetryPolicyIsHonoredAndNotSentOn(t *testing.T) {
	r := streamtest.New(t, 1)
	client := r.Get("/", "x-envoy-retry-on", "5xx, nonsense", "x-envoy-retry-grpc-on", "unavailable", "x-envoy-max-retries", "1")
	l := r.Hosts[0].Accept()
	if head := l.Head(); strings.Contains(head, "retr") {
		t.Errorf("sent on: %s", head)
	}
	l.Answer("503 no", "no")
	r.Settle()
	r.Advance(time.Second)
	l = again(r, l)
	l.Head()
	l.Answer("503 no", "still no")
	client.Want(503, "still no")
}

func TestTheHostSaysHowLongToWait(t *testing.T) {
	r := retrying(t, 1, &route.Retry{On: route.On5xx, Retries: 1, ResetHeaders: []string{"x-other", "retry-after"}, ResetMax: time.Minute})
	client := r.Get("/")
	l := r.Hosts[0].Accept()
	l.Head()
	l.Answer("503 no", "no", "retry-after", "7")
	r.Settle()
	r.Advance(6900 * time.Millisecond)
	if l.Received() != "" || r.Hosts[0].TryAccept() != nil {
		t.Fatal("retried before its time")
	}
	r.Advance(200 * time.Millisecond)
	l = again(r, l)
	l.Head()
	l.Answer("200 OK", "ok")
	client.Want(200, "ok")
}

func TestARetryAvoidsTheHostThatFailed(t *testing.T) {
	for range 20 {
		r := retrying(t, 2, &route.Retry{On: route.On5xx, Retries: 1, AvoidPrevious: true, HostAttempts: 10})
		r.Cluster.Policy = upstream.Random
		client := r.Get("/")
		var l *streamtest.Link
		first := 0
		r.Until("a connection", func() bool {
			for i, h := range r.Hosts {
				if l = h.TryAccept(); l != nil {
					first = i
					return true
				}
			}
			return false
		})
		l.Head()
		l.Answer("503 no", "no")
		r.Settle()
		r.Advance(time.Second)
		l = r.Hosts[1-first].Accept()
		l.Head()
		l.Answer("200 OK", "ok")
		client.Want(200, "ok")
	}
}

// An upload that is retried comes whole, or is not retried.

func TestABodyIsSentAgainFromItsBeginning(t *testing.T) {
	r := retrying(t, 1, &route.Retry{On: route.On5xx, Retries: 1})
	client := r.Open("POST", "/")
	client.Send("one ")
	l := r.Hosts[0].Accept()
	l.Head()
	client.Send("two ")
	r.Settle()
	l.Answer("503 no", "early")
	r.Settle()
	client.Send("three ") // nobody is connected
	r.Advance(time.Second)
	l = r.Hosts[0].Accept()
	l.Head()
	client.EndWith("x-tail", "t")
	if body := l.Chunked(); body != "one two three " {
		t.Errorf("the retry got %q", body)
	}
	l.Answer("200 OK", "ok")
	client.Want(200, "ok")
}

func TestABodyAboveTheLimitIsNotCutWhileARetryWaits(t *testing.T) {
	r := retrying(t, 1, &route.Retry{On: route.On5xx, Retries: 1})
	r.Conn.BufferLimit = 1000
	client := r.Open("POST", "/")
	client.Send(strings.Repeat("a", 600))
	l := r.Hosts[0].Accept()
	l.Head()
	r.Settle()
	l.Answer("503 no", "early")
	r.Settle()
	client.Send(strings.Repeat("b", 600))
	if client.Paused != 1 {
		t.Fatalf("the client is paused %d times above the limit", client.Paused)
	}
	r.Advance(time.Second)
	l = r.Hosts[0].Accept()
	l.Head()
	r.Settle()
	if client.Paused != 0 {
		t.Errorf("the client is paused %d times when its body went", client.Paused)
	}
	client.End("c")
	if body := l.Chunked(); body != strings.Repeat("a", 600)+strings.Repeat("b", 600)+"c" {
		t.Errorf("the retry got %d bytes", len(body))
	}
	l.Answer("503 no", "second")
	client.Want(503, "second") // more than the limit was sent: it could not be retried any more
}

func TestABodyAboveTheLimitGivesTheRetryUpWhileItIsSent(t *testing.T) {
	r := retrying(t, 1, &route.Retry{On: route.On5xx, Retries: 3})
	r.Conn.BufferLimit = 1000
	client := r.Open("POST", "/")
	l := r.Hosts[0].Accept()
	l.Head()
	for range 3 {
		client.Send(strings.Repeat("a", 600))
		r.Settle()
	}
	if client.Paused != 0 {
		t.Error("the client is paused though the upstream takes all")
	}
	l.Answer("503 no", "first")
	client.Want(503, "first")
	if n := r.ClusterStat(upstream.StatRqRetry); n != 0 {
		t.Errorf("%d retries", n)
	}
}

func TestNothingIsKeptOnceTheResponseBegan(t *testing.T) {
	r := retrying(t, 1, &route.Retry{On: route.On5xx, Retries: 3})
	client := r.Open("POST", "/")
	l := r.Hosts[0].Accept()
	l.Head()
	client.Send(strings.Repeat("a", 1000))
	l.Send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
	r.Settle()
	if client.Status != 200 {
		t.Fatalf("status %d", client.Status)
	}
	if n := client.Stream.Kept(); n != 0 {
		t.Errorf("%d bytes are kept", n)
	}
	client.Send("more")
	if n := client.Stream.Kept(); n != 0 {
		t.Errorf("%d bytes are kept", n)
	}
}

func TestTheSmallerLimitCounts(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Hosts[0].Down() // so that nobody takes the body
	r.Conn.BufferLimit = 1000
	r.Cluster.BufferLimit = 1 << 20
	r.Route.Forward.Retry = &route.Retry{On: route.OnConnectFailure, Retries: 100}
	r.Cluster.Breakers[0].Retries = 100
	client := r.Open("POST", "/")
	client.Send(strings.Repeat("a", 1001))
	r.Settle()
	if client.Paused != 1 {
		t.Errorf("paused %d times with 1,001 bytes waiting", client.Paused)
	}
}

func TestAKeptConnectionThatEndedIsReplacedOnce(t *testing.T) {
	for name, c := range map[string]struct {
		method string
		again  bool
	}{"GET": {"GET", true}, "POST": {"POST", false}} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			client := r.Get("/1")
			l := r.Hosts[0].Accept()
			l.Head()
			l.Answer("200 OK", "1")
			client.Want(200, "1")
			r.Settle()
			client = r.Begin(message.HTTP11, streamtest.Head(c.method, "/2"), true)
			l.Head()
			l.Close() // the idle timeout of the host met the request
			r.Settle()
			if !c.again {
				client.Done()
				if client.Status != 503 {
					t.Errorf("status %d", client.Status)
				}
				return
			}
			l = r.Hosts[0].Accept()
			l.Head()
			l.Close()
			client.Done()
			if client.Status != 503 {
				t.Errorf("status %d after the second end", client.Status)
			}
		})
	}
}
