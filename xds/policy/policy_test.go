package policy

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sallyport/xds/document"
)

const gateway = `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public}
spec:
  gatewayClassName: sallyport
  listeners: [{name: http, port: 8080, protocol: HTTP}]
`

const route = `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: public}]
  rules: [{name: all, backendRefs: [{name: orders}]}]
`

func limit(target string) string {
	return "apiVersion: policy.sallyport.io/v1\nkind: RateLimitPolicy\nmetadata: {name: limit}\nspec:\n  targetRefs:\n  - " + target + "\n  requests: 5\n  unit: Minute\n"
}

// What is wrong is said with its place and with what would be right.
func TestBadDocuments(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"a field with a typo": {strings.Replace(route, "backendRefs", "backendRef", 1),
			`f.yaml:6:23: spec.rules[0].backendRef: unknown field; did you mean "backendRefs"?`},
		"a kind with a typo":      {strings.Replace(route, "HTTPRoute", "HTTPRoutes", 1), `f.yaml:2:7: kind: "HTTPRoutes" is not known; did you mean "HTTPRoute"?`},
		"a version that is old":   {strings.Replace(route, "k8s.io/v1", "k8s.io/v1beta1", 1), `f.yaml:1:13: apiVersion: "gateway.networking.k8s.io/v1beta1" is not that of a HTTPRoute, which is gateway.networking.k8s.io/v1`},
		"a number that is a text": {strings.Replace(gateway, "port: 8080", "port: http", 1), `f.yaml:6:34: spec.listeners[0].port: must be a whole number, this is a string`},
		"a text that is a number": {strings.Replace(route, "name: public", "name: 7", 1), `f.yaml:5:23: spec.parentRefs[0].name: must be a string, this is a number; put it in quotes: "7"`},
		"a list that is none":     {strings.Replace(route, "[{name: public}]", "{name: public}", 1), `f.yaml:5:15: spec.parentRefs: must be a list, this is a mapping`},
		"a Gateway that is not there": {gateway + "---\n" + strings.Replace(route, "name: public", "name: pubic", 1),
			`f.yaml:12:23: spec.parentRefs[0].name: there is no Gateway default/pubic; did you mean "public"?`},
		"a listener that is not there": {gateway + "---\n" + strings.Replace(route, "name: public", "name: public, sectionName: htp", 1),
			`f.yaml:12:44: spec.parentRefs[0].sectionName: Gateway default/public has no listener "htp"; did you mean "http"?`},
		"a target that is not there": {gateway + "---\n" + route + "---\n" + limit("{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shoop}"),
			`f.yaml:20:63: spec.targetRefs[0].name: there is no HTTPRoute default/shoop; did you mean "shop"?`},
		"a rule that is not there": {gateway + "---\n" + route + "---\n" + limit("{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: al}"),
			`f.yaml:20:82: spec.targetRefs[0].sectionName: HTTPRoute default/shop has no rule named "al"; did you mean "all"?`},
		"a target of a kind that cannot be": {limit("{kind: Servic, name: orders}"), `f.yaml:6:12: spec.targetRefs[0].kind: "Servic" is not known; did you mean "Service"?`},
		"two of a kind on one target": {limit("{kind: Service, name: orders}") + "---\n" + strings.Replace(limit("{kind: Service, name: orders}"), "name: limit", "name: other", 1),
			`f.yaml:15:5: spec.targetRefs[0]: RateLimitPolicy default/limit is attached to that already, at f.yaml:1`},
		"a unit with a typo": {strings.Replace(limit("{kind: Service, name: orders}"), "Minute", "Minutes", 1), `f.yaml:8:9: spec.unit: "Minutes" is not known; did you mean "Minute"?`},
		"a document twice":   {route + "---\n" + route, `f.yaml:10:18: metadata.name: there is a HTTPRoute default/shop already, at f.yaml:1`},
		"a regular expression that is none": {strings.Replace(route, "backendRefs", `matches: [{path: {type: RegularExpression, value: "/("}}], backendRefs`, 1),
			"f.yaml:6:73: spec.rules[0].matches[0].path.value: \"/(\" is not a regular expression: error parsing regexp: missing closing ): `/(`"},
		"a filter that is not implemented": {strings.Replace(route, "backendRefs", "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: x}}}], backendRefs", 1),
			"f.yaml:6:40: spec.rules[0].filters[0].type: RequestMirror is not implemented; RequestHeaderModifier, ResponseHeaderModifier, RequestRedirect, URLRewrite, CORS are"},
		"a key set with a private key": {"apiVersion: policy.sallyport.io/v1\nkind: JWTPolicy\nmetadata: {name: j}\nspec:\n  targetRefs: [{kind: Service, name: orders}]\n  issuer: me\n" +
			`  jwks: {inline: '{"keys":[{"kty":"oct","kid":"1","k":"c2VjcmV0"}]}'}` + "\n",
			`f.yaml:7:18: spec.jwks.inline: key 0 (kid "1") is a private or symmetric key; only public keys belong here`},
		"a key set that cannot be read": {"apiVersion: policy.sallyport.io/v1\nkind: JWTPolicy\nmetadata: {name: j}\nspec:\n  targetRefs: [{kind: Service, name: orders}]\n  issuer: me\n  jwks: {file: none.json}\n",
			`f.yaml:7:16: spec.jwks.file: none.json cannot be opened: no such file or directory`},
		"a secret without a key":  {"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {tls.crt: x}\n", `f.yaml:4:13: stringData: needs tls.crt and tls.key`},
		"not YAML":                {"a: [", "f.yaml:1:1: is not YAML: did not find expected node content"},
		"not a document":          {"- a", "f.yaml:1:1: a document is a mapping (key: value), this is a list"},
		"an unknown class":        {strings.Replace(gateway, "sallyport", "nginx", 1), `f.yaml:5:21: spec.gatewayClassName: "nginx" must be sallyport`},
		"HTTPS without a secret":  {strings.Replace(gateway, "protocol: HTTP", "protocol: HTTPS", 1), `f.yaml:6:15: spec.listeners[0].tls: is required with HTTPS`},
		"a duration that is none": {"apiVersion: policy.sallyport.io/v1\nkind: TimeoutPolicy\nmetadata: {name: t}\nspec: {targetRefs: [{kind: Service, name: a}], request: 5 s}\n", `f.yaml:4:57: spec.request: "5 s" is not a duration; write 250ms, 10s or 1h30m`},
		"more fields than the next hop takes": {strings.Replace(route, "backendRefs", "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: ["+strings.Repeat("{name: x, value: y},", 17)+"]}}], backendRefs", 1),
			`f.yaml:6:92: spec.rules[0].filters[0].requestHeaderModifier.add: has 17 entries; at most 16 are allowed`},
		"an open door": {"apiVersion: policy.sallyport.io/v1\nkind: CORSPolicy\nmetadata: {name: c}\nspec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: public}], allowOrigins: ['*'], allowCredentials: true}\n",
			`f.yaml:4:102: spec.allowOrigins[0]: "*" with allowCredentials would let every site act for its visitors; name the origins`},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := Parse("f.yaml", []byte(c.text))
			if len(problems) == 0 {
				t.Fatal("taken")
			}
			if got := problems[0].Error(); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// folder is a loader with a folder to write to.
type folder struct {
	loader
	t   *testing.T
	dir string
}

func (f *folder) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *folder) read(problems int) *Set {
	f.t.Helper()
	s, p := f.load(f.dir)
	if len(p) != problems {
		f.t.Fatalf("%d problems, want %d:\n%v", len(p), problems, p)
	}
	return s
}

func TestTheLastGoodVersionStaysInForce(t *testing.T) {
	f := &folder{t: t, dir: t.TempDir()}
	service := ServiceTarget("default", "orders")
	f.write("limit.yaml", limit("{kind: Service, name: orders}")+"---\n"+gateway)
	f.write("route.yaml", route)
	if s := f.read(0); s.RateLimit.Find(service).Requests != 5 || len(s.HTTPRoutes) != 1 {
		t.Fatal(s)
	}
	// One document of a file is wrong: it alone is refused.
	f.write("limit.yaml", strings.Replace(limit("{kind: Service, name: orders}"), "requests: 5", "requests: many", 1)+"---\n"+strings.Replace(gateway, "8080", "9090", 1))
	s := f.read(1)
	if s.RateLimit.Find(service).Requests != 5 || s.Gateways[Key{"default", "public"}].Spec.Listeners[0].Port != 9090 {
		t.Fatal("the good document was not taken, or the bad one was")
	}
	// It is no YAML at all: all of the file stays.
	f.write("limit.yaml", "{{{")
	if s := f.read(1); s.RateLimit.Find(service).Requests != 5 || len(s.Gateways) != 1 {
		t.Fatal("lost")
	}
	// A document does not say which it is.
	f.write("limit.yaml", "kind: RateLimitPolicy\n---\n"+gateway)
	if s := f.read(1); s.RateLimit.Find(service) == nil || len(s.Gateways) != 1 {
		t.Fatal("lost")
	}
	// A target is misspelled: the policy must not be lifted by that.
	f.write("limit.yaml", limit("{group: gateway.networking.k8s.io, kind: Gateway, name: publik}")+"---\n"+gateway)
	if s := f.read(1); s.RateLimit.Find(service) == nil {
		t.Fatal("lifted")
	}
	// Removed on purpose: gone. The route without its gateway falls back to nothing.
	if err := os.Remove(filepath.Join(f.dir, "limit.yaml")); err != nil {
		t.Fatal(err)
	}
	if s := f.read(1); len(s.RateLimit) != 0 || len(s.HTTPRoutes) != 0 {
		t.Fatal("still there")
	}
	f.write("gateway.yaml", gateway)
	if s := f.read(0); len(s.HTTPRoutes) != 1 {
		t.Fatal("not back")
	}
}

func TestHostnames(t *testing.T) {
	for _, c := range []struct{ listener, route, want string }{
		{"", "", "*"}, {"a.org", "", "a.org"}, {"", "a.org", "a.org"}, {"*.a.org", "x.a.org", "x.a.org"}, {"x.a.org", "*.a.org", "x.a.org"},
		{"*.a.org", "a.org", ""}, {"a.org", "b.org", ""}, {"*.a.org", "*.x.a.org", "*.x.a.org"}, {"*.x.a.org", "*.a.org", "*.x.a.org"},
	} {
		g, r := gateway, route
		if c.listener != "" {
			g = strings.Replace(g, "protocol: HTTP", "protocol: HTTP, hostname: '"+c.listener+"'", 1)
		}
		if c.route != "" {
			r = strings.Replace(r, "  rules:", "  hostnames: ['"+c.route+"']\n  rules:", 1)
		}
		s, p := Parse("f.yaml", []byte(g+"---\n"+r))
		if c.want == "" {
			if len(p) != 1 || !strings.Contains(p[0].Text, "neither port nor hostname match") {
				t.Errorf("%+v: %v", c, p)
			}
			continue
		}
		if len(p) != 0 {
			t.Errorf("%+v: %v", c, p)
			continue
		}
		if on := s.RoutesOn(Key{"default", "public"}, "http"); len(on) != 1 || len(on[0].Hostnames) != 1 || on[0].Hostnames[0] != c.want {
			t.Errorf("%+v: %v", c, on)
		}
	}
}

// Whatever stands in a file: either it is taken as a whole, or every problem has its place and is one line. What is good is
// the same when it was kept over a restart.
func FuzzParse(f *testing.F) {
	f.Add(gateway + "---\n" + route + "---\n" + limit("{kind: Service, name: orders}"))
	for _, seed := range []string{"a: &a [*a]", "kind: Mesh\n<<: {a: b}", "{}", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nfiles: {tls.crt: /dev/null, tls.key: x}"} {
		f.Add(seed)
	}
	files, _ := filepath.Glob("../build/testdata/*/policies/*.yaml")
	for _, name := range files {
		if b, err := os.ReadFile(name); err == nil {
			f.Add(string(b))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, problems := Parse("f.yaml", []byte(text))
		if s == nil && len(problems) == 0 {
			t.Fatal("neither taken nor refused")
		}
		for _, p := range problems {
			if p.Text == "" || p.File != "f.yaml" {
				t.Fatalf("%+v", p)
			}
		}
		docs, _ := document.Parse("f.yaml", []byte(text))
		for _, d := range docs {
			if e := readDocument(d, fromDisk); e.object != nil {
				sameWhenKept(t, e)
			}
		}
	})
}

// sameWhenKept checks that what is kept of a document (see keeper) is the document.
func sameWhenKept(t *testing.T, e *entry) {
	t.Helper()
	text, err := e.doc.Text()
	if err != nil {
		t.Fatal(err)
	}
	docs, p := document.Parse("f.yaml", text)
	if p != nil || len(docs) != 1 {
		t.Fatalf("%d documents, %v, in what was kept: %s", len(docs), p, text)
	}
	again := readDocument(docs[0], kept(e.read))
	if again.ident != e.ident || again.object == nil {
		t.Fatalf("%v, %v: %s", again.ident, again.problems, text)
	}
	spec := func(e *entry) any { return reflect.ValueOf(e.object).Elem().FieldByName("Spec").Interface() }
	if !reflect.DeepEqual(spec(again), spec(e)) {
		t.Fatalf("%+v was kept as %+v", spec(e), spec(again))
	}
}
