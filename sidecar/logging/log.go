// Package logging is the process's own log: events with fields, a line each. A line is formatted by the goroutine that has
// something to say, a worker among them, and handed to a bounded queue; one goroutine writes. So nobody waits for a pipe
// that nobody reads, or for a disk: what does not fit is dropped and counted.
//
// The commands of package main make the log; every other package is given a *slog.Logger.
package logging

import (
	"fmt"
	"io"
	"log/slog"

	"go.opentelemetry.io/otel"
	"google.golang.org/grpc/grpclog"
)

// maxValue is what one field of a line may have; the rest is cut. Texts of peers and control planes get into errors.
const maxValue = 4 << 10

// New returns a logger of events with fields, and the switch of its level. Lines go to out, which may be an Output.
func New(out io.Writer, level slog.Level) (*slog.Logger, *slog.LevelVar) {
	v := &slog.LevelVar{}
	v.Set(level)
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: v, ReplaceAttr: cut})), v
}

// Adopt has the libraries write to the log that would write to standard error themselves, and so could wait for it.
func Adopt(log *slog.Logger, out io.Writer) {
	slog.SetDefault(log) // and with it package log
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, out))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("telemetry could not be exported", "error", err) }))
}

// cut shortens a field's value, and the message, to maxValue.
func cut(_ []string, a slog.Attr) slog.Attr {
	switch v := a.Value; v.Kind() {
	case slog.KindString:
		if s := v.String(); len(s) > maxValue {
			a.Value = shortened(s)
		}
	case slog.KindAny:
		switch x := v.Any().(type) {
		case error:
			if s := x.Error(); len(s) > maxValue {
				a.Value = shortened(s)
			}
		case []byte:
			if len(x) > maxValue {
				a.Value = shortened(string(x))
			}
		}
	}
	return a
}

func shortened(s string) slog.Value {
	return slog.StringValue(fmt.Sprintf("%s… (%d bytes)", s[:maxValue], len(s)))
}
