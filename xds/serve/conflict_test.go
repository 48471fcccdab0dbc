package serve

import (
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacnetv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/proto"

	"sallyport/xds/build"
	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

const limited = `apiVersion: policy.sallyport.io/v1
kind: RateLimitPolicy
metadata: {name: limit}
spec:
  targetRefs: [{kind: Service, name: orders}]
  requests: 5
  unit: Minute
`

func speaking(p catalog.Protocol) *catalog.Snapshot {
	s := snapshot(true)
	s.Services[catalog.Name{Namespace: "default", Name: "orders"}].Protocol = p
	return s
}

// deniesAll says that the first filter of the sidecar's own listener refuses every connection.
func deniesAll(t *testing.T, value []byte) bool {
	t.Helper()
	l := &listenerv3.Listener{}
	if err := proto.Unmarshal(value, l); err != nil {
		t.Fatal(err)
	}
	f := l.GetFilterChains()[0].GetFilters()[0]
	r := &rbacnetv3.RBAC{}
	if f.GetTypedConfig().UnmarshalTo(r) != nil {
		return false // HTTP
	}
	for _, p := range r.GetRules().GetPolicies() {
		if p.GetPrincipals()[0].GetAny() && p.GetPermissions()[0].GetAny() && r.GetRules().GetAction().String() == "DENY" {
			return true
		}
	}
	return false
}

// A protocol that is said later than the policy came, as Consul's service-defaults may, closes the service and is told.
func TestAServiceWhosePolicyCannotBeEnforcedIsClosed(t *testing.T) {
	p := newPlane(t)
	set, problems := policy.Parse("f.yaml", []byte(limited))
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	p.SetPolicy(set)
	p.SetCatalog(speaking(catalog.HTTP))
	c := p.sotw("orders")
	c.ask(build.ListenerType, nil, "")
	own := func() []byte {
		t.Helper()
		r := c.receive(build.ListenerType)
		c.ask(build.ListenerType, r, "")
		for _, a := range r.GetResources() {
			l := &listenerv3.Listener{}
			if err := a.UnmarshalTo(l); err != nil {
				t.Fatal(err)
			}
			if l.GetName() == "inbound" {
				return a.GetValue()
			}
		}
		t.Fatal("there is no listener for the mesh")
		return nil
	}
	if deniesAll(t, own()) || len(p.Conflicts()) != 0 {
		t.Fatalf("closed while it speaks http: %+v", p.Conflicts())
	}
	p.SetCatalog(speaking(catalog.TCP))
	if !deniesAll(t, own()) {
		t.Error("open, and the policy is not enforced")
	}
	list := p.Conflicts()
	want := "f.yaml:5:38: spec.targetRefs[0].name: RateLimitPolicy default/limit cannot be enforced: service default/orders speaks tcp"
	if len(list) != 1 || !strings.HasPrefix(list[0].Error(), want) || !list[0].Closed || list[0].Service != "default/orders" {
		t.Errorf("%+v", list)
	}
	for _, s := range p.Proxies() {
		if !strings.HasPrefix(s.Problem, "closed: "+want) {
			t.Errorf("the sidecar's problem is %q", s.Problem)
		}
	}
	p.SetPolicy(policy.Empty())
	if deniesAll(t, own()) || len(p.Conflicts()) != 0 {
		t.Errorf("closed without a policy: %+v", p.Conflicts())
	}
}
