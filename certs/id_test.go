package certs

import (
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
