package panics

import (
	"log/slog"
	"strings"
	"testing"

	"sallyport/sidecar/metric"
)

func breakDown() { panic("bad check") }

func TestPanicsAreCountedAndTheFirstIsLoggedWithItsStack(t *testing.T) {
	var log strings.Builder
	metrics := metric.NewRegistry(0)
	n := New(metrics, slog.New(slog.NewTextHandler(&log, nil)))
	for range 100 {
		func() {
			defer n.Recover("health check")
			breakDown()
		}()
	}
	if got := metrics.Singles()[Counter]; got != 100 {
		t.Errorf("%d panics were counted, want 100", got)
	}
	// Within a second, unless the machine stood still.
	if lines := strings.Count(log.String(), "\n"); lines == 0 || lines > 3 {
		t.Errorf("%d lines were logged, want about one", lines)
	}
	for _, want := range []string{`where="health check"`, `panic="bad check"`, "panics.breakDown"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not have %q:\n%s", want, log.String())
		}
	}
	log.Reset()
	func() { defer n.Recover("health check") }()
	if got := metrics.Singles()[Counter]; got != 100 || log.Len() > 0 {
		t.Errorf("no panic was counted or logged: %d, %q", got, log.String())
	}
}
