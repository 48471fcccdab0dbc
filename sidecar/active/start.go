package active

//lint:file-ignore SA1019 files in use have deprecated fields, which Envoy reads still, and so do we

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/ads"
	"sallyport/sidecar/config"
	"sallyport/sidecar/conn"
)

// Start puts what is static in force, all or nothing, and waits for nothing:
// Ready says when everything is there. The errors name the place in the file.
func (s *State) Start(b *config.Bootstrap) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boot != nil {
		return errors.New("a configuration was started already")
	}
	static, err := config.CompileStatic(b, s.env)
	if err != nil {
		return err
	}
	s.warn(nil, b.Warnings)
	d := b.Dynamic()
	s.awaitCDS, s.awaitLDS = d.CDS, d.LDS
	s.boot = b
	now := time.Now()
	for i, c := range static.Clusters {
		s.addCluster(c.Config.Name, resource{static: true, index: i, updated: now}, c)
	}
	var errs []error
	for i, l := range static.Listeners {
		errs = append(errs, s.addListener(l.Config.Name, resource{static: true, index: i, updated: now}, l))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	b.Release()
	if d.CDS || d.LDS {
		s.startGate(d)
	}
	s.settle()
	return nil
}

// startGate bounds the wait for the control plane's first answers.
func (s *State) startGate(d config.Dynamic) {
	wait := s.timeout
	for _, c := range []*corev3.ConfigSource{d.CDSSource, d.LDSSource} {
		if t := c.GetInitialFetchTimeout(); t != nil {
			wait = t.AsDuration()
		}
	}
	if s.cache != nil && (wait <= 0 || s.cache.after < wait) {
		time.AfterFunc(s.cache.after, s.fromCache)
	}
	if wait <= 0 {
		return // for ever
	}
	s.gate = time.AfterFunc(wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed || !s.awaitCDS && !s.awaitLDS {
			return
		}
		s.log.Warn("the control plane did not answer in time; going on with what there is", "after", wait)
		s.awaitCDS, s.awaitLDS = false, false
		s.settle()
	})
}

// fromCache takes the last good configuration from disk, unless the control plane has answered.
func (s *State) fromCache() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.versions) > 0 {
		return
	}
	found := false
	for _, t := range ads.Types {
		r, err := s.cache.load(t)
		if err != nil {
			s.log.Warn("the configuration kept on disk cannot be used", "type", t, "error", err)
			continue
		}
		s.withheld[t] = r.Removed
		r.Removed = nil
		if len(r.Resources) == 0 {
			continue
		}
		refused := s.apply(r, false)
		found = true
		s.log.Warn("the control plane did not answer; the last configuration was taken from disk", "type", t,
			"resources", len(r.Resources), "refused", len(refused))
		delete(s.versions, t)
	}
	s.awaitCDS, s.awaitLDS = false, false
	if found {
		s.accepted[ads.ClusterType], s.accepted[ads.ListenerType] = true, true // one of them may have been empty
	}
	s.settle()
}

// Node is how this proxy shows itself to a control plane.
func Node(b *config.Bootstrap, version string) *corev3.Node {
	n, _ := proto.Clone(b.GetNode()).(*corev3.Node)
	if n == nil || b.GetNode() == nil {
		n = &corev3.Node{}
	}
	n.UserAgentName = "sallyport"
	n.UserAgentVersionType = &corev3.Node_UserAgentVersion{UserAgentVersion: version}
	n.ClientFeatures = append(n.ClientFeatures, "envoy.lb.does_not_support_overprovisioning", "xds.config.resource-in-sotw")
	return n
}

// Connect makes the ADS client that the bootstrap speaks of, nil where it
// speaks of none. The caller runs the client, and closes the connection after it.
func (s *State) Connect(version string) (*ads.Client, *grpc.ClientConn, error) {
	s.mu.Lock()
	b := s.boot
	s.mu.Unlock()
	if b == nil {
		return nil, nil, errors.New("nothing was started")
	}
	d := b.Dynamic()
	if d.Cluster == "" {
		return nil, nil, nil
	}
	target, err := s.target(b, d)
	if err != nil {
		return nil, nil, err
	}
	cc, err := ads.Dial(target)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster %q of the control plane: %w", d.Cluster, err)
	}
	var wildcard []string
	if d.CDS {
		wildcard = append(wildcard, ads.ClusterType)
	}
	if d.LDS {
		wildcard = append(wildcard, ads.ListenerType)
	}
	md := metadata.MD{}
	for _, h := range d.Metadata {
		md.Append(strings.ToLower(h.GetKey()), h.GetValue())
	}
	c := ads.New(ads.Options{Conn: cc, Node: Node(b, version), Sink: s, Delta: d.Delta, Metadata: md, Wildcard: wildcard, Log: s.log})
	s.OnSubscribe(c.Subscribe)
	return c, cc, nil
}

// target is the static cluster of the control plane, as gRPC dials it.
func (s *State) target(b *config.Bootstrap, d config.Dynamic) (t ads.Target, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clusters[d.Cluster]
	if c == nil || !c.static {
		return t, fmt.Errorf("there is no static cluster %q", d.Cluster)
	}
	compiled := c.active
	if compiled == nil {
		compiled = c.next
	}
	cfg := compiled.Config
	t.Authority, t.ConnectTimeout = d.Authority, cfg.ConnectTimeout
	for _, e := range cfg.Endpoints {
		switch {
		case e.Path != "":
			t.Addresses = append(t.Addresses, "unix:"+e.Path)
		case e.Address.IsValid():
			t.Addresses = append(t.Addresses, conn.TCP(e.Address).String())
		default:
			t.Addresses = append(t.Addresses, fmt.Sprintf("%s:%d", e.Hostname, e.Port))
		}
	}
	if cfg.TLS != nil {
		t.TLS = cfg.TLS
	}
	m := b.GetStaticResources().GetClusters()[c.index]
	if k := keepalive(m); k != nil {
		t.KeepAlive, t.KeepAliveTimeout = k.GetInterval().AsDuration(), k.GetTimeout().AsDuration()
	}
	return t, nil
}

// keepalive finds connection_keepalive, wherever it is said.
func keepalive(m *clusterv3.Cluster) *corev3.KeepaliveSettings {
	if k := m.GetHttp2ProtocolOptions().GetConnectionKeepalive(); k != nil {
		return k
	}
	for _, a := range maps.All(m.GetTypedExtensionProtocolOptions()) {
		var h httpv3.HttpProtocolOptions
		if a.MessageIs(&h) && a.UnmarshalTo(&h) == nil {
			if k := h.GetExplicitHttpConfig().GetHttp2ProtocolOptions().GetConnectionKeepalive(); k != nil {
				return k
			}
		}
	}
	return nil
}
