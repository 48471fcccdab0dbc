package list

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/filter/filtertest"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

// chaos is a filter that holds what it likes, and lets it go on in a later turn.
type chaos struct{ rng *rand.Rand }

func (c *chaos) Name() string { return "chaos" }

func (c *chaos) RequestHead(x stream.Context, _ *message.Head, _ bool) stream.Verdict {
	return c.hold(x)
}
func (c *chaos) ResponseHead(x stream.Context, _ *message.Head, _ bool) stream.Verdict {
	return c.hold(x)
}

func (c *chaos) ResponseData(x stream.Context, p []byte, _ bool) ([]byte, stream.Verdict) {
	return p, c.hold(x)
}

func (c *chaos) hold(x stream.Context) stream.Verdict {
	switch c.rng.IntN(3) {
	case 0:
		return stream.Continue
	case 1:
		x.Resume()
		return stream.Hold
	}
	return x.Await(&later{post: x.Stream.Worker().Post}, func(stream.Context) stream.Verdict { return stream.Continue })
}

// later is work that has ended in a later turn.
type later struct {
	post     func(func()) bool
	canceled bool
}

func (l *later) Start(done func()) {
	l.post(func() {
		if !l.canceled {
			done()
		}
	})
}

func (l *later) Cancel() { l.canceled = true }

// answers is a filter that answers by itself what was not let pass before it.
type answers struct{}

func (answers) Name() string { return "answers" }

func (answers) RequestHead(x stream.Context, h *message.Head, _ bool) stream.Verdict {
	if h.Lookup("x-answer") == nil {
		return stream.Continue
	}
	return x.Stream.Reply(418, "", "answered", 0)
}

var overrides = map[string]string{
	"envoy.filters.http.cors": `{"@type":"%s","allow_origin_string_match":[{"exact":"https://shop"}],"allow_credentials":true}`,
}

var configs = map[string]string{
	"envoy.filters.http.cors":            `{"@type":"%s"}`,
	"envoy.filters.http.jwt_authn":       `{"@type":"%s","providers":{"p":{"local_jwks":{"inline_string":"{\"keys\":[{\"kty\":\"oct\",\"k\":\"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY\"}]}"}}},"rules":[{"match":{"prefix":"/closed"},"requires":{"provider_name":"p"}}]}`,
	"envoy.filters.http.local_ratelimit": `{"@type":"%s","stat_prefix":"l","token_bucket":{"max_tokens":100000000,"fill_interval":"1s"},"filter_enabled":{"default_value":{"numerator":100}},"enable_x_ratelimit_headers":"DRAFT_VERSION_03"}`,
	"envoy.filters.http.rbac":            `{"@type":"%s","rules":{"action":"DENY","policies":{"p":{"permissions":[{"url_path":{"path":{"prefix":"/admin"}}}],"principals":[{"any":true}]}}}}`,
}

func config(t *testing.T, text, url string) *anypb.Any {
	t.Helper()
	a := &anypb.Any{}
	if err := protojson.Unmarshal(fmt.Appendf(nil, text, url), a); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestFiltersBesideOneThatHolds: whatever is held before, between and behind the filters, and whoever answers,
// a request has the outcome that it has without, and one whose client leaves does no harm.
func TestFiltersBesideOneThatHolds(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var plain, mixed []stream.Filter
	var plainIDs, mixedIDs []route.FilterID
	var over []route.Override
	compiled := 0
	for _, k := range kinds {
		if k.Compile == nil {
			continue
		}
		compiled++
		id := route.FilterID(compiled)
		c := filtertest.Compiler()
		c.FilterName = k.Name
		f := k.Compile(c, config(t, configs[k.Name], k.TypeURL))
		if text := overrides[k.Name]; text != "" {
			over = append(over, route.Override{Filter: id, Config: k.CompileRoute(c, config(t, text, k.RouteTypeURL))})
		}
		if err := c.Err(); err != nil {
			t.Fatal(err)
		}
		plain, plainIDs = append(plain, f), append(plainIDs, id)
		mixed, mixedIDs = append(mixed, &chaos{rng}, answers{}, f), append(mixedIDs, 100, 100, id)
	}
	if compiled != len(configs) {
		t.Fatalf("%d filters, and configurations for %d", compiled, len(configs))
	}
	mixed, mixedIDs = append(mixed, &chaos{rng}), append(mixedIDs, 100)
	rig := func(filters []stream.Filter, ids []route.FilterID) *filtertest.Rig {
		r := filtertest.New(t, filters[0], nil)
		chain, err := stream.NewChain(filters, ids)
		if err != nil {
			t.Fatal(err)
		}
		r.Manager().Filters = chain
		r.Route.Overrides = over
		return r
	}
	calm, wild := rig(plain, plainIDs), rig(mixed, mixedIDs)
	requests := [][]string{
		{"GET", "/"}, {"GET", "/", "origin", "https://shop"}, {"GET", "/", "origin", "https://evil"}, {"GET", "/admin"}, {"GET", "/admin", "origin", "https://shop"},
		{"GET", "/closed"}, {"GET", "/closed", "authorization", "Bearer x.y.z"}, {"OPTIONS", "/", "origin", "https://shop", "access-control-request-method", "PUT"}, {"GET", "/#"},
	}
	for range 2000 {
		q := requests[rng.IntN(len(requests))]
		switch rng.IntN(8) {
		case 0:
			e := wild.Send(q[0], q[1], q[2:]...)
			if !e.Done() {
				e.Reset()
			}
			continue
		case 1:
			if res := wild.Do(t, q[0], q[1], append([]string{"x-answer", "1"}, q[2:]...)...); res.Status != 418 && res.Status != 400 {
				t.Fatalf("%q is answered by a filter: %d", q, res.Status)
			}
			continue
		}
		want, got := calm.Do(t, q[0], q[1], q[2:]...), wild.Do(t, q[0], q[1], q[2:]...)
		if got.Status != want.Status || got.Body != want.Body || got.Details != want.Details {
			t.Fatalf("%q: %d %q (%s), want %d %q (%s)", q, got.Status, got.Body, got.Details, want.Status, want.Body, want.Details)
		}
		for _, name := range []string{"vary", "access-control-allow-origin", "www-authenticate", "x-ratelimit-limit"} {
			if got.Header(name) != want.Header(name) {
				t.Fatalf("%q: %s is %q, want %q", q, name, got.Header(name), want.Header(name))
			}
		}
	}
}
