// Command sallyport is a service mesh in one binary: sidecar, edge, control
// plane and certificate authority. Each sub-command is a few lines that call
// the package that does the work.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"sallyport/examples/demo"
	"sallyport/injector/run"
	"sallyport/sidecar/logging"
)

func main() {
	ctx, stop := until(context.Background(), os.Interrupt, syscall.SIGTERM)
	stderr := logging.NewOutput(os.Stderr)
	err := root(stderr).ExecuteContext(ctx)
	stop()
	var exit *run.Exit
	if errors.As(err, &exit) && exit.Err == nil {
		os.Exit(exit.Code) // of the command that "sallyport run" ran, which has said what there was to say
	}
	if err != nil {
		// One line for each thing that is wrong.
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintln(stderr, "sallyport:", strings.TrimRight(line, "\n"))
		}
	}
	stderr.Close(lastLines)
	switch {
	case exit != nil:
		os.Exit(exit.Code)
	case err != nil:
		os.Exit(1)
	}
}

// root is the command line. Commands that serve write their log to stderr by serviceLog.
func root(stderr *logging.Output) *cobra.Command {
	c := &cobra.Command{
		Use:           "sallyport",
		Short:         "A service mesh sidecar, API gateway and control plane that speaks Envoy's xDS",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	c.AddCommand(sidecarCommand(stderr),
		gatewayCommand(stderr, "edge", "edge", "Run the API gateway for the public, as a Gateway document describes it"),
		gatewayCommand(stderr, "l4", "l4", "Run the L4 tier: spread TCP connections over the edges of a Gateway"),
		controlPlaneCommand(stderr), tokenCommand(), validateCommand(), statusCommand(),
		redirectCommand(), injectCommand(), uninjectCommand(), injectorCommand(stderr), installCommand(), runCommand(stderr),
		holdCommand(), readyCommand(), demo.Command())
	return c
}
