package sidecar

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// levels are Envoy's names of log levels.
var levels = map[string]slog.Level{
	"trace": slog.LevelDebug - 4, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn, "warn": slog.LevelWarn,
	"error": slog.LevelError, "critical": slog.LevelError + 4, "off": slog.LevelError + 100,
}

// ParseLevel reads the name of a log level as Envoy's -l takes it.
func ParseLevel(name string) (slog.Level, error) {
	if l, ok := levels[strings.ToLower(name)]; ok {
		return l, nil
	}
	return 0, fmt.Errorf("log level %q is not known; known are trace, debug, info, warning, error, critical and off", name)
}

// NewLog returns a logger of events with fields, and the switch of its level.
func NewLog(w io.Writer, level slog.Level) (*slog.Logger, *slog.LevelVar) {
	v := &slog.LevelVar{}
	v.Set(level)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: v})), v
}
