package telemetry

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

// finished returns a stream as it is when its access log is written.
func finished() *stream.Stream {
	s := &stream.Stream{}
	s.Info = stream.Info{
		Conn: &stream.Connection{ID: 7, Direct: netip.MustParseAddrPort("10.0.0.2:4000"), Local: netip.MustParseAddrPort("10.0.0.1:443"), SNI: "shop.example",
			TLS: &tls.ConnectionState{Version: tls.VersionTLS13}, Peer: &stream.Peer{URI: []string{"spiffe://a/b", "spiffe://c"}, DNS: []string{"d.example"}, Subject: "CN=x", Hash: "ab12", LocalURI: "spiffe://me"}},
		Remote: netip.MustParseAddrPort("[2001:db8::1]:5555"), Manager: &stream.Manager{},
		Route: &route.Route{Name: "r1", VirtualHost: "v1", TraceSampling: -1}, Protocol: message.HTTP2,
		Start:   time.Date(2026, 3, 9, 8, 7, 6, 5004003, time.UTC),
		Timings: stream.Timings{RequestEnd: 3 * time.Millisecond, UpstreamEnd: 4 * time.Millisecond, ResponseStart: 20 * time.Millisecond, ResponseEnd: 25 * time.Millisecond},
		Status:  503, Received: 11, Sent: 22, Duration: 26 * time.Millisecond, Flags: failure.UF | failure.URX, Details: "upstream_reset",
		Cluster: "orders", UpstreamLocal: netip.MustParseAddrPort("127.0.0.1:9"), UpstreamFailure: "TLS handshake failed", Attempts: 2, TraceID: "4bf9",
	}
	for _, h := range [][2]string{{":method", "GET"}, {":path", "/now?x=1"}, {":authority", "shop.example"}, {"user-agent", `curl "8"`}, {"x-request-id", "id-1"}, {"x-empty", ""}} {
		s.Request.AddString(h[0], h[1])
	}
	s.Request.AddString("x-hostile", "a\r\n[2026] \"GET /forged\x1b[31m\x00\x7f")
	s.Response.AddString("content-type", "text/plain")
	s.ResponseTrailers.AddString("grpc-status", "14")
	s.Metadata = []stream.Metadatum{{Namespace: "jwt", Key: "payload", Value: map[string]any{"sub": "ann", "groups": []any{"a", "b"}}}, {Namespace: "jwt", Key: "iss", Value: "issuer"}}
	return s
}

func TestOperators(t *testing.T) {
	for format, want := range map[string]string{
		"plain":                                          "plain",
		"100%%":                                          "100%",
		"%%%PROTOCOL%%%":                                 "%HTTP/2%",
		"%REQ(:METHOD)% %REQ(:PATH)%":                    "GET /now?x=1",
		"%REQ(X-Old?:PATH)%":                             "/now?x=1",
		"%REQ(User-Agent?:PATH)%":                        `curl "8"`,
		"%REQ(X-MISSING)%":                               "-",
		"[%REQ(X-EMPTY)%]":                               "[]",
		"%REQ(:PATH):4%":                                 "/now",
		"%REQ(:PATH):400%":                               "/now?x=1",
		"%REQUEST_HEADER(:METHOD)%":                      "GET",
		"%RESP(Content-Type)%":                           "text/plain",
		"%RESPONSE_HEADER(Content-Type)%":                "text/plain",
		"%TRAILER(grpc-status)%":                         "14",
		"%GRPC_STATUS%":                                  "Unavailable",
		"%GRPC_STATUS_NUMBER%":                           "14",
		"%START_TIME%":                                   "2026-03-09T08:07:06.005Z",
		"%START_TIME(%Y/%m/%dT%H:%M:%S%z %s)%":           "2026/03/09T08:07:06+0000 1773043626",
		"%START_TIME(%s.%3f %s.%6f %s.%9f %f)%":          "1773043626.005 1773043626.005004 1773043626.005004003 005004003",
		"%START_TIME(%F %T %a %e %j %y %b %p %I %Z)%":    "2026-03-09 08:07:06 Mon  9 068 26 Mar AM 08 UTC",
		"%START_TIME(100%% %q %)%":                       "100% %q %",
		"%RESPONSE_CODE% %RESPONSE_FLAGS%":               "503 UF,URX",
		"%RESPONSE_CODE_DETAILS%":                        "upstream_reset",
		"%BYTES_RECEIVED% %BYTES_SENT% %DURATION%":       "11 22 26",
		"%REQUEST_DURATION% %REQUEST_TX_DURATION%":       "3 4",
		"%RESPONSE_DURATION% %RESPONSE_TX_DURATION%":     "20 5",
		"%UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW%":      "orders orders",
		"%UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS%":      "- -",
		"%UPSTREAM_LOCAL_ADDRESS%":                       "127.0.0.1:9",
		"%UPSTREAM_TRANSPORT_FAILURE_REASON%":            "TLS handshake failed",
		"%UPSTREAM_REQUEST_ATTEMPT_COUNT%":               "2",
		"%UPSTREAM_PROTOCOL%":                            "HTTP/1.0",
		"%DOWNSTREAM_REMOTE_ADDRESS%":                    "[2001:db8::1]:5555",
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%":       "2001:db8::1",
		"%DOWNSTREAM_REMOTE_PORT%":                       "5555",
		"%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%":             "10.0.0.2:4000",
		"%DOWNSTREAM_LOCAL_ADDRESS%":                     "10.0.0.1:443",
		"%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%":        "10.0.0.1",
		"%DOWNSTREAM_LOCAL_PORT%":                        "443",
		"%DOWNSTREAM_PEER_URI_SAN%":                      "spiffe://a/b,spiffe://c",
		"%DOWNSTREAM_PEER_DNS_SAN%":                      "d.example",
		"%DOWNSTREAM_PEER_SUBJECT%":                      "CN=x",
		"%DOWNSTREAM_PEER_FINGERPRINT_256%":              "ab12",
		"%DOWNSTREAM_LOCAL_URI_SAN%":                     "spiffe://me",
		"%DOWNSTREAM_TLS_VERSION%":                       "TLSv1.3",
		"%REQUESTED_SERVER_NAME%":                        "shop.example",
		"%ROUTE_NAME% %VIRTUAL_HOST_NAME%":               "r1 v1",
		"%CONNECTION_ID%":                                "7",
		"%TRACE_ID% %STREAM_ID%":                         "4bf9 id-1",
		"%DYNAMIC_METADATA(jwt:iss)%":                    "issuer",
		"%DYNAMIC_METADATA(jwt:payload)%":                `{"groups":["a","b"],"sub":"ann"}`,
		"%DYNAMIC_METADATA(jwt:payload:sub)%":            "ann",
		"%DYNAMIC_METADATA(jwt:payload:sub):2%":          "an",
		"%DYNAMIC_METADATA(jwt:payload:nothing:at:all)%": "-",
		"%DYNAMIC_METADATA(other)%":                      "-",
		"%HOSTNAME%":                                     hostname,
		// Nobody writes lines into the log but us.
		"%REQ(X-HOSTILE)%": `a  [2026] "GET /forged [31m  `,
	} {
		f, err := Compile(format)
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		if got := string(f.Append([]byte("before "), finished())); got != "before "+want {
			t.Errorf("%s: %q, want %q", format, got, want)
		}
	}
}

func TestOperatorsOfATCPConnection(t *testing.T) {
	s := &stream.Stream{}
	s.Conn = &stream.Connection{}
	s.Timings = stream.Timings{RequestEnd: -1, UpstreamStart: -1, UpstreamEnd: -1, ResponseStart: -1, ResponseEnd: -1}
	for name, f := range numbers {
		if _, ok := f(nil, s); !ok && !strings.HasSuffix(name, "_DURATION") && name != "GRPC_STATUS_NUMBER" {
			t.Errorf("%s has no value", name)
		}
	}
	for _, f := range texts { // none may look at what is not there
		f(nil, s)
	}
	f, err := Compile("%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_TX_DURATION% %DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_TLS_VERSION% %ROUTE_NAME%")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(f.Append(nil, s)); got != "- 0 - - - - -" {
		t.Error(got)
	}
}

func TestBadFormats(t *testing.T) {
	for format, want := range map[string]string{
		"%":                  "no closing",
		"a %PROTOCOL":        "position 2 has no closing",
		"%NO_SUCH%":          "%NO_SUCH% is not known",
		"%REQ%":              "needs one header name",
		"%REQ()%":            "needs one header name",
		"%REQ(A?)%":          "needs one header name",
		"%REQ(A?B?C)%":       "needs one header name",
		"%REQ(A)x%":          "is not a length",
		"%REQ(A):-1%":        "is not a length",
		"%REQ(A):0%":         "is not a length",
		"%REQ(A%":            "no closing",
		"%REQ)A(%":           "missing closing parenthesis",
		"%PROTOCOL% %%% end": "no closing",
		// A credential in which there is a percent sign.
		"Basic s3cret%pa55w0rd%": "command operator is not known",
		"Basic s3cret%":          "position 12 has no closing",
		"%REQ(s3cret":            "no closing",
		"%REQ)s3cret(x%":         "missing closing parenthesis",
		"%REQ(A)s3cret%":         "is not a length",
	} {
		if _, err := Compile(format); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", format, err, want)
		} else if strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "pa55") {
			t.Errorf("the error repeats what may be a credential: %v", err)
		}
	}
}

func TestHeaderValues(t *testing.T) {
	for format, want := range map[string]string{
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%": "2001:db8::1",
		"%REQ(X-MISSING)%":                         "",
		"a%REQ(X-MISSING)%b":                       "ab",
		// A value becomes a header: a line break in it would be another header.
		"x %REQ(X-HOSTILE)%": "x a  [2026] \"GET /forged [31m  ",
	} {
		f, err := HeaderFormat(format)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(f.AppendValue(nil, finished())); got != want {
			t.Errorf("%s: %q, want %q", format, got, want)
		}
	}
}

func jsonFormat(t testing.TB, fields map[string]any) *JSONFormat {
	t.Helper()
	st, err := structpb.NewStruct(fields)
	if err != nil {
		t.Fatal(err)
	}
	j, err := compileJSON(st, false)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestJSONLines(t *testing.T) {
	fields := map[string]any{
		"status": "%RESPONSE_CODE%", "text": "code %RESPONSE_CODE%", "missing": "%REQ(X-MISSING)%", "mixed": "[%REQ(X-MISSING)%]",
		"agent": "%REQ(User-Agent)%", "hostile": "%REQ(X-HOSTILE)%", "percent": "100%%", "empty": "", "n": 1.5, "yes": true, "null": nil,
		"grpc": "%GRPC_STATUS_NUMBER%", "short": "%REQ(:PATH):4%", "tls": map[string]any{"version": "%DOWNSTREAM_TLS_VERSION%", "none": map[string]any{}},
		"list": []any{"%PROTOCOL%", "x", []any{}, "%REQ(X-MISSING)%"}, `quo"te`: "v",
	}
	j := jsonFormat(t, fields)
	line := string(j.Append([]byte("[earlier line\n"), finished()))
	line, ok := strings.CutPrefix(line, "[earlier line\n")
	if !ok || !strings.HasSuffix(line, "}\n") || strings.Count(line, "\n") != 1 {
		t.Fatalf("%q", line)
	}
	want := `{"agent":"curl \"8\"","empty":"","grpc":14,"hostile":"a\u000d\u000a[2026] \"GET /forged\u001b[31m\u0000\u007f","list":["HTTP/2","x",[],null],` +
		`"missing":null,"mixed":"[-]","n":1.5,"null":null,"percent":"100%","quo\"te":"v","short":"/now","status":503,"text":"code 503","tls":{"none":{},"version":"TLSv1.3"},"yes":true}` + "\n"
	if line != want {
		t.Errorf("%s\nwant\n%s", line, want)
	}

	st, err := structpb.NewStruct(fields)
	if err != nil {
		t.Fatal(err)
	}
	j, err = compileJSON(st, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"missing", "agent", "null"} {
		var m map[string]any
		if err := json.Unmarshal(j.Append(nil, finished()), &m); err != nil {
			t.Fatal(err)
		}
		if _, has := m[key]; has != (key != "missing") {
			t.Errorf("omit_empty_values: %s is there: %v", key, has)
		}
		if m["mixed"] != "[]" {
			t.Errorf("mixed is %q", m["mixed"])
		}
	}
}

func TestBadJSONFormats(t *testing.T) {
	for _, v := range []*structpb.Value{structpb.NewStringValue("%NO%"), structpb.NewNumberValue(nan()),
		structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewStringValue("%NO%")}})} {
		_, err := compileJSON(&structpb.Struct{Fields: map[string]*structpb.Value{"outer": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"inner": v}})}}, false)
		if err == nil || !strings.Contains(err.Error(), "outer: inner: ") {
			t.Errorf("%v: %v", v, err)
		}
	}
}

func nan() float64 { zero := 0.0; return zero / zero }

func TestIsInteger(t *testing.T) {
	for s, want := range map[string]bool{"0": true, "7": true, "-7": true, "120": true, "": false, "-": false, "00": false, "01": false, "-01": false, "-0": true, "1e9": false,
		"+1": false, "1.5": false, "99999999999999999999": true, "999999999999999999999": false} {
		if isInteger([]byte(s)) != want {
			t.Errorf("%q: want %v", s, want)
		}
		if want && !json.Valid([]byte(s)) {
			t.Errorf("%q is no number of JSON", s)
		}
	}
}

// FuzzJSONLine: whatever a client and a server send, a line is one line, and valid JSON.
func FuzzJSONLine(f *testing.F) {
	f.Add([]byte("curl"), []byte("0"), "%REQ(USER-AGENT)% x", "key")
	f.Add([]byte("\xff\xfe\"\\\n\u2028"), []byte("-01"), `%TRAILER(grpc-status)%"`, `"`)
	f.Add([]byte{0, 0x1f, 0x7f, 0x80}, []byte("1e999"), "%REQ(USER-AGENT):1%", "\xff")
	f.Fuzz(func(t *testing.T, agent, status []byte, format, key string) {
		s := finished()
		s.Request.SetName(message.UserAgent, agent)
		s.ResponseTrailers.SetName(message.GRPCStatus, status)
		st := &structpb.Struct{Fields: map[string]*structpb.Value{
			key: structpb.NewStringValue(format), "agent": structpb.NewStringValue("%REQ(USER-AGENT)%"), "n": structpb.NewStringValue("%GRPC_STATUS_NUMBER%"),
			"both": structpb.NewStringValue("%REQ(USER-AGENT)% %GRPC_STATUS% %REQ(X-NOT)%"), "status": structpb.NewStringValue("%GRPC_STATUS%"),
		}}
		for _, omit := range []bool{false, true} {
			j, err := compileJSON(st, omit)
			if err != nil {
				return
			}
			line := j.Append(nil, s)
			if !json.Valid(line) || bytes.IndexByte(line, '\n') != len(line)-1 {
				t.Fatalf("%q", line)
			}
		}
		text, err := Compile("%REQ(USER-AGENT)%|%GRPC_STATUS%|%TRAILER(grpc-status)%\n")
		if err != nil {
			t.Fatal(err)
		}
		if line := text.Append(nil, s); bytes.IndexByte(line, '\n') != len(line)-1 || bytes.ContainsAny(line[:len(line)-1], "\r\x00\x1b") {
			t.Fatalf("%q", line)
		}
	})
}

// FuzzCompile: no format string makes Compile, or a line, panic.
func FuzzCompile(f *testing.F) {
	for _, s := range []string{DefaultFormat, "%START_TIME(%s.%3f)%", "%REQ(A?B):3%", "%%", "%DYNAMIC_METADATA(a:b:c)%"} {
		f.Add(s)
	}
	s := finished()
	f.Fuzz(func(t *testing.T, format string) {
		c, err := Compile(format)
		if err != nil {
			return
		}
		c.Append(nil, s)
		c.AppendValue(nil, s)
	})
}

func TestFormattingDoesNotAllocate(t *testing.T) {
	s := finished()
	s.Conn.Peer.URI = s.Conn.Peer.URI[:1]
	text, err := Compile(DefaultFormat + "%START_TIME(%Y-%m-%d %H:%M:%S.%6f)% %DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_PEER_URI_SAN% %GRPC_STATUS% %UPSTREAM_LOCAL_ADDRESS% %DYNAMIC_METADATA(jwt:iss)%")
	if err != nil {
		t.Fatal(err)
	}
	j := jsonFormat(t, map[string]any{"time": "%START_TIME%", "agent": "%REQ(USER-AGENT)%", "code": "%RESPONSE_CODE%", "from": "%DOWNSTREAM_REMOTE_ADDRESS% x", "hostile": "%REQ(X-HOSTILE)%"})
	buf := make([]byte, 0, 4096)
	for name, f := range map[string]appender{"text": text, "json": j} {
		if n := testing.AllocsPerRun(100, func() { f.Append(buf, s) }); n != 0 {
			t.Errorf("%s: %v allocations for a line", name, n)
		}
	}
}

func BenchmarkLine(b *testing.B) {
	text, err := Compile(DefaultFormat)
	if err != nil {
		b.Fatal(err)
	}
	fields := map[string]any{}
	for i, op := range strings.Fields("%START_TIME% %REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %REQ(USER-AGENT)% %REQ(X-REQUEST-ID)% %REQ(:AUTHORITY)% %UPSTREAM_HOST%") {
		fields[fmt.Sprintf("f%02d", i)] = op
	}
	s := finished()
	buf := make([]byte, 0, 4096)
	for name, f := range map[string]appender{"text": text, "json": jsonFormat(b, fields)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f.Append(buf, s)
			}
		})
	}
}
