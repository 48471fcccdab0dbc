package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/certs"
	"sallyport/certs/source"
	"sallyport/injector/run"
	"sallyport/sidecar"
	"sallyport/sidecar/accelerate"
	"sallyport/sidecar/logging"
	"sallyport/sidecar/panics"
	"sallyport/sidecar/probe"
	"sallyport/sidecar/register"
	"sallyport/sidecar/ring"
)

// sidecarFlags are shared by the commands that run the data plane.
type sidecarFlags struct {
	o     sidecar.Options
	level string
	mode  string
	drain int
	spare string
	ring  string
}

func (f *sidecarFlags) add(fs *pflag.FlagSet) {
	fs.IntVar(&f.o.Concurrency, "concurrency", 0, "number of workers (default: one per CPU)")
	fs.StringVarP(&f.level, "log-level", "l", "info", "trace, debug, info, warning, error, critical or off")
	fs.IntVar(&f.drain, "drain-time-s", 5, "seconds that connections have to end after SIGTERM")
	fs.StringVar(&f.o.Zone, "service-zone", "", "zone of the node")
	fs.StringVar(&f.ring, "io-uring", "auto", "make the system calls of a moment in one, by io_uring: auto, on or off")
	fs.StringVar(&f.spare, "accelerate", "off", "pass bytes to and from applications of this host by BPF instead of TCP: auto, on or off")
	fs.StringVar(&f.o.Accelerate.Cgroup, "accelerate-cgroup", "", "folder of the cgroup v2 that holds the application (default: the sidecar's own)")
	fs.StringVar(&f.o.CacheDir, "cache-dir", "", "folder (0700) that keeps the last good configuration over a restart, but for what may hold a secret")
}

// addEnvoy adds the flags by which Envoy is started.
func (f *sidecarFlags) addEnvoy(fs *pflag.FlagSet) {
	fs.StringVarP(&f.o.Config, "config-path", "c", "", "Envoy bootstrap, YAML or JSON")
	fs.StringVar(&f.o.ConfigYAML, "config-yaml", "", "YAML that is merged onto the bootstrap")
	fs.StringVar(&f.mode, "mode", "serve", "serve, or validate: check the configuration and say what of it is not implemented")
	fs.StringVar(&f.o.Node, "service-node", "", "node id that the control plane sees")
	fs.StringVar(&f.o.Cluster, "service-cluster", "", "cluster of the node")
	for _, n := range ignoredValues {
		fs.String(n, "", "")
		_ = fs.MarkHidden(n) // it exists: made just now
	}
	for _, n := range ignoredSwitches {
		fs.Bool(n, false, "")
		_ = fs.MarkHidden(n)
	}
}

// Flags of Envoy that are taken and have no effect here: there is no shared
// memory region, no hot restart by epochs, no logger of another library.
var (
	ignoredValues = []string{"base-id", "base-id-path", "restart-epoch", "parent-shutdown-time-s", "file-flush-interval-msec", "file-flush-min-size-kb",
		"component-log-level", "log-format", "log-path", "drain-strategy", "local-address-ip-version", "admin-address-path", "socket-path", "socket-mode",
		"disable-extensions", "stats-tag"}
	ignoredSwitches = []string{"use-dynamic-base-id", "disable-hot-restart", "enable-mutex-tracing", "cpuset-threads", "allow-unknown-fields",
		"allow-unknown-static-fields", "reject-unknown-dynamic-fields", "ignore-unknown-dynamic-fields", "skip-deprecated-logs",
		"skip-hot-restart-on-no-parent", "skip-hot-restart-parent-stats", "enable-fine-grain-logging", "log-format-escaped"}
)

// finish makes options of the flags.
func (f *sidecarFlags) finish(fs *pflag.FlagSet, stderr *logging.Output) (err error) {
	if f.o.Log, f.o.Level, err = serviceLog(stderr, f.level); err != nil {
		return err
	}
	f.o.DroppedLines = stderr.Dropped
	f.o.Reopen = reloads()
	if f.drain < 0 {
		return fmt.Errorf("--drain-time-s %d: must not be negative", f.drain)
	}
	if f.o.Concurrency < 0 {
		return fmt.Errorf("--concurrency %d: must not be negative", f.o.Concurrency)
	}
	if f.o.Accelerate.Mode, err = accelerate.ParseMode(f.spare); err != nil {
		return err
	}
	if f.o.IOUring, err = ring.ParseMode(f.ring); err != nil {
		return err
	}
	f.o.DrainTime = max(time.Duration(f.drain)*time.Second, time.Millisecond)
	for _, n := range slices.Concat(ignoredValues, ignoredSwitches) {
		if fs.Changed(n) {
			f.o.Log.Warn("flag has no effect here", "flag", "--"+n)
		}
	}
	if f.mode != "" && f.mode != "serve" && f.mode != "validate" {
		return fmt.Errorf("--mode %q: must be serve or validate", f.mode)
	}
	return nil
}

// meshFlags are those of a proxy that is part of a mesh.
type meshFlags struct {
	mesh        sidecar.Mesh
	join        source.Options
	trustDomain string
	upstreams   []string
	listeners   []string
	wait        time.Duration
}

func (f *meshFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.mesh.ControlPlane, "control-plane", "", "HOST:PORT of the control plane")
	fs.StringVar(&f.mesh.Namespace, "namespace", certs.DefaultNamespace, "namespace of the service")
	fs.StringVar(&f.mesh.Instance, "instance", "", "name of this instance (default: host name and process id)")
	fs.StringVar(&f.mesh.Admin, "admin", "127.0.0.1:0", `address of the admin page, "" for none`)
	fs.StringVar(&f.trustDomain, "trust-domain", certs.DefaultTrustDomain, "trust domain of the mesh")
	fs.StringVar(&f.join.Token, "token", "", "one-time join token (sallyport token create)")
	fs.StringVar(&f.join.TokenFile, "token-file", "", "file that holds the join token")
	fs.StringVar(&f.join.ServiceAccountTokenFile, "service-account-token", "", "file that holds the pod's Kubernetes service account token (audience: the trust domain)")
	fs.StringVar(&f.join.BundleFile, "ca-bundle", "", "PEM of the trust bundle, where the token's fingerprint is not to be used")
	fs.StringVar(&f.join.Dir, "identity-dir", "", "folder (0700) that keeps key and SVID over a restart (default: they stay in memory)")
	fs.StringVar(&f.join.Address, "identity", "", "where the identity comes from: HOST:PORT or unix:///PATH (default: the control plane)")
	fs.DurationVar(&f.wait, "identity-timeout", time.Minute, "how long the first SVID may take")
}

// run joins the mesh and serves.
func (f *meshFlags) run(ctx context.Context, o sidecar.Options) error {
	if f.mesh.ControlPlane == "" {
		return errors.New("--control-plane HOST:PORT is required")
	}
	td, err := spiffeid.TrustDomainFromString(f.trustDomain)
	if err != nil {
		return fmt.Errorf("--trust-domain %q: %w", f.trustDomain, err)
	}
	for _, s := range f.upstreams {
		u, err := sidecar.ParseUpstream(s)
		if err != nil {
			return err
		}
		f.mesh.Upstreams = append(f.mesh.Upstreams, u)
	}
	for _, s := range f.listeners {
		name, address, ok := strings.Cut(s, "=")
		if _, err := netip.ParseAddrPort(address); !ok || err != nil {
			return fmt.Errorf("--listener %q: want NAME=IP:PORT, as in https=127.0.0.1:8443", s)
		}
		if f.mesh.Listeners == nil {
			f.mesh.Listeners = map[string]string{}
		}
		f.mesh.Listeners[name] = address
	}
	f.join.TrustDomain, f.join.Namespace, f.join.Logger = td, f.mesh.Namespace, o.Log
	f.join.Service = f.mesh.Service
	if f.mesh.Kind != "sidecar" {
		f.join.Service, f.join.Gateway = "", f.mesh.Gateway
	}
	if f.join.Address == "" {
		f.join.Address = f.mesh.ControlPlane
	}
	joinCtx, cancel := context.WithTimeout(ctx, f.wait)
	defer cancel()
	src, err := source.Join(joinCtx, f.join)
	if err != nil && ctx.Err() != nil {
		return nil // told to end before there was anything to do
	}
	if err != nil {
		return err
	}
	defer src.Close()
	f.mesh.ControlPlaneID = certs.ControlPlaneID(td).String()
	o.Mesh, o.Identity = &f.mesh, src
	return sidecar.Run(ctx, o)
}

func sidecarCommand(stderr *logging.Output) *cobra.Command {
	var f sidecarFlags
	m := meshFlags{mesh: sidecar.Mesh{Kind: "sidecar"}}
	var r register.Options
	var t sidecar.Transparent
	var transparent, byRun bool
	var inboundMode string
	c := &cobra.Command{
		Use:   "sidecar -c FILE | --service NAME --port PORT --control-plane HOST:PORT",
		Short: "Run the data plane: from an Envoy bootstrap, or as the sidecar of a service",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.finish(c.Flags(), stderr); err != nil {
				return err
			}
			switch {
			case m.mesh.Service == "" && f.mode == "validate":
				return sidecar.Validate(f.o, os.Stdout)
			case m.mesh.Service == "":
				return sidecar.Run(c.Context(), f.o)
			case f.o.Config != "" || f.o.ConfigYAML != "":
				return errors.New("--service and a bootstrap (-c) exclude each other")
			case m.mesh.Port == 0 && transparent && r.Consul == "": // an application that only calls
			case m.mesh.Port < 1 || m.mesh.Port > 65535:
				return errors.New("--port is required: where the application listens")
			}
			if transparent {
				if inboundMode != "redirect" && inboundMode != "tproxy" {
					return fmt.Errorf("--inbound-mode %q: must be redirect or tproxy", inboundMode)
				}
				t.TProxy = inboundMode == "tproxy"
				if err := t.Check(); err != nil {
					return err
				}
				m.mesh.Transparent = &t
				if a, err := netip.ParseAddr(m.mesh.Listen); err == nil {
					m.mesh.Listen = netip.AddrPortFrom(a, uint16(t.Inbound)).String()
				}
			}
			ctx, start := c.Context(), f.whenReady()
			if byRun {
				line, err := run.TakeLine()
				if err != nil {
					return err
				}
				var cancel context.CancelFunc
				ctx, cancel = line.Context(context.WithoutCancel(ctx))
				defer cancel()
				f.o.Held, f.o.Progress, start = true, line.Progress, line.Redirected()
			}
			if r.Consul == "" {
				return m.run(ctx, f.o)
			}
			if f.o.Health != "" {
				if err := checkThroughHealth(&r, &m.mesh, &f.o); err != nil {
					return err
				}
			}
			return registered(ctx, start, &r, &m, f.o)
		},
	}
	fs := c.Flags()
	f.add(fs)
	f.addEnvoy(fs)
	m.add(fs)
	fs.StringVar(&m.mesh.Service, "service", "", "service that this is the sidecar of")
	fs.IntVar(&m.mesh.Port, "port", 0, "port of 127.0.0.1 on which the application listens")
	fs.StringVar(&m.mesh.Listen, "listen", "", "IP:PORT at which the mesh reaches this sidecar; with --transparent IP will do (default: as in the catalog)")
	fs.StringArrayVar(&m.upstreams, "upstream", nil, "SERVICE:PORT: make a service reachable on a port of 127.0.0.1; may be repeated")
	fs.BoolVar(&transparent, "transparent", false, "take the application's traffic by redirection (sallyport redirect)")
	fs.IntVar(&t.Outbound, "outbound-port", 15001, "of --transparent: where outbound connections are redirected to")
	fs.IntVar(&t.Inbound, "inbound-port", 15006, "of --transparent: where inbound connections are redirected to, and the mesh comes in")
	fs.IntVar(&t.DNS, "dns-port", 15053, "of --transparent: where DNS is redirected to; 0 for none")
	fs.StringVar(&inboundMode, "inbound-mode", "redirect", "of --transparent: redirect, or tproxy (needs CAP_NET_ADMIN)")
	fs.StringVar(&f.o.Health, "health-address", "", "IP:PORT of the health port: /healthz/ready, and the application's probes of $"+probe.Environment)
	fs.BoolVar(&byRun, "by-run", false, "")
	_ = fs.MarkHidden("by-run") // it exists: made just now
	fs.StringVar(&r.Consul, "consul", "", "URL of a Consul agent to register the service with")
	fs.StringVar(&r.Health, "health", "", "path of Consul's HTTP check on the application (default: a TCP check)")
	fs.StringArrayVar(&r.Tags, "tag", nil, "tag of the registration; may be repeated")
	fs.StringToStringVar(&r.Meta, "meta", nil, "metadata of the registration, as in version=v2")
	return c
}

// whenReady returns what is closed when the sidecar is.
func (f *sidecarFlags) whenReady() <-chan struct{} {
	ready := make(chan struct{})
	f.o.Progress = func(reason string) {
		if reason == "" {
			close(ready)
		}
	}
	return ready
}

// checkThroughHealth points Consul's check of the application at the health port: redirection would lead it to the
// sidecar, which accepts every connection, and refuses plaintext.
func checkThroughHealth(r *register.Options, m *sidecar.Mesh, o *sidecar.Options) error {
	listen, err := netip.ParseAddrPort(m.Listen)
	if err != nil {
		return nil // registered says what is wrong
	}
	_, port, err := net.SplitHostPort(o.Health)
	if err != nil {
		return fmt.Errorf("--health-address %q: want IP:PORT, or :PORT for all addresses", o.Health)
	}
	host := "127.0.0.1"
	if m.Transparent != nil && m.Transparent.TProxy {
		host = "" // the address at which the check comes in: the application listens on the one that its clients dial
	}
	p := probe.Probe{TCP: &probe.TCPSocket{Port: int32(m.Port), Host: host}}
	if r.Health != "" {
		p = probe.Probe{HTTP: &probe.HTTPGet{Path: r.Health, Port: int32(m.Port), Host: host}}
	}
	const path = probe.Prefix + "consul"
	o.Probes = map[string]probe.Probe{path: p}
	r.CheckURL = "http://" + net.JoinHostPort(listen.Addr().String(), port) + path
	return nil
}

// registered runs the sidecar while its service is registered in Consul, which begins with start: not before the sidecar
// can take what others send.
func registered(ctx context.Context, start <-chan struct{}, r *register.Options, m *meshFlags, o sidecar.Options) error {
	listen, err := netip.ParseAddrPort(m.mesh.Listen)
	if err != nil {
		return errors.New("--consul needs --listen IP:PORT: the address of the sidecar that is registered")
	}
	r.Service, r.Namespace, r.ID, r.Port, r.Log = m.mesh.Service, m.mesh.Namespace, m.mesh.Instance, m.mesh.Port, o.Log
	r.Address, r.SidecarPort, r.Token = listen.Addr().String(), int(listen.Port()), os.Getenv("CONSUL_HTTP_TOKEN")
	// The registration ends first, and the sidecar drains after that: no
	// request is sent to a sidecar that is about to go.
	registration, stop := context.WithCancel(ctx)
	defer stop()
	serve, end := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() {
		defer end()
		select {
		case <-start:
			var err error
			if p := panics.Guard(o.Log, "registering in Consul", func() { err = register.Run(registration, *r) }); p != nil {
				err = p
			}
			done <- err
		case <-registration.Done():
			done <- nil
		}
	}()
	err = m.run(serve, o)
	stop()
	return errors.Join(err, <-done)
}

func gatewayCommand(stderr *logging.Output, kind, use, short string) *cobra.Command {
	var f sidecarFlags
	m := meshFlags{mesh: sidecar.Mesh{Kind: kind}}
	c := &cobra.Command{
		Use:   use + " --gateway NAME --control-plane HOST:PORT",
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.finish(c.Flags(), stderr); err != nil {
				return err
			}
			if m.mesh.Gateway == "" {
				return errors.New("--gateway NAME is required: the Gateway document that this proxy serves")
			}
			return m.run(c.Context(), f.o)
		},
	}
	fs := c.Flags()
	f.add(fs)
	m.add(fs)
	fs.StringVar(&m.mesh.Gateway, "gateway", "", "name of the Gateway document")
	fs.StringVar(&m.mesh.Listen, "listen", "", "IP or IP:PORT of the listeners (default: as the Gateway says)")
	fs.StringArrayVar(&m.listeners, "listener", nil, "NAME=IP:PORT: address of one of the Gateway's listeners; may be repeated")
	return c
}
