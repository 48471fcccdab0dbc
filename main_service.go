package main

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"sallyport/sidecar/logging"
)

// lastLines is how long the lines may take that wait at the end: who reads them may be stuck.
const lastLines = time.Second

// serviceLog is the log of a command that serves until it is told to end. From here on nothing in it waits for standard error.
func serviceLog(out *logging.Output, level string) (*slog.Logger, *slog.LevelVar, error) {
	l, err := logging.ParseLevel(level)
	if err != nil {
		return nil, nil, err
	}
	out.Start()
	log, v := logging.New(out, l)
	logging.Adopt(log, out)
	// A reader of our log that goes away must not take us with it. Not ignored, which children inherit: only not deadly
	// (os/signal, SIGPIPE).
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return log, v, nil
}
