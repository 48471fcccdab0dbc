package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/certs"
	"sallyport/certs/issuer"
	"sallyport/certs/token"
)

func tokenCommand() *cobra.Command {
	var service, namespace, trustDomain, state string
	var ttl time.Duration
	create := &cobra.Command{
		Use:   "create --service NAME --state DIR",
		Short: "Print a one-time token for the first identity of a sidecar or edge",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if service == "" || state == "" {
				return errors.New("--service NAME and --state DIR are required")
			}
			td, err := spiffeid.TrustDomainFromString(trustDomain)
			if err != nil {
				return fmt.Errorf("--trust-domain %q: %w", trustDomain, err)
			}
			id, err := certs.ServiceID(td, namespace, service)
			if err != nil {
				return err
			}
			t, err := issuer.CreateJoinToken(state, id, ttl)
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), t.String())
			return nil
		},
	}
	fs := create.Flags()
	fs.StringVar(&service, "service", "", "service, or gateway, that the token makes its bearer")
	fs.StringVar(&namespace, "namespace", certs.DefaultNamespace, "namespace of the service")
	fs.StringVar(&trustDomain, "trust-domain", certs.DefaultTrustDomain, "trust domain of the mesh")
	fs.StringVar(&state, "state", "", "state folder of the control plane")
	fs.DurationVar(&ttl, "ttl", token.DefaultTTL, "how long the token may wait for its use")
	c := &cobra.Command{Use: "token", Short: "Join tokens"}
	c.AddCommand(create)
	return c
}
