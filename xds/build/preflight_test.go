package build

import (
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestNoPreflightPassesAToken(t *testing.T) {
	filters, policies := 0, 0
	forEachCase(t, func(t *testing.T, _ Proxy, r *Resources) {
		managers(t, r, func(l *listenerv3.Listener, _ *listenerv3.FilterChain, m *hcmv3.HttpConnectionManager) {
			before := true // CORS stands before the token
			for _, f := range m.GetHttpFilters() {
				before = before && f.GetName() != jwtFilter
				if f.GetName() == corsFilter && !before {
					t.Errorf("%s: CORS comes after the token", l.GetName())
				}
				if f.GetName() != jwtFilter {
					continue
				}
				filters++
				j := &jwtv3.JwtAuthentication{}
				if err := f.GetTypedConfig().UnmarshalTo(j); err != nil {
					t.Fatal(err)
				}
				if j.GetBypassCorsPreflight() {
					t.Errorf("%s lets every preflight pass without a token", l.GetName())
				}
			}
		})
		overridesOf(r, func(where, filter string, a *anypb.Any) {
			if filter != corsFilter {
				return
			}
			policies++
			p := &corsv3.CorsPolicy{}
			if err := a.UnmarshalTo(p); err != nil {
				t.Fatal(err)
			}
			if f := p.GetForwardNotMatchingPreflights(); f == nil || f.GetValue() {
				t.Errorf("%s: a preflight of an origin that is not allowed reaches the application", where)
			}
		})
	})
	if filters == 0 || policies == 0 {
		t.Errorf("the cases have %d JWT filters and %d CORS policies", filters, policies)
	}
}
