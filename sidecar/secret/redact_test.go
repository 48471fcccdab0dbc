package secret

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// text is everything in a message, in Any fields too.
func text(t testing.TB, m proto.Message) string {
	t.Helper()
	b, err := prototext.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + string(raw)
}

func packed(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func header(name, value string) proto.Message {
	return &routev3.Route{RequestHeadersToAdd: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: name, Value: value}}}}
}

func match(name, value string) proto.Message {
	return &routev3.RouteMatch{Headers: []*routev3.HeaderMatcher{{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}}}}}}
}

func query(name, value string) proto.Message {
	return &routev3.RouteMatch{QueryParameters: []*routev3.QueryParameterMatcher{{Name: name, QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: value}}}}}}
}

func jwks(text string) proto.Message {
	return &jwtv3.JwtAuthentication{Providers: map[string]*jwtv3.JwtProvider{"p": {JwksSourceSpecifier: &jwtv3.JwtProvider_LocalJwks{
		LocalJwks: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}}}}}}
}

func metadata(t testing.TB, fields map[string]any) proto.Message {
	t.Helper()
	s, err := structpb.NewStruct(fields)
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Node{Id: "n", Metadata: s}
}

// TestWhatDependsOnMoreThanTheField: each text holds "VALUE". Shown, kept on disk though not shown, or neither.
func TestWhatDependsOnMoreThanTheField(t *testing.T) {
	uri := func(s string) proto.Message { return &corev3.HttpUri{Uri: s} }
	for _, c := range []struct {
		name        string
		m           proto.Message
		shown, kept bool
	}{
		{"a harmless header", header("x-forwarded-proto", "VALUE"), true, true},
		{"a header of somebody's own", header("x-team", "VALUE"), false, true},
		{"Authorization", header("Authorization", "Basic VALUE"), false, false},
		{"an API key", header("x-api-key", "VALUE"), false, false},
		{"a cookie", header("cookie", "VALUE"), false, false},
		{"a token under an ordinary name", header("x-upstream", "Bearer VALUE"), false, false},
		{"a credential that is copied", header("authorization", "%REQ(VALUE)%"), true, true},
		{"a credential with a text before", header("authorization", "Bearer VALUE %REQ(x)%"), false, false},
		{"a raw value", &corev3.HeaderValue{Key: "x-token", RawValue: []byte("VALUE")}, false, false},
		{"CORS", header("access-control-allow-credentials", "VALUE"), true, true},
		{"a match on a path", match(":path", "VALUE"), true, true},
		{"a match on an API key", match("x-api-key", "VALUE"), false, false},
		{"a match on a header of somebody's own", match("x-version", "VALUE"), false, true},
		{"a match on a query parameter", query("version", "VALUE"), false, true},
		{"a match on a token in the query", query("access_token", "VALUE"), false, false},
		{"a public JWKS", jwks(`{"keys":[{"kty":"RSA","kid":"VALUE","n":"abc","e":"AQAB"}]}`), true, true},
		{"a public JWKS with members of its issuer", jwks(`{"keys":[{"kty":"EC","crv":"P-256","x":"VALUE","y":"b","issuer":"i"}]}`), false, true},
		{"a symmetric key", jwks(`{"keys":[{"kty":"oct","alg":"HS256","k":"VALUE"}]}`), false, false},
		{"a private key", jwks(`{"keys":[{"kty":"RSA","n":"abc","e":"AQAB","d":"VALUE"}]}`), false, false},
		{"a symmetric key among public ones", jwks(`{"keys":[{"kty":"RSA","n":"a","e":"AQAB"},{"kty":"oct","k":"VALUE"}]}`), false, false},
		{"a JWKS that is none", jwks("VALUE"), false, false},
		{"metadata", metadata(t, map[string]any{"team": "VALUE"}), false, true},
		{"metadata within metadata", metadata(t, map[string]any{"a": map[string]any{"b": []any{"VALUE"}}}), false, true},
		{"a password in metadata", metadata(t, map[string]any{"a": map[string]any{"password": []any{map[string]any{"b": "VALUE"}}}}), false, false},
		{"the name of metadata", metadata(t, map[string]any{"a": map[string]any{"VALUE": "x"}}), true, true},
		{"a URL", uri("https://idp.example/VALUE"), true, true},
		{"a URL with a password", uri("https://user:VALUE@idp.example/"), false, false},
		{"a URL with a token", uri("https://idp.example/?access_token=VALUE"), false, false},
		{"a URL with a query", uri("https://idp.example/?tenant=VALUE"), false, true},
		{"a URL that is none", uri("https://VALUE\x7f:x"), false, false},
		{"a certificate", &tlsv3.TlsCertificate{CertificateChain: &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte("VALUE")}}}, true, true},
		{"a private key in the file of its certificate", &tlsv3.TlsCertificate{CertificateChain: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{
			InlineString: "-----BEGIN EC PRIVATE KEY-----\nVALUE\n-----END EC PRIVATE KEY-----"}}}, false, false},
		{"a path with a token", &corev3.HealthCheck_HttpHealthCheck{Path: "/health?token=VALUE"}, false, false},
		{"a path", &corev3.HealthCheck_HttpHealthCheck{Path: "/VALUE?a=b"}, true, true},
		{"a private key of TLS", &tlsv3.TlsCertificate{PrivateKey: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "VALUE"}}}, false, false},
		{"a message of a type that nobody knows", &anypb.Any{TypeUrl: "type.googleapis.com/acme.Filter", Value: []byte("\x0a\x05VALUE")}, false, false},
		{"the type of such a message", &anypb.Any{TypeUrl: "type.googleapis.com/acme.VALUE"}, true, true},
		{"a field that nobody knows", func() proto.Message {
			m := &clusterv3.Cluster{Name: "c"}
			m.ProtoReflect().SetUnknown(protoreflect.RawFields("\xfa\xff\x0f\x05VALUE"))
			return m
		}(), false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Within a resource, as it comes over xDS, and by itself.
			filter := &listenerv3.Listener{Name: "l", FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "f",
				ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(t, c.m)}}}}}}
			for _, m := range []proto.Message{c.m, packed(t, c.m), filter, packed(t, filter)} {
				before := proto.Clone(m)
				if got := strings.Contains(text(t, Redact(m)), "VALUE"); got != c.shown {
					t.Errorf("shown: %v, want %v: %s", got, c.shown, prototext.Format(Redact(m)))
				}
				if path := Holds(m); (path == "") != c.kept {
					t.Errorf("must not be kept because of %q, want kept: %v", path, c.kept)
				}
				if !proto.Equal(before, m) {
					t.Error("the original was changed")
				}
			}
		})
	}
}

func TestWhatHoldsASecretIsSaidByItsPlace(t *testing.T) {
	if got, want := Holds(packed(t, jwks(`{"keys":[{"kty":"oct","k":"x"}]}`))), "providers[p].local_jwks.inline_string"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := Holds(header("authorization", "Basic x")), "request_headers_to_add[0].header.value"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestMessagesThatAreInEachOther(t *testing.T) {
	a := packed(t, &corev3.Node{Id: "n"})
	for range 2 * maxDepth {
		a = packed(t, a)
	}
	Redact(a) // ends
	if Holds(a) == "" {
		t.Error("what is too deep to be read is kept")
	}
}
