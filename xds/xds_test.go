package xds

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"sallyport/xds/build"
	"sallyport/xds/serve"
)

const services = `services:
- name: orders
  instances: [{address: 127.0.0.1, port: 8080, sidecar: {port: 21000}}]
`

const mesh = "apiVersion: policy.sallyport.io/v1\nkind: Mesh\nmetadata: {name: mesh}\nspec: {defaultAuthorization: %}\n"

// plane is a control plane of files.
type plane struct {
	*ControlPlane
	t                 *testing.T
	catalog, policies string
}

func start(t *testing.T) *plane {
	t.Helper()
	dir := t.TempDir()
	p := &plane{t: t, catalog: filepath.Join(dir, "catalog.yaml"), policies: filepath.Join(dir, "policies")}
	if err := os.Mkdir(p.policies, 0o700); err != nil {
		t.Fatal(err)
	}
	p.write(p.catalog, services)
	p.write(filepath.Join(p.policies, "mesh.yaml"), strings.Replace(mesh, "%", "allow", 1))
	c, err := New(Options{Listen: "127.0.0.1:0", StatusListen: "127.0.0.1:0", Catalog: p.catalog, Policies: p.policies, Insecure: true,
		TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	p.ControlPlane = c
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *plane) write(path, text string) {
	p.t.Helper()
	next := filepath.Join(filepath.Dir(path), ".next")
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) status() (s serve.Status) {
	p.t.Helper()
	r, err := http.Get("http://" + p.StatusAddr().String() + "/status")
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// until polls: what it waits for has no other sign.
func (p *plane) until(what string, ok func(serve.Status) bool) {
	p.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s := p.status()
		if ok(s) {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("never: %s: %+v", what, s)
		}
	}
}

func TestAPolicyIsPushedLiveAndABadOneIsNot(t *testing.T) {
	p := start(t)
	conn, err := grpc.NewClient(p.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m, err := structpb.NewStruct(map[string]any{"kind": "sidecar", "service": "orders", "port": 8080})
	if err != nil {
		t.Fatal(err)
	}
	listener := func(r *discoveryv3.DiscoveryRequest) *discoveryv3.DiscoveryResponse {
		t.Helper()
		r.TypeUrl = build.ListenerType
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil || len(answer.GetResources()) != 1 {
			t.Fatal(answer, err)
		}
		return answer
	}
	first := listener(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "orders~1", Metadata: m}})

	path := filepath.Join(p.policies, "mesh.yaml")
	p.write(path, strings.Replace(mesh, "%", "denny", 1))
	p.until("the problem is told", func(s serve.Status) bool {
		return len(s.Policies.Problems) == 1 && strings.Contains(s.Policies.Problems[0].Text, `did you mean "deny"?`) && s.Policies.Problems[0].Line == 4
	})
	p.write(path, strings.Replace(mesh, "%", "deny", 1))
	second := listener(&discoveryv3.DiscoveryRequest{ResponseNonce: first.GetNonce(), VersionInfo: first.GetVersionInfo()})
	if first.GetVersionInfo() == second.GetVersionInfo() {
		t.Error("the same version")
	}
	p.until("the proxy is listed", func(s serve.Status) bool {
		return s.Ready && len(s.Policies.Problems) == 0 && len(s.Proxies) == 1 && s.Proxies[0].ID == "orders~1" &&
			s.Proxies[0].Types["LDS"].Sent == second.GetVersionInfo() && s.Proxies[0].Types["LDS"].Acked == first.GetVersionInfo()
	})
	for path, want := range map[string]string{"/ready": "ready", "/metrics": `sallyport_xds_responses_total{type="LDS"} 2`} {
		r, err := http.Get("http://" + p.StatusAddr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if !strings.Contains(string(body), want) {
			t.Errorf("%s: %s", path, body)
		}
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bad.yaml"), []byte("services: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	td := spiffeid.RequireTrustDomainFromString("example.org")
	empty := t.TempDir()
	good := filepath.Join(empty, "catalog.txt")
	if err := os.WriteFile(good, []byte(services), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, o := range map[string]Options{
		"no folder of policies given":                               {Catalog: good, Insecure: true, TrustDomain: td},
		"name exactly one":                                          {Policies: empty, Insecure: true, TrustDomain: td},
		"proxies cannot be told apart":                              {Policies: empty, Catalog: good, TrustDomain: td},
		"no trust domain":                                           {Policies: empty, Catalog: good, Insecure: true},
		"none.yaml: cannot be opened":                               {Policies: empty, Catalog: filepath.Join(dir, "none.yaml"), Insecure: true, TrustDomain: td},
		"bad.yaml:1:11: services: must be a list, this is a number": {Policies: empty, Catalog: filepath.Join(dir, "bad.yaml"), Insecure: true, TrustDomain: td},
		"bad.yaml:1:1: kind: is required":                           {Policies: dir, Catalog: good, Insecure: true, TrustDomain: td},
		"cannot listen for proxies":                                 {Policies: empty, Catalog: good, Insecure: true, TrustDomain: td, Listen: "192.0.2.1:1"},
	} {
		c, err := New(o)
		if err == nil {
			c.grpc.Close()
			t.Errorf("taken, want %s", want)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestValidate(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "catalog.yaml")
	policies := filepath.Join(dir, "policies")
	if err := os.Mkdir(policies, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, services)
	split := filepath.Join(policies, "split.yaml")
	text := `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split}
spec:
  parentRefs: [{group: "", kind: Service, name: orders}]
  rules: [{backendRefs: [{name: BACKEND}]}]
---
apiVersion: policy.sallyport.io/v1
kind: RetryPolicy
metadata: {name: retry}
spec: {targetRefs: [{kind: Service, name: TARGET}], attempts: 1}
`
	write(split, strings.NewReplacer("BACKEND", "orders", "TARGET", "orders").Replace(text))
	if p := Validate(file, policies); len(p) != 0 {
		t.Fatal(p)
	}
	write(file, strings.Replace(services, "orders\n", "orders\n  protocol: tcp\n", 1))
	if p := Validate(file, policies); len(p) != 2 || !strings.Contains(p[0].Text, "HTTPRoute default/split cannot be enforced: service default/orders speaks tcp") ||
		p[1].Line != 11 || p[1].Field != "spec.targetRefs[0].name" {
		t.Fatal(p)
	}
	write(file, services)
	write(split, strings.NewReplacer("BACKEND", "ordres", "TARGET", "payments").Replace(text))
	p := Validate(file, policies)
	if len(p) != 2 {
		t.Fatal(p)
	}
	for i, want := range []string{
		split + `:6:33: spec.rules[0].backendRefs[0].name: the catalog has no service default/ordres; did you mean "orders"?`,
		split + `:11:20: spec.targetRefs: the catalog has no service default/payments; known: orders`,
	} {
		if p[i].Error() != want {
			t.Errorf("got  %s\nwant %s", p[i], want)
		}
	}
}
