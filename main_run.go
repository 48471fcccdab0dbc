package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"sallyport/injector/redirect"
	"sallyport/injector/run"
	"sallyport/sidecar/logging"
	"sallyport/sidecar/register"
)

// runCommand is package injector/run.
func runCommand(stderr *logging.Output) *cobra.Command {
	o := run.Options{Redirect: redirect.Config{Backend: redirect.Auto, DNSTo: redirect.DNSAuto}}
	var address, mode, capture string
	// Flags of the sidecar that are handed on as they are.
	var join, one, many []string
	c := &cobra.Command{
		Use:   "run --service NAME [--port PORT] --control-plane HOST:PORT [--consul URL] [flags] -- COMMAND [ARGUMENTS]",
		Short: "Run a command with a sidecar beside it, and all of its traffic through that",
		Long: "Starts a sidecar, waits until it is ready, redirects the traffic of the command's process tree to it, registers the\n" +
			"service in Consul, and runs the command; when that ends, undoes it all and ends with the command's own status.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if os.Getpid() == 1 {
				return run.AsInit()
			}
			o.Command = args
			o.Deregister = func(id string) error {
				return register.Deregister(context.WithoutCancel(cmd.Context()), register.Options{Consul: o.Consul, Token: os.Getenv("CONSUL_HTTP_TOKEN"), ID: id})
			}
			if address != "" {
				a, err := netip.ParseAddr(address)
				if err != nil {
					return fmt.Errorf("--address %q: want an IP address", address)
				}
				o.Address = a
			}
			log, _, err := serviceLog(stderr, o.LogLevel)
			if err != nil {
				return err
			}
			o.InboundMode, o.Capture, o.Log = redirect.Mode(mode), run.Capture(capture), log
			o.Stdin, o.Stdout, o.Stderr = os.Stdin, os.Stdout, os.Stderr
			for _, name := range join {
				if f := cmd.Flags().Lookup(name); f.Changed {
					o.Join = append(o.Join, "--"+name, f.Value.String())
				}
			}
			for _, name := range one {
				if f := cmd.Flags().Lookup(name); f.Changed {
					o.Extra = append(o.Extra, "--"+name, f.Value.String())
				}
			}
			for _, name := range many {
				values, err := cmd.Flags().GetStringArray(name)
				if err != nil {
					return err
				}
				for _, v := range values {
					o.Extra = append(o.Extra, "--"+name, v)
				}
			}
			return run.Run(cmd.Context(), o)
		},
	}
	fs := c.Flags()
	fs.SetInterspersed(false)
	fs.StringVar(&o.Service, "service", "", "service that the command is an instance of")
	fs.IntVar(&o.Port, "port", 0, "port on which the command listens; 0: it only calls")
	fs.StringVar(&o.Namespace, "namespace", "", "namespace of the service")
	fs.StringVar(&o.Name, "name", "", "tells several on one machine apart (default: the service)")
	fs.StringVar(&address, "address", "", "IP under which others reach this host (default: that of the route to the control plane)")
	fs.StringVar(&o.ControlPlane, "control-plane", "", "HOST:PORT of the control plane")
	fs.StringVar(&o.Token, "token", "", "one-time join token (sallyport token create)")
	fs.StringVar(&o.TokenFile, "token-file", "", "file that holds the join token")
	fs.StringVar(&o.BundleFile, "ca-bundle", "", "PEM of the trust bundle")
	for name, usage := range map[string]string{"trust-domain": "trust domain of the mesh", "identity": "where the identity comes from: HOST:PORT or unix:///PATH (default: the control plane)"} {
		fs.String(name, "", usage)
		join = append(join, name)
	}
	fs.StringVar(&o.Consul, "consul", "", "URL of a Consul agent to register the service with (CONSUL_HTTP_TOKEN is its token)")
	fs.StringVar(&o.Check, "check", "tcp", "of the registration: tcp, or the path of an HTTP check on the command")
	for name, usage := range map[string]string{"tag": "tag of the registration; may be repeated", "meta": "metadata of the registration, as in version=v2; may be repeated",
		"upstream": "SERVICE:PORT: make a service reachable on a port of 127.0.0.1 too; may be repeated"} {
		fs.StringArray(name, nil, usage)
		many = append(many, name)
	}
	for name, usage := range map[string]string{"concurrency": "workers of the sidecar (default: one per CPU)", "accelerate": "of the sidecar: auto, on or off"} {
		fs.String(name, "", usage)
		one = append(one, name)
	}
	fs.StringVar(&capture, "capture", string(run.Cgroup), "whose traffic: cgroup (the command's process tree), namespace (every process), or none")
	fs.StringVar(&mode, "inbound-mode", string(redirect.Redirect), "redirect, tproxy or off")
	for i := range redirect.Fields {
		f := &redirect.Fields[i]
		switch f.Name {
		case "outbound-port", "inbound-port", "dns-port", "health-port":
			fs.Var(&redirectFlag{f, &o.Redirect}, f.Name, "port of the sidecar (default: free, or the usual one with --capture namespace)")
		case "include-outbound-ports", "exclude-outbound-ports", "include-inbound-ports", "exclude-inbound-ports", "include-outbound-cidrs", "exclude-outbound-cidrs",
			"exclude-uids", "exclude-interfaces", "dns-to", "backend":
			fs.Var(&redirectFlag{f, &o.Redirect}, f.Name, f.Usage)
		}
	}
	fs.BoolVar(&o.FailOpen, "fail-open", false, "while the sidecar is down the command talks without it, unencrypted")
	fs.DurationVar(&o.Wait, "wait", 30*time.Second, "how long the sidecar may take to be ready")
	fs.DurationVar(&o.Drain, "drain-timeout", 5*time.Second, "how long connections have to end when the command has")
	fs.StringVarP(&o.LogLevel, "log-level", "l", "warning", "of run and of the sidecar: trace, debug, info, warning, error, critical or off")
	fs.Uint32Var(&o.SidecarUID, "sidecar-uid", redirect.DefaultSidecarUID, "user and group of the sidecar")
	fs.StringVar(&o.Admin, "admin", "127.0.0.1:0", `address of the sidecar's admin page, "" for none`)
	fs.StringVar(&o.StateDir, "state", "/run/sallyport", "folder that keeps the sidecar's identity from one run to the next")
	fs.StringVar(&o.User, "user", "", "user of the command, NAME or UID, with :GROUP (default: the one that started this)")
	return c
}
