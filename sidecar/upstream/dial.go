package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
)

// Dial opens a connection to a host of the named cluster, TLS included, for
// calls made off the workers (telemetry, control plane). alpn, where not
// empty, replaces the protocols that TLS offers.
func (r *Registry) Dial(ctx context.Context, cluster string, alpn ...string) (net.Conn, error) {
	c := r.Lookup(cluster)
	if c == nil {
		return nil, fmt.Errorf("cluster %q does not exist", cluster)
	}
	set := c.hosts.Load()
	var errs []error
	for _, healthyOnly := range []bool{true, false} {
		for i := range set.entries {
			h := set.entries[i].host
			if healthyOnly != h.Healthy() {
				continue
			}
			conn, err := h.dialNet(ctx, alpn)
			if err == nil {
				return conn, nil
			}
			errs = append(errs, fmt.Errorf("%s: %w", h, err))
		}
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("cluster %q has no endpoints", cluster)
	}
	return nil, fmt.Errorf("cluster %q: %w", cluster, errors.Join(errs...))
}

// dialNet connects with the standard library, TLS included.
func (h *Host) dialNet(ctx context.Context, alpn []string) (net.Conn, error) {
	network, at := "tcp", h.where.Load()
	if at.IsUnix() {
		network = "unix"
	}
	return h.cluster.dialNet(ctx, network, at.text, h.hostname, alpn)
}

func (c *Cluster) dialNet(ctx context.Context, network, target, hostname string, alpn []string) (net.Conn, error) {
	secure := c.Config.TLS
	nc, err := c.registry.connect(ctx, network, target)
	if err != nil || secure == nil {
		return nc, err
	}
	cfg, err := secure.ClientConfig(hostname)
	if err != nil {
		nc.Close()
		return nil, err
	}
	if len(alpn) > 0 {
		cfg = cfg.Clone()
		cfg.NextProtos = slices.Clone(alpn)
	}
	t := tls.Client(nc, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return t, nil
}
