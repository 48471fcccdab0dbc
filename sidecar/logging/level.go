package logging

import (
	"fmt"
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
