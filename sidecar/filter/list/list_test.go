package list

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoregistry"
)

func TestEveryKindIsFoundByItsTypes(t *testing.T) {
	for _, k := range kinds {
		if (k.Compile == nil) == (k.CompileNetwork == nil) {
			t.Errorf("%s must be either an HTTP or a network filter", k.Name)
		}
		if (k.CompileRoute == nil) != (k.RouteTypeURL == "") {
			t.Errorf("%s has a type for overrides and no compile function for it, or the reverse", k.Name)
		}
		if k.Compile != nil && HTTP(k.TypeURL) != k || k.CompileNetwork != nil && Network(k.TypeURL) != k {
			t.Errorf("%s is not found by %s", k.Name, k.TypeURL)
		}
		if k.CompileRoute != nil && Override(k.RouteTypeURL) != k {
			t.Errorf("%s is not found by %s", k.Name, k.RouteTypeURL)
		}
		for _, url := range []string{k.TypeURL, k.RouteTypeURL} {
			if url == "" {
				continue
			}
			if _, err := protoregistry.GlobalTypes.FindMessageByURL(url); err != nil {
				t.Errorf("%s: %v", url, err)
			}
		}
	}
	if HTTP("x") != nil || Network("x") != nil || Override("x") != nil {
		t.Error("an unknown type was found")
	}
	if n := strings.Join(Names(true), " "); !strings.Contains(n, "network.rbac") || strings.Contains(n, "http") {
		t.Errorf("network filters: %s", n)
	}
	if len(Names(false)) != 4 || len(Overrides()) != 4 {
		t.Errorf("%v, %v", Names(false), Overrides())
	}
}
