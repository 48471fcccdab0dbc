package integration

import (
	"strings"
	"time"

	"sallyport/integration/harness"
)

// exchanges are what Envoy and sallyport are compared by. Statuses are Envoy 1.40's.
func exchanges(issuer *harness.Issuer) []exchange {
	hour := time.Now().Add(time.Hour)
	return slicesOf(routing(), routeActions(), failures(), filters(issuer, hour), bodies(), http1Forms(), refused(), http2(), balancing(), strict())
}

func slicesOf(lists ...[]exchange) (all []exchange) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

func get(path string, fields ...string) string { return harness.Request("GET", path, "", fields...) }

func routing() []exchange {
	return []exchange{
		{name: "route by prefix", raw: get("/prefix/and/more"), want: 200},
		{name: "route by exact path", raw: get("/exact"), want: 200},
		{name: "an exact path and a query", raw: get("/exact?a=b"), want: 200},
		{name: "an exact path is no prefix", raw: get("/exact/more"), want: 404},
		{name: "route by separated prefix, itself", raw: get("/separated"), want: 200},
		{name: "route by separated prefix, below", raw: get("/separated/x"), want: 200},
		{name: "a separated prefix ends at a separator", raw: get("/separatedx"), want: 404},
		{name: "route by regex", raw: get("/re/123"), want: 200},
		{name: "a regex matches the whole path", raw: get("/re/123/x"), want: 404},
		{name: "a regex ignores the query", raw: get("/re/123?x"), want: 200},
		{name: "a path without regard to case", raw: get("/FOLDED/x"), want: 200},
		{name: "a path is case-sensitive otherwise", raw: get("/PREFIX"), want: 404},
		{name: "route by exact header", raw: get("/header", "x-user: alice"), want: 200},
		{name: "route by header prefix and absence", raw: get("/header", "x-user: bob"), want: 200},
		{name: "an inverted header match", raw: get("/header", "x-user: bob", "x-not: here"), want: 200},
		{name: "route by header range", raw: get("/header", "x-number: 10"), want: 200},
		{name: "a header range excludes its end", raw: get("/header", "x-number: 20"), want: 200},
		{name: "a header given twice", raw: get("/header", "x-user: alice", "x-user: alice"), want: 200},
		{name: "one of two values of a header", raw: get("/header", "x-user: alice", "x-user: mallory"), want: 200},
		{name: "two values in one line of a header", raw: get("/header", "x-user: alice,mallory"), want: 200},
		{name: "header names have no case", raw: get("/header", "X-User: alice"), want: 200},
		{name: "route by method POST", raw: harness.Request("POST", "/method", "x"), want: 200},
		{name: "route by method GET", raw: get("/method"), want: 200},
		{name: "route by query value", raw: get("/query?v=2"), want: 200},
		{name: "route by query presence", raw: get("/query?flag"), want: 200},
		{name: "a query parameter in second place", raw: get("/query?a=1&v=2"), want: 200},
		{name: "a query that does not match", raw: get("/query?v=3"), want: 200},
		{name: "weights of 0 and 100", raw: get("/weighted"), want: 200},
		{name: "route by host suffix", raw: get("/", "host: a.wild.example"), want: 200},
		{name: "the longer host suffix wins", raw: get("/", "host: a.very.wild.example"), want: 200},
		{name: "route by host prefix", raw: get("/", "host: api.anything"), want: 200},
		{name: "hosts have no case", raw: get("/prefix", "host: TEST.Example"), want: 200},
		{name: "a host with its port", raw: get("/prefix", "host: test.example:80"), want: 200},
		{name: "a host with another port", raw: get("/prefix", "host: test.example:81"), want: 404},
		{name: "an unknown host", raw: get("/prefix", "host: nowhere.example"), want: 404},
		{name: "an unknown path", raw: get("/nowhere"), want: 404},
		{name: "a path with escapes", raw: get("/prefix/%41%2f%20?q=%20+&&"), want: 200},
		{name: "a path with dots", raw: get("/prefix/../exact"), want: 200},
		{name: "a path with two slashes", raw: get("//prefix"), want: 404},
		{name: "a regex without a table of states", raw: get("/slow/a" + strings.Repeat("b", 20)), want: 200},
		{name: "a regex that would take too long", raw: get("/slow/" + strings.Repeat("ab", 25<<10)), want: 404,
			ours: 414, why: "a request has a budget for regular expressions; RE2 has none"},
		{name: "a regex and a long path", raw: get("/re/" + strings.Repeat("1", 50<<10)), want: 200},
		{name: "a regex rewrite of a long path", raw: get("/rewrite/regex/a/" + strings.Repeat("b", 20<<10)), want: 200},
	}
}

func routeActions() []exchange {
	return []exchange{
		{name: "prefix rewrite", raw: get("/rewrite/a/b?c=d"), want: 200},
		{name: "regex rewrite", raw: get("/rewrite/regex/a/b/c?d=e"), want: 200},
		{name: "host rewrite", raw: get("/rewrite/host"), want: 200},
		{name: "redirect to a path", raw: get("/redirect/path?a=b"), want: 301},
		{name: "redirect with a prefix rewrite", raw: get("/redirect/prefix/x?a=b"), want: 302},
		{name: "redirect to a host", raw: get("/redirect/host/x?a=b"), want: 308},
		{name: "redirect to https", raw: get("/redirect/https/x?a=b"), want: 307},
		{name: "direct response", raw: get("/direct"), want: 418},
		{name: "direct response to HEAD", raw: harness.Request("HEAD", "/direct", ""), want: 418},
		{name: "direct response without content", raw: get("/direct/empty"), want: 204},
		{name: "direct response to a request with content", raw: harness.Request("POST", "/direct", "content"), want: 418},
		{name: "headers added and removed", raw: get("/headers", "x-client: first", "x-over: old", "x-secret: s", "x-absent: here"),
			replies: []string{harness.OK("ok", "x-reply: old", "x-internal: i")}, want: 200},
		{name: "headers added where there are none", raw: get("/headers"), want: 200},
	}
}

func failures() []exchange {
	return []exchange{
		{name: "a timeout is 504", raw: get("/timeout"), replies: []string{harness.Silence}, want: 504},
		{name: "a client may not change the timeout", raw: get("/timeout", "x-envoy-upstream-rq-timeout-ms: 50000"), replies: []string{harness.Silence}, want: 504},
		{name: "no healthy upstream is 503", raw: get("/empty"), want: 503},
		{name: "a refused connection is 503", raw: get("/dead"), want: 503},
		{name: "a cluster that does not exist is 503", raw: get("/unknown-cluster-header", "x-cluster: nothing"), want: 503},
		{name: "a cluster by header", raw: get("/unknown-cluster-header", "x-cluster: two"), want: 200},
		{name: "a cluster header that is absent", raw: get("/unknown-cluster-header"), want: 503},
		{name: "an upstream that hangs up is 503", raw: get("/prefix/warm") + get("/prefix"), n: 2, replies: []string{harness.Ordinary, harness.Hangup}, want: 503,
			ours: 200, why: "RFC 9112 §9.3.1: a kept connection that ends without an answer may have been closed for idleness, so a GET is sent once more, on a new one"},
		{name: "an upstream that hangs up on a POST is 503", raw: harness.Request("POST", "/prefix", "x"), replies: []string{harness.Hangup}, want: 503},
		{name: "an upstream that talks nonsense is 502", raw: get("/prefix"), replies: []string{"HTTP/9.9 what\r\n\r\n"}, want: 502},
		{name: "an upstream that answers with two lengths is 502", raw: get("/prefix"),
			replies: []string{"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"}, want: 502},
		{name: "a retry that succeeds", raw: get("/retry"), replies: []string{harness.Response(503, "a"), harness.OK("good")}, want: 200},
		{name: "retries that do not", raw: get("/retry"),
			replies: []string{harness.Response(500, "a"), harness.Response(502, "b"), harness.Response(503, "c")}, want: 503},
		{name: "4xx is not retried", raw: get("/retry"), replies: []string{harness.Response(404, "a")}, want: 404},
		{name: "a retry sends the content again", raw: harness.Request("POST", "/retry", "content"),
			replies: []string{harness.Response(503, "a"), harness.OK("good")}, want: 200},
		{name: "a reset is retried", raw: get("/reset-retry"), replies: []string{harness.Hangup, harness.OK("good")}, want: 200},
		{name: "an upstream's own 5xx goes through", raw: get("/prefix"), replies: []string{harness.Response(500, "mine", "x-mine: y")}, want: 500},
	}
}

func filters(issuer *harness.Issuer, exp time.Time) []exchange {
	stranger := harness.Issuer(*issuer)
	stranger.Name = "https://stranger.example"
	token := issuer.Token(exp, map[string]any{"role": "admin"})
	forged := token[:len(token)-8] + "AAAAAAAA"
	cors := []string{"origin: https://good.example"}
	return []exchange{
		{name: "RBAC allows by header", raw: get("/rbac/admin", "x-role: admin"), want: 200},
		{name: "RBAC denies without it", raw: get("/rbac/admin"), want: 403},
		{name: "RBAC allows where one of two values matches", raw: get("/rbac/admin", "x-role: admin", "x-role: guest"), want: 200},
		{name: "RBAC denies by header", raw: get("/rbac-deny", "x-role: guest"), want: 403},
		{name: "RBAC denies where one of two values matches", raw: get("/rbac-deny", "x-role: guest", "x-role: admin"), want: 403},
		{name: "RBAC denies where the other of two values matches", raw: get("/rbac-deny", "x-role: admin", "x-role: guest"), want: 403},
		{name: "RBAC lets through what it does not deny", raw: get("/rbac-deny", "x-role: admin"), want: 200},
		{name: "RBAC allows by method and path", raw: get("/rbac/read"), want: 200},
		{name: "RBAC ignores the query of a path", raw: get("/rbac/read?x"), want: 200},
		{name: "RBAC denies another method", raw: harness.Request("POST", "/rbac/read", "x"), want: 403},
		{name: "RBAC allows by address", raw: get("/rbac/local"), want: 200},
		{name: "RBAC denies what no policy names", raw: get("/rbac/other"), want: 403},
		{name: "a valid token", raw: get("/jwt", "authorization: Bearer "+token), want: 200},
		{name: "no token", raw: get("/jwt"), want: 401},
		{name: "a forged token", raw: get("/jwt", "authorization: Bearer "+forged), want: 401},
		{name: "an expired token", raw: get("/jwt", "authorization: Bearer "+issuer.Token(exp.Add(-2*time.Hour), nil)), want: 401},
		{name: "a token of another issuer", raw: get("/jwt", "authorization: Bearer "+stranger.Token(exp, nil)), want: 401},
		{name: "no token at all in it", raw: get("/jwt", "authorization: Bearer nonsense"), want: 401},
		{name: "a token in another scheme", raw: get("/jwt", "authorization: Basic "+token), want: 401},
		{name: "a token in the query", raw: get("/jwt?access_token=" + token), want: 200},
		{name: "a scheme in small letters", raw: get("/jwt", "authorization: bearer "+token), want: 401,
			ours: 200, why: "RFC 9110 §11.1: a scheme has no case"},
		{name: "a second token in a second line", raw: get("/jwt", "authorization: Bearer "+token, "authorization: Bearer "+forged), want: 401},
		{name: "a second line of another scheme", raw: get("/jwt", "authorization: Basic eDp5", "authorization: Bearer "+token), want: 200,
			ours: 401, why: "RFC 9110 §11.6.2 has one Authorization, and the application may take the other one"},
		{name: "a second token in the line", raw: get("/jwt", "authorization: Bearer "+token+",Bearer "+forged), want: 401},
		{name: "a forged token beside a good one, in an escaped parameter", raw: get("/jwt?access%5Ftoken="+forged, "authorization: Bearer "+token), want: 401},
		{name: "a token in an escaped parameter", raw: get("/jwt?%61ccess_token=" + token), want: 200},
		{name: "a forged token beside a good one, in the same parameter", raw: get("/jwt?access_token=" + token + "&access_token=" + forged), want: 200,
			ours: 401, why: "the application may take the second one"},
		{name: "a forged token beside a good one, behind a semicolon", raw: get("/jwt?a=b;access_token="+forged, "authorization: Bearer "+token), want: 200,
			ours: 401, why: "some applications take a semicolon for an ampersand"},
		{name: "within the rate limit", raw: get("/limited"), want: 200},
		{name: "over the rate limit", raw: get("/limited"), want: 429},
		{name: "a CORS preflight", raw: harness.Request("OPTIONS", "/cors", "", append(cors, "access-control-request-method: GET")...), want: 200, but: []string{"+ vary: origin"}, why: varies},
		{name: "a CORS preflight by suffix", raw: harness.Request("OPTIONS", "/cors", "", "origin: https://a.friends.example", "access-control-request-method: GET"), want: 200, but: []string{"+ vary: origin"}, why: varies},
		{name: "a CORS preflight of a stranger", raw: harness.Request("OPTIONS", "/cors", "", "origin: https://bad.example", "access-control-request-method: GET"), want: 200, but: []string{"+ vary: origin"}, why: varies},
		{name: "OPTIONS that is no preflight", raw: harness.Request("OPTIONS", "/cors", "", cors...), want: 200, but: []string{"+ vary: origin"}, why: varies},
		{name: "a CORS request", raw: get("/cors", cors...), want: 200, but: []string{"+ vary: origin"}, why: varies},
		{name: "a CORS request of two origins", raw: get("/cors", cors[0], "origin: https://bad.example"), want: 200,
			but: []string{"- origin: https://good.example,https://bad.example", "+ vary: origin", "+ origin: https://good.example", "+ origin: https://bad.example"}, why: varies},
		{name: "a request without an origin to what has a CORS policy", raw: get("/cors"), want: 200, but: []string{"+ vary: origin"}, why: varies},
		{name: "a CORS preflight where all is allowed", raw: harness.Request("OPTIONS", "/crossorigin", "", append(cors, "access-control-request-method: PUT", "access-control-request-headers: x-a, x-b")...),
			want: 200, but: []string{"+ vary: origin"}, why: varies},
		{name: "a CORS request whose answer varies already", raw: get("/crossorigin", cors...), replies: []string{harness.OK("x", "vary: accept")},
			want: 200, but: []string{"- vary: accept", "+ vary: accept, origin"}, why: varies},
		{name: "a CORS request of a stranger", raw: get("/cors", "origin: https://bad.example"), want: 200, but: []string{"+ vary: origin"}, why: varies},
	}
}

// varies is why responses that depend on the origin have a field that Envoy's have not.
const varies = "Fetch, CORS protocol and HTTP caches: a cache must not give one origin what was meant for another"

func bodies() []exchange {
	chunked := "POST /prefix HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\n"
	long := strings.Repeat("0123456789abcdef", 20000)
	return []exchange{
		{name: "content with a length", raw: harness.Request("POST", "/prefix", "hello"), want: 200},
		{name: "content in two pieces", talk: interleaved},
		{name: "320 kB of content", raw: harness.Request("POST", "/prefix", long), replies: []string{harness.OK(long)}, want: 200},
		{name: "content of length 0", raw: get("/prefix", "content-length: 0"), want: 200},
		{name: "POST without content", raw: "POST /prefix HTTP/1.1\r\nhost: test.example\r\ncontent-length: 0\r\n\r\n", want: 200},
		{name: "chunked content", raw: chunked + "\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", want: 200},
		{name: "chunked content with extensions", raw: chunked + "\r\n5;a=b\r\nhello\r\n0\r\n\r\n", want: 200},
		{name: "chunked content with trailers", raw: chunked + "trailer: x-end\r\n\r\n5\r\nhello\r\n0\r\nx-end: yes\r\n\r\n", want: 200},
		{name: "no chunk but the last", raw: chunked + "\r\n0\r\n\r\n", want: 200},
		{name: "a chunked response", raw: get("/prefix"), replies: []string{"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"}, want: 200},
		{name: "a response until the end", raw: get("/prefix"), replies: []string{"HTTP/1.1 200 OK\r\n\r\nhello"}, want: 200},
		{name: "a response with nothing", raw: get("/prefix"), replies: []string{"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"}, want: 200},
		{name: "a response with its own headers", raw: get("/prefix"),
			replies: []string{harness.OK("x", "Set-Cookie: a=b", "set-cookie: c=d", "ETag: \"e\"", "keep-alive: timeout=5", "x-empty:")}, want: 200},
		{name: "a response with its own date and server", raw: get("/prefix"), replies: []string{harness.OK("x", "date: Thu, 01 Jan 1970 00:00:00 GMT", "server: theirs")}, want: 200},
		{name: "204", raw: get("/prefix"), replies: []string{"HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n"}, want: 204},
		{name: "304 with a length", raw: get("/prefix"), replies: []string{"HTTP/1.1 304 Not Modified\r\netag: \"e\"\r\n\r\n"}, want: 304},
		{name: "a status of its own", raw: get("/prefix"), replies: []string{"HTTP/1.1 299 Whatever\r\ncontent-length: 0\r\n\r\n"}, want: 299},
		{name: "HEAD", raw: harness.Request("HEAD", "/prefix", ""), want: 200},
		{name: "HEAD of something chunked", raw: harness.Request("HEAD", "/prefix", ""), replies: []string{"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"}, want: 200,
			but: []string{"- transfer-encoding: chunked"}, why: "RFC 9112 §6.1: it may be left out of an answer to HEAD"},
		{name: "HEAD that finds nothing", raw: harness.Request("HEAD", "/nowhere", ""), want: 404,
			but: []string{"- transfer-encoding: chunked"}, why: "RFC 9112 §6.1: it may be left out of an answer to HEAD"},
		{name: "expect 100-continue", raw: harness.Request("POST", "/prefix", "hello", "expect: 100-continue"), want: 200},
		{name: "a client that waits for 100", talk: waitFor100},
		{name: "expect something else", raw: harness.Request("POST", "/prefix", "hello", "expect: a miracle"), want: 200},
		{name: "DELETE with content", raw: harness.Request("DELETE", "/prefix", "x"), want: 200},
		{name: "GET with content", raw: harness.Request("GET", "/prefix", "x"), want: 200},
		{name: "QUERY with content", raw: harness.Request("QUERY", "/prefix", "x", "content-type: text/plain"), want: 200},
		{name: "QUERY with chunked content", raw: "QUERY /prefix HTTP/1.1\r\nhost: test.example\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", want: 200},
		{name: "QUERY over HTTP/2", h2: &harness.H2Request{Method: "QUERY", Path: "/prefix", Body: "x", Fields: []harness.Field{{Name: "content-type", Value: "text/plain"}}}, want: 200},
		{name: "QUERY whose content has no type", raw: harness.Request("QUERY", "/prefix", "x"), want: 400,
			ours: 200, why: "what its content must be is for the server to judge, which answers 400 or 415 (RFC 10008)"},
		{name: "QUERY over HTTP/2 whose content has no type", h2: &harness.H2Request{Method: "QUERY", Path: "/prefix", Body: "x"}, want: 400,
			ours: 200, why: "what its content must be is for the server to judge, which answers 400 or 415 (RFC 10008)"},
		{name: "a method of its own", raw: harness.Request("PURGE", "/prefix", ""), want: 200},
	}
}

func http1Forms() []exchange {
	return []exchange{
		{name: "absolute form", raw: "GET http://test.example/prefix/x?y HTTP/1.1\r\nhost: ignored.example\r\n\r\n", want: 200},
		{name: "absolute form without a path", raw: "GET http://a.wild.example HTTP/1.1\r\nhost: test.example\r\n\r\n", want: 200},
		{name: "pipelining", raw: get("/prefix/1") + get("/prefix/2") + get("/direct"), n: 3, want: 418},
		{name: "pipelining after content", raw: harness.Request("POST", "/prefix/1", "one") + get("/prefix/2"), n: 2, want: 200},
		{name: "connection close", raw: get("/prefix", "connection: close"), want: 200},
		{name: "connection close, a local reply", raw: get("/nowhere", "connection: close"), want: 404},
		{name: "connection keep-alive", raw: get("/prefix", "connection: keep-alive"), want: 200},
		{name: "an upstream that closes", raw: get("/prefix"), replies: []string{harness.OK("bye", "connection: close")}, want: 200},
		{name: "headers of one hop", raw: get("/prefix", "connection: x-hop, keep-alive", "x-hop: a", "keep-alive: 5", "te: trailers", "proxy-connection: keep-alive"), want: 200,
			but: []string{"+ connection: te"}, why: "RFC 9110 §10.1.4: who sends TE lists it in Connection"},
		{name: "a header without a value", raw: get("/prefix", "x-empty:", "x-blank:   "), want: 200},
		{name: "a header of bytes over 127", raw: get("/prefix", "x-name: J\xc3\xbcrgen \xff"), want: 200},
		{name: "cookies", raw: get("/prefix", "cookie: a=b", "cookie: c=d"), want: 200},
		{name: "forwarded headers from outside", raw: get("/prefix", "x-forwarded-for: 1.2.3.4", "x-forwarded-proto: https", "x-request-id: mine"), want: 200},
		{name: "Envoy's own headers from outside", raw: get("/prefix", "x-envoy-original-path: /a", "x-envoy-internal: true", "x-envoy-decorator-operation: op"), want: 200},
		{name: "WebSocket", but: []string{"- connection: Upgrade", "- connection: Upgrade", "- x-envoy-expected-rq-timeout-ms: 15000",
			"+ connection: upgrade", "+ x-envoy-upstream-service-time: …", "+ connection: upgrade"},
			why: "options have no case (RFC 9110 §7.6.1), and the route's timeout does not bind a tunnel", replies: []string{"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"}, talk: websocket},
		{name: "an upgrade that the upstream declines", raw: get("/prefix", "connection: Upgrade", "upgrade: websocket"), want: 200,
			ours: 200, why: "RFC 9110 §7.8: a server may ignore Upgrade; its answer goes through, where Envoy cuts it off"},
		{name: "an upgrade that is not allowed", raw: get("/prefix", "connection: Upgrade", "upgrade: chat"), want: 403},
		{name: "an upgrade that is not allowed in a second line", raw: get("/prefix", "connection: Upgrade", "upgrade: websocket", "upgrade: chat"), want: 403},
		{name: "an upgrade that is not allowed in a list", raw: get("/prefix", "connection: Upgrade", "upgrade: chat, websocket"), want: 403},
		{name: "an upgrade to one of two, h2c among them", raw: get("/prefix", "connection: Upgrade", "upgrade: h2c", "upgrade: websocket"), want: 403},
		{name: "an upgrade to h2c", raw: get("/prefix", "connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"), want: 200},
		{name: "Connection names X-Forwarded-For", raw: get("/prefix", "connection: x-forwarded-for", "x-forwarded-for: 1.2.3.4"), want: 400},
		{name: "Connection names X-Forwarded-Proto in a second line", raw: get("/prefix", "connection: keep-alive", "connection: x-forwarded-proto"), want: 400},
		{name: "HTTP/1.0 where it is not allowed", raw: "GET /prefix HTTP/1.0\r\nhost: test.example\r\n\r\n", want: 426},
		{name: "HTTP/1.0", listener: "old", raw: "GET /prefix HTTP/1.0\r\nhost: test.example\r\n\r\n", want: 200,
			but: []string{"- HTTP/1.0 200 OK", "+ HTTP/1.1 200 OK"}, why: "RFC 9110 §6.2: a server answers with its own version"},
		{name: "HTTP/1.0 without a host", listener: "old", raw: "GET /prefix HTTP/1.0\r\n\r\n", want: 200,
			but: []string{"- HTTP/1.0 200 OK", "+ HTTP/1.1 200 OK"}, why: "RFC 9110 §6.2: a server answers with its own version"},
		{name: "HTTP/1.0 and keep-alive", listener: "old", raw: "GET /prefix HTTP/1.0\r\nhost: test.example\r\nconnection: keep-alive\r\n\r\n", want: 200,
			but: []string{"- HTTP/1.0 200 OK", "+ HTTP/1.1 200 OK"}, why: "RFC 9110 §6.2: a server answers with its own version"},
		{name: "HTTP/1.0 and a chunked response", listener: "old", raw: "GET /prefix HTTP/1.0\r\nhost: test.example\r\n\r\n",
			replies: []string{"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"}, want: 200,
			but: []string{"- HTTP/1.0 200 OK", "+ HTTP/1.1 200 OK"}, why: "RFC 9110 §6.2: a server answers with its own version"},
		{name: "TCP", talk: tcpEcho},
		{name: "TCP to an upstream that is not there", talk: tcpRefused},
	}
}

func refused() []exchange {
	post := "POST /prefix HTTP/1.1\r\nhost: test.example\r\n"
	return []exchange{
		{name: "length and chunked", raw: post + "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", want: 400},
		{name: "two lengths", raw: post + "content-length: 5\r\ncontent-length: 6\r\n\r\nhello", want: 400},
		{name: "two lengths that agree", raw: post + "content-length: 5\r\ncontent-length: 5\r\n\r\nhello", want: 400},
		{name: "a list of lengths", raw: post + "content-length: 5, 5\r\n\r\nhello", want: 400},
		{name: "a negative length", raw: post + "content-length: -5\r\n\r\nhello", want: 400},
		{name: "a length with a sign", raw: post + "content-length: +5\r\n\r\nhello", want: 400},
		{name: "an unknown coding", raw: post + "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", want: 501},
		{name: "chunked twice", raw: post + "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", want: 501,
			ours: 400, why: "RFC 9112 §7.1 forbids to apply chunked twice, which makes the framing wrong and not merely unknown"},
		{name: "a chunk size that is none", raw: post + "transfer-encoding: chunked\r\n\r\nxyz\r\n", want: 400},
		{name: "a chunk longer than its size", raw: post + "transfer-encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n", want: 200,
			ours: 400, why: "RFC 9112 §7.1 has CRLF after the chunk's data; Envoy drops what stands there instead"},
		{name: "no host", raw: "GET /prefix HTTP/1.1\r\n\r\n", want: 400, ours: 400, why: "Envoy sends no content with it"},
		{name: "two hosts", raw: "GET /prefix HTTP/1.1\r\nhost: test.example\r\nhost: other.example\r\n\r\n", want: 404,
			ours: 400, why: "RFC 9112 §3.2 asks for 400; Envoy joins them into a host that no one sent"},
		{name: "a folded header", raw: get("/prefix", "x-a: b\r\n c"), want: 200,
			ours: 400, why: "RFC 9112 §5.2 lets a server refuse it, and one upstream reads it differently from the next"},
		{name: "lines that end in a bare LF", raw: "GET /prefix HTTP/1.1\nhost: test.example\n\n", want: 200,
			ours: 400, why: "RFC 9112 §2.2 allows either; smuggling lives on the difference"},
		{name: "a NUL in a header", raw: get("/prefix", "x-a: b\x00c"), want: 400},
		{name: "a space before the colon", raw: get("/prefix", "x-a : b"), want: 400},
		{name: "a header name with a space", raw: get("/prefix", "x a: b"), want: 400},
		{name: "no header name", raw: get("/prefix", ": b"), want: 400},
		{name: "no colon", raw: get("/prefix", "nonsense"), want: 400},
		{name: "a method with a bracket", raw: "G<T /prefix HTTP/1.1\r\nhost: test.example\r\n\r\n", want: 400},
		{name: "a request line of two words", raw: "GET /prefix\r\nhost: test.example\r\n\r\n", want: 426,
			ours: 400, why: "RFC 9112 §3 has a version in every request line; Envoy takes this for HTTP/0.9"},
		{name: "a version that is none", raw: "GET /prefix HTTP/x.y\r\nhost: test.example\r\n\r\n", want: 400},
		{name: "nonsense", raw: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", want: 400},
		{name: "headers over the limit of 60 KiB", raw: get("/prefix", "x-long: "+strings.Repeat("a", 70000)), want: 431},
		{name: "more than 100 headers", raw: get("/prefix", many(101)...), want: 431},
		{name: "CONNECT", raw: "CONNECT test.example:80 HTTP/1.1\r\nhost: test.example:80\r\n\r\n", want: 404},
	}
}

func many(n int) (fields []string) {
	for range n {
		fields = append(fields, "x-a: b")
	}
	return fields
}

func http2() []exchange {
	type fields = []harness.Field
	req := func(r harness.H2Request) *harness.H2Request { return &r }
	grpc := fields{{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}}
	return []exchange{
		{name: "HTTP/2 to HTTP/1", h2: req(harness.H2Request{Path: "/prefix/x?y"}), want: 200},
		{name: "HTTP/2 to HTTP/1, content without a length", h2: req(harness.H2Request{Method: "POST", Path: "/prefix", Body: "hello"}), want: 200},
		{name: "HTTP/2 to HTTP/1, content with a length", h2: req(harness.H2Request{Method: "POST", Path: "/prefix", Body: "hello", Fields: fields{{Name: "content-length", Value: "5"}}}), want: 200},
		{name: "HTTP/2 to HTTP/1, content shorter than its length", h2: req(harness.H2Request{Method: "POST", Path: "/prefix", Body: "hello", Fields: fields{{Name: "content-length", Value: "9"}}}), want: reset},
		{name: "HTTP/2 to HTTP/1, HEAD", h2: req(harness.H2Request{Method: "HEAD", Path: "/prefix"}), want: 200},
		{name: "HTTP/2 to HTTP/1, cookie crumbs", h2: req(harness.H2Request{Path: "/prefix", Fields: fields{{Name: "cookie", Value: "a=b"}, {Name: "cookie", Value: "c=d"}}}), want: 200},
		{name: "HTTP/2 to HTTP/1, trailers", h2: req(harness.H2Request{Method: "POST", Path: "/prefix", Body: "x", Trailers: fields{{Name: "x-end", Value: "y"}}}), want: 200},
		{name: "HTTP/2 to HTTP/1, a chunked response", h2: req(harness.H2Request{Path: "/prefix"}), replies: []string{"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"}, want: 200},
		{name: "HTTP/2 to HTTP/1, 204", h2: req(harness.H2Request{Path: "/prefix"}), replies: []string{"HTTP/1.1 204 No Content\r\n\r\n"}, want: 204},
		{name: "HTTP/2 to HTTP/1, headers of one hop", h2: req(harness.H2Request{Path: "/prefix"}), replies: []string{harness.OK("x", "keep-alive: 5", "connection: keep-alive")}, want: 200},
		{name: "HTTP/2, a local reply", h2: req(harness.H2Request{Path: "/nowhere"}), want: 404},
		{name: "HTTP/2, a direct response", h2: req(harness.H2Request{Path: "/direct"}), want: 418},
		{name: "HTTP/2, a redirect", h2: req(harness.H2Request{Path: "/redirect/path"}), want: 301},
		{name: "HTTP/2, an RBAC denial", h2: req(harness.H2Request{Path: "/rbac/other"}), want: 403},
		{name: "HTTP/2 to HTTP/2", h2: req(harness.H2Request{Path: "/h2"}), want: 200},
		{name: "HTTP/2 to HTTP/2, content", h2: req(harness.H2Request{Method: "PUT", Path: "/h2", Body: strings.Repeat("x", 60000)}), want: 200},
		{name: "HTTP/1 to HTTP/2", raw: get("/h2", "x-a: b"), want: 200},
		{name: "HTTP/1 to HTTP/2, content", raw: harness.Request("POST", "/h2", "hello"), want: 200},
		{name: "HTTP/1 to HTTP/2, chunked content", raw: "POST /h2 HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", want: 200},
		{name: "HTTP/1 to HTTP/2, headers of one hop", raw: get("/h2", "connection: x-hop", "x-hop: a", "keep-alive: 5", "te: trailers"), want: 200},
		{name: "HTTP/1 to HTTP/2, a reset stream", raw: get("/h2/warm") + get("/h2"), n: 2, replies: []string{harness.Ordinary, harness.Hangup}, want: 503},
		{name: "gRPC", h2: req(harness.H2Request{Method: "POST", Path: "/pkg.Service/Call", Body: "\x00\x00\x00\x00\x02hi", Fields: grpc}), want: 200},
		{name: "gRPC, the upstream is not there", h2: req(harness.H2Request{Method: "POST", Path: "/dead", Body: "\x00\x00\x00\x00\x02hi", Fields: grpc}), want: 200},
		{name: "gRPC, no route", h2: req(harness.H2Request{Method: "POST", Path: "/nowhere", Body: "\x00\x00\x00\x00\x02hi", Fields: grpc}), want: 200},
		{name: "gRPC, denied", h2: req(harness.H2Request{Method: "POST", Path: "/rbac/other", Body: "\x00\x00\x00\x00\x02hi", Fields: grpc}), want: 200},
		{name: "HTTP/2, a name with capitals", h2: req(harness.H2Request{Path: "/prefix", Fields: fields{{Name: "X-Up", Value: "a"}}}), want: 0, ours: reset, why: malformed},
		{name: "HTTP/2, a header of one hop", h2: req(harness.H2Request{Path: "/prefix", Fields: fields{{Name: "connection", Value: "close"}}}), want: 0, ours: reset, why: malformed},
		{name: "HTTP/2, te that is not trailers", h2: req(harness.H2Request{Path: "/prefix", Fields: fields{{Name: "te", Value: "gzip"}}}), want: 0, ours: reset, why: malformed},
		{name: "HTTP/2, a line break in a value", h2: req(harness.H2Request{Path: "/prefix", Fields: fields{{Name: "x-a", Value: "b\r\nx-c: d"}}}), want: 0, ours: reset, why: malformed},
		{name: "HTTP/2, a space in the path", h2: req(harness.H2Request{Path: "/prefix x"}), want: 0, ours: reset, why: malformed},
		{name: "HTTP/2, host beside authority", h2: req(harness.H2Request{Path: "/prefix", Fields: fields{{Name: "host", Value: "other.example"}}}), want: 200,
			ours: reset, why: "RFC 9113 §8.3.1: two names for one target are malformed"},
		{name: "HTTP/2, Expect", h2: req(harness.H2Request{Method: "POST", Path: "/prefix", Body: "x", Fields: fields{{Name: "expect", Value: "100-continue"}}}), want: 200},
	}
}

func balancing() []exchange {
	return []exchange{
		{name: "headers by format", raw: get("/format", "x-client: me"), want: 200},
		{name: "a session cookie is made", raw: get("/sticky/x"), want: 200},
		{name: "a session cookie is kept", raw: get("/sticky/x", "cookie: a=b; sticky=\"abc\""), want: 200},
		{name: "a session cookie without an age", raw: get("/session"), want: 200},
		{name: "a hash of a header", raw: get("/hashed", "x-user: alice"), want: 200},
		{name: "an open circuit breaker is 503", raw: get("/broken"), want: 503},
		{name: "an unhealthy endpoint gets nothing", raw: get("/halfhealthy/1") + get("/halfhealthy/2") + get("/halfhealthy/3"), n: 3, want: 200},
		{name: "no endpoint healthy is 503", raw: get("/unhealthy"), want: 503},
		{name: "no endpoint healthy, and panic", raw: get("/panic"), want: 200},
		{name: "a try that takes too long", raw: get("/pertry"), replies: []string{harness.Silence, harness.OK("second")}, want: 200},
		{name: "two tries that take too long", raw: get("/pertry"), replies: []string{harness.Silence, harness.Silence}, want: 504},
		{name: "a status that is retried by number", raw: get("/retriable"), replies: []string{harness.Response(409, "a"), harness.OK("good")}, want: 200},
		{name: "an upstream's early hints", raw: get("/prefix"), replies: []string{"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + harness.OK("then")}, want: 200,
			but: []string{"+ HTTP/1.1 103 Early Hints", "+ link: </a>", "+ [none] \"\""}, why: "RFC 9110 §15.2: a proxy forwards interim responses"},
		{name: "a gRPC status without content", h2: &harness.H2Request{Method: "POST", Path: "/pkg.Service/Call", Body: "\x00\x00\x00\x00\x00",
			Fields: []harness.Field{{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}}},
			replies: []string{"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 5\r\ngrpc-message: gone\r\ncontent-length: 0\r\n\r\n"}, want: 200},
	}
}

// malformed is why a stream is reset where Envoy closes the connection.
const malformed = "RFC 9113 §8.1.1: a malformed request is an error of its stream; the others go on"

// hidden is why a path is refused that Envoy lets through.
const hidden = "nobody needs such a name, and whoever decodes once more, or drops parameters, finds another path than the policy saw"

func strict() []exchange {
	x := func(name, raw string, want int) exchange {
		return exchange{name: "strict: " + name, listener: "strict", raw: raw, want: want}
	}
	return []exchange{
		x("dots", get("/a/../b/./c?x=/../y"), 200),
		x("dots that lead into what is closed", get("/a/../admin"), 403),
		x("escaped dots", get("/a/%2e%2E/admin"), 403),
		x("dots above the root", get("/../../admin"), 403),
		x("slashes merge", get("//a///b//"), 200),
		x("slashes before what is closed", get("//admin"), 403),
		x("an escaped slash is a redirect", get("/a%2fb?q"), 307),
		x("an escaped backslash is a redirect", get("/a%5Cb"), 307),
		x("a backslash", get("/a\\..\\admin"), 403),
		x("an escaped letter", get("/%61dmin"), 403),
		{name: "strict: an escape that is none", listener: "strict", raw: get("/a%zz"), want: 200,
			ours: 400, why: "what cannot be decoded cannot be normalized, so the route would not be known"},
		{name: "strict: an escaped NUL", listener: "strict", raw: get("/a%00"), want: 400,
			ours: 400, why: "Envoy sends no content and closes; the request was whole, so the connection can go on"},
		{name: "strict: a fragment", listener: "strict", raw: get("/a#b"), want: 400, ours: 400, why: "Envoy sends no content with it"},
		x("a parent with parameters", get("/a/..;/admin"), 403),
		x("a parent with a parameter and a value", get("/a/b/../..;x=1/admin"), 403),
		x("a dot with parameters", get("/.;x/admin"), 403),
		{name: "strict: escaped dots with parameters", listener: "strict", raw: get("/a/%2e%2e;/admin"), want: 200,
			ours: 403, why: "Envoy decodes the dots and forgets to resolve them; servers that drop parameters do not"},
		{name: "strict: dots before an escaped semicolon", listener: "strict", raw: get("/a/..%3b/admin"), want: 200,
			ours: 400, why: hidden},
		{name: "strict: dots that are escaped twice", listener: "strict", raw: get("/a/%252e%252e/admin"), want: 200,
			ours: 400, why: hidden},
		{name: "strict: dots in an overlong form", listener: "strict", raw: get("/a/%c0%ae%c0%ae/admin"), want: 200,
			ours: 400, why: hidden},
		{name: "strict: parameters without a name", listener: "strict", raw: get("/;x/admin"), want: 200,
			ours: 400, why: hidden},
		x("parameters", get("/a;x=1/b;y"), 200),
		x("parameters without a name at the end", get("/a/;jsessionid=1"), 200),
		{name: "slashes: dots before an escaped slash that is kept", listener: "kept", raw: get("/a/..%2fadmin"), want: 200,
			ours: 400, why: hidden},
		{name: "slashes: an escaped slash that is kept", listener: "kept", raw: get("/a%2fadmin"), want: 200},
		{name: "slashes: a redirect", listener: "slashes", raw: get("/a%2fb?q"), want: 307},
		{name: "slashes: a redirect to two slashes", listener: "slashes", raw: get("/%2fother.example?q"), want: 307,
			but: []string{"- location: //other.example?q", "+ location: /other.example?q"}, why: "a client takes that for another host (RFC 3986 §4.2)"},
		{name: "slashes: a redirect to a backslash", listener: "slashes", raw: get("/%5cother.example"), want: 307,
			but: []string{"- location: //other.example", "+ location: /other.example"}, why: "a client takes that for another host (RFC 3986 §4.2)"},
		x("a host with a port", get("/a", "host: test.example:8080"), 200),
		x("a header with an underscore", get("/a", "x_a: b"), 400),
		x("headers over the listener's limit", get("/a", "x-a: "+strings.Repeat("a", 3000)), 431),
		x("headers over the listener's count", get("/a", many(21)...), 431),
		x("as many headers as are allowed", get("/a", many(10)...), 200),
	}
}
