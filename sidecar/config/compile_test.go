package config

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/config/document"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden compiles each testdata/*.yaml and compares the tables with the
// golden file beside it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	wanted := map[string]bool{}
	for _, f := range files {
		golden := strings.TrimSuffix(f, ".yaml") + ".golden"
		wanted[golden] = true
		t.Run(filepath.Base(f), func(t *testing.T) {
			b, err := LoadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			s, err := CompileStatic(b, testEnv(t))
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			for _, c := range s.Clusters {
				show(&out, "cluster", reflect.ValueOf(c.Config), 0)
			}
			for _, l := range s.Listeners {
				show(&out, "listener", reflect.ValueOf(l.Config), 0)
			}
			for _, w := range append(b.Warnings, s.Warnings()...) {
				fmt.Fprintf(&out, "warning %s\n", w)
			}
			if *update {
				if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != out.String() {
				t.Errorf("differs from %s (see with -update and git diff):\n%s", golden, firstDifference(string(want), out.String()))
			}
		})
	}
	goldens, _ := filepath.Glob("testdata/*.golden")
	for _, g := range goldens {
		if !wanted[g] {
			t.Errorf("%s belongs to no test", g)
		}
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		a, b := "", ""
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			return fmt.Sprintf("line %d\nwant %s\ngot  %s", i+1, a, b)
		}
	}
	return ""
}

// show writes the fields of a table that are not zero, a line each.
func show(b *strings.Builder, name string, v reflect.Value, depth int) {
	line := func(format string, a ...any) {
		fmt.Fprintf(b, "%s%s"+format+"\n", append([]any{strings.Repeat("  ", depth), name}, a...)...)
	}
	if !v.IsValid() || v.IsZero() {
		return
	}
	if v.CanInterface() {
		if x, ok := v.Interface().(fmt.Stringer); ok && v.Kind() != reflect.Pointer {
			line(": %s", x)
			return
		}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if n := v.Type().String(); strings.Contains(n, "metric.") || strings.Contains(n, "TLS") || strings.Contains(n, "Regexp") || depth > 12 {
			line(": (%s)", n)
			return
		}
		show(b, name, v.Elem(), depth)
	case reflect.Struct:
		line("")
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.Name == "Hash" || f.Name == "Secure" || f.Name == "Key" || !f.IsExported() {
				continue // how a hash is made is no promise
			}
			show(b, f.Name, v.Field(i), depth+1)
		}
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			line(": %q", v.Bytes())
			return
		}
		for i := range v.Len() {
			show(b, fmt.Sprintf("%s[%d]", name, i), v.Index(i), depth)
		}
	case reflect.Func, reflect.Map, reflect.Chan:
		line(": (%s)", v.Type())
	default:
		line(": %v", v)
	}
}

func TestTheSameConfigurationHasTheSameHash(t *testing.T) {
	compile := func(change func(*clusterv3.Cluster)) uint64 {
		m := &clusterv3.Cluster{Name: "a"}
		change(m)
		c, err := CompileCluster(m, Env{})
		if err != nil {
			t.Fatal(err)
		}
		return c.Config.Hash
	}
	plain := compile(func(*clusterv3.Cluster) {})
	if compile(func(*clusterv3.Cluster) {}) != plain {
		t.Error("two compiles differ")
	}
	if compile(func(m *clusterv3.Cluster) { m.LbPolicy = clusterv3.Cluster_RANDOM }) == plain {
		t.Error("a change is not seen")
	}
	b, s, err := load(t, proxy("", toBackend))
	if err != nil {
		t.Fatal(err)
	}
	m := proto.Clone(b.GetStaticResources().GetClusters()[0]).(*clusterv3.Cluster)
	m.LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().GetAddress().GetSocketAddress().Address = "127.0.0.2"
	c, err := CompileCluster(m, Env{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Config.Hash != s.Clusters[0].Config.Hash {
		t.Error("endpoints are part of the hash")
	}
	if m.LoadAssignment == nil {
		t.Error("the compile changed its input")
	}
}

func TestARotatedCertificateKeepsTheChain(t *testing.T) {
	secure := func(name string) uint64 {
		pki := keys(t)
		_, s, err := load(t, envoyYAML(pki, false, true, false, false))
		if err != nil {
			t.Fatal(name, err)
		}
		return s.Listeners[0].Config.Chains[0].Secure
	}
	// The folders, and so the names of the files of trusted_ca, differ.
	if secure("one") == secure("two") {
		t.Error("another authority is the same")
	}
	_, plain, err := load(t, envoyYAML("", false, false, false, false))
	if err != nil {
		t.Fatal(err)
	}
	_, tcp, err := load(t, envoyYAML("", true, false, false, false))
	if err != nil {
		t.Fatal(err)
	}
	if plain.Listeners[0].Config.Chains[0].Secure == tcp.Listeners[0].Config.Chains[0].Secure {
		t.Error("HTTP and TCP are the same")
	}
}

func TestYAMLOverAFile(t *testing.T) {
	path := write(t, head)
	b, err := Load(path, "node: {id: n}\nstatic_resources: {clusters: [{name: more, conect: 1}]}\n")
	if err == nil || err.Error() != `--config-yaml:2:44: static_resources.clusters[0].conect: no such field in envoy.config.cluster.v3.Cluster` {
		t.Fatal(b, err)
	}
	b, err = Load(path, "node: {id: n}\nstatic_resources: {clusters: [{name: more}, {name: backend}]}\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := len(b.GetStaticResources().GetClusters()); got != 3 || b.GetNode().GetId() != "n" {
		t.Errorf("%d clusters, node %v", got, b.GetNode())
	}
	if _, err = CompileStatic(b, Env{}); err == nil || err.Error() != `--config-yaml:2:52: static_resources.clusters[1].name: is the name of another cluster, clusters[0]; a name may occur once` {
		t.Error(err)
	}
	if _, err = Load("", ""); err == nil {
		t.Error("nothing was accepted")
	}
	if _, err = LoadFile("testdata/absent.yaml"); err == nil || err.Error() != "testdata/absent.yaml: cannot be opened: no such file or directory" {
		t.Error(err)
	}
}

// FuzzBootstrap: no text makes the loader panic; what it accepts it accepts
// again, and protojson reads the JSON of it as the same.
func FuzzBootstrap(f *testing.F) {
	f.Add(proxy("", toBackend))
	f.Add(envoyYAML("/nowhere", false, true, true, true))
	f.Add(meshYAML(2, 2))
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("a: &a [*a]\n")
	f.Add("node: &n {id: x}\nadmin: {<<: *n}\n")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := LoadYAML(text)
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("an error without words")
			}
			return
		}
		j, err := protojson.Marshal(b.Bootstrap)
		if err != nil {
			t.Skip() // a Struct with a number that JSON has not
		}
		again, err := LoadYAML(string(j))
		if err != nil {
			t.Fatalf("its JSON is refused: %v\n%s", err, j)
		}
		if !proto.Equal(b.Bootstrap, again.Bootstrap) {
			t.Fatalf("its JSON is something else: %s", j)
		}
		one, err1 := CompileStatic(b, Env{})
		two, err2 := CompileStatic(again, Env{})
		if (err1 == nil) != (err2 == nil) {
			t.Fatal(err1, err2)
		}
		if err1 == nil {
			same(t, one, two)
		}
	})
}

// same compares the hashes of two compiles.
func same(t *testing.T, a, b *Static) {
	for i := range a.Clusters {
		if a.Clusters[i].Config.Hash != b.Clusters[i].Config.Hash || !reflect.DeepEqual(a.Clusters[i].Config, b.Clusters[i].Config) {
			t.Errorf("cluster %d differs", i)
		}
	}
	for i := range a.Listeners {
		x, y := a.Listeners[i].Config, b.Listeners[i].Config
		if x.Hash != y.Hash || len(x.Chains) != len(y.Chains) {
			t.Errorf("listener %d differs", i)
			continue
		}
		for j := range x.Chains {
			if x.Chains[j].Key != y.Chains[j].Key || x.Chains[j].Secure != y.Chains[j].Secure {
				t.Errorf("chain %d of listener %d differs", j, i)
			}
		}
	}
}

// FuzzCluster and FuzzListener: whatever a control plane sends, the compilers
// answer, and the same each time.
func FuzzCluster(f *testing.F) {
	f.Add([]byte(`{"name":"a","load_assignment":{"cluster_name":"a","endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"pipe":{"path":"/x"}}}}]}]}}`))
	f.Add([]byte(`{"name":"a","type":"STRICT_DNS","lb_policy":"MAGLEV","health_checks":[{"timeout":"1s","interval":"1s","healthy_threshold":1,"unhealthy_threshold":1,"http_health_check":{"path":"/"}}],"outlier_detection":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m clusterv3.Cluster
		if !decodeEither(data, &m) {
			return
		}
		a, err1 := CompileCluster(&m, Env{})
		b, err2 := CompileCluster(proto.Clone(&m).(*clusterv3.Cluster), Env{})
		if (err1 == nil) != (err2 == nil) || err1 == nil && !reflect.DeepEqual(a.Config, b.Config) {
			t.Fatal("two compiles differ", err1, err2)
		}
	})
}

func FuzzListener(f *testing.F) {
	f.Add([]byte(`{"name":"a","address":{"socket_address":{"address":"::1","port_value":1}},"filter_chains":[{"filter_chain_match":{"server_names":["*.a"],"prefix_ranges":[{"address_prefix":"10.0.0.0","prefix_len":8}]}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m listenerv3.Listener
		if !decodeEither(data, &m) {
			return
		}
		a, err1 := CompileListener(&m, Env{})
		b, err2 := CompileListener(proto.Clone(&m).(*listenerv3.Listener), Env{})
		if (err1 == nil) != (err2 == nil) {
			t.Fatal("two compiles differ", err1, err2)
		}
		if err1 == nil {
			same(t, &Static{Listeners: []*Listener{a}}, &Static{Listeners: []*Listener{b}})
		}
	})
}

// decodeEither reads JSON or the wire form.
func decodeEither(data []byte, m proto.Message) bool {
	if json.Valid(data) {
		d, err := document.Parse("f", data)
		return err == nil && d.Decode(m) == nil
	}
	return proto.Unmarshal(data, m) == nil
}
