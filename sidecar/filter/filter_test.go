package filter

//lint:file-ignore SA1019 deprecated fields still come from control planes

import (
	"runtime"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/route"
)

func TestMemoryKeepsWhatIsInUse(t *testing.T) {
	m := NewMemory()
	made := 0
	thing := func(key string) *[64]int {
		return Keep(m, key, func() *[64]int { made++; return &[64]int{made} })
	}
	a := thing("a")
	if thing("a") != a || thing("b") == a || made != 2 {
		t.Error("not exactly one thing for each key")
	}
	if Keep(nil, "a", func() *int { return new(int) }) == nil {
		t.Error("without a memory nothing is made")
	}
	runtime.KeepAlive(a)
	a = nil
	for range 1000 {
		runtime.GC()
		m.mu.Lock()
		n := len(m.kept)
		m.mu.Unlock()
		if n == 0 {
			return
		}
		runtime.Gosched()
	}
	t.Error("what nobody uses is kept")
}

// TestNothingUnknownIsPassedOver: however deep it stands.
func TestNothingUnknownIsPassedOver(t *testing.T) {
	unknown := func(m proto.Message) {
		m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 500, protowire.VarintType), 1))
	}
	build := func() (*rbacv3.RBAC, *rbacv3.Permission_Set, *corev3.CidrRange) {
		set := &rbacv3.Permission_Set{Rules: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}}}
		cidr := &corev3.CidrRange{AddressPrefix: "10.0.0.0"}
		return &rbacv3.RBAC{Policies: map[string]*rbacv3.Policy{"p": {
			Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_OrRules{OrRules: set}}},
			Principals:  []*rbacv3.Principal{{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: cidr}}}}}}, set, cidr
	}
	for want, change := range map[string]func(*rbacv3.RBAC, *rbacv3.Permission_Set, *corev3.CidrRange){
		"": func(*rbacv3.RBAC, *rbacv3.Permission_Set, *corev3.CidrRange) {},
		`c: envoy.config.rbac.v3.RBAC has a field that is not known (number 500)`:                                                 func(m *rbacv3.RBAC, _ *rbacv3.Permission_Set, _ *corev3.CidrRange) { unknown(m) },
		`c.policies["p"].permissions[0].or_rules: envoy.config.rbac.v3.Permission.Set has a field that is not known (number 500)`: func(_ *rbacv3.RBAC, s *rbacv3.Permission_Set, _ *corev3.CidrRange) { unknown(s) },
		`c.policies["p"].principals[0].remote_ip: envoy.config.core.v3.CidrRange has a field that is not known (number 500)`:      func(_ *rbacv3.RBAC, _ *rbacv3.Permission_Set, r *corev3.CidrRange) { unknown(r) },
	} {
		m, set, cidr := build()
		change(m, set, cidr)
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		c := &Compiler{Report: fields.NewReport("x", "y"), Path: "c"}
		if ok := c.Decode(a, &rbacv3.RBAC{}); ok != (want == "") || want != "" && !strings.Contains(c.Err().Error(), want) {
			t.Errorf("%v, %v; want %q", ok, c.Err(), want)
		}
	}
}

func TestAdditions(t *testing.T) {
	for name, c := range map[string]struct {
		o     *corev3.HeaderValueOption
		want  route.HeaderMutation
		wrong bool
	}{
		"constant":        {&corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: "X-A", Value: "50%%"}}, route.HeaderMutation{Name: "x-a", Value: "50%"}, false},
		"raw":             {&corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: "x", RawValue: []byte("r")}}, route.HeaderMutation{Name: "x", Value: "r"}, false},
		"old append":      {&corev3.HeaderValueOption{Append: wrapperspb.Bool(false), Header: &corev3.HeaderValue{Key: "x"}}, route.HeaderMutation{Name: "x", Action: route.Overwrite}, false},
		"both appends":    {&corev3.HeaderValueOption{Append: wrapperspb.Bool(false), AppendAction: 1, Header: &corev3.HeaderValue{Key: "x"}}, route.HeaderMutation{}, true},
		"command":         {&corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: "x", Value: "%X%"}}, route.HeaderMutation{}, true},
		"single percent":  {&corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: "x", Value: "5%"}}, route.HeaderMutation{}, true},
		"line break":      {&corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: "x", Value: "a\nb"}}, route.HeaderMutation{}, true},
		"blank in a name": {&corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: "x y"}}, route.HeaderMutation{}, true},
		"value and raw":   {&corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: "x", Value: "v", RawValue: []byte("r")}}, route.HeaderMutation{}, true},
	} {
		r := fields.NewReport("x", "y")
		m := Addition(r, "p", c.o, nil)
		if r.Failed() != c.wrong || !c.wrong && m != c.want {
			t.Errorf("%s: %+v, %v", name, m, r.Err())
		}
	}
}
