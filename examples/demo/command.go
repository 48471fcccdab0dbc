package demo

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Command is `sallyport demo`, with the hidden `demo app` below it.
func Command() *cobra.Command {
	var o Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a small shop with its mesh on this machine, and say what to try",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return Run(c.Context(), o, c.OutOrStdout())
		},
	}
	fs := c.Flags()
	fs.BoolVar(&o.Check, "check", false, "walk through by itself, a row for each ability; status 0 if all held")
	fs.BoolVar(&o.Consul, "consul", false, "discover by a real Consul agent: $CONSUL, or consul on the PATH")
	fs.BoolVar(&o.Transparent, "transparent", false, "run the services unaware of the mesh: all of their traffic is redirected (root)")
	fs.BoolVar(&o.Keep, "keep", false, "leave the folder with configuration and logs")
	o.ConsulPath = os.Getenv("CONSUL")
	c.AddCommand(appCommand())
	return c
}

// appCommand runs one of the services, a process of its own.
func appCommand() *cobra.Command {
	var a App
	var calls []string
	c := &cobra.Command{
		Use:    "app --service NAME --listen HOST:PORT",
		Short:  "Run one of the demo's services",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(c *cobra.Command, _ []string) error {
			a.Calls = map[string]string{}
			for _, s := range calls {
				path, url, ok := strings.Cut(s, "=")
				if !ok || !strings.HasPrefix(path, "/") || !strings.HasPrefix(url, "http://") {
					return fmt.Errorf("--call %q: want /PATH=http://HOST:PORT", s)
				}
				a.Calls[path] = url
			}
			if a.Service == "" || a.Listen == "" {
				return fmt.Errorf("--service NAME and --listen HOST:PORT are required")
			}
			if a.Instance == "" {
				a.Instance = a.Service
			}
			return a.Run(c.Context())
		},
	}
	fs := c.Flags()
	fs.StringVar(&a.Service, "service", "", "name of the service")
	fs.StringVar(&a.Version, "version", "", "version that it says it has")
	fs.StringVar(&a.Instance, "instance", "", "instance that it says it is")
	fs.StringVar(&a.Listen, "listen", "", "HOST:PORT")
	fs.StringArrayVar(&calls, "call", nil, "/PATH=http://HOST:PORT: what to call when asked for that path, more than once")
	return c
}
