package localratelimit

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"sallyport/sidecar/filter/filtertest"
	"sallyport/sidecar/stream"
)

func config(t testing.TB, more string) *limitv3.LocalRateLimit {
	t.Helper()
	m := &limitv3.LocalRateLimit{}
	if more != "" {
		more = "," + more
	}
	if err := protojson.Unmarshal([]byte(`{"stat_prefix":"test"`+more+`}`), m); err != nil {
		t.Fatal(err)
	}
	return m
}

const (
	threePerMinute = `"token_bucket":{"max_tokens":3,"tokens_per_fill":3,"fill_interval":"60s"}`
	always         = `"filter_enabled":{"default_value":{"numerator":100}},"filter_enforced":{"default_value":{"numerator":100}}`
)

func TestTheFourthRequestIsRefused(t *testing.T) {
	f, reg := filtertest.Compile(t, Kind, config(t, threePerMinute+","+always+`,"enable_x_ratelimit_headers":"DRAFT_VERSION_03",
		"enable_retry_after_header":true,"response_headers_to_add":[{"header":{"key":"X-Limited","value":"100%%"}}]`))
	f.(*Filter).limit.bucket.base = time.Unix(1_700_000_000, 0)
	r := filtertest.New(t, f, nil)
	for i := range 3 {
		res := r.Get(t, "/")
		if !res.Passed() || res.Header("x-ratelimit-limit") != "3" || res.Header("x-ratelimit-remaining") != string(rune('2'-i)) {
			t.Fatalf("request %d: %d %q %q", i, res.Status, res.Header("x-ratelimit-limit"), res.Header("x-ratelimit-remaining"))
		}
	}
	res := r.Get(t, "/")
	if res.Status != 429 || res.Body != "local_rate_limited" || res.Details != "local_rate_limited" || string(res.Flags.Append(nil)) != "RL" {
		t.Errorf("%d %q %q %s", res.Status, res.Body, res.Details, res.Flags.Append(nil))
	}
	for name, want := range map[string]string{"x-limited": "100%", "retry-after": "20", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "60"} {
		if got := res.Header(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	r.Clock = r.Clock.Add(20 * time.Second)
	if !r.Get(t, "/").Passed() || r.Get(t, "/").Passed() {
		t.Error("not exactly one token came in 20 s")
	}
	for name, want := range map[string]uint64{"enabled": 6, "ok": 4, "rate_limited": 2, "enforced": 2} {
		if got := reg.Singles()["test.http_local_rate_limit."+name]; got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
}

func TestNothingIsLimitedUnlessEnabled(t *testing.T) {
	f, _ := filtertest.Compile(t, Kind, config(t, `"token_bucket":{"max_tokens":1,"fill_interval":"60s"}`))
	r := filtertest.New(t, f, nil)
	for range 5 {
		if !r.Get(t, "/").Passed() {
			t.Fatal("filter_enabled is 0 % by default")
		}
	}
}

func TestEnabledAndNotEnforced(t *testing.T) {
	f, _ := filtertest.Compile(t, Kind, config(t, `"token_bucket":{"max_tokens":1,"fill_interval":"60s"},"filter_enabled":{"default_value":{"numerator":100}},
		"request_headers_to_add_when_not_enforced":[{"header":{"key":"x-over","value":"1"}}]`))
	r := filtertest.New(t, f, nil)
	if res := r.Get(t, "/"); !res.Passed() || res.Request.Lookup("x-over") != nil {
		t.Error("the first request")
	}
	if res := r.Get(t, "/"); !res.Passed() || string(res.Request.Lookup("x-over")) != "1" {
		t.Error("the second request")
	}
}

func TestEachConnectionHasItsBucket(t *testing.T) {
	f, _ := filtertest.Compile(t, Kind, config(t, `"local_rate_limit_per_downstream_connection":true,"token_bucket":{"max_tokens":1,"fill_interval":"60s"},`+always))
	r := filtertest.New(t, f, nil)
	if !r.Get(t, "/").Passed() || r.Get(t, "/").Passed() {
		t.Error("one request per connection")
	}
	r.Conn.Attached = nil // as on another connection
	if !r.Get(t, "/").Passed() {
		t.Error("the second connection")
	}
}

// TestAConnectionKeepsOneBucketThroughAllUpdates: the same one while its numbers stay.
func TestAConnectionKeepsOneBucketThroughAllUpdates(t *testing.T) {
	const each = `"local_rate_limit_per_downstream_connection":true,` + always
	c := filtertest.Compiler()
	compile := func(more string) *Filter {
		f := Kind.Compile(c, filtertest.Any(t, config(t, each+","+more)))
		if err := c.Err(); err != nil {
			t.Fatal(err)
		}
		return f.(*Filter)
	}
	one := `"token_bucket":{"max_tokens":1,"fill_interval":"60s"}`
	var conn *stream.Connection
	get := func(f *Filter) bool {
		r := filtertest.New(t, f, nil)
		if conn == nil {
			conn = r.Conn
		}
		r.Conn.Attached = conn.Attached
		defer func() { conn.Attached = r.Conn.Attached }()
		return r.Get(t, "/").Passed()
	}
	if !get(compile(one)) || get(compile(one)) || get(compile(one+`,"status":{"code":503}`)) {
		t.Error("an update with the same numbers gives a connection new tokens")
	}
	for range 100 {
		if !get(compile(`"token_bucket":{"max_tokens":2,"fill_interval":"60s"}`)) || !get(compile(one)) {
			t.Fatal("an update with other numbers does not take effect")
		}
	}
	if n := len(conn.Attached); n != 1 {
		t.Errorf("the connection keeps %d buckets", n)
	}
}

// TestAReplyWhoseRequestTheFilterNeverSaw: a request that is refused before the filters is answered without headers of a bucket.
func TestAReplyWhoseRequestTheFilterNeverSaw(t *testing.T) {
	f, _ := filtertest.Compile(t, Kind, config(t, threePerMinute+","+always+`,"enable_x_ratelimit_headers":"DRAFT_VERSION_03"`))
	if res := filtertest.New(t, f, nil).Get(t, "/#"); res.Status != 400 || res.Header("x-ratelimit-limit") != "" {
		t.Errorf("%d, limit %q", res.Status, res.Header("x-ratelimit-limit"))
	}
}

func TestARequestAllocatesNothing(t *testing.T) {
	for name, more := range map[string]string{
		"":                "",
		"with headers":    `,"enable_x_ratelimit_headers":"DRAFT_VERSION_03"`,
		"each connection": `,"local_rate_limit_per_downstream_connection":true`,
	} {
		f, _ := filtertest.Compile(t, Kind, config(t, `"token_bucket":{"max_tokens":1000000,"fill_interval":"60s"},`+always+more))
		if n := filtertest.Extra(t, f, nil, "GET", "/"); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestARouteHasItsOwnBucket(t *testing.T) {
	f, _ := filtertest.Compile(t, Kind, config(t, ""))
	o := filtertest.CompileRoute(t, Kind, config(t, `"status":{"code":503},"token_bucket":{"max_tokens":1,"fill_interval":"60s"},`+always))
	r := filtertest.New(t, f, o)
	if !r.Get(t, "/").Passed() {
		t.Error("the first")
	}
	if res := r.Get(t, "/"); res.Status != 503 {
		t.Errorf("the second: %d", res.Status)
	}
}

func TestGRPCIsToldInItsOwnWay(t *testing.T) {
	f, _ := filtertest.Compile(t, Kind, config(t, `"rate_limited_as_resource_exhausted":true,"token_bucket":{"max_tokens":1,"fill_interval":"60s"},`+always))
	r := filtertest.New(t, f, nil)
	r.Get(t, "/")
	if res := r.Do(t, "POST", "/", "content-type", "application/grpc"); res.Header("grpc-status") != "8" {
		t.Errorf("grpc-status %q", res.Header("grpc-status"))
	}
	if res := r.Get(t, "/"); res.Header("grpc-status") != "" {
		t.Error("grpc-status for a client that does not speak gRPC")
	}
}

func TestAnUpdateKeepsTheBucket(t *testing.T) {
	c := filtertest.Compiler()
	compile := func(more string) *limit {
		l := compileLimit(c, filtertest.Any(t, config(t, more)), false)
		if err := c.Err(); err != nil {
			t.Fatal(err)
		}
		return l
	}
	a := compile(threePerMinute + "," + always)
	b := compile(threePerMinute + "," + always + `,"status":{"code":503}`)
	other := compile(`"token_bucket":{"max_tokens":4,"tokens_per_fill":3,"fill_interval":"60s"},` + always)
	if a.bucket != b.bucket || a.bucket == other.bucket {
		t.Error("a bucket is the same exactly where its numbers are")
	}
}

func TestBucketNeverGivesMoreThanItHas(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	b := newBucket(100, 10, time.Second, start)
	var given atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 1000 {
				if b.take(start.Add(time.Duration(i) * time.Millisecond)) {
					given.Add(1)
				}
			}
		})
	}
	wg.Wait()
	// 100 at the start and one each 100 ms, up to and without 1 s.
	if n := given.Load(); n != 109 {
		t.Errorf("%d tokens", n)
	}
	if !b.take(start.Add(time.Hour)) || b.left(start.Add(time.Hour)) != 99 {
		t.Errorf("%d tokens left after an hour and one taken", b.left(start.Add(time.Hour)))
	}
}

func TestExtremeBuckets(t *testing.T) {
	start := time.Now()
	for _, b := range []*bucket{
		newBucket(1<<32-1, 1, 1<<62, start),
		newBucket(1, 1<<32-1, 50*time.Millisecond, start),
		newBucket(1<<32-1, 1<<32-1, 50*time.Millisecond, start),
	} {
		if !b.take(start) || b.burst <= 0 || b.left(start) < 0 || b.wait(start) < 0 || b.refill(start) < 0 {
			t.Errorf("%+v", b.burst)
		}
	}
}

func TestRefused(t *testing.T) {
	for more, want := range map[string]string{
		always: "token_bucket: must be set",
		threePerMinute + `,"descriptors":[{"entries":[{"key":"a","value":"b"}],"token_bucket":{"max_tokens":1,"fill_interval":"1s"}}]`: "descriptors: not implemented",
		`"token_bucket":{"max_tokens":1,"fill_interval":"0.01s"}`:                                                                      "10ms is less than 50ms",
		`"local_cluster_rate_limit":{}`: "local_cluster_rate_limit: not implemented",
	} {
		if err := filtertest.CompileError(t, Kind, config(t, more)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	now := time.Now()
	k := newBucket(1<<31, 1, time.Second, now)
	b.ReportAllocs()
	for b.Loop() {
		k.take(now)
	}
}
