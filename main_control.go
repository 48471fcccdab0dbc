package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"sallyport/certs"
	"sallyport/certs/ca"
	"sallyport/certs/issuer"
	"sallyport/certs/peercred"
	"sallyport/certs/source"
	"sallyport/certs/tlsconfig"
	"sallyport/certs/token"
	"sallyport/certs/tokenreview"
	"sallyport/sidecar/logging"
	"sallyport/xds"
	"sallyport/xds/catalog"
	"sallyport/xds/serve"
)

// controlFlags are those of the control plane.
type controlFlags struct {
	o           xds.Options
	consul      string
	state       string
	trustDomain string
	level       string
	ttl         time.Duration
	socket      string
	rules       []string
	kubernetes  kubernetesFlags
}

func controlPlaneCommand(stderr *logging.Output) *cobra.Command {
	var f controlFlags
	c := &cobra.Command{
		Use:   "control-plane --consul URL | --catalog FILE --policies DIR --state DIR",
		Short: "Turn Consul, or a catalog file, and policy documents into xDS for every proxy; issue their identities",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return f.run(c.Context(), stderr) },
	}
	fs := c.Flags()
	fs.StringVar(&f.o.Listen, "listen", xds.DefaultListen, "address for proxies (gRPC under TLS)")
	fs.StringVar(&f.o.StatusListen, "status-listen", xds.DefaultStatus, `address of /status, /ready and /metrics, "-" for none`)
	fs.StringVar(&f.consul, "consul", "", "URL of a Consul agent; its ACL token comes from CONSUL_HTTP_TOKEN")
	fs.StringVar(&f.o.Catalog, "catalog", "", "catalog file, in place of Consul")
	fs.StringVar(&f.o.Policies, "policies", "", "folder of policy documents")
	fs.BoolVar(&f.o.DefaultDeny, "default-deny", false, "refuse calls that no intention or AuthorizationPolicy allows; a Mesh document overrules it")
	fs.StringVar(&f.state, "state", "", "state folder (0700): the certificate authority's keys, and the policies in force for a restart")
	fs.StringVar(&f.trustDomain, "trust-domain", certs.DefaultTrustDomain, "trust domain of the mesh")
	fs.DurationVar(&f.ttl, "svid-ttl", 0, "life of the SVIDs that are issued (default 1h)")
	fs.StringVar(&f.socket, "identity-socket", "", "Unix socket on which local processes get identities by their peer credentials")
	fs.StringArrayVar(&f.rules, "identity-rule", nil, "uid:1001=orders, user:, gid: or group: who may have which identity on the socket; may be repeated")
	f.kubernetes.add(fs)
	fs.StringArrayVar(&f.kubernetes.gateways, "kubernetes-gateway", nil, "NAMESPACE/ACCOUNT=GATEWAY: a service account whose pods are edges of a gateway of that namespace; may be repeated")
	fs.StringVar(&f.kubernetes.bundle, "kubernetes-trust-bundle", "", "NAMESPACE/NAME of a config map to keep the trust bundle in, for the injector")
	fs.StringVarP(&f.level, "log-level", "l", "info", "trace, debug, info, warning, error, critical or off")
	return c
}

func (f *controlFlags) run(ctx context.Context, stderr *logging.Output) error {
	log, _, err := serviceLog(stderr, f.level)
	if err != nil {
		return err
	}
	nothingToReload(ctx, log)
	if f.state == "" {
		return errors.New("--state DIR is required: where the certificate authority keeps its keys")
	}
	if f.o.Policies == "" {
		return errors.New("--policies DIR is required; an empty folder will do")
	}
	if f.o.TrustDomain, err = spiffeid.TrustDomainFromString(f.trustDomain); err != nil {
		return fmt.Errorf("--trust-domain %q: %w", f.trustDomain, err)
	}
	if f.consul != "" {
		f.o.Consul = &catalog.ConsulOptions{Address: f.consul, Logger: log}
	}
	if f.o.Catalog != "" {
		// A mistake at the start is told at once; later ones leave the last good catalog in force.
		if _, problems := catalog.LoadFile(f.o.Catalog); len(problems) > 0 {
			return problems.Err()
		}
	}
	f.o.Logger, f.o.State = log, f.state
	authority, err := ca.Open(f.state, ca.Options{TrustDomain: f.o.TrustDomain, TTL: f.ttl, Logger: log})
	if err != nil {
		return err
	}
	defer authority.Close()
	tokens, err := token.Open(f.state, nil)
	if err != nil {
		return err
	}
	defer tokens.Close()
	self, err := source.Local(ctx, authority, certs.ControlPlaneID(f.o.TrustDomain), source.LocalOptions{Logger: log})
	if err != nil {
		return err
	}
	defer self.Close()
	var rules peercred.Rules
	for _, s := range f.rules {
		r, err := peercred.ParseRule(f.o.TrustDomain, s)
		if err != nil {
			return fmt.Errorf("--identity-rule %q: %w", s, err)
		}
		rules = append(rules, r)
	}
	cluster, err := f.kubernetes.client(log)
	if err != nil {
		return err
	}
	o := issuer.Options{Authority: authority, Tokens: tokens, Rules: rules, Logger: log}
	if cluster != nil {
		defer cluster.Close()
		gateways, err := tokenreview.ParseGateways(f.kubernetes.gateways)
		if err != nil {
			return fmt.Errorf("--kubernetes-gateway %w", err)
		}
		o.Accounts = tokenreview.New(cluster, f.o.TrustDomain, gateways)
	}
	publish, err := f.kubernetes.publisher(cluster, authority, log)
	if err != nil {
		return err
	}
	service := issuer.New(o)
	unary, stream := issuer.Guard(nil)
	// Callers without a certificate come as far as the issuer, with a token; the guard keeps them from everything else.
	f.o.Credentials = credentials.NewTLS(tlsconfig.JoinServer(self, spiffeid.MatchMemberOf(f.o.TrustDomain)))
	f.o.ServerOptions = []grpc.ServerOption{grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream)}
	f.o.Register = service.Register
	f.o.Identity = func(ctx context.Context) (spiffeid.ID, error) {
		id, ok, err := tlsconfig.PeerID(ctx, time.Now())
		if err == nil && !ok {
			err = errors.New("no client certificate was shown")
		}
		return id, err
	}
	control, err := xds.New(f.o)
	if err != nil {
		return err
	}
	log.Info("control plane is up", "proxies", control.Addr(), "status", control.StatusAddr(), "trust_domain", f.o.TrustDomain)
	// What ends first ends the others.
	g, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if f.socket != "" {
		g.Go(func() error { return service.ServeUnix(ctx, f.socket, 0o660, nil) })
	}
	if publish != nil {
		g.Go(func() error { publish(ctx); return nil })
	}
	g.Go(func() error { defer stop(); return control.Run(ctx) })
	return g.Wait()
}

func tokenCommand() *cobra.Command {
	var service, gateway, namespace, trustDomain, state string
	var ttl time.Duration
	create := &cobra.Command{
		Use:   "create --service NAME | --gateway NAME --state DIR",
		Short: "Print a one-time token for the first identity of a sidecar, or of an edge or L4 tier",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if (service == "") == (gateway == "") || state == "" {
				return errors.New("--state DIR is required, and one of --service NAME (for a sidecar) and --gateway NAME (for an edge or L4 tier)")
			}
			td, err := spiffeid.TrustDomainFromString(trustDomain)
			if err != nil {
				return fmt.Errorf("--trust-domain %q: %w", trustDomain, err)
			}
			id, err := certs.ServiceID(td, namespace, service)
			if gateway != "" {
				id, err = certs.GatewayID(td, namespace, gateway)
			}
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
	fs.StringVar(&service, "service", "", "service that the token makes its bearer a sidecar of")
	fs.StringVar(&gateway, "gateway", "", "gateway that the token makes its bearer an edge or L4 tier of")
	fs.StringVar(&namespace, "namespace", certs.DefaultNamespace, "namespace of the service or gateway")
	fs.StringVar(&trustDomain, "trust-domain", certs.DefaultTrustDomain, "trust domain of the mesh")
	fs.StringVar(&state, "state", "", "state folder of the control plane")
	fs.DurationVar(&ttl, "ttl", token.DefaultTTL, "how long the token may wait for its use")
	c := &cobra.Command{Use: "token", Short: "Join tokens"}
	c.AddCommand(create)
	return c
}

func validateCommand() *cobra.Command {
	var catalogFile, policies string
	c := &cobra.Command{
		Use:   "validate [--catalog FILE] [--policies DIR]",
		Short: "Check a catalog file and policy documents without a control plane",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if catalogFile == "" && policies == "" {
				return errors.New("--catalog FILE or --policies DIR is required")
			}
			problems := xds.Validate(catalogFile, policies)
			if len(problems) == 0 {
				fmt.Fprintln(c.OutOrStdout(), "OK")
				return nil
			}
			errs := make([]error, len(problems))
			for i, p := range problems {
				errs[i] = p
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().StringVar(&catalogFile, "catalog", "", "catalog file")
	c.Flags().StringVar(&policies, "policies", "", "folder of policy documents")
	return c
}

func statusCommand() *cobra.Command {
	var address string
	c := &cobra.Command{
		Use:   "status",
		Short: "Say which proxies are connected, which version each runs, and what they refused",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return printStatus(c.Context(), address, c.OutOrStdout()) },
	}
	c.Flags().StringVar(&address, "address", xds.DefaultStatus, "status address of the control plane")
	return c
}

func printStatus(ctx context.Context, address string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/status", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("no control plane answers at %s: %w", address, err)
	}
	defer resp.Body.Close()
	var s serve.Status
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(&s); err != nil {
		return fmt.Errorf("%s does not answer as a control plane does: %w", address, err)
	}
	fmt.Fprintf(out, "catalog %s: %s\n", s.Catalog.Source, cmp.Or(s.Catalog.Error, "up to date"))
	for _, p := range s.Policies.Problems {
		fmt.Fprintln(out, "refused policy:", p)
	}
	if s.Policies.Restored {
		fmt.Fprintln(out, "policies: what was in force before the restart stays in force, where the folder is refused")
	}
	if s.Policies.Unkept != "" {
		fmt.Fprintln(out, "policies would not survive a restart:", s.Policies.Unkept)
	}
	for _, c := range s.Conflicts {
		state := "policy in conflict"
		if c.Closed {
			state = "service " + c.Service + " closed"
		}
		fmt.Fprintf(out, "%s: %s\n", state, c.Problem)
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "PROXY\tKIND\tLISTENERS\tROUTES\tCLUSTERS\tENDPOINTS\tPROBLEM")
	for _, p := range s.Proxies {
		problem := p.Problem
		for name, t := range p.Types {
			if t.Nack != nil {
				problem = name + " refused: " + t.Nack.Error
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.ID, p.Kind, p.Types["LDS"].Acked, p.Types["RDS"].Acked, p.Types["CDS"].Acked, p.Types["EDS"].Acked, cmp.Or(problem, "-"))
	}
	return w.Flush()
}
