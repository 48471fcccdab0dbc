package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sallyport/injector/redirect"
)

// redirectCommand is package injector/redirect for people and init containers.
func redirectCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "redirect",
		Short: "Redirect an application's traffic to its sidecar, by rules of the kernel",
	}
	c.AddCommand(redirectApply(), redirectCleanup(), redirectShow())
	return c
}

func redirectApply() *cobra.Command {
	c := redirect.Config{
		OutboundPort: redirect.DefaultOutboundPort, InboundPort: redirect.DefaultInboundPort, InboundMode: redirect.Redirect,
		DNSPort: redirect.DefaultDNSPort, DNSTo: redirect.DNSAuto, HealthPort: redirect.DefaultHealthPort, Backend: redirect.Auto,
	}
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Put the rules in force, in place of those of the same name; needs CAP_NET_ADMIN",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("sidecar-uid") && !cmd.Flags().Changed("sidecar-gid") &&
				!cmd.Flags().Changed("sidecar-mark") && !cmd.Flags().Changed("sidecar-cgroup") {
				c.Sidecar.UIDs = []uint32{redirect.DefaultSidecarUID}
			}
			if dryRun {
				return printRules(cmd.OutOrStdout(), c)
			}
			return redirect.Apply(c)
		},
	}
	for i := range redirect.Fields {
		f := &redirect.Fields[i]
		cmd.Flags().Var(&redirectFlag{f, &c}, f.Name, f.Usage)
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print the rules, for nft -f or iptables-restore --noflush, and change nothing")
	cmd.Flags().Lookup("sidecar-uid").DefValue = fmt.Sprint(redirect.DefaultSidecarUID)
	return cmd
}

// redirectFlag is a field of the configuration as a flag.
type redirectFlag struct {
	field *redirect.Field
	c     *redirect.Config
}

var _ pflag.Value = (*redirectFlag)(nil)

func (f *redirectFlag) Set(s string) error { return f.field.Set(f.c, s) }
func (f *redirectFlag) String() string {
	if f.field == nil { // pflag asks a zero value
		return ""
	}
	return f.field.Get(f.c)
}
func (f *redirectFlag) Type() string { return f.field.Value }

func printRules(w io.Writer, c redirect.Config) error {
	c.LookAround()
	r, err := redirect.Plan(c)
	if err != nil {
		return err
	}
	if r.Config.Backend == redirect.Auto || r.Config.Backend == redirect.NFTables {
		_, err = io.WriteString(w, r.NFT())
		return err
	}
	_, err = fmt.Fprintf(w, "# IPv4\n%s# IPv6\n%s", r.IPTables(false), r.IPTables(true))
	return err
}

func redirectCleanup() *cobra.Command {
	var name string
	var all bool
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove the rules; nothing to remove is no error",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if all {
				return redirect.CleanupAll()
			}
			return redirect.Cleanup(name)
		},
	}
	c.Flags().StringVar(&name, "name", "", "name of the rules of one cgroup; those of the whole namespace have none")
	c.Flags().BoolVar(&all, "all", false, "remove the rules of every name")
	c.MarkFlagsMutuallyExclusive("name", "all")
	return c
}

func redirectShow() *cobra.Command {
	var rules bool
	c := &cobra.Command{
		Use:   "show",
		Short: "Say which rules are in force, and by which backend",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := redirect.InForce()
			if err != nil {
				return err
			}
			return showRules(cmd.OutOrStdout(), all, rules)
		},
	}
	c.Flags().BoolVar(&rules, "rules", false, "print the rules too")
	return c
}

func showRules(w io.Writer, all []redirect.Status, rules bool) error {
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing is redirected")
	}
	for i := range all {
		s := &all[i]
		if s.Foreign {
			fmt.Fprintf(w, "%s by %s: not of sallyport's making\n", s.Place, s.Backend)
			continue
		}
		fmt.Fprintf(w, "%s by %s\n", s.Place, s.Backend)
		if s.Changed != "" {
			fmt.Fprintf(w, "  CHANGED since: %s; apply again\n", s.Changed)
		}
		for word := range strings.FieldsSeq(s.Config.String()) {
			fmt.Fprintf(w, "  --%s\n", word)
		}
		if rules {
			c := s.Config
			c.Backend = s.Backend
			if err := printRules(w, c); err != nil {
				return err
			}
		}
	}
	return nil
}
