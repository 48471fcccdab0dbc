// Package integration tests the built binary from outside, with real Envoy, Consul and h2spec beside it.
package integration

import (
	"os"
	"testing"

	"sallyport/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
