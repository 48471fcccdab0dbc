package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"sallyport/integration/harness"
	"sallyport/sidecar/probe"
)

// TestInjectedContainersAreUnderstood holds the two sides together that do not import each other: the containers that
// inject writes, and the commands that run in them.
func TestInjectedContainersAreUnderstood(t *testing.T) {
	dir := t.TempDir()
	bundle := filepath.Join(dir, "bundle.pem")
	if err := os.WriteFile(bundle, []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(harness.Root(), "injector/manifest/testdata/*.yaml"))
	if err != nil || len(files) < 30 {
		t.Fatalf("%d manifests, %v", len(files), err)
	}
	args := []string{"inject", "--control-plane", "control-plane:15010", "--ca-bundle", bundle, "--consul", "http://consul:8500", "--sidecar-log-level", "warning"}
	containers, probes := 0, 0
	for _, file := range files {
		out := harness.Run(t, append(args, "-f", file)...)
		if out.Code != 0 {
			t.Errorf("%s: %s", file, out.Stderr)
			continue
		}
		d := yaml.NewDecoder(bytes.NewReader([]byte(out.Stdout)))
		for {
			var v any
			if d.Decode(&v) != nil {
				break
			}
			each(v, func(c map[string]any) {
				command, _ := c["args"].([]any)
				if command == nil {
					command, _ = c["command"].([]any)
				}
				var words []string
				for _, w := range command {
					word, _ := w.(string)
					words = append(words, strings.NewReplacer("$(POD_NAMESPACE)", "default", "$(POD_NAME)", "pod-1", "$(POD_IP)", "192.0.2.7").Replace(word))
				}
				if len(words) < 2 || words[0] != "redirect" && words[0] != "sidecar" {
					return
				}
				containers++
				if words[0] == "redirect" {
					if out := harness.Run(t, append(words, "--dry-run")...); out.Code != 0 || !strings.Contains(out.Stdout, "sallyport") {
						t.Errorf("%s: %q: %s", file, words, out.Stderr)
					}
					return
				}
				// It comes as far as reading what the pod's volumes would hold.
				if out := harness.Run(t, words...); out.Code != 1 || !strings.Contains(out.Stderr, "no such file or directory") {
					t.Errorf("%s: %q: %s", file, words, out.Stderr)
				}
				env, _ := c["env"].([]any)
				for _, e := range env {
					if m, _ := e.(map[string]any); m["name"] == probe.Environment {
						text, _ := m["value"].(string)
						parsed, err := probe.Parse(strings.ReplaceAll(text, "$$(", "$("))
						if err != nil || len(parsed) == 0 {
							t.Errorf("%s: %v", file, err)
						}
						probes += len(parsed)
					}
				}
			})
		}
	}
	if containers < 40 || probes < 10 {
		t.Errorf("%d containers and %d probes were looked at", containers, probes)
	}
}

// each calls f with all objects below a value.
func each(v any, f func(map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		f(v)
		for _, e := range v {
			each(e, f)
		}
	case []any:
		for _, e := range v {
			each(e, f)
		}
	}
}

// TestPartsOfAComposeFile: what its holder and its health check run.
func TestPartsOfAComposeFile(t *testing.T) {
	sidecar := harness.NewBackend(t, "sidecar").HTTP1()
	for answer, want := range map[string]string{harness.OK("ready"): "", harness.Response(503, "waits for its identity"): "the sidecar is not ready: waits for its identity"} {
		sidecar.Script(answer)
		if out := harness.Run(t, "ready", "--address", sidecar.Addr()); (out.Code == 0) != (want == "") || !strings.Contains(out.Stderr, want) {
			t.Errorf("ready: %+v, want %q", out, want)
		}
	}
	if out := harness.Run(t, "ready", "--address", harness.FreeAddr(t)); out.Code != 1 || !strings.Contains(out.Stderr, "no sidecar answers") {
		t.Errorf("ready without a sidecar: %+v", out)
	}
	holder := harness.Command{Name: "holder", Path: harness.Binary(t), Args: []string{"hold"}}.Start(t)
	holder.WaitLog("holding")
	holder.Signal(syscall.SIGTERM)
	if code := holder.WaitExit(10 * time.Second); code != 0 {
		t.Errorf("hold ends with %d", code)
	}
}
