package integration

import (
	"os/exec"
	"strings"
	"testing"

	"sallyport/integration/harness"
)

// TestPlanesDoNotImportEachOther: what the data plane, the control plane and the injector share is in certs, and in
// Envoy's protos (ARCHITECTURE.md); main puts them together.
func TestPlanesDoNotImportEachOther(t *testing.T) {
	planes := []string{"sallyport/sidecar", "sallyport/xds", "sallyport/injector", "sallyport/certs"}
	cmd := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "./...")
	cmd.Dir = harness.Root()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	in := func(pkg, plane string) bool { return pkg == plane || strings.HasPrefix(pkg, plane+"/") }
	seen := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		for _, own := range planes {
			if !in(fields[0], own) {
				continue
			}
			seen++
			for _, imported := range fields[1:] {
				for _, other := range planes {
					if other != own && other != "sallyport/certs" && in(imported, other) {
						t.Errorf("%s imports %s", fields[0], imported)
					}
				}
			}
		}
	}
	if seen < 40 {
		t.Errorf("only %d packages were seen", seen)
	}
}
