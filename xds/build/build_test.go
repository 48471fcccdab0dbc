package build

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3" // so that it can be printed
)

var update = flag.Bool("update", false, "rewrite the golden files")

// A case of the golden tests is a folder of testdata: catalog.yaml, policies/, node.yaml (a Node's metadata), and what is
// built of them, golden.yaml.
func TestGolden(t *testing.T) {
	folders, err := filepath.Glob("testdata/*")
	if err != nil || len(folders) == 0 {
		t.Fatal("no cases", err)
	}
	known := map[string]bool{"catalog.yaml": true, "policies": true, "node.yaml": true, "golden.yaml": true}
	for _, dir := range folders {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			list, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range list {
				if !known[f.Name()] {
					t.Errorf("%s belongs to no case: remove it", filepath.Join(dir, f.Name()))
				}
			}
			in, p := readCase(t, dir)
			got := render(t, in, p)
			path := filepath.Join(dir, "golden.yaml")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); d != "" {
				t.Errorf("differs from %s; look at the difference, then go test -update:\n%s", path, d)
			}
			for range 5 { // maps have no order, what is built of them has
				if again := render(t, in, p); !bytes.Equal(again, got) {
					t.Fatal("the same input gave another output")
				}
			}
		})
	}
}

func readCase(t testing.TB, dir string) (Input, Proxy) {
	t.Helper()
	c, problems := catalog.LoadFile(filepath.Join(dir, "catalog.yaml"))
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	set := policy.Empty()
	if _, err := os.Stat(filepath.Join(dir, "policies")); err == nil {
		if set, problems = policy.Load(filepath.Join(dir, "policies")); problems.Err() != nil {
			t.Fatal(problems)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "node.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	var n corev3.Node
	if err := protojson.Unmarshal(b, &n); err != nil {
		t.Fatal(err)
	}
	p, err := ParseNode(&n)
	if err != nil {
		t.Fatal(err)
	}
	return Input{Catalog: c, Policy: set, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org")}, p
}

// render is YAML for people. Private keys are not written down.
func render(t testing.TB, in Input, p Proxy) []byte {
	t.Helper()
	r, err := Build(in, p)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Secrets {
		c := s.GetTlsCertificate()
		if len(c.GetPrivateKey().GetInlineBytes()) == 0 || len(c.GetCertificateChain().GetInlineBytes()) == 0 {
			t.Errorf("secret %s is empty", s.GetName())
		}
		c.PrivateKey, c.CertificateChain = nil, nil
	}
	var out bytes.Buffer
	for _, typeURL := range Types {
		for _, n := range r.Of(typeURL) {
			if err := validate(n.Resource); err != nil {
				t.Errorf("%s %s breaks a rule of Envoy's protos: %v", typeURL, n.Name, err)
			}
			b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(n.Resource)
			if err != nil {
				t.Fatal(err)
			}
			var indented bytes.Buffer
			if err := json.Compact(&indented, b); err != nil { // protojson spaces differ at random
				t.Fatal(err)
			}
			y, err := yaml.JSONToYAML(indented.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			short := typeURL[strings.LastIndex(typeURL, ".")+1:]
			out.WriteString("--- # " + short + " " + n.Name + "\n")
			out.Write(y)
		}
	}
	return out.Bytes()
}

func validate(m proto.Message) error {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		return v.ValidateAll()
	}
	return nil
}
