package catalog

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestIntentionsThatAreNotUnderstoodDeny(t *testing.T) {
	web, orders := Name{"*", "web"}, Name{"*", "orders"}
	deny := []Intention{{Source: web, Destination: orders, Action: Deny, Precedence: 9}}
	with := func(p ...Permission) []Intention {
		return []Intention{{Source: web, Destination: orders, Permissions: p, Precedence: 9}}
	}
	const jwt = `{"Providers":[{"Name":"okta"}]}`
	for name, x := range map[string]struct {
		source, jwt string
		want        []Intention
	}{
		"an allowance":               {`{"Name":"web","Action":"allow","Precedence":9,"Type":"consul"}`, "", []Intention{{Source: web, Destination: orders, Action: Allow, Precedence: 9}}},
		"a denial":                   {`{"Name":"web","Action":"deny","Precedence":9}`, "", deny},
		"no precedence":              {`{"Name":"web","Action":"deny"}`, "", deny},
		"a JWT for all sources":      {`{"Name":"web","Action":"allow","Precedence":9}`, jwt, deny},
		"a JWT for all, permissions": {`{"Name":"web","Permissions":[{"Action":"allow"}],"Precedence":9}`, jwt, deny},
		"a null JWT":                 {`{"Name":"web","Action":"allow","Precedence":9}`, "null", []Intention{{Source: web, Destination: orders, Action: Allow, Precedence: 9}}},
		"an unknown action":          {`{"Name":"web","Action":"log","Precedence":9}`, "", deny},
		"an unknown field":           {`{"Name":"web","Action":"allow","OnlyOnSundays":true,"Precedence":9}`, "", deny},
		"an unknown type":            {`{"Name":"web","Action":"allow","Type":"external","Precedence":9}`, "", deny},
		"a peer":                     {`{"Name":"web","Peer":"east","Action":"allow","Precedence":9}`, "", nil},
		"another partition":          {`{"Name":"web","Partition":"east","Action":"allow","Precedence":9}`, "", nil},
		"a sameness group":           {`{"Name":"web","SamenessGroup":"all","Action":"allow","Precedence":9}`, "", deny},
		"a permission with a JWT": {`{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/a"},"JWT":` + jwt + `},{"Action":"allow","HTTP":{"PathExact":"/b","Methods":["GET"]}}],"Precedence":9}`, "",
			with(Permission{Action: Deny, Path: Match{Prefix, "/a"}}, Permission{Action: Allow, Path: Match{Exact, "/b"}, Methods: []string{"GET"}})},
		"only a JWT":                  {`{"Name":"web","Permissions":[{"Action":"allow","JWT":` + jwt + `}],"Precedence":9}`, "", with(Permission{Action: Deny})},
		"a condition that is unknown": {`{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/a","Query":"x"}}],"Precedence":9}`, "", with(Permission{Action: Deny})},
		"a header without condition":  {`{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"Header":[{"Name":"x"}]}}],"Precedence":9}`, "", with(Permission{Action: Deny})},
		"a bad regular expression":    {`{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"PathRegex":"("}}],"Precedence":9}`, "", with(Permission{Action: Deny})},
		"two paths":                   {`{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"PathExact":"/a","PathPrefix":"/"}}],"Precedence":9}`, "", with(Permission{Action: Deny})},
		"a header": {`{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"Header":[{"Name":"X","Prefix":"v","Invert":true,"IgnoreCase":true}]}}],"Precedence":9}`, "",
			with(Permission{Action: Allow, Headers: []HeaderMatch{{Name: "x", Match: Match{Prefix, "v"}, Invert: true, IgnoreCase: true}}})},
	} {
		t.Run(name, func(t *testing.T) {
			c := &Consul{log: quiet, told: map[string]bool{}}
			got := c.intentions([]intentionEntry{{Name: "orders", Sources: []json.RawMessage{json.RawMessage(x.source)}, JWT: json.RawMessage(x.jwt)}})
			if !reflect.DeepEqual(got, x.want) {
				t.Errorf("got  %+v\nwant %+v", got, x.want)
			}
			understood := x.want != nil && (x.want[0].Action == Allow || name == "a denial" || name == "no precedence" || name == "a header")
			if x.want != nil && understood == (len(c.told) > 0) {
				t.Errorf("complaints: %v", c.told)
			}
		})
	}
}

func TestIntentionsOfConsulArePublished(t *testing.T) {
	f := newFake(t)
	f.set(func() {
		f.service("orders")
		f.answers["/v1/config/service-intentions"] = []object{{"Kind": "service-intentions", "Name": "orders", "Hash": 17572756779319906195 >> 8,
			"Sources": []object{{"Name": "*", "Action": "allow", "Precedence": 8, "Type": "consul"}}, "JWT": object{"Providers": []object{{"Name": "okta"}}}}}
	})
	_, ch := f.source(t)
	s := receive(t, ch)
	want := []Intention{{Source: Name{"*", "*"}, Destination: Name{"*", "orders"}, Action: Deny, Precedence: 8}}
	if !reflect.DeepEqual(s.Intentions, want) {
		t.Errorf("%+v, want %+v", s.Intentions, want)
	}
}
