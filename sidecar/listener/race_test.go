//go:build race

package listener

import "testing"

// skipUnderRace: the race detector allocates by itself.
func skipUnderRace(t *testing.T) { t.Skip("allocations are not counted under the race detector") }
