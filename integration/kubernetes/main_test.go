// Package kubernetes tests the built binary with a real Kubernetes API server: what sallyport install prints, the
// admission webhook, and attestation by service account tokens. There are no kubelet and no controllers, so pods never
// run and deployments make none: where one would, the test makes the pod as the controller does. make test-k8s builds
// the API server and runs this.
package kubernetes

import (
	"os"
	"testing"

	"sallyport/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
