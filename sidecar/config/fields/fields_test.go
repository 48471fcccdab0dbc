package fields

import (
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
)

var vhost = Of(&routev3.VirtualHost{}, "name", "domains", "routes").
	Harmless(&routev3.VirtualHost{}, "metadata").
	Refuse(&routev3.VirtualHost{}, "rate_limits")

func TestCheckTellsEverySetFieldThatIsNotImplemented(t *testing.T) {
	m := &routev3.VirtualHost{
		Name: "v", Metadata: &corev3.Metadata{},
		HedgePolicy:            &routev3.HedgePolicy{},
		RateLimits:             []*routev3.RateLimit{{}},
		RetryPolicyTypedConfig: &anypb.Any{},
	}
	m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1))
	r := NewReport("route configuration", "r")
	Check(r, "virtual_hosts[0]", m, vhost)
	if len(r.Warnings) != 2 {
		t.Fatalf("warnings: %v", r.Warnings)
	}
	text := r.Warnings[0].String() + r.Warnings[1].String()
	for _, want := range []string{`route configuration "r": virtual_hosts[0].hedge_policy: not implemented`, "number 999"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	err := r.Err().Error()
	for _, want := range []string{"virtual_hosts[0].rate_limits: not implemented", "retry_policy_typed_config"} {
		if !strings.Contains(err, want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
	if strings.Contains(err+text, "metadata") {
		t.Errorf("a harmless field was reported: %s %s", err, text)
	}
}

func TestStrictRefusesUnknownFields(t *testing.T) {
	m := &routev3.VirtualHost{Name: "v", HedgePolicy: &routev3.HedgePolicy{}}
	m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1))
	r := NewReport("x", "y")
	Check(r, "", m, Of(m, "name").Strict())
	if r.Count() != 2 || len(r.Warnings) != 0 {
		t.Errorf("got %v, %v", r.Err(), r.Warnings)
	}
}

func TestAnUnknownNameInASetPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	Of(&routev3.VirtualHost{}, "nmae")
}

func TestValidatePathsAreThoseOfTheProto(t *testing.T) {
	m := &routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"a"},
		Routes: []*routev3.Route{{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"},
			Headers: []*routev3.HeaderMatcher{{}}}}}}}}
	r := NewReport("route configuration", "r")
	if Validate(r, "", m) {
		t.Fatal("valid")
	}
	err := r.Err().Error()
	for _, want := range []string{"virtual_hosts[0].routes[0].match.headers[0].name: value length", "virtual_hosts[0].routes[0].action: value is required"} {
		if !strings.Contains(err, want) {
			t.Errorf("%q is not in:\n%s", want, err)
		}
	}
}

func TestErrorsAreBounded(t *testing.T) {
	r := NewReport("x", "y")
	for range 1000 {
		r.Errorf("p", "bad")
	}
	if n := strings.Count(r.Err().Error(), "\n"); n != maxErrors || r.Count() != 1000 {
		t.Errorf("%d lines, count %d", n, r.Count())
	}
}
