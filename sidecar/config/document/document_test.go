package document

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

func decode(text string, m proto.Message) error {
	d, err := Parse("f", []byte(text))
	if err != nil {
		return err
	}
	return d.Decode(m)
}

func TestTheJSONMappingOfEveryKindOfField(t *testing.T) {
	// Each text is YAML; the second is the JSON that protojson takes for the same message.
	for name, c := range map[string]struct{ yaml, json string }{
		"scalars":         {"name: 'a'\nconnect_timeout: 1.5s\nlb_policy: RANDOM\n", `{"name":"a","connectTimeout":"1.5s","lbPolicy":"RANDOM"}`},
		"camel case":      {"connectTimeout: 0.000000001s\naltStatName: x\n", `{"connectTimeout":"0.000000001s","altStatName":"x"}`},
		"negative":        {"connect_timeout: -3s\n", `{"connectTimeout":"-3s"}`},
		"enum by number":  {"lb_policy: 3\n", `{"lbPolicy":3}`},
		"wrappers":        {"per_connection_buffer_limit_bytes: 0x10\nmax_requests_per_connection: \"7\"\n", `{"perConnectionBufferLimitBytes":16,"maxRequestsPerConnection":7}`},
		"whole floats":    {"per_connection_buffer_limit_bytes: 1e3\n", `{"perConnectionBufferLimitBytes":1000}`},
		"underscores":     {"per_connection_buffer_limit_bytes: 1_000\n", `{"perConnectionBufferLimitBytes":1000}`},
		"old booleans":    {"respect_dns_ttl: yes\ntrack_timeout_budgets: off\n", `{"respectDnsTtl":true,"trackTimeoutBudgets":false}`},
		"nulls are unset": {"name: a\nlb_policy: ~\nhealth_checks:\ncircuit_breakers: null\n", `{"name":"a"}`},
		"structs": {"metadata: {filter_metadata: {a: {b: [1, x, true, null, {c: 1.5}], d: \"1\"}}}\n",
			`{"metadata":{"filterMetadata":{"a":{"b":[1,"x",true,null,{"c":1.5}],"d":"1"}}}}`},
		"any": {"typed_extension_protocol_options: {x: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}}\n",
			`{"typedExtensionProtocolOptions":{"x":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router","suppressEnvoyHeaders":true}}}`},
		"any of a well-known type": {"typed_extension_protocol_options: {x: {\"@type\": type.googleapis.com/google.protobuf.Duration, value: 3s}}\n",
			`{"typedExtensionProtocolOptions":{"x":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"3s"}}}`},
		"anchors and merges": {"dns_failure_refresh_rate: &r {base_interval: 1s, max_interval: 2s}\nmetadata: {filter_metadata: {a: {<<: {x: 1, y: 2}, y: 3}}}\n",
			`{"dnsFailureRefreshRate":{"baseInterval":"1s","maxInterval":"2s"},"metadata":{"filterMetadata":{"a":{"x":1,"y":3}}}}`},
		"JSON itself": {`{"name": "\u00e9\n", "connectTimeout": "3s"}`, `{"name":"\u00e9\n","connectTimeout":"3s"}`},
	} {
		t.Run(name, func(t *testing.T) {
			var got, want clusterv3.Cluster
			if err := decode(c.yaml, &got); err != nil {
				t.Fatal(err)
			}
			if err := protojson.Unmarshal([]byte(c.json), &want); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(&got, &want) {
				t.Errorf("got  %v\nwant %v", &got, &want)
			}
		})
	}
	var h corev3.DataSource
	for _, text := range []string{"inline_bytes: +/8=\n", "inline_bytes: -_8\n"} {
		if err := decode(text, &h); err != nil || string(h.GetInlineBytes()) != "\xfb\xff" {
			t.Errorf("%q: %v %x", text, err, h.GetInlineBytes())
		}
		h.Reset()
	}
}

func TestNumbersOutOfRangeAreRefused(t *testing.T) {
	for _, v := range []string{"-1", "4294967296", "1.5", "1e20", `""`, `"1 "`, `"+1"`, "0b2", "true"} {
		var c clusterv3.Cluster
		if err := decode("per_connection_buffer_limit_bytes: "+v+"\n", &c); err == nil {
			t.Errorf("%s was taken for %v", v, c.GetPerConnectionBufferLimitBytes())
		}
	}
	for _, v := range []string{"1", "s", "1.s", "1.0000000001s", "315576000001s", "1.5", "--1s", "1e3s"} {
		if _, _, ok := parseDuration(v); ok {
			t.Errorf("%q was taken for a duration", v)
		}
	}
}

func TestSmallFilesCannotBecomeLarge(t *testing.T) {
	var b strings.Builder
	b.WriteString("node: {metadata: {a0: &a0 [x]")
	for i := range 30 {
		refs := strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 10), ", ")
		fmt.Fprintf(&b, ", a%d: &a%d [%s]", i+1, i+1, refs)
	}
	b.WriteString("}}\n")
	err := decode(b.String(), &bootstrapv3.Bootstrap{})
	if err == nil || !strings.Contains(err.Error(), "aliases") {
		t.Errorf("%.200v", err)
	}
	if _, err := Parse("f", make([]byte, MaxBytes+1)); err == nil {
		t.Error("a file of any size is read")
	}
	if err := decode("node: {metadata: {a: "+strings.Repeat("[", 2000)+strings.Repeat("]", 2000)+"}}\n", &bootstrapv3.Bootstrap{}); err == nil {
		t.Error("any depth is taken")
	}
}

func TestPathsComeApartAndTogether(t *testing.T) {
	for _, p := range []string{"", "a", "a.b[3].c", `m["x.y[1]"].z`, "[0]"} {
		if got := join(split(p)); got != p {
			t.Errorf("%q became %q", p, got)
		}
	}
}

// FuzzDecode: where protojson takes a JSON text, so do we, and as the same message.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"name":"a","connectTimeout":"1.5s"}`, `{"metadata":{"filterMetadata":{"a":{"b":[1,"x",null]}}}}`,
		`{"healthChecks":[{"timeout":"1s","tcpHealthCheck":{"send":{"text":"00"}}}],"lbPolicy":1}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var got, want clusterv3.Cluster
		gotErr := decode(text, &got)
		if !json.Valid([]byte(text)) || protojson.Unmarshal([]byte(text), &want) != nil {
			return
		}
		// YAML is not quite a superset of JSON; these differences are known and harmless.
		if strings.ContainsAny(text, "\\\t\r\u0085\u2028\u2029\ufeff<*&!") || strings.ContainsFunc(text, func(r rune) bool { return r < 0x20 || r == 0x7f || r > math.MaxUint16 || r >= 0x80 && r < 0xa0 }) {
			return
		}
		if gotErr != nil {
			if strings.Contains(gotErr.Error(), "nested deeper") || strings.Contains(gotErr.Error(), "not YAML") || strings.Contains(gotErr.Error(), "aliases") {
				return
			}
			t.Fatalf("protojson takes it, we say %v: %s", gotErr, text)
		}
		if !proto.Equal(&got, &want) {
			t.Fatalf("got %v, want %v", &got, &want)
		}
	})
}
