package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"sallyport/certs"
	"sallyport/injector/install"
	"sallyport/injector/manifest"
)

// injectCommand is package injector/manifest for files.
func injectCommand() *cobra.Command {
	o := manifest.Options{}
	var files []string
	var bundle, pull string
	c := &cobra.Command{
		Use:   "inject -f FILE|- --control-plane HOST:PORT --ca-bundle FILE",
		Short: "Put the sidecar into Kubernetes manifests, or into a Docker Compose file, and print them",
		Long: "Reads manifests (Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob, List; many documents) or a Docker Compose\n" +
			"file and prints them with the sidecar in every pod. What is left alone, and why, is said on standard error.\n" +
			"Annotations of pods, " + manifest.AnnotationInject + " first of all, are in docs/kubernetes.md.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.PullPolicy = corev1.PullPolicy(pull)
			switch o.PullPolicy {
			case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
			default:
				return fmt.Errorf("--image-pull-policy %q: must be Always, IfNotPresent or Never", pull)
			}
			if bundle != "" {
				text, err := os.ReadFile(bundle)
				if err != nil {
					return fmt.Errorf("--ca-bundle: %w", err)
				}
				o.TrustBundle = string(text)
			}
			if err := o.Check(); err != nil {
				return err
			}
			return eachFile(c, files, func(name string, in []byte) ([]byte, error) {
				out, notes, err := manifest.File(name, in, o)
				if err == nil {
					for _, n := range notes {
						what := "left alone"
						if n.Injected {
							what = "warning"
						}
						fmt.Fprintf(c.ErrOrStderr(), "%s: %s: %s\n", n.Place, what, n.Text)
					}
				}
				return out, err
			})
		},
	}
	fs := c.Flags()
	fs.StringArrayVarP(&files, "file", "f", []string{"-"}, `file of manifests, "-" for standard input; may be repeated`)
	fs.StringVar(&o.Image, "image", install.DefaultImage, "image of the sidecar; its entry point is sallyport")
	fs.StringVar(&pull, "image-pull-policy", "", "of that image: Always, IfNotPresent or Never")
	fs.StringVar(&o.ControlPlane, "control-plane", "", "HOST:PORT of the control plane, as pods reach it")
	fs.StringVar(&o.TrustDomain, "trust-domain", certs.DefaultTrustDomain, "trust domain of the mesh")
	fs.StringVar(&bundle, "ca-bundle", "", "PEM of the trust bundle (bundle.pem of the control plane's state folder, or of the config map sallyport-trust-bundle)")
	fs.StringVar(&o.Consul, "consul", "", "URL of the Consul agent that sidecars register with")
	fs.StringVar(&o.LogLevel, "sidecar-log-level", "", "of the sidecar, where no annotation says it")
	return c
}

func uninjectCommand() *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use:   "uninject -f FILE|-",
		Short: "Take the sidecar out of manifests again, and print them as they were",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return eachFile(c, files, manifest.FileBack) },
	}
	c.Flags().StringArrayVarP(&files, "file", "f", []string{"-"}, `file of manifests, "-" for standard input; may be repeated`)
	return c
}

// maxManifest bounds what is read; package manifest says so again.
const maxManifest = 16<<20 + 1

// eachFile prints what change makes of each file, once all of them are done: half of a cluster is worse than none.
func eachFile(c *cobra.Command, files []string, change func(name string, in []byte) ([]byte, error)) error {
	var all [][]byte
	var errs []error
	for _, path := range files {
		name, r := path, c.InOrStdin()
		if path == "-" {
			name = "standard input"
		} else {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			r = f
		}
		in, err := io.ReadAll(io.LimitReader(r, maxManifest))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		out, err := change(name, in)
		all, errs = append(all, out), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err := c.OutOrStdout().Write(manifest.Join(all...))
	return err
}
