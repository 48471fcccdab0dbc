package certs

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestServiceID(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	for _, tc := range []struct{ namespace, service, want string }{
		{"", "orders", "spiffe://example.org/ns/default/svc/orders"},
		{"shop", "orders-v2.1_x", "spiffe://example.org/ns/shop/svc/orders-v2.1_x"},
		{"shop", "", ""},
		{"shop", "a/b", ""},
		{"shop", "..", ""},
		{"..", "orders", ""},
		{"shop", "ürders", ""},
		{"shop", "a%2fb", ""},
		{"a/svc/x", "orders", ""},
	} {
		id, err := ServiceID(td, tc.namespace, tc.service)
		if (err == nil) != (tc.want != "") || id.String() != tc.want {
			t.Errorf("ServiceID(%q, %q) = %q, %v; want %q", tc.namespace, tc.service, id, err, tc.want)
		}
		if err != nil {
			continue
		}
		ns, svc, ok := ParseServiceID(id)
		if again, err := ServiceID(td, ns, svc); !ok || err != nil || again != id {
			t.Errorf("ParseServiceID(%s) = %q, %q, %v: does not come back", id, ns, svc, ok)
		}
	}
	if _, err := GatewayID(spiffeid.TrustDomain{}, "", "public"); err == nil {
		t.Error("a gateway without a trust domain: no error")
	}
	if _, err := ServiceID(spiffeid.TrustDomain{}, "", "orders"); err == nil {
		t.Error("no trust domain: no error")
	}
	for _, path := range []string{"", "/ns/a", "/ns/a/svc/b/c", "/sa/a/svc/b", "/ns/a/sa/b"} {
		if _, _, ok := ParseServiceID(spiffeid.RequireFromPath(td, path)); ok {
			t.Errorf("ParseServiceID of path %q: ok", path)
		}
	}
	if got := ControlPlaneID(td).String(); got != "spiffe://example.org/ns/sallyport/svc/control-plane" {
		t.Errorf("ControlPlaneID = %s", got)
	}
}

func TestAGatewayIsNoServiceOfItsName(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	service, err := ServiceID(td, "shop", "public")
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := GatewayID(td, "shop", "public")
	if err != nil || gateway.String() != "spiffe://example.org/ns/shop/gw/public" || gateway == service {
		t.Fatal(gateway, err)
	}
	if ns, name, ok := ParseGatewayID(gateway); !ok || ns != "shop" || name != "public" {
		t.Errorf("ParseGatewayID(%s) = %q, %q, %v: does not come back", gateway, ns, name, ok)
	}
	if _, _, ok := ParseGatewayID(service); ok {
		t.Errorf("%s is a gateway", service)
	}
	if _, _, ok := ParseServiceID(gateway); ok {
		t.Errorf("%s is a service", gateway)
	}
	elsewhere, err := ServiceID(td, "default", "public")
	if err != nil {
		t.Fatal(err)
	}
	// Who comes with what was the gateway's identity once is told what to do, and nobody else.
	for _, c := range []struct {
		have, want spiffeid.ID
		hint       bool
	}{{service, gateway, true}, {gateway, service, false}, {elsewhere, gateway, false}, {gateway, gateway, false}, {service, elsewhere, false}} {
		if got := GatewayHint(c.have, c.want); (got != "") != c.hint || c.hint && !strings.Contains(got, "sallyport token create --gateway public --namespace shop") {
			t.Errorf("GatewayHint(%s, %s) = %q", c.have, c.want, got)
		}
	}
}
