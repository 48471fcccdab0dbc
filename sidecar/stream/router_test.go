package stream_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/stream/streamtest"
	"sallyport/sidecar/upstream"
)

func TestWhatIsAnsweredWithoutAnUpstream(t *testing.T) {
	for name, c := range map[string]struct {
		set    func(r *streamtest.Rig)
		path   string
		status int
		body   string
		flags  string
		detail string
		fields [2]string
		stat   int
	}{
		"no route": {set: func(r *streamtest.Rig) { m := route.NewPath(route.PathExact, "/other", false); r.Matcher = &m },
			status: 404, flags: "NR", detail: "route_not_found", stat: stream.StatNoRoute},
		"no table yet": {set: func(r *streamtest.Rig) { r.Publish(); r.Manager.Routes.Publish(nil) }, status: 404, flags: "NR", detail: "route_not_found", stat: stream.StatNoRoute},
		"a direct response": {set: func(r *streamtest.Rig) {
			r.Route.Forward, r.Route.Direct = nil, &route.Direct{Status: 418, Body: []byte("tea")}
		},
			status: 418, body: "tea", flags: "-", detail: "direct_response", fields: [2]string{"content-type", "text/plain"}, stat: stream.StatDirectResponse},
		"no cluster": {set: func(r *streamtest.Rig) {
			r.Route.Forward.Clusters[0].Cluster.Ref = r.Clusters.Ref("gone")
			r.Route.Forward.NotFoundStatus = 404
		}, status: 404, flags: "NC", detail: "cluster_not_found", stat: stream.StatNoCluster},
		"a cluster named by a header that is not there": {set: func(r *streamtest.Rig) {
			r.Route.Forward.Clusters, r.Route.Forward.TotalWeight, r.Route.Forward.ClusterHeader = nil, 0, "x-to"
		},
			status: 503, flags: "NC", detail: "cluster_not_found", stat: stream.StatNoCluster},
		"no host": {set: func(r *streamtest.Rig) { r.Cluster.Endpoints = nil }, status: 503, body: "no healthy upstream", flags: "UH", detail: "no_healthy_upstream"},
		"drop_overload": {set: func(r *streamtest.Rig) { r.Cluster.DropPercent = 10000 }, status: 503, body: "drop overload", flags: "-", detail: "drop_overload",
			fields: [2]string{"x-envoy-drop-overload", "true"}},
		"the circuit breaker": {set: func(r *streamtest.Rig) { r.Cluster.Breakers[0].Requests = 0 }, status: 503,
			body: "upstream connect error or disconnect/reset before headers. reset reason: overflow", flags: "UO", detail: "upstream_reset_before_response_started{overflow}",
			fields: [2]string{"x-envoy-overloaded", "true"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			logs := logged(r)
			r.Manager.Via = "proxy"
			c.set(r)
			client := r.Get("/x").Want(c.status, c.body)
			if e := logs.All[0]; e.Flags != c.flags || e.Details != c.detail || e.Status != c.status || e.Sent != uint64(len(c.body)) {
				t.Errorf("%+v", e)
			}
			if c.fields[0] != "" && client.Header(c.fields[0]) != c.fields[1] {
				t.Errorf("%s: %q", c.fields[0], client.Header(c.fields[0]))
			}
			for _, n := range []string{"date", "server", "via"} {
				if client.Header(n) == "" {
					t.Errorf("no %s", n)
				}
			}
			if c.stat != 0 && r.Stat(c.stat) != 1 {
				t.Error("not counted")
			}
			if r.Finished != 1 || r.Stat(stream.StatRqActive) != 0 || r.Stat(stream.StatRqCompleted) != 1 {
				t.Error("the stream is not over")
			}
		})
	}
}

func TestLocalRepliesForGRPC(t *testing.T) {
	r := streamtest.New(t, 0)
	grpc := []string{"content-type", "application/grpc+proto"}
	client := r.Begin(message.HTTP2, streamtest.Head("POST", "/s/m", grpc...), true).Want(200, "")
	if client.Header("grpc-status") != "14" || client.Header("grpc-message") != "no healthy upstream" || client.Header("content-type") != "application/grpc" {
		t.Errorf("grpc-status %s, %q", client.Header("grpc-status"), client.Header("grpc-message"))
	}
	r.Filters(&answer{status: 403, body: "50% nö"})
	client = r.Begin(message.HTTP2, streamtest.Head("POST", "/s/m", grpc...), true).Want(200, "")
	if client.Header("grpc-status") != "7" || client.Header("grpc-message") != "50%25 n%C3%B6" {
		t.Errorf("grpc-status %s, %q", client.Header("grpc-status"), client.Header("grpc-message"))
	}
	client = r.Begin(message.HTTP2, streamtest.Head("POST", "/s/m", "content-type", "application/grpcx"), true).Done()
	if client.Status != 403 {
		t.Errorf("another content type got %d", client.Status)
	}
}

// answer is a filter that answers every request.
type answer struct {
	status int
	body   string
}

func (*answer) Name() string { return "answer" }
func (a *answer) RequestHead(c stream.Context, _ *message.Head, _ bool) stream.Verdict {
	return c.Stream.Reply(a.status, a.body, "test", 0, route.HeaderValue{Name: "x-why", Value: "test"})
}

func TestAReplyToHEADHasNoBody(t *testing.T) {
	r := streamtest.New(t, 0).Filters(&answer{401, "who?"})
	client := r.Begin(message.HTTP11, streamtest.Head("HEAD", "/"), true).Want(401, "")
	if client.Header("content-length") != "4" || client.Header("x-why") != "test" {
		t.Errorf("content-length %q", client.Header("content-length"))
	}
}

func TestRedirects(t *testing.T) {
	for name, c := range map[string]struct {
		redirect route.Redirect
		prefix   string
		host     string
		path     string
		want     string
	}{
		"to https":                         {route.Redirect{Status: 301, HTTPS: true}, "/", "a.example", "/x?y=1", "https://a.example/x?y=1"},
		"to https, from the standard port": {route.Redirect{Status: 301, HTTPS: true}, "/", "a.example:80", "/x", "https://a.example/x"},
		"to https, from another port":      {route.Redirect{Status: 301, HTTPS: true}, "/", "a.example:8080", "/x", "https://a.example:8080/x"},
		"a scheme":                         {route.Redirect{Status: 302, Scheme: "ftp"}, "/", "a.example", "/x", "ftp://a.example/x"},
		"a host":                           {route.Redirect{Status: 302, Host: "b.example"}, "/", "a.example:8080", "/x", "http://b.example/x"},
		"a port":                           {route.Redirect{Status: 302, Port: 8443}, "/", "a.example:8080", "/x", "http://a.example:8443/x"},
		"a path":                           {route.Redirect{Status: 302, Path: "/new"}, "/", "a.example", "/x?y=1", "http://a.example/new?y=1"},
		"a path with a query of its own":   {route.Redirect{Status: 302, Path: "/new?z=2"}, "/", "a.example", "/x?y=1", "http://a.example/new?z=2"},
		"without the query":                {route.Redirect{Status: 302, StripQuery: true}, "/", "a.example", "/x?y=1", "http://a.example/x"},
		"another prefix":                   {route.Redirect{Status: 302, Rewrite: route.PathRewrite{HasPrefix: true, Prefix: "/new/"}}, "/old/", "a.example", "/old/x?y=1", "http://a.example/new/x?y=1"},
		"an expression":                    {route.Redirect{Status: 302, Rewrite: route.PathRewrite{Regex: replacer(t, "^/(.*)$", `/r/\1`)}}, "/", "a.example", "/x?y=1", "http://a.example/r/x?y=1"},
		"an IPv6 address":                  {route.Redirect{Status: 302, HTTPS: true}, "/", "[2001:db8::1]", "/x", "https://[2001:db8::1]/x"},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 0)
			m := route.NewPath(route.PathPrefix, c.prefix, false)
			r.Matcher = &m
			r.Route.Forward, r.Route.Redirect = nil, &c.redirect
			r.Route.Matched = m.Taken()
			h := streamtest.Head("GET", c.path)
			h.SetNameString(message.Authority, c.host)
			client := r.Begin(message.HTTP11, h, true).Want(c.redirect.Status, "")
			if got := client.Header("location"); got != c.want {
				t.Errorf("location %s, want %s", got, c.want)
			}
			if r.Stat(stream.StatRedirect) != 1 {
				t.Error("not counted")
			}
		})
	}
}

func TestTheHeadIsRewrittenForTheUpstream(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(r *streamtest.Rig)
		path string
		want map[string]string // "" is the request line
	}{
		"prefix_rewrite":            {set: prefixed("/api", "/v2"), path: "/api/x?q", want: map[string]string{"": "GET /v2/x?q HTTP/1.1", "x-envoy-original-path": "/api/x?q"}},
		"prefix_rewrite to nothing": {set: prefixed("/api", ""), path: "/api", want: map[string]string{"": "GET / HTTP/1.1", "x-envoy-original-path": "/api"}},
		"regex_rewrite":             {set: func(r *streamtest.Rig) { r.Route.Forward.Rewrite.Regex = replacer(t, "/a+", "/b") }, path: "/aaa/c?a", want: map[string]string{"": "GET /b/c?a HTTP/1.1"}},
		"host_rewrite_literal": {set: func(r *streamtest.Rig) { r.Route.Forward.HostRewrite = "new.example" }, path: "/",
			want: map[string]string{"host": "new.example", "x-envoy-original-host": "example.com"}},
		"host_rewrite_literal of the cluster": {set: func(r *streamtest.Rig) {
			r.Route.Forward.HostRewrite, r.Route.Forward.Clusters[0].HostRewrite = "new.example", "newer.example"
		}, path: "/", want: map[string]string{"host": "newer.example"}},
		"host_rewrite_header": {set: func(r *streamtest.Rig) { r.Route.Forward.HostHeader, r.Route.Forward.AppendXFHost = "x-to", true }, path: "/",
			want: map[string]string{"host": "to.example", "x-forwarded-host": "example.com"}},
		"auto_host_rewrite": {set: func(r *streamtest.Rig) {
			r.Route.Forward.AutoHost = true
			r.Cluster.Endpoints[0].Hostname = "host.example"
		}, path: "/",
			want: map[string]string{"host": "host.example", "x-envoy-original-host": "example.com"}},
		"suppress_envoy_headers": {set: func(r *streamtest.Rig) {
			r.Manager.SuppressEnvoyHeaders, r.Route.Forward.HostRewrite, r.Route.Forward.Timeout = true, "new.example", time.Second
			prefixed("/", "/v2/")(r)
		}, path: "/x", want: map[string]string{"": "GET /v2/x HTTP/1.1", "host": "new.example", "x-envoy-original-host": "", "x-envoy-original-path": "", "x-envoy-expected-rq-timeout-ms": ""}},
		"mutations": {set: func(r *streamtest.Rig) {
			r.Route.Forward.Clusters[0].RequestHeaders = []route.HeaderMutation{{Action: route.Append, Name: "x-a", Value: "cluster"}}
			r.Route.RequestHeaders = []route.HeaderMutation{
				{Action: route.Append, Name: "x-a", Value: "route"}, {Action: route.AddIfAbsent, Name: "x-b", Value: "not"}, {Action: route.AddIfAbsent, Name: "x-c", Value: "c"},
				{Action: route.Overwrite, Name: "x-d", Value: "d"}, {Action: route.OverwriteIfExists, Name: "x-e", Value: "not"}, {Action: route.OverwriteIfExists, Name: "x-b", Value: "new"},
				{Action: route.RemoveHeader, Name: "x-to"}, {Action: route.Append, Name: "x-f"}, {Action: route.Append, Name: "x-g", KeepEmpty: true}, {Action: route.Append, Name: "x-h", Format: formatter{}}}
		}, path: "/", want: map[string]string{"x-a": "cluster|route", "x-b": "new", "x-c": "c", "x-d": "d", "x-e": "", "x-to": "", "x-f": "", "x-h": "made"}},
		"via": {set: func(r *streamtest.Rig) { r.Manager.Via = "me" }, path: "/", want: map[string]string{"via": "me"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			c.set(r)
			m := seen(t, r, streamtest.Head("GET", c.path, "x-b", "b", "x-to", "to.example"))
			for name, want := range c.want {
				if got := strings.Join(m[name], "|"); got != want {
					t.Errorf("%q: %q, want %q", name, got, want)
				}
			}
		})
	}
}

type formatter struct{}

func (formatter) AppendValue(dst []byte, s any) []byte {
	if _, is := s.(*stream.Stream); !is {
		panic("not a stream")
	}
	return append(dst, "made"...)
}

func prefixed(from, to string) func(*streamtest.Rig) {
	return func(r *streamtest.Rig) {
		m := route.NewPath(route.PathPrefix, from, false)
		r.Matcher = &m
		r.Route.Matched = m.Taken()
		r.Route.Forward.Rewrite = route.PathRewrite{HasPrefix: true, Prefix: to}
	}
}

func TestTheResponseIsMutated(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(r *streamtest.Rig)
		want map[string]string
	}{
		"as it is":          {set: func(*streamtest.Rig) {}, want: map[string]string{"server": "sallyport", "x-envoy-upstream-service-time": "0", "x-up": "1"}},
		"server, kept":      {set: func(r *streamtest.Rig) { r.Manager.ServerHeader = stream.ServerPassThrough }, want: map[string]string{"server": "origin"}},
		"server, if absent": {set: func(r *streamtest.Rig) { r.Manager.ServerHeader = stream.ServerAppendIfAbsent }, want: map[string]string{"server": "origin"}},
		"of route and cluster": {set: func(r *streamtest.Rig) {
			r.Route.Forward.Clusters[0].ResponseHeaders = []route.HeaderMutation{{Action: route.Append, Name: "x-up", Value: "2"}}
			r.Route.ResponseHeaders = []route.HeaderMutation{{Action: route.Append, Name: "x-up", Value: "3"}}
		}, want: map[string]string{"x-up": "1,2,3"}},
		"suppress_envoy_headers": {set: func(r *streamtest.Rig) { r.Manager.SuppressEnvoyHeaders = true }, want: map[string]string{"x-envoy-upstream-service-time": ""}},
		"the filters come last": {set: func(r *streamtest.Rig) {
			r.Route.ResponseHeaders = []route.HeaderMutation{{Action: route.Append, Name: "x-up", Value: "2"}}
			r.Filters(&spy{response: func(_ stream.Context, h *message.Head) {
				h.AddString("x-filter", string(h.Lookup("x-up")))
				h.Remove("x-up")
			}})
		}, want: map[string]string{"x-up": "", "x-filter": "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			c.set(r)
			client := r.Get("/")
			l := r.Hosts[0].Accept()
			l.Head()
			l.Answer("200 OK", "ok", "server", "origin", "x-up", "1")
			client.Want(200, "ok")
			for name, want := range c.want {
				if got := client.Header(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if client.Header("date") == "" {
				t.Error("no date")
			}
		})
	}
}

func TestHashPolicies(t *testing.T) {
	// The hash decides among many hosts: equal requests meet the same one.
	policy := func(p ...route.HashPolicy) func(r *streamtest.Rig) {
		return func(r *streamtest.Rig) { r.Route.Forward.Hash = p }
	}
	header := route.HashPolicy{Kind: route.HashHeader, Name: "x-user"}
	for name, c := range map[string]struct {
		set  func(r *streamtest.Rig)
		a, b *message.Head
		same bool
	}{
		"a header, the same":              {policy(header), streamtest.Head("GET", "/", "x-user", "ada"), streamtest.Head("GET", "/2", "x-user", "ada"), true},
		"a header, another":               {policy(header), streamtest.Head("GET", "/", "x-user", "ada"), streamtest.Head("GET", "/", "x-user", "bob"), false},
		"a header in two lines":           {policy(header), streamtest.Head("GET", "/", "x-user", "ada", "x-user", "x"), streamtest.Head("GET", "/", "x-user", "ada", "x-user", "y"), false},
		"a cookie":                        {policy(route.HashPolicy{Kind: route.HashCookie, Name: "s", TTL: -1}), streamtest.Head("GET", "/", "cookie", "a=1; s=9"), streamtest.Head("GET", "/", "cookie", "s=9; a=2"), true},
		"the address":                     {policy(route.HashPolicy{Kind: route.HashSourceIP}), streamtest.Head("GET", "/1"), streamtest.Head("GET", "/2"), true},
		"a query parameter":               {policy(route.HashPolicy{Kind: route.HashQuery, Name: "q"}), streamtest.Head("GET", "/?q=1&r=1"), streamtest.Head("GET", "/x?r=2&q=1"), true},
		"two policies, the second counts": {policy(header, route.HashPolicy{Kind: route.HashQuery, Name: "q"}), streamtest.Head("GET", "/?q=1", "x-user", "ada"), streamtest.Head("GET", "/?q=2", "x-user", "ada"), false},
		"a terminal one ends the list": {policy(route.HashPolicy{Kind: route.HashHeader, Name: "x-user", Terminal: true}, route.HashPolicy{Kind: route.HashQuery, Name: "q"}),
			streamtest.Head("GET", "/?q=1", "x-user", "ada"), streamtest.Head("GET", "/?q=2", "x-user", "ada"), true},
		"a terminal one that gives nothing does not": {policy(route.HashPolicy{Kind: route.HashHeader, Name: "x-none", Terminal: true}, route.HashPolicy{Kind: route.HashQuery, Name: "q"}),
			streamtest.Head("GET", "/?q=1"), streamtest.Head("GET", "/?q=1"), true},
	} {
		t.Run(name, func(t *testing.T) {
			hosts := [2]*upstream.Host{}
			for i, h := range []*message.Head{c.a, c.b} {
				r := streamtest.New(t, 0)
				r.Cluster.Policy, r.Cluster.MinRing, r.Cluster.MaxRing = upstream.RingHash, 1024, 1024
				for n := range 200 {
					r.Cluster.Endpoints = append(r.Cluster.Endpoints, upstream.Endpoint{Path: fmt.Sprintf("/nonexistent/%d", n), Weight: 1})
				}
				c.set(r)
				r.Filters(&spy{done: func(c stream.Context) { hosts[i] = c.Stream.Host }})
				r.Begin(message.HTTP11, h, true).Done()
			}
			if hosts[0] == nil || hosts[1] == nil {
				t.Fatal("no host was chosen")
			}
			if same := hosts[0].String() == hosts[1].String(); same != c.same {
				t.Errorf("%s and %s", hosts[0], hosts[1])
			}
		})
	}
}

func TestASessionCookieIsMade(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Route.Forward.Hash = []route.HashPolicy{{Kind: route.HashCookie, Name: "session", TTL: time.Hour, Path: "/a", Attrs: "; Secure"}}
	r.Cluster.Policy, r.Cluster.MinRing, r.Cluster.MaxRing = upstream.RingHash, 1024, 1024
	client := r.Get("/")
	l := r.Hosts[0].Accept()
	l.Head()
	l.Answer("200 OK", "")
	client.Want(200, "")
	cookie := client.Header("set-cookie")
	if !strings.HasPrefix(cookie, "session=") || !strings.HasSuffix(cookie, "; Max-Age=3600; Path=/a; Secure; HttpOnly") || len(cookie) < 30 {
		t.Errorf("set-cookie: %s", cookie)
	}
	value, _, _ := strings.Cut(strings.TrimPrefix(cookie, "session="), ";")
	client = r.Get("/", "cookie", "session="+value)
	l.Head()
	l.Answer("200 OK", "")
	if client.Want(200, ""); client.Header("set-cookie") != "" {
		t.Error("a client that has the cookie gets another one")
	}
}

func TestClustersByWeight(t *testing.T) {
	// Binomial: 2,000 requests at 3 to 1 are within six standard deviations.
	r := streamtest.New(t, 0)
	f := r.Route.Forward
	f.Clusters = []route.WeightedCluster{
		{Cluster: route.ClusterRef{Name: "a", Ref: r.Clusters.Ref("a")}, Weight: 3, ResponseHeaders: []route.HeaderMutation{{Action: route.Append, Name: "x-cluster", Value: "a"}}},
		{Cluster: route.ClusterRef{Name: "b", Ref: r.Clusters.Ref("b")}, Weight: 1, Overrides: []route.Override{{Filter: 0, Config: "of b"}}}}
	f.TotalWeight = 4
	r.Route.Overrides = []route.Override{{Filter: 0, Config: "of the route"}}
	f.Clusters[0].Overrides = r.Route.Overrides
	var override any
	r.Filters(&spy{head: func(c stream.Context, _ *message.Head) { override = c.Override() }})
	logs := logged(r)
	n := map[string]int{}
	for range 2000 {
		client := r.Get("/").Done()
		e := logs.All[len(logs.All)-1]
		n[e.Cluster]++
		if want := map[string]any{"a": "of the route", "b": "of b"}[e.Cluster]; override != want {
			t.Fatalf("cluster %s has the override %v", e.Cluster, override)
		}
		if (client.Header("x-cluster") == "a") != (e.Cluster == "a") {
			t.Fatal("the headers are those of another cluster")
		}
	}
	if bound := 6 * math.Sqrt(2000*0.75*0.25); math.Abs(float64(n["a"])-1500) > bound || n["a"]+n["b"] != 2000 {
		t.Errorf("%v", n)
	}
}

func TestAFilterChangesTheRoute(t *testing.T) {
	r := streamtest.New(t, 1)
	m := route.NewPath(route.PathPrefix, "/new", false)
	r.Matcher = &m
	r.Filters(&spy{head: func(c stream.Context, h *message.Head) {
		if c.Stream.Route != nil {
			t.Error("a route before the change")
		}
		h.SetNameString(message.Path, "/new/x")
		c.Stream.Reroute()
	}})
	client := r.Get("/old")
	l := r.Hosts[0].Accept()
	if head := l.Head(); !strings.HasPrefix(head, "GET /new/x ") {
		t.Errorf("%s", head)
	}
	l.Answer("200 OK", "ok")
	client.Want(200, "ok")
}

func TestAClusterNamedByAHeader(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Route.Forward.Clusters, r.Route.Forward.TotalWeight, r.Route.Forward.ClusterHeader = nil, 0, "x-to"
	if m := seen(t, r, streamtest.Head("GET", "/", "x-to", "backend")); len(m["x-to"]) != 1 {
		t.Errorf("%v", m)
	}
	if client := r.Get("/", "x-to", "nobody").Done(); client.Status != 503 {
		t.Errorf("status %d", client.Status)
	}
}

func TestHopByHopProtocols(t *testing.T) {
	for _, p := range []message.Version{message.HTTP10, message.HTTP11, message.HTTP2} {
		t.Run(p.String(), func(t *testing.T) {
			r := streamtest.New(t, 1)
			client := r.Begin(p, streamtest.Head("POST", "/", "expect", "100-continue"), false)
			l := r.Hosts[0].Accept()
			if head := l.Head(); strings.Contains(head, "expect") {
				t.Errorf("expect is sent on: %s", head)
			}
			if want := p != message.HTTP10; slices.Contains(client.Infos, 100) != want {
				t.Errorf("informational: %v", client.Infos)
			}
			client.End("x")
			l.Send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n")
			l.Answer("200 OK", "ok")
			client.Want(200, "ok")
			if slices.Contains(client.Infos[min(1, len(client.Infos)):], 100) || !slices.Contains(client.Infos, 103) {
				t.Errorf("informational: %v", client.Infos)
			}
			counted := [2]int64{r.Stat(stream.StatRqHTTP1), r.Stat(stream.StatRqHTTP2)}
			if want := map[bool][2]int64{true: {0, 1}, false: {1, 0}}[p == message.HTTP2]; counted != want {
				t.Errorf("counted %v", counted)
			}
		})
	}
}

func TestProxy100Continue(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Manager.Proxy100 = true
	client := r.Begin(message.HTTP11, streamtest.Head("POST", "/", "expect", "100-continue"), false)
	l := r.Hosts[0].Accept()
	if head := l.Head(); !strings.Contains(head, "expect: 100-continue") || len(client.Infos) > 0 {
		t.Errorf("%s; informational %v", head, client.Infos)
	}
	l.Send("HTTP/1.1 100 Continue\r\n\r\n")
	r.Until("100", func() bool { return slices.Contains(client.Infos, 100) })
}

func TestInformationalHeadsDoNotPileUp(t *testing.T) {
	r := streamtest.New(t, 1)
	client := r.Get("/")
	client.Blocked = true
	l := r.Hosts[0].Accept()
	l.Head()
	l.Send("HTTP/1.1 103 Early Hints\r\n\r\n")
	r.Settle()
	client.Blocked = false
	l.Answer("200 OK", "ok")
	client.Want(200, "ok")
	if len(client.Infos) != 0 {
		t.Errorf("informational: %v", client.Infos)
	}
}
