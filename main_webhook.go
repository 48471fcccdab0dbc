package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"sallyport/certs"
	"sallyport/certs/apiserver"
	"sallyport/injector/install"
	"sallyport/injector/manifest"
	"sallyport/injector/webhook"
	"sallyport/sidecar/logging"
)

// injectorFlags are those of the admission webhook.
type injectorFlags struct {
	o          webhook.Options
	kubernetes kubernetesFlags
	pods       manifest.Options
	pullPolicy string
	bundle     string // name of the config map
	onError    string
	level      string
}

func injectorCommand(stderr *logging.Output) *cobra.Command {
	var f injectorFlags
	c := &cobra.Command{
		Use:   "injector --image IMAGE --control-plane HOST:PORT",
		Short: "Give pods their sidecar as they are created: the admission webhook of a Kubernetes cluster",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return f.run(c.Context(), stderr) },
	}
	fs := c.Flags()
	f.kubernetes.add(fs)
	fs.Lookup("kubernetes").DefValue = apiserver.InCluster
	fs.StringVar(&f.o.Namespace, "namespace", install.DefaultNamespace, "namespace of the injector")
	fs.StringVar(&f.o.Listen, "listen", webhook.DefaultListen, "address for the API server (HTTPS)")
	fs.StringVar(&f.o.StatusListen, "status-listen", webhook.DefaultStatus, `address of /healthz, /ready and /metrics, "-" for none`)
	fs.StringVar(&f.o.Config, "webhook-configuration", webhook.DefaultConfig, "MutatingWebhookConfiguration whose caBundle is kept up to date")
	fs.StringVar(&f.o.Service, "service", webhook.DefaultService, "service by which the API server calls the injector")
	fs.StringVar(&f.o.Secret, "secret", webhook.DefaultSecret, "secret that holds the authority of the injector's certificates")
	fs.DurationVar(&f.o.CATTL, "authority-ttl", webhook.DefaultCATTL, "life of that authority; its successor comes when a third is left")
	fs.DurationVar(&f.o.LeafTTL, "certificate-ttl", webhook.DefaultLeafTTL, "life of the injector's certificates")
	fs.DurationVar(&f.o.DrainTime, "drain-time", 0, "how long to answer still after being told to end")
	fs.StringVar(&f.bundle, "trust-bundle", webhook.DefaultBundleName, "config map in which the control plane keeps the trust bundle")
	fs.StringVar(&f.onError, "on-error", "deny", "what becomes of pods that ask for what cannot be done: deny, or allow without a sidecar")
	fs.StringVar(&f.pods.Image, "image", "", "image of the sidecars")
	fs.StringVar(&f.pullPolicy, "image-pull-policy", "", "of the sidecars' image: Always, IfNotPresent or Never")
	fs.StringVar(&f.pods.ControlPlane, "control-plane", "", "HOST:PORT of the control plane, for the sidecars")
	fs.StringVar(&f.pods.TrustDomain, "trust-domain", certs.DefaultTrustDomain, "trust domain of the mesh")
	fs.StringVar(&f.pods.Consul, "consul", "", "URL of the Consul agent that sidecars register with")
	fs.StringVar(&f.pods.LogLevel, "sidecar-log-level", "", "of the sidecars")
	fs.StringVarP(&f.level, "log-level", "l", "info", "trace, debug, info, warning, error, critical or off")
	return c
}

func (f *injectorFlags) run(ctx context.Context, stderr *logging.Output) error {
	log, _, err := serviceLog(stderr, f.level)
	if err != nil {
		return err
	}
	nothingToReload(ctx, log)
	switch f.onError {
	case "deny":
	case "allow":
		f.o.Allow = true
	default:
		return fmt.Errorf("--on-error %q: must be deny or allow", f.onError)
	}
	f.pods.PullPolicy = corev1.PullPolicy(f.pullPolicy)
	switch f.pods.PullPolicy {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		return fmt.Errorf("--image-pull-policy %q: must be Always, IfNotPresent or Never", f.pullPolicy)
	}
	if f.pods.Image == "" || f.pods.ControlPlane == "" {
		return errors.New("--image and --control-plane HOST:PORT are required: what sidecars run, and where they find the control plane")
	}
	f.kubernetes.o.URL = cmp.Or(f.kubernetes.o.URL, apiserver.InCluster)
	f.o.Client, err = apiserver.New(f.kubernetes.o)
	if err != nil {
		return fmt.Errorf("--kubernetes: %w", err)
	}
	defer f.o.Client.Close()
	bundle := webhook.NewTrustBundle(apiserver.BundleMap{Client: f.o.Client, Namespace: f.o.Namespace, Name: f.bundle}, log)
	f.o.Logger = log
	f.o.Ready = func() error { _, err := bundle.Get(); return err }
	f.o.Inject = func(pod *corev1.Pod, _ string) (webhook.Result, error) { return injectPod(pod, f.pods, bundle) }
	server, err := webhook.New(f.o)
	if err != nil {
		return err
	}
	log.Info("injector is up", "reviews", server.Addr(), "status", server.StatusAddr(), "api_server", f.o.Client.URL())
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go bundle.Follow(ctx)
	return server.Run(ctx)
}

// injectPod is package manifest's answer in the words of package webhook.
func injectPod(pod *corev1.Pod, o manifest.Options, bundle *webhook.TrustBundle) (webhook.Result, error) {
	var err error
	if o.TrustBundle, err = bundle.Get(); err != nil {
		return webhook.Result{}, err
	}
	r, err := manifest.Inject(&pod.ObjectMeta, &pod.Spec, o)
	if err != nil {
		return webhook.Result{}, err
	}
	if !r.Injected {
		return webhook.Result{Skipped: r.Reason, Warn: r.Asked, Warnings: r.Warnings}, nil
	}
	return webhook.Result{Pod: pod, Warnings: r.Warnings}, nil
}

func installCommand() *cobra.Command {
	var o install.Options
	c := &cobra.Command{
		Use:   "install",
		Short: "Print the Kubernetes manifests of control plane and injector, for kubectl apply -f -",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return install.Print(c.OutOrStdout(), o) },
	}
	fs := c.Flags()
	fs.StringVar(&o.Namespace, "namespace", install.DefaultNamespace, "namespace to install into")
	fs.StringVar(&o.Image, "image", install.DefaultImage, "image of control plane, injector and sidecars; its entry point is sallyport")
	fs.StringVar(&o.TrustDomain, "trust-domain", certs.DefaultTrustDomain, "trust domain of the mesh")
	fs.StringVar(&o.Consul, "consul", install.DefaultConsul, "URL of Consul; its ACL token is key token of the secret "+install.ConsulSecret)
	fs.StringVar(&o.FailurePolicy, "failure-policy", install.DefaultFailurePolicy, "Fail: no pod without its sidecar; Ignore: pods start also while the injector is away")
	fs.IntVar(&o.Replicas, "replicas", install.DefaultReplicas, "of the injector")
	return c
}
