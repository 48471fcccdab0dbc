package match

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
)

func read[M proto.Message](t *testing.T, m M, text string) M {
	t.Helper()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return m
}

func TestEveryHeaderMatcher(t *testing.T) {
	for text, want := range map[string][2]bool{ // for the values "abc" and "12"
		`{"name":"x"}`:                                                               {true, true},
		`{"name":"x","exact_match":"abc"}`:                                           {true, false},
		`{"name":"x","exact_match":""}`:                                              {true, true},
		`{"name":"x","prefix_match":"a"}`:                                            {true, false},
		`{"name":"x","suffix_match":"c"}`:                                            {true, false},
		`{"name":"x","contains_match":"b"}`:                                          {true, false},
		`{"name":"x","present_match":false}`:                                         {false, false},
		`{"name":"x","range_match":{"start":"12","end":"13"}}`:                       {false, true},
		`{"name":"x","safe_regex_match":{"regex":"[0-9]+"}}`:                         {false, true},
		`{"name":"x","string_match":{"exact":"ABC","ignore_case":true}}`:             {true, false},
		`{"name":"x","string_match":{"exact":"abc"},"invert_match":true}`:            {false, true},
		`{"name":"x","string_match":{"safe_regex":{"google_re2":{},"regex":"a.*"}}}`: {true, false},
	} {
		r := fields.NewReport("x", "y")
		m := Header(r, "h", read(t, &routev3.HeaderMatcher{}, text))
		if r.Failed() {
			t.Errorf("%s: %v", text, r.Err())
			continue
		}
		for i, v := range []string{"abc", "12"} {
			h := &message.Head{}
			h.AddString("x", v)
			if got := m.Match(h); got != want[i] {
				t.Errorf("%s on %q: %v", text, v, got)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		compile func(*fields.Report)
		want    string
	}{
		"empty string matcher": {func(r *fields.Report) { String(r, "p", &matcherv3.StringMatcher{}) }, "x \"y\": p: needs one of exact"},
		"custom string matcher": {func(r *fields.Report) {
			String(r, "p", read(t, &matcherv3.StringMatcher{}, `{"custom":{"name":"x"}}`))
		}, "p.custom: not implemented"},
		"empty path matcher":  {func(r *fields.Report) { Path(r, "p", &matcherv3.PathMatcher{}) }, "p: needs path"},
		"header without name": {func(r *fields.Report) { Header(r, "p", &routev3.HeaderMatcher{}) }, "p.name: a header matcher needs"},
		"absent parameter": {func(r *fields.Report) {
			Route(r, "p", read(t, &routev3.RouteMatch{}, `{"prefix":"/","query_parameters":[{"name":"a","present_match":false}]}`))
		}, "p.query_parameters[0].present_match: false"},
		"no path": {func(r *fields.Report) { Route(r, "p", &routev3.RouteMatch{}) }, "p: needs one of prefix"},
		"path policy": {func(r *fields.Report) {
			Route(r, "p", &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathMatchPolicy{PathMatchPolicy: &corev3.TypedExtensionConfig{}}})
		}, "p.path_match_policy: not implemented"},
		"long prefix": {func(r *fields.Report) {
			CIDR(r, "p", &corev3.CidrRange{AddressPrefix: "10.0.0.0", PrefixLen: wrapperspb.UInt32(33)})
		}, "p.prefix_len: 33 is too long"},
		"address with a zone": {func(r *fields.Report) { CIDR(r, "p", &corev3.CidrRange{AddressPrefix: "fe80::1%eth0"}) }, "is not an IP address"},
	} {
		r := fields.NewReport("x", "y")
		c.compile(r)
		if r.Err() == nil || !strings.Contains(r.Err().Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, r.Err(), c.want)
		}
	}
}

func TestFractions(t *testing.T) {
	for _, c := range []struct {
		p    *typev3.FractionalPercent
		want uint32
	}{
		{nil, 7},
		{&typev3.FractionalPercent{Numerator: 50}, 500_000},
		{&typev3.FractionalPercent{Numerator: 50, Denominator: typev3.FractionalPercent_TEN_THOUSAND}, 5_000},
		{&typev3.FractionalPercent{Numerator: 50, Denominator: typev3.FractionalPercent_MILLION}, 50},
		{&typev3.FractionalPercent{Numerator: 1<<32 - 1}, route.Always},
	} {
		if got := Percent(c.p, 7); got != c.want {
			t.Errorf("%v: %d, want %d", c.p, got, c.want)
		}
	}
}

func TestData(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MATCH_TEST", "env")
	for text, want := range map[string]string{
		`{"inline_string":"s"}`:                   "s",
		`{"inline_bytes":"YWI="}`:                 "ab",
		`{"filename":"` + file + `"}`:             "12345",
		`{"environment_variable":"MATCH_TEST"}`:   "env",
		`{"environment_variable":"MATCH_TEST_2"}`: "error: environment variable \"MATCH_TEST_2\" is not set",
		`{"inline_string":"123456"}`:              "error: has 6 bytes; at most 5 are allowed",
		`{}`:                                      "error: needs one of filename",
	} {
		b, err := Data(read(t, &corev3.DataSource{}, text), 5)
		got := string(b)
		if err != nil {
			got = "error: " + err.Error()
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
