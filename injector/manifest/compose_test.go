package manifest

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// shop is a Compose file of one service that asks for the sidecar, with more labels and more keys.
func shop(labels, keys string) string {
	text := "services:\n  orders:\n    image: orders\n    labels:\n      sallyport.io/inject: enabled\n      sallyport.io/token-file: ./orders.token\n"
	for line := range strings.Lines(labels) {
		text += "      " + strings.TrimRight(line, "\n") + "\n"
	}
	for line := range strings.Lines(keys) {
		text += "    " + strings.TrimRight(line, "\n") + "\n"
	}
	return text
}

func TestComposeErrors(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"a value of inject that is neither", "services:\n  a:\n    image: a\n    labels: {sallyport.io/inject: true}\n",
			`f.yaml:4: service a: label sallyport.io/inject "true": must be enabled or disabled`},
		{"a label that is not known", shop("sallyport.io/prot: 80", ""), "f.yaml:7: service orders: label sallyport.io/prot is not known; there are inject, token-file"},
		{"a label of ours that its author wrote", shop("sallyport.io/part-of: orders", ""), "label sallyport.io/part-of is not known"},
		{"a label for pods", shop("sallyport.io/cpu-request: 10m", ""), "label sallyport.io/cpu-request is for pods only: docker reserves no CPU"},
		{"a port by name", shop("sallyport.io/port: http", ""), `f.yaml:7: service orders: label sallyport.io/port "http": must be 0 (it only calls) to 65535`},
		{"a port by a variable", shop("sallyport.io/port: ${PORT}", ""), "variables are not read: resolve them first, by docker compose config"},
		{"no label and a range of ports", shop("", "ports: ['3000-3005']"), `f.yaml:2: service orders: label sallyport.io/port is required: ports begins with "3000-3005"`},
		{"a service that is no name", shop("sallyport.io/service: a b", ""), `label sallyport.io/service "a b": `},
		{"a mode", shop("sallyport.io/inbound-mode: tproxy", ""), `label sallyport.io/inbound-mode "tproxy": must be redirect or off`},
		{"ports", shop("sallyport.io/exclude-outbound-ports: 80,x", ""), `label sallyport.io/exclude-outbound-ports "80,x": "x" is not a port, nor a range`},
		{"networks", shop("sallyport.io/include-outbound-cidrs: 10.0.0.0/40", ""), `"10.0.0.0/40" is not a network such as 10.0.0.0/8`},
		{"upstreams", shop("sallyport.io/upstreams: nonsense", ""), `label sallyport.io/upstreams "nonsense": "nonsense": want SERVICE:PORT, as in payments:9001`},
		{"a level", shop("sallyport.io/log-level: loud", ""), "must be trace, debug"},
		{"an address that is none", shop("sallyport.io/port: 80\nsallyport.io/address: here", ""), "want the IP address under which the service is registered"},
		{"an address without Consul", shop("sallyport.io/port: 80\nsallyport.io/address: 10.0.0.1", ""), "inject was given no --consul"},
		{"an address and no port", shop("sallyport.io/address: 10.0.0.1", ""), "a service that only calls is not registered"},
		{"a limit that is none", shop("sallyport.io/cpu-limit: lots", ""), "want a quantity such as 100m or 64Mi"},
		{"a limit as Compose writes it", shop("sallyport.io/memory-limit: 64m", ""), "is 1 bytes, and docker's least is 6Mi; megabytes are written as in 64Mi"},
		{"a request above the limit", shop("sallyport.io/memory-limit: 64Mi\nsallyport.io/memory-request: 1Gi", ""), "the request 1Gi is above the limit 64Mi"},
		{"an empty token file", strings.Replace(shop("", ""), "./orders.token", "''", 1), "f.yaml:2: service orders: label sallyport.io/token-file is required"},
		{"labels of a merge key, at their own line",
			"x-labels: &l\n  sallyport.io/inject: enabled\n  sallyport.io/port: x\nservices:\n  a:\n    image: a\n    labels:\n      <<: *l\n", `f.yaml:3: service a: label sallyport.io/port "x"`},
		{"extends", shop("", "extends: {service: base}"), "f.yaml:2: service orders: what extends names is not read: resolve it first, by docker compose config"},
		{"another extends it", shop("", "") + "  other:\n    extends: orders\n", "f.yaml:8: service other: it extends orders, which is injected"},
		{"labels in a file", shop("", "label_file: labels"), "what label_file names is not read"},
		{"a part of several files", strings.Replace(shop("", ""), "    image: orders\n", "", 1), "it has neither image nor build"},
		{"reset", shop("", "ports: !reset []"), "the tag !reset is for the merging of several files"},
		{"override", shop("", "environment: !override {A: b}"), "the tag !override is for the merging of several files"},
		{"the sidecar's user", shop("", "user: 1337:1000"), "user 1337 is the sidecar's own user"},
		{"instances by scale", shop("", "scale: 3"), "f.yaml:7: service orders: scale 3: a service that is injected has one instance"},
		{"instances by replicas", shop("", "deploy: {replicas: 2}"), "deploy.replicas 2: a service that is injected has one instance"},
		{"instances by a variable", shop("", "scale: ${N}"), "scale ${N}"},
		{"containers before it", shop("", "pre_start: [{command: migrate}]"), "containers of pre_start cannot join"},
		{"a name that Compose refuses", strings.Replace(shop("", ""), "orders:", "or/ders:", 1), "names of services consist of"},
		{"a service of our name", shop("", "") + "  orders-sallyport-net:\n    image: x\n", "there is a service orders-sallyport-net, and the sidecar needs that name"},
		{"a volume of our name", shop("", "") + "volumes: {orders-sallyport-identity: {}}\n", "there is a volume orders-sallyport-identity, and the sidecar needs that name"},
		{"volumes that are none", shop("", "") + "volumes: [a]\n", "the key volumes of the file is not a mapping"},
		{"a link to it", shop("", "") + "  web:\n    image: web\n    links:\n    - orders:o\n", "f.yaml:10: service web: links: orders is injected"},
		{"network_mode and networks", shop("", "network_mode: bridge\nnetworks: [a]"), "f.yaml:2: service orders: networks: they and network_mode exclude each other"},
		{"networks that are none", shop("", "networks: a"), "networks: want a list or a mapping"},
		{"a network that is none", shop("", "networks: {a: b}"), "networks: a: want a mapping"},
		{"depends_on that is none", shop("", "depends_on: a"), "depends_on: want a list or a mapping"},
		{"a service that is none", shop("", "") + "  web: 3\n", "f.yaml:7: service web: not a mapping"},
		{"a key twice", shop("", "image: other"), `f.yaml: line 7: mapping key "image" already defined at line 3`},
		{"an anchor in itself", "services:\n  a: &a\n    image: a\n    x: *a\n", `f.yaml:4: anchor "a" contains itself`},
		{"of an earlier version", shop("", "") + "  orders-sallyport:\n    image: x\n    labels: {sallyport.io/part-of: orders}\n", "run sallyport uninject first"},
		{"the line in a file of several documents", "# one\n---\n" + shop("sallyport.io/port: x", ""), "f.yaml:9: service orders: label sallyport.io/port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, _, err := File("f.yaml", []byte(c.in), options())
			if err == nil || !strings.Contains(err.Error(), c.want) || out != nil {
				t.Errorf("%s\n%v, want %q", c.in, err, c.want)
			}
		})
	}
}

// parsed is a Compose file as a map.
func parsed(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var v map[string]any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return v
}

func at(v any, path ...string) any {
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return v
}

// TestComposeOptions: what the command line says about all services.
func TestComposeOptions(t *testing.T) {
	o := options()
	o.PullPolicy, o.Consul, o.LogLevel = "IfNotPresent", "http://10.0.0.9:8500", "warning"
	out, _, err := File("f.yaml", []byte(shop("sallyport.io/port: 8080\nsallyport.io/address: fd00::7", "")), o)
	if err != nil {
		t.Fatal(err)
	}
	services := at(parsed(t, out), "services")
	for _, name := range composeServices {
		if policy := at(services, "orders"+name, "pull_policy"); policy != "missing" {
			t.Errorf("%s: pull_policy %v", name, policy)
		}
	}
	var args []string
	for _, a := range at(services, "orders-sallyport", "command").([]any) {
		args = append(args, a.(string))
	}
	if text := strings.Join(args, " "); !strings.Contains(text, "--consul http://10.0.0.9:8500 --listen [fd00::7]:15006 --log-level warning") {
		t.Errorf("%s", text)
	}
}

// TestComposeFailsClosed: whatever restarts them, no application comes to run in a network without rules.
func TestComposeFailsClosed(t *testing.T) {
	inputs, _ := filepath.Glob("testdata/compose*.yaml")
	for _, path := range inputs {
		in, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out, _, err := File(path, in, options())
		if err != nil {
			t.Fatal(err)
		}
		services := at(parsed(t, out), "services").(map[string]any)
		for part := range services {
			name, ok := strings.CutSuffix(part, composeNet)
			if !ok {
				continue
			}
			holder, join := name+composeNet, "service:"+name+composeNet
			if at(services, holder, "restart") != "no" {
				t.Errorf("%s: docker starts the network of %s anew, without rules", path, name)
			}
			for _, joined := range []string{name, name + composeInit, name + composeProxy} {
				if mode := at(services, joined, "network_mode"); mode != join {
					t.Errorf("%s: %s has network_mode %v", path, joined, mode)
				}
				for key := range at(services, joined).(map[string]any) {
					if key != "network_mode" && key != "sysctls" && slices.Contains(composeNetworkKeys, key) {
						t.Errorf("%s: %s has kept %s", path, joined, key)
					}
				}
			}
			for dependent, want := range map[string]map[string]string{
				name + composeInit:  {holder: "service_started"},
				name + composeProxy: {name + composeInit: "service_completed_successfully"},
				name:                {name + composeInit: "service_completed_successfully", name + composeProxy: "service_healthy"},
			} {
				for on, condition := range want {
					d := at(services, dependent, "depends_on", on)
					if at(d, "condition") != condition || at(d, "restart") != true {
						t.Errorf("%s: %s depends on %s so: %v", path, dependent, on, d)
					}
				}
			}
			if caps := at(services, holder, "cap_add"); caps != nil || at(services, name+composeProxy, "cap_add") != nil {
				t.Errorf("%s: capabilities beside those of %s", path, name+composeInit)
			}
		}
	}
}

// TestComposeJSON: JSON has no comments in which the original could be kept; what it means comes back.
func TestComposeJSON(t *testing.T) {
	in := []byte(`{
  "services": {
    "orders": {
      "image": "orders",
      "labels": {"sallyport.io/inject": "enabled", "sallyport.io/token-file": "t"},
      "ports": ["8080:8080"],
      "networks": ["front", "back"],
      "sysctls": {"net.core.somaxconn": 1024, "kernel.shm_rmid_forced": "1"},
      "depends_on": ["database"]
    },
    "database": {"image": "postgres"}
  },
  "networks": {"front": {}, "back": {}}
}
`)
	out, _, err := File("f.json", in, options())
	if err != nil {
		t.Fatal(err)
	}
	twice, _, err := File("f.json", out, options())
	if err != nil || !bytes.Equal(twice, out) || !json.Valid(out) {
		t.Errorf("injected twice: %v\n%s", err, twice)
	}
	back, err := FileBack("f.json", out)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(back) || !reflect.DeepEqual(meaning(at(parsed(t, back))), meaning(at(parsed(t, in)))) {
		t.Errorf("taken out again:\n%s", back)
	}
}

// TestComposeTakenOutAfterAnEdit: what was changed in between stays changed, on both sides of the move.
func TestComposeTakenOutAfterAnEdit(t *testing.T) {
	out, _, err := File("f.yaml", []byte(shop("", "ports: ['8080:8080']\nhostname: o\ndepends_on: {db: {condition: service_healthy}}")+"  db: {image: postgres}\n"), options())
	if err != nil {
		t.Fatal(err)
	}
	edit := func(pairs ...string) []byte {
		text := string(out)
		for i := 0; i < len(pairs); i += 2 {
			if !strings.Contains(text, pairs[i]) {
				t.Fatalf("no %q in\n%s", pairs[i], text)
			}
			text = strings.Replace(text, pairs[i], pairs[i+1], 1)
		}
		return []byte(text)
	}
	back, err := FileBack("f.yaml", edit("image: orders", "image: orders:2\n    ports: ['9090:9090']", "ports: ['8080:8080']", "ports: ['8080:8080', '8081:8081']",
		"networks:\n      default:", "networks:\n      front: {}\n      default:"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"services": map[string]any{
		"orders": map[string]any{"image": "orders:2", "hostname": "o", "ports": []any{"9090:9090", "8080:8080", "8081:8081"}, "networks": []any{"front", "default"},
			"labels":     map[string]any{"sallyport.io/inject": "enabled", "sallyport.io/token-file": "./orders.token"},
			"depends_on": map[string]any{"db": map[string]any{"condition": "service_healthy"}}},
		"db": map[string]any{"image": "postgres"}}}
	if got := any(parsed(t, back)); !reflect.DeepEqual(got, any(want)) {
		t.Errorf("%v, want\n%v", got, want)
	}
	_, err = FileBack("f.yaml", edit("image: orders", "image: orders\n    hostname: other"))
	if want := "f.yaml:2: service orders: hostname is in orders-sallyport-net, too: keep one of the two"; err == nil || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
}

// TestComposeTakesOutItsOwnOnly: a label alone makes nothing ours, and what an earlier version put in goes, too.
func TestComposeTakesOutItsOwnOnly(t *testing.T) {
	in := "services:\n  web:\n    image: web\n    labels: {sallyport.io/part-of: orders}\n  orders:\n    image: orders\n    network_mode: host\nvolumes:\n  orders-sallyport-identity: {}\n"
	old := strings.Replace(in, "volumes:", "  orders-sallyport:\n    image: x\n    network_mode: service:orders\n    labels: [sallyport.io/part-of=orders]\nvolumes:", 1)
	for name, text := range map[string]string{"nothing of ours": in, "an earlier version": old} {
		back, err := FileBack("f.yaml", []byte(text))
		if err != nil || !reflect.DeepEqual(parsed(t, back), parsed(t, []byte(in))) {
			t.Errorf("%s: %v\n%s", name, err, back)
		}
	}
}

// TestComposeOneMore: a service that asks for the sidecar later is injected beside those that have it, and all go.
func TestComposeOneMore(t *testing.T) {
	more := "  web:\n    image: web\n    labels: {sallyport.io/inject: enabled, sallyport.io/token-file: w}\n"
	in := shop("", "")
	out, _, err := File("f.yaml", []byte(in), options())
	if err != nil {
		t.Fatal(err)
	}
	out, notes, err := File("f.yaml", bytes.Replace(out, []byte("services:\n"), []byte("services:\n"+more), 1), options())
	if err != nil || len(notes) != 1 || notes[0].Text != "injected already" {
		t.Fatalf("%v %v", err, notes)
	}
	back, err := FileBack("f.yaml", out)
	if want := parsed(t, []byte(in+more)); err != nil || !reflect.DeepEqual(parsed(t, back), want) {
		t.Errorf("%v\n%s", err, back)
	}
}

func TestComposePath(t *testing.T) {
	for in, want := range map[string]string{
		"orders.token": "./orders.token", "a/b": "./a/b", "./a": "./a", "../a": "../a", "/a": "/a", "~/a": "~/a", "$HOME/a": "$HOME/a", "${T}/a": "${T}/a",
		`C:\a`: `C:\a`, `.\a`: `.\a`, ".hidden": "./.hidden", "..a": "./..a",
	} {
		if got := composePath(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}
