package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"

	_ "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3" // a type that is no filter's

	"sallyport/sidecar/config"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
)

func routeConfig(t testing.TB, text string) *routev3.RouteConfiguration {
	t.Helper()
	m := &routev3.RouteConfiguration{}
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return m
}

// withRoute is a route configuration with one virtual host, given as more fields of it and its routes.
func withRoutes(host, routes string) string {
	if host != "" {
		host += ","
	}
	return `{"name":"r","virtual_hosts":[{"name":"v","domains":["*"],` + host + `"routes":[` + routes + `]}]}`
}

type ref struct{ name string }

func compileText(t testing.TB, text string) (*route.Table, []config.Warning) {
	t.Helper()
	tb, w, err := config.CompileRoutes(routeConfig(t, text), config.Env{Cluster: func(n string) any { return &ref{n} },
		HeaderFormat: func(f string) (route.Formatter, error) { return formatter(f), nil }})
	if err != nil {
		t.Fatal(err)
	}
	return tb, w
}

type formatter string

func (f formatter) AppendValue(dst []byte, _ any) []byte { return append(dst, f...) }

func find(t testing.TB, tb *route.Table, path string) *route.Route {
	t.Helper()
	h := &message.Head{}
	h.AddNameString(message.Method, "GET")
	h.AddNameString(message.Path, path)
	h.AddNameString(message.Authority, "h")
	r := tb.Match(h, 0, route.MatchInfo{})
	if r == nil {
		t.Fatalf("no route for %s", path)
	}
	return r
}

func TestForwardRoutes(t *testing.T) {
	tb, warnings := compileText(t, withRoutes(`"include_request_attempt_count":true,"retry_policy":{"retry_on":"5xx"}`, `
		{"match":{"prefix":"/a/"},"name":"a","tracing":{"random_sampling":{"numerator":50},"overall_sampling":{"numerator":10}},"route":{"cluster":"c1","prefix_rewrite":"/","timeout":"3s","idle_timeout":"0s","priority":"HIGH",
			"host_rewrite_literal":"other","append_x_forwarded_host":true,"cluster_not_found_response_code":"NOT_FOUND","max_stream_duration":{"grpc_timeout_header_max":"5s"},
			"upgrade_configs":[{"upgrade_type":"WebSocket"},{"upgrade_type":"x","enabled":false}],
			"retry_policy":{"retry_on":"connect-failure, retriable-status-codes,unavailable","num_retries":3,"per_try_timeout":"0.5s","retriable_status_codes":[418],
				"retry_back_off":{"base_interval":"0.1s"},"retry_host_predicate":[{"name":"envoy.retry_host_predicates.previous_hosts"}],"host_selection_retry_max_attempts":"5",
				"rate_limited_retry_back_off":{"reset_headers":[{"name":"Retry-After"}]},"retriable_headers":[{"name":"x-retry"}]},
			"hash_policy":[{"header":{"header_name":"X-User"},"terminal":true},{"cookie":{"name":"s","ttl":"0s","path":"/","attributes":[{"name":"Secure"},{"name":"SameSite","value":"Lax"},{"name":"HttpOnly"}]}},
				{"cookie":{"name":"given"}},{"connection_properties":{"source_ip":true}},{"query_parameter":{"name":"Q"}}]}},
		{"match":{"prefix":"/w/"},"route":{"weighted_clusters":{"clusters":[{"name":"c1","weight":90},{"name":"c2","weight":10,"host_rewrite_literal":"two"}]},"regex_rewrite":{"pattern":{"regex":"^/w/(.*)"},"substitution":"/\\1"}}},
		{"match":{"path":"/h"},"route":{"cluster_header":"X-Cluster"}}`))
	if len(warnings) != 0 {
		t.Errorf("warnings: %v", warnings)
	}
	r := find(t, tb, "/a/b")
	f := r.Forward
	if r.Name != "a" || r.VirtualHost != "v" || !r.IncludeAttemptCount || r.Matched.PrefixLen != 3 || r.TraceSampling != 500 {
		t.Errorf("route: %+v", r)
	}
	if len(f.Clusters) != 1 || f.Clusters[0].Cluster.Ref.(*ref).name != "c1" || !f.Rewrite.HasPrefix || f.Rewrite.Prefix != "/" || f.Timeout != 3*time.Second || f.IdleTimeout != 0 ||
		f.Priority != 1 || f.HostRewrite != "other" || !f.AppendXFHost || f.NotFoundStatus != 404 || !f.HonorGRPCTimeout || f.MaxGRPCTimeout != 5*time.Second {
		t.Errorf("forward: %+v", f)
	}
	if len(f.Upgrades) != 2 || f.Upgrades[0] != (route.Upgrade{Protocol: "websocket", Enabled: true}) || f.Upgrades[1].Enabled {
		t.Errorf("upgrades: %+v", f.Upgrades)
	}
	y := f.Retry
	if y.On != route.OnConnectFailure|route.OnRetriableStatuses|route.OnGRPCUnavailable || y.Retries != 3 || y.PerTry != 500*time.Millisecond || len(y.Statuses) != 1 || y.BackoffBase != 100*time.Millisecond ||
		y.BackoffMax != time.Second || !y.AvoidPrevious || y.HostAttempts != 5 || y.ResetHeaders[0] != "retry-after" || y.ResetMax != 300*time.Second || len(y.RetriableHeader) != 1 {
		t.Errorf("retry: %+v", y)
	}
	want := []route.HashPolicy{{Kind: route.HashHeader, Name: "x-user", Terminal: true}, {Kind: route.HashCookie, Name: "s", Path: "/", Attrs: "; Secure; SameSite=Lax"},
		{Kind: route.HashCookie, Name: "given", TTL: -1}, {Kind: route.HashSourceIP}, {Kind: route.HashQuery, Name: "Q"}}
	for i := range want {
		if f.Hash[i] != want[i] {
			t.Errorf("hash policy %d: %+v", i, f.Hash[i])
		}
	}
	f = find(t, tb, "/w/x").Forward
	rewritten, _ := f.Rewrite.Regex.Replace(nil, []byte("/w/x"))
	if f.TotalWeight != 100 || f.Clusters[1].Weight != 10 || f.Clusters[1].HostRewrite != "two" || string(rewritten) != "/x" ||
		f.Timeout != 15*time.Second || f.IdleTimeout >= 0 || f.NotFoundStatus != 503 || f.Retry == nil || f.Retry.On != route.On5xx || f.Retry.Retries != 1 {
		t.Errorf("weighted: %+v", f)
	}
	if f = find(t, tb, "/h?x").Forward; f.ClusterHeader != "x-cluster" || len(f.Clusters) != 0 {
		t.Errorf("cluster header: %+v", f)
	}
}

func TestRedirectsAndDirectResponses(t *testing.T) {
	body := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(body, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	tb, _ := compileText(t, withRoutes("", `
		{"match":{"path":"/r"},"redirect":{"https_redirect":true,"host_redirect":"h","port_redirect":8443,"path_redirect":"/x?y","response_code":"PERMANENT_REDIRECT","strip_query":true}},
		{"match":{"prefix":"/p"},"redirect":{"prefix_rewrite":"/q"}},
		{"match":{"path":"/d"},"direct_response":{"status":418,"body":{"inline_string":"tea"}}},
		{"match":{"path":"/f"},"direct_response":{"status":200,"body":{"filename":"`+body+`"}}}`))
	if r := find(t, tb, "/r").Redirect; *r != (route.Redirect{Status: 308, HTTPS: true, Host: "h", Port: 8443, Path: "/x?y", StripQuery: true}) {
		t.Errorf("redirect: %+v", r)
	}
	if r := find(t, tb, "/p").Redirect; r.Status != 301 || !r.Rewrite.HasPrefix || r.Rewrite.Prefix != "/q" {
		t.Errorf("redirect: %+v", r)
	}
	if d := find(t, tb, "/d").Direct; d.Status != 418 || string(d.Body) != "tea" {
		t.Errorf("direct: %+v", d)
	}
	if d := find(t, tb, "/f").Direct; string(d.Body) != "from a file" {
		t.Errorf("direct: %+v", d)
	}
}

func TestHeaderMutationsInOrder(t *testing.T) {
	text := `{"name":"r",%"request_headers_to_add":[{"header":{"key":"X-Level","value":"global"},"append_action":"OVERWRITE_IF_EXISTS_OR_ADD"}],
		"virtual_hosts":[{"name":"v","domains":["*"],"request_headers_to_remove":["X-Gone"],"request_headers_to_add":[{"header":{"key":"x-level","value":"host"}}],
		"routes":[{"match":{"prefix":"/"},"request_headers_to_add":[{"header":{"key":"x-level","value":"100%% of %PROTOCOL%"},"keep_empty_value":true},{"header":{"key":"x","value":"100%%"},"append":false}],
		"route":{"weighted_clusters":{"clusters":[{"name":"c","weight":1,"request_headers_to_add":[{"header":{"key":"x-level","value":"cluster"}}]}]}}}]}]}`
	order := func(list []route.HeaderMutation) (s []string) {
		for _, m := range list {
			v := m.Value
			if m.Format != nil {
				v = string(m.Format.AppendValue(nil, nil))
			}
			s = append(s, m.Name+"="+v)
		}
		return s
	}
	tb, _ := compileText(t, strings.Replace(text, "%", "", 1))
	r := find(t, tb, "/")
	if got := strings.Join(order(r.RequestHeaders), " "); got != "x-level=100%% of %PROTOCOL% x=100% x-gone= x-level=host x-level=global" {
		t.Errorf("general last: %s", got)
	}
	m := r.RequestHeaders
	if !m[0].KeepEmpty || m[0].Action != route.Append || m[1].Action != route.Overwrite || m[2].Action != route.RemoveHeader || m[4].Action != route.Overwrite {
		t.Errorf("actions: %+v", m)
	}
	tb, _ = compileText(t, strings.Replace(text, "%", `"most_specific_header_mutations_wins":true,`, 1))
	r = find(t, tb, "/")
	if got := strings.Join(order(r.Forward.Clusters[0].RequestHeaders), " "); len(r.RequestHeaders) != 0 || got != "x-level=global x-gone= x-level=host x-level=100%% of %PROTOCOL% x=100% x-level=cluster" {
		t.Errorf("specific last: %s", got)
	}
}

const (
	rbacURL  = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
	otherURL = "type.googleapis.com/envoy.config.accesslog.v3.AccessLog"
)

func TestOverrides(t *testing.T) {
	tb, warnings := compileText(t, withRoutes(`"typed_per_filter_config":{"authz":{"@type":"`+rbacURL+`","rbac":{"rules":{}}},"off":{"@type":"type.googleapis.com/envoy.config.route.v3.FilterConfig","disabled":true},
		"unknown":{"@type":"type.googleapis.com/envoy.config.route.v3.FilterConfig","is_optional":true,"config":{"@type":"`+otherURL+`"}}}`,
		`{"match":{"prefix":"/"},"route":{"cluster":"c"},"typed_per_filter_config":{"authz":{"@type":"`+rbacURL+`"}}}`))
	r := find(t, tb, "/")
	if o := r.Overrides; len(o) != 2 || o[0].Config == nil || o[0].Disabled || !o[1].Disabled || o[0].Filter == o[1].Filter {
		t.Errorf("overrides: %+v", o)
	}
	if c := r.Forward.Clusters[0]; len(c.Overrides) != 2 || c.Overrides[0].Config != r.Overrides[0].Config {
		t.Errorf("overrides of the cluster: %+v", c.Overrides)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0].String(), `virtual_hosts[0].typed_per_filter_config["unknown"].config`) {
		t.Errorf("warnings: %v", warnings)
	}
}

func TestWarnings(t *testing.T) {
	_, warnings := compileText(t, withRoutes(`"hedge_policy":{}`, `{"match":{"prefix":"/"},"decorator":{"operation":"x"},"route":{"cluster":"c","request_mirror_policies":[{"cluster":"d"}],"max_stream_duration":{"max_stream_duration":"1s"},"retry_policy":{"retry_on":"5xx,envoy-ratelimited"}}}`))
	var text []string
	for _, w := range warnings {
		text = append(text, w.String())
	}
	all := strings.Join(text, "\n")
	for _, want := range []string{`route configuration "r": virtual_hosts[0].hedge_policy: not implemented`, "routes[0].decorator", "routes[0].route.request_mirror_policies", "max_stream_duration.max_stream_duration", `retry_policy.retry_on: "envoy-ratelimited"`} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in\n%s", want, all)
		}
	}
}

func TestRefusedRoutes(t *testing.T) {
	one := func(match, action string) string { return withRoutes("", `{"match":`+match+`,`+action+`}`) }
	const all, to = `{"prefix":"/"}`, `"route":{"cluster":"c"}`
	for name, c := range map[string]struct{ text, want string }{
		"regex":               {one(`{"safe_regex":{"regex":"("}}`, to), `route configuration "r": virtual_hosts[0].routes[0].match.safe_regex: regular expression "(": missing closing )`},
		"no path":             {one(`{}`, to), `routes[0].match.path_specifier: value is required`},
		"no action":           {withRoutes("", `{"match":{"prefix":"/"}}`), "routes[0].action: value is required"},
		"domain twice":        {`{"name":"r","virtual_hosts":[{"name":"a","domains":["x"]},{"name":"b","domains":["X"]}]}`, `virtual_hosts: domain "x" is claimed by virtual host "a" and again by "b"`},
		"name twice":          {`{"name":"r","virtual_hosts":[{"name":"a","domains":["x"]},{"name":"a","domains":["y"]}]}`, `virtual_hosts[1].name: "a" is the name of two`},
		"odd domain":          {`{"name":"r","virtual_hosts":[{"name":"a","domains":["a*b"]}]}`, `virtual_hosts[0].domains[0]: "a*b"`},
		"no weight":           {one(all, `"route":{"weighted_clusters":{"clusters":[{"name":"a","weight":0}]}}`), "weighted_clusters: the sum of the weights is 0"},
		"wrong total":         {one(all, `"route":{"weighted_clusters":{"clusters":[{"name":"a","weight":1}],"total_weight":2}}`), "total_weight: is 2"},
		"two rewrites":        {one(all, `"route":{"cluster":"c","prefix_rewrite":"/","regex_rewrite":{"pattern":{"regex":"a"},"substitution":"b"}}`), "both prefix_rewrite and regex_rewrite"},
		"substitution":        {one(all, `"route":{"cluster":"c","regex_rewrite":{"pattern":{"regex":"a"},"substitution":"\\1"}}`), "refers to group 1"},
		"dynamic metadata":    {one(`{"prefix":"/","dynamic_metadata":[{"filter":"f","path":[{"key":"k"}],"value":{"present_match":true}}]}`, to), "match.dynamic_metadata: not implemented"},
		"rate limits":         {one(all, `"route":{"cluster":"c","rate_limits":[{"actions":[{"remote_address":{}}]}]}`), "route.rate_limits: not implemented"},
		"cors":                {one(all, `"route":{"cluster":"c","cors":{}}`), "route.cors: deprecated and not implemented; configure envoy.filters.http.cors"},
		"filter state hash":   {one(all, `"route":{"cluster":"c","hash_policy":[{"filter_state":{"key":"k"}}]}`), "hash_policy[0].filter_state: not implemented"},
		"cookie":              {one(all, `"route":{"cluster":"c","hash_policy":[{"cookie":{"name":"a;b"}}]}`), "a character that a cookie cannot"},
		"negative timeout":    {one(all, `"route":{"cluster":"c","timeout":"-1s"}`), "route.timeout: -1s is negative"},
		"pseudo-header":       {withRoutes(`"request_headers_to_add":[{"header":{"key":":path","value":"x"}}]`, ""), `header.key: ":path": pseudo-header`},
		"host removed":        {withRoutes(`"request_headers_to_remove":["Host"]`, ""), "request_headers_to_remove[0]"},
		"unknown filter":      {withRoutes(`"typed_per_filter_config":{"x":{"@type":"`+otherURL+`"}}`, ""), `typed_per_filter_config["x"]: ` + otherURL + " is not implemented"},
		"body too long":       {`{"name":"r","max_direct_response_body_size_bytes":2,"virtual_hosts":[{"name":"v","domains":["*"],"routes":[{"match":{"prefix":"/"},"direct_response":{"status":200,"body":{"inline_string":"tea"}}}]}]}`, "body: has 3 bytes; at most 2"},
		"predicate":           {one(all, `"route":{"cluster":"c","retry_policy":{"retry_on":"5xx","retry_host_predicate":[{"name":"x"}]}}`), `retry_host_predicate[0]: "x" is not implemented`},
		"separated prefix":    {one(`{"path_separated_prefix":"/a/"}`, to), "path_separated_prefix"},
		"rewrite for CONNECT": {one(`{"connect_matcher":{}}`, `"route":{"cluster":"c","prefix_rewrite":"/"}`), "CONNECT has none"},
	} {
		_, _, err := config.CompileRoutes(routeConfig(t, c.text), config.Env{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got\n%v\nwant %q", name, err, c.want)
		}
	}
}

func TestAFormatNeedsSomebodyWhoKnowsIt(t *testing.T) {
	_, _, err := config.CompileRoutes(routeConfig(t, withRoutes(`"request_headers_to_add":[{"header":{"key":"x","value":"%PROTOCOL%"}}]`, "")), config.Env{})
	if err == nil || !strings.Contains(err.Error(), "request_headers_to_add[0].header.value") {
		t.Errorf("got %v", err)
	}
}

// FuzzCompileRoutes asserts that no configuration makes the compiler panic, and that a table serves requests.
func FuzzCompileRoutes(f *testing.F) {
	f.Add([]byte(withRoutes("", `{"match":{"safe_regex":{"regex":"/a.*"}},"route":{"cluster":"c"}}`)), "/a")
	f.Fuzz(func(t *testing.T, text []byte, path string) {
		m := &routev3.RouteConfiguration{}
		if protojson.Unmarshal(text, m) != nil {
			return
		}
		tb, _, err := config.CompileRoutes(m, config.Env{})
		if err != nil {
			return
		}
		h := &message.Head{}
		h.AddNameString(message.Path, path)
		h.AddNameString(message.Authority, "h")
		tb.Match(h, 0, route.MatchInfo{})
	})
}
