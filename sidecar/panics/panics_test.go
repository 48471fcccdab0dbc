package panics

import (
	"log/slog"
	"strings"
	"testing"
)

func breakDown() { panic("bad check") }

func TestPanicsAreCountedAndTheFirstIsLoggedWithItsStack(t *testing.T) {
	var log strings.Builder
	before := Count()
	n := New(slog.New(slog.NewTextHandler(&log, nil)))
	for range 100 {
		func() {
			defer n.Recover("health check")
			breakDown()
		}()
	}
	if got := Count() - before; got != 100 {
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
	if got := Count() - before; got != 100 || log.Len() > 0 {
		t.Errorf("no panic was counted or logged: %d, %q", got, log.String())
	}
}

func TestAPanicIsAnErrorWithItsStackInTheLog(t *testing.T) {
	var text strings.Builder
	log := slog.New(slog.NewTextHandler(&text, nil))
	before := Count()
	err := Guard(log, "reading a secret", breakDown)
	if err == nil || !strings.Contains(err.Error(), "while reading a secret") || strings.Contains(err.Error(), ".go:") {
		t.Errorf("%v", err)
	}
	if got := text.String(); Count() != before+1 || !strings.Contains(got, "bad check") || !strings.Contains(got, "panics.breakDown") {
		t.Errorf("counted %d; the log does not say where: %s", Count()-before, got)
	}
	if err := Guard(log, "doing nothing", func() {}); err != nil || Count() != before+1 {
		t.Error(err)
	}
}
