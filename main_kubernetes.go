package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"

	"sallyport/certs/apiserver"
	"sallyport/certs/ca"
)

// kubernetesFlags say where the API server is, for the commands that talk to it.
type kubernetesFlags struct {
	o        apiserver.Options
	bundle   string
	gateways []string // of the control plane
}

func (f *kubernetesFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.o.URL, "kubernetes", "", `Kubernetes API server, https://HOST:PORT; "in-cluster": that of the pod`)
	fs.Lookup("kubernetes").NoOptDefVal = apiserver.InCluster
	fs.StringVar(&f.o.CAFile, "kubernetes-ca", "", "PEM of the API server's CA (default: the pod's)")
	fs.StringVar(&f.o.TokenFile, "kubernetes-token-file", "", "file that holds the token for the API server (default: the pod's)")
}

// client is nil where no API server was named.
func (f *kubernetesFlags) client(log *slog.Logger) (*apiserver.Client, error) {
	if f.o.URL == "" {
		if f.o.CAFile != "" || f.o.TokenFile != "" || f.bundle != "" || len(f.gateways) > 0 {
			return nil, errors.New("--kubernetes-…: nothing is done with them without --kubernetes")
		}
		return nil, nil
	}
	c, err := apiserver.New(f.o)
	if err != nil {
		return nil, fmt.Errorf("--kubernetes: %w", err)
	}
	log.Info("service account tokens are taken", "api_server", c.URL())
	return c, nil
}

// publisher keeps the trust bundle in the config map of --kubernetes-trust-bundle; nil for none.
func (f *kubernetesFlags) publisher(c *apiserver.Client, authority *ca.Authority, log *slog.Logger) (func(context.Context), error) {
	if f.bundle == "" {
		return nil, nil
	}
	namespace, name, ok := strings.Cut(f.bundle, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("--kubernetes-trust-bundle %q: must be NAMESPACE/NAME", f.bundle)
	}
	m := apiserver.BundleMap{Client: c, Namespace: namespace, Name: name}
	return func(ctx context.Context) { m.Publish(ctx, authority, log) }, nil
}
