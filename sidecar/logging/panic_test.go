package logging

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestAPanicIsAnErrorWithItsStackInTheLog(t *testing.T) {
	var b bytes.Buffer
	log, _ := New(&b, slog.LevelInfo)
	before := Panics()
	err := Guard(log, "reading a secret", func() { var m map[string]int; m["a"] = 1 })
	if err == nil || !strings.Contains(err.Error(), "while reading a secret") || strings.Contains(err.Error(), ".go:") {
		t.Errorf("%v", err)
	}
	if Panics() != before+1 {
		t.Error("it is not counted")
	}
	if got := b.String(); !strings.Contains(got, "assignment to entry in nil map") || !strings.Contains(got, "panic_test.go") {
		t.Errorf("the log does not say where: %s", got)
	}
	if err := Guard(log, "doing nothing", func() {}); err != nil || Panics() != before+1 {
		t.Error(err)
	}
}
