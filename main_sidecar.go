package main

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sallyport/sidecar"
)

// sidecarFlags are shared by the commands that run the data plane.
type sidecarFlags struct {
	o     sidecar.Options
	level string
	mode  string
	drain int
}

func (f *sidecarFlags) add(fs *pflag.FlagSet) {
	fs.StringVarP(&f.o.Config, "config-path", "c", "", "Envoy bootstrap, YAML or JSON")
	fs.StringVar(&f.o.ConfigYAML, "config-yaml", "", "YAML that is merged onto the bootstrap")
	fs.IntVar(&f.o.Concurrency, "concurrency", 0, "number of workers (default: one per CPU)")
	fs.StringVarP(&f.level, "log-level", "l", "info", "trace, debug, info, warning, error, critical or off")
	fs.IntVar(&f.drain, "drain-time-s", 5, "seconds that connections have to end after SIGTERM")
	fs.StringVar(&f.mode, "mode", "serve", "serve, or validate: check the configuration and say what of it is not implemented")
	fs.StringVar(&f.o.Node, "service-node", "", "node id that the control plane sees")
	fs.StringVar(&f.o.Cluster, "service-cluster", "", "cluster of the node")
	fs.StringVar(&f.o.Zone, "service-zone", "", "zone of the node")
	fs.StringVar(&f.o.CacheDir, "cache-dir", "", "folder (0700) that keeps the last good configuration over a restart")
	// Envoy's flags that mean nothing here are taken, so that its command line can be used as it is.
	for _, n := range ignoredValues {
		fs.String(n, "", "")
		_ = fs.MarkHidden(n) // it exists: made just now
	}
	for _, n := range ignoredSwitches {
		fs.Bool(n, false, "")
		_ = fs.MarkHidden(n)
	}
}

// Flags of Envoy that have no effect here: there is no shared memory region, no
// hot restart by epochs, no logger of another library.
var (
	ignoredValues = []string{"base-id", "base-id-path", "restart-epoch", "parent-shutdown-time-s", "file-flush-interval-msec", "file-flush-min-size-kb",
		"component-log-level", "log-format", "log-path", "drain-strategy", "local-address-ip-version", "admin-address-path", "socket-path", "socket-mode",
		"disable-extensions", "stats-tag"}
	ignoredSwitches = []string{"use-dynamic-base-id", "disable-hot-restart", "enable-mutex-tracing", "cpuset-threads", "allow-unknown-fields",
		"allow-unknown-static-fields", "reject-unknown-dynamic-fields", "ignore-unknown-dynamic-fields", "skip-deprecated-logs",
		"skip-hot-restart-on-no-parent", "skip-hot-restart-parent-stats", "enable-fine-grain-logging", "log-format-escaped"}
)

// finish makes options of the flags.
func (f *sidecarFlags) finish(fs *pflag.FlagSet) error {
	level, err := sidecar.ParseLevel(f.level)
	if err != nil {
		return err
	}
	f.o.Log, f.o.Level = sidecar.NewLog(os.Stderr, level)
	slog.SetDefault(f.o.Log)
	if f.drain < 0 {
		return fmt.Errorf("--drain-time-s %d: must not be negative", f.drain)
	}
	f.o.DrainTime = max(time.Duration(f.drain)*time.Second, time.Millisecond)
	for _, n := range slices.Concat(ignoredValues, ignoredSwitches) {
		if fs.Changed(n) {
			f.o.Log.Warn("flag has no effect here", "flag", "--"+n)
		}
	}
	if f.mode != "serve" && f.mode != "validate" {
		return fmt.Errorf("--mode %q: must be serve or validate", f.mode)
	}
	return nil
}

func sidecarCommand() *cobra.Command {
	var f sidecarFlags
	c := &cobra.Command{
		Use:   "sidecar -c FILE | --service NAME --port PORT --control-plane HOST:PORT",
		Short: "Run the data plane: from an Envoy bootstrap, or as the sidecar of a service",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.finish(c.Flags()); err != nil {
				return err
			}
			if f.mode == "validate" {
				return sidecar.Validate(f.o, os.Stdout)
			}
			return sidecar.Run(c.Context(), f.o)
		},
	}
	f.add(c.Flags())
	return c
}
