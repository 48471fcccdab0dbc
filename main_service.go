package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"sallyport/sidecar/logging"
)

// lastLines is how long the lines may take that wait at the end: who reads them may be stuck.
const lastLines = time.Second

// until returns a context that ends with one of the signals. What is ignored from the start, by nohup or a shell's "&",
// stays so.
func until(ctx context.Context, signals ...os.Signal) (context.Context, context.CancelFunc) {
	if signals = slices.DeleteFunc(signals, signal.Ignored); len(signals) == 0 {
		return context.WithCancel(ctx) // signal.Notify takes none for all
	}
	return signal.NotifyContext(ctx, signals...)
}

// reloads receives the signals that ask a service to take up anew what it has open; nil where they are ignored. None of them
// may end it: a terminal that goes away sends SIGHUP, a rotation of logs that was made for Envoy SIGUSR1. Configuration,
// policies and certificates are watched, and need no signal.
func reloads() <-chan os.Signal {
	signals := slices.DeleteFunc([]os.Signal{syscall.SIGHUP, syscall.SIGUSR1}, signal.Ignored)
	if len(signals) == 0 {
		return nil
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, signals...)
	return c
}

// nothingToReload says so at each of those signals, for a service that writes no files.
func nothingToReload(ctx context.Context, log *slog.Logger) {
	signals := reloads()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-signals:
				log.Info("nothing is to be read again; files are watched, and SIGTERM ends the process", "signal", s.String())
			}
		}
	}()
}

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
