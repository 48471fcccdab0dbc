package active

import (
	"strings"
	"testing"
	"testing/synctest"

	"sallyport/sidecar/ads"
)

// waiting is a listener that waits for its routes.
func waiting(name, port string) string {
	return strings.NewReplacer("name: in", "name: "+name, "port_value: 9000", "port_value: "+port).Replace(rds)
}

// TestAnAddressGoesFromOneListenerToAnother: in one update or in two, in whichever order, at once or when the new one is warm.
func TestAnAddressGoesFromOneListenerToAnother(t *testing.T) {
	for name, c := range map[string]struct {
		updates []ads.Response
		want    string // the engine is told, of all together
	}{
		"in one update":           {[]ads.Response{response(t, ads.ListenerType, true, tcp("b", "9000"))}, "add listener b, remove listener a"},
		"in one update, as delta": {[]ads.Response{removing(response(t, ads.ListenerType, false, tcp("b", "9000")), "a")}, "add listener b, remove listener a"},
		"in two": {[]ads.Response{response(t, ads.ListenerType, true), response(t, ads.ListenerType, true, tcp("b", "9000"))},
			"remove listener a, add listener b"},
		"the new one waits": {[]ads.Response{response(t, ads.ListenerType, true, waiting("b", "9000")), response(t, ads.RouteType, true, noRoutes)},
			"add listener b, remove listener a"},
		"the new one waits, and is not wanted any more": {[]ads.Response{response(t, ads.ListenerType, true, waiting("b", "9000")), response(t, ads.ListenerType, true)},
			"remove listener a"},
		"the new one waits, and the old one comes back": {[]ads.Response{response(t, ads.ListenerType, true, waiting("b", "9000")), response(t, ads.ListenerType, true, tcp("a", "9000"))},
			"update listener a"},
		"both exchange addresses": {[]ads.Response{response(t, ads.ListenerType, true, tcp("a", "9000"), tcp("b", "9001")),
			response(t, ads.ListenerType, true, tcp("b", "9000"), tcp("a", "9001"))}, "add listener b, update listener b, update listener a"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, e, _ := start(t, Options{}, bootstrap)
				defer s.Close()
				accept(t, s, response(t, ads.ClusterType, true))
				accept(t, s, response(t, ads.ListenerType, true, tcp("a", "9000")))
				e.take()
				for _, r := range c.updates {
					accept(t, s, r)
				}
				if got := e.take(); got != c.want {
					t.Errorf("the engine was told: %s\nwant: %s", got, c.want)
				}
				if len(s.leaving) > 0 {
					t.Errorf("%d listeners stay for one that came", len(s.leaving))
				}
			})
		})
	}
}

func removing(r ads.Response, names ...string) ads.Response {
	r.Removed = names
	return r
}

// TestADuplicateAddressIsRefusedBeforeItsListenerIsWarm, and after.
func TestADuplicateAddressIsRefusedBeforeItsListenerIsWarm(t *testing.T) {
	for name, c := range map[string]struct {
		listeners []string
		refused   string
	}{
		"of one that is there":            {[]string{tcp("a", "9000"), tcp("b", "9000")}, `"b" has duplicate address 127.0.0.1:9000 as listener "a"`},
		"of one that is there, and waits": {[]string{tcp("a", "9000"), waiting("b", "9000")}, `"b" has duplicate address 127.0.0.1:9000 as listener "a"`},
		"of one before it":                {[]string{tcp("c", "9001"), tcp("b", "9001")}, `"b" has duplicate address 127.0.0.1:9001 as listener "c"`},
		"of one before it that waits":     {[]string{waiting("c", "9001"), tcp("b", "9001")}, `"b" has duplicate address 127.0.0.1:9001 as listener "c"`},
		"of none":                         {[]string{waiting("c", "9001"), tcp("b", "9002")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _, _ := start(t, Options{}, bootstrap)
				defer s.Close()
				accept(t, s, response(t, ads.ClusterType, true))
				accept(t, s, response(t, ads.ListenerType, true, tcp("a", "9000")))
				refused := s.Apply(response(t, ads.ListenerType, false, c.listeners...))
				if len(refused) == 0 && c.refused == "" {
					return
				}
				if len(refused) != 1 || refused[0].Name != "b" || !strings.Contains(refused[0].Err.Error(), c.refused) {
					t.Fatalf("refused: %v", refused)
				}
				if s.listeners["b"] != nil || len(s.waiting("listener")) > 1 {
					t.Errorf("something is left of it: %v", s.waiting("listener"))
				}
				if c.refused != "" && !strings.Contains(name, "and waits") && s.unbound["b"] == nil {
					t.Error("it is not tried again when the other one goes")
				}
			})
		})
	}
}
