package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/integration/harness"
)

const denyShop = `apiVersion: policy.sallyport.io/v1
kind: AuthorizationPolicy
metadata: {name: not-the-shop}
spec: {targetRefs: [{kind: Service, name: orders}], action: DENY, rules: [{from: [{service: shop}]}]}
`

// TestAnEmptiedPolicyFileLiftsNothing: neither while the control plane runs nor over its restart; a deleted one does.
func TestAnEmptiedPolicyFileLiftsNothing(t *testing.T) {
	app := harness.NewBackend(t, "orders").HTTP1()
	server := harness.NewSidecar(t).Service("orders", app.Port())
	control := harness.NewControlPlane(t).Status().Catalog(meshOf(t, app, server.Address("mesh"))).Policy("deny.yaml", denyShop).Run()
	server.ControlPlane(control.Addr(), control.Token("--service", "orders")).Run()
	caller := harness.NewSidecar(t).Service("shop", 1).ControlPlane(control.Addr(), control.Token("--service", "shop")).Upstream("orders").Run()
	answered := func(want int) {
		t.Helper()
		harness.Eventually(t, 15*time.Second, fmt.Sprint("an answer with ", want), func() error {
			reply, err := harness.TryGet(caller.Addr("orders"), "/", "host: orders")
			if err == nil && reply.Status() != want {
				err = fmt.Errorf("answered %d", reply.Status())
			}
			return err
		})
	}
	says := func(texts ...string) {
		t.Helper()
		harness.Eventually(t, 15*time.Second, "the status", func() error {
			said := control.Says()
			for _, text := range texts {
				if !strings.Contains(said, text) {
					return fmt.Errorf("%q is not in %q", text, said)
				}
			}
			return nil
		})
	}
	answered(403)
	if err := os.Truncate(filepath.Join(control.PolicyDir(), "deny.yaml"), 0); err != nil {
		t.Fatal(err)
	}
	says("refused policy:", "deny.yaml: is empty; what was in it stays in force (1)")
	answered(403)
	control.Kill()
	control.Restart()
	says("policies: what was in force before the restart stays in force", "deny.yaml: is empty; what was in it stays in force (1)")
	says("\norders~", "\nshop~") // they have what the new process built
	answered(403)
	control.RemovePolicy("deny.yaml")
	answered(200)
}
